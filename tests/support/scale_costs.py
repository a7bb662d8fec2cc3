"""What a gateway of a cluster pays for what the others say, measured on its real code: processor time and memory.

Each measurement is a function without arguments of this module, and has a process of its own (`measured`). What is read
from NATS is made here as nats-server writes it, and goes through the gateway's reader and handlers; there is no socket.
"""

import asyncio
import contextlib
import gc
import io
import os
import select
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, Final, cast

import msgspec

from gateway.cluster.alive import Beat, address
from gateway.cluster.jetstream import JetStream, Wanted
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import Options
from gateway.cluster.natsstream import NatsStream
from gateway.cluster.natswire import Handler, Reader
from gateway.cluster.replica import Replica, sealed
from gateway.events.delivery import Delivery
from gateway.events.topics import Topics
from gateway.nodes.pages import Card, Entry, Method, Page, encode
from gateway.server import GC_THRESHOLDS
from gateway.telemetry.lines import Lines
from tests.bench.client import Target, open_websocket, receive
from tests.bench.frames import PONG, ReplyCounter, masked
from tests.bench.procfs import cpu_seconds, resident_bytes
from tests.support.cluster import Exchange, Side
from tests.support.ears import Way
from tests.support.fleet import until
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.process import GatewayProcess
from tests.support.scale_traffic import NODE, methods_of, node_name
from tests.support.stations import Station

TIMES: Final = 7
"""How often something is repeated. The median counts."""
READ: Final = 16 * 1024
"""Bytes that are read at once, about."""
MEMBERS: Final = 100
FIRST: Final = 0x1000
"""What the addresses of others are counted from."""
NODES: Final = 10_000
METHODS: Final = 5
TOPICS: Final = 1000
EVENTS: Final = 200_000
DATA: Final = b'{"temperature":21.5,"humidity":40,"battery":97,"at":"2026-11-26T22:00:00Z","unit":"celsius","n":1234}'
"""The data of an event: 100 bytes of JSON."""
TIME_TEXT: Final = "2026-11-26T22:00:00.000Z"


