"""The load of `connect`: connections that come and go."""

import os
import select
import socket
import time
from dataclasses import asdict
from typing import Any

from tests.bench.client import PATIENCE, READ_SIZE, Target, connect, settled_usage
from tests.bench.frames import (
    CLOSE,
    NORMAL_CLOSE,
    TEXT,
    FrameReader,
    PeerError,
    after_upgrade,
    masked,
)
from tests.bench.procfs import Usage, forget_peak, peak_bytes


class Visit:
    """One connection's whole life: upgrade, the welcome if there is one, close handshake, end."""

    __slots__ = ("_closing", "_head", "_reader", "_sock", "_welcomed", "answered")

    def __init__(self, sock: socket.socket, welcomes: bool) -> None:
        self._sock = sock
        self._head: bytes | None = b""
        self._reader = FrameReader()
        self._welcomed = not welcomes
        self._closing = False
        self.answered = False

    def step(self) -> bool:
        """Read once and act on it. Returns True when the connection is over and closed."""
        data = self._sock.recv(READ_SIZE)
        if not data:
            if not self.answered:
                raise PeerError("the server ended the connection without a close frame")
            self._sock.close()
            return True
        if self._head is not None:
            self._head += data
            rest = after_upgrade(self._head)
            if rest is None:
                return False
            self._head, data = None, rest
        for frame in self._reader.feed(data):
            self._welcomed = self._welcomed or frame.opcode == TEXT
            self.answered = self.answered or frame.opcode == CLOSE
        if self._welcomed and not self._closing:
            self._sock.sendall(masked(CLOSE, NORMAL_CLOSE))
            self._closing = True
        return False


class Refused:
    """One that is refused: a response that is no 101, and the end."""

    __slots__ = ("_head", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = b""

    def step(self) -> bool:
        """Read once. Returns True when the server has ended the connection."""
        data = self._sock.recv(READ_SIZE)
        self._head += data
        if data:
            return False
        if not self._head.startswith(b"HTTP/1.1 4"):
            raise PeerError(f"the upgrade was answered {self._head[:40]!r}")
        self._sock.close()
        return True


def visit_all(target: Target, first: int, connects: int, at_once: int) -> None:
    """Open and close `connects` connections, `at_once` of them at a time. TimeoutError when nothing moves.

    The first one is number `first`: that says which address and which header each has.
    """
    poll = select.epoll()
    visits: dict[int, Visit | Refused] = {}
    opened = 0
    while opened < connects or visits:
        while opened < connects and len(visits) < at_once:
            sock = connect(target, first + opened)
            sock.sendall(target.request(first + opened))
            visits[sock.fileno()] = Refused(sock) if target.refuses else Visit(sock, target.welcomes)
            poll.register(sock.fileno(), select.EPOLLIN)
            opened += 1
        ready = poll.poll(PATIENCE)
        if not ready:
            raise TimeoutError(f"{len(visits)} connections stand still")
        for descriptor, _ in ready:
            if visits[descriptor].step():
                del visits[descriptor]
    poll.close()


def churn(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Open and close connections.

    Job: first, connects, atOnce, warmup (connects before the count). Result: seconds, the Usage of server and load, and
    the bytes by which the server's peak of resident memory has grown.
    """
    visit_all(target, job["first"], job["warmup"], job["atOnce"])
    forget_peak(target.pid)
    before = peak_bytes(target.pid)
    server, load, started = settled_usage(target.pid), Usage.of(os.getpid()), time.perf_counter()
    visit_all(target, job["first"] + job["warmup"], job["connects"], job["atOnce"])
    seconds, load = time.perf_counter() - started, Usage.of(os.getpid()).since(load)
    server = settled_usage(target.pid).since(server)
    grown = peak_bytes(target.pid) - before
    return {"seconds": seconds, "server": asdict(server), "load": asdict(load), "peak": grown}
