"""What a link needs of its surroundings: the connection that it works for, and the limits that it lives under."""

from __future__ import annotations

from collections.abc import Container, Hashable
from operator import methodcaller
from typing import Any, Final, Protocol, TypeVar

from gateway.deadlines import Deadlines, Standstill
from gateway.errors import Disconnect
from gateway.limits import Accounts, Rate
from gateway.websocket.frames import NOTHING_WRITTEN, Payload, Written
from gateway.websocket.turns import Turns

_Link_contra = TypeVar("_Link_contra", contravariant=True)


class Receiver(Protocol):
    """The endpoint of a connection, which knows what messages mean. Nothing here may block.

    If a call raises, `Owner.on_defect` is called and the link ends with 1011.
    """

    def text(self, connection: Any, data: Payload) -> None:
        """Take one whole text message, valid UTF-8."""

    def binary(self, connection: Any, data: Payload) -> None:
        """Take one whole binary message."""


class HasEndpoint(Protocol):
    """A connection whose messages are read. The reader hands them to its endpoint without a call in between."""

    @property
    def endpoint(self) -> Receiver:
        """The receiver of the messages. It may change at any time."""


class Owner(HasEndpoint, Protocol[_Link_contra]):
    """The connection that a link works for. Nothing here may block, and only ``on_open`` may raise.

    Each call names the link: the connection may have got another one meanwhile.
    """

    def on_open(self, link: _Link_contra) -> None:
        """The 101 is made, and frames may be sent. Called once, before the first message.

        If it raises, ``on_defect`` is called and the link ends with 1011.
        """

    def on_defect(self, error: BaseException) -> None:
        """``on_open`` or the endpoint has raised ``error``, which is a defect of ours."""

    @property
    def past(self) -> Written:
        """What was written to the transport past the outbox, and is not counted there yet."""

    def on_blocked(self, link: _Link_contra) -> None:
        """Write nothing past the outbox: the peer does not read, or the end has begun. May be called again."""

    def on_drained(self, link: _Link_contra) -> None:
        """The peer has read so much that frames leave at once again. Called after ``on_blocked``."""

    def on_ending(self, link: _Link_contra) -> None:
        """The link is no longer open. Called once, in the event-loop iteration after the state has changed."""

    def on_closed(self, link: _Link_contra, end: Disconnect) -> None:
        """The transport is gone. Called once.

        It is the last call, unless the transport was lost while the link was open: then ``on_ending`` follows.
        """


class Watcher(Protocol):
    """What wants to know when something has come. The link's counts from which on it is told are for it to set."""

    def after_read(self, connection: Any) -> None:
        """``messages_in`` has reached ``watched_messages``, or ``bytes_in`` ``watched_octets``.

        The messages of the read are handled. What is sent now leaves with the replies to them. The size of a message
        that was compressed, or in fragments, counts on top of its bytes.
        """


class Regime(Protocol):
    """The limits that a link lives under. Times are in seconds, sizes in bytes."""

    @property
    def heartbeat_interval(self) -> float:
        """The silence after which the peer is pinged."""

    @property
    def heartbeat_timeout(self) -> float:
        """The silence after a ping that ends the link."""

    @property
    def receive_timeout(self) -> float:
        """How long a peer may send no complete message, no control frame and no 16 KiB of a message."""

    @property
    def close_timeout(self) -> float:
        """How long the peer may take to answer a close frame, and the outbox to leave."""

    @property
    def max_message_bytes(self) -> int:
        """The size of the largest message that is accepted."""

    @property
    def max_outbox_bytes(self) -> int:
        """The bound of the outbox. Over it for ``outbox_timeout``, or over twice of it at once, ends the link."""

    @property
    def outbox_timeout(self) -> float:
        """How long the outbox may be over its bound."""

    @property
    def control_rate(self) -> Rate | None:
        """How many pings, pongs and empty fragments are accepted; None for any number."""

    @property
    def compression(self) -> bool:
        """Whether permessage-deflate may be negotiated."""

    @property
    def subprotocols(self) -> Container[str]:
        """The names of subprotocols that are chosen if the peer offers them."""

    @property
    def accounts(self) -> Accounts:
        """The accounts of all principals."""

    @property
    def turns(self) -> Turns:
        """The event loop's time for all peers with an allowance."""

    @property
    def standstill(self) -> Standstill:
        """What says whether the process itself has stood still."""


class Closing(Hashable, Protocol):
    """A link that waits for its peer to close."""

    def abort(self) -> None:
        """Drop the transport at once."""


class Closings(Deadlines[Closing]):
    """The links that wait for their peer to close, or for their outbox to leave.

    After ``close_timeout`` seconds a link is aborted.
    """

    __slots__ = ()

    def __init__(self, close_timeout: float) -> None:
        super().__init__(close_timeout, methodcaller("abort"))


class _NoOwner:
    """The owner of a link that is over, and its endpoint. It does nothing."""

    past = NOTHING_WRITTEN

    @property
    def endpoint(self) -> _NoOwner:
        return self

    def text(self, connection: object, data: Payload) -> None: ...
    def binary(self, connection: object, data: Payload) -> None: ...
    def on_open(self, link: object) -> None: ...
    def on_defect(self, error: BaseException) -> None: ...
    def on_blocked(self, link: object) -> None: ...
    def on_drained(self, link: object) -> None: ...
    def on_ending(self, link: object) -> None: ...
    def on_closed(self, link: object, end: Disconnect) -> None: ...


NO_OWNER: Final = _NoOwner()
