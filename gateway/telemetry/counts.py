"""Counters that cost next to nothing on the hot path. A scrape of the metrics reads them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from gateway.errors import INTERNAL_ERROR

OK: Final = "ok"
"""The outcome of a request that was answered with a result, and of a notification that was carried out or sent on."""

NODE_ERROR: Final = "error"
"""The outcome of a request that a node answered with an error."""

CALLER_LOST: Final = "caller_lost"
"""The outcome of a request whose caller was gone before it was answered."""

ROUTED: Final = "routed"
"""The label of every method that the gateway does not have itself, because callers may invent any number of names."""

BOUNDS: Final = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The inclusive upper bounds of the buckets of durations, in seconds. One more bucket is for anything longer."""

SAMPLE: Final = 32
"""One of this many requests that are answered at once is timed, because reading the clock costs as much as they do."""


class Tally:
    """Counts the outcomes of one method's requests, and how long they took.

    Each request ends with one of `at_once`, `ended` and `count`. A request that is answered at once ends with
    ``untimed -= 1`` instead if `untimed` is above 0. It is then taken to have lasted as long as the last one that was
    timed.

    `OK`, the outcome of a defect and ``outcomes`` are reported from the start, each other outcome once it has occurred.
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
        """How many more requests that are answered at once need not be timed."""

    def at_once(self, seconds: float) -> None:
        """Count a request that was answered at once, and was timed."""
        untimed = self._granted - self.untimed
        self._buckets[self._bucket] += untimed
        self._seconds += untimed * self._last + seconds
        self._ok += untimed + 1
        self._last, self._bucket = seconds, bisect_left(BOUNDS, seconds)
        self._buckets[self._bucket] += 1
        self.untimed = self._granted = SAMPLE - 1

    def ended(self, outcome: str, seconds: float) -> None:
        """Count a request that was not answered at once."""
        if outcome is OK:  # nearly always
            self._ok += 1
        else:
            self._outcomes[outcome] += 1
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def count(self, outcome: str) -> None:
        """Count a request without a duration: it was refused, it failed at once, or it was a notification sent on."""
        self._outcomes[outcome] += 1

    def outcomes(self) -> Counter[str]:
        """Return how many requests had each outcome."""
        outcomes = self._outcomes.copy()
        outcomes[OK] += self._ok + self._granted - self.untimed
        return outcomes

    def durations(self) -> tuple[Iterator[int], float]:
        """Return the cumulative counts of the buckets, and the sum of all durations in seconds.

        There is a count for each of `BOUNDS`, of the requests that took no longer, and at the end that of all requests.
        """
        untimed = self._granted - self.untimed
        buckets = self._buckets.copy()
        buckets[self._bucket] += untimed
        return accumulate(buckets), self._seconds + untimed * self._last


class Wire(Protocol):
    """What a connection counts by itself."""

    @property
    def messages_in(self) -> int:
        """Messages received."""

    @property
    def messages_out(self) -> int:
        """Messages sent."""

    @property
    def bytes_in(self) -> int:
        """Bytes received."""

    @property
    def bytes_out(self) -> int:
        """Bytes sent."""


class Traffic:
    """Adds up the messages and bytes of many connections. Bytes are those on the wire."""

    __slots__ = ("bytes_in", "bytes_out", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, wire: Wire) -> None:
        """Add the counts of one connection, or those of another `Traffic`."""
        self.messages_in += wire.messages_in
        self.messages_out += wire.messages_out
        self.bytes_in += wire.bytes_in
        self.bytes_out += wire.bytes_out

    def subtract(self, wire: Wire) -> None:
        """Take away the counts of one connection, or those of its link."""
        self.messages_in -= wire.messages_in
        self.messages_out -= wire.messages_out
        self.bytes_in -= wire.bytes_in
        self.bytes_out -= wire.bytes_out


NO_TRAFFIC: Final = Traffic()
"""Nothing; not to be changed."""


class Census:
    """The totals of all connections.

    ``roles`` counts the open connections by role. ``outbox_bytes`` is what waits for their peers to read it.
    ``traffic`` includes the connections that have ended.
    """

    __slots__ = ("outbox_bytes", "roles", "traffic")

    def __init__(self) -> None:
        self.roles: Counter[str] = Counter()
        self.outbox_bytes = 0
        self.traffic = Traffic()
