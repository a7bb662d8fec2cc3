"""One WebSocket, from its welcome to its end. It does not know what the messages mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import aiohttp
import msgspec
from aiohttp import WSMsgType
from msgspec import Raw
from yarl import URL

from gateway.client.endings import CLOSED, LOST, UNAUTHENTICATED, End, refusal, unanswered
from gateway.client.errors import UNKNOWN, ConnectionLost
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

_MAX_SAID: Final = 200
_SAID_TIMEOUT: Final = 1.0
"""Seconds for the text of a refusal, whose status is known already."""


class Incoming(jsonrpc.Message, gc=False):
    """A message from the gateway.

    ``context`` comes with the calls to a node that has asked for it, ``stream`` with calls that are streams.
    """

    context: Raw = jsonrpc.ABSENT
    stream: Raw = jsonrpc.ABSENT


class Options(NamedTuple):
    """How to connect; times are seconds.

    ``url`` is an `address`, and ``proxy`` the URL of the HTTP proxy before it, or None. ``heartbeat`` is the silence
    after which the gateway is pinged. If it does not answer within half of that time the link is lost.
    """

    url: str
    ssl: ssl.SSLContext | bool
    heartbeat: float
    connect_timeout: float
    close_timeout: float
    max_message_bytes: int
    proxy: str | None = None


class Refused(Exception):
    """An attempt gave no link. ``end`` says why."""

    def __init__(self, end: End) -> None:
        super().__init__(str(end))
        self.end = end


T = TypeVar("T")
_LEVELS: Final = 1000

_decode: Final = msgspec.json.Decoder(Incoming).decode
_decode_batch: Final = msgspec.json.Decoder(list[Incoming]).decode


def deeply(decode: Callable[[bytes], T], data: bytes) -> T:
    """Decode JSON that is nested as deeply as a gateway bears.

    That may be more than what the functions that run leave of Python's recursion limit. It is the fault of whoever has
    sent the value, and not a reason to give up the link on which it came. Raises what ``decode`` raises.
    """
    try:
        return decode(data)
    except RecursionError:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + _LEVELS)
        try:
            return decode(data)
        finally:
            sys.setrecursionlimit(limit)


class Frame(NamedTuple):
    """What has come at once: one message, or a ``batch`` of them. ``octets`` is its size."""

    messages: list[Incoming]
    octets: int
    batch: bool


class Link:
    """One WebSocket to the gateway. ``welcome`` is the params of its first message."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse[Any], close_timeout: float) -> None:
        self._ws = ws
        self._socket: socket.socket | None = ws.get_extra_info("socket")
        self._closing = asyncio.Lock()
        self._giving_up: asyncio.Task[None] | None = None
        self._end: End | None = None
        self.close_timeout: Final = close_timeout
        self.welcome: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        """Whether nothing is known of its end."""
        return self._end is None and not self._ws.closed

    # Sending

    async def write(self, data: bytes) -> None:
        """Write one JSON text, and wait while the gateway reads too slowly. Raises `ConnectionLost`."""
        try:
            await self._ws.send_frame(data, WSMsgType.TEXT)
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(End(LOST, _text(error)), UNKNOWN) from error
        except Exception as error:
            logger.exception("the link has a defect")
            self.give_up(End(LOST, "a defect of this client"))
            raise ConnectionLost(self.end, UNKNOWN) from error

    def give_up(self, end: End) -> None:
        """End the link, because it is of no use any more; the task that reads it sees that."""
        if self._end is None:
            self._end = end
            self._giving_up = asyncio.create_task(self._shut())

    # Receiving

    async def receive(self) -> Frame | None:
        """Return the next frame; None once the link has ended. For one reader."""
        while self._end is None:
            message = await self._ws.receive()
            match message.type:
                case WSMsgType.TEXT:
                    if (frame := self._decoded(message.data)) is not None:
                        return frame
                case WSMsgType.BINARY:
                    continue
                case WSMsgType.CLOSE:
                    # 1005 stands for a close frame without a code (RFC 6455 section 7.4.1).
                    self._finish(End(message.data or 1005, str(message.extra or "")))
                case WSMsgType.CLOSING:
                    self._finish(CLOSED)
                case _:
                    self._finish(self._lost())
        return None

    def _decoded(self, data: bytes) -> Frame | None:
        single = data[:1] == b"{"
        try:
            messages = [deeply(_decode, data)] if single else deeply(_decode_batch, data)
        except jsonrpc.UNDECODABLE as error:
            self._finish(End(1002, f"the gateway sent no JSON-RPC: {error}"))
            return None
        return Frame(messages, len(data), not single)

    def _lost(self) -> End:
        """Return the end of a link without a close frame: its transport is lost, or the gateway broke RFC 6455."""
        code, error = self._ws.close_code, self._ws.exception()
        if code in (1002, 1007, 1009):
            return End(code, "" if error is None else _text(error))
        silent = isinstance(error, aiohttp.ServerTimeoutError)
        return End(LOST, "the gateway does not answer" if silent else "the transport was lost")

    def _finish(self, end: End) -> None:
        if self._end is None:
            self._end = end

    @property
    def end(self) -> End:
        """Why the link ended; before that, the end that stands for a lost transport."""
        return self._end or End(LOST)

    async def close(self, end: End = CLOSED) -> None:
        """Close the link and release everything. Takes ``close_timeout`` at most.

        A link that is lost gets no close frame: if it arrived after all, it would end what another link can go on with.
        """
        self._finish(end)
        try:
            # Both `Connection.leave` and the task that reads come here; the second waits for the first.
            async with self._closing:
                await self._shut()
            if self._giving_up is not None:
                await self._giving_up
        finally:
            self._cut()

    async def _shut(self) -> None:
        if self.end.code == LOST:
            self._cut()
        # aiohttp's own timeout is for the other side's close frame, and does not bound the writing of ours.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.close_timeout):
                await self._ws.close()

    def _cut(self) -> None:
        """End TCP. By itself the transport would wait until a gateway that hangs has read what was sent to it."""
        with contextlib.suppress(OSError):
            if self._socket is not None and (number := self._socket.fileno()) >= 0:
                # asyncio's and uvloop's own objects have no `shutdown` to be relied on.
                with socket.socket(fileno=os.dup(number)) as same:
                    same.shutdown(socket.SHUT_RDWR)


