"""The way in: aiohttp's frame parser, in slices, past its queue, and with the checks that it leaves out.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.http_websocket import WS_CLOSED_MESSAGE, WebSocketError

from gateway.errors import FLOOD
from gateway.websocket.cork import Cork
from gateway.websocket.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Payload, State
from gateway.websocket.owner import HasEndpoint, Watcher
from gateway.websocket.turns import Turns

SLICE: Final = 32 * 1024
"""Bytes parsed in one go. The rest of a longer read waits for the next event-loop iteration.

So no peer starves another.
"""

PROGRESS: Final = 16 * 1024
"""Bytes of an unfinished message that count for the receive timeout as much as a whole message."""

_OPEN, _CLOSING, _CLOSED = State.OPEN, State.CLOSING, State.CLOSED
_PROBES: Final = frozenset({PING, PONG})
_FED: Final = (False, b"")
_GO_ON: Final = WSMessage(WSMsgType.CONTINUATION, b"", "")


class Sink(Protocol):
    """The link that a reader works for."""

    state: State
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cork: Cork
    corked: list[bytes] | None
    stalled: bool
    waits: int
    last_read: float
    last_message: float
    messages_in: int
    bytes_in: int
    watched_messages: int
    watched_octets: int
    watcher: Watcher | None
    allowance: int | None

    @property
    def turns(self) -> Turns:
        """The time that the reader shares with others while there is an allowance."""

    @property
    def owner(self) -> HasEndpoint:
        """The connection whose endpoint gets the messages."""

    def flush(self) -> None:
        """Write what the messages of a read have corked."""

    def on_message(self, opcode: int, data: Payload) -> None:
        """Take one whole message. What this raises arrives in `fail`."""

    def on_control(self) -> bool:
        """Count a ping, a pong or a fragment that counts. Returns False if there are too many."""

    def on_ping(self, payload: bytes) -> None:
        """Answer a ping."""

    def on_partial(self, octets: int) -> bool:
        """Charge so many more bytes of an unfinished message. Returns False if there is no room for them."""

    def on_whole(self) -> None:
        """Charge nothing any more: the message is finished."""

    def full(self) -> None:
        """Note that the transport takes no more."""

    def on_peer_close(self, code: int, reason: str) -> None:
        """Handle the peer's close frame; ``code`` is 0 if it has none."""

    def on_peer_eof(self) -> None:
        """Note the peer's FIN."""

    def on_lost(self) -> None:
        """Note that the transport is gone."""

    def fail(self, error: BaseException) -> None:
        """End, because the stream cannot be parsed any further or a message could not be handled."""


