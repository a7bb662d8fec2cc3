"""How long tests wait, and how large they are.

A test shows what happens, and in which order. How soon it happens belongs to `scripts/bench`, so the bounds here only
keep a test from hanging, on a machine that does other work as well. A deadline that a test waits out is its own, and
short; the deadlines that it must not meet are longer than these.
"""

from typing import Final, Protocol

WAIT: Final = 30.0
"""Seconds in which something comes that nothing holds up."""
START: Final = 60.0
"""Seconds in which a process starts, does its work, and ends."""
SLACK: Final = 20.0
"""Seconds by which a deadline may be missed."""
TICK: Final = 0.02
"""Seconds by which something may seem to be early: timers, and the clocks of two processes, are apart."""


class Sized(Protocol):
    """What the fixture `sized` gives."""

    def __call__(self, small: int, full: int, /) -> int:
        """Return `small`, or with `--full` the other."""
