"""Counters, rates and back-offs, for callers that enforce them. Pure: time comes in as a callable or a number."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

PATIENCE: Final = 10
"""How many bursts of requests may be refused, less the requests served meanwhile, before a peer counts as flooding."""

FREE_FAILURES: Final = 10
"""How many wrong credentials an address may bring before it has to wait."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 60.0
"""Seconds that an address waits after another wrong credential. Each wait is twice the last one, up to the longest."""

_ROUNDING: Final = 1e-6
"""Tokens. A peer that waits exactly as long as it was told must be served, although floats are inexact."""

ACCOUNTS_KEPT: Final = 1000
"""How many accounts are kept that may have no connection."""

FORGET: Final = 600.0
"""Seconds after its last wrong credential until an address has a clean record again."""


def address_key(remote: str) -> str:
    """Return what the limits count as one address: an IPv4 address, an IPv6 /64, or "" for a Unix socket.

    ``remote`` is ``addr:port`` or ``[addr]:port``. An IPv6 host may use every address of its /64 (RFC 6177 section 2).
    """
    address = remote.rpartition(":")[0]
    if not address.startswith("["):
        return address
    return _network(address[1:-1].partition("%")[0])


@lru_cache(1024)
def _network(address: str) -> str:
    """Return the /64 of an IPv6 address. Remembered, because it takes longer than all else that is done with a key."""
    host = ipaddress.IPv6Address(address)
    if host.ipv4_mapped is not None:  # how a socket of both families shows an IPv4 peer
        return str(host.ipv4_mapped)
    return str(ipaddress.ip_network((host, 64), strict=False))