class Inbox(WebSocketDataQueue):
    """The queue of a link: ``receive()`` waits on it, and aiohttp's parser puts what it has assembled into it.

    What is assembled goes on to the link at once. Only what is held back, because the peer does not read, is queued.
    The base class's own fields stay unset.
    """

    __slots__ = ("_held", "_max_message_bytes", "_sink", "_wake")

    def __init__(self, sink: Sink, max_message_bytes: int) -> None:
        self._sink = sink
        self._max_message_bytes = max_message_bytes
        self._wake: asyncio.Future[None] | None = None
        self._held: deque[WSMessage] | None = None

    @property
    def holds(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def hold(self, message: WSMessage = _GO_ON) -> None:
        """Hold a message back for ``receive()``. Without a message, only wake it."""
        if self._held is None:
            self._held = deque()
        self._held.append(message)
        self.wake()

    def wake(self) -> None:
        """Let ``read`` look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def read(self) -> WSMessage:
        """Return the next message that was held back, or aiohttp's word for the end when the transport is gone."""
        while not self._held:
            self._held = None
            if self._sink.state is _CLOSED:
                return WS_CLOSED_MESSAGE  # EofStream would have `receive()` call `close()`, for the same
            self._wake = self._sink.loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._held.popleft()

    def feed_data(self, data: Any, size: int) -> None:
        """Take from the parser a close frame, or a message that has not gone the short way of `Reader`."""
        sink = self._sink
        if data[0] is WSMsgType.CLOSE:
            sink.on_peer_close(data[1], data[2])
            return
        sink.watched_octets -= size  # it may have been compressed, and then has come as fewer bytes
        if size > self._max_message_bytes:  # aiohttp lets a compressed message have a byte more
            sink.fail(WebSocketError(WSCloseCode.MESSAGE_TOO_BIG, "message too big"))
        elif sink.stalled:
            self.hold(data)
        else:
            sink.on_message(int(data[0]), data[1])

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Pass on what the parser has raised, or what was raised inside of it."""
        self._sink.fail(exc)

    def feed_eof(self) -> None:
        """Note the end of the transport: aiohttp's ``connection_lost`` calls this, by way of the parser."""
        self._sink.on_lost()


class Reader(WebSocketReader):
    """Hands messages over while it parses. ``max_message_bytes`` is inclusive; ``take_over`` is called once.

    Reading is paused while a read larger than a slice is parsed, and while the peer does not read its replies.
    """

    __slots__ = (
        "_at",
        "_backlog",
        "_charged",
        "_counted_before",
        "_fragmented",
        "_fragments",
        "_handler",
        "_inbox",
        "_paused",
        "_scheduled",
        "_sink",
        "_unfinished",
    )

    _handler: Any

    def __init__(self, sink: Sink, inbox: Inbox, max_message_bytes: int, compress: bool) -> None:
        super().__init__(inbox, max_message_bytes + 1, compress, False)
        self._sink = sink
        self._inbox = inbox
        self._fragmented = False
        self._fragments: int | None = None
        self._unfinished = 0
        self._counted_before = 0
        self._charged = False
        self._paused = False
        self._scheduled = False
        self._backlog = b""
        self._at = 0

    def take_over(self, handler: web.RequestHandler) -> None:
        """Become the transport's protocol, and begin with what aiohttp has read beyond the request.

        aiohttp's own protocol, ``handler``, still hears of the transport's end and of its write buffer. If it stayed
        the protocol, it would pass each read on by two calls, and drop all that a bare runner reads while it shuts
        down.
        """
        self._handler = handler
        if handler.transport is not None:
            protocol: Any = self
            handler.transport.set_protocol(protocol)
        handler.set_parser(self)
        handler.keep_alive(False)

    # The transport's protocol (asyncio.Protocol)

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take one read of the socket."""
        sink = self._sink
        sink.last_read = sink.loop.time()
        sink.bytes_in += len(data)
        if sink.allowance is None and not self._paused and len(data) <= SLICE:
            self._parse(data)
        else:
            self._take_in_turn(data)

    def eof_received(self) -> None:
        """Note the peer's FIN. asyncio closes the transport after it."""
        self._sink.on_peer_eof()

    def pause_writing(self) -> None:
        """Note that the write buffer is over its high-water mark. The transport calls this within a write."""
        self._handler.pause_writing()
        self._sink.full()

    def resume_writing(self) -> None:
        """Note that the write buffer is under its low-water mark."""
        self._handler.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note that the transport is gone."""
        self._handler.connection_lost(exc)

    # From the protocol to the parser

    def feed_data(self, data: bytes | bytearray | memoryview) -> tuple[bool, bytes]:
        """Take what aiohttp has read beyond the request: its ``set_parser`` calls this."""
        self.data_received(data)
        return _FED

    def _take_in_turn(self, data: bytes | bytearray | memoryview) -> None:
        """Take a read that is large, or comes while reading is paused, or comes from a peer with an allowance."""
        sink = self._sink
        if sink.allowance is None:
            self._take(data)
        elif sink.turns.over and not self._paused and len(data) <= sink.allowance:  # a longer one is refused, not kept
            self.pause()
            self._take(data)
            self._again(sink)
        else:
            with sink.turns.timed(sink.loop):
                self._take(self._ahead(sink, data))

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        if self._paused:  # TLS delivers what it has decrypted even after pause_reading()
            self._backlog = self._backlog[self._at :] + bytes(data)
            self._at = 0
        elif len(data) <= SLICE:
            self._parse(data)
        else:
            self.pause()
            self._backlog = bytes(data)
            self.go_on()

    def pause(self) -> None:
        """Stop reading the socket. May be called twice."""
        if not self._paused:
            self._paused = True
            self._sink.transport.pause_reading()

    def go_on(self) -> None:
        """Parse one slice of what is left of a read, or read again if nothing is left. Harmless at any time."""
        self._scheduled = False
        sink = self._sink
        if sink.stalled or sink.waits or sink.state is _CLOSED:
            return
        if self._backlog:
            begin, self._at = self._at, self._at + SLICE
            piece = self._backlog[begin : self._at]
            if self._at >= len(self._backlog):
                self._backlog = b""
                self._at = 0
            self._parse(piece)
            if sink.stalled or sink.waits:
                return
        if self._backlog:
            self._again(sink)
        elif self._paused:
            self._paused = False
            if not sink.transport.is_closing():
                sink.transport.resume_reading()

    def _again(self, sink: Sink) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        if sink.allowance is None:
            sink.loop.call_soon(self.go_on)
        else:
            sink.turns.wait(self, sink.loop)

    def _parse(self, data: bytes | bytearray | memoryview) -> None:
        sink = self._sink
        if sink.allowance is not None and not self._allowed(sink, len(data)):
            return
        before = sink.messages_in
        cork = sink.cork
        cork.reading = sink
        cork.reads += 1
        try:
            WebSocketReader.feed_data(self, data)
        finally:
            cork.reading = None
        if sink.messages_in != before:
            sink.last_message = sink.last_read
            if self._charged:
                self._charged = False
                sink.on_whole()
            watcher = sink.watcher
            if watcher is not None and (
                sink.messages_in >= sink.watched_messages or sink.bytes_in >= sink.watched_octets
            ):
                watcher.after_read(sink.owner)
        else:
            self._count_progress(sink, len(data))
        if sink.corked is not None:
            sink.flush()
        if cork.due:
            cork.end_read()

    def _count_progress(self, sink: Sink, size: int) -> None:
        """Count a read that has completed no message. What counts is payload, so empty fragments are no progress."""
        if self._counted_before != sink.messages_in:  # another message than the last time
            self._counted_before = sink.messages_in
            self._unfinished = 0
        self._unfinished += size if self._fragments is None else min(size, self._fragments)
        self._fragments = None
        if self._unfinished >= PROGRESS:
            sink.last_message = sink.last_read
            self._charged = True
            if not sink.on_partial(self._unfinished) and sink.state is _OPEN:
                sink.fail(WebSocketError(WSCloseCode.MESSAGE_TOO_BIG, "too many unfinished messages of one principal"))
            self._unfinished = 0

    def _ahead(self, sink: Sink, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Parse a read up to its last slice, as long as the peer has an allowance, and return the rest.

        Nothing of the read is kept: the rest is empty if the allowance does not suffice.
        """
        while sink.allowance is not None and sink.state is not _CLOSED and not self._paused and len(data) > SLICE:
            self._parse(data[:SLICE])
            data = data[SLICE:]
        return data if sink.allowance is None or sink.allowance >= 0 else b""

    def _allowed(self, sink: Sink, size: int) -> bool:
        """Take so many bytes from the allowance, or fail and return False. The parser would keep them."""
        left = sink.allowance = (sink.allowance or 0) - size
        if left >= 0:
            return True
        if sink.state is _OPEN:
            sink.fail(WebSocketError(WSCloseCode.MESSAGE_TOO_BIG, "message too big"))
        return False

    def _handle_frame(self, fin: bool, opcode: int, payload: bytes | bytearray, compressed: int) -> None:
        """Handle one frame. aiohttp unmasks into a bytearray; bytes came without a mask (RFC 6455 section 5.1)."""
        sink = self._sink
        if sink.state is not _OPEN and (sink.state is not _CLOSING or opcode != CLOSE):
            return  # what comes after a close frame is ignored
        if payload.__class__ is bytes:
            raise WebSocketError(WSCloseCode.PROTOCOL_ERROR, "a client's frame must be masked")
        if opcode == TEXT and fin and not compressed and not self._fragmented:
            if sink.stalled:
                self._inbox.hold(WSMessage(WSMsgType.TEXT, bytes(payload), ""))
            elif payload.isascii():  # not by on_message(), because nearly all are
                sink.messages_in += 1
                owner = sink.owner
                text = owner.endpoint.text
                text(owner, payload)
            else:
                sink.on_message(TEXT, payload)
        elif opcode in _PROBES:
            sink.last_message = sink.last_read
            if not sink.on_control():
                raise WebSocketError(FLOOD.code, FLOOD.reason)
            if opcode == PING:
                sink.on_ping(bytes(payload))
        else:
            # While there is an allowance every fragment counts: 64 KiB can be very many.
            if not (fin or (payload and sink.allowance is None) or sink.on_control()):
                raise WebSocketError(FLOOD.code, FLOOD.reason)
            self._check_fragments(fin, opcode)
            self._fragments = (self._fragments or 0) + len(payload)
            WebSocketReader._handle_frame(self, fin, opcode, payload, compressed)

    def _check_fragments(self, fin: bool, opcode: int) -> None:
        """Refuse a new message inside a fragmented one (RFC 6455 section 5.4).

        aiohttp only does so if the fragmented one has had a byte.
        """
        if opcode == CONTINUATION:
            self._fragmented = self._fragmented and not fin
        elif opcode in (TEXT, BINARY):
            if self._fragmented:
                raise WebSocketError(WSCloseCode.PROTOCOL_ERROR, "a new message inside a fragmented one")
            self._fragmented = not fin
