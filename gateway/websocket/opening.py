"""From the request to the frames: the protocol of a request, the head of the 101, and what is not needed after it.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import msgspec
from aiohttp import hdrs, web
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.websocket.deflate import negotiate
from gateway.websocket.owner import Regime

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b%b\r\n"
)
NO_HEADERS: Final[CIMultiDict[str]] = CIMultiDict()
"""The headers of every link, which are not to be changed."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_NO_HEADERS_PROXY: Final = CIMultiDictProxy(NO_HEADERS)
NO_STATE: Final[Any] = MappingProxyType({})
"""What a request and a link have for the user's own items, which nobody sets on them."""

_NO_MESSAGES: Final[deque[Any]] = deque(maxlen=0)


def coroutine_function(function: FunctionT) -> FunctionT:
    """Mark a plain function that returns a coroutine: aiohttp takes no other plain functions as handlers.

    An ``async def`` around it would hold its frame as long as the connection lives.
    """
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    marked: Any = function
    coroutines: Any = asyncio.coroutines
    marked._is_coroutine = coroutines._is_coroutine
    return function


class Head(msgspec.Struct, gc=False):
    """A request head as aiohttp's parser has it, but one that can let go of what it has."""

    method: str
    path: str
    version: Any
    headers: Any
    raw_headers: Any
    should_close: bool
    compression: str | None
    upgrade: bool
    chunked: bool
    url: Any

    def clear(self) -> None:
        """Let go of what is large."""
        self.headers = self.raw_headers = self.url = None


_fields_of: Final = attrgetter(*Head.__struct_fields__)


class Heads(deque[Any]):
    """aiohttp's queue of requests, which hands out copies of their heads.

    A local variable of aiohttp's `RequestHandler.start` holds what was handed out as long as the connection lives. The
    parser's own heads cannot be cleared, and are 1.5 KB.
    """

    __slots__ = ()

    def popleft(self) -> tuple[Any, Any]:
        """Return the next head and its payload."""
        head, payload = super().popleft()
        return Head(*_fields_of(head)) if head.__class__ is RawRequestMessage else head, payload


class RequestProtocol(web.RequestHandler):
    """aiohttp's RequestHandler, with a say in what becomes of a request's bytes.

    It gets no bytes after the upgrade: see `reader.Reader.take_over`.
    """

    __slots__ = ()

    remote: str
    """The peer's address, as the log has it."""

    # The slot behind aiohttp's property of this name: each write reads it twice.
    writing_paused = cast(Any, web.RequestHandler)._paused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connection, as aiohttp does, but without two steps that are done elsewhere.

        The event loops set TCP_NODELAY themselves. And a peer that sends no request has the listener's deadline, so
        that aiohttp's timer for it would be made and cancelled in vain.
        """
        self._messages = Heads()
        stream: Any = transport  # not every event loop's transports inherit from asyncio.Transport
        manager: Any = self._manager
        self.transport = stream
        manager.connection_made(self, stream)
        self._task_handler = self._loop.create_task(self.start())

    def data_received(self, data: bytes) -> None:
        """Pass bytes of a request on, unless `request_bytes` says otherwise."""
        if self.request_bytes(data):
            super().data_received(data)

    @property
    def has_more(self) -> bool:
        """Whether another whole request has come, and waits for its turn."""
        return bool(self._messages)

    def never_connected(self) -> None:
        """Let go of aiohttp's parser, which refers back. For a protocol that never had ``connection_made`` called."""
        self._parser = None

    def time_left(self) -> float | None:
        """Return the seconds that the handshake may still take, or None if it has no deadline. For subclasses."""
        return None

    def upgraded(self) -> None:
        """Note that the 101 is written: from now on the bytes are frames. For subclasses."""

    def request_bytes(self, data: bytes) -> bool:
        """Return whether these bytes of a request are to be parsed. For subclasses."""
        return True


def answer(request: web.BaseRequest, handler: Any, regime: Regime) -> tuple[bytes, WebSocketWriter | None]:
    """Return the head of the 101 that answers a request, and what compresses if that was negotiated."""
    deflater, extension = negotiate(request, handler) if regime.compression else (None, b"")
    protocol = subprotocol(request, regime.subprotocols)
    return switching(request.headers[hdrs.SEC_WEBSOCKET_KEY], protocol, extension), deflater


def subprotocol(request: web.BaseRequest, known: Container[str]) -> bytes:
    """Choose the first subprotocol that a request offers and that is known (RFC 6455 section 4.2.2).

    Returns a whole header line with its CRLF, or nothing if there is none.
    """
    if hdrs.SEC_WEBSOCKET_PROTOCOL not in request.headers:
        return b""
    offered: Iterable[str] = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL)).split(",")
    chosen = next((name for name in map(str.strip, offered) if name in known), None)
    return b"" if chosen is None else b"Sec-WebSocket-Protocol: %b\r\n" % chosen.encode()


def switching(key: str, protocol: bytes, extension: bytes) -> bytes:
    """Return the head of the 101 that answers ``Sec-WebSocket-Key: key`` (RFC 6455 section 4.2.2).

    ``protocol`` and ``extension`` are each a whole header line with its CRLF, or empty.
    """
    accept = binascii.b2a_base64(hashlib.sha1(key.strip().encode() + _GUID).digest(), newline=False)
    return _SWITCHING % (accept, protocol, extension)


def slim(request: Any, handler: Any, response: Any) -> None:
    """Let a request, its protocol and its response go of what only the handshake needed."""
    response._headers = NO_HEADERS
    response._state = NO_STATE
    if isinstance(request._message, Head):
        request._message.clear()
    request._message = None
    request._headers = _NO_HEADERS_PROXY
    request._cache = {}
    request._state = NO_STATE
    request._transport_peername = request._transport_sockname = None
    handler._cache = {}  # it has both of these, too
    handler._parser = None
    handler._current_request = None  # or it would be told when the connection is lost, for the sake of its body
    handler._messages = _NO_MESSAGES
