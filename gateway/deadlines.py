"""Many deadlines on one timer.

Nearly every deadline is cancelled before it expires, so a timer for each would be expensive. All deadlines in a
`Deadlines` have the same length: the oldest one always expires next, and a dictionary keeps them in order. A `Wheel`
has deadlines of any length, rounded up to the next tenth of a second. A `Sweep` is a wheel that also remembers where
each waiter is.

A `Standstill` says whether the process itself has stood still: it was stopped, its machine was paused, or its event
loop was busy. Nothing was read in that time, so the silence of that time is not the peers'. Whatever is about to end a
peer for its silence asks it first: the heartbeat, the receive timeout, the outbox and the handshake.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

TICK: Final = 0.1
"""Seconds between two slots of a `Wheel`."""

FAR: Final = 600.0
"""Seconds. A `Sweep` splits longer waits into waits of at most this length, which bounds the slots of its wheel."""

LOOK: Final = 0.5
"""Seconds between two looks at the clock."""

STILL: Final = 1.0
"""Seconds without a look that are a standstill."""

Waiter = TypeVar("Waiter", bound=Hashable)


class Timer(Protocol):
    """The part of `asyncio.TimerHandle` that is needed here."""

    def cancel(self) -> None:
        """Stop the timer; may be called at any time, any number of times."""


class Loop(Protocol):
    """The part of the event loop that is needed here."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Call ``callback`` in ``delay`` seconds."""


class Standstill:
    """Grants every peer ``grace`` seconds after each standstill. One for each event loop.

    ``start`` begins to look at the clock, and ``stop`` ends it. Without ``start`` no standstill is ever noticed. A
    standstill within a grace that is shorter than the grace does not begin it again: it only does not count. Otherwise
    a loop that is held up again and again would never end a peer that is dead.
    """

    __slots__ = ("_grace", "_loop", "_seen", "_timer", "_until")

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._seen = 0.0
        self._until = float("-inf")

    def start(self, loop: Loop) -> None:
        """Look at the clock of ``loop`` from now on. Does nothing if that has begun already."""
        if self._loop is None:
            self._loop = loop
            self._seen = loop.time()
            self._timer = loop.call_later(LOOK, self._look)

    def stop(self) -> None:
        """Look no more: nothing is granted from now on. May be called twice, and before `start`."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def left(self) -> float:
        """Return the seconds for which no peer may be ended for its silence: 0 unless the process has stood still.

        It notices a standstill that has just ended, even if the timers that ask come before the reads.
        """
        if self._loop is None:
            return 0.0
        now = self._loop.time()
        self._notice(now)
        return max(0.0, self._until - now)

    def _look(self) -> None:
        if self._loop is not None:
            now = self._loop.time()
            self._notice(now)
            self._seen = now
            self._timer = self._loop.call_later(LOOK, self._look)

    def _notice(self, now: float) -> None:
        stood = now - self._seen
        if stood < STILL:
            return
        left = self._until - self._seen
        # It may have run for a LOOK before it stood still, and the grace must end some day.
        self._until = now + (left - LOOK if left > 0 and stood < self._grace else self._grace)
        self._seen = now


class Deadlines(Generic[Waiter]):
    """Calls ``expired(waiter)`` for each waiter that is not done ``timeout`` seconds after its beginning.

    Times are those of the event loop, so a jump of the system clock does not move a deadline. After a standstill of the
    process that ``standstill`` has noticed nothing expires until its grace is over.
    """

    __slots__ = ("_due", "_expired", "_loop", "_standstill", "_timeout", "_timer")

    def __init__(self, timeout: float, expired: Callable[[Waiter], None], standstill: Standstill | None = None) -> None:
        self._timeout = timeout
        self._expired = expired
        self._standstill = standstill
        self._due: dict[Waiter, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._due)

    def begin(self, waiter: Waiter) -> None:
        """Start the deadline of a waiter. Does nothing if it is running already."""
        if waiter in self._due:
            return
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due = self._due[waiter] = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire_due)

    def done(self, waiter: Waiter) -> None:
        """Cancel the deadline of a waiter. Does nothing if it is not running."""
        self._due.pop(waiter, None)

    def left(self, waiter: Waiter) -> float:
        """Return the seconds that a waiter has left: the whole timeout if its deadline is not running."""
        due = self._due.get(waiter)
        if due is None or self._loop is None:
            return self._timeout
        return max(0.0, due - self._loop.time())

    def oldest(self) -> Waiter:
        """Return the waiter that began first. Raises StopIteration if there is none."""
        return next(iter(self._due))

    def take_all(self) -> list[Waiter]:
        """Cancel all deadlines, and return their waiters."""
        waiters = list(self._due)
        self._due.clear()
        return waiters

    def _expire_due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        grace = 0.0 if self._standstill is None else self._standstill.left()
        if grace > 0 and self._due:
            self._timer = loop.call_at(now + grace, self._expire_due)
            return
        try:
            while self._due:
                waiter, due = next(iter(self._due.items()))
                if due > now:
                    break
                del self._due[waiter]
                self._expired(waiter)
        finally:  # an exception must not stop the other deadlines
            if self._due and self._timer is None:
                self._timer = loop.call_at(next(iter(self._due.values())), self._expire_due)


class Wheel(Generic[Waiter]):
    """Calls ``expired(waiter)`` for each waiter that is still in its slot when the time of the slot has come.

    Deadlines may have different lengths, and are rounded up to the next tenth of a second. A waiter enters the
    dictionary that `slot` returns, with the value None, and leaves it when it is done. So a deadline costs one
    dictionary entry, however many there are.
    """

    __slots__ = ("_expired", "_last", "_loop", "_order", "_ticks", "_timer")

    def __init__(self, expired: Callable[[Waiter], None]) -> None:
        self._expired = expired
        self._last: tuple[float, float, dict[Waiter, None]] = 0.0, 0.0, {}
        """The timeout of the latest call of `slot`, the time until which its slot is right for it, and the slot."""
        self._ticks: dict[int, dict[Waiter, None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return sum(map(len, self._ticks.values()))

    def slot(self, timeout: float) -> dict[Waiter, None]:
        """Return the slot for a deadline in ``timeout`` seconds. Enter it at once: it is dropped after its time."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        asked, until, slot = self._last  # most callers ask for the same timeout
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

    def time(self) -> float:
        """Return the event loop's time, which counts for the deadlines."""
        return (self._loop or asyncio.get_running_loop()).time()

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
                while slot:  # a waiter that expires may end the wait of others
                    waiter = next(iter(slot))
                    del slot[waiter]
                    self._expired(waiter)
                heapq.heappop(self._order)
                del self._ticks[tick]
        finally:  # an exception must not stop the other deadlines
            self._arm(loop)


