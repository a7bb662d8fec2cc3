"""The sockets on which a process listens: those of systemd or its own, and those of the operator's port."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final

from gateway.config import Config, ConfigError, is_loopback
from gateway.handshake.sockets import address_of, bind
from gateway.systemd import listen_fds

logger = logging.getLogger(__name__)

_RIGHT: Final = {
    errno.EADDRINUSE: "an address that is free",
    errno.EACCES: "a port above 1023 or a writable directory, or the right to listen there",
    errno.ENOENT: "a path in a directory that exists",
    errno.ENOTDIR: "a path in a directory that exists",
}
_SHARED: Final = "an address that is free, or whose processes are all of one user, and all have server.reuse_port"


class Ports:
    """Takes the sockets: ``main`` for the gateway, ``ops`` for its operator. They listen, and do not block.

    ``source_of`` says where a key was set, and ``environ`` is where systemd leaves its variables. ``inherited``: those
    of ``main`` are systemd's. Raises ConfigError if an address cannot be had, or systemd's sockets may not be served.
    """

    def __init__(self, config: Config, source_of: Callable[[str], str], environ: MutableMapping[str, str]) -> None:
        self._source_of = source_of
        server = config.server
        inherited = _inherit(config, source_of, environ)
        self.inherited: Final = bool(inherited)
        # First, because a Unix socket of our own would leave its file behind if this failed.
        self.ops: Final = self._bind("ops", server.ops_hosts, server.ops_port) if server.ops_port else []
        self.main: Final = inherited or self._bind("", server.hosts, server.port, server.unix_socket, server.reuse_port)

    @property
    def loopback_only(self) -> bool:
        """Whether all sockets of ``main`` that are TCP can be reached only from this machine, and there are some."""
        tcp = [sock for sock in self.main if sock.family != socket.AF_UNIX]
        return bool(tcp) and all(map(is_loopback_socket, tcp))

    @property
    def name(self) -> str:
        """Where the gateway listens, for people: the first address, or the machine's name instead of all addresses."""
        first = address_of(self.main[0])
        host, _, port = first.rpartition(":")
        return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else first

    def leave(self) -> None:
        """Close the sockets of ``main``. May be called twice. A path of our own is removed."""
        for sock in self.main:
            if sock.fileno() >= 0:
                _close(sock, unlink=not self.inherited)

    def close(self) -> None:
        """Close all of them."""
        self.leave()
        for sock in self.ops:
            sock.close()

    def _bind(
        self, kind: str, hosts: tuple[str, ...], port: int, unix_socket: str = "", reuse_port: bool = False
    ) -> list[socket.socket]:
        try:
            return bind(hosts, port, unix_socket, reuse_port=reuse_port)
        except OSError as error:
            prefix = f"server.{kind}_" if kind else "server."
            key = "server.unix_socket" if unix_socket else f"{prefix}port"
            value = unix_socket or f"{error.filename}:{port}"
            right = _RIGHT.get(error.errno or 0, "an address that this process may listen on")
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                key, right = f"{prefix}host", "an address or name of this machine"
            elif reuse_port and error.errno == errno.EADDRINUSE:
                right = _SHARED
            wrong = f"cannot listen on {value}: {error.strerror}"
            raise ConfigError(self._source_of(key), key, wrong, right) from error


def _inherit(config: Config, source_of: Callable[[str], str], environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets of systemd, if there are any."""
    try:
        sockets = listen_fds(environ)
    except ValueError as error:
        raise ConfigError("environment", "LISTEN_FDS", str(error), "listening stream sockets") from error
    if sockets and config.server.reuse_port:
        key, right = "server.reuse_port", "false, and ReusePort=yes in the socket units that share an address"
        raise ConfigError(source_of(key), key, "true, and the sockets are systemd's", right)
    if sockets and config.auth.mode == "none" and not config.auth.allow_insecure:
        for sock in sockets:
            if not is_loopback_socket(sock):
                raise ConfigError(
                    "environment",
                    "LISTEN_FDS",
                    f'{address_of(sock)} is not loopback, and auth.mode "none" lets everybody in',
                    "ListenStream on 127.0.0.1 or a path, or auth.allow_insecure = true",
                )
    return sockets


def is_loopback_socket(sock: socket.socket) -> bool:
    """Whether a listening socket can be reached only from this machine."""
    return sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0])


def _close(sock: socket.socket, *, unlink: bool) -> None:
    path = sock.getsockname() if unlink and sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        try:
            os.unlink(path)
        except OSError as error:
            logger.warning("socket file stays: %s", error, extra={"event": "server.socket_stays"})
