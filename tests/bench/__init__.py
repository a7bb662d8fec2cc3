"""Benchmarks of the gateway beside bare servers. `python -m tests.bench --help` explains them."""
