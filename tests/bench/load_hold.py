"""The load of `memory`: connections that stay and ask nothing."""

import select
import socket
import sys
from typing import Any

from tests.bench.client import Target, open_websocket, receive, say
from tests.bench.frames import PONG, ReplyCounter, masked


def hold(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Hold connections until standard input ends, and say `{"held": N}` when all are open.

    Job: connections, first (the index of the first). Whatever the server sends is read and dropped; pings are
    answered. PeerError when a connection ends.
    """
    poll = select.epoll()
    held: dict[int, tuple[socket.socket, ReplyCounter]] = {}
    for index in range(job["first"], job["first"] + job["connections"]):
        sock, rest = open_websocket(target, index)
        counter = ReplyCounter()
        counter.feed(rest)
        held[sock.fileno()] = (sock, counter)
        poll.register(sock.fileno(), select.EPOLLIN)
    say({"held": len(held)})
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                return {"held": len(held)}
            sock, counter = held[descriptor]
            counter.feed(receive(sock))
            for payload in counter.pings:
                sock.sendall(masked(PONG, payload))
            counter.pings.clear()
