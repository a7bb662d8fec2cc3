"""Topics: which connections hear what, and in which order."""
