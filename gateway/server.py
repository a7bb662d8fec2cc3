"""The process: it listens, says so, reloads, drains and exits, in numbered steps."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Final

import uvloop
from aiohttp import web

from gateway import __version__
from gateway.app import CONNECTIONS, GATEWAY, STATUS, create_app
from gateway.auth import authenticators
from gateway.config import Config, ConfigError, is_loopback
from gateway.config.certificates import tls_context
from gateway.handshake.listener import Listener, handler_args, response_begins
from gateway.handshake.plain import Handshakes, PlainConnections
from gateway.handshake.sockets import address_of, bind
from gateway.systemd import Notifier, Watchdog, listen_fds
from gateway.telemetry.log import LogWriter

logger = logging.getLogger(__name__)

GC_THRESHOLDS: Final = (20_000, 250, 100)
"""A connection makes many objects that stay: with Python's own thresholds, collection is a third of a connect.

The first threshold is low enough for pauses of a few milliseconds, and for the cycles that the standard library's
transports leave behind.
"""

EXIT_FORCED: Final = 1
"""Exit status after a second signal."""

_RIGHT: Final = {
    errno.EADDRINUSE: "an address that is free",
    errno.EACCES: "a port above 1023 or a writable directory, or the right to listen there",
    errno.ENOENT: "a path in a directory that exists",
    errno.ENOTDIR: "a path in a directory that exists",
}
_LAST_MOMENT: Final = 0.2
_LOG_FLUSH: Final = 0.3


class Server:
    """One run of the gateway. ``run`` once.

    ``source_of`` says where a key was set, for errors that show only in use. ``environ`` is where systemd leaves its
    variables.
    """

    def __init__(
        self, config: Config, source_of: Callable[[str], str], environ: dict[str, str], log: LogWriter
    ) -> None:
        self._config = config
        self._source_of = source_of
        self._environ = environ
        self._log = log
        self._notifier = Notifier(environ)
        self._stop = asyncio.Event()
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until a signal, then drain. Returns the exit status; raises ConfigError if it cannot listen."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # before all else: pid 1 would lose a signal
            loop.add_signal_handler(number, self._on_stop, number)
        # 1. Take the sockets, so that an address in use is known before anything else is done.
        inherited = self._inherit()
        sockets = inherited or self._bind()
        # 2. Assemble.
        runner = await self._assemble(inherited, self._tls_context())
        # 3. Listen, and say so.
        watchdog = self._begin(sockets)
        # 4. Serve.
        await self._stop.wait()
        # 5. Refuse what is new. The socket of a socket unit is systemd's, and queues for the successor.
        self._refuse()
        if inherited:
            self._listener.stop()
        # 6. Let all connections go.
        await self._gateway.drain(self._config.server)
        # 7. Close what is left: the listener, handshakes under way, idle HTTP.
        self._listener.stop()
        self._listener.handshakes.drop_all()
        await runner.cleanup()
        for sock in sockets:
            _close(sock, unlink=not inherited)
        watchdog.stop()
        self._log_stopped()
        return 0

    async def _assemble(self, inherited: list[socket.socket], context: ssl.SSLContext | None) -> web.AppRunner:
        self._app = app = create_app(self._config)
        self._gateway = app[GATEWAY]
        app.on_response_prepare.append(response_begins)
        if inherited:
            tcp = [sock for sock in inherited if sock.family != socket.AF_UNIX]
            self._gateway.gatekeeper.loopback_only = bool(tcp) and all(map(_is_loopback_socket, tcp))
        runner = web.AppRunner(app, shutdown_timeout=_LAST_MOMENT)
        await runner.setup()
        assert runner.server is not None
        self._listener = self._make_listener(runner.server, context)
        return runner

    def _make_listener(self, server: web.Server, context: ssl.SSLContext | None) -> Listener:
        gateway, limits = self._gateway, self._config.limits
        handshakes = Handshakes(self._config.server.handshake_timeout, gateway.rejections, gateway.standstill)
        plain = PlainConnections(
            gateway.rejections,
            handshakes,
            most=limits.max_http_connections,
            most_of_address=limits.max_connections_per_address,
            exempt=gateway.gatekeeper.is_proxy,
        )
        return Listener(
            server,
            handler_args=handler_args(self._config),
            handshakes=handshakes,
            plain=plain,
            rejections=gateway.rejections,
            lines=gateway.lines,
            context=context,
        )

    def _begin(self, sockets: list[socket.socket]) -> Watchdog:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        self._listener.start(sockets)
        watchdog = Watchdog(self._notifier, self._environ, loop.call_later)
        watchdog.start()
        self._log_started(sockets)
        self._notifier.ready()
        logger.info("ready", extra={"event": "server.ready"})
        return watchdog

    def _refuse(self) -> None:
        self._app[STATUS].drain()
        self._notifier.stopping()
        connections = len(self._app[CONNECTIONS])
        logger.info("draining", extra={"event": "server.draining", "connections": connections})

    def _inherit(self) -> list[socket.socket]:
        try:
            sockets = listen_fds(self._environ)
        except ValueError as error:
            raise ConfigError("environment", "LISTEN_FDS", str(error), "listening stream sockets") from error
        if sockets and self._config.auth.mode == "none" and not self._config.auth.allow_insecure:
            for sock in sockets:
                if not _is_loopback_socket(sock):
                    raise ConfigError(
                        "environment",
                        "LISTEN_FDS",
                        f'{address_of(sock)} is not loopback, and auth.mode "none" lets everybody in',
                        "ListenStream on 127.0.0.1 or a path, or auth.allow_insecure = true",
                    )
        return sockets

    def _bind(self) -> list[socket.socket]:
        server = self._config.server
        try:
            return bind(server.hosts, server.port, server.unix_socket)
        except OSError as error:
            key = "server.unix_socket" if server.unix_socket else "server.port"
            value = server.unix_socket or f"{error.filename}:{server.port}"
            right = _RIGHT.get(error.errno or 0, "an address that this process may listen on")
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                key, right = "server.host", "an address or name of this machine"
            wrong = f"cannot listen on {value}: {error.strerror}"
            raise ConfigError(self._source_of(key), key, wrong, right) from error

    def _tls_context(self) -> ssl.SSLContext | None:
        return tls_context(self._config.server.tls_cert, self._config.server.tls_key)

    def _log_started(self, sockets: list[socket.socket]) -> None:
        logger.info(
            "gateway %s started",
            __version__,
            extra={
                "event": "server.started",
                "version": __version__,
                "instance": self._app[STATUS].instance,
                "pid": os.getpid(),
                "listeners": [address_of(sock) for sock in sockets],
                "tls": self._listener.context is not None,
                "eventLoop": self._config.server.event_loop,
            },
        )

    def _log_stopped(self) -> None:
        logger.info(
            "stopped",
            extra={
                "event": "server.stopped",
                "uptime": round(self._app[STATUS].uptime, 3),
                "connections": len(self._app[CONNECTIONS]),
            },
        )

    def _on_stop(self, number: int) -> None:
        if not self._stop.is_set():
            self._stop.set()
            return
        logger.warning(
            "second signal, ended at once",
            extra={"event": "server.stopped", "signal": signal.Signals(number).name},
        )
        self._log.flush(_LOG_FLUSH)
        os._exit(EXIT_FORCED)

    def _on_reload(self) -> None:
        if self._stop.is_set():
            return  # no connection comes any more, and systemd has been told of the end
        self._reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        """SIGHUP: read certificate, tokens and keys again. If one of them cannot be loaded, nothing changes."""
        self._notifier.reloading()
        while self._reload_wanted:  # one that came meanwhile stands for newer files
            self._reload_wanted = False
            try:
                context, authenticator = self._tls_context(), authenticators.load(self._config.auth)
            except (OSError, ConfigError) as error:
                logger.error(
                    "reload failed, all stays as it was: %s",
                    error,
                    extra={"event": "server.reload_failed", "reason": str(error)},
                )
                continue
            self._listener.context = context
            revoked = await self._gateway.renew(authenticator)
            logger.info("reloaded", extra={"event": "server.reloaded", "revoked": revoked})
        if not self._stop.is_set():
            self._notifier.ready()


def serve(config: Config, source_of: Callable[[str], str], environ: dict[str, str], log: LogWriter) -> int:
    """Run a gateway in this process and return its exit status. Raises ConfigError if it cannot listen."""
    gc.set_threshold(*GC_THRESHOLDS)
    _raise_file_limit()
    new_loop = uvloop.new_event_loop if config.server.event_loop == "uvloop" else asyncio.new_event_loop

    async def main() -> int:
        return await Server(config, source_of, environ, log).run()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


def _raise_file_limit() -> None:
    """A connection is a file descriptor: use all that the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _is_loopback_socket(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0])


def _close(sock: socket.socket, *, unlink: bool) -> None:
    path = sock.getsockname() if unlink and sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        try:
            os.unlink(path)
        except OSError as error:
            logger.warning("socket file stays: %s", error, extra={"event": "server.socket_stays"})