class Sweep(Generic[Waiter]):
    """Calls ``expired(waiter)`` for each waiter that is not done in time; each has a timeout of its own, of any length.

    Deadlines are rounded up to the next tenth of a second.
    """

    __slots__ = ("_due", "_expired", "_wheel")

    def __init__(self, expired: Callable[[Waiter], None]) -> None:
        self._expired = expired
        self._wheel = Wheel(self._over)
        self._due: dict[Waiter, tuple[dict[Waiter, None], float]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._due

    def begin(self, waiter: Waiter, timeout: float) -> None:
        """Start a deadline of ``timeout`` seconds for a waiter, which must not have one already."""
        self._enter(waiter, asyncio.get_running_loop().time() + timeout, timeout)

    def _enter(self, waiter: Waiter, due: float, left: float) -> None:
        slot = self._wheel.slot(min(left, FAR))
        slot[waiter] = None
        self._due[waiter] = slot, due

    def done(self, waiter: Waiter) -> None:
        """Cancel the deadline of a waiter. Does nothing if it has none."""
        entry = self._due.pop(waiter, None)
        if entry is not None:
            del entry[0][waiter]

    def left(self, waiter: Waiter) -> float | None:
        """Return the seconds that a waiter has left; None if it has no deadline."""
        entry = self._due.get(waiter)
        return None if entry is None else max(0.0, entry[1] - asyncio.get_running_loop().time())

    def _over(self, waiter: Waiter) -> None:
        due = self._due.pop(waiter)[1]
        left = due - asyncio.get_running_loop().time()
        if left > 0:
            self._enter(waiter, due, left)
        else:
            self._expired(waiter)
