"""The numbers of the messages both ways, and what the gateway has not acknowledged. Pure.

Once the gateway keeps the connection, each side numbers the messages that it sends, from 1 on, and tells the other from
time to time up to which number they have come. What was not acknowledged is kept, to be sent again by another link.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from gateway.rpc import jsonrpc

ACK_EVERY: Final = 64
"""After how many messages of the gateway they are acknowledged at the latest."""

ACK_WITHIN: Final = 2.0
"""Seconds after a message of the gateway within which it is acknowledged."""

KEPT: Final = 8 * 1024 * 1024
"""How many bytes are kept at most until the gateway has said how many it keeps itself."""


class Kept(msgspec.Struct, rename="camel"):
    """The reply to `connection.keep`. ``session`` is a secret."""

    session: str
    hold_ms: float
    max_bytes: int


def is_counted(message: jsonrpc.Message) -> bool:
    """Return whether a message of the gateway has a number. A batch always has one."""
    if message.method is jsonrpc.NO_METHOD or bytes(message.id):
        return True
    return message.method not in ("event.message", "event.gap", "connection.ack") and not message.method.startswith(
        "gateway."
    )


class Counting:
    """The numbers of one connection, and the messages that are kept for the gateway.

    ``sent``, ``written`` and ``acked`` are numbers of our own messages: the last one, the last that was written to the
    link, and the last that the gateway has acknowledged. ``received`` and ``told`` are numbers of the gateway's: the
    last that has come, and the last that was acknowledged. ``secret`` names the session; it is empty until the gateway
    has replied that it keeps the connection for ``hold`` seconds. ``octets`` is what is kept.
    """

    def __init__(self) -> None:
        self._kept: deque[bytes] = deque()
        self._since_told = 0
        self.counts = False
        """Whether our messages have numbers, because the gateway was asked to keep the connection."""
        self.secret = ""
        self.hold = 0.0
        self.max_bytes = KEPT
        self.octets = 0
        self.sent = self.written = self.acked = 0
        self.received = self.told = 0

    # Whether there are numbers

    def begin(self) -> None:
        """Number our messages from now on, because the request to keep the connection is leaving."""
        self.counts = True

    def established(self, kept: Kept) -> None:
        """Number the messages of the gateway, too."""
        self.secret, self.hold, self.max_bytes = kept.session, kept.hold_ms / 1000, kept.max_bytes
        self._bound()

    def stop(self) -> None:
        """Number and keep nothing more, because the gateway does not keep the connection, or it is over."""
        self.counts, self.secret = False, ""
        self._drop(len(self._kept))
        self.sent = self.written = self.acked = 0

    @property
    def whole(self) -> bool:
        """Whether another link may go on: the gateway keeps the connection, and what it has not had is there."""
        return bool(self.secret) and self.hold > 0 and len(self._kept) == self.sent - self.acked

    # Our messages

    def keep(self, data: bytes) -> None:
        """Number one message, which is being written, and keep it. If that is too much, the oldest go."""
        self.sent += 1
        self.written = self.sent
        self._kept.append(data)
        self.octets += len(data)
        self._bound()

    def _bound(self) -> None:
        while self.octets > self.max_bytes:
            self._drop(1)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self.octets -= len(self._kept.popleft())

    def acknowledged(self, number: int) -> bool:
        """Keep no more what the gateway has had, up to this number. Returns False if that was never sent.

        A smaller number than before is ignored.
        """
        if number > self.sent:
            return False
        self._drop(max(0, number - self.sent + len(self._kept)))
        self.acked = max(self.acked, number)
        return True

    def rewind(self) -> None:
        """Have what was not acknowledged written again, because there is another link, on which the rest is told."""
        self.written = self.acked
        self.tell()

    def again(self) -> bytes | None:
        """Return the next message that is to be written again; None if there is none. It counts as written."""
        first = self.sent - len(self._kept) + 1
        number = max(self.written + 1, first)
        if number > self.sent:
            return None
        self.written = number
        return self._kept[number - first]

    # The gateway's messages

    def heard(self, octets: int) -> bool:
        """Count a message of so many bytes. Returns whether what has come is to be acknowledged now."""
        self.received += 1
        self._since_told += octets
        return self.received - self.told >= ACK_EVERY or self._since_told >= self.max_bytes // 4

    def tell(self) -> int:
        """Return the number up to which the gateway's messages have come, which it is told now."""
        self.told = self.received
        self._since_told = 0
        return self.received
