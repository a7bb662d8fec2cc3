"""The load of `fanout`: one that publishes, and very many that have subscribed, all in this process."""

import gc
import json
import os
import select
import socket
import time
from dataclasses import asdict
from typing import Any

from tests.bench.client import NATS_OK, PATIENCE, READ_SIZE, Target, ask, open_websocket
from tests.bench.frames import TEXT, PeerError, ReplyCounter, masked, pong
from tests.bench.load_rpc import RpcResult, close, quantiles
from tests.bench.procfs import NOTHING, Usage

TOPIC = "bench.events"
SUBSCRIBE = b'{"jsonrpc":"2.0","id":1,"method":"event.subscribe","params":{"topics":["%b"]}}' % TOPIC.encode()
PUBLISH = b'{"jsonrpc":"2.0","id":1,"method":"event.publish","params":{"topic":"%b","data":%%b}}' % TOPIC.encode()

NATS_SUBSCRIBE = b"SUB %b 1\r\n" % TOPIC.encode()
NATS_PUBLISH = b"PUB %b %%d\r\n%%b\r\n" % TOPIC.encode()

clock = time.perf_counter


class FanoutLoad:
    """One publisher and `subscribers` subscribers; the next message is published when everybody has the last one."""

    def __init__(self, target: Target, subscribers: int, size: int) -> None:
        self._pid = target.pid
        self._epoll = select.epoll()
        self._ends: dict[int, tuple[socket.socket, ReplyCounter]] = {}
        for index in range(subscribers + 1):
            sock, rest = open_websocket(target, index)
            if rest:
                raise PeerError(f"the server spoke first: {rest[:100]!r}")
            self._ends[sock.fileno()] = (sock, ReplyCounter())
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            subscribe, done = (NATS_SUBSCRIBE, NATS_OK) if target.nats else (SUBSCRIBE, b'"result"')
            if index < subscribers and done not in (reply := ask(sock, subscribe)):
                raise PeerError(f"a subscription was answered {reply!r}")
        self._publisher = sock
        data = json.dumps("x" * (size - 2)).encode()
        self._message = masked(TEXT, NATS_PUBLISH % (len(data), data) if target.nats else PUBLISH % data)
        self._latencies: list[tuple[float, int]] = []
        self._reads = 0

    def run(self, warmup: float, seconds: float) -> RpcResult:
        """Publish for `warmup` seconds, then measure for `seconds`. Use it once."""
        self._publish_until(clock() + warmup)
        self._latencies.clear()
        self._reads = 0
        started, server, load = clock(), Usage.of(self._pid), Usage.of(os.getpid())
        self._publish_until(started + seconds)
        ended, server, load = clock(), Usage.of(self._pid).since(server), Usage.of(os.getpid()).since(load)
        messages = sum(count for _, count in self._latencies)
        p50, p99 = quantiles(self._latencies, (0.5, 0.99))
        errors = sum(counter.errors for _, counter in self._ends.values())
        for sock, _ in self._ends.values():
            close(sock)
        return RpcResult(ended - started, messages, self._reads, server, NOTHING, load, p50, p99, errors, 0)

    def _publish_until(self, deadline: float) -> None:
        """At least one message. PeerError when it does not reach everybody, or somebody twice."""
        everybody = len(self._ends)  # of which the publisher has the reply
        while True:
            published = clock()
            self._publisher.sendall(self._message)
            left = everybody
            while left > 0:
                ready = self._epoll.poll(PATIENCE)
                if not ready:
                    raise PeerError(f"{left} of {everybody} have not got a message within {PATIENCE:g} s")
                self._reads += len(ready)
                left -= sum(self._take(descriptor) for descriptor, _ in ready)
            if left:
                raise PeerError(f"{-left} messages too many")
            now = clock()
            self._latencies.append((now - published, everybody - 1))
            if now >= deadline:
                return

    def _take(self, descriptor: int) -> int:
        """Read once; return how many messages came."""
        sock, counter = self._ends[descriptor]
        data = sock.recv(READ_SIZE)
        if not data:
            raise PeerError("the server ended a connection")
        count = counter.feed(data)
        while counter.pings:
            sock.sendall(pong(counter.pings.pop()))
        return count


def fanout(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Publish to very many.

    Job: subscribers, size (bytes of a message), warmup and seconds (both in seconds). Result: RpcResult; messages are
    deliveries, a latency is the time until everybody has a message.
    """
    load = FanoutLoad(target, job["subscribers"], job["size"])
    gc.disable()
    return asdict(load.run(job["warmup"], job["seconds"]))
