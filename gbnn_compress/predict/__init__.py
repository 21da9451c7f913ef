"""Predictions of checkpoints and compressed networks, and their evaluation."""
