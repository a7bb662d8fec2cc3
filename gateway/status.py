"""What the process as a whole is doing: the phase that readiness, admission and the dispatcher look at. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable


class Phase(enum.StrEnum):
    """The phases of a process, in order. It never goes back to an earlier one."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Status:
    """Holds the phase of the process, its name, and the time of its start.

    ``instance`` names the process, and never changes. ``clock`` returns monotonic seconds.
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
        """Enter the phase in which connections are accepted. Does nothing once draining has begun."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    def drain(self) -> None:
        """Enter the phase in which everything new is refused. May be called twice."""
        self.phase = Phase.DRAINING
