"""Another gateway of the cluster, as this one has it: what is in flight for it and to it, and how much is on its way.

Between two gateways there is mail (`cluster.members`), which nothing slows down. So each of them tells the other how
much it has taken, and what is on its way has a bound: pressure goes back to those who send, as it does from a link.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from gateway import errors
from gateway.auth.scopes import NOBODY
from gateway.cluster.natslink import NatsError
from gateway.errors import UNKNOWN, Disconnect
from gateway.limits import Bucket
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Callee, Calls, Link
from gateway.rpc.requests import Party, Request
from gateway.rpc.streams import Pool, Waiter

HIGH: Final = 4 << 20
"""Bytes on their way to another gateway over which it is pressed."""

LOW: Final = HIGH // 2
"""If no more bytes than these are on their way, it is pressed no longer."""

TOLD: Final = HIGH // 16
"""Bytes that are taken before the other gateway is told so."""

COST: Final = 100
"""What a message counts, in bytes, beside its payload."""

UNBOUNDED: Final = 1 << 62
"""More bytes than anything has. What may be sent by streams is bounded at the gateways of their two ends."""

GRACE: Final = 0.2
"""Seconds after which a gateway that is alive, and has lost its NATS, has read what was delivered to it before."""

AWAY: Final = "away"
SILENT: Final = "silent"
NO_RESPONDERS: Final = "no_responders"
"""Causes for which a member is lost: this gateway has lost its NATS, the member was silent, or nobody had its mail."""

REQUEST: Final = b'{"jsonrpc":"2.0","id":'
"""What each request and each reply begins with that the gateway makes."""

NOTE: Final = b'{"jsonrpc":"2.0","method":"rpc.'
"""What each notification of the gateway's own about a call begins with."""

_AFTER_KIND: Final = len(b'","params":{"id":')
_RESULT: Final = b',"result":'
_ERROR: Final = b',"error":'
_VALUE: Final = b'"value":'
_END: Final = b'"end":true'


class Member(Protocol):
    """Another gateway, for as long as it has its address (`cluster.members.Member`)."""

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def beat(self) -> bytes:
        """The number of its last heartbeat that was heard, as text."""


Handler = Callable[[Member, bytes, bytes, bytes], None]
"""Takes a member, and the token, the headers and the payload of its mail."""


class Mail(Protocol):
    """Mail between members (`cluster.members.Members`). It arrives in order, or the member is lost."""

    def on(self, kind: bytes, handler: Handler) -> None:
        """Have mail of this kind handled."""

    def tell(self, member: Member, kind: bytes, payload: bytes, token: bytes = b"", reply: bytes = b"") -> None:
        """Send mail. Raises NatsError if it does not leave."""

    def reply_subject(self, kind: bytes, token: bytes) -> bytes:
        """Return the subject that comes back as mail of ``kind`` if nobody hears what was sent with it."""

    def is_fresh(self, beat: bytes) -> bool:
        """Return whether this gateway's heartbeat of that number was sent so lately that no member is given up for it."""

    def busy(self, member: Member) -> None:
        """Begin to look often whether the member is there. Counted."""

    def idle(self, member: Member) -> None:
        """End that once."""


class Note(Protocol):
    """A notification about a call, cut into its parts."""


def cut(note: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the kind of a notification about a call, such as ``cancel``, the call's id, and what it says.

    The gateway has made it, so nothing is decoded: a value is what it was, byte for byte.
    """
    at = note.index(b'"', len(NOTE))
    kind, start = note[len(NOTE) : at], at + _AFTER_KIND
    end = note.find(b",", start)
    if kind == b"cancel" or end < 0:
        return kind, note[start:-2], b""
    said = note[end + 1 : -2]
    if said.startswith(_VALUE):
        return kind, note[start:end], said[len(_VALUE) :]
    if said == _END:
        return b"finish", note[start:end], b""
    return kind, note[start:end], said.replace(b'"credit":', b"").replace(b'"bytes":', b"")
