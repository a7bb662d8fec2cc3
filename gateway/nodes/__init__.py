"""Who serves what, and calls from one connection to another."""
