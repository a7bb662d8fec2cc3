"""Why a connection ended or was refused, and whether to come back: docs/protocol.md, "Close codes" and "HTTP"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_PAUSE: Final = 300.0
"""Seconds that a gateway may ask a client to stay away; more is taken for that."""

LOST: Final = 1006
"""The code of an end without a close frame (RFC 6455 section 7.1.5)."""

CLIENT_CLOSE: Final = 1000
SHUTDOWN: Final = 1001
UNAUTHENTICATED: Final = 4500

_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
_TEMPORARY_STATUSES: Final = frozenset({408, 425, 429})


class End(NamedTuple):
    """The end of a connection, or of an attempt.

    ``code`` is a close code, 1006 where none came, or below 1000 the HTTP status of a refusal. ``retry_after`` is
    how many seconds to stay away, where that was said.
    """

    code: int
    reason: str = ""
    retry_after: float | None = None

    @property
    def final(self) -> bool:
        """Whether coming back is of no use until something has changed."""
        if self.code < 1000:
            return 300 <= self.code < 500 and self.code not in _TEMPORARY_STATUSES
        return self.code in _FINAL_CODES or 4500 <= self.code <= 4999

    def __str__(self) -> str:
        what = f"HTTP {self.code}" if self.code < 1000 else str(self.code)
        return f"{what} {self.reason}".rstrip()


CLOSED: Final = End(CLIENT_CLOSE, "closed by this client")


def refusal(status: int, reason: str, headers: Mapping[str, str]) -> End:
    """The end of an attempt that got this HTTP answer. `Retry-After` in seconds is heeded, as a date it is not."""
    value = headers.get("Retry-After", "").strip()
    # More digits than that are no wait, and int() would be slow with very many.
    pause = min(float(value), MAX_PAUSE) if value.isascii() and value.isdigit() and len(value) < 10 else None
    return End(status, reason, pause)
