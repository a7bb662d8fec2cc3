"""A link that notes what is read for it, for tests of the reader without a socket."""

import asyncio

from gateway.websocket.cork import Cork
from gateway.websocket.frames import TEXT, Payload, State
from gateway.websocket.owner import Watcher
from gateway.websocket.reader import Inbox, Reader
from gateway.websocket.turns import Turns

LIMIT = 1 << 20
"""Bytes of the largest message."""


class Pausable(asyncio.Transport):
    """A transport that is paused and resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.protocol: object = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Note it."""
        self.protocol = protocol

    def get_extra_info(self, name: str, default: object = None) -> object:
        """There is no socket."""
        return default

    def close(self) -> None:
        """Not noted."""

    def pause_reading(self) -> None:
        """Note it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Note it."""
        self.reading = True

    def is_reading(self) -> bool:
        """Whether it is not paused."""
        return self.reading

    def is_closing(self) -> bool:
        """Never."""
        return False


class Sink:
    """A WebSocket that notes what is read for it. Implements `gateway.websocket.reader.Sink`."""

    def __init__(self) -> None:
        self.state = State.OPEN
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport = Pausable()
        self.corked: list[bytes] | None = None
        self.stalled = False
        self.waits = 0
        self.partial = 0
        self.room = float(LIMIT)
        """How many bytes of unfinished messages there is room for."""
        self.cork = Cork()
        self.last_read = 0.0
        self.last_message = 0.0
        self.messages_in = 0
        self.bytes_in = 0
        self.watched_messages = self.watched_octets = 0
        self.watcher: Watcher | None = None
        self.allowance: int | None = None
        self.turns = Turns()
        self.controls: int | None = None
        """How many pings, pongs and empty fragments may come; None: any number."""
        self.seen: list[tuple[object, ...]] = []
        self.failure: BaseException | None = None
        self.raises: Exception | None = None

    def _see(self, *what: object) -> None:
        self.seen.append(what)
        if self.raises is not None:
            raise self.raises

    def flush(self) -> None:
        """Nothing is ever corked here."""

    @property
    def endpoint(self) -> "Sink":
        """It is its own owner's endpoint."""
        return self

    @property
    def owner(self) -> "Sink":
        """It is its own owner."""
        return self

    def text(self, connection: object, data: Payload) -> None:
        """Note it."""
        self._see(TEXT, data)

    def binary(self, connection: object, data: Payload) -> None:
        """Nothing comes here without on_message()."""

    def on_message(self, opcode: int, data: Payload) -> None:
        """Note it."""
        self.messages_in += 1
        self._see(opcode, data)

    def on_control(self) -> bool:
        """Count one."""
        if self.controls is None:
            return True
        self.controls -= 1
        return self.controls >= 0

    def on_ping(self, payload: bytes) -> None:
        """Note it."""
        self._see("ping", payload)

    def on_partial(self, octets: int) -> bool:
        """Add them up."""
        self.partial += octets
        return self.partial <= self.room

    def on_whole(self) -> None:
        """Forget them."""
        self.partial = 0

    def full(self) -> None:
        """Note it."""
        self._see("full")

    def on_peer_close(self, code: int, reason: str) -> None:
        """Note it; from then on the socket is closing."""
        self.state = State.FLUSHING
        self._see("close", code, reason)

    def on_peer_eof(self) -> None:
        """Note it."""
        self._see("eof")

    def on_lost(self) -> None:
        """Note it."""
        self.state = State.CLOSED

    def fail(self, error: BaseException) -> None:
        """Note it; from then on nothing is awaited but the peer's close frame."""
        self.state = State.CLOSING
        self.failure = error


def reader_of(sink: Sink, limit: int = LIMIT) -> Reader:
    """Return a reader of this link, without compression."""
    return Reader(sink, Inbox(sink, limit), limit, False)
