"""What the commands share: the way to a gateway, what they print, and the programs that a node runs."""
