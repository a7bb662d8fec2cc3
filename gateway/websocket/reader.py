"""The way in: aiohttp's frame parser, in slices, past its queue, and with the checks that it leaves out.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol, cast

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.http_websocket import WebSocketError
from aiohttp.streams import EofStream

from gateway.errors import FLOOD
from gateway.websocket.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Payload, State
from gateway.websocket.outbox import Cork
from gateway.websocket.owner import HasEndpoint
from gateway.websocket.turns import Turns

SLICE: Final = 32 * 1024
"""Bytes parsed in one go. What a read brings beyond it waits for the next loop pass: no peer starves another."""

_OPEN, _CLOSING, _CLOSED = State.OPEN, State.CLOSING, State.CLOSED
_PROBES: Final = frozenset({PING, PONG})
_FED: Final = (False, b"")
_GO_ON: Final = WSMessage(WSMsgType.CONTINUATION, b"", "")


class Sink(Protocol):
    """The link that is read for."""

    state: State
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cork: Cork
    corked: list[bytes] | None
    stalled: bool
    last_read: float
    last_message: float
    messages_in: int
    bytes_in: int
    allowance: int | None

    @property
    def turns(self) -> Turns:
        """Whose time it takes as long as it has an allowance."""

    @property
    def owner(self) -> HasEndpoint:
        """Who is told."""

    def flush(self) -> None:
        """Write what the messages of a read have corked."""

    def on_message(self, opcode: int, data: Payload) -> None:
        """One whole message. What it raises arrives in `fail`."""

    def on_control(self) -> bool:
        """A ping, a pong or an empty fragment; False where there are too many."""

    def on_ping(self, payload: bytes) -> None:
        """A ping, to be answered."""

    def full(self) -> None:
        """The transport takes no more."""

    def on_peer_close(self, code: int, reason: str) -> None:
        """The peer's close frame; code 0 where it has none."""

    def on_peer_eof(self) -> None:
        """The peer's FIN."""

    def on_lost(self) -> None:
        """The transport is gone."""

    def fail(self, error: BaseException) -> None:
        """The stream cannot be parsed any further, or a message could not be handled."""


class Inbox(WebSocketDataQueue):
    """What ``receive()`` waits on, and where aiohttp's parser puts what it has assembled.

    The base class's own fields stay unset: nothing is queued here but what is held back.
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
        """Hold a message back for ``receive()``; without one, only wake it."""
        if self._held is None:
            self._held = deque()
        self._held.append(message)
        self.wake()

    def wake(self) -> None:
        """Let ``read`` look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def read(self) -> WSMessage:
        """The next message that was held back; raises EofStream when the transport is gone."""
        while not self._held:
            self._held = None
            if self._sink.state is _CLOSED:
                raise EofStream
            self._wake = self._sink.loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._held.popleft()

    def feed_data(self, data: Any, size: int) -> None:
        """From the parser: a message of several frames, a compressed one, or a close frame."""
        sink = self._sink
        if data[0] is WSMsgType.CLOSE:
            sink.on_peer_close(data[1], data[2])
        elif size > self._max_message_bytes:  # of a compressed message aiohttp lets a byte more pass
            sink.fail(WebSocketError(WSCloseCode.MESSAGE_TOO_BIG, "message too big"))
        elif sink.stalled:
            self.hold(data)
        else:
            sink.on_message(int(data[0]), data[1])

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """From the parser: the stream is out of step."""
        self._sink.fail(exc)

    def feed_eof(self) -> None:
        """From aiohttp's ``connection_lost``, by way of the parser."""
        self._sink.on_lost()


