"""One WebSocket, from its welcome to its end. It does not know what the messages mean."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import aiohttp
import msgspec
from aiohttp import WSMsgType
from msgspec import Raw
from yarl import URL

from gateway.client.endings import CLOSED, LOST, SHUTDOWN, UNAUTHENTICATED, End, refusal, unanswered
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, ConnectionLost, failure
from gateway.client.sending.outbox import Outbox, Outgoing
from gateway.client.sending.pending import Exchange, OnReply, Pending, PendingTable, Progress
from gateway.errors import INVALID_REQUEST
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

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
        self._outbox = Outbox(self._write)
        self._giving_up: asyncio.Task[None] | None = None
        self._end: End | None = None
        self.pending = PendingTable(self._outbox)
        self._limits: dict[str, int] = {}
        self.welcome: dict[str, Any] = {}
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the gateway has announced its end. Once that is set the calls that wait for a place fail."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        if draining:
            self.pending.drain(End(SHUTDOWN, "the gateway shuts down"))

    @property
    def usable(self) -> bool:
        """Whether new requests may be sent."""
        return self._end is None and not self.draining and not self._outbox.broken and not self._ws.closed

    def limit(self, name: str, default: int) -> int:
        """Return one of the limits in the welcome; ``default`` if it names no such limit."""
        return self._limits.get(name, default)

    def begin(self, welcome: dict[str, Any]) -> None:
        """Heed the welcome."""
        self.welcome = welcome
        limits = welcome.get("limits")
        if isinstance(limits, dict):
            self._limits = {name: value for name, value in limits.items() if isinstance(value, int) and value > 0}
        self._outbox.max_bytes = self._limits.get("maxMessageBytes")
        self.pending.most = self._limits.get("maxInFlight")

    # Sending

    async def request(self, method: str, params: Raw | None, *, on_reply: OnReply | None = None) -> Any:
        """Send a request of the client's own at once, and return its result.

        Raises `CallError`. Cancelling the task cancels the request too.
        """
        request_id, pending = self._id(), Pending(on_reply)
        encode = partial(jsonrpc.request, request_id, method, params)
        return await self._result(Exchange({request_id: pending}, Outgoing(), encode), self.pending.send)

    async def call(
        self,
        message: Outgoing,
        make: Callable[[], tuple[str, Raw | None]],
        progress: Progress | None = None,
        *,
        raw: bool = False,
    ) -> Any:
        """Send a request as soon as the gateway takes one more, and return its result.

        ``make`` returns the method and its params; it is called when it is time. ``raw``: see `Pending`.
        Raises and is cancelled as `request`.
        """
        request_id, pending = self._id(), Pending(progress=progress, raw=raw)
        exchange = Exchange({request_id: pending}, message, lambda: jsonrpc.request(request_id, *make()))
        return await self._result(exchange, self.pending.queue)

    async def batch(self, message: Outgoing, requests: list[tuple[str, Raw | None]]) -> list[Any]:
        """Send requests in one message as soon as the gateway takes so many; return for each its result or `CallError`.

        Raises `CallError` for more than the gateway takes in one message, and `ConnectionLost` if it was not sent.
        """
        most = self.limit("maxBatch", len(requests))
        if len(requests) > most:
            raise failure(INVALID_REQUEST, f"a batch of more than {most}", outcome=NOT_DELIVERED)
        pending = {self._id(): Pending() for _ in requests}
        parts = [jsonrpc.request(request_id, *request) for request_id, request in zip(pending, requests, strict=True)]
        exchange = Exchange(pending, message, lambda: jsonrpc.batch(parts))
        with self._begun(exchange, self.pending.queue):
            results = await asyncio.gather(*(one.answer for one in pending.values()), return_exceptions=True)
        if isinstance(results[0], ConnectionLost) and not message.left:
            raise results[0]
        return results

    def _id(self) -> bytes:
        return b"%d" % next(self._ids)

    async def _result(self, exchange: Exchange, begin: Callable[[Exchange], None]) -> Any:
        (pending,) = exchange.requests.values()
        with self._begun(exchange, begin):
            return await pending.answer

    @contextlib.contextmanager
    def _begun(self, exchange: Exchange, begin: Callable[[Exchange], None]) -> Iterator[None]:
        """Begin an exchange. What is not answered at the end of the block is cancelled, at the gateway too."""
        begin(exchange)
        try:
            yield
        finally:
            for request_id in self.pending.give_up(exchange):
                self.post(jsonrpc.notification("rpc.cancel", {"id": int(request_id)}))

    async def send(self, data: bytes, message: Outgoing | None = None) -> None:
        """Send one JSON text, and wait while the gateway reads too slowly.

        If this is cancelled before the text has left, it is not sent. Raises `CallError` for a text that is too large,
        and `ConnectionLost`. ``message`` is what to send it as, if the caller has to know whether it has left.
        """
        message = message or Outgoing()
        message.data = data
        self._outbox.put(message)
        try:
            await message.written()
        finally:
            self._outbox.withdraw(message)

    async def reply(self, data: bytes) -> None:
        """Send one JSON text as `send` does, but even if this is cancelled. If the link is lost, so is the text."""
        message = Outgoing(data)
        with contextlib.suppress(ConnectionLost):
            self._outbox.put(message)
            await message.written()

    def post(self, data: bytes) -> None:
        """Send one JSON text without waiting. If the link is lost, so is the text.

        Raises `CallError` for a text that is too large. If too much waits already, the link is given up.
        """
        with contextlib.suppress(ConnectionLost):
            self._outbox.put(Outgoing(data, posted=True))
        if self._outbox.overfull:
            self._give_up(End(LOST, "the gateway does not read"))

    def fits(self, data: bytes) -> bool:
        """Return whether the gateway takes a message of this size."""
        return self._outbox.fits(data)

    async def _write(self, data: bytes) -> None:
        try:
            await self._ws.send_frame(data, WSMsgType.TEXT)
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(End(LOST, _text(error)), UNKNOWN) from error
        except Exception as error:
            logger.exception("the link has a defect")
            self._give_up(End(LOST, "a defect of this client"))
            raise ConnectionLost(self.end, UNKNOWN) from error

    def _give_up(self, end: End) -> None:
        if self._end is None:
            self._finish(end)
            self._giving_up = asyncio.create_task(self._shut())

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
            return [deeply(_decode, data)] if data[:1] == b"{" else deeply(_decode_batch, data)
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
            self.pending.fail_all(end)
            if end is not CLOSED:
                self._outbox.stop(end)

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
            if self._giving_up is not None:
                await self._giving_up
        finally:
            self._cut()

    async def _shut(self) -> None:
        """Send what waits if this side has ended the link, and then the close frame."""
        until = asyncio.get_running_loop().time() + self._close_timeout
        if self._end is CLOSED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._close_timeout / 2):
                    await self._outbox.flush()
        await self._outbox.close(self.end)
        # aiohttp's own timeout is for the other side's close frame, and does not bound the writing of ours.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
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
            link.begin(msgspec.json.decode(first.params, type=dict[str, Any]))
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
