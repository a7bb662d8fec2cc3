"""Credentials that expire while their connection is open: the peer is warned, then the connection ends with 4004.

A credential expires at a moment of the wall clock. The time until then is measured once, when the connection adopts the
credential, so a later jump of the clock does not end a connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Protocol

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.deadlines import Sweep
from gateway.errors import Disconnect
from gateway.timestamps import rfc3339_seconds


class Holder(Hashable, Protocol):
    """The holder of a credential: what this module needs of an open connection."""

    principal: Principal

    def notify(self, method: str, params: object) -> None:
        """Send a notification."""

    def end(self, end: Disconnect) -> None:
        """End the connection."""


class Expiries:
    """Watches the connections whose credentials expire. ``wall`` returns seconds since the epoch.

    They are warned ``notice`` seconds before; if that is 0, they are not warned.
    """

    def __init__(self, notice: float, wall: Callable[[], float] = time.time) -> None:
        self._notice = notice
        self._wall = wall
        self._notices: Sweep[Holder] = Sweep(self._announce)
        self._ends: Sweep[Holder] = Sweep(_expired)

    def watch(self, holder: Holder) -> None:
        """Watch a connection that has adopted a credential. Call this again when it adopts another one."""
        self.forget(holder)
        expires_at = holder.principal.expires_at
        if expires_at is None:
            return
        left = max(0.0, expires_at - self._wall())
        self._ends.begin(holder, left)
        if self._notice:
            self._notices.begin(holder, max(0.0, left - self._notice))

    def forget(self, holder: Holder) -> None:
        """Stop watching a connection. Does nothing if it is not watched."""
        if holder in self._ends:  # most credentials do not expire
            self._notices.done(holder)
            self._ends.done(holder)

    def _announce(self, holder: Holder) -> None:
        expires_at = holder.principal.expires_at or 0.0
        left = max(0.0, expires_at - self._wall())
        holder.notify("gateway.expiring", {"expiresAt": rfc3339_seconds(expires_at), "leftMs": int(left * 1000)})


def _expired(holder: Holder) -> None:
    holder.end(errors.CREDENTIAL_EXPIRED)
