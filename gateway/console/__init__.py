"""The operator's console: a page for browsers, and what serves it. The page uses the client in `javascript/`."""
