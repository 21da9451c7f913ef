"""Data sets, preprocessing, architectures, and names of tensors."""
