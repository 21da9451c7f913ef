"""Mixtures of 2-D Gaussians: fit, merge, assign."""
