"""Variational training of the shared weights to a target."""
