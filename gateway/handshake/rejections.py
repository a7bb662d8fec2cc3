"""Handshakes that came to nothing: all are counted, and logged so that a flood of them does not flood the log."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final, Literal, get_args

from gateway.auth.scopes import NOBODY, origin
from gateway.telemetry.lines import LATE, REJECTED, Lines

logger = logging.getLogger(__name__)

Stage = Literal["tls", "request", "response", "idle", "authenticate"]
"""Where a peer ended: before the request, at it, at its response, between two requests, or at the credential."""

_STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


class Rejections:
    """Counts each call. It is logged, and returns True, unless there were many from that address lately.

    ``failures`` has the counts since the start, by stage.
    """

    def __init__(self, lines: Lines) -> None:
        self.failures: Counter[Stage] = Counter(dict.fromkeys(_STAGES, 0))
        self._lines = lines

    def rejected(self, remote: str, reason: str, stage: Stage, **fields: object) -> bool:
        """Count a peer that the gateway has refused. ``fields`` go into the log line, such as the HTTP status."""
        self.failures[stage] += 1
        known = {"remote": remote, "stage": stage, **fields, "reason": reason}
        return self._lines.log(logger, REJECTED, origin(NOBODY, remote), "handshake rejected: %s", reason, fields=known)

    def late(self, remote: str, stage: Stage, timeout: float, **fields: object) -> bool:
        """Count a peer whose deadline has passed. ``timeout`` is the handshake's whole time in seconds."""
        self.failures[stage] += 1
        known = {"remote": remote, "stage": stage, "timeout": timeout, **fields}
        message = "a response has not left within %s s" if stage == "response" else "no handshake within %s s"
        return self._lines.log(logger, LATE, origin(NOBODY, remote), message, timeout, fields=known)
