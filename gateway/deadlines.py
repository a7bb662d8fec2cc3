"""Many deadlines on one timer.

A timer for each costs much where nearly everybody is done in time. All who wait in one `Deadlines` have the same
time, so the oldest is always the next one, and a dictionary does. A `Wheel`, and a `Sweep` on one, look at deadlines of
many lengths, ten times a second.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

TICK: Final = 0.1
"""Seconds between two looks of a `Wheel`."""

FAR: Final = 600.0
"""Seconds that a `Sweep` looks ahead: who waits for longer gets a new slot then, so that a wheel has so many ticks."""

Waiting = TypeVar("Waiting", bound=Hashable)


class Deadlines(Generic[Waiting]):
    """Calls ``expired(who)`` for everybody who is not done ``timeout`` seconds after the beginning.

    Times are the event loop's, so a jump of the clock moves none of them.
    """

    __slots__ = ("_due", "_expired", "_loop", "_timeout", "_timer")

    def __init__(self, timeout: float, expired: Callable[[Waiting], None]) -> None:
        self._timeout = timeout
        self._expired = expired
        self._due: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._due)

    def begin(self, who: Waiting) -> None:
        """Start the time of ``who``. Harmless while it runs."""
        if who in self._due:
            return
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due = self._due[who] = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(due, self._sweep)

    def done(self, who: Waiting) -> None:
        """Stop the time of ``who``. Harmless when it does not run."""
        self._due.pop(who, None)

    def left(self, who: Waiting) -> float:
        """Seconds that ``who`` has left; all of them where the time does not run."""
        due = self._due.get(who)
        if due is None or self._loop is None:
            return self._timeout
        return max(0.0, due - self._loop.time())

    def oldest(self) -> Waiting:
        """Who has waited longest. Raises StopIteration where nobody waits."""
        return next(iter(self._due))

    def take_all(self) -> list[Waiting]:
        """Stop the time of everybody, and tell who they were."""
        waiting = list(self._due)
        self._due.clear()
        return waiting

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._due:
                who, due = next(iter(self._due.items()))
                if due > now:
                    break
                del self._due[who]
                self._expired(who)
        finally:  # one that fails does not stop the others' time
            if self._due and self._timer is None:
                self._timer = loop.call_at(next(iter(self._due.values())), self._sweep)


class Wheel(Generic[Waiting]):
    """Deadlines of different lengths, to the next tenth of a second, on one timer.

    Who is to wait enters ``slot(timeout)``, and is done by leaving it: one dictionary entry each, however many wait.
    `Sweep` remembers who is where.
    """

    __slots__ = ("_expired", "_last", "_loop", "_order", "_ticks", "_timer")

    def __init__(self, expired: Callable[[Waiting], None]) -> None:
        self._expired = expired
        self._last: tuple[float, float, dict[Waiting, None]] = 0.0, 0.0, {}
        """The timeout and the slot that were last asked for, and till when they go together."""
        self._ticks: dict[int, dict[Waiting, None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return sum(map(len, self._ticks.values()))

    def slot(self, timeout: float) -> dict[Waiting, None]:
        """Where to wait: ``expired(who)`` is called in ``timeout`` seconds for all who are still there.

        It is to be entered at once.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        asked, until, slot = self._last  # most ask for the same
        if timeout == asked and now < until:
            return slot
        tick = int((now + timeout) / TICK) + 1
        found = self._ticks.get(tick)
        if found is None:
            found = self._ticks[tick] = {}
            heapq.heappush(self._order, tick)
            if self._order[0] == tick:
                self._arm(loop)
        self._last = timeout, tick * TICK - max(0.0, timeout), found
        return found

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._order[0] * TICK, self._turn) if self._order else None

    def _turn(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._order and self._order[0] * TICK <= now:
                tick = self._order[0]
                slot = self._ticks[tick]
                while slot:  # one that expires may let others be done
                    who = next(iter(slot))
                    del slot[who]
                    self._expired(who)
                heapq.heappop(self._order)
                del self._ticks[tick]
        finally:  # one that fails does not stop the others' time
            self._arm(loop)


class Sweep(Generic[Waiting]):
    """A `Wheel` that knows who is where, and till when: for any length of time."""

    __slots__ = ("_due", "_expired", "_wheel")

    def __init__(self, expired: Callable[[Waiting], None]) -> None:
        self._expired = expired
        self._wheel = Wheel(self._over)
        self._due: dict[Waiting, tuple[dict[Waiting, None], float]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def begin(self, who: Waiting, timeout: float) -> None:
        """Call ``expired(who)`` in ``timeout`` seconds. For each once at a time."""
        self._enter(who, asyncio.get_running_loop().time() + timeout, timeout)

    def _enter(self, who: Waiting, due: float, left: float) -> None:
        slot = self._wheel.slot(min(left, FAR))
        slot[who] = None
        self._due[who] = slot, due

    def done(self, who: Waiting) -> None:
        """Forget ``who``. Harmless for who does not wait."""
        entry = self._due.pop(who, None)
        if entry is not None:
            del entry[0][who]

    def take_all(self) -> list[Waiting]:
        """Forget everybody, and tell who they were."""
        waiting = list(self._due)
        for who in waiting:
            self.done(who)
        return waiting

    def _over(self, who: Waiting) -> None:
        due = self._due.pop(who)[1]
        left = due - asyncio.get_running_loop().time()
        if left > 0:
            self._enter(who, due, left)
        else:
            self._expired(who)
