"""One WebSocket on aiohttp: `web.WebSocketResponse` with a bounded outbox, a short way in, and a named end.

aiohttp's handshake, `heartbeat`, `receive_timeout` and `receive()` stay. A message is handed over while it is parsed
(`reader`), frames leave by the cork (`outbox`), and one state is changed in one place: the first end wins and carries
its cause. With `reader` this is the only code that leans on aiohttp's insides;
`tests/websocket/test_aiohttp_insides.py` fails on the day that one of them changes.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from collections import deque
from typing import Any, Final, Protocol, cast

from aiohttp import ClientConnectionResetError, WSMessage, WSMsgType, hdrs, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import ZLibBackend
from aiohttp.http import ws_ext_gen, ws_ext_parse
from aiohttp.http_websocket import WebSocketError
from multidict import CIMultiDict, CIMultiDictProxy

from gateway import errors
from gateway.deadlines import Deadlines
from gateway.errors import Disconnect
from gateway.limits import Bucket, Rate
from gateway.websocket.frames import (
    BINARY,
    CLOSE,
    NOTHING_WRITTEN,
    PONG,
    RSV1,
    SHORT_TEXT,
    TEXT,
    Payload,
    State,
    Written,
    close_frame,
    cut,
    frame,
    text_frame,
)
from gateway.websocket.outbox import CORK_BYTES, Cork, Outbox
from gateway.websocket.reader import HasEndpoint, Inbox, Reader, RequestProtocol, Turns

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)

DEFLATE_FROM: Final = 1024
"""Payload bytes from which a negotiated permessage-deflate is used; below it costs more than it saves."""

_, _OPEN, _CLOSING, _FLUSHING, _CLOSED = State
_SECOND_LOOK: Final = 0.02
_HELD_BACK: Final = (WSMsgType.CONTINUATION, WSMsgType.TEXT, WSMsgType.BINARY)
_DEFLATE_TRAILING: Final = b"\x00\x00\xff\xff"
_NO_HEADERS: Final[CIMultiDict[str]] = CIMultiDict()
_NO_HEADERS_PROXY: Final = CIMultiDictProxy(_NO_HEADERS)
_NO_MESSAGES: Final[deque[Any]] = deque(maxlen=0)


class Owner(HasEndpoint, Protocol):
    """The connection that a link works for. Nothing here may block.

    Each call says which link speaks: a connection may have got another one meanwhile.
    """

    def on_open(self, link: Link) -> None:
        """The 101 is written; frames may be sent. Called once, before the first message.

        If it raises, or a call of the endpoint does, `on_defect` is called, and the link ends with 1011.
        """

    def on_defect(self, error: BaseException) -> None:
        """A message could not be handled, because of a defect of ours."""

    @property
    def past(self) -> Written:
        """What was written to the transport of its link past the outbox, and is not counted there yet."""

    def on_blocked(self, link: Link) -> None:
        """Nothing may be written past it: the peer does not read, or the end has begun. May be called again."""

    def on_drained(self, link: Link) -> None:
        """The peer has read so much that frames leave at once again. Called when they did not before."""

    def on_ending(self, link: Link) -> None:
        """It is no longer open. Called once, in the next event-loop iteration."""

    def on_closed(self, link: Link, end: Disconnect) -> None:
        """The transport is gone. Called once, the last of all calls."""


class Regime(Protocol):
    """The limits that one link lives under; times in seconds, sizes in bytes."""

    @property
    def heartbeat_interval(self) -> float:
        """Silence after which the peer is pinged."""

    @property
    def heartbeat_timeout(self) -> float:
        """Silence after the ping that means death."""

    @property
    def receive_timeout(self) -> float:
        """Time without a complete message or a control frame."""

    @property
    def close_timeout(self) -> float:
        """Time for the peer to answer a close frame, and for the outbox to leave."""

    @property
    def max_message_bytes(self) -> int:
        """Inclusive."""

    @property
    def max_outbox_bytes(self) -> int:
        """Over it for ``outbox_timeout``, or over twice of it at once: cut."""

    @property
    def outbox_timeout(self) -> float:
        """See ``max_outbox_bytes``."""

    @property
    def control_rate(self) -> Rate | None:
        """Pings, pongs and empty fragments; None: any number."""

    @property
    def compression(self) -> bool:
        """Whether permessage-deflate may be negotiated."""

    @property
    def turns(self) -> Turns:
        """What all with an allowance may take of a loop pass."""


class Closings(Deadlines["Link"]):
    """The links that wait for their peer to close, or for their outbox to leave: ``close_timeout`` each."""

    __slots__ = ()

    def __init__(self, close_timeout: float) -> None:
        super().__init__(close_timeout, Link.abort)


class Link(Outbox, web.WebSocketResponse):
    """One WebSocket, of the server's side, with a bounded outbox and a named end.

    ``await prepare(request)``, then ``await run()`` until it is over, both once. Everything else is a plain call and
    may be made at any time, before the opening and after the end as well: then it does nothing.
    """

    # Past 30 attributes an instance has a dictionary of its own (1.5 KB); some that the base class sets are here too.
    __slots__ = (
        "_autoclose",
        "_autoping",
        "_closings",
        "_compress",
        "_controls",
        "_decode_text",
        "_deflater",
        "_drained_at_ping",
        "_headers",
        "_heartbeat",
        "_inbox",
        "_last_taken",
        "_max_msg_size",
        "_over",
        "_pinged_at",
        "_pong_heartbeat",
        "_protocols",
        "_receive_timeout",
        "_regime",
        "_timeout",
        "_writer_limit",
        "allowance",
        "bytes_in",
        "ended",
        "last_message",
        "last_read",
        "messages_in",
        "owner",
    )

    def __init__(self, owner: Owner, cork: Cork, regime: Regime, closings: Closings) -> None:
        web.WebSocketResponse.__init__(
            self,
            timeout=regime.close_timeout,
            receive_timeout=regime.receive_timeout,
            heartbeat=regime.heartbeat_interval,
            autoclose=False,
            compress=regime.compression,
            decode_text=False,
        )
        Outbox.__init__(self, cork, regime.max_outbox_bytes, regime.outbox_timeout)
        # When to look after a ping. aiohttp fixes it at half of the heartbeat, and takes it for the deadline as well.
        self._pong_heartbeat = min(regime.heartbeat_timeout, regime.heartbeat_interval)
        self.owner = owner
        self._regime = regime
        self._deflater: WebSocketWriter | None = None
        self._closings = closings
        self._over: asyncio.Future[None] | None = None
        self._pinged_at = 0.0
        self._drained_at_ping = 0
        self._last_taken = -1.0
        self._controls: Bucket | None = None
        self.allowance: int | None = None
        """Bytes that are still accepted from the peer; None: any number."""
        self.ended: Disconnect | None = None
        self.last_read = 0.0
        self.last_message = 0.0
        self.messages_in = 0
        self.bytes_in = 0

    # The opening

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Upgrade: write the 101, open, and start reading. Raises ConnectionResetError where the peer has left.

        The request must have been admitted by `handshake.upgrade`. The 101 leaves together with what the owner says
        first. aiohttp's own way there, by a response with headers and signals, costs a third of a connect.
        """
        if self._payload_writer is not None:
            return self._payload_writer
        handler = cast(Any, request.protocol)
        if handler.transport is None:
            raise ConnectionResetError("Connection lost")
        extension = self._negotiate(request, handler)
        head = _SWITCHING % (_accept(request.headers[hdrs.SEC_WEBSOCKET_KEY]), extension)
        writer = request.writer
        writer.output_size += len(head)  # so that aiohttp never writes an error page into the stream
        self._req = request
        self._payload_writer = writer
        self.loop = self._loop = asyncio.get_running_loop()
        self.transport = handler.transport
        self.flow = handler
        self._open(request, handler, head)
        return writer

    def _negotiate(self, request: web.BaseRequest, handler: Any) -> bytes:
        """RFC 7692 section 5: the 101's extension header, empty without compression."""
        compress, notakeover = 0, False
        if self._regime.compression:
            offered = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, []))
            compress, notakeover = ws_ext_parse(offered, isserver=True)
        self._compress = compress
        if not compress:
            return b""
        self._deflater = WebSocketWriter(handler, handler.transport, compress=compress, notakeover=notakeover)
        accepted = ws_ext_gen(compress=compress, isserver=True, server_notakeover=notakeover)
        return f"{hdrs.SEC_WEBSOCKET_EXTENSIONS}: {accepted}\r\n".encode()

    def _open(self, request: web.BaseRequest, handler: Any, head: bytes) -> None:
        """Messages may arrive inside ``take_over``, so all else comes before it."""
        self._writer = cast(WebSocketWriter, _Writer(self))
        self.last_read = self.last_message = self.loop.time()
        self._reset_heartbeat()
        self._inbox = Inbox(self, self._regime.max_message_bytes)
        self._reader = cast(WebSocketDataQueue, self._inbox)
        parser = Reader(self, self._inbox, self._regime.max_message_bytes, bool(self._compress))
        self._parser = cast(WebSocketReader, parser)
        self._move(_OPEN)
        self.put_control(head)
        self._bytes_out = -len(head)  # it leaves with the first frames, but is HTTP
        self._slim(request, handler)
        try:
            self.owner.on_open(self)
        except Exception as error:
            self.fail(error)
        self.flush()
        self._bytes_out = max(0, self._bytes_out)  # the peer may be gone already, and nothing was written
        if isinstance(handler, RequestProtocol):
            handler.upgraded()
        parser.take_over(handler)

    def _slim(self, request: Any, handler: Any) -> None:
        """Let go of what only the handshake needed."""
        request._message = None
        request._headers = _NO_HEADERS_PROXY
        request._cache = {}
        handler._parser = None
        handler._messages = _NO_MESSAGES
        self._headers = _NO_HEADERS

    # The life

    async def run(self) -> None:
        """Return when the transport is gone. Cancelling it aborts the connection.

        Messages are handed over by the reader; here arrive only the receive timeout, and what was held back because the
        peer does not read its replies, each after a drain.
        """
        patience = self._regime.receive_timeout
        suspected = False
        try:
            while self.state is not _CLOSED:
                try:
                    message = await self.receive(patience)
                except TimeoutError:
                    left = self._regime.receive_timeout - (self.loop.time() - self.last_message)
                    if left <= 0 and suspected:
                        self.end(errors.RECEIVE_TIMEOUT)
                    # Messages do not pass through receive(): believe the time of the last one. And after a pass that
                    # took long, look again when what is there has been read.
                    suspected = left <= 0
                    patience = max(left, _SECOND_LOOK)
                    continue
                if message.type in _HELD_BACK:
                    await self._catch_up(message)
        except asyncio.CancelledError:
            self.end(errors.SHUTDOWN)
            self.abort()
            raise
        finally:
            # Break the cycle between the two, so that both are freed now and not by the collector some day.
            self._reader = None
            if self.state is _CLOSED:
                del self._inbox

    async def _catch_up(self, held: WSMessage) -> None:
        """Handle what was held back, no faster than the peer takes the replies."""
        if not await self._drained():
            return
        if held.type is not WSMsgType.CONTINUATION and self.state is _OPEN:
            try:
                self.on_message(int(held.type), held.data)
            except Exception as error:
                self.fail(error)
            self.flush()
        if self._inbox.holds:
            return
        if not self.pump():
            self._inbox.hold()
            return
        if self.drained > self._drained_at_ping:
            self._last_taken = self.loop.time()
        self.stalled = False
        self.owner.on_drained(self)
        if self._parser is not None and not self.stalled:
            cast(Reader, self._parser).go_on()

    async def _drained(self) -> bool:
        """Wait until all that was kept is written; False where the transport is on its way out."""
        while not self.pump():
            if self.transport.is_closing():
                return False
            try:
                await cast(Any, self.flow)._drain_helper()
            except ConnectionError:
                return False
        return True

    def on_message(self, opcode: int, data: Payload) -> None:
        """From the reader: one whole message, while the connection is open."""
        self.messages_in += 1
        owner = self.owner
        if opcode == BINARY:
            owner.endpoint.binary(owner, data)
            return
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.end(errors.INVALID_UTF8)
                return
        owner.endpoint.text(owner, data)

    def on_control(self) -> bool:
        """From the reader: a frame that is no message; False where there are too many."""
        rate = self._regime.control_rate
        if rate is None:
            return True
        if self._controls is None:
            self._controls = Bucket(rate, self.last_read)
        return not self._controls.take(self.last_read)

    def on_ping(self, payload: bytes) -> None:
        """From the reader: answered at once, whatever the owner is busy with."""
        self.put_control(frame(PONG, payload))

    def stall(self) -> None:
        """The peer does not read: read no more of it until it does."""
        self.stalled = True
        # The kernel takes no more: from now on what it takes is a sign of life.
        self._drained_at_ping = max(self._drained_at_ping, self.drained)
        self._inbox.hold()
        if self._parser is not None:
            cast(Reader, self._parser).pause()
        self.owner.on_blocked(self)

    @property
    def past(self) -> Written:
        """What the owner has had written past the outbox."""
        return self.owner.past

    @property
    def turns(self) -> Turns:
        """Whose time the reader takes as long as there is an allowance."""
        return self._regime.turns

    @property
    def handshake_left(self) -> float | None:
        """Seconds that are left of the handshake's time, while ``on_open`` runs; None where nobody counts them."""
        return self.flow.time_left() if isinstance(self.flow, RequestProtocol) else None

    def send_text(self, payload: Payload) -> None:
        """Send one text message, compressed where that was negotiated and is worth it."""
        if self.state is not _OPEN:
            return
        size = len(payload)
        if size < 126:
            data = SHORT_TEXT[size] + payload
        elif self._deflater is None or size < DEFLATE_FROM:
            data = text_frame(payload)
        else:
            data = frame(TEXT, _deflate(self._deflater, payload), RSV1)
        corked = self.corked
        if corked is None:
            self.put(data)
            return
        corked.append(data)  # as put() does, but for the head, and for what compression saves
        self.corked_bytes += size
        if self.corked_bytes > CORK_BYTES:
            self.flush()

    # The heartbeat is aiohttp's own, but for two things: a byte from the peer is noted when it is read instead of by a
    # callback for each read, and nobody is called dead while it is this side that does not read.

    def _send_heartbeat(self) -> None:
        self._heartbeat_when = max(self._heartbeat_when, self.last_read + self._regime.heartbeat_interval)
        now = self.loop.time()
        if now >= self._heartbeat_when:
            self._pinged_at = now
            self._drained_at_ping = self.drained
        super()._send_heartbeat()

    def _pong_not_received(self) -> None:
        # After a blocked pass some loops run timers before they read: judge when what is there has been read.
        self._pong_response_cb = self.loop.call_later(_SECOND_LOOK, self._judge_life)

    def _judge_life(self) -> None:
        self._pong_response_cb = None
        if self.state is not _OPEN:
            return
        now = self.loop.time()
        deadline = self._pinged_at + self._regime.heartbeat_timeout
        if self.last_read >= self._pinged_at:
            alive_at = self.last_read
        elif now < deadline:
            look = min(now + self._regime.heartbeat_interval, deadline + _SECOND_LOOK)
            self._pong_response_cb = self.loop.call_at(look, self._judge_life)
            return
        elif self._last_taken >= self._pinged_at or (self.stalled and self.drained > self._drained_at_ping):
            alive_at = now
        else:
            self.end(errors.HEARTBEAT_TIMEOUT)
            return
        self._heartbeat_when = alive_at + self._regime.heartbeat_interval
        self._heartbeat_cb = self.loop.call_at(self._heartbeat_when, self._send_heartbeat)

    def _handle_ping_pong_exception(self, exc: BaseException) -> None:
        """A ping could not be written: the transport is closing, and its end is on the way."""

    # The end

    def end(self, end: Disconnect) -> None:
        """End the connection, for the reason given. The first end wins, later ones do nothing."""
        if self.state is not _OPEN:
            return
        self.ended = end
        if end.frame:
            self._move(_CLOSING)
            self.put_control(close_frame(end.code, end.reason))
            self.flush()
        else:
            self._move(_FLUSHING)
            self.transport.abort()

    def fail(self, error: BaseException) -> None:
        """From the reader: end the connection because of what the parser, or the owner, raised.

        The stream is out of step after it, so the peer's close frame is not awaited: this side is shut, and what still
        comes is dropped until the peer shuts its own (a closed socket with unread data would be reset, and the reset
        would overtake the close frame).
        """
        if isinstance(error, WebSocketError):
            error.__traceback__ = None  # the parser keeps the error, and the traceback would keep the parser
            end = errors.disconnect_for(error.code)
            # Behind a colon aiohttp has bytes of the peer's.
            reason = cut(str(error).partition(":")[0])
            self.end(end._replace(reason=reason) if end is errors.PROTOCOL_ERROR else end)
        else:
            self.owner.on_defect(error)
            self.end(errors.INTERNAL_FAILURE)
        transport = self.transport
        if self.state is not _CLOSING or transport.is_closing():
            return
        self.pump(everything=True)
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS has no half-close: its own farewell takes the place
            self._move(_FLUSHING)
            transport.close()

    def abort(self) -> None:
        """Drop the transport at once, whatever is in the outbox."""
        if self.state is _OPEN:
            self.end(errors.TRANSPORT_LOST)
        elif self.state is _CLOSING or self.state is _FLUSHING:
            self.transport.abort()

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Aiohttp's own call: close with any code and wait for the end, ``close_timeout`` at most.

        Returns whether this call was the one that closed. The cause in the log is `closed_by_operator`.
        """
        if self.state is not _OPEN:
            return False
        self.end(errors.CLOSED_BY_OPERATOR._replace(code=code, reason=message.decode("utf-8", "replace")))
        self._over = self.loop.create_future()
        await self._over
        return True

    def on_peer_close(self, code: int, reason: str) -> None:
        """From the reader: answer with the peer's own code, or with 1002 where that may not be on the wire."""
        if self.state is _OPEN:
            if code and not errors.may_be_on_the_wire(code):
                self.ended = errors.PROTOCOL_ERROR._replace(reason=f"close code {code} must not be sent")
                self.put_control(close_frame(self.ended.code, self.ended.reason))
            else:
                self.ended = errors.CLIENT_CLOSE._replace(code=code or errors.NO_STATUS, reason=reason)
                self.put_control(close_frame(code or None))
            self.flush()
        # Under the standard library's TLS a second close() disables abort(): never call it twice.
        if self.state is _OPEN or self.state is _CLOSING:
            self.pump(everything=True)
            self._move(_FLUSHING)
            self.transport.close()

    def on_peer_eof(self) -> None:
        """From the reader: a FIN. The transport closes itself, but would wait for its flush without limit."""
        if self.state is _OPEN:
            self.ended = errors.TRANSPORT_LOST
        if self.state is not _CLOSED:
            self._move(_FLUSHING)

    def on_lost(self) -> None:
        """From the reader: the transport is gone. Every connection ends here, once."""
        if self.state is _CLOSED:
            return
        self._move(_CLOSED)
        end = self.ended = self.ended or errors.TRANSPORT_LOST
        self._close_code = end.code
        self.discard()
        self._set_closed()
        self._writer = _SPENT_WRITER
        self._parser = None
        self._inbox.wake()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        owner, self.owner = self.owner, _NOBODY
        owner.on_closed(self, end)

    def _move(self, state: State) -> None:
        """Change the state; each one that waits for the peer has the close timeout."""
        was_open = self.state is _OPEN
        self.state = state
        if was_open:
            self.owner.on_blocked(self)
            # Not now: this may be in the middle of a loop over many connections.
            self.loop.call_soon(self.owner.on_ending, self)
        if state is _CLOSED:
            self._closings.done(self)
        elif state is not _OPEN:
            self._cancel_heartbeat()
            self._closings.begin(self)


