"""The client: calls, events and methods that go on from one connection to the next."""

from __future__ import annotations

import asyncio
import logging
import ssl as tls
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Raw
from yarl import URL

from gateway.client.backoff import Backoff
from gateway.client.buffer import Buffer
from gateway.client.calling import RETRY, Caller, timed_out
from gateway.client.connection import Connection, State, TokenSource
from gateway.client.errors import NOT_DELIVERED, CallError, ConnectionLost
from gateway.client.link import Incoming, Link, Options, Refused
from gateway.client.pending import PROGRESS, Running
from gateway.client.serving import HandlerT, Method, Serving
from gateway.client.subscriptions import Since, Subscription, Subscriptions
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

EVENTS: Final = 1000
"""Events of one subscription that wait for its reader, where nothing else is said."""


class _Draining(msgspec.Struct, rename="camel"):
    reconnect_after_ms: float = 0.0


class _Expiring(msgspec.Struct, rename="camel"):
    left_ms: float


class Client:
    """A connection to a gateway that comes back by itself, and what goes on over it. See `connect`.

    For one event loop, and for any number of its tasks.
    """

    def __init__(
        self,
        options: Options,
        token: TokenSource,
        *,
        reconnect: bool,
        backoff: Backoff,
        open_timeout: float | None,
        max_calls: int,
    ) -> None:
        self._options = options
        self._token = token
        self._open_timeout = open_timeout
        self._connection = Connection(options, token, reconnect=reconnect, backoff=backoff, endpoint=self)
        self._caller = Caller(self._connection.usable)
        self._serving = Serving(max_calls)
        self._subscriptions = Subscriptions()
        self._run: asyncio.Task[None] | None = None
        self._link_tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self.welcome: dict[str, Any] = {}
        """The params of the last `gateway.welcome`; empty before the first."""
        self.principal: dict[str, Any] = {}
        """Who this client is to the gateway: ``name``, ``role``, ``scopes``, ``expiresAt``."""

    # Beginning and end

    async def __aenter__(self) -> Self:
        """Connect. Raises `ConnectionLost` where the gateway refuses, or cannot be reached in `open_timeout`."""
        if self._run is not None:
            raise RuntimeError("a client is used once")
        self._run = asyncio.create_task(self._connection.run())
        try:
            async with asyncio.timeout(self._open_timeout):
                await self._connection.usable()
        except TimeoutError:
            end = self._connection.end
            await self.close()
            if end is None:
                raise timed_out("connect", self._open_timeout or 0.0, sent=False) from None
            raise ConnectionLost(end, NOT_DELIVERED) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and release everything. Takes twice `close_timeout` at most. May be called twice.

        Calls that are not answered fail with `ConnectionLost`; methods that run are cancelled; subscriptions end.
        """
        if self._run is None:
            return
        ending = [*self._link_tasks, *self._serving.cancel_all()]
        for task in self._link_tasks:
            task.cancel()
        open_before = self._connection.link is not None
        try:
            await self._connection.leave()
        finally:
            if not open_before:
                self._run.cancel()
            await _ended([self._run, *ending, *self._calls], self._options.close_timeout)

    @property
    def state(self) -> State:
        """What the connection is at."""
        return self._connection.state

    @property
    def why(self) -> str:
        """Why the last connection, or attempt, ended: for a person. Empty before the first end."""
        end = self._connection.end
        return "" if end is None else str(end)

    def states(self) -> AsyncIterator[State]:
        """The state now, and each change of it; ends behind CLOSED. One who is slow sees the last 64."""
        return self._connection.states()

    @property
    def serving_calls(self) -> int:
        """How many calls are being served."""
        return len(self._serving)

    # Calling

    async def call(
        self,
        method: str,
        params: object = None,
        *,
        timeout: float = 30.0,
        node: str | None = None,
        retry: bool = False,
    ) -> Any:
        """Call a method and return its decoded result. Cancelling the task cancels the call, at the node too.

        ``params`` is anything that msgspec encodes to an object or an array. ``timeout`` is seconds, waiting for a
        connection included; without a ``node`` the gateway's own `limits.call_timeout` holds as well. ``node`` names
        who is to be called. ``retry``: send it again where it was not run and may succeed later.

        Raises `CallError`; its ``outcome`` says what is known of the call. TypeError for params.
        """
        return await self._caller.call(method, params, timeout, node=node, retry=retry)

    def start(
        self,
        method: str,
        params: object = None,
        *,
        timeout: float = 30.0,
        node: str | None = None,
        retry: bool = False,
    ) -> Running:
        """Begin a call as `call` does, and return its handle: await it, or read its progress."""
        progress: Buffer[Any] = Buffer(PROGRESS)
        call = self._caller.call(method, params, timeout, node=node, retry=retry, progress=progress.put)
        return Running(self._spawn(call, self._calls), progress)

    async def notify(self, method: str, params: object = None, *, timeout: float = 30.0) -> None:
        """Send a notification: nobody answers. Raises `CallError` where there is no connection in time."""
        await self._caller.notify(method, params, timeout)

    async def batch(self, requests: Sequence[tuple[str, Any]], *, timeout: float = 30.0) -> list[Any]:
        """Send requests, each a method and its params, in one message.

        Returns for each, in the order asked, its result or its `CallError`. Raises TypeError for params.
        """
        return await self._caller.batch(list(requests), timeout)

    # Events

    def subscribe(self, *topics: str, since: Since | None = None, buffer: int = EVENTS) -> Subscription:
        """Subscribe to topics and patterns: `a.*` one part, `a.>` the rest. See `Subscription`.

        ``since`` has for topics the last `Event` that was had, or its ``epoch`` and ``offset``: what was missed
        since comes first, or a `Gap`.
        """
        return Subscription(topics, since, buffer, self._begin, self._leave)

    async def publish(self, topic: str, data: Any, *, timeout: float = 30.0, retry: bool = False) -> dict[str, Any]:
        """Publish any JSON; returns its ``offset`` and ``epoch``. Raises `CallError`, TypeError for ``data``."""
        result: dict[str, Any] = await self._caller.call(
            "event.publish", {"topic": topic, "data": data}, timeout, retry=retry
        )
        return result

    async def _begin(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        await self._until_done(subscription.join, lambda: subscription.began, "event.subscribe", 30.0)

    def _leave(self, subscription: Subscription) -> None:
        topics = self._subscriptions.remove(subscription)
        link = self._connection.link
        if topics and link is not None and link.usable:
            link.post(jsonrpc.notification("event.unsubscribe", {"topics": topics}))

    # Serving

    def method(self, name: str, *, summary: str = "", params: Any = None) -> Callable[[HandlerT], HandlerT]:
        """Serve a function under this name: a decorator, before `serve` or after it.

        The function gets the decoded params and a `ServedCall`. Its result is any JSON; it fails with the `CallError`
        that it raises, and with -32603 for anything else. A plain function runs on the event loop, and must not wait.
        An async one is cancelled when nobody waits any more. ``params`` is a JSON Schema that describes the params.
        """

        def decorate(function: HandlerT) -> HandlerT:
            self._serving.add(Method(name, function, summary, params))
            link = self._connection.link
            if self._serving.is_node and link is not None:
                self._spawn(self._restore(link, (self._register,)), self._link_tasks)
            return function

        return decorate

    async def serve(self, name: str | None = None, *, timeout: float = 30.0) -> dict[str, Any]:
        """Register the methods, now and after each reconnect; returns ``name`` and ``methods``.

        ``name`` is the node's; with a credential it is the principal's, and may be left out. May be called again.
        Raises `CallError` where the gateway refuses, ValueError where there is no method.
        """
        registered: dict[str, Any] = {}
        params = self._serving.registration(name)

        async def register(link: Link) -> None:
            registered.update(await link.request("node.register", params))
            self._serving.is_node, self._serving.name = True, name

        await self._until_done(register, lambda: bool(registered), "node.register", timeout)
        return registered

    async def _register(self, link: Link) -> None:
        await link.request("node.register", self._serving.registration(self._serving.name))

    # What the connection brings: it calls these

    def opened(self, link: Link) -> None:
        """A connection is open: what went on over the last one goes on over it."""
        self.welcome = link.welcome
        self.principal = link.welcome["principal"]
        steps: list[Callable[[Link], Coroutine[Any, Any, None]]] = []
        if self._serving.is_node:
            steps.append(self._register)
        steps += [self._resume(one) for one in self._subscriptions.all() if one.began]
        if steps:
            self._spawn(self._restore(link, steps), self._link_tasks)

    def received(self, link: Link, message: Incoming) -> None:
        """A message has come."""
        identity = bytes(message.id)
        if message.method is jsonrpc.NO_METHOD:
            if not link.pending.answered(identity, message.result, message.error) and identity == b"null":
                logger.warning("the gateway could not read a request: %s", bytes(message.error).decode())
        elif identity:
            self._serving.begin(link, message)
        else:
            try:
                self._notified(link, message)
            except (*jsonrpc.UNDECODABLE, KeyError):
                logger.warning("the notification %s cannot be read", message.method, exc_info=True)

    def _notified(self, link: Link, message: Incoming) -> None:
        params = message.params
        match message.method:
            case "event.message":
                self._subscriptions.deliver(params)
            case "rpc.progress":
                report = msgspec.json.decode(params, type=dict[str, Raw])
                link.pending.progress(bytes(report["id"]), msgspec.json.decode(report["value"]))
            case "rpc.cancel":
                self._serving.cancel(params)
            case "gateway.draining":
                notice = msgspec.json.decode(params, type=_Draining)
                self._connection.draining(link, notice.reconnect_after_ms / 1000)
            case "gateway.expiring":
                left = msgspec.json.decode(params, type=_Expiring).left_ms / 1000
                if callable(self._token):
                    self._spawn(self._refresh(link, left), self._link_tasks)
            case name if not name.startswith("gateway."):
                self._serving.begin(link, message)

    def lost(self, link: Link) -> None:
        """The connection is over: nobody waits for what is being served."""
        self._subscriptions.suspend()
        self._serving.cancel_all()
        for task in self._link_tasks:
            task.cancel()

    def closed(self, error: ConnectionLost | None) -> None:
        """There will be no connection any more."""
        self._subscriptions.close(error)

    # In the background

    def _spawn(self, work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _resume(self, subscription: Subscription) -> Callable[[Link], Coroutine[Any, Any, None]]:
        async def resume(link: Link) -> None:
            try:
                await subscription.join(link)
            except CallError as error:
                if not error.temporary:
                    subscription.close(error)
                raise

        return resume

    async def _restore(self, link: Link, steps: Sequence[Callable[[Link], Coroutine[Any, Any, None]]]) -> None:
        """Do each of these over this connection, again where it fails for a time; it is over when that is."""
        for step in steps:
            backoff = Backoff(*RETRY)
            while link.usable:
                try:
                    async with asyncio.timeout(self._options.connect_timeout):
                        await step(link)
                    break
                except TimeoutError:
                    continue
                except CallError as error:
                    if not error.temporary:
                        logger.error("what went on before cannot go on: %s", error)
                        break
                    await asyncio.sleep(backoff.pause(error.retry_after or 0.0))

    async def _until_done(
        self, step: Callable[[Link], Coroutine[Any, Any, None]], done: Callable[[], bool], name: str, timeout: float
    ) -> None:
        """Do it over this connection or the next one, for it may be done twice. Raises `CallError`."""
        sent = False
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    link = await self._connection.usable()
                    sent = True
                    try:
                        await step(link)
                    except ConnectionLost:
                        await asyncio.sleep(0)  # whoever reads has to see it first
        except TimeoutError:
            raise timed_out(name, timeout, sent=sent) from None

    async def _refresh(self, link: Link, left: float) -> None:
        """Take a fresh credential in place. Half of what is left goes by first: it may be announced at once."""
        await asyncio.sleep(left / 2)
        try:
            token = await self._connection.token()
            params = Raw(jsonrpc.encode({"token": token}))
            async with asyncio.timeout(self._options.connect_timeout):
                self.principal = await link.request("gateway.authenticate", params)
        except (CallError, Refused, TimeoutError) as error:
            # The connection ends with 4004 then, and the next one asks again.
            logger.warning("the credential could not be refreshed: %s", error)


async def _ended(tasks: Sequence[asyncio.Task[Any]], timeout: float) -> None:
    """Wait so long, then cancel what is left and wait no more."""
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=timeout)
        for task in left:
            task.cancel()
        await asyncio.sleep(0)


def connect(
    url: str = "ws://127.0.0.1:8765/ws",
    token: TokenSource = None,
    *,
    reconnect: bool = True,
    ssl: tls.SSLContext | bool | None = None,
    open_timeout: float | None = 30.0,
    connect_timeout: float = 10.0,
    close_timeout: float = 5.0,
    heartbeat: float = 30.0,
    backoff: Backoff | None = None,
    max_calls: int = 256,
    max_message_bytes: int = 64 * 1024 * 1024,
) -> Client:
    """A client for ``async with``; nothing is connected before. Times are seconds.

    url: ws, wss, http or https. token: a credential; or a callable, plain or async, that returns a fresh one: it is
    asked at each connect and before the credential expires. A credential travels in the Authorization header.
    reconnect: come back after a loss, unless the gateway has said that it is of no use. ssl: how to verify the
    gateway; None and True: as Python does, False: not at all.
    open_timeout: how long entering waits for the first connection; None: for ever. connect_timeout: for one attempt,
    from TCP to the welcome, and for the token. close_timeout: how long the gateway may take to answer a close.
    heartbeat: silence after which the gateway is pinged; it has half of that to answer. backoff: the pauses between
    attempts. max_calls: how many calls are served at once; more are refused as ``overloaded``. max_message_bytes: the
    largest message that is taken from the gateway.

    Raises ValueError for a URL that is none, or a token in it.
    """
    parsed = URL(url)
    if parsed.scheme not in ("ws", "wss", "http", "https") or not parsed.host:
        raise ValueError(f"not the URL of a gateway: {url!r}; such as ws://127.0.0.1:8765/ws")
    if parsed.user is not None or parsed.password is not None:
        raise ValueError("a credential does not belong into a URL: give it as token")
    options = Options(
        url=url,
        ssl=True if ssl is None else ssl,
        heartbeat=heartbeat,
        connect_timeout=connect_timeout,
        close_timeout=close_timeout,
        max_message_bytes=max_message_bytes,
    )
    return Client(
        options,
        token,
        reconnect=reconnect,
        backoff=backoff or Backoff(),
        open_timeout=open_timeout,
        max_calls=max_calls,
    )
