"""Who somebody is, and what they may do: credentials, scopes, and how they are verified."""
