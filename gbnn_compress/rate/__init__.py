"""Rate control: cells, codebooks, targets."""
