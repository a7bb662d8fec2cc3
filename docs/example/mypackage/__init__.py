"""An example of methods of your own; see docs/methods-howto.md."""
