"""What a message means: JSON-RPC, the table of methods, and calls to clients."""
