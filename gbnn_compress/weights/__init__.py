"""Checkpoints and tensors: read, select, posterior, rebuild."""
