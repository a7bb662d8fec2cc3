"""Who a peer is, and what it may do: credentials, how they are verified, and scopes."""
