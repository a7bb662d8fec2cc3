"""How long to stay away: a pause that doubles with each failure, with chance in it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

_MOST_DOUBLINGS: Final = 32


class Backoff:
    """Pauses with full jitter: each is drawn from 0 to a ceiling, which doubles with each failure.

    ``first`` and ``most`` are the lowest and the highest ceiling, in seconds. A connection that has stayed open for
    ``settled`` seconds lets it begin anew. ``chance`` gives numbers from 0 to 1, ``clock`` monotonic seconds.
    """

    def __init__(
        self,
        first: float = 0.5,
        most: float = 30.0,
        *,
        settled: float = 10.0,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < first <= most:
            raise ValueError("first must be above 0, and most not below it")
        self._first = first
        self._most = most
        self._settled = settled
        self._chance = chance
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None

    def opened(self) -> None:
        """A connection is open."""
        self._opened = self._clock()

    def lost(self) -> None:
        """It is over. Harmless where none was open."""
        if self._opened is not None and self._clock() - self._opened >= self._settled:
            self._failures = 0
        self._opened = None

    def pause(self, at_least: float = 0.0) -> float:
        """The next pause in seconds: ``at_least`` and what is drawn. Counts as one more failure."""
        ceiling = min(self._most, self._first * 2.0 ** min(self._failures, _MOST_DOUBLINGS))
        self._failures += 1
        return at_least + self._chance() * ceiling

    def between(self, low: float, high: float) -> float:
        """A pause drawn evenly from ``low`` to ``high`` seconds."""
        return low + self._chance() * (high - low)
