"""Bounds that are counted here and enforced by those who ask. Pure: time comes in as a callable."""

from __future__ import annotations

from collections.abc import Callable


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
