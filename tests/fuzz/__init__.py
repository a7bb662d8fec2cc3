"""Mutated JSON-RPC messages against a real gateway: `python -m tests.fuzz --help`."""
