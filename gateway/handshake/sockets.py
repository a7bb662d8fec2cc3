"""The sockets that the gateway listens on: TCP addresses, or a Unix socket."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from typing import Any, Final

from gateway.handshake.proxies import format_address

BACKLOG: Final = 4096
"""How many connections the kernel queues for one socket, up to net.core.somaxconn."""


UNSENT: Final = 16 * 1024
"""Bytes that the kernel takes for a peer beyond those that are on their way to it. What is in the kernel cannot be
overtaken, and without a bound that would be megabytes.
"""


class Socket(socket.socket):
    """A stream socket whose family and type are plain numbers, like those of what it accepts.

    The standard library makes enums of them whenever they are asked for, and at each accept it and uvloop ask five
    times.
    """

    __slots__ = ()

    family: Any = socket.SocketType.family
    type: Any = socket.SocketType.type
    _accept: Callable[[], tuple[int, Any]]  # what the standard library's own `accept` is made of

    def accept(self) -> tuple[Socket, Any]:
        """Accept a connection. Returns its socket, and the address of the peer."""
        descriptor, address = self._accept()
        return Socket(self.family, self.type, self.proto, descriptor), address


def bind(hosts: tuple[str, ...], port: int, unix_socket: str, *, reuse_port: bool = False) -> list[socket.socket]:
    """Return listening, non-blocking sockets: the Unix socket if one is named, otherwise all addresses of ``hosts``.

    ``reuse_port``: other processes of this user that say so too may listen there as well, and the kernel spreads the
    connections over all of them.

    Raises OSError if an address is taken, not this machine's, or not permitted. Its ``filename`` is the host.
    """
    if unix_socket:
        return [_bind_unix(unix_socket)]
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            try:
                _bind_host(host, port, sockets, reuse_port)
            except OSError as error:
                error.filename = host
                raise
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_host(host: str, port: int, sockets: list[socket.socket], reuse_port: bool) -> None:
    """Add a socket for each address of a host, unless there is one already: two hosts may have an address in common."""
    bound = {sock.getsockname()[0] for sock in sockets}
    for family, kind, proto, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        if address[0] in bound:
            continue
        # If port 0 takes a free one, all other addresses get the same.
        taken = sockets[0].getsockname()[1] if sockets else port
        sock = Socket(family, kind, proto)
        sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address[0], taken, *address[2:]))
        sock.setblocking(False)
        sock.listen(BACKLOG)


def _bind_unix(path: str) -> socket.socket:
    """Return a Unix socket for its owner and group. A file that no process listens on any more is replaced."""
    _remove_stale(path)
    sock = Socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


def hurry(sock: socket.socket) -> None:
    """Let the kernel take no more than `UNSENT` for each connection that this listening socket accepts.

    Does nothing if the system or the family of the socket has no such bound.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT)


def address_of(sock: socket.socket) -> str:
    """Return a listening socket's address as the log has it: ``unix:`` and the path for a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    return format_address(sock.getsockname())
