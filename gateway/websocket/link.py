"""One WebSocket, from its 101 to its one end: aiohttp's `web.WebSocketResponse`, with a way in and out of our own.

aiohttp's heartbeat timers and `receive()` are used. A message is handed over while it is parsed (`reader`), frames
leave by the cork (`outbox`), and once the link is open one method changes the state. The first end wins and carries its
cause.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self, cast

from aiohttp import WSMessage, WSMsgType, web
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_websocket import WebSocketError

from gateway import errors
from gateway.errors import Disconnect
from gateway.limits import Bucket
from gateway.websocket import opening, writer
from gateway.websocket.cork import CORK_BYTES, Cork
from gateway.websocket.deflate import text_message
from gateway.websocket.frames import (
    BINARY,
    PONG,
    SHORT_TEXT,
    Payload,
    State,
    Written,
    close_frame,
    cut,
    frame,
    text_frame,
)
from gateway.websocket.heartbeat import SECOND_LOOK, Heartbeat
from gateway.websocket.outbox import HIGH_WATER
from gateway.websocket.owner import NO_OWNER, Closings, Owner, Regime, Watcher
from gateway.websocket.reader import Inbox, Reader
from gateway.websocket.turns import Turns

_OPENING, _OPEN, _CLOSING, _FLUSHING, _CLOSED = State
_HELD_BACK: Final = (WSMsgType.CONTINUATION, WSMsgType.TEXT, WSMsgType.BINARY)


class Link(Heartbeat):
    """One WebSocket of the server's side, with a bounded outbox and a named end.

    Call ``upgrade(request)`` and then ``await run()``, which returns when it is over; both once. Everything else
    is a plain call and may be made at any time. Before the opening and after the end it does nothing.
    """

    # With more than 30 attributes an instance has a dictionary of its own (1.5 KB): some of aiohttp's are slots, too.
    __slots__ = (
        "_autoclose",
        "_autoping",
        "_closings",
        "_compress",
        "_controls",
        "_decode_text",
        "_deflater",
        "_headers",
        "_inbox",
        "_max_msg_size",
        "_over",
        "_protocols",
        "_receive_timeout",
        "_timeout",
        "_writer_limit",
        "allowance",
        "bytes_in",
        "ended",
        "last_message",
        "messages_in",
        "owner",
        "watched_messages",
        "watched_octets",
        "watcher",
    )

    __hash__ = object.__hash__  # aiohttp has the same in Python, and it is asked for three times a connection

    def __init__(self, owner: Owner[Link], cork: Cork, regime: Regime, closings: Closings) -> None:
        super().__init__(cork, regime)
        self.owner = owner
        self._deflater: WebSocketWriter | None = None
        self._closings = closings
        self._over: asyncio.Future[None] | None = None
        self._controls: Bucket | None = None
        self.allowance: int | None = None
        """Bytes that are still accepted from the peer; None for any number."""
        self.ended: Disconnect | None = None
        self.last_message = 0.0
        self.watcher: Watcher | None = None
        self.messages_in = self.bytes_in = self.watched_messages = self.watched_octets = 0

    # The opening

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Do what `upgrade` does. The name and the form are aiohttp's."""
        return self.upgrade(request)

    def upgrade(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write the 101, open the link, and start reading. Raises ConnectionResetError if the peer has left.

        The request must have been admitted by `handshake.upgrade`. The 101 leaves together with the owner's first
        frames. aiohttp's own 101, a response with headers and signals, would cost a third of a connect.
        """
        if self._payload_writer is not None:
            return self._payload_writer
        handler: Any = request.protocol
        if handler.transport is None:
            raise ConnectionResetError("Connection lost")
        head, self._deflater = opening.answer(request, handler, self._regime)
        self._compress = self._deflater.compress if self._deflater else 0
        request.writer.output_size += len(head)  # so that aiohttp never writes an error page into the stream
        self._req, self._payload_writer = request, request.writer
        self.loop = self._loop = handler._loop  # asyncio.get_running_loop() makes a system call before Python 3.12
        self.transport = handler.transport
        self.flow = handler
        self._open(request, handler, head)
        return request.writer

    def _open(self, request: web.BaseRequest, handler: Any, head: bytes) -> None:
        """Open the link. Messages may arrive inside of ``take_over``, so everything else comes before it."""
        self._writer = writer.for_aiohttp(self)
        self.last_read = self.last_message = self.loop.time()
        self._reset_heartbeat()
        self._inbox = Inbox(self, self._regime.max_message_bytes)
        self._reader = self._inbox
        self.transport.set_write_buffer_limits(HIGH_WATER)
        parser = Reader(self, self._inbox, self._regime.max_message_bytes, bool(self._compress))
        self._parser = parser
        self.state = _OPEN
        # The head leaves with the first frames, but is HTTP. The flush below takes it, so the cork need not know of it.
        self.corked, self.corked_bytes = [head], len(head)
        self._messages_out, self._bytes_out = -1, -len(head)
        opening.slim(request, handler, self)
        try:
            self.owner.on_open(self)
        except Exception as error:
            self.fail(error)
        self.flush()
        self._bytes_out = max(0, self._bytes_out)  # the peer may be gone already, and nothing was written
        if isinstance(handler, opening.RequestProtocol):
            handler.upgraded()
        parser.take_over(handler)

    # The life

    async def run(self) -> Self:
        """Return the link when the transport is gone, or at once if it was never opened. Cancelling it aborts the link.

        The reader hands messages over. Only two things are handled here: the receive timeout, and the messages that
        were held back because the peer does not read its replies, each of them after a drain.
        """
        if self.state is _OPENING:
            return self
        patience = self._regime.receive_timeout
        suspected = False
        try:
            while self.state is not _CLOSED:
                try:
                    message = await self.receive(patience)
                except TimeoutError:
                    if self.waits:
                        self.last_message = self.loop.time()
                    left = self._regime.receive_timeout - (self.loop.time() - self.last_message)
                    if left <= 0:
                        left = self._standstill.left()
                    if left <= 0 and suspected:
                        self.end(errors.RECEIVE_TIMEOUT)
                    # Messages do not pass through receive(), so the time of the last one counts. After a busy
                    # iteration look again, when what has come has been read.
                    suspected = left <= 0
                    patience = max(left, SECOND_LOOK)
                    continue
                if message.type in _HELD_BACK:
                    await self._catch_up(message)
        except asyncio.CancelledError:
            self.end(errors.SHUTDOWN)
            self.abort()
            raise
        finally:
            # Break the cycle of link and inbox, so that both are freed now and not by the garbage collector.
            self._reader = None
            if self.state is _CLOSED:
                del self._inbox
        return self

    async def _catch_up(self, held: WSMessage) -> None:
        """Write what was kept, and handle what was held back, no faster than the peer takes the replies."""
        if not await self._taken():
            return
        if held.type is not WSMsgType.CONTINUATION and self.state is _OPEN:
            try:
                self.on_message(int(held.type), held.data)
            except Exception as error:
                self.fail(error)
            if self.watcher is not None:
                self.watcher.after_read(self.owner)
            self.flush()
        if self._inbox.holds:
            return
        if self.pump():
            self._outbox_emptied()
            self.owner.on_drained(self)
        else:
            self._inbox.hold()
        if self.stalled and self.may_be_read:
            self._read_on()

    def _read_on(self) -> None:
        """Read the peer again, after `stall`."""
        self.last_message = self.loop.time()  # until now nothing was read, so nothing could come
        self.stalled = False
        if self._parser is not None:
            cast(Reader, self._parser).go_on()

    async def _taken(self) -> bool:
        """Write what was kept until all is written, or the peer may be read again.

        Returns False if the transport is closing or gone.
        """
        while not self.pump():
            if self.transport.is_closing():
                return False
            if self.stalled and self.may_be_read:
                return True
            try:
                await cast(Any, self.flow)._drain_helper()
            except ConnectionError:
                return False
        return True

    def on_message(self, opcode: int, data: Payload) -> None:
        """Take one whole message from the reader, while the link is open."""
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
        """Count a frame that is no message. Returns False if there are too many."""
        rate = self._regime.control_rate
        if rate is None:
            return True
        if self._controls is None:
            self._controls = Bucket(rate, self.last_read)
        return not self._controls.take(self.last_read)

    def on_ping(self, payload: bytes) -> None:
        """Answer a ping at once, whatever the owner is busy with."""
        self.put_control(frame(PONG, payload))

    def wait(self) -> None:
        """Read no more from the peer until `go_on`, because another peer has to read first. Once for each such peer."""
        self.waits += 1
        if self._parser is not None:
            cast(Reader, self._parser).pause()

    def go_on(self) -> None:
        """End one `wait`. Does nothing if the link is over."""
        self.waits -= 1
        if self.waits or self._parser is None:
            return
        self.last_read = self.last_message = self.loop.time()
        self.loop.call_soon(cast(Reader, self._parser).go_on)

    def on_blocked(self) -> None:
        """Have `run` write what is kept, and tell the owner."""
        self._count_from_here()
        self._inbox.hold()
        self.owner.on_blocked(self)

    def stall(self) -> None:
        """Read no more from the peer until it has taken its own replies."""
        self.stalled = True
        if self._parser is not None:
            cast(Reader, self._parser).pause()

    @property
    def past(self) -> Written:
        """What the owner has had written past the outbox."""
        return self.owner.past

    @property
    def turns(self) -> Turns:
        """The time that the reader shares with others while there is an allowance."""
        return self._regime.turns

    @property
    def handshake_left(self) -> float | None:
        """Seconds that the handshake may still take, while ``on_open`` runs; None if it has no deadline."""
        return self.flow.time_left() if isinstance(self.flow, opening.RequestProtocol) else None

    def send_text(self, payload: Payload) -> None:
        """Send one text message, compressed if that was negotiated and is worth it."""
        if self.state is not _OPEN:
            return
        size = len(payload)
        data = SHORT_TEXT[size] + payload if size < 126 else text_message(self._deflater, payload)
        corked = self.corked
        if corked is None:
            self.put(data)
            return
        corked.append(data)  # as put() does, but without the head, and what compression saves
        self.corked_bytes += size
        if self.corked_bytes > CORK_BYTES:
            self.flush()

    def pass_on(self, payload: Payload) -> None:
        """Send one text message that comes from others. If the peer does not read, its own replies overtake it.

        Not if compression was negotiated: a message may be compressed with what the one before it had in common. While
        the link is not blocked this is `send_text`.
        """
        if self._kept is None or self._deflater is not None:
            self.send_text(payload)
        else:
            self.pass_frame_on(text_frame(payload))

    # The end

    def end(self, end: Disconnect) -> None:
        """End the link, for the reason given. The first end wins, and later ones do nothing."""
        if self.state is not _OPEN:
            return
        self.ended = end
        if end.frame:
            self._move(_CLOSING)
            self.put_last(close_frame(end.code, end.reason))
        else:
            self._move(_FLUSHING)
            self.transport.abort()

    def fail(self, error: BaseException) -> None:
        """End the link because of what the parser, or the owner, has raised.

        The stream is out of step then, so the peer's close frame is not awaited. This side is shut, and what still
        comes is dropped until the peer shuts its own. A closed socket with unread data would be reset, and the reset
        would overtake the close frame.
        """
        if isinstance(error, WebSocketError):
            error.__traceback__ = None  # the parser keeps the error, and the traceback would keep the parser
            end = errors.disconnect_for(error.code)
            # After a colon aiohttp quotes bytes of the peer's.
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
        else:  # TLS has no half-close, so its own closing takes the place
            self._move(_FLUSHING)
            transport.close()

    def abort(self) -> None:
        """Drop the transport at once, whatever is in the outbox."""
        if self.state is _OPEN:
            self.end(errors.TRANSPORT_LOST)
        elif self.state is _CLOSING or self.state is _FLUSHING:
            self.transport.abort()

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Close with any code, as aiohttp's own call does, and wait for the end: ``close_timeout`` at most.

        Returns whether this call has closed the link. The cause in the log is `closed_by_operator`.
        """
        if self.state is not _OPEN:
            return False
        self.end(errors.CLOSED_BY_OPERATOR._replace(code=code, reason=message.decode("utf-8", "replace")))
        self._over = self.loop.create_future()
        await self._over
        return True

    def on_peer_close(self, code: int, reason: str) -> None:
        """Answer the peer's close frame with its own code, or with 1002 if that may not be on the wire."""
        if self.state is _OPEN:
            if code and not errors.may_be_on_the_wire(code):
                self.ended = errors.PROTOCOL_ERROR._replace(reason=f"close code {code} must not be sent")
                self.put_last(close_frame(self.ended.code, self.ended.reason))
            else:
                self.ended = errors.closed_by_peer(code or errors.NO_STATUS, reason)
                self.put_last(close_frame(code or None))
        # Under the standard library's TLS a second close() disables abort(): never call it twice.
        if self.state is _OPEN or self.state is _CLOSING:
            self.pump(everything=True)
            self._move(_FLUSHING)
            self.transport.close()

    def on_peer_eof(self) -> None:
        """Note the peer's FIN. The transport closes itself, but would wait for its flush without limit."""
        if self.state is _OPEN:
            self.ended = errors.TRANSPORT_LOST
        if self.state is not _CLOSED:
            self._move(_FLUSHING)

    def on_lost(self) -> None:
        """Note that the transport is gone. Every link ends here, once."""
        if self.state is _CLOSED:
            return
        self._move(_CLOSED)
        end = self.ended = self.ended or errors.TRANSPORT_LOST
        self._close_code = end.code
        self.discard()
        self.on_whole()
        self._closed = True
        self._writer = writer.SPENT
        self._parser = None
        self._inbox.wake()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        owner, self.owner = self.owner, NO_OWNER
        owner.on_closed(self, end)

    def _move(self, state: State) -> None:
        """Change the state after the opening. Each state that waits for the peer has the close timeout."""
        was_open = self.state is _OPEN
        self.state = state
        if was_open:
            self._cancel_heartbeat()
            self.owner.on_blocked(self)
            # Not now: this may be in the middle of a loop over many connections.
            self.loop.call_soon(self.owner.on_ending, self)
        if state is _CLOSED:
            self._closings.done(self)
        else:
            self._closings.begin(self)
