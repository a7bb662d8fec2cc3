"""Why a link ended or was refused, and whether to reconnect: docs/protocol.md, "Close codes" and "HTTP"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_PAUSE: Final = 300.0
"""The longest pause, in seconds, that a gateway can ask for; a longer one is cut to this."""

LOST: Final = 1006
"""The code that stands for an end without a close frame (RFC 6455 section 7.1.5)."""

CLIENT_CLOSE: Final = 1000
SHUTDOWN: Final = 1001
UNAUTHENTICATED: Final = 4500

_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1010})
"""1009 is not among them, because it is about one message."""
_TEMPORARY_STATUSES: Final = frozenset({408, 425, 429})


class End(NamedTuple):
    """The end of a link, or of an attempt at one.

    ``code`` is a close code, 1006 if there was no close frame, or below 1000 the HTTP status of a refusal.
    ``retry_after`` is the pause in seconds that the gateway has asked for, or None.
    """

    code: int
    reason: str = ""
    retry_after: float | None = None

    @property
    def final(self) -> bool:
        """Whether another attempt would end in the same way until something has changed."""
        if self.code < 1000:
            return 300 <= self.code < 500 and self.code not in _TEMPORARY_STATUSES
        return self.code in _FINAL_CODES or 4500 <= self.code <= 4999

    def __str__(self) -> str:
        what = f"HTTP {self.code}" if self.code < 1000 else str(self.code)
        return f"{what} {self.reason}".rstrip()


CLOSED: Final = End(CLIENT_CLOSE, "closed by this client")


def refusal(status: int, reason: str, headers: Mapping[str, str]) -> End:
    """Return the end of an attempt that got this HTTP answer. `Retry-After` counts in seconds only, not as a date."""
    value = headers.get("Retry-After", "").strip()
    # A longer number is no pause, and converting one of very many digits would be slow.
    pause = min(float(value), MAX_PAUSE) if value.isascii() and value.isdigit() and len(value) < 10 else None
    return End(status, reason, pause)
