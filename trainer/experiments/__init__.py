"""What makes the tables of the docs: the digits, the paper's experiments, the benchmark, the built-in model."""
