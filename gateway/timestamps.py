"""Formats moments as RFC 3339 does, in UTC. Pure: a moment comes in as seconds since the epoch.

Both functions raise ValueError, OverflowError or OSError for a moment outside the years 1 to 9999.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_MILLISECONDS: Final = tuple(f".{number:03d}Z" for number in range(1000))

# isoformat() ends with the offset, "+00:00", which RFC 3339 also writes as "Z". strftime() would be slower, and each
# event is stamped.


def rfc3339(seconds: float) -> str:
    """Format a moment to the millisecond, as in ``2027-01-01T12:00:00.250Z``. It is rounded down."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_seconds(seconds: float) -> str:
    """Format a moment to the second, as in ``2027-01-01T12:00:00Z``. It is rounded down."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6] + "Z"


class Stamps:
    """Formats moments since 1970 as `rfc3339` does, and each second once, for what is stamped very often."""

    __slots__ = ("_begin", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._begin = ""

    def format(self, seconds: float) -> str:
        """Return what `rfc3339` returns."""
        second = int(seconds)
        milliseconds = round((seconds - second) * 1e6) // 1000
        if milliseconds == 1000:
            return rfc3339(seconds)  # which rounds it up to the next second
        if second != self._second:
            self._begin, self._second = rfc3339_seconds(second)[:-1], second
        return self._begin + _MILLISECONDS[milliseconds]
