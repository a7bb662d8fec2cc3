"""Where connections come in: sockets, TLS, an accept loop of our own, and one deadline for the whole handshake.

asyncio's own server cannot bound TLS and the request head in one budget, does not name a peer that never got through,
and logs a traceback for every accept that finds no file descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from gateway.deadlines import Deadlines
from gateway.handshake.proxies import format_address
from gateway.handshake.rejections import Rejections, Stage
from gateway.websocket.opening import RequestProtocol

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that the kernel queues for one socket; it takes no more than net.core.somaxconn."""

READ_BYTES: Final = 64 * 1024
"""What the standard library's loop reads at once. Its own 256 KiB is over malloc's threshold: every read of a few bytes
would map, shrink and unmap memory, three system calls more."""

MAX_HEAD: Final = 32 * 1024
"""Bytes of a whole request head. aiohttp bounds each of its lines, and how many there are: together a megabyte."""

HEAD_END: Final = b"\r\n\r\n"
_ACCEPTS: Final = 64
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE: Final = 0.5
_PAUSE_LOG: Final = 60.0

_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 26\r\n\r\nrequest head over 32 KiB \n"
)


class Handshake:
    """One peer between its accept and its 101; ``drop`` is what ends it when the deadline passes."""

    __slots__ = ("drop", "remote", "stage")

    def __init__(self, remote: str, stage: Stage) -> None:
        self.remote = remote
        self.stage: Stage = stage
        self.drop: Callable[[], None] = _nothing


def _nothing() -> None:
    """A handshake that is not under way yet."""


class Handshakes(Deadlines[Handshake]):
    """The peers that are in their handshake. Who is late is logged, with the stage, and dropped.

    Where ``most`` are under way, the one that has been longest goes for each that comes.
    """

    __slots__ = ("_most", "_rejections")

    def __init__(self, timeout: float, rejections: Rejections, most: int = 10_000) -> None:
        super().__init__(timeout, self._late)
        self._rejections = rejections
        self._most = most

    def accepted(self, handshake: Handshake) -> None:
        """The time of one that was just accepted begins."""
        if len(self) >= self._most:
            oldest = self.oldest()
            self.done(oldest)
            self._rejections.rejected(oldest.remote, "too many handshakes under way", oldest.stage)
            oldest.drop()
        self.begin(handshake)

    def drop_all(self) -> None:
        """End all that are under way; for the end of the process."""
        for handshake in self.take_all():
            handshake.drop()

    def _late(self, handshake: Handshake) -> None:
        self._rejections.late(handshake.remote, handshake.stage, self._timeout)
        handshake.drop()


class HandshakeProtocol(RequestProtocol):
    """An HTTP connection whose every request head has the handshake deadline."""

    __slots__ = ("_cut_short", "_handshake", "_handshakes", "_head_bytes", "_rejections", "remote")

    def __init__(self, manager: web.Server, handshake: Handshake, listener: Listener) -> None:
        super().__init__(manager, loop=listener.loop, **listener.handler_args)
        self.remote = handshake.remote
        self._handshake: Handshake | None = handshake
        self._handshakes = listener.handshakes
        self._cut_short = False
        self._head_bytes = 0
        self._rejections = listener.rejections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP, and TLS where there is any, are through."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # the standard library's; see READ_BYTES
            transport.max_size = READ_BYTES
        handshake = self._handshake
        if handshake is not None:
            handshake.stage = "request"
            # Not every loop's transports are asyncio.Transport by inheritance; all can abort.
            handshake.drop = cast(asyncio.Transport, transport).abort

    def request_bytes(self, data: bytes) -> bool:
        """On a kept-alive connection a fresh deadline begins with the next request; a head over the bound ends here."""
        if self._handshake is None:
            return True
        self._handshakes.begin(self._handshake)
        self._cut_short = not data.endswith(HEAD_END)
        end = data.find(HEAD_END)
        self._head_bytes += len(data) if end < 0 else end
        if self._head_bytes <= MAX_HEAD:
            return True
        if self.transport is not None and not self.transport.is_closing():
            self._rejections.rejected(self.remote, "the request head is over 32 KiB", "request", status=400)
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()
        return False

    def time_left(self) -> float | None:
        """Seconds of the handshake's time that are left."""
        return None if self._handshake is None else self._handshakes.left(self._handshake)

    def upgraded(self) -> None:
        """The deadline is met, for good: it never ends an open connection."""
        if self._handshake is not None:
            self._handshakes.done(self._handshake)
            self._handshake = None

    def response_begins(self) -> None:
        """The deadline of this request is met."""
        self._head_bytes = 0
        if self._handshake is not None:
            self._handshakes.done(self._handshake)
            if self._cut_short:  # the next request has begun, in the same read
                self._handshakes.begin(self._handshake)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is gone."""
        if self._handshake is not None:
            self._handshakes.done(self._handshake)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Aiohttp logs a traceback for a request that it cannot parse; that is the peer's mistake, not ours."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        exc.__traceback__ = None  # aiohttp keeps the error, and its frames would keep the connection
        # Not aiohttp's own words: they quote the request, and a credential may be in it.
        reason = f"malformed HTTP ({type(exc).__name__})"
        self._rejections.rejected(self.remote, reason, "request", status=status)
        response = web.Response(status=status, text=f"{reason}\n")
        response.force_close()
        return response


async def response_begins(request: web.Request, response: web.StreamResponse) -> None:
    """For `app.on_response_prepare`: tell the connection's deadline."""
    if isinstance(request.protocol, HandshakeProtocol):
        request.protocol.response_begins()


