"""Who a connection is, since when, and what has passed by its links."""

from __future__ import annotations

import os
import time
from typing import Final

from gateway.auth.scopes import Principal
from gateway.auth.scopes import origin as origin_of
from gateway.connections.history import Closed
from gateway.connections.pressure import Pressed
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.telemetry.counts import NO_TRAFFIC, Traffic


class Identity(Pressed):
    """The part of a connection that others are told of.

    ``conn_id`` is the text of a UUID4. ``remote`` is ``addr:port``, ``[addr]:port`` or ``unix``. ``opened_at`` is in
    seconds since the epoch.
    """

    __slots__ = ("_before", "_opened", "conn_id", "opened_at", "principal", "remote")

    def __init__(self, conn_id: str, remote: str, principal: Principal, account: Account) -> None:
        super().__init__(account)
        self.conn_id = conn_id
        self.remote = remote
        self.principal = principal
        self.opened_at = 0.0
        self._opened = 0.0
        self._before: Traffic = NO_TRAFFIC
        """What has passed by the links before this one."""

    @property
    def messages_in(self) -> int:
        """How many messages have come."""
        return self._before.messages_in + self.link.messages_in

    @property
    def messages_out(self) -> int:
        """How many messages were sent."""
        return self._before.messages_out + self.link.messages_out

    @property
    def bytes_in(self) -> int:
        """How many bytes have come."""
        return self._before.bytes_in + self.link.bytes_in

    @property
    def bytes_out(self) -> int:
        """How many bytes were sent, as frames."""
        return self._before.bytes_out + self.link.bytes_out

    @property
    def outbox_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken yet."""
        return self.link.outbox_bytes

    @property
    def last_seen_at(self) -> float:
        """When the last byte came, in seconds since the epoch."""
        return self.opened_at + (self.link.last_read - self._opened)

    @property
    def duration(self) -> float:
        """Seconds since the opening, to the millisecond."""
        return round(self.link.loop.time() - self._opened, 3)

    @property
    def origin(self) -> str:
        """Whose doing it is if there is too much of something (`auth.scopes.origin`)."""
        return origin_of(self.principal, self.remote)

    def known(self) -> dict[str, object]:
        """Return the fields that every line about the connection has."""
        return {"connId": self.conn_id, "remote": self.remote}

    def summary(self, end: Disconnect) -> Closed:
        """Return what is kept of the connection if this is its end, with the counts of this moment."""
        link, before = self.link, self._before
        return Closed(
            self.conn_id,
            self.principal,
            self.remote,
            time.time(),
            self.duration,
            end,
            before.messages_in + link.messages_in,
            before.messages_out + link.messages_out,
            before.bytes_in + link.bytes_in,
            before.bytes_out + link.bytes_out,
            self.origin,
        )


_entropy = bytearray()
_VERSION: Final = bytes(0x40 | octet & 0x0F for octet in range(256))
_VARIANT: Final = bytes(0x80 | octet & 0x3F for octet in range(256))


def new_id() -> str:
    """Return a UUID of version 4 (RFC 9562 section 5.4) as text. The kernel is asked once for 256 of them."""
    if not _entropy:
        _entropy.extend(os.urandom(16 * 256))
        _entropy[6::16] = _entropy[6::16].translate(_VERSION)
        _entropy[8::16] = _entropy[8::16].translate(_VARIANT)
    digits = _entropy[-16:].hex()
    del _entropy[-16:]
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
