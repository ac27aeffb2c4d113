"""One training run, from the command to the report."""
