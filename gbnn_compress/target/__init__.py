"""From a prepared checkpoint to a file that meets a target: bit allocation, rate control, encoding, verification."""
