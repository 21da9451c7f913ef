"""Reading of foreign checkpoints, and sorting of their tensors into shared, unshared and raw ones."""
