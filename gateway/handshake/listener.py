"""Where connections come in: sockets, TLS, an accept loop of our own, and one deadline for the whole handshake.

How many may be here before they are WebSockets is in `plain`.

asyncio's own server has no common deadline for TLS and the request head, does not name a peer that never got through,
and logs a traceback for every accept that finds no file descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
import ssl
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from gateway.config import Config
from gateway.handshake.plain import Handshake, Handshakes, PlainConnections, nothing
from gateway.handshake.proxies import format_address
from gateway.handshake.rejections import Rejections
from gateway.handshake.sockets import BACKLOG, hurry
from gateway.telemetry.lines import ACCEPT_FAILED, ACCEPT_PAUSED, Lines
from gateway.websocket.opening import RequestProtocol

logger = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
"""Bytes that the standard library's event loop reads at once.

Its own 256 KiB is over malloc's threshold: every read of a few bytes would map, shrink and unmap memory, which is three
system calls more.
"""

MAX_HEAD: Final = 32 * 1024
"""Bytes of a whole request head at most. aiohttp bounds its lines and their number, which allows a megabyte."""

_PROXY_PROTOCOL: Final = (b"PROXY TCP", b"PROXY UNKNOWN", b"\r\n\r\n\0\r\nQUIT\n")
"""How the header begins that a load balancer may send before the request, in both versions of the PROXY protocol."""

HEAD_END: Final = b"\r\n\r\n"
_ACCEPTS: Final = 64
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NEVER: Final = 365 * 24 * 3600.0
_PAUSE: Final = 0.5

_BAD_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"X-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n\r\n%b"
)


class HandshakeProtocol(RequestProtocol):
    """A plain HTTP connection. Each of its requests has the handshake deadline, and each response has it again."""

    __slots__ = (
        "_cut_short",
        "_handshake",
        "_handshakes",
        "_head_bytes",
        "_plain",
        "_rejections",
        "_unread",
        "_wire",
        "remote",
    )

    def __init__(self, manager: web.Server, handshake: Handshake, listener: Listener) -> None:
        super().__init__(manager, loop=listener.loop, **listener.handler_args)
        self.remote = handshake.remote
        self._handshake: Handshake | None = handshake
        self._handshakes = listener.handshakes
        self._plain = listener.plain
        self._cut_short = False
        self._unread = False
        self._head_bytes = 0
        self._rejections = listener.rejections
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the request: TCP is through, and TLS if it is on."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # a transport of the standard library; see READ_BYTES
            transport.max_size = READ_BYTES
        handshake = self._handshake
        if handshake is not None:
            handshake.stage = "request"
            self._wire = wire = self.transport
            assert wire is not None
            handshake.drop = wire.abort
            handshake.settled = self._settled

    def request_bytes(self, data: bytes) -> bool:
        """Return whether to parse these bytes. A head over its bound, or of the PROXY protocol, ends here.

        On a kept-alive connection a fresh deadline begins with the next request.
        """
        handshake = self._handshake
        if handshake is None:
            return True
        if handshake.stage == "idle":
            self._expect(handshake)
        if not self._head_bytes and data.startswith(_PROXY_PROTOCOL):
            return self._refuse("PROXY protocol, see docs/operations.md", b"no PROXY protocol is spoken here\n")
        self._cut_short = not data.endswith(HEAD_END)
        end = data.find(HEAD_END)
        self._head_bytes += len(data) if end < 0 else end
        if self._head_bytes <= MAX_HEAD:
            return True
        return self._refuse("the request head is over 32 KiB", b"request head over 32 KiB \n")

    def _expect(self, handshake: Handshake) -> None:
        """Begin the time of a further request."""
        self._plain.works(handshake)
        handshake.stage = "request"
        self._handshakes.again(handshake)

    def _refuse(self, why: str, body: bytes) -> bool:
        """Answer with 400, once, and close. Returns False: nothing is parsed any more."""
        if self.transport is not None and not self.transport.is_closing():
            self._rejections.rejected(self.remote, why, "request", status=400)
            self.transport.write(_BAD_REQUEST % (len(body), body))
            self.transport.close()
        return False

    def time_left(self) -> float | None:
        """Return the seconds that the handshake may still take, or None after the upgrade."""
        return None if self._handshake is None else self._handshakes.left(self._handshake)

    def upgraded(self) -> None:
        """Note that the deadline is met, for good: it never ends an open connection."""
        if self._handshake is not None:
            self._let_go(self._handshake)
            self._handshake = None

    def response_begins(self) -> None:
        """Note that this request has met its deadline. Its response has a deadline of its own.

        If the response before it has not left, that one's deadline runs on: otherwise a peer that asks again and again
        would never have to read.
        """
        self._head_bytes = 0
        handshake = self._handshake
        if handshake is None or (self._unread and not self._has_left()):
            return
        self._unread = False
        self._plain.works(handshake)
        handshake.stage = "response"
        self._handshakes.again(handshake)

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Write a response, and look whether it has left. After a WebSocket's life there is nothing left to do."""
        handshake = self._handshake
        return _finished(resp) if handshake is None else self._finish_response(handshake, request, resp, start_time)

    async def _finish_response(
        self, handshake: Handshake, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._unread = not resp.keep_alive or not self._has_left()
            if self._unread:  # it is closed after this response, or the deadline will see
                self._handshakes.begin(handshake)
            else:
                self._answered(handshake)

    def _answered(self, handshake: Handshake) -> None:
        """Wait for the next request, or go on with it if it has begun already."""
        if self._cut_short or self.has_more:
            self._expect(handshake)
            return
        handshake.stage = "idle"
        self._handshakes.done(handshake)
        self._plain.idles(handshake)

    def _settled(self) -> bool:
        """Return whether a response that was still in a buffer when it was finished has left since."""
        if self._handshake is None or self._wire is None or not self._unread or not self._has_left():
            return False
        if not self._wire.is_closing():
            self._unread = False
            self._answered(self._handshake)
        return True

    def _has_left(self) -> bool:
        """Return whether all that was written is in the kernel's hands.

        Under TLS there is a transport below this one, which cannot be asked. If something waits in it, the socket takes
        no more.
        """
        wire = self._wire
        if wire is None:
            return True
        if wire.get_write_buffer_size():
            return False
        if wire.get_extra_info("ssl_object") is None:
            return True
        sock = wire.get_extra_info("socket")
        poll = select.poll()
        try:
            poll.register(sock.fileno(), select.POLLOUT)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # it is closed
            return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note that the transport is gone."""
        if self._handshake is not None:
            self._let_go(self._handshake)
        super().connection_lost(exc)

    def _let_go(self, handshake: Handshake) -> None:
        self._plain.gone(handshake)
        self._wire = None
        handshake.drop, handshake.settled = nothing, _settled_already

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that cannot be parsed, without aiohttp's traceback in the log: it is the peer's mistake."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        exc.__traceback__ = None  # aiohttp keeps the error, and its frames would keep the connection
        # Not aiohttp's own words: they quote the request, and a credential may be in it.
        reason = f"malformed HTTP ({type(exc).__name__})"
        self._rejections.rejected(self.remote, reason, "request", status=status)
        # No signal of the application is sent for it.
        response = web.Response(status=status, text=f"{reason}\n", headers={"X-Content-Type-Options": "nosniff"})
        response.force_close()
        return response


async def response_begins(request: web.Request, response: web.StreamResponse) -> None:
    """Tell the connection that its request has met its deadline. For `app.on_response_prepare`."""
    if isinstance(request.protocol, HandshakeProtocol):
        request.protocol.response_begins()


class Listener:
    """Accepts connections on listening sockets, and has an aiohttp server serve them.

    ``start`` is called once, ``stop`` may be called twice. ``context`` may be changed at any time: later connections
    use the new one.
    """

    def __init__(
        self,
        server: web.Server,
        *,
        handler_args: Mapping[str, Any],
        handshakes: Handshakes,
        plain: PlainConnections,
        rejections: Rejections,
        lines: Lines,
        context: ssl.SSLContext | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler_args = handler_args
        self.handshakes = handshakes
        self.plain = plain
        self.rejections = rejections
        self.context = context
        self._server = server
        self._sockets: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._lines = lines
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept on these sockets, which are listening and do not block."""
        self._sockets = sockets
        for listening in sockets:
            hurry(listening)
            self.loop.add_reader(listening, self._accept, listening)

    def stop(self) -> None:
        """Accept no more. The sockets stay open."""
        for listening in self._sockets:
            if listening in self._paused:
                self._paused.pop(listening).cancel()
            else:
                self.loop.remove_reader(listening)
        self._sockets = []

    def take_the_last(self) -> None:
        """Accept all that wait at this moment, and no more: the sockets are about to be closed, others have them too.

        Whatever waited at a socket when it is closed is reset.
        """
        for listening in self._sockets:
            for _ in range(BACKLOG // _ACCEPTS):
                if listening in self._paused or not self._accept(listening):
                    break
        self.stop()

    def _accept(self, listening: socket.socket) -> bool:
        """Accept a number of connections. Returns whether more may wait."""
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in _EXHAUSTED or not self.plain.make_room():
                    self._pause(listening, error)
                return False
            self._serve(sock, Handshake(format_address(address), "request" if self.context is None else "tls"))
        return True

    def _serve(self, sock: socket.socket, handshake: Handshake) -> None:
        """Hand the socket to aiohttp, through TLS if that is on."""
        context = self.context
        # Not asyncio's own limit: the handshake's deadline ends TLS, is logged, and knows of standstills.
        timeout = None if context is None else _NEVER
        protocol = HandshakeProtocol(self._server, handshake, self)
        connect = self.loop.connect_accepted_socket(lambda: protocol, sock, ssl=context, ssl_handshake_timeout=timeout)
        task = self.loop.create_task(connect)
        handshake.drop = task.cancel
        self.plain.accepted(handshake)
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, sock, protocol, handshake))

    def _served(
        self, sock: socket.socket, protocol: HandshakeProtocol, handshake: Handshake, task: asyncio.Task[Any]
    ) -> None:
        """Note that a connection is made, or that it came to nothing."""
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        sock.close()
        if handshake.stage == "tls" and isinstance(error, OSError):
            self.rejections.rejected(handshake.remote, f"TLS: {_reason(error)}", "tls", status=0)
        self.plain.gone(handshake)
        # Otherwise the error's frames would keep the TLS machinery, a quarter of a megabyte, until a collection.
        protocol.never_connected()
        handshake.drop = nothing
        if not isinstance(error, OSError | asyncio.CancelledError):
            raise error
        error.__traceback__ = error.__context__ = None

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accept nothing for a moment, because there are no file descriptors. What is open lives on.

        Otherwise the event loop, which is level-triggered, would spin and log until a descriptor is free.
        """
        if error.errno not in _EXHAUSTED:
            self._lines.log(logger, ACCEPT_FAILED, "", "accept failed: %s", error, fields={})
        else:
            why = "cannot accept: %s; see LimitNOFILE in docs/operations.md"
            fields = {"errno": errno.errorcode[error.errno]}
            self._lines.log(logger, ACCEPT_PAUSED, "", why, error.strerror, fields=fields)
        self.loop.remove_reader(listening)
        self._paused[listening] = self.loop.call_later(_PAUSE, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._paused[listening]
        self.loop.add_reader(listening, self._accept, listening)


async def _finished(resp: web.StreamResponse) -> tuple[web.StreamResponse, bool]:
    return resp, False


def _settled_already() -> bool:
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).lower().replace("_", " ")
    return str(error) or type(error).__name__


def handler_args(config: Config) -> Mapping[str, Any]:
    """Say how aiohttp handles HTTP for this application: arguments of its RequestHandler."""
    return {
        "access_log": None,
        "keepalive_timeout": config.server.keepalive_timeout,
        "tcp_keepalive": False,  # the heartbeat does its work
        "timeout_ceil_threshold": float("inf"),  # aiohttp rounds timers above it to whole seconds
        "lingering_time": 0.0,
    }
