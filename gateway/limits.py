"""Bounds that are counted here and enforced by those who ask. Pure: time comes in as a callable or a number."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 10
"""How many bursts may be refused beyond what is served, until a peer is taken to ignore its rate limit."""

FREE_FAILURES: Final = 10
"""Credentials of one address that may be wrong before it has to wait."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 60.0
"""Seconds that an address waits after one wrong credential more: the first time, and at most. Each doubles the last."""

_ROUNDING: Final = 1e-6
"""Of times as floating-point numbers: who waits exactly as told is served."""

FORGET: Final = 600.0
"""Seconds without a wrong credential after which those of an address are forgotten."""


def address_key(remote: str) -> str:
    """What limits count as one address: an IPv4 address, an IPv6 /64; empty for a Unix socket, which has none.

    ``remote`` is ``addr:port`` or ``[addr]:port``. An IPv6 host has the whole of its /64 (RFC 6177 section 2).
    """
    address = remote.rpartition(":")[0]
    if not address.startswith("["):
        return address
    host = ipaddress.IPv6Address(address[1:-1].partition("%")[0])
    if host.ipv4_mapped is not None:  # as a socket of both families has it
        return str(host.ipv4_mapped)
    return str(ipaddress.ip_network((host, 64), strict=False))


class Counts:
    """How many there are of each key; a key of which there are none takes no memory."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def of(self, key: str) -> int:
        """How many there are."""
        return self._counts.get(key, 0)

    def enter(self, key: str) -> None:
        """One more."""
        self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """One less. Raises KeyError where there is none."""
        left = self._counts[key] - 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]


class Rate:
    """``per_second``, and ``burst`` at once: what many `Bucket`s have in common."""

    __slots__ = ("burst", "per_second", "tolerated")

    def __init__(self, per_second: float, burst: int = 0) -> None:
        self.per_second = per_second
        self.burst = max(1.0, burst or per_second)
        self.tolerated = PATIENCE * self.burst
        """Refusals, less those served meanwhile, beyond which it is a flood."""


class Bucket:
    """A token bucket that also counts how often it was asked in vain. Starts full.

    One that is served makes up for one that was refused: who waits as told is served every second time.
    """

    __slots__ = ("_at", "_left", "_rate", "_refused")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._at = now
        self._refused = 0

    def take(self, now: float) -> float:
        """Take one at ``now``: 0.0 where there was one, else the seconds until there is."""
        rate = self._rate
        left = self._left + (now - self._at) * rate.per_second
        self._at = now
        if left >= rate.burst - _ROUNDING:
            left = rate.burst
            self._refused = 0
        if left >= 1.0 - _ROUNDING:
            self._left = left - 1.0
            self._refused -= self._refused > 0
            return 0.0
        self._left = left
        self._refused += 1
        return (1.0 - left) / rate.per_second

    @property
    def ignored(self) -> bool:
        """Whether it was asked in vain for too long."""
        return self._refused > self._rate.tolerated


class Failures:
    """Wrong credentials of each address, and how long the next one has to wait.

    It remembers ``max_keys`` addresses at most and then forgets the one that has failed least lately.
    """

    __slots__ = ("_clock", "_keys", "_max_keys")

    def __init__(self, clock: Callable[[], float], max_keys: int = 10_000) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._keys: dict[str, tuple[int, float]] = {}  # how many, and when the last one was

    def wait(self, key: str) -> float:
        """Seconds until a credential of this address is looked at; 0.0: now."""
        known = self._keys.get(key)
        if known is None:
            return 0.0
        count, last = known
        since = self._clock() - last
        if since >= FORGET:
            del self._keys[key]
            return 0.0
        return max(0.0, _wait_after(count) - since)

    def failed(self, key: str) -> None:
        """Note a wrong credential."""
        count, _ = self._keys.pop(key, (0, 0.0))  # the order of the keys is that of their last failures
        if len(self._keys) >= self._max_keys:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = (count + 1, self._clock())


def _wait_after(count: int) -> float:
    if count < FREE_FAILURES:
        return 0.0
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(count - FREE_FAILURES, 30)))


class Sampler:
    """Decides which of many like lines reach the log: the first ``burst`` of each key in ``window`` seconds.

    What is left out is counted, and the count is given with the next line of that key. It remembers ``max_keys`` keys
    at most and then forgets the one it has known longest, so that many addresses cannot make it grow.
    """

    __slots__ = ("_burst", "_clock", "_keys", "_max_keys", "_window")

    def __init__(self, clock: Callable[[], float], burst: int, window: float, max_keys: int = 1024) -> None:
        self._clock = clock
        self._burst = burst
        self._window = window
        self._max_keys = max_keys
        self._keys: dict[str, _Tally] = {}

    def admit(self, key: str) -> int | None:
        """Count one occurrence: None if it is to be left out, else how many were left out since the last line."""
        now = self._clock()
        tally = self._keys.get(key)
        if tally is None:
            if len(self._keys) >= self._max_keys:
                del self._keys[next(iter(self._keys))]
            tally = self._keys[key] = _Tally(now)
        elif now - tally.since >= self._window:
            tally.since = now
            tally.seen = 0
        tally.seen += 1
        if tally.seen > self._burst:
            tally.left_out += 1
            return None
        left_out, tally.left_out = tally.left_out, 0
        return left_out


class _Tally:
    __slots__ = ("left_out", "seen", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.seen = 0
        self.left_out = 0
