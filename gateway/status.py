"""What the process is doing as a whole: one value that readiness, the upgrade and the dispatcher look at. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable


class Phase(enum.StrEnum):
    """A process moves down this list, once."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Status:
    """The phase of the process, its name, and since when it runs.

    ``instance`` is the same for the life of the process; ``clock`` gives monotonic seconds.
    """

    __slots__ = ("_clock", "_started", "instance", "phase")

    def __init__(self, instance: str, clock: Callable[[], float]) -> None:
        self.instance = instance
        self.phase = Phase.STARTING
        self._clock = clock
        self._started = clock()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def ready(self) -> None:
        """Accept connections; does nothing once draining has begun."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    def drain(self) -> None:
        """Refuse all that is new, from now on. May be called twice."""
        self.phase = Phase.DRAINING
