"""Connections that serve methods, and calls to them from other connections."""
