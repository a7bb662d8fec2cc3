"""The product: what the gateway is made of, and what answers where."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web

from gateway import errors
from gateway.assembly import parts
from gateway.assembly.extras import load_cluster, seen
from gateway.assembly.health import Health, foreign_to, nosniff
from gateway.auth import authenticators
from gateway.auth.credentials import NO_CREDENTIAL, Authenticator
from gateway.auth.scopes import ROLES
from gateway.cluster.stream import Position, Stream
from gateway.config import Config, ConfigError, Server, load
from gateway.connections.connection import Connection, Endpoint
from gateway.connections.history import Closed
from gateway.connections.regime import Regime
from gateway.connections.registry import Connections
from gateway.console import pages
from gateway.events.delivery import Delivery
from gateway.events.hub import Events
from gateway.events.presence import Presence
from gateway.events.topics import Topics
from gateway.handshake.admission import Admission, GuestError
from gateway.handshake.guests import Guests
from gateway.handshake.listener import handler_args
from gateway.handshake.preauth import Preauth
from gateway.handshake.rejections import Rejections, Stage
from gateway.handshake.resumption import Resumption
from gateway.handshake.upgrade import Gatekeeper, RefusedError, refused
from gateway.methods.connection import ConnectionMethods, SessionMethods
from gateway.methods.event import EventMethods
from gateway.methods.gateway import GatewayMethods
from gateway.methods.node import NodeMethods
from gateway.methods.rpc import Documents, RpcMethods
from gateway.methods.user import load_methods
from gateway.nodes.registry import Nodes
from gateway.rpc.calls import Calls
from gateway.rpc.steps import Steps
from gateway.rpc.work import Work
from gateway.status import Status
from gateway.telemetry import log
from gateway.telemetry.metrics import LoopLag, Metrics
from gateway.websocket.frames import Payload
from gateway.websocket.opening import coroutine_function

if TYPE_CHECKING:
    from gateway.assembly.cluster import Cluster

FEW_METHODS: Final = 50
"""How many methods of one node are looked at in passing."""


def create_app(config: Config | None = None, methods: Iterable[object] = ()) -> web.Application:
    """The whole gateway as an aiohttp application, for `gateway.server`, a test client or another runner.

    ``methods`` are modules, objects or functions that declare methods with `gateway.api`, beside those that
    ``methods.modules`` names. Raises ValueError for a name that is taken, TypeError for a wrong signature, and
    `config.ConfigError` for a file of tokens or keys that cannot be used.

    Without ``config`` it is read as `python -m gateway` reads it: from the file that GATEWAY_CONFIG names and the
    environment. Raises `config.ConfigError` if that is wrong.

    ``app["connections"]``, and the typed ``app[CONNECTIONS]``, is the registry: connId → Connection.
    """
    if config is None:
        config = load(None, os.environ, {})
    app = web.Application(handler_args=handler_args(config), middlewares=())
    app[CONFIG] = config
    app[STATUS] = status = Status(str(uuid.uuid4()), time.monotonic)
    app[CONNECTIONS] = connections = Connections()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app["connections"] = connections
    app[GATEWAY] = gateway = Gateway(config, status, connections)
    for name in config.methods.modules:
        try:
            gateway.dispatcher.add(load_methods(name))
        except (TypeError, ValueError) as error:
            right = "a module that declares methods, see gateway.api"
            raise ConfigError("configuration", "methods.modules", f'"{name}": {error}', right) from error
    for source in methods:
        gateway.dispatcher.add(source)

    app.router.add_get("/ws", gateway.websocket, allow_head=False)
    foreign = foreign_to(gateway.gatekeeper)
    gateway.health.add_to(app, foreign)
    pages.add_to(app, foreign, login=config.auth.mode != "none")

    app.on_response_prepare.append(nosniff)
    app.on_startup.append(on_startup)
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    return app


class Gateway:
    """What stands behind every connection of one application."""

    def __init__(self, config: Config, status: Status, connections: Connections) -> None:
        self._connections = connections
        self._regime = Regime(config)
        self.standstill: Final = self._regime.standstill
        self.gatekeeper: Final = Gatekeeper(config.server)
        self.lines: Final = self._regime.lines
        self.rejections: Final = Rejections(self.lines)
        self.cluster: Final = load_cluster(config, status, self.lines)
        self._asking = None if self.cluster is None else self.cluster.asking
        self._steps = Steps()
        self.admission: Final = self._admission(config, status)
        cluster = self.cluster
        stream: Stream[Position | Awaitable[Position]] = parts.stream(config) if cluster is None else cluster.stream
        topics = Topics(stream.forget, max_topics=config.events.max_topics, conflate=config.events.conflate)
        self._delivery = Delivery(topics, stream, self._regime.cork)
        self.events: Final[Events[Position | Awaitable[Position]]] = (
            Events(topics, stream, self._delivery) if cluster is None else cluster.events(topics, self._delivery)
        )
        self._presence = Presence(self.events, self.lines)
        self.nodes: Final = Nodes(
            self._presence.online, self._presence.offline, max_bytes=config.limits.max_registration_bytes
        )
        self.calls: Final = Calls()
        self.router: Final = parts.router(config, self.nodes, self.calls, self.lines)
        self._waiting = parts.waiting(config, self.nodes, self.router)
        if cluster is not None:
            ours = self.nodes, self.router, self._waiting
            cork = self._regime.cork
            cluster.connect(*ours, find=connections.get, status=status, steps=self._steps, cork=cork)
        self.dispatcher: Final = parts.dispatcher(config, status, self.router, self._delivery, self.lines)
        self.documents: Final = Documents(self.dispatcher, self.nodes, config.limits.max_outbox_bytes // 4)
        self.text: Callable[[Connection, Payload], None]  # on the hot path: no call in between
        self.dispatcher.attach(self)
        self.sessions: Final = parts.sessions(config, self.held, self.dispatcher.behind)
        self.admission.places.held = self.sessions
        own = self._own(config, status)
        self._welcome = own.welcome
        for source in (own, *self._methods(config)):
            self.dispatcher.add(source, own=True)
        timeout = config.server.handshake_timeout
        self._guests = Guests(
            self,
            connections,
            self.admission,
            timeout,
            standstill=self.standstill,
            welcome=own.welcome,
            entered=self.entered,
        )
        self.preauth: Final = self._preauth(timeout, own)
        self.lag: Final = LoopLag()
        self.metrics: Final = self._metrics()
        self.health: Final = Health(status, self.metrics.text, None if self.cluster is None else self.cluster.state)
        self.joining: asyncio.Task[None] | None = None
        """Ends when the gateway has joined its cluster; raises ConfigError if it cannot. None if it is alone."""
        self._drain: asyncio.Task[None] | None = None
        self.log_handler: log.LogHandler | None = None
        """What writes the log if nobody has set it up."""

    def _admission(self, config: Config, status: Status) -> Admission:
        authenticator = authenticators.load(config.auth)
        at_once, steps = self.rescopes_at_once, self._steps
        return Admission(config, status, authenticator, self.rescoped, self.lines, at_once=at_once, steps=steps)

    def _own(self, config: Config, status: Status) -> GatewayMethods:
        """What answers `gateway.*`."""
        return GatewayMethods(
            config,
            status,
            self._connections,
            self.admission,
            self._steps,
            asking=self._asking,
            nodes=lambda: self.nodes.here,
            state=dict if self.cluster is None else self.cluster.state,
        )

    def _preauth(self, timeout: float, own: GatewayMethods) -> Preauth:
        """What connections run through that owe their credential."""
        return Preauth(
            self,
            self._connections,
            self.admission,
            self.rejections,
            guests=self._guests,
            timeout=timeout,
            standstill=self.standstill,
            authenticate=self.dispatcher.methods["gateway.authenticate"],
            welcome=own.welcome,
            entered=self.entered,
        )

    def _methods(self, config: Config) -> Iterable[object]:
        """What the gateway answers itself, beside `gateway.*`."""
        yield RpcMethods(self.dispatcher, self.router, self.documents)
        yield ConnectionMethods(self._connections, self.sessions, self._asking)
        if config.server.hold_timeout:
            yield SessionMethods(self.sessions, Resumption(self.sessions, self.admission, self.back))
        yield NodeMethods(
            self.nodes,
            self.router,
            self._waiting,
            self.dispatcher.methods,
            named=config.auth.mode != "none",
            max_call_timeout=config.limits.max_call_timeout,
            asking=self._asking,
            untold=tuple if self.cluster is None else self.cluster.roster.untold,
        )
        if self.cluster is None:
            yield EventMethods(self.events, self._steps, config.limits.max_message_bytes)
        else:
            yield self.cluster.event_methods(self._steps)

    def _metrics(self) -> Metrics[Stage]:
        connections = self._connections
        return Metrics(
            roles=ROLES,
            census=connections.census,
            opened=lambda: connections.opened_total,
            disconnects=connections.disconnects,
            failures=self.rejections.failures,
            tallies=self.dispatcher.tallies,
            gauges={
                "calls_in_flight": ("Calls that are not answered yet.", lambda: len(self.calls)),
                "connections_held": ("Connections that have lost their link.", lambda: self.sessions.held),
                "loop_lag_seconds": ("How late the event loop was, at most, lately.", lambda: self.lag.seconds),
            },
            counters={
                "events_published": ("Messages published.", lambda: self.events.published),
                "events_delivered": ("Messages sent to subscribers.", lambda: self._delivery.delivered),
            },
            resumes=self.sessions.resumes,
            dropped=lambda: {**self.router.dropped, "event": self._delivery.gaps},
            more=tuple if self.cluster is None else self.cluster.metrics,
        )

    async def start(self, ready: Callable[[], None]) -> None:
        """Connect the stream of events, and watch the event loop and the log. Once, before the first request.

        ``ready`` is called when connections may come: at once, or when ``joining`` has come to a good end.
        """
        self.lag.start()
        self.lines.start()
        self.standstill.start(asyncio.get_running_loop())
        if self.cluster is None:
            await self.events.start()
            ready()
        else:
            self.joining = asyncio.create_task(self._join(self.cluster, ready))
            self.joining.add_done_callback(seen)

    async def _join(self, cluster: Cluster, ready: Callable[[], None]) -> None:
        await cluster.join(self.events.start)
        ready()

    async def stop(self) -> None:
        """Let go of what `start` has connected. After the last connection; may be called twice."""
        self.standstill.stop()
        self.lag.stop()
        self.lines.stop()
        if self.joining is not None:
            self.joining.cancel()
        await self.events.stop()
        if self.cluster is not None:
            await self.cluster.close()

    @coroutine_function
    def websocket(self, request: web.Request) -> Coroutine[Any, Any, web.StreamResponse]:
        """`GET /ws`: admit the request and serve its connection, at first with `Preauth` if it owes its credential."""
        remote = self.gatekeeper.remote_of(request)
        endpoint: Endpoint = self
        try:
            self.gatekeeper.admit(request)
            authorization = request.headers.getall(hdrs.AUTHORIZATION, ())
            credential = self.admission.at_upgrade(authorization, remote)
        except RefusedError as refusal:
            self.rejections.rejected(remote, refusal.why, refusal.stage, status=refusal.status)
            return _answer(refused(refusal))
        except GuestError as guest:
            endpoint, credential = self._guests, guest.credential
        if credential is NO_CREDENTIAL:
            endpoint = self.preauth
        return Connection(remote, endpoint, self._regime, credential).serve(request)

    def opened(self, connection: Connection) -> None:
        """Register, then welcome: the first frame on every connection."""
        self.entered(connection)
        connection.send_frame(self._welcome(connection))

    def entered(self, connection: Connection) -> None:
        """Register: it is open, and authenticated."""
        self._connections.add(connection)
        self.admission.entered(connection)
        self._presence.opened(connection)

    def binary(self, connection: Connection, data: Payload) -> None:
        """End the connection: text frames only."""
        connection.end(errors.UNSUPPORTED_DATA)

    def held(self, connection: Connection) -> None:
        """End the subscriptions of a connection that has lost its link, and the calls to it that do not wait."""
        self.router.lost_link(connection)
        self._steps.begin(self.events.lost(connection))
        if connection.node is not None and connection.held is not None:
            self._presence.held(connection.node, connection.held.cause)
        self._altered(connection)

    def back(self, connection: Connection) -> None:
        """Tell that a connection goes on by another link."""
        if connection.node is not None:
            self._presence.back(connection.node)
        self._altered(connection)

    def _altered(self, connection: Connection) -> None:
        """Tell other gateways that a node is held, or no longer."""
        if self.nodes.mirror is not None and connection.node is not None:
            self.nodes.mirror.altered(connection.node)

    def release(self, connection: Connection) -> None:
        """Answer its callers, and forget what it serves and hears: no peer waits until its transport is gone."""
        try:
            self.nodes.unregister(connection)
        finally:
            try:
                session = connection.session
                self.dispatcher.lost(connection, () if session is None else session.unwritten())
            finally:
                if connection.subscriber is not None:
                    self._steps.begin(self.events.lost(connection))

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Forget the connection."""
        try:
            self._connections.remove(connection, closed)
        finally:
            self.admission.left(connection)
        self._presence.closed(connection, closed.end, closed.duration)

    def rescoped(self, connection: Connection) -> Work[None]:
        """End, in steps, registrations and subscriptions that the connection's new credential does not allow."""
        if connection.node is not None:
            self.nodes.rescoped(connection)
            yield
        yield from self.events.rescoped(connection)

    def rescopes_at_once(self, connection: Connection) -> bool:
        """Return whether `rescoped` is little work for this connection."""
        few = connection.node is None or len(connection.node.methods) <= FEW_METHODS
        return few and self.events.rescopes_at_once(connection)

    async def drain(self, server: Server) -> None:
        """Let all connections go. The first call begins the drain, and every call returns when it is over.

        Cancelling a call does not stop the drain.
        """
        if self._drain is None:
            self._drain = asyncio.create_task(self._let_go(server))
        await asyncio.shield(self._drain)

    async def _let_go(self, server: Server) -> None:
        if self.joining is not None:
            self.joining.cancel()
        if self.cluster is not None:
            self.cluster.withdraw()
        self.sessions.drain()
        self._waiting.drain()
        if self._connections:
            self._presence.draining(server.drain_timeout)
        await self._connections.drain(server.drain_timeout, server.close_timeout)
        if self.cluster is not None:
            await self.cluster.leave()

    async def renew(self, authenticator: Authenticator) -> int:
        """Tokens or keys have been read again. Returns how many connections this has ended."""
        return await self.admission.renew(authenticator, self._connections.values())


async def _answer(response: web.Response) -> web.StreamResponse:
    return response


CONFIG: Final = web.AppKey("config", Config)
STATUS: Final = web.AppKey("status", Status)
CONNECTIONS: Final = web.AppKey("connections", Connections)
GATEWAY: Final = web.AppKey("gateway", Gateway)


async def on_startup(app: web.Application) -> None:
    """The runner of the application listens right after this."""
    app[GATEWAY].log_handler = log.adopt(app[CONFIG].log)
    await app[GATEWAY].start(app[STATUS].ready)


async def on_shutdown(app: web.Application) -> None:
    """Close all tracked connections, by the drain. If `gateway.server` has drained already, that is over."""
    app[STATUS].drain()
    await app[GATEWAY].drain(app[CONFIG].server)


async def on_cleanup(app: web.Application) -> None:
    """The last connection has gone."""
    gateway = app[GATEWAY]
    await gateway.stop()
    if gateway.log_handler is not None:
        log.release(gateway.log_handler)
