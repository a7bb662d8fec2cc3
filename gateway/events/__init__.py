"""Who hears what, and in which order."""
