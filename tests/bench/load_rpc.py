"""The load of `rpc`: connections that each keep requests in flight."""

import bisect
import gc
import itertools
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tests.bench.client import PATIENCE, READ_SIZE, Target, open_websocket
from tests.bench.frames import CLOSE, NORMAL_CLOSE, TEXT, PeerError, ReplyCounter, masked, pong
from tests.bench.kept import KeptCounter
from tests.bench.nats import NatsCounter
from tests.bench.procfs import Usage

DRAIN_SECONDS = 3.0
# Ids of one connection in flight must differ; a ring of frames is sent round and round.
RING = 1024
FIRST_ID = 1000
MOST_IN_FLIGHT = RING // 2

clock = time.perf_counter


PING_REQUEST = b'{"jsonrpc":"2.0","id":%d,"method":"gateway.ping","params":[1]}'


def request_ring(request: bytes = PING_REQUEST) -> tuple[bytes, int]:
    """Return `RING` masked requests in a row, twice, so that a slice never wraps; and the length of one."""
    frames = [masked(TEXT, request % number) for number in range(FIRST_ID, FIRST_ID + RING)]
    return b"".join(frames) * 2, len(frames[0])


class End(Protocol):
    """One connection of a load generator."""

    @property
    def errors(self) -> int:
        """Replies that were errors."""

    def ask(self, count: int, now: float) -> None:
        """Send `count` requests."""

    def take(self) -> tuple[int, float]:
        """Read once; return how many replies that completed, and when."""

    def outstanding(self) -> int:
        """Return how many requests are not answered."""

    def close(self) -> None:
        """End it, in order."""


class Caller:
    """One connection that keeps a number of requests in flight.

    As many as one read answers, one send asks again. Replies are taken to come in the order of the requests. If the
    connection is kept, what is `received` is acknowledged by the same send.
    """

    __slots__ = (
        "_batches",
        "_frame",
        "_latencies",
        "_position",
        "_received",
        "_recv",
        "_ring",
        "_send",
        "_sock",
        "replies",
    )

    def __init__(
        self,
        sock: socket.socket,
        ring: memoryview,
        frame: int,
        latencies: list[tuple[float, int]],
        replies: ReplyCounter | NatsCounter,
    ) -> None:
        self._sock = sock
        self._recv, self._send = sock.recv, sock.send
        self._ring = ring
        self._frame = frame
        self._latencies = latencies
        self._position = 0
        self._batches: deque[tuple[float, int]] = deque()
        self._received = replies.received if isinstance(replies, KeptCounter) else None
        self.replies = replies

    def ask(self, count: int, now: float) -> None:
        """Send `count` requests in one send."""
        start, frame = self._position, self._frame
        end = start + count
        frames = self._ring[start * frame : end * frame]
        ack = self._received.acknowledgement() if self._received is not None else b""
        self._send(b"".join((frames, ack)) if ack else frames)
        self._position = end % RING
        self._batches.append((now, count))

    def take(self) -> tuple[int, float]:
        """Read once; return how many replies that completed, and when. Notes how long each took."""
        data = self._recv(READ_SIZE)
        now = clock()
        if not data:
            raise PeerError("the server ended the connection")
        replies, batches = self.replies, self._batches
        count = replies.feed(data)
        if replies.pings:
            self._pong()
        if batches and batches[0][1] == count:
            # The usual case: one send's replies come in one read.
            self._latencies.append((now - batches.popleft()[0], count))
        else:
            self._settle(count, now)
        return count, now

    @property
    def errors(self) -> int:
        """Replies that were errors."""
        return self.replies.errors

    def outstanding(self) -> int:
        """Return how many requests are not answered."""
        return sum(count for _, count in self._batches)

    def close(self) -> None:
        """Close in order."""
        close(self._sock)

    def _settle(self, count: int, now: float) -> None:
        batches = self._batches
        while count:
            if not batches:
                raise PeerError("more replies than requests")
            asked, size = batches[0]
            taken = min(size, count)
            self._latencies.append((now - asked, taken))
            count -= taken
            if taken == size:
                batches.popleft()
            else:
                batches[0] = (asked, size - taken)

    def _pong(self) -> None:
        for payload in self.replies.pings:
            self._sock.sendall(pong(payload))
        self.replies.pings.clear()


