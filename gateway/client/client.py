"""The client: calls, events and methods that go on from one link to the next."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl as tls
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec

from gateway.client.address import DEFAULT_URL, address, credential, line, proxy_for, trust
from gateway.client.backoff import Backoff
from gateway.client.calling import Caller, Step, cancelled, encode_params, ended, restore, timed_out, to_node
from gateway.client.connection import Connection, State, TokenSource
from gateway.client.errors import NOT_DELIVERED, CallError, ConnectionLost
from gateway.client.link import Incoming, Options
from gateway.client.sending.flows import CREDIT, CREDIT_BYTES
from gateway.client.sending.pending import Reports, Running
from gateway.client.sending.session import Session
from gateway.client.sending.streams import Stream, opening
from gateway.client.serving import HandlerT, Method, Serving
from gateway.client.subscriptions import EVENTS, Since, Subscription, Subscriptions
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)


class _Expiring(msgspec.Struct, rename="camel"):
    left_ms: float


class Client:
    """A connection to a gateway that reconnects by itself, with all that goes on over it. `connect` makes one.

    It is for one event loop, and for any number of its tasks.
    """

    def __init__(
        self,
        options: Options,
        token: TokenSource,
        *,
        reconnect: bool,
        keep: bool,
        backoff: Backoff,
        open_timeout: float | None,
        max_calls: int,
    ) -> None:
        self._options = options
        self._token = token
        self._open_timeout = open_timeout
        self._connection = Connection(options, token, reconnect=reconnect, keep=keep, backoff=backoff, endpoint=self)
        self._caller = Caller(self._connection)
        self._serving = Serving(max_calls)
        self._subscriptions = Subscriptions()
        self._run: asyncio.Task[None] | None = None
        self._session_tasks: set[asyncio.Task[Any]] = set()
        self._link_tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[Any] | None] = set()
        self.welcome: dict[str, Any] = {}
        """The params of the latest `gateway.welcome`; empty before the first."""
        self.principal: dict[str, Any] = {}
        """``name``, ``role``, ``scopes`` and ``expiresAt`` of this client; empty before the first welcome."""

    # Beginning and end

    async def __aenter__(self) -> Self:
        """Connect, and return the client.

        Raises `ConnectionLost` if the gateway refuses, or if attempts fail until ``open_timeout``; `CallError`
        ``timeout`` if none has ended by then; RuntimeError if the client was entered before.
        """
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
        """Close the connection and release everything, within twice ``close_timeout``. Calling it again is harmless.

        Calls that are not answered fail with `ConnectionLost`; methods that run are cancelled; subscriptions end. A
        method that is served may call this: it goes on, but its answer is not sent any more.
        """
        if self._run is None:
            return
        self._closing.add(caller := asyncio.current_task())
        ending = cancelled([*self._link_tasks, *self._session_tasks], but=self._closing)
        ending += self._serving.cancel_all(but=self._closing)
        open_before = self._connection.session is not None and not self._connection.is_held
        try:
            await self._connection.leave()
        finally:
            if not open_before:
                self._run.cancel()
            left = {self._run, *ending, *self._calls} - self._closing
            await ended(left, self._options.close_timeout)
            self._closing.discard(caller)

    @property
    def state(self) -> State:
        """The connection's state."""
        return self._connection.state

    @property
    def why(self) -> str:
        """A text for people: how the latest link or attempt ended. Empty before the first end."""
        end = self._connection.end
        return "" if end is None else str(end)

    def states(self) -> AsyncIterator[State]:
        """Yield the state now, and then each new one; ends after CLOSED. A slow reader gets the latest 64."""
        return self._connection.states()

    @property
    def serving_calls(self) -> int:
        """How many calls and notifications are being served."""
        return len(self._serving)

    # Calling

    async def call(
        self,
        method: str,
        params: object = None,
        *,
        timeout: float = 30.0,
        node: str | None = None,
        wait: float = 0.0,
        held: bool = True,
        retry: bool = False,
        raw: bool = False,
    ) -> Any:
        """Call a method and return its decoded result. Cancelling the task cancels the call, at the node too.

        ``params`` is anything that msgspec encodes to an object or an array. ``timeout`` is seconds. It includes the
        wait for a connection, and for a place if the gateway takes no more calls at a time; without a ``node`` the
        gateway's own `limits.call_timeout` holds as well. ``node`` is the name of the node to call. ``wait``: for how
        many seconds more the gateway waits for that node, if it is not there or does not serve the method yet.
        ``held``: whether to wait for a node that has lost its link and may come back; otherwise the call fails with
        ``node_lost`` at once. ``retry``: send the call again if it was not run and may succeed later. ``raw``: return
        the result as it came, a `msgspec.Raw`.

        Raises `CallError`, whose ``outcome`` says whether the call may have been run; TypeError for params that do not
        become an object or an array, ValueError for text that is not Unicode, or ``wait`` or ``held`` without a node,
        and RecursionError for params that are nested too deeply.
        """
        to = to_node(node, wait, held)
        return await self._caller.call(method, params, timeout, to=to, retry=retry, raw=raw)

    def start(
        self,
        method: str,
        params: object = None,
        *,
        timeout: float = 30.0,
        node: str | None = None,
        wait: float = 0.0,
        held: bool = True,
        retry: bool = False,
        raw: bool = False,
    ) -> Running:
        """Begin a call as `call` does, and return its handle: await it, or read its progress. Awaiting it raises.

        The progress is the values that the node reports, and a `Missed` in the place of those that came too fast.
        """
        reports = Reports()
        to = to_node(node, wait, held)
        call = self._caller.call(method, params, timeout, to=to, retry=retry, raw=raw, progress=reports.put)
        return Running(self._spawn(call, self._calls), reports)

    def stream(
        self,
        method: str,
        params: object = None,
        *,
        timeout: float = 30.0,
        node: str | None = None,
        wait: float = 0.0,
        credit: int = CREDIT,
        nbytes: int = CREDIT_BYTES,
        raw: bool = False,
    ) -> Stream:
        """Return a call whose values flow both ways, each as fast as its receiver takes them; see `Stream`.

        ``timeout``: for how many seconds it may wait to be sent. With ``node`` that is also the deadline which the
        gateway gives it; it counts from the last value or grant, and the client renews it. ``credit`` and ``nbytes``:
        how many values may come before they are read, and of how many bytes together. ``raw`` holds for the values
        too. All else is as in `call`.
        """
        to, begins, encoded = to_node(node, wait, True), opening(credit, nbytes, raw=raw), encode_params(params)
        return Stream(begins, lambda: self._caller.stream(method, encoded, timeout, begins, to=to, raw=raw))

    async def notify(self, method: str, params: object = None, *, timeout: float = 30.0) -> None:
        """Send a notification, which has no answer. ``timeout`` and params are as in `call`.

        It does not wait for a place, and so may overtake calls that do. Raises `CallError` if it could not be sent in
        time, and as `call` does for params.
        """
        await self._caller.notify(method, params, timeout)

    async def batch(self, requests: Sequence[tuple[str, Any]], *, timeout: float = 30.0) -> list[Any]:
        """Send requests, each a method and its params, in one message.

        Returns for each, in the same order, its result or its `CallError`. Raises as `call` does for params.
        """
        return await self._caller.batch(list(requests), timeout)

    # Events

    def subscribe(self, *topics: str, since: Since | None = None, buffer: int = EVENTS) -> Subscription:
        """Return a subscription to topics and patterns: `*` is one part of a topic, a last `>` one or more.

        ``since`` maps topics to their last `Event` that was seen, or to its ``epoch`` and ``offset``: the messages that
        were missed since come first, or a `Gap`. ``buffer`` is how many items wait for the reader. Raises ValueError
        without a topic, for a ``buffer`` below 1, and for a ``since`` of another form.
        """
        return Subscription(topics, since, buffer, self._begin, self._leave)

    async def publish(self, topic: str, data: Any, *, timeout: float = 30.0, retry: bool = False) -> dict[str, Any]:
        """Publish any JSON; returns its ``offset`` and ``epoch``. Raises as `call` does."""
        result: dict[str, Any] = await self._caller.call(
            "event.publish", {"topic": topic, "data": data}, timeout, retry=retry
        )
        return result

    async def _begin(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        await self._caller.until_done(subscription.join, lambda: subscription.began, "event.subscribe", 30.0)

    def _leave(self, subscription: Subscription) -> None:
        topics = self._subscriptions.remove(subscription)
        session = self._connection.session
        if topics and session is not None and session.usable:
            # If that is too large, the subscription was too: the gateway does not have it.
            with suppress(CallError):
                session.post(jsonrpc.notification("event.unsubscribe", {"topics": topics}))

    # Serving

    def method(self, name: str, *, summary: str = "", params: Any = None) -> Callable[[HandlerT], HandlerT]:
        """Serve a function under this name: a decorator, before `serve` or after it.

        The function gets the decoded params and a `ServedCall`, and returns any JSON. If it raises a `CallError` that
        is the answer; any other exception is logged, and answered with -32603. A plain function runs on the event loop,
        and must not block it. An async one is cancelled when the caller stops waiting or the connection is lost.
        ``summary`` and ``params``, which is usually a JSON Schema, describe the method to others.
        """

        def decorate(function: HandlerT) -> HandlerT:
            self._serving.add(Method(name, function, summary, params))
            session = self._connection.session
            if self._serving.is_node and session is not None:
                self._restore(session, [self._register], self._session_tasks)
            return function

        return decorate

    async def serve(self, name: str | None = None, *, timeout: float = 30.0) -> dict[str, Any]:
        """Register the methods, now and after each reconnect; returns ``name`` and ``methods``.

        ``name`` is the node's. With a credential it is the principal's name, and may be left out. May be called again.
        White space around it does not count. Raises `CallError` if the gateway refuses or does not answer in
        ``timeout`` seconds, ValueError if there is no method or the name has other characters than names may have, and
        TypeError for a description of a method that JSON does not hold.
        """
        registered: dict[str, Any] = {}
        if name is not None:
            name = line(name, "the node's name")
        params = self._serving.registration(name)

        async def register(session: Session) -> None:
            registered.update(await session.request("node.register", params))
            self._serving.is_node, self._serving.name = True, name

        await self._caller.until_done(register, lambda: bool(registered), "node.register", timeout)
        return registered

    async def _register(self, session: Session) -> None:
        await session.request("node.register", self._serving.registration(self._serving.name))

    # The endpoint of the connection, which calls these

    def opened(self, session: Session) -> None:
        """Begin again on a new connection what went on over the last one."""
        self._welcomed(session)
        if self._serving.is_node:
            self._restore(session, [self._register], self._session_tasks)
        self._resubscribe(session)

    def resumed(self, session: Session) -> None:
        """Subscribe again: all else has gone on."""
        self._welcomed(session)
        self._resubscribe(session)

    def _welcomed(self, session: Session) -> None:
        self.welcome = session.welcome
        self.principal = session.welcome["principal"]

    def _resubscribe(self, session: Session) -> None:
        self._restore(session, [one.rejoin for one in self._subscriptions.all() if one.began], self._link_tasks)

    def _restore(self, session: Session, steps: list[Step], tasks: set[asyncio.Task[Any]]) -> None:
        if steps:
            self._spawn(restore(session, steps, self._options.connect_timeout), tasks)

    def received(self, session: Session, message: Incoming) -> None:
        """Give a message to whoever it is for. What cannot be read is logged."""
        message_id = bytes(message.id)
        if message.method is jsonrpc.NO_METHOD:
            if not session.pending.answered(message_id, message.result, message.error) and message_id == b"null":
                logger.warning("the gateway could not read a request: %s", bytes(message.error).decode())
        elif message_id:
            self._serving.begin(session, message)
        else:
            try:
                self._notified(session, message)
            except jsonrpc.UNDECODABLE:
                logger.warning("the notification %s cannot be read", message.method, exc_info=True)

    def _notified(self, session: Session, message: Incoming) -> None:
        params = message.params
        match message.method:
            case "event.message":
                self._subscriptions.deliver(params)
            case "event.gap":
                self._subscriptions.lost(params)
            case "gateway.draining":
                self._connection.draining(session, params)
            case "gateway.expiring":
                left = msgspec.json.decode(params, type=_Expiring).left_ms / 1000
                if callable(self._token):
                    self._spawn(self._refresh(session, left), self._link_tasks)
            case name if session.notified(name, params) or self._serving.notified(name, params):
                pass
            case name if not name.startswith("gateway."):
                self._serving.begin(session, message)

    def suspended(self) -> None:
        """Suspend the subscriptions, and cancel what only this link could use."""
        self._subscriptions.suspend()
        cancelled(self._link_tasks, but=self._closing)

    def lost(self) -> None:
        """Cancel what only this connection could use."""
        self.suspended()
        self._serving.cancel_all(but=self._closing)
        cancelled(self._session_tasks, but=self._closing)

    def closed(self, error: ConnectionLost | None) -> None:
        """End the subscriptions, because there will be no further link."""
        self._subscriptions.close(error)

    # In the background

    def _spawn(self, work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _refresh(self, session: Session, left: float) -> None:
        """Refresh the credential on this link, after half of the time that it has left."""
        self.principal = await self._connection.refresh(session, left / 2) or self.principal


def connect(
    url: str = DEFAULT_URL,
    token: TokenSource = None,
    *,
    reconnect: bool = True,
    keep: bool = True,
    ssl: tls.SSLContext | bool | None = None,
    cafile: str | os.PathLike[str] | None = None,
    proxy: str | bool = True,
    open_timeout: float | None = 30.0,
    connect_timeout: float = 10.0,
    close_timeout: float = 5.0,
    heartbeat: float = 30.0,
    backoff: Backoff | None = None,
    max_calls: int = 256,
    max_message_bytes: int = 64 * 1024 * 1024,
) -> Client:
    """Return a client for ``async with``, which connects it. Times are seconds.

    url: ws, wss, http or https; ``/ws`` if it has no path. token: a credential, or a callable, plain or async, that
    returns a fresh one. It is called at each attempt, after a credential was refused, and before one expires. A
    credential travels in the Authorization header, and a refresh in a message. reconnect: whether to connect again
    after a loss; never done if the gateway has said that it is of no use, nor if the first attempt meets no gateway at
    all, such as another service, or a certificate that is not trusted. keep: whether the connection outlives its link
    if the gateway agrees: no call fails, in either direction, if the client is back in time. Never without reconnect.

    ssl: how to verify the gateway; None and True: as Python does, False: not at all. cafile: a PEM file with the
    authorities to trust, in place of ``ssl``. proxy: the URL of an HTTP proxy; True: what HTTPS_PROXY (for wss),
    HTTP_PROXY (for ws) and NO_PROXY say, but none for a gateway on loopback; False: none. For wss the proxy makes a
    tunnel; for ws it has to pass on the upgrade.

    open_timeout: how long entering waits for a connection; None: without end. connect_timeout: for an attempt, from
    TCP to the welcome, and for the token. close_timeout: how long the gateway may take to answer a close. heartbeat:
    silence after which the gateway is pinged; it has half of that to answer. backoff: the pauses between attempts.
    max_calls: how many calls are served at once; more are refused as ``overloaded``. max_message_bytes: the largest
    message that is accepted.

    White space around the URL, the token and the proxy does not count. Raises ValueError for a URL that is not one of a
    gateway or has a credential in it, for a token that no header can hold, for a proxy that is not an HTTP proxy, and
    for a ``cafile`` that cannot be read or is given with ``ssl``.
    """
    url = address(url)
    options = Options(
        url=url,
        ssl=trust(ssl, cafile),
        heartbeat=heartbeat,
        connect_timeout=connect_timeout,
        close_timeout=close_timeout,
        max_message_bytes=max_message_bytes,
        proxy=proxy_for(url, proxy),
    )
    return Client(
        options,
        credential(token) if isinstance(token, str) else token,
        reconnect=reconnect,
        keep=keep,
        backoff=backoff or Backoff(),
        open_timeout=open_timeout,
        max_calls=max_calls,
    )
