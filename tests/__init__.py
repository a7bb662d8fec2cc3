"""The tests of the gateway, and the helpers that they share."""
