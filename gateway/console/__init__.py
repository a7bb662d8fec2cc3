"""The operator's console: files for browsers, and what serves them. They are built on the client of `javascript/`."""