class Reader(WebSocketReader):
    """Hands messages over while it parses; ``max_message_bytes`` is inclusive. Once: ``take_over``.

    Flow control: a read larger than a slice, and a peer that does not read its replies, pause the transport.
    """

    __slots__ = ("_at", "_backlog", "_fragmented", "_handler", "_inbox", "_paused", "_scheduled", "_sink")

    _handler: Any

    def __init__(self, sink: Sink, inbox: Inbox, max_message_bytes: int, compress: bool) -> None:
        super().__init__(inbox, max_message_bytes + 1, compress, False)
        self._sink = sink
        self._inbox = inbox
        self._fragmented = False
        self._paused = False
        self._scheduled = False
        self._backlog = b""
        self._at = 0

    def take_over(self, handler: web.RequestHandler) -> None:
        """Be the transport's protocol from now on, and begin with what aiohttp has read beyond the request.

        aiohttp's own, ``handler``, stays what knows of the transport's end and of its write buffer. As the protocol it
        would hand on each read by two calls, and drop all that a bare runner reads while it shuts down.
        """
        self._handler = handler
        if handler.transport is not None:
            handler.transport.set_protocol(cast(asyncio.Protocol, self))
        handler.set_parser(self)
        handler.keep_alive(False)

    # The transport's protocol (asyncio.Protocol)

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """One read of the socket."""
        sink = self._sink
        sink.last_read = sink.loop.time()
        sink.bytes_in += len(data)
        if sink.allowance is None and not self._paused and len(data) <= SLICE:
            self._parse(data)
        else:
            self._take_in_turn(data)

    def eof_received(self) -> None:
        """A FIN; asyncio closes the transport after it."""
        self._sink.on_peer_eof()

    def pause_writing(self) -> None:
        """From the transport, within a write that takes its buffer over the high-water mark."""
        self._handler.pause_writing()
        self._sink.full()

    def resume_writing(self) -> None:
        """The write buffer is under its low-water mark."""
        self._handler.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is gone."""
        self._handler.connection_lost(exc)

    # From there to the parser

    def feed_data(self, data: bytes | bytearray | memoryview) -> tuple[bool, bytes]:
        """From ``set_parser``: what came with the request, or after it."""
        self.data_received(data)
        return _FED

    def _take_in_turn(self, data: bytes | bytearray | memoryview) -> None:
        """A read that is large, or comes while nothing is to be read, or from a peer that may not send much yet."""
        sink = self._sink
        if sink.allowance is None:
            self._take(data)
        elif sink.turns.over and not self._paused and len(data) <= sink.allowance:  # else kept it would be too much
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
        """Parse one slice of what is left of a read; with nothing left, read again. Harmless at any time."""
        self._scheduled = False
        sink = self._sink
        if sink.stalled or sink.state is _CLOSED:
            return
        if self._backlog:
            begin, self._at = self._at, self._at + SLICE
            piece = self._backlog[begin : self._at]
            if self._at >= len(self._backlog):
                self._backlog = b""
                self._at = 0
            self._parse(piece)
            if sink.stalled:
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
        if sink.corked is not None:
            sink.flush()
        if cork.due:
            cork.end_read()

    def _ahead(self, sink: Sink, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """What is left of a read once a peer that may not send much yet has had it parsed: none of it is kept."""
        while sink.allowance is not None and sink.state is not _CLOSED and not self._paused and len(data) > SLICE:
            self._parse(data[:SLICE])
            data = data[SLICE:]
        return data if sink.allowance is None or sink.allowance >= 0 else b""

    def _allowed(self, sink: Sink, size: int) -> bool:
        """Whether so many bytes more are accepted of a peer that may not send much yet. The parser would keep them."""
        left = sink.allowance = (sink.allowance or 0) - size
        if left >= 0:
            return True
        if sink.state is _OPEN:
            sink.fail(WebSocketError(WSCloseCode.MESSAGE_TOO_BIG, "message too big"))
        return False

    def _handle_frame(self, fin: bool, opcode: int, payload: bytes | bytearray, compressed: int) -> None:
        """One frame. aiohttp unmasks into a bytearray; bytes are what came without a mask (RFC 6455 section 5.1)."""
        sink = self._sink
        if sink.state is not _OPEN and (sink.state is not _CLOSING or opcode != CLOSE):
            return  # nothing behind a close frame is acted upon
        if payload.__class__ is bytes:
            raise WebSocketError(WSCloseCode.PROTOCOL_ERROR, "a client's frame must be masked")
        if opcode == TEXT and fin and not compressed and not self._fragmented:
            if sink.stalled:
                self._inbox.hold(WSMessage(WSMsgType.TEXT, bytes(payload), ""))
            elif payload.isascii():  # short of on_message(), for nearly all are
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
            # Before the credential every fragment counts: 64 KiB can be very many.
            if not (fin or (payload and sink.allowance is None) or sink.on_control()):
                raise WebSocketError(FLOOD.code, FLOOD.reason)
            self._check_fragments(fin, opcode)
            WebSocketReader._handle_frame(self, fin, opcode, payload, compressed)

    def _check_fragments(self, fin: bool, opcode: int) -> None:
        """RFC 6455 section 5.4; aiohttp sees a new message inside a fragmented one only where that has had a byte."""
        if opcode == CONTINUATION:
            self._fragmented = self._fragmented and not fin
        elif opcode in (TEXT, BINARY):
            if self._fragmented:
                raise WebSocketError(WSCloseCode.PROTOCOL_ERROR, "a new message inside a fragmented one")
            self._fragmented = not fin
