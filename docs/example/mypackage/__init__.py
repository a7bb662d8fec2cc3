"""An example of methods of one's own; see docs/methods-howto.md."""
