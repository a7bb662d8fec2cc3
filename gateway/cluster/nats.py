"""A connection to NATS that is made again whenever it is lost: plain publishing, subscriptions, requests.

Between a publish and the wire there is nothing but the cork of one event-loop iteration. While there is no link nothing
is kept: `Nats.publish` raises. What was not written when a link was lost is discarded, and never sent by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final, TypeVar

import msgspec

from gateway import __version__
from gateway.cluster import natswire
from gateway.cluster.natswire import Address, Credentials, Handler, Info, Reader, WireError
from gateway.deadlines import Wheel
from gateway.telemetry.lines import CLUSTER_DEFECT, Lines

logger = logging.getLogger(__name__)

CORK: Final = 1 << 16
"""Bytes that are corked at most. More leave at once, and not at the end of the event-loop iteration."""

SILENT: Final = 2
"""Unanswered pings after which a link is lost."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
"""Seconds before another attempt to connect, at most: the bound doubles with each failure."""

SETTLED: Final = 10.0
"""Seconds after which a link that is lost was no failure."""

NO_RESPONDERS: Final = 503

_REFUSED: Final = re.compile(r"(?i)authorization|authentication (expired|revoked)|tls required")
_DISCARD: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 s: what the kernel has not sent when the socket is closed is discarded."""

Value = TypeVar("Value")


class NatsError(Exception):
    """Something was not done. The message is a sentence without a full stop, for people."""


class AwayError(NatsError):
    """There is no link. Nothing was sent, and nothing will be."""


class TooLargeError(NatsError):
    """More than the server's ``max_payload``. Nothing was sent."""


class NoRespondersError(NatsError):
    """Nobody has subscribed to the subject of a request. It was not delivered."""


class LateError(NatsError):
    """No answer came in time. What was asked may have been done."""


class LinkError(NatsError):
    """The link was lost, or could not be made. What was asked by it may have been done."""


class RefusedError(LinkError):
    """The server, or TLS, refuses us for a reason that is mostly one of the configuration."""


Answered = Callable[[NatsError | None, bytes, bytes], None]
"""Takes the end of a request, once: what went wrong, or None and the reply's raw headers or b"", and its payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to connect. ``urls`` are tried in turn: ``nats://host:port``, or ``tls://…``, which refuses plaintext.

    ``tls`` is the context for TLS, and refuses plaintext too; without it TLS trusts what the system trusts.
    ``credentials`` is the text of a `.creds` file. ``name`` is for those who look at the server. ``inbox`` is the
    beginning of the subjects that answers to requests come to. Times are seconds: ``timeout`` for a connection until it
    may be used, ``ping_interval`` from one ping to the next. Over ``max_outbox`` bytes that the server does not take,
    the link is cut.
    """

    urls: tuple[str, ...]
    name: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: bytes = field(default=b"", repr=False)
    tls: ssl.SSLContext | None = None
    inbox: bytes = b"_INBOX"
    timeout: float = 5.0
    ping_interval: float = 0.66
    max_outbox: int = 32 << 20


class Nats:
    """A client of NATS. All calls belong to the event loop that `start` was called in.

    The callbacks are plain functions, and one that raises is logged as a defect. ``on_joined`` is called with each
    link: all subscriptions are made by then, those that it makes come in its order, and `publish` may be used in it.
    ``on_lost`` is called when that link is lost, after the requests that waited for answers have failed. ``on_failed``
    is called for each attempt that came to nothing; attempts go on until `close`. ``on_error`` takes what the server
    forbids, such as ``Permissions Violation for Publish to "a.b"``; the link lives on. ``chance`` returns numbers from
    0 to 1.

    ``options`` may be replaced, and counts from the next attempt on, all but its ``urls``, which are those of the
    beginning. Raises ValueError for a wrong url.
    """

    def __init__(
        self,
        options: Options,
        lines: Lines,
        *,
        on_joined: Callable[[Info], None],
        on_lost: Callable[[NatsError], None],
        on_failed: Callable[[NatsError], None],
        on_error: Callable[[str], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        raise NotImplementedError

    info: Info | None
    """What the server of the link says of itself; None while there is no link."""

    def start(self) -> None:
        """Connect, and connect again whenever the link is lost, until `close`. Call it once."""

    async def close(self, timeout: float = 1.0) -> None:
        """Leave, after what was published has reached the server, but in ``timeout`` seconds.

        Requests that wait for an answer fail; ``on_lost`` is not called. May be called twice, or without `start`.
        """

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish a message. It leaves at the end of the event-loop iteration, in order with all else.

        Raises AwayError without a link, and TooLargeError beyond the server's ``max_payload``; nothing was sent then.
        No error does not mean that the message arrives. Subjects are not empty and have no blanks; this is not looked
        at here.
        """

    def subscribe(self, subject: bytes, handler: Handler, queue: bytes = b"") -> bytes:
        """Call ``handler(subject, reply, headers, payload)`` for each message, until `unsubscribe`. Returns a handle.

        The messages of all subscriptions come in the order of the wire, as plain calls. May be called at any time: the
        subscription is made with each link. Raises ValueError for a subject or queue that is empty or has blanks.
        """
        raise NotImplementedError

    def unsubscribe(self, handle: bytes) -> None:
        """End a subscription: its handler is not called any more. Harmless for one that has ended."""

    def ask(self, subject: bytes, payload: bytes, answered: Answered, timeout: float) -> None:
        """Publish a request. ``answered`` is called once, later: with the first reply, or with what went wrong.

        These are NoRespondersError, LateError (after ``timeout`` seconds, rounded up to a tenth) and LinkError. Raises
        what `publish` raises, and calls nothing then. How many wait at once is for the caller to bound.
        """

    async def request(self, subject: bytes, payload: bytes, timeout: float) -> tuple[bytes, bytes]:
        """Do the same, and return the reply's raw headers and its payload; raise what went wrong."""
        raise NotImplementedError

    async def flush(self, timeout: float) -> None:
        """Wait until the server has handled all that was sent. Raises AwayError, LateError or LinkError."""