class Counts:
    """Counts things by key. A key whose count is zero takes no memory."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def of(self, key: str) -> int:
        """Return the count of this key."""
        return self._counts.get(key, 0)

    def enter(self, key: str) -> None:
        """Count one more of this key."""
        self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """Count one less of this key. Raises KeyError if its count is zero."""
        left = self._counts[key] - 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]


class Account:
    """The bytes that are held for one principal, over all its connections, and how many that may be.

    ``held`` is changed by those who hold. Over ``high_mark``, half of ``bound``, others may send it nothing more.
    """

    __slots__ = ("__weakref__", "bound", "held", "high_mark")

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.high_mark = bound / 2
        self.held = 0

    def __repr__(self) -> str:
        return f"<Account: {self.held} of {self.bound} bytes>"


class Accounts:
    """The accounts of all principals, by name. An account lives as long as one of its principal's connections.

    The last `ACCOUNTS_KEPT` live on, because most principals come back, and an account costs more than its memory.
    Without ``max_principal_bytes`` all have one account, which has no bound.
    """

    __slots__ = ("_accounts", "_kept", "_max_principal_bytes", "unbounded")

    def __init__(self, max_principal_bytes: int | None) -> None:
        self._max_principal_bytes = max_principal_bytes
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._kept: deque[Account] = deque(maxlen=ACCOUNTS_KEPT)
        self.unbounded: Final = Account(math.inf)
        """The account of all whose bytes are bounded otherwise."""

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, name: str) -> Account:
        """Return the account of the principal with this name."""
        if self._max_principal_bytes is None:
            return self.unbounded
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(self._max_principal_bytes)
            self._kept.append(account)
        return account


class Rate:
    """A rate limit that many `Bucket`s share: ``per_second`` requests a second, and up to ``burst`` at once.

    If ``burst`` is 0, it is as many as ``per_second``. It is at least one.
    """

    __slots__ = ("burst", "per_second", "tolerated")

    def __init__(self, per_second: float, burst: int = 0) -> None:
        self.per_second = per_second
        self.burst = max(1.0, burst or per_second)
        self.tolerated = PATIENCE * self.burst
        """The most requests that may be refused, less those served meanwhile, before a peer counts as flooding."""


class Bucket:
    """A token bucket that also counts refusals. It starts full.

    Each request that is served cancels out one that was refused. So a peer that waits as it is told never counts as
    flooding, because at least every second of its requests is served.
    """

    __slots__ = ("_at", "_left", "_rate", "_refused", "_spare")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._spare = 0.0
        self._at = now
        self._refused = 0

    def take(self, now: float) -> float:
        """Take a token at ``now``, in seconds. Returns 0.0 if there was one, otherwise the seconds until there is."""
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
        if self._spare >= 1.0:
            self._spare -= 1.0
            return 0.0
        self._refused += 1
        return (1.0 - left) / rate.per_second

    def grant(self, seconds: float) -> None:
        """Serve, beside all else, as many requests as could have been made in so many seconds, however late they come.

        They are those of a peer whose link was broken, and which it sends again.
        """
        self._spare = seconds * self._rate.per_second

    @property
    def ignored(self) -> bool:
        """Whether so many requests have been refused that the peer seems to ignore the limit."""
        return self._refused > self._rate.tolerated


class Failures:
    """Counts wrong credentials by address, and makes an address wait if it brings too many.

    At most ``max_keys`` addresses are remembered. To make room, the one whose last failure is the oldest is forgotten.
    """

    __slots__ = ("_clock", "_keys", "_max_keys")

    def __init__(self, clock: Callable[[], float], max_keys: int = 10_000) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._keys: dict[str, tuple[int, float]] = {}  # how many, and the time of the last one

    def wait(self, key: str) -> float:
        """Return the seconds until another credential of this address may be verified: 0.0 if it may be at once."""
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
        """Note a wrong credential of this address."""
        count, _ = self._keys.pop(key, (0, 0.0))  # the order of the keys is that of their last failures
        if len(self._keys) >= self._max_keys:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = (count + 1, self._clock())


def _wait_after(count: int) -> float:
    if count < FREE_FAILURES:
        return 0.0
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(count - FREE_FAILURES, 30)))


class Sampler:
    """Decides which of many similar lines reach the log: the first ``burst`` of each key in ``window`` seconds.

    It counts the lines that it leaves out, and returns the count with the next line of the same key. At most
    ``max_keys`` keys are remembered. While all of them are in their window, further keys are taken for one, which is
    the empty text. So many addresses can neither make it grow, nor have more lines than so many bursts.
    """

    __slots__ = ("_burst", "_clock", "_keys", "_max_keys", "_others", "_window")

    def __init__(self, clock: Callable[[], float], burst: int, window: float, max_keys: int = 1024) -> None:
        self._clock = clock
        self._burst = burst
        self._window = window
        self._max_keys = max_keys
        self._keys: dict[str, _Tally] = {}  # in the order in which their windows began
        self._others = _Tally(-window)

    def admit(self, key: str) -> int | None:
        """Count a line. Returns None if it is to be left out, otherwise how many were left out since the last line."""
        now = self._clock()
        tally = self._keys.get(key)
        if tally is None or now - tally.since >= self._window:
            tally = self._begin(key, now)
        tally.seen += 1
        if tally.seen > self._burst:
            tally.left_out += 1
            return None
        left_out, tally.left_out = tally.left_out, 0
        return left_out

    def _begin(self, key: str, now: float) -> _Tally:
        """Begin the window of a key, or return that of the further keys if there is no room for its own."""
        tally = self._keys.pop(key, None)
        if tally is None:
            if len(self._keys) >= self._max_keys and not self._make_room(now):
                tally = self._others
                if now - tally.since >= self._window:
                    tally.since, tally.seen = now, 0
                return tally
            tally = _Tally(now)
        tally.since, tally.seen = now, 0
        self._keys[key] = tally
        return tally

    def _make_room(self, now: float) -> bool:
        """Forget the oldest key, if its window is over. What it has left out is told for the further keys."""
        oldest = next(iter(self._keys), "")
        tally = self._keys.get(oldest)
        if tally is None or now - tally.since < self._window:
            return False
        self._others.left_out += tally.left_out
        del self._keys[oldest]
        return True

    def sweep(self, *, everything: bool = False) -> list[tuple[str, int]]:
        """Forget the keys whose window is over, or all keys.

        Returns those of which lines were left out that no line has told of, and how many.
        """
        now, told = self._clock(), list[tuple[str, int]]()
        while self._keys:
            key, tally = next(iter(self._keys.items()))
            if not everything and now - tally.since < self._window:
                break
            del self._keys[key]
            if tally.left_out:
                told.append((key, tally.left_out))
        others = self._others
        if others.left_out and (everything or now - others.since >= self._window):
            told.append(("", others.left_out))
            others.left_out = 0
        return told


class _Tally:
    __slots__ = ("left_out", "seen", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.seen = 0
        self.left_out = 0


class Holder(Protocol):
    """Something that holds a share. ``level`` is for `Largest` alone, and -1 at first."""

    level: int


HolderT = TypeVar("HolderT", bound=Holder)


class Largest(Generic[HolderT]):
    """Finds the holder with the largest share of what ``most`` bounds, to a thousandth of it.

    Each call takes a time that does not depend on the number of holders: they are in `LEVELS` levels. A share that has
    changed by less than ``grain`` need not be placed again.
    """

    LEVELS: Final = 1000

    def __init__(self, most: int) -> None:
        self.grain: Final = max(1, most // self.LEVELS)
        self._levels: dict[int, OrderedDict[HolderT, None]] = {}
        self._top = 0

    def place(self, holder: HolderT, share: int) -> None:
        """Enter a holder, or note its new share."""
        level = min(share // self.grain, self.LEVELS)
        if level == holder.level:
            return
        self.remove(holder)
        holder.level = level
        self._levels.setdefault(level, OrderedDict())[holder] = None
        self._top = max(self._top, level)

    def remove(self, holder: HolderT) -> None:
        """Forget a holder. Harmless if it was not entered."""
        if holder.level >= 0:
            level = self._levels[holder.level]
            del level[holder]
            if not level:
                del self._levels[holder.level]
            holder.level = -1

    def holder(self) -> HolderT | None:
        """Return the holder with the largest share, or None if there is no holder."""
        if not self._levels:
            return None
        while self._top not in self._levels:
            self._top -= 1
        return next(iter(self._levels[self._top]))
