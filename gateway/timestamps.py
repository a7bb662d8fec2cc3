"""Formats moments as RFC 3339 does, in UTC. Pure: a moment comes in as seconds since the epoch.

Both functions raise ValueError, OverflowError or OSError for a moment outside the years 1 to 9999.
"""

from __future__ import annotations

from datetime import UTC, datetime

# isoformat() ends with the offset, "+00:00", which RFC 3339 also writes as "Z". strftime() would be slower, and each
# event is stamped.


def rfc3339(seconds: float) -> str:
    """Format a moment to the millisecond, as in ``2027-01-01T12:00:00.250Z``. It is rounded down."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_seconds(seconds: float) -> str:
    """Format a moment to the second, as in ``2027-01-01T12:00:00Z``. It is rounded down."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6] + "Z"
