"""What the tests share: peers, servers, models and certificates."""
