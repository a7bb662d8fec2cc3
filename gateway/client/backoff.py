"""How long to wait before the next attempt: a random pause whose ceiling doubles with each failure."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Final

_MOST_DOUBLINGS: Final = 32


class Backoff:
    """Pauses with full jitter: each is drawn from 0 to a ceiling, and the ceiling doubles with each failure.

    ``first`` and ``most`` are the lowest and the highest ceiling, in seconds. After a link that stayed open for
    ``settled`` seconds the ceiling is ``first`` again. ``chance`` returns numbers from 0 to 1, ``clock`` monotonic
    seconds. Raises ValueError if ``first`` is not above 0, or above ``most``.
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
        """Note that a link is open."""
        self._opened = self._clock()

    def lost(self, *, helped: bool = False) -> None:
        """Note that the link is lost; ``helped``: it was no failure. Does nothing if none was open."""
        if self._opened is not None and (helped or self._clock() - self._opened >= self._settled):
            self._failures = 0
        self._opened = None

    def pause(self, at_least: float = 0.0, *, within: tuple[float, float] = (math.inf, math.inf)) -> float:
        """Return the next pause in seconds: ``at_least`` plus the random part. Counts as one more failure.

        ``within`` has the lowest and the highest ceiling where they are to be lower than usual.
        """
        first, most = min(within[0], self._first), min(within[1], self._most)
        ceiling = min(most, first * 2.0 ** min(self._failures, _MOST_DOUBLINGS))
        self._failures += 1
        return at_least + self._chance() * ceiling

    def between(self, low: float, high: float) -> float:
        """Return a pause drawn evenly from ``low`` to ``high`` seconds. Does not count as a failure."""
        return low + self._chance() * (high - low)
