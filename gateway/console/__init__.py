"""The operator's console: files for browsers, and the client library that they are built on, which Node can use too."""
