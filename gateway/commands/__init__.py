"""The commands of `python -m gateway`, one module for each."""
