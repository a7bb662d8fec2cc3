"""What the commands share: the connection to a gateway, what they print, and the programs that a node runs."""
