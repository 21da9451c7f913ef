"""A compressed network that predicts, and what its predictions are worth."""
