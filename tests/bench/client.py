"""The connections of the load generators. Every server listens on 127.0.0.1.

Sockets and epoll without an event loop, for a load generator must cost less than the server that it measures.
"""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from tests.bench.frames import TEXT, FrameReader, PeerError, after_upgrade, upgrade_request
from tests.bench.procfs import Usage

HOST = "127.0.0.1"
# Clients come from 127.0.0.2 to 127.0.0.17, so that ports never run out.
SOURCES = 16
# From linux/in.h; the socket module of Python 3.11 does not have it. The port is chosen at connect.
IP_BIND_ADDRESS_NO_PORT = 24
READ_SIZE = 16384
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """The server: its port on 127.0.0.1, its process, and whether its first frame is `gateway.welcome`.

    headers: a connect has one of these lines, in turn. refuses: each upgrade is to be refused.
    """

    port: int
    pid: int
    welcomes: bool
    headers: tuple[str, ...] = ()
    refuses: bool = False

    def request(self, index: int) -> bytes:
        """The upgrade request of this connect."""
        return upgrade_request(HOST, self.port, self.headers[index % len(self.headers)] if self.headers else "")


def connect(target: Target, index: int) -> socket.socket:
    """Open a TCP connection from the source address for this index. Waits `PATIENCE` seconds at most."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((f"127.0.0.{2 + index % SOURCES}", 0))
    sock.connect((HOST, target.port))
    return sock


def open_websocket(target: Target, index: int) -> tuple[socket.socket, bytes]:
    """Connect, upgrade and read the welcome, if there is one. Returns the socket, and what came behind that.

    The socket blocks without a limit from here on. PeerError when the server refuses or closes.
    """
    sock = connect(target, index)
    sock.sendall(target.request(index))
    data = b""
    while (rest := after_upgrade(data)) is None:
        data += receive(sock)
    if target.welcomes:
        reader = FrameReader()
        while not (frames := reader.feed(rest)):
            rest = receive(sock)
        if len(frames) != 1 or frames[0].opcode != TEXT or not reader.between_frames:
            raise PeerError(f"the first frames are {frames!r}")
        rest = b""
    sock.settimeout(None)
    return sock, rest


def receive(sock: socket.socket) -> bytes:
    """Read once. PeerError at the end of the stream."""
    data = sock.recv(READ_SIZE)
    if not data:
        raise PeerError("the server ended the connection")
    return data


def settled_usage(pid: int) -> Usage:
    """Return what the server has used once it is idle: less than 1 ms in 100 ms, waited for up to 3 s."""
    last = Usage.of(pid)
    for _ in range(30):
        time.sleep(0.1)
        now = Usage.of(pid)
        if now.cpu - last.cpu < 0.001:
            break
        last = now
    return now


def say(answer: dict[str, Any]) -> None:
    """Write one line of JSON on standard output, at once: a load generator's result."""
    print(json.dumps(answer), flush=True)
