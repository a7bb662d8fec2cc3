"""The connections: what belongs to each of them, its current link, and how they leave."""
