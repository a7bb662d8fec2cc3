"""Handshakes that came to nothing: all are counted, and logged so that a flood of them does not flood the log."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final, Literal, get_args

from gateway.limits import Sampler, address_key

logger = logging.getLogger(__name__)

REJECTIONS: Final = (20, 10.0)
TIMEOUTS: Final = (100, 10.0)
"""How many of one address are logged, and in how many seconds. The rest is counted."""

Stage = Literal["tls", "request", "response", "idle", "authenticate"]
"""Where a peer ended: before the request, at it, at its response, between two requests, or at the credential."""

_STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


class Rejections:
    """Counts each call. It is logged, and returns True, unless there were many from that address lately.

    ``failures`` has the counts since the start, by stage.
    """

    def __init__(self) -> None:
        self.failures: Counter[Stage] = Counter(dict.fromkeys(_STAGES, 0))
        self._rejected = Sampler(time.monotonic, *REJECTIONS)
        self._late = Sampler(time.monotonic, *TIMEOUTS)

    def rejected(self, remote: str, reason: str, stage: Stage, **fields: object) -> bool:
        """Count a peer that the gateway has refused. ``fields`` go into the log line, such as the HTTP status."""
        self.failures[stage] += 1
        left_out = self._rejected.admit(address_key(remote))
        if left_out is None:
            return False
        line = {"event": "handshake.rejected", "remote": remote, "stage": stage, **fields, "reason": reason}
        logger.info("handshake rejected: %s", reason, extra=_with(line, left_out))
        return True

    def late(self, remote: str, stage: Stage, timeout: float, **fields: object) -> bool:
        """Count a peer whose deadline has passed. ``timeout`` is the handshake's whole time in seconds."""
        self.failures[stage] += 1
        left_out = self._late.admit(address_key(remote))
        if left_out is None:
            return False
        line = {"event": "handshake.timeout", "remote": remote, "stage": stage, "timeout": timeout, **fields}
        what = "a response has not left" if stage == "response" else "no handshake"
        logger.info("%s within %s s", what, timeout, extra=_with(line, left_out))
        return True


def _with(line: dict[str, object], left_out: int) -> dict[str, object]:
    return line | {"leftOut": left_out} if left_out else line
