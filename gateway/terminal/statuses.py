"""The exit statuses of the commands, each in one place."""

from typing import Final

FAILED: Final = 1
"""The gateway or a node has answered with an error, or a file cannot be written."""

WRONG: Final = 2
"""Wrong usage, or a wrong configuration."""

UNREACHABLE: Final = 3
"""No connection: it could not be made, was refused, or was lost."""

INTERRUPTED: Final = 130
"""Ctrl-C: 128 and the number of SIGINT, as shells show it."""

PIPE: Final = 141
"""The reader of the output has gone: 128 and the number of SIGPIPE."""
