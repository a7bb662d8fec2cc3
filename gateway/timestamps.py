"""Moments as RFC 3339 writes them, in UTC. Pure: moments come in as seconds since the epoch.

Both functions raise ValueError, OverflowError or OSError for a moment outside the years 1 to 9999.
"""

from __future__ import annotations

from datetime import UTC, datetime

# isoformat ends in the offset, "+00:00", which RFC 3339 also writes as "Z". strftime is slower, and events are
# stamped one by one.


def rfc3339(seconds: float) -> str:
    """Write a moment to the millisecond, such as ``2027-01-01T12:00:00.250Z``; what is finer is cut off."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_seconds(seconds: float) -> str:
    """Write a moment to the second, such as ``2027-01-01T12:00:00Z``; what is finer is cut off."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6] + "Z"
