"""What one peer notices of the others, measured on a machine that is not the tests' alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

OTHERS: Final = 0.05
"""Seconds that the p99 of another peer's `gateway.ping` stays under on a machine of its own, whatever one peer does."""


class NoticedError(AssertionError):
    """The p99 of another peer is not under `OTHERS`."""


class Begun(NamedTuple):
    """When a wait has begun, and how long each of the two had been without a core by then, in seconds."""

    at: float
    without: list[float]


class Fair:
    """Measures waits, less the time in which the gateway or this process were ready to run and had no core.

    On a machine that others use too, that time says nothing about the gateway. Linux counts it for each thread, in
    the second field of schedstat (Documentation/scheduler/sched-stats.rst). The two may have waited at the same time,
    so only the longer of their times is taken off.
    """

    def __init__(self, pid: int) -> None:
        self._paths = (Path(f"/proc/{pid}/task/{pid}/schedstat"), Path("/proc/thread-self/schedstat"))
        self.waits: list[float] = []

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Measure one."""
        begun = self.begin()
        yield
        self.end(begun)

    def begin(self) -> Begun:
        """Begin to measure one, which is to be given to `end`."""
        return Begun(time.perf_counter(), self._without_core())

    def end(self, begun: Begun) -> None:
        """Add one to what was measured."""
        begun_at, without = begun
        lost = max(later - earlier for later, earlier in zip(self._without_core(), without, strict=True))
        self.waits.append(max(0.0, time.perf_counter() - begun_at - lost))

    def _without_core(self) -> list[float]:
        return [int(path.read_text().split()[1]) / 1e9 for path in self._paths]

    def quantile(self, share: float) -> float:
        """The wait that this share of all does not exceed."""
        return sorted(self.waits)[int(len(self.waits) * share)]

    def check(self, told: str) -> None:
        """Raise NoticedError, with the figures, unless the p99 is under `OTHERS`."""
        if self.quantile(0.99) >= OTHERS:
            raise NoticedError(told)