class Listener:
    """Accepts on listening sockets, and serves what comes in with an aiohttp server.

    ``start`` once; ``stop`` may be called twice. ``context`` may be changed at any time, for those who come later.
    """

    def __init__(
        self,
        server: web.Server,
        *,
        handler_args: Mapping[str, Any],
        handshakes: Handshakes,
        rejections: Rejections,
        context: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler_args = handler_args
        self.handshakes = handshakes
        self.rejections = rejections
        self.context = context
        self._server = server
        self._timeout = timeout
        self._sockets: list[socket.socket] = []
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._paused_logged = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept on these sockets: listening, non-blocking."""
        self._sockets = sockets
        for listening in sockets:
            self.loop.add_reader(listening, self._accept, listening)

    def stop(self) -> None:
        """Accept no more; the sockets stay as they are."""
        for listening in self._sockets:
            if listening in self._paused:
                self._paused.pop(listening).cancel()
            else:
                self.loop.remove_reader(listening)
        self._sockets = []

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            handshake = Handshake(format_address(address), "request" if self.context is None else "tls")
            task = self.loop.create_task(self._serve(sock, handshake))
            handshake.drop = partial(_cancel, task)
            self.handshakes.accepted(handshake)
            self._tasks.add(task)
            task.add_done_callback(partial(self._served, sock))

    def _served(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # before it had begun: nothing in it has closed the socket
            sock.close()

    async def _serve(self, sock: socket.socket, handshake: Handshake) -> None:
        """Hand the socket to aiohttp, through TLS where that is on; returns when the connection is made."""
        context = self.context
        # asyncio's own limit for TLS stands behind the handshake's, which comes first and is logged.
        timeout = None if context is None else self._timeout + 1.0
        protocol = HandshakeProtocol(self._server, handshake, self)
        try:
            await self.loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=context,
                ssl_handshake_timeout=timeout,
            )
        except (OSError, asyncio.CancelledError) as error:
            sock.close()
            if handshake.stage == "tls" and not isinstance(error, asyncio.CancelledError):
                self.rejections.rejected(handshake.remote, f"TLS: {_reason(error)}", "tls", status=0)
            self.handshakes.done(handshake)
            # Else the error's frames would keep the TLS machinery, a quarter of a megabyte, for the garbage collector.
            protocol.never_connected()
            handshake.drop = _nothing
            error.__traceback__ = error.__context__ = None

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Out of file descriptors: what is open lives on, and the queue is looked at again in a moment.

        A level-triggered loop would spin, and log, until a descriptor is free.
        """
        if error.errno not in _EXHAUSTED:
            logger.error("accept failed: %s", error, extra={"event": "server.accept_failed"})
        elif self.loop.time() - self._paused_logged >= _PAUSE_LOG:
            self._paused_logged = self.loop.time()
            logger.warning(
                "cannot accept: %s; see LimitNOFILE in docs/operations.md",
                error.strerror,
                extra={"event": "server.accept_paused", "errno": errno.errorcode[error.errno]},
            )
        self.loop.remove_reader(listening)
        self._paused[listening] = self.loop.call_later(_PAUSE, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._paused[listening]
        self.loop.add_reader(listening, self._accept, listening)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).lower().replace("_", " ")
    return str(error) or type(error).__name__


def bind(host: str, port: int, unix_socket: str) -> list[socket.socket]:
    """Listening, non-blocking sockets: the Unix socket where one is named, else every address of ``host``.

    Raises OSError where an address is taken, not this machine's, or not permitted.
    """
    if unix_socket:
        return [_bind_unix(unix_socket)]
    sockets: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Where port 0 takes a free one, the host's other addresses get the same.
            taken = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            sock.bind((address[0], taken, *address[2:]))
            sock.setblocking(False)
            sock.listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_unix(path: str) -> socket.socket:
    """A Unix socket for its owner and group. One that nobody listens on any more is replaced."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


def address_of(sock: socket.socket) -> str:
    """A listening socket's address as the log has it; ``unix:`` and the path for a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    return format_address(sock.getsockname())
