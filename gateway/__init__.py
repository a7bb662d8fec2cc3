"""A WebSocket gateway through which nodes, operators and pages call each other by JSON-RPC."""

__version__ = "0.1.0"
