"""The gateway's own methods, one module for each part of the name before the dot."""
