"""An application of aiohttp behind listening sockets, with the gateway's own listener between them.

There is one for the gateway itself, and one for the operator's port if there is that.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from gateway.assembly.health import Health, foreign_to, nosniff
from gateway.config import Config, Server
from gateway.deadlines import Standstill
from gateway.handshake.listener import Listener, handler_args, response_begins
from gateway.handshake.plain import Handshakes, PlainConnections
from gateway.handshake.rejections import Rejections
from gateway.handshake.upgrade import Gatekeeper
from gateway.telemetry.lines import Lines

_LAST_MOMENT: Final = 0.2


class Front:
    """Serves one application. ``setup``, ``start`` and ``close`` are called once each, in this order."""

    def __init__(self, app: web.Application) -> None:
        app.on_response_prepare.append(response_begins)
        self._runner: Final = web.AppRunner(app, shutdown_timeout=_LAST_MOMENT)
        self.listener: Listener
        """What accepts, after `setup`."""

    async def setup(
        self,
        config: Config,
        rejections: Rejections,
        lines: Lines,
        standstill: Standstill,
        *,
        context: ssl.SSLContext | None = None,
        exempt: Callable[[str], bool] = lambda remote: False,
    ) -> None:
        """Start the application, and make its listener, with deadlines and bounds of its own.

        ``exempt`` tells which peers are not counted by address, such as proxies.
        """
        await self._runner.setup()
        assert self._runner.server is not None
        handshakes = Handshakes(config.server.handshake_timeout, rejections, standstill)
        plain = PlainConnections(
            rejections,
            handshakes,
            most=config.limits.max_http_connections,
            most_of_address=config.limits.max_connections_per_address,
            exempt=exempt,
        )
        self.listener = Listener(
            self._runner.server,
            handler_args=handler_args(config),
            handshakes=handshakes,
            plain=plain,
            rejections=rejections,
            lines=lines,
            context=context,
        )

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept on these sockets, which stay the caller's."""
        self.listener.start(sockets)

    async def close(self) -> None:
        """Accept no more, and end what is left: handshakes under way, idle HTTP, the application itself."""
        self.listener.stop()
        self.listener.handshakes.drop_all()
        await self._runner.cleanup()


def ops_app(server: Server, health: Health) -> web.Application:
    """Return the application of the operator's port. On loopback it serves loopback names alone, like the gateway."""
    app = web.Application()
    here = msgspec.structs.replace(server, host=server.ops_host, unix_socket="", allowed_hosts=())
    health.add_to(app, foreign_to(Gatekeeper(here)))
    app.on_response_prepare.append(nosniff)
    return app
