"""Who is here: identity, the current link, and how connections leave."""
