"""The connections of the load generators. Every server listens on 127.0.0.1.

Sockets and epoll without an event loop, for a load generator must cost less than the server that it measures.
"""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from tests.bench.frames import MESSAGES, TEXT, FrameReader, PeerError, after_upgrade, masked, upgrade_request
from tests.bench.kept import ACK, KEEP
from tests.bench.procfs import Usage

HOST = "127.0.0.1"
# Clients come from 127.0.0.2 to 127.0.0.17, so that ports never run out.
SOURCES = 16
# From linux/in.h; the socket module of Python 3.11 does not have it. The port is chosen at connect.
IP_BIND_ADDRESS_NO_PORT = 24
READ_SIZE = 16384
PATIENCE = 30.0
# Socket.IO 5 on Engine.IO 4: where it listens, and what both sides say first.
SOCKETIO_PATH = "/socket.io/?EIO=4&transport=websocket"
SOCKETIO_CONNECT = b"40"
# NATS: the server says INFO first; what is sent is answered when it is wanted.
NATS_CONNECT, NATS_OK = b'CONNECT {"verbose":true}\r\n', b"+OK\r\n"


@dataclass(frozen=True, slots=True)
class Target:
    """The server: its port on 127.0.0.1, its process, and whether its first frame is a welcome.

    headers: a connect has one of these lines, in turn. refuses: each upgrade is to be refused. socketio: it speaks
    Socket.IO. nats: it speaks NATS. kept: a connection is to outlive its link.
    """

    port: int
    pid: int
    welcomes: bool
    headers: tuple[str, ...] = ()
    refuses: bool = False
    socketio: bool = False
    nats: bool = False
    kept: bool = False

    def request(self, index: int) -> bytes:
        """The upgrade request of this connect."""
        header = self.headers[index % len(self.headers)] if self.headers else ""
        return upgrade_request(HOST, self.port, header, SOCKETIO_PATH if self.socketio else "/ws")

    def text(self, message: bytes) -> bytes:
        """What the frame of a JSON text has in it."""
        return b'42["rpc",%b]' % message if self.socketio else message


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
        receive_text(sock, rest)
        rest = b""
    if target.socketio:
        receive_text(sock, rest)
        rest = b""
        if not ask(sock, SOCKETIO_CONNECT).startswith(SOCKETIO_CONNECT):
            raise PeerError("Socket.IO was refused")
    if target.nats and ask(sock, NATS_CONNECT) != NATS_OK:
        raise PeerError("NATS was refused")
    if target.kept:
        _keep(sock)
    sock.settimeout(None)
    return sock, rest


def _keep(sock: socket.socket) -> None:
    """Have the gateway keep this connection, and acknowledge at once."""
    kept = ask(sock, KEEP)
    if b'"session"' not in kept:
        raise PeerError(f"the connection was not kept: {kept!r}")
    sock.sendall(masked(TEXT, ACK % 0))


def receive_text(sock: socket.socket, data: bytes = b"") -> bytes:
    """Read one message, the beginning of which is `data`; nothing may come with it."""
    reader = FrameReader()
    while not (frames := reader.feed(data)):
        data = receive(sock)
    if len(frames) != 1 or frames[0].opcode not in MESSAGES or not reader.between_frames:
        raise PeerError(f"a single text message was expected, not {frames!r}")
    return frames[0].payload


def ask(sock: socket.socket, text: bytes) -> bytes:
    """Send a text message, and return the one that comes back, for which `PATIENCE` seconds are waited at most."""
    before = sock.gettimeout()
    sock.settimeout(PATIENCE)
    sock.sendall(masked(TEXT, text))
    answer = receive_text(sock)
    sock.settimeout(before)
    return answer


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
