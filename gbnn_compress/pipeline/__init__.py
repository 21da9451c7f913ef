"""What `compress` and `plan` do, from the request to the report."""
