"""Reports, read from the file."""
