"""What inputs, real or synthetic, tell of a network's layers: how errors are felt, and how to make them good."""