def open_session() -> aiohttp.ClientSession:
    """Return a session for `open_link`. It shares nothing with other sessions, and keeps no cookies."""
    # `trust_env` would also take credentials for the gateway from ~/.netrc, and does not know HTTPS_PROXY for wss.
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), middlewares=(_upgraded,), timeout=aiohttp.ClientTimeout()
    )


async def open_link(session: aiohttp.ClientSession, token: str | None, options: Options) -> Link:
    """Connect and receive the welcome, with a session of `open_session`. Raises `Refused`."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url, phase = URL(options.url), "no answer"
    if options.proxy is not None:
        url = url.with_scheme("https" if url.scheme == "wss" else "http")  # which proxies know
    try:
        async with asyncio.timeout(options.connect_timeout):
            ws = await session.ws_connect(
                url,
                headers=headers,
                heartbeat=options.heartbeat,
                timeout=aiohttp.ClientWSTimeout(ws_close=options.close_timeout),
                max_msg_size=options.max_message_bytes,
                decode_text=False,
                ssl=options.ssl,
                proxy=options.proxy,
            )
            phase = "no gateway.welcome"
            return await _welcomed(Link(ws, options.close_timeout))
    except TimeoutError:
        raise Refused(End(LOST, f"{phase} within {options.connect_timeout:g} s")) from None
    except (aiohttp.ClientError, OSError) as error:
        raise Refused(unanswered(error, secure=url.scheme in ("wss", "https"))) from None


async def _upgraded(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send the upgrade. Raises `Refused` for every answer but 101.

    Otherwise aiohttp would follow redirects, and connect once more at once if it was cut.
    """
    try:
        response = await send(request)
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError) as error:
        raise Refused(unanswered(error, secure=request.is_ssl())) from None
    if response.status == 101:
        return response
    try:
        raise Refused(refusal(response.status, await _said(response), response.headers))
    finally:
        response.close()


async def _said(response: aiohttp.ClientResponse) -> str:
    """Return the line with which the gateway explains a refusal; empty if there is none."""
    if response.content_type != "text/plain":
        return ""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_SAID_TIMEOUT):
            return (await response.content.read(_MAX_SAID)).decode("ascii", "replace").strip()
    return ""


async def _welcomed(link: Link) -> Link:
    try:
        frame = await link.receive()
        while frame is not None and not frame.messages:
            frame = await link.receive()
        if frame is None:
            raise Refused(link.end)
        first = frame.messages[0]
        if first.method != "gateway.welcome":
            raise Refused(End(1002, "the first message is no gateway.welcome"))
        try:
            link.welcome = msgspec.json.decode(first.params, type=dict[str, Any])
        except jsonrpc.UNDECODABLE:
            raise Refused(End(1002, "the gateway.welcome cannot be read")) from None
        if link.welcome.get("principal") is None:
            raise Refused(End(UNAUTHENTICATED, "the gateway wants a credential"))
    except BaseException:
        await link.close()
        raise
    return link


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