def measured(what: Callable[[], Any]) -> Any:
    """Return what a measurement returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_prepared, what).result()


def _prepared(what: Callable[[], Any]) -> Any:
    gc.set_threshold(*GC_THRESHOLDS)
    return what()


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return resident_bytes(os.getpid())


def micros(work: Callable[[], object], count: int) -> float:
    """Return the processor time of one of so many, in µs: the median of some repetitions of the work."""
    return statistics.median(once(work, count) for _ in range(TIMES))


def once(work: Callable[[], object], count: int) -> float:
    """Return the processor time of one of so many, in µs."""
    before = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - before) / count / 1000


def delivered(subject: bytes, payload: bytes, headers: bytes = b"") -> bytes:
    """Return a message as NATS delivers it, to the subscription 1."""
    if headers:
        return b"HMSG %b 1 %d %d\r\n%b%b\r\n" % (subject, len(headers), len(headers) + len(payload), headers, payload)
    return b"MSG %b 1 %d\r\n%b\r\n" % (subject, len(payload), payload)


def republished(subject: bytes, number: int, last: int, payload: bytes) -> bytes:
    """Return a message of the stream as NATS delivers it."""
    headers = (
        b"NATS/1.0\r\nNats-Stream: test\r\nNats-Subject: test.event.%b\r\nNats-Sequence: %d\r\n"
        b"Nats-Time-Stamp: 2026-11-26T22:00:00.000000000Z\r\nNats-Last-Sequence: %d\r\n\r\n" % (subject, number, last)
    )
    return delivered(b"test.live." + subject, payload, headers)


def reads(messages: Iterable[bytes]) -> list[bytes]:
    """Return the messages as they are read: several at once."""
    found, read = list[bytes](), bytearray()
    for message in messages:
        read += message
        if len(read) >= READ:
            found.append(bytes(read))
            read.clear()
    return [*found, bytes(read)]


def reader_for(handler: Handler) -> Reader:
    """Return a reader that hands everything to this handler."""
    reader = Reader(lambda line: None, _raise)
    reader.most = 1 << 23
    reader.handlers[b"1"] = handler
    return reader


def feed(reader: Reader, data: Iterable[bytes]) -> None:
    """Have a reader take what has been read."""
    for one in data:
        reader.feed(one)


def _raise(subject: bytes, error: Exception) -> None:
    raise error


async def _side() -> Side:
    """Return a gateway that knows `MEMBERS` others, which say nothing by themselves."""
    side = Side(Exchange(), "192.0.2.1:8765")
    side.join()
    side.members._stop()
    for number in range(1, MEMBERS + 1):
        side.members._heard(b"test.beat", b"", b"", beat(number, 1))
    assert len(side.members.others) == MEMBERS
    return side


def beat(member: int, number: int) -> bytes:
    """Return a heartbeat."""
    instance = f"{FIRST + member:08x}-6a51-4c1f-9d0e-2f6a3a3c8b11"
    return msgspec.json.encode(Beat(address(instance, 1), instance, f"192.0.2.{member}:8765", number, 0, 1.5))


def hearing() -> dict[str, float]:
    """Return the µs of a heartbeat and of a probe that come, and of a message that goes."""
    return asyncio.run(_hearing())


async def _hearing() -> dict[str, float]:
    side = await _side()
    beats = reads(
        delivered(b"test.beat", beat(member, number)) for number in range(100) for member in range(1, MEMBERS + 1)
    )
    hears = reader_for(side.members._heard)
    own = b"test.to." + side.members.address
    probes = reads(
        delivered(b"%b.probe.%08x_1" % (own, FIRST + member), b"") for _ in range(100) for member in range(1, 101)
    )
    takes = reader_for(side.members._mail)
    options = Options(urls=("nats://127.0.0.1",))
    nats = Nats(options, Lines(), on_joined=_ignore, on_lost=_ignore, on_failed=_ignore, on_error=_ignore)
    nats._loop, nats._most = asyncio.get_running_loop(), 1 << 20

    def send() -> None:
        for _ in range(100):
            for member in side.members.others:
                nats.publish(b"test.to.%b.probe.%b" % (member, member), b"", b"test.to.1.probe.1.%b" % member)
            nats._write()

    return {
        "beat": micros(partial(feed, hears, beats), 100 * MEMBERS),
        "probe": micros(partial(feed, takes, probes), 100 * MEMBERS),
        "sent": micros(send, 100 * MEMBERS),
    }


def _ignore(*what: object) -> None:
    """Do nothing."""


def entry(number: int, stamp: int) -> Entry:
    """Return what a gateway tells of a node."""
    card = Card(NODE.name, NODE.role, ["serve:>", "share:>"])
    name = node_name(number)
    methods = [Method(one.name, one.summary) for one in methods_of(name, METHODS)]
    conn_id = f"{number:08x}-6a51-4c1f-9d0e-{stamp:012x}"
    return Entry(
        name, conn_id, stamp, "203.0.113.1:54321", 1e9, whole=True, principal=card, methods=methods, removed=[]
    )


def roster() -> dict[str, float]:
    """Return what a node of another gateway takes: bytes of its message, bytes of memory, µs to come and to go."""
    return asyncio.run(_roster())


async def _roster() -> dict[str, float]:
    side = await _side()
    member = b"%08x_1" % (FIRST + 1)
    copy = side.roster._copies[side.members.others[member]]

    def said(pages: Iterable[Page]) -> list[bytes]:
        return reads(delivered(b"test.roster." + member, encode(page)) for page in pages)

    (hears,) = side.link.handlers_of(b"test.roster." + member)
    reader = reader_for(hears)
    come = said(Page(number + 1, [entry(number, number + 1)]) for number in range(NODES))
    gc.collect()
    before = resident()
    feed(reader, come)
    found = {"memory": (resident() - before) / NODES, "message": sum(map(len, come)) / NODES}
    assert len(side.nodes) == NODES and copy.number == NODES
    comes, goes = list[float](), list[float]()
    number, cost = NODES, side.nodes.cost
    for _ in range(TIMES):
        gone = said(Page(number + one + 1, gone=[node_name(one)]) for one in range(1000))
        back = said(Page(number + 1000 + one + 1, [entry(one, number + one)]) for one in range(1000))
        for data, times in ((gone, goes), (back, comes)):
            times.append(once(partial(feed, reader, data), 1000))
        number += 2000
    assert (len(side.nodes), side.nodes.cost) == (NODES, cost)
    return found | {"cost": cost / NODES, "comes": statistics.median(comes), "goes": statistics.median(goes)}


def events() -> dict[str, float]:
    """Return the µs to follow an event nobody here has subscribed to, and the bytes of memory of one that is kept."""
    return asyncio.run(_events())


async def _events() -> dict[str, float]:
    replica = Replica(time.monotonic, count=EVENTS // TOPICS, age=1e6, octets=1 << 30)
    wanted = Wanted(storage="memory", replicas=1, count=100, age=300.0, octets=1 << 30)
    nats = cast(Nats, Exchange)
    stream = NatsStream(nats, JetStream(nats, "test", wanted, str), replica, Lines(), now=lambda: "", clock=time.time)
    topics = Topics(stream.forget, max_topics=10_000)
    replica.listener = Delivery(topics, stream, Way(True))
    replica.reset("e")
    replica.caught_up(1, 0)
    stream._live, stream._following = b"test.live.", True
    payload = sealed(TIME_TEXT, "kitchen-pi", DATA)

    def batch(first: int, count: int) -> list[bytes]:
        numbers = range(first, first + count)
        return reads(
            republished(b"t.topic%04d" % (one % TOPICS), one, max(0, one - TOPICS), payload) for one in numbers
        )

    reader = reader_for(stream._on_live)
    feed(reader, batch(1, TOPICS))
    gc.collect()
    before, left = resident(), EVENTS - TOPICS
    for first in range(TOPICS + 1, EVENTS, 10_000):
        feed(reader, batch(first, min(10_000, EVENTS - first + 1)))
    memory = (resident() - before) / left
    assert (replica.head, len(replica._kept)) == (EVENTS, EVENTS)
    starts = range(EVENTS + 1, EVENTS + 1 + TIMES * 10_000, 10_000)
    times = [once(partial(feed, reader, batch(first, 10_000)), 10_000) for first in starts]
    text = next(iter(replica._kept.values())).message
    return {
        "follow": statistics.median(times),
        "memory": memory,
        "text": len(text),
        "wire": len(republished(b"t.topic0001", 1, 0, payload)),
    }


CONNECTIONS: Final = 1000


def pings() -> dict[str, float]:
    """Return the µs of processor time of a gateway for a ping to an idle connection, and its pong."""
    with contextlib.redirect_stdout(io.StringIO()):  # the gateway's log
        return {"ping": asyncio.run(_pings())}


async def _pings() -> float:
    async with GatewayProcess({"heartbeat": {"interval": 1.0, "timeout": 10.0}}) as gateway:
        crowd = _Crowd(Target(gateway.port, gateway.pid, welcomes=True))
        try:
            await asyncio.sleep(2.0)
            began, cpu = crowd.pongs, cpu_seconds(gateway.pid)
            await asyncio.sleep(8.0)
            return (cpu_seconds(gateway.pid) - cpu) * 1e6 / (crowd.pongs - began)
        finally:
            await asyncio.to_thread(crowd.close)


class _Crowd:
    """Connections that answer pings, and do nothing else."""

    def __init__(self, target: Target) -> None:
        self.pongs = 0
        self._over = False
        self._socks = [open_websocket(target, index) for index in range(CONNECTIONS)]
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        poll, held = select.epoll(), dict[int, tuple[Any, ReplyCounter]]()
        for sock, rest in self._socks:
            counter = ReplyCounter()
            counter.feed(rest)
            held[sock.fileno()] = sock, counter
            poll.register(sock.fileno(), select.EPOLLIN)
        while not self._over:
            for descriptor, _ in poll.poll(0.1):
                sock, counter = held[descriptor]
                counter.feed(receive(sock))
                for payload in counter.pings:
                    sock.sendall(masked(PONG, payload))
                self.pongs += len(counter.pings)
                counter.pings.clear()

    def close(self) -> None:
        """End them."""
        self._over = True
        self._thread.join()
        for sock, _ in self._socks:
            sock.close()


PUBLISHED: Final = 20_000
FOLLOWERS: Final = 9


def stream() -> dict[str, float]:
    """Return what a real nats-server needs for an event, and for each gateway that follows it, and its pace.

    The publisher's µs are those of the stream in a gateway, which publishes and follows. The stream is in files of one
    server, which has acknowledged each event.
    """
    one, publisher, pace = asyncio.run(_stream(1))
    many, *_ = asyncio.run(_stream(FOLLOWERS))
    each = (many - one) / (FOLLOWERS - 1)
    return {"event": one - each, "follower": each, "publisher": publisher, "pace": pace}


async def _stream(followers: int) -> tuple[float, float, float]:
    """Return the server's µs for an event that so many hear, those of this process, and events a second."""
    async with NatsServer(jetstream=True) as server, Station(server.url) as station:
        heard = 0

        def hear(*what: object) -> None:
            nonlocal heard
            heard += 1

        peers = [NatsPeer(server.url) for _ in range(followers - 1)]
        for peer in peers:
            await peer.__aenter__()
            peer.nats.subscribe(b"*.live.>", hear)
            await peer.nats.flush(10)
        await station.within_reach()
        pid = server._running.pid
        began, cpu, own = time.monotonic(), cpu_seconds(pid), time.thread_time()
        for number in range(0, PUBLISHED, 500):
            await asyncio.gather(
                *(station.stream.publish(f"t.topic{one % TOPICS}", DATA, "pi") for one in range(number, number + 500))
            )
        await until(lambda: heard == PUBLISHED * (followers - 1), "not all have come")
        taken, pace = cpu_seconds(pid) - cpu, PUBLISHED / (time.monotonic() - began)
        own = time.thread_time() - own
        for peer in peers:
            await peer.__aexit__(None, None, None)
        return taken * 1e6 / PUBLISHED, own * 1e6 / PUBLISHED, pace


MEASUREMENTS: Final = {"hearing": hearing, "roster": roster, "events": events, "pings": pings, "stream": stream}
