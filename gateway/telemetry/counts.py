"""What is counted while the gateway works, and costs next to nothing there: a scrape of the metrics reads it. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from gateway.errors import INTERNAL_ERROR

OK: Final = "ok"
"""The outcome of a request that was answered with a result; of a notification that was carried out, or sent on."""

NODE_ERROR: Final = "error"
"""The outcome of a request that a node has answered with an error of its own."""

CALLER_LOST: Final = "caller_lost"
"""The outcome of a request whose caller has gone before its end."""

ROUTED: Final = "routed"
"""The label of all methods that the gateway does not have itself: callers invent as many names as they like."""

BOUNDS: Final = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of durations, in seconds, each inclusive; behind the last one there is one more."""

SAMPLE: Final = 32
"""Of so many requests that are answered at once one is timed: to read the clock would cost as much as they do."""


class Tally:
    """What became of the requests of one method, and how long they took.

    A request ends by one of the calls below, or, where it is answered at once, by ``untimed -= 1`` while there are
    any left: it is then taken to have lasted as long as the last that was timed. ``outcomes`` are told of from the
    start, beside `OK` and that of a defect; all others are as soon as there is one.
    """

    __slots__ = ("_bucket", "_buckets", "_granted", "_last", "_ok", "_outcomes", "_seconds", "untimed")

    def __init__(self, *outcomes: str) -> None:
        self._outcomes: Counter[str] = Counter(dict.fromkeys((OK, INTERNAL_ERROR.name, *outcomes), 0))
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._ok = 0
        self._last, self._bucket = 0.0, 0
        self._granted = 0
        self.untimed = 0
        """How many more need no timing; 0: the next does."""

    def at_once(self, seconds: float) -> None:
        """One that was answered at once has been timed."""
        untimed = self._granted - self.untimed
        self._buckets[self._bucket] += untimed
        self._seconds += untimed * self._last + seconds
        self._ok += untimed + 1
        self._last, self._bucket = seconds, bisect_left(BOUNDS, seconds)
        self._buckets[self._bucket] += 1
        self.untimed = self._granted = SAMPLE - 1

    def ended(self, outcome: str, seconds: float) -> None:
        """One has ended that took its time."""
        if outcome is OK:  # nearly always
            self._ok += 1
        else:
            self._outcomes[outcome] += 1
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def count(self, outcome: str) -> None:
        """One is over that has no duration: it was refused, or nobody waits for its end."""
        self._outcomes[outcome] += 1

    def outcomes(self) -> Counter[str]:
        """How many there have been of each outcome."""
        outcomes = self._outcomes.copy()
        outcomes[OK] += self._ok + self._granted - self.untimed
        return outcomes

    def durations(self) -> tuple[Iterator[int], float]:
        """How many took no longer than each of `BOUNDS`, at the end how many there were at all; and their sum."""
        untimed = self._granted - self.untimed
        buckets = self._buckets.copy()
        buckets[self._bucket] += untimed
        return accumulate(buckets), self._seconds + untimed * self._last


class Wire(Protocol):
    """What a connection counts itself."""

    @property
    def messages_in(self) -> int:
        """Messages that have come."""

    @property
    def messages_out(self) -> int:
        """Messages that were sent."""

    @property
    def bytes_in(self) -> int:
        """Bytes that have come."""

    @property
    def bytes_out(self) -> int:
        """Bytes of what was sent."""


class Traffic:
    """Messages and bytes of many connections; bytes are those on the wire."""

    __slots__ = ("bytes_in", "bytes_out", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, wire: Wire) -> None:
        """Add those of one connection, or of many."""
        self.messages_in += wire.messages_in
        self.messages_out += wire.messages_out
        self.bytes_in += wire.bytes_in
        self.bytes_out += wire.bytes_out


class Census:
    """What all connections come to.

    ``roles`` has the number of the open ones by role, ``outbox_bytes`` what waits for them to read it; ``traffic`` is
    that of those that are over, too.
    """

    __slots__ = ("outbox_bytes", "roles", "traffic")

    def __init__(self) -> None:
        self.roles: Counter[str] = Counter()
        self.outbox_bytes = 0
        self.traffic = Traffic()
