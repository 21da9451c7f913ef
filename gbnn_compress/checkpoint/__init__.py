"""Foreign checkpoints: opened, understood, and their tensors sorted into shared, unshared and exact ones."""
