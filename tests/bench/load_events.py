"""The load of events in a cluster: one that publishes, and a subscriber at each gateway, all in this process."""

import gc
import os
import select
import socket
from dataclasses import asdict, replace
from typing import Any

from tests.bench.client import PATIENCE, READ_SIZE, Target, ask, open_websocket
from tests.bench.frames import TEXT, PeerError, ReplyCounter, masked, pong
from tests.bench.load_fanout import PUBLISH, SUBSCRIBE
from tests.bench.load_rpc import RpcResult, clock, close, quantiles
from tests.bench.procfs import Usage


class EventsLoad:
    """Publishes so many messages at once, again and again, each time when all subscribers have the last ones."""

    def __init__(self, target: Target, ports: list[int], at_once: int) -> None:
        self._epoll = select.epoll()
        self._ends: dict[int, tuple[socket.socket, ReplyCounter]] = {}
        self._publisher = self._open(target)
        for port in ports:
            subscriber = self._open(replace(target, port=port))
            if b'"result"' not in (reply := ask(subscriber, SUBSCRIBE)):
                raise PeerError(f"a subscription was answered {reply!r}")
        self._at_once = at_once
        publish = PUBLISH.replace(b'"id":1,', b'"id":%d,')  # those in flight at the same time must differ
        texts = (publish % (number, b'"0123456789"') for number in range(1, at_once + 1))
        self._messages = b"".join(masked(TEXT, text) for text in texts)
        self._latencies: list[tuple[float, int]] = []
        self._reads = 0

    def _open(self, target: Target) -> socket.socket:
        sock, rest = open_websocket(target, len(self._ends))
        if rest:
            raise PeerError(f"the server spoke first: {rest[:100]!r}")
        self._ends[sock.fileno()] = (sock, ReplyCounter())
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock

    def run(self, pids: tuple[list[int], list[int]], warmup: float, seconds: float) -> RpcResult:
        """Publish for `warmup` seconds, then measure for `seconds`. pids: as for `load_rpc.RpcLoad`. Use it once."""
        self._publish_until(clock() + warmup)
        self._latencies.clear()
        self._reads = 0
        every = *pids, [os.getpid()]
        started, before = clock(), [Usage.of(*some) for some in every]
        self._publish_until(started + seconds)
        ended = clock()
        server, beside, load = [Usage.of(*some).since(old) for some, old in zip(every, before, strict=True)]
        messages = sum(count for _, count in self._latencies)
        p50, p99 = quantiles(self._latencies, (0.5, 0.99))
        errors = sum(counter.errors for _, counter in self._ends.values())
        for sock, _ in self._ends.values():
            close(sock)
        return RpcResult(ended - started, messages, self._reads, server, beside, load, p50, p99, errors, 0)

    def _publish_until(self, deadline: float) -> None:
        """At least once. PeerError if a message does not reach all, or somebody twice."""
        while True:
            published = clock()
            self._publisher.sendall(self._messages)
            left = dict.fromkeys(self._ends, self._at_once)  # the publisher has replies
            while any(left.values()):
                ready = self._epoll.poll(PATIENCE)
                if not ready:
                    raise PeerError(f"a message has not reached all within {PATIENCE:g} s")
                for descriptor, _ in ready:
                    left[descriptor] -= self._take(descriptor)
            if min(left.values()) < 0:
                raise PeerError(f"{-min(left.values())} messages too many")
            now = clock()
            self._latencies.append((now - published, self._at_once))
            if now >= deadline:
                return

    def _take(self, descriptor: int) -> int:
        """Read once; return how many messages came."""
        sock, counter = self._ends[descriptor]
        data = sock.recv(READ_SIZE)
        if not data:
            raise PeerError("the server ended a connection")
        self._reads += 1
        count = counter.feed(data)
        while counter.pings:
            sock.sendall(pong(counter.pings.pop()))
        return count


def events(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Publish at the first gateway.

    Job: ports (of all gateways), inFlight (messages at once), warmup and seconds (both in seconds), pids of the
    gateways, and of what is beside them. Result: RpcResult; a latency is the time until all have the messages.
    """
    load = EventsLoad(target, job["ports"], job["inFlight"])
    gc.disable()
    return asdict(load.run((job["pids"], job["beside"]), job["warmup"], job["seconds"]))
