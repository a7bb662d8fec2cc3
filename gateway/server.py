"""The process: it listens, says so, reloads, drains and exits, in numbered steps."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import uvloop

from gateway import __version__
from gateway.app import CONNECTIONS, GATEWAY, STATUS, create_app
from gateway.assembly.front import Front, ops_app
from gateway.assembly.ports import Ports
from gateway.auth import authenticators
from gateway.config import Config, ConfigError
from gateway.config.certificates import tls_context
from gateway.handshake.sockets import address_of
from gateway.systemd import Notifier, Watchdog
from gateway.telemetry.log import LogWriter

logger = logging.getLogger(__name__)

GC_THRESHOLDS: Final = (20_000, 250, 100)
"""A connection makes many objects that stay: with Python's own thresholds, collection is a third of a connect.

The first threshold is low enough for pauses of a few milliseconds, and for the cycles that the standard library's
transports leave behind.
"""

EXIT_FORCED: Final = 1
"""Exit status after a second signal."""

_LOG_FLUSH: Final = 0.3
_STARTING: Final = 10.0
"""Seconds for which the service manager waits for the gateway to join its cluster."""


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
        self._ops: Front | None = None
        self._stop = asyncio.Event()
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until a signal, then drain. Returns the exit status.

        Raises ConfigError if it cannot listen, or cannot join its cluster as it is configured.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # before all else: pid 1 would lose a signal
            loop.add_signal_handler(number, self._on_stop, number)
        # 1. Take the sockets, so that an address in use is known before anything else is done.
        self._ports = ports = Ports(self._config, self._source_of, self._environ)
        # 2. Assemble.
        await self._assemble(self._tls_context())
        # 3. Listen, and say so.
        self._begin()
        try:
            # 4. Join the cluster, if there is one; until then health alone is answered.
            await self._join()
            # 5. Serve.
            await self._stop.wait()
            # 6. Refuse what is new.
            self._refuse()
            # 7. Let all connections go.
            await self._gateway.drain(self._config.server)
        finally:
            # 8. Close what is left: the listeners, handshakes under way, idle HTTP.
            await self._front.close()
            if self._ops is not None:
                await self._ops.close()
            ports.close()
            self._watchdog.stop()
            self._log_stopped()
        return 0

    async def _assemble(self, context: ssl.SSLContext | None) -> None:
        cluster = self._config.cluster
        if cluster.nats and not cluster.member:
            named = msgspec.structs.replace(cluster, member=self._ports.name)
            self._config = msgspec.structs.replace(self._config, cluster=named)
        self._app = app = create_app(self._config)
        self._gateway = gateway = app[GATEWAY]
        keeper = gateway.gatekeeper
        if self._ports.inherited:
            keeper.loopback_only = self._ports.loopback_only
        shared = self._config, gateway.rejections, gateway.lines, gateway.standstill
        self._front = Front(app)
        await self._front.setup(*shared, context=context, exempt=keeper.is_proxy)
        if self._ports.ops:
            self._ops = Front(ops_app(self._config.server, gateway.health))
            await self._ops.setup(*shared)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        self._front.start(self._ports.main)
        if self._ops is not None:
            self._ops.start(self._ports.ops)
        self._watchdog = Watchdog(self._notifier, self._environ, loop.call_later)
        self._watchdog.start()
        self._log_started()

    async def _join(self) -> None:
        """Return when the gateway is ready, or is to stop. Raises ConfigError if it never will be ready."""
        joining, cluster = self._gateway.joining, self._gateway.cluster
        if joining is not None and cluster is not None:
            # Not for long does the service manager wait, because without NATS the gateway is alive, too.
            await self._first_of(joining, cluster.waiting.wait(), timeout=_STARTING)
            if not joining.done():
                self._notifier.ready()
                await self._first_of(joining)
            if self._stop.is_set():
                return
            try:
                joining.result()
            except ConfigError as error:
                raise ConfigError(self._source_of(error.key), error.key, error.wrong, error.right) from error
        self._notifier.ready()
        logger.info("ready", extra={"event": "server.ready"})

    async def _first_of(
        self, task: asyncio.Task[None], *others: Coroutine[Any, Any, object], timeout: float | None = None
    ) -> None:
        """Wait until a task or one of the others is done, or a signal has come. The task goes on."""
        waiters = [asyncio.create_task(other) for other in (self._stop.wait(), *others)]
        await asyncio.wait({task, *waiters}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()

    def _refuse(self) -> None:
        self._app[STATUS].drain()
        self._notifier.stopping()
        connections = len(self._app[CONNECTIONS])
        logger.info("draining", extra={"event": "server.draining", "connections": connections})
        listener = self._front.listener
        if self._ports.inherited:  # they are systemd's, and queue for the successor
            listener.stop()
        elif self._config.server.reuse_port:  # what comes from now on is for the other processes
            listener.take_the_last()
            self._ports.leave()

    def _tls_context(self) -> ssl.SSLContext | None:
        return tls_context(self._config.server.tls_cert, self._config.server.tls_key)

    def _log_started(self) -> None:
        ops = {"ops": list(map(address_of, self._ports.ops))} if self._ports.ops else {}
        logger.info(
            "gateway %s started",
            __version__,
            extra={
                "event": "server.started",
                "version": __version__,
                "instance": self._app[STATUS].instance,
                "pid": os.getpid(),
                "listeners": list(map(address_of, self._ports.main)),
                **ops,
                "tls": self._front.listener.context is not None,
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
        """SIGHUP: read certificate, tokens and keys again. If one of them cannot be loaded, nothing changes.

        What is shown to NATS counts from the next link to it.
        """
        cluster = self._gateway.cluster
        self._notifier.reloading()
        while self._reload_wanted:  # one that came meanwhile stands for newer files
            self._reload_wanted = False
            try:
                context, authenticator = self._tls_context(), authenticators.load(self._config.auth)
                options = None if cluster is None else cluster.options()
            except (OSError, ConfigError) as error:
                logger.error(
                    "reload failed, all stays as it was: %s",
                    error,
                    extra={"event": "server.reload_failed", "reason": str(error)},
                )
                continue
            self._front.listener.context = context
            if cluster is not None and options is not None:
                cluster.nats.options = options
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
