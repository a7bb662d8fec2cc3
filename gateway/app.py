"""The product: what the gateway is made of, and what answers where."""

from __future__ import annotations

import importlib
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final

from aiohttp import web

from gateway import errors
from gateway.calls import Calls
from gateway.config import Config, ConfigError, load
from gateway.connection import Connection, Regime, remote_of
from gateway.connections import Connections
from gateway.dispatcher import Dispatcher
from gateway.errors import Disconnect
from gateway.handshake import Gatekeeper, RefusedError
from gateway.limits import Sampler
from gateway.methods.connection import ConnectionMethods
from gateway.methods.gateway import GatewayMethods
from gateway.methods.rpc import RpcMethods
from gateway.status import Phase, Status

logger = logging.getLogger("gateway.app")

REJECTIONS: Final = (20, 10.0)
"""How many rejections of one address are logged in how many seconds; the rest is counted."""


def create_app(config: Config | None = None, methods: Iterable[object] = ()) -> web.Application:
    """The whole gateway as an aiohttp application, for `gateway.server`, a test client or another runner.

    ``methods`` are modules, objects or functions that declare methods with `gateway.method`, beside those that
    ``methods.modules`` names. Raises ValueError for a name that is taken and TypeError for a wrong signature.

    Without ``config`` it is read as `python -m gateway` reads it: from the file that GATEWAY_CONFIG names and the
    environment; raises `config.ConfigError` where that is wrong.

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
            right = "a module that declares methods, see gateway.method"
            raise ConfigError("configuration", "methods.modules", f'"{name}": {error}', right) from error
    for source in methods:
        gateway.dispatcher.add(source)

    app.router.add_get("/ws", gateway.websocket, allow_head=False)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)

    app.on_startup.append(on_startup)
    app.on_shutdown.append(on_shutdown)
    return app


class Gateway:
    """What stands behind every connection of one application."""

    def __init__(self, config: Config, status: Status, connections: Connections) -> None:
        self._connections = connections
        self._regime = Regime(config)
        self.gatekeeper = Gatekeeper(config.server, config.limits.max_connections, status)
        self.calls: Final = Calls()
        self.dispatcher: Final = Dispatcher(
            status,
            self.calls,
            max_in_flight=config.limits.max_in_flight,
            max_batch=config.limits.max_batch,
            call_timeout=config.limits.call_timeout,
        )
        self.text: Callable[[Connection, bytes], None] = self.dispatcher.dispatch  # on the hot path: no call in between
        own = GatewayMethods(config, status, connections)
        self._welcome = own.welcome
        for source in (own, RpcMethods(self.dispatcher), ConnectionMethods(connections)):
            self.dispatcher.add(source, own=True)
        self._rejections = Sampler(time.monotonic, *REJECTIONS)

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """`GET /ws`: admit the request, then be its connection."""
        remote = remote_of(request)
        try:
            self.gatekeeper.admit(request, len(self._connections))
        except RefusedError as refusal:
            self.reject(remote, refusal.status, refusal.why)
            answer = web.Response(status=refusal.status, text=f"{refusal.why}\n", headers=refusal.headers)
            answer.force_close()
            return answer
        return await Connection(remote, self, self._regime).serve(request)

    def reject(self, remote: str, status: int, reason: str) -> None:
        """Log a refused handshake, sampled by address."""
        left_out = self._rejections.admit(remote.rpartition(":")[0])
        if left_out is None:
            return
        fields = {"event": "handshake.rejected", "remote": remote, "status": status, "reason": reason}
        if left_out:
            fields["leftOut"] = left_out
        logger.info("handshake rejected: %s", reason, extra=fields)

    def opened(self, connection: Connection) -> None:
        """Register, then welcome: the first frame on every connection."""
        self._connections.add(connection)
        connection.send_frame(self._welcome(connection))

    def binary(self, connection: Connection, data: bytes) -> None:
        """Text frames only."""
        connection.end(errors.UNSUPPORTED_DATA)

    def closed(self, connection: Connection, end: Disconnect) -> None:
        """Release all that the connection holds."""
        self._connections.remove(connection, end)
        self.dispatcher.lost(connection)


CONFIG: Final = web.AppKey("config", Config)
STATUS: Final = web.AppKey("status", Status)
CONNECTIONS: Final = web.AppKey("connections", Connections)
GATEWAY: Final = web.AppKey("gateway", Gateway)


def handler_args(config: Config) -> Mapping[str, Any]:
    """How aiohttp handles HTTP for this application: arguments of its RequestHandler."""
    return {
        "access_log": None,
        "keepalive_timeout": config.server.keepalive_timeout,
        "tcp_keepalive": False,  # the heartbeat does its work
        "timeout_ceil_threshold": float("inf"),  # aiohttp rounds timers above it to whole seconds
        "lingering_time": 0.0,
    }


def load_methods(name: str) -> ModuleType:
    """The user's module that `methods.modules` names. Raises ConfigError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but one that it needs is not: its own traceback says more
        wrong = f'no module "{name}" in PYTHONPATH or site-packages'
        raise ConfigError("configuration", "methods.modules", wrong, "a module that can be imported") from None


async def healthz(request: web.Request) -> web.Response:
    """`GET /healthz`: 200 while the process is alive."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """`GET /readyz`: 200 when connections are accepted, 503 with the reason when not."""
    phase = request.app[STATUS].phase
    return web.json_response({"status": phase}, status=200 if phase is Phase.READY else 503)


async def on_startup(app: web.Application) -> None:
    """Whoever runs the application listens right after this."""
    app[STATUS].ready()


async def on_shutdown(app: web.Application) -> None:
    """Close all tracked sockets: for a bare runner the drain, for `gateway.server` what is left after it."""
    app[STATUS].drain()
    server = app[CONFIG].server
    await app[CONNECTIONS].drain(server.drain_timeout, server.close_timeout)