class _Writer:
    """What aiohttp's own calls write to: its heartbeat, and ``ping``, ``pong``, ``send_str`` and their like."""

    __slots__ = ("_link",)

    def __init__(self, link: Link | None) -> None:
        self._link = link

    async def send_frame(self, message: bytes, opcode: int, compress: int | None = None) -> None:
        """Send one frame; a data frame waits while the peer does not read. Raises ConnectionError when it is over."""
        link = self._link
        if link is None or link.state is not _OPEN:
            raise ClientConnectionResetError("Cannot write to closing transport")
        if opcode >= CLOSE:
            link.put_control(frame(opcode, message))
            return
        link.send_frame_bytes(frame(opcode, message))
        if link.flow.writing_paused:
            await cast(Any, link.flow)._drain_helper()

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, while there is one."""
        return None if self._link is None else self._link.transport


class _Nobody:
    """The owner of a link that is over, and its endpoint."""

    past = NOTHING_WRITTEN

    @property
    def endpoint(self) -> _Nobody:
        return self

    def text(self, connection: object, data: Payload) -> None: ...
    def binary(self, connection: object, data: Payload) -> None: ...
    def on_open(self, link: Link) -> None: ...
    def on_defect(self, error: BaseException) -> None: ...
    def on_blocked(self, link: Link) -> None: ...
    def on_drained(self, link: Link) -> None: ...
    def on_ending(self, link: Link) -> None: ...
    def on_closed(self, link: Link, end: Disconnect) -> None: ...


_SPENT_WRITER: Final = cast(WebSocketWriter, _Writer(None))
_NOBODY: Final = _Nobody()


def _accept(key: str) -> bytes:
    """RFC 6455 section 4.2.2."""
    return binascii.b2a_base64(hashlib.sha1(key.strip().encode() + _GUID).digest(), newline=False)


def _deflate(writer: WebSocketWriter, payload: Payload) -> bytes:
    """RFC 7692 section 7.2.1, with the compressor that aiohttp negotiated."""
    compressor = writer._get_compressor(None)
    mode = ZLibBackend.Z_FULL_FLUSH if writer.notakeover else ZLibBackend.Z_SYNC_FLUSH
    return (compressor.compress_sync(payload) + compressor.flush(mode)).removesuffix(_DEFLATE_TRAILING)
