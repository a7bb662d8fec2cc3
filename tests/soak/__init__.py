"""Many connections that end in many ways, and what the gateway has left of them. See `--help`."""
