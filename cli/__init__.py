"""The command line of gbnn-compress."""