def close(sock: socket.socket) -> None:
    """Send a close frame and wait for the end, for `PATIENCE` seconds at most."""
    sock.settimeout(PATIENCE)
    sock.sendall(masked(CLOSE, NORMAL_CLOSE))
    while sock.recv(READ_SIZE):
        pass
    sock.close()


@dataclass(frozen=True, slots=True)
class RpcResult:
    """What one sample saw in its window of `seconds`. p50 and p99 are in seconds.

    errors and unanswered are of the whole sample. reads: reads of the load generator that completed a reply. beside:
    what processes beside the server have used.
    """

    seconds: float
    messages: int
    reads: int
    server: Usage
    beside: Usage
    load: Usage
    p50: float
    p99: float
    errors: int
    unanswered: int


class RpcLoad:
    """Keeps `in_flight` requests outstanding on each of its connections. `ends`: by their file descriptors.

    `latencies` is where they note how long each reply took. pids: the server's processes, and those beside it.
    """

    def __init__(
        self,
        pids: tuple[Sequence[int], Sequence[int]],
        in_flight: int,
        ends: Mapping[int, End],
        latencies: list[tuple[float, int]],
    ) -> None:
        if not 1 <= in_flight <= MOST_IN_FLIGHT:
            raise ValueError(f"in flight: 1 to {MOST_IN_FLIGHT}")
        self._pids = *pids, (os.getpid(),)
        self._in_flight = in_flight
        self._ends = ends
        self._latencies = latencies
        self._messages = 0
        self._reads = 0
        self._epoll = select.epoll()
        for descriptor in ends:
            self._epoll.register(descriptor, select.EPOLLIN)

    def run(self, warmup: float, seconds: float) -> RpcResult:
        """Ask for `warmup` seconds, measure for `seconds`, and wait for the last replies. Use it once."""
        now = clock()
        for end in self._ends.values():
            end.ask(self._in_flight, now)
        self._turn(now + warmup, again=True)
        self._latencies.clear()
        self._messages = self._reads = 0
        started, before = clock(), [Usage.of(*pids) for pids in self._pids]
        self._turn(started + seconds, again=True)
        ended = clock()
        server, beside, load = [
            Usage.of(*pids).since(earlier) for pids, earlier in zip(self._pids, before, strict=True)
        ]
        messages, reads = self._messages, self._reads
        p50, p99 = quantiles(self._latencies, (0.5, 0.99))
        self._turn(clock() + DRAIN_SECONDS, again=False)
        ends = self._ends.values()
        unanswered = sum(end.outstanding() for end in ends)
        errors = sum(end.errors for end in ends)
        for end in ends:
            end.close()
        return RpcResult(ended - started, messages, reads, server, beside, load, p50, p99, errors, unanswered)

    def _turn(self, deadline: float, *, again: bool) -> None:
        """Serve the connections until the deadline. `again` false: ask no more, stop when all is answered."""
        poll, ends = self._epoll.poll, self._ends
        messages = reads = 0
        waiting = 0 if again else sum(end.outstanding() for end in ends.values())
        while clock() < deadline and (again or messages < waiting):
            for descriptor, _ in poll(0.05):
                end = ends[descriptor]
                count, now = end.take()
                if count:
                    if again:
                        end.ask(count, now)
                    messages += count
                    reads += 1
        self._messages += messages
        self._reads += reads


def quantiles(latencies: list[tuple[float, int]], shares: tuple[float, ...]) -> list[float]:
    """Return, for each share, the latency that this share of all replies stayed within.

    latencies: pairs of a latency and how many replies had it. ValueError when there are none.
    """
    if not latencies:
        raise ValueError("no reply came within the window")
    ordered = sorted(latencies)
    reached = list(itertools.accumulate(count for _, count in ordered))
    return [ordered[bisect.bisect_left(reached, share * reached[-1])][0] for share in shares]


def rpc(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Keep requests in flight.

    Job: connections, inFlight, warmup and seconds (both in seconds). Result: RpcResult.
    """
    ring, frame = request_ring()
    latencies: list[tuple[float, int]] = []
    ends: dict[int, End] = {}
    for index in range(job["connections"]):
        sock, rest = open_websocket(target, index)
        if rest:
            raise PeerError(f"the server spoke first: {rest[:100]!r}")
        ends[sock.fileno()] = Caller(sock, memoryview(ring), frame, latencies, ReplyCounter())
    load = RpcLoad(([target.pid], []), job["inFlight"], ends, latencies)
    gc.disable()
    return asdict(load.run(job["warmup"], job["seconds"]))
