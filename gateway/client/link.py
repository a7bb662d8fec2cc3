"""One WebSocket, from its welcome to its end. It does not know what the messages mean."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from aiohttp import WSMsgType
from msgspec import Raw
from yarl import URL

from gateway.client.endings import CLOSED, LOST, UNAUTHENTICATED, End, refusal, unanswered
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, ConnectionLost, failure
from gateway.client.pending import OnReply, Pending, PendingTable, Progress
from gateway.errors import INVALID_REQUEST
from gateway.rpc import jsonrpc

MAX_POSTED: Final = 1000
"""How many messages of `Link.post` may wait while the gateway does not read; with one more the link is given up."""

_MAX_SAID: Final = 200
_SAID_TIMEOUT: Final = 1.0
"""Seconds for the text of a refusal, whose status is known already."""


class Incoming(jsonrpc.Message, gc=False):
    """A message from the gateway. ``context`` comes with the calls to a node that has asked for it."""

    context: Raw = jsonrpc.ABSENT


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


_decode: Final = msgspec.json.Decoder(Incoming).decode
_decode_batch: Final = msgspec.json.Decoder(list[Incoming]).decode


class Link:
    """One WebSocket to the gateway.

    ``welcome`` is the params of its first message; ``draining`` says whether the gateway has announced its end;
    ``pending`` has the requests that are not answered.
    """

    def __init__(
        self, ws: aiohttp.ClientWebSocketResponse[Any], ids: itertools.count[int], close_timeout: float
    ) -> None:
        self._ws = ws
        self._socket: socket.socket | None = ws.get_extra_info("socket")
        self._ids = ids
        self._close_timeout = close_timeout
        self._closing = asyncio.Lock()
        self._posts: set[asyncio.Task[None]] = set()
        self._end: End | None = None
        self.pending = PendingTable()
        self.welcome: dict[str, Any] = {}
        self.draining = False

    @property
    def usable(self) -> bool:
        """Whether new requests may be sent."""
        return self._end is None and not self.draining and not self._ws.closed

    def limit(self, name: str, default: int) -> int:
        """Return one of the limits in the welcome; ``default`` if it names no such limit."""
        value = self.welcome.get("limits", {}).get(name)
        return value if isinstance(value, int) else default

    # Sending

    async def request(
        self, method: str, params: Raw | None, *, on_reply: OnReply | None = None, progress: Progress | None = None
    ) -> Any:
        """Send a request and return its result. Raises `CallError`. Cancelling the task cancels the request too."""
        request_id = b"%d" % next(self._ids)
        pending = Pending(on_reply, progress)
        self.require_size(data := jsonrpc.request(request_id, method, params))
        (result,) = await self._exchange(data, {request_id: pending})
        if isinstance(result, BaseException):
            raise result
        return result

    async def batch(self, requests: list[tuple[str, Raw | None]]) -> list[Any]:
        """Send requests in one message; return for each its result or its `CallError`.

        Raises `CallError` if the message cannot be sent at all.
        """
        pending = {b"%d" % next(self._ids): Pending() for _ in requests}
        parts = [jsonrpc.request(request_id, *request) for request_id, request in zip(pending, requests, strict=True)]
        self.require_size(data := jsonrpc.batch(parts))
        most = self.limit("maxBatch", len(parts))
        if len(parts) > most:
            raise failure(INVALID_REQUEST, f"a batch of more than {most}", outcome=NOT_DELIVERED)
        return await self._exchange(data, pending)

    async def _exchange(self, data: bytes, requests: dict[bytes, Pending]) -> list[Any]:
        """Send the message and wait for all answers. If this is cancelled, so are the requests, at the gateway too."""
        for request_id, pending in requests.items():
            self.pending.enter(request_id, pending)
        try:
            await self.send(data)
            return await asyncio.gather(*(pending.answer for pending in requests.values()), return_exceptions=True)
        finally:
            for request_id, pending in requests.items():
                if self.pending.drop(request_id) and self._end is None:
                    self.post(jsonrpc.notification("rpc.cancel", {"id": int(request_id)}))
                pending.forget()

    async def send(self, data: bytes) -> None:
        """Send one JSON text, and wait while the gateway reads too slowly. Raises `ConnectionLost`."""
        if self._end is not None or self._ws.closed:
            raise ConnectionLost(self._end or End(LOST), NOT_DELIVERED)
        try:
            await self._ws.send_frame(data, WSMsgType.TEXT)
        except (aiohttp.ClientError, OSError) as error:
            # Some of it may have left before that.
            raise ConnectionLost(End(LOST, _text(error)), UNKNOWN) from error

    def post(self, data: bytes) -> None:
        """Send one JSON text without waiting. If the link is lost, so is the text."""
        if len(self._posts) < MAX_POSTED:
            self._spawn(self._post(data))
        elif self._end is None:
            self._finish(End(LOST, "the gateway does not read"))
            self._spawn(self._shut())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def _post(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionLost):
            await self.send(data)

    def check_size(self, data: bytes) -> bool:
        """Whether the gateway takes a message of this size; a larger one would end the link with 1009."""
        return len(data) <= self.limit("maxMessageBytes", len(data))

    def require_size(self, data: bytes) -> None:
        """Raise `CallError` for a message that the gateway would not take."""
        if not self.check_size(data):
            detail = f"a message of {len(data)} bytes; the gateway takes {self.limit('maxMessageBytes', 0)}"
            raise failure(INVALID_REQUEST, detail, outcome=NOT_DELIVERED)

    # Receiving

    async def receive(self) -> list[Incoming]:
        """Return the messages of the next frame; an empty list once the link has ended. For one reader."""
        while self._end is None:
            message = await self._ws.receive()
            match message.type:
                case WSMsgType.TEXT:
                    if messages := self._decoded(message.data):
                        return messages
                case WSMsgType.BINARY:
                    continue
                case WSMsgType.CLOSE:
                    # 1005 stands for a close frame without a code (RFC 6455 section 7.4.1).
                    self._finish(End(message.data or 1005, str(message.extra or "")))
                case WSMsgType.CLOSING:
                    self._finish(CLOSED)
                case _:
                    self._finish(self._lost())
        return []

    def _decoded(self, data: bytes) -> list[Incoming]:
        try:
            return [_decode(data)] if data[:1] == b"{" else _decode_batch(data)
        except jsonrpc.UNDECODABLE as error:
            self._finish(End(1002, f"the gateway sent no JSON-RPC: {error}"))
            return []

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
            self.pending.fail_all(lambda: ConnectionLost(end, UNKNOWN))

    @property
    def end(self) -> End:
        """Why the link ended; before that, the end that stands for a lost transport."""
        return self._end or End(LOST)

    async def close(self, end: End = CLOSED) -> None:
        """Close the link and release everything. Requests without an answer fail. Takes ``close_timeout`` at most."""
        self._finish(end)
        try:
            # Both `Connection.leave` and the task that reads come here; the second waits for the first.
            async with self._closing:
                await self._shut()
        finally:
            self._cut()
            posts = list(self._posts)
            for task in posts:
                task.cancel()
            await asyncio.gather(*posts, return_exceptions=True)

    async def _shut(self) -> None:
        # aiohttp's own timeout is for the other side's close frame, and does not bound the writing of ours.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
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


async def open_link(
    session: aiohttp.ClientSession, token: str | None, options: Options, ids: itertools.count[int]
) -> Link:
    """Connect and receive the welcome, with a session of `open_session`. Raises `Refused`.

    ``ids`` gives the ids of requests; it goes on from link to link.
    """
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
            return await _welcomed(Link(ws, ids, options.close_timeout))
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
        messages = await link.receive()
        if not messages:
            raise Refused(link.end)
        first = messages[0]
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
