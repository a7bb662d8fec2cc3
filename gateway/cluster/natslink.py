"""One connection to a NATS server: TCP, INFO, TLS, CONNECT, until its one end, which has a named cause."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import msgspec

from gateway import __version__
from gateway.cluster import natswire
from gateway.cluster.natswire import Address, Credentials, Info, Reader, WireError

PING: Final = b"PING\r\n"

SLICE: Final = 32 * 1024
"""Bytes that are handled in one event-loop iteration. uvloop reads megabytes in one iteration if they are there."""

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


class Link(asyncio.Protocol):
    """One connection to a server. ``ended`` has the reason of its end, ``stage`` says what is waited for before."""

    def __init__(
        self,
        name: str,
        gone: Callable[[], None],
        informed: Callable[[Info], None],
        forbidden: Callable[[str], None],
        failed: Callable[[bytes, Exception], None],
        *,
        handled: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self._gone = gone
        self._informed = informed
        self._forbidden = forbidden
        self._failed = failed
        self._handled = handled
        self.stage = "connection"
        self.transport: asyncio.Transport | None = None
        self.reader = Reader(self._control, failed)
        self.greeted: asyncio.Future[Info] = loop.create_future()
        self.ended: asyncio.Future[LinkError] = loop.create_future()
        self.info: Info | None = None
        self.heard = False
        """Whether anything has come since the last look."""
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._pieces: deque[bytes] = deque()
        """What has been read, and is not handled yet. Nothing is read meanwhile."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have a transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none, but has all its methods

    def secured(self, transport: asyncio.Transport | None) -> None:
        """Go on under TLS; None: the link has ended. What came before, and was not a whole line, is forgotten."""
        self.transport = transport
        most = self.reader.most
        self.reader = Reader(self._control, self._failed)
        self.reader.most = most  # servers before 2.12 need not say it again

    def data_received(self, data: bytes) -> None:
        """Have it cut into messages: `SLICE` bytes in each event-loop iteration, once there are handlers."""
        if len(data) > SLICE and self.reader.handlers:
            self._pieces = deque(data[at : at + SLICE] for at in range(0, len(data), SLICE))
            self._set_reading(False)
            self._next_piece()
            return
        self.heard = True
        try:
            self.reader.feed(data)
        except WireError as error:
            self.end(LinkError(f"{self.name}: {error}"))
        self._handled()

    def _next_piece(self) -> None:
        """Handle a piece of a large read, and the others later."""
        if self.ended.done():
            return
        if self._pieces:
            self.data_received(self._pieces.popleft())
            asyncio.get_running_loop().call_soon(self._next_piece)
        else:
            self._set_reading(True)

    def _set_reading(self, wanted: bool) -> None:
        if self.transport is not None and not self.transport.is_closing():
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the transport is gone."""
        if exc is not None:
            self.end(self.failure(exc))
        elif self.info is not None and self.info.ldm:
            self.end(LinkError(f"{self.name}: the server shut down (lame duck mode)"))
        else:
            self.end(LinkError(f"{self.name}: the server ended the connection"))

    def end(self, cause: LinkError) -> None:
        """End it now. What was not sent is discarded, by the kernel as well, and no handler is called any more."""
        if self.ended.done():
            return
        self.ended.set_result(cause)
        self.reader.handlers.clear()
        self._gone()
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:  # uvloop's TLS has none any more after the end
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
            self.transport.abort()

    def write(self, text: bytes) -> int:
        """Write, and return how many bytes wait in the transport."""
        if self.transport is None:
            return 0
        self.transport.write(text)
        return self.transport.get_write_buffer_size()

    def pong(self) -> asyncio.Future[None]:
        """Return what is done when the answer to the next ping has come. Write that ping after all before it."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        return pong

    async def until(self, what: asyncio.Future[Value]) -> Value:
        """Wait for it. Raises the cause if the link ends before."""
        either: set[asyncio.Future[Any]] = {what, self.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.ended.done():
            cause = self.ended.result()
            raise type(cause)(*cause.args)
        return what.result()

    def failure(self, error: Exception) -> LinkError:
        """Return what an exception of the transport comes to."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return RefusedError(f"{self.name}: the server's certificate is refused: {error.verify_message}")
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return RefusedError(f"{self.name}: TLS failed: {error.reason or error}")
        text = error.strerror if isinstance(error, OSError) else None
        return LinkError(f"{self.name}: {text or error}")

    def _control(self, line: bytes) -> None:
        if self.ended.done():
            return
        if line == b"PING":
            self.write(b"PONG\r\n")
        elif line == b"PONG":
            if self._pongs and not (pong := self._pongs.popleft()).done():
                pong.set_result(None)
        elif line.startswith(b"-ERR"):
            self._error(natswire.error_text(line))
        elif line != b"+OK":
            self._greet(natswire.info(line))

    def _greet(self, info: Info) -> None:
        self.info = info
        self.reader.most = info.max_payload + natswire.SLACK
        if self.greeted.done():
            self._informed(info)
        else:
            self.greeted.set_result(info)

    def _error(self, text: str) -> None:
        if text.lower().startswith("permissions violation"):
            self._forbidden(text)
        else:
            self.end((RefusedError if _REFUSED.search(text) else LinkError)(f"{self.name}: {text}"))


async def connect(link: Link, address: Address, options: Options) -> None:
    """Make a connection that may be used. Raises LinkError or RefusedError."""
    try:
        async with asyncio.timeout(options.timeout):
            await asyncio.get_running_loop().create_connection(lambda: link, address.host, address.port)
            link.stage = "INFO"
            info = await link.until(link.greeted)
            secure = address.tls or options.tls is not None or info.tls_required
            if secure:
                link.stage = "end of the TLS handshake"
                await _secure(link, info, address.host, options)
            link.stage = "answer to CONNECT"
            link.write(_connect_line(options, info, secure) + PING)
            await link.until(link.pong())
    except TimeoutError:
        raise LinkError(f"{link.name}: no {link.stage} within {options.timeout:g} s") from None
    except OSError as error:
        raise link.failure(error) from None
    except ValueError as error:  # of the credentials, or the host
        raise RefusedError(f"{link.name}: {error}") from None


async def _secure(link: Link, info: Info, host: str, options: Options) -> None:
    if not (info.tls_required or info.tls_available):
        raise RefusedError(f"{link.name}: the server does not offer TLS, and plaintext is refused")
    assert link.transport is not None
    loop, context = asyncio.get_running_loop(), options.tls or ssl.create_default_context()
    link.secured(
        await loop.start_tls(link.transport, link, context, server_hostname=host, ssl_handshake_timeout=options.timeout)
    )


def _connect_line(options: Options, info: Info, secure: bool) -> bytes:
    said: dict[str, Any] = {
        "verbose": False,
        "pedantic": False,
        "tls_required": secure,
        "name": options.name,
        "lang": "python",
        "version": __version__,
        "protocol": 1,  # INFO may come again
        "headers": info.headers,
        "no_responders": info.headers,
    }
    if options.user:
        said |= {"user": options.user, "pass": options.password}
    if options.token:
        said["auth_token"] = options.token
    if options.credentials:
        credentials = Credentials(options.credentials)
        said |= {"jwt": credentials.jwt} if credentials.jwt else {"nkey": credentials.user}
        said["sig"] = credentials.sign(info.nonce)
    return b"CONNECT %b\r\n" % msgspec.json.encode(said)
