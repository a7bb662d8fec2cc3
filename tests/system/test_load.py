"""What one connection may ask of the gateway, while the others are answered.

Floods and slow readers are real peers over loopback, bounded in count; who floods is a process of its own.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from tests.bench.process import Load
from tests.support.fleet import until
from tests.support.flood import KINDS
from tests.support.forks import start_python
from tests.support.patience import WAIT, Sized
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import EventLoopName, GatewayProcess, StartGateway

METHODS = {"methods": {"modules": ["tests.support.load_methods"]}}
MEBIBYTE = 1 << 20
ANSWERS = 30
"""How many answers another peer gets during a flood."""


class Client:
    """One connection, asked one thing at a time."""

    def __init__(self, peer: RawPeer, conn_id: str) -> None:
        self.peer = peer
        self.conn_id = conn_id
        self._asked = 0

    async def call(self, method: str, params: object = None) -> Any:
        """Call a method and return its result."""
        self._asked += 1
        identity = f"call {self._asked}"
        await self.peer.send_json(request(identity, method, params))
        reply = await self.peer.recv_json()
        assert reply["id"] == identity
        assert "result" in reply, reply
        return reply["result"]


@asynccontextmanager
async def client(where: GatewayProcess, **options: Any) -> AsyncIterator[Client]:
    """Connect for a while. Keywords: see RawPeer.open."""
    with await RawPeer.open(where, **options) as peer:
        yield Client(peer, (await peer.welcome())["connId"])


def request(identity: object, method: str, params: object = None) -> dict[str, object]:
    message = {"jsonrpc": "2.0", "id": identity, "method": method}
    return message if params is None else message | {"params": params}


def framed(*messages: object) -> bytes:
    return b"".join(frame(Opcode.TEXT, json.dumps(message).encode()) for message in messages)


async def replies(peer: RawPeer, count: int) -> list[Any]:
    return [await peer.recv_json() for _ in range(count)]


# Calls in flight


async def test_of_a_thousand_slow_calls_64_run_and_the_rest_is_refused(
    gateway: StartGateway, loop: EventLoopName
) -> None:
    process = await gateway(METHODS, loop=loop)
    async with client(process) as caller, client(process) as other:
        await caller.peer.send_raw(framed(*(request(number, "load.wait") for number in range(1000))))
        refused = await replies(caller.peer, 936)
        for reply in refused:
            assert reply["error"]["code"] == -32009, reply
            data = reply["error"]["data"]
            assert (data["code"], data["temporary"]) == ("overloaded", True)
            assert data["retryAfterMs"] > 0
        assert (await other.call("connection.get", {"connId": caller.conn_id}))["inFlight"] == 64
        assert await other.call("load.open") == {"running": 64, "peak": 64}
        through = await replies(caller.peer, 64)
        assert all(reply["result"] == "through" for reply in through)
        assert Counter(reply["id"] for reply in (*refused, *through)) == Counter(range(1000))
        assert (await other.call("connection.get", {"connId": caller.conn_id}))["inFlight"] == 0


async def test_each_element_of_a_batch_counts(gateway: StartGateway) -> None:
    process = await gateway(METHODS)
    async with client(process) as caller, client(process) as other:
        notification = {"jsonrpc": "2.0", "method": "load.wait"}
        batch = [notification, *(request(number, "load.wait") for number in range(99))]
        await caller.peer.send_raw(framed(batch))
        await caller.call("gateway.ping")
        assert await other.call("load.open") == {"running": 64, "peak": 64}
        answered = await caller.peer.recv_json()
        assert sorted(reply["id"] for reply in answered) == list(range(99))
        assert Counter(reply.get("error", {}).get("code") for reply in answered) == {None: 63, -32009: 36}


async def test_who_waits_as_told_is_served_in_the_end(gateway: StartGateway) -> None:
    process = await gateway(METHODS)
    async with client(process) as caller:
        served: list[int] = []
        waiting = list(range(1000))
        while waiting:
            await caller.peer.send_raw(framed(*(request(each, "load.nap", [0.005]) for each in waiting)))
            got = await replies(caller.peer, len(waiting))
            assert sorted(reply["id"] for reply in got) == sorted(waiting)
            served += [reply["id"] for reply in got if "result" in reply]
            refused = [reply for reply in got if "error" in reply]
            waiting = [reply["id"] for reply in refused]
            await asyncio.sleep(max((reply["error"]["data"]["retryAfterMs"] for reply in refused), default=0) / 1000)
        assert sorted(served) == list(range(1000))


# Who does not read is not read


class Unread(NamedTuple):
    """So many requests, each with a result of so many bytes."""

    requests: int
    method: str
    params: list[object]
    size: int


@pytest.mark.parametrize(
    "much",
    [
        pytest.param(Unread(4000, "gateway.ping", ["x" * 8192], 8196), id="large-requests"),
        pytest.param(Unread(1000, "load.large", [64 * 1024], 64 * 1024 + 2), id="small-requests-large-replies"),
    ],
)
async def test_who_does_not_read_is_not_read(gateway: StartGateway, loop: EventLoopName, much: Unread) -> None:
    process = await gateway(METHODS, loop=loop)
    async with client(process, rcvbuf=16384) as mute, client(process) as other:
        before = process.rss()
        data = framed(*(request(number, much.method, much.params) for number in range(much.requests)))
        sending = asyncio.create_task(mute.peer.send_raw(data))
        seen = await settled(other, mute.conn_id)
        # What the gateway has not taken stands in the kernel's buffers, and stays there.
        assert seen["messagesIn"] < much.requests / 2, seen
        assert seen["outboxBytes"] < MEBIBYTE, seen
        assert process.rss() - before < 16 * MEBIBYTE
        assert await other.call("gateway.ping") is None

        for number in range(much.requests):
            got = await mute.peer.recv_frame()
            head = b'{"jsonrpc":"2.0","id":%d,"result":' % number
            assert got.payload.startswith(head)
            assert len(got.payload) == len(head) + much.size + 1
        await sending
        assert process.rss() - before < 16 * MEBIBYTE
        assert process.events("connection.closed") == []


async def settled(other: Client, conn_id: str) -> dict[str, Any]:
    """What `connection.get` tells of a connection once half a second changes nothing any more."""
    last: dict[str, Any] = {}
    async with asyncio.timeout(WAIT):
        while True:
            seen: dict[str, Any] = await other.call("connection.get", {"connId": conn_id})
            if all(seen[key] == last.get(key) for key in ("messagesIn", "messagesOut", "outboxBytes")):
                return seen
            last = seen
            await asyncio.sleep(0.5)


# Floods


@pytest.mark.parametrize("kind", KINDS)
async def test_others_are_answered_during_a_flood(gateway: StartGateway, loop: EventLoopName, kind: str) -> None:
    """Also without the limits that would end it; with them: test_attacks.py."""
    process = await gateway({"limits": {"control_rate": 0}}, loop=loop)
    async with client(process) as other, flood(process, kind) as address:
        before = process.rss()
        (flooder,) = [each["connId"] async for each in pages(other, 100) if each["remote"] == address]
        seen = await other.call("connection.get", {"connId": flooder})
        most = 0
        for _ in range(ANSWERS):
            await other.call("gateway.ping")
            most = max(most, process.rss() - before)
        async with asyncio.timeout(WAIT):
            while (await other.call("connection.get", {"connId": flooder}))["bytesIn"] <= seen["bytesIn"]:
                await asyncio.sleep(0.01)
        assert process.events("connection.closed") == []
    assert most < 32 * MEBIBYTE


@asynccontextmanager
async def flood(process: GatewayProcess, kind: str) -> AsyncIterator[str]:
    """Flood a gateway from another process, until this ends; gives that peer's address."""
    flooder = await start_python("tests.support.flood", kind, str(process.port))
    try:
        assert flooder.stdout is not None
        yield (await flooder.stdout.readline()).decode().strip()
    finally:
        flooder.kill()
        await flooder.wait()


# Very many


@asynccontextmanager
async def crowd(process: GatewayProcess, count: int) -> AsyncIterator[None]:
    """Hold many connections for a while, from two processes."""
    each = count // 2
    async with AsyncExitStack() as stack:
        jobs = [
            {
                "kind": "hold",
                "port": process.port,
                "pid": process.pid,
                "welcomes": True,
                "connections": each,
                "first": at,
                "headers": "/dev/null",
                "refuses": False,
            }
            for at in (0, each)
        ]
        loads = [stack.enter_context(Load(job, None)) for job in jobs]
        held = await asyncio.gather(*(asyncio.to_thread(load.result, 200.0) for load in loads))
        assert sum(answer["held"] for answer in held) == count
        yield


@pytest.mark.parametrize("page", ["default", "maximum"])
async def test_very_many_connections_are_listed_while_some_come_and_go(
    gateway: StartGateway, loop: EventLoopName, page: str, sized: Sized
) -> None:
    """Each that stays is listed once; what a page costs: test_methods_connection.py."""
    count = sized(1000, 10_000)
    config = METHODS | {"limits": {"max_connections": count + 1000}}
    process = await gateway(config, loop=loop, nofile=count + 2000)
    async with client(process) as admin, crowd(process, count):
        limit = await page_size(admin, page)
        stop, visits = asyncio.Event(), list[str]()
        coming = asyncio.create_task(come_and_go(process, visits, stop))
        await until(lambda: len(visits) > 0 and len(open_now(process)) > count, "the log is not read so far")
        steady = open_now(process)
        listed = [each async for each in pages(admin, limit)]
        stop.set()
        await coming
        await process.wait_event("connection.closed", connId=visits[-1])
        steady &= open_now(process)
    assert len(steady) > count
    found = Counter(each["connId"] for each in listed)
    assert max(found.values()) == 1
    assert steady <= found.keys()
    assert found.keys() - steady <= set(visits)


async def page_size(admin: Client, which: str) -> int:
    """The default or the maximum of the parameter `limit`, as `rpc.discover` tells it."""
    methods = (await admin.call("rpc.discover"))["methods"]
    (listing,) = (each for each in methods if each["name"] == "connection.list")
    (limit,) = (each["schema"] for each in listing["params"] if each["name"] == "limit")
    return int(limit[which])


async def pages(admin: Client, limit: int) -> AsyncIterator[dict[str, Any]]:
    """All that `connection.list` lists."""
    params: dict[str, object] = {"limit": limit}
    while True:
        page = await admin.call("connection.list", params)
        assert len(page["connections"]) <= limit
        for each in page["connections"]:
            yield each
        if page["next"] is None:
            return
        params["after"] = page["next"]


async def come_and_go(process: GatewayProcess, visits: list[str], stop: asyncio.Event) -> None:
    """Open and close connections until told to stop, two at a time; note their connIds."""
    while not stop.is_set():
        async with client(process) as first, client(process) as second:
            visits += [first.conn_id, second.conn_id]
            await asyncio.sleep(0.005)


def open_now(process: GatewayProcess) -> set[str]:
    """The connections that are open as far as the log has been read."""
    closed = {line["connId"] for line in process.events("connection.closed")}
    return {line["connId"] for line in process.events("connection.opened")} - closed


# Who was there, and why not any more


async def normal(peer: RawPeer) -> None:
    await peer.leave()


async def with_code(peer: RawPeer) -> None:
    await peer.send_close(4321, "goodbye – é")
    await peer.recv_until_closed()


async def reset(peer: RawPeer) -> None:
    peer.rst()


async def binary(peer: RawPeer) -> None:
    await peer.send_frame(Opcode.BINARY, b"")
    await peer.recv_frame()


async def unmasked(peer: RawPeer) -> None:
    await peer.send_frame(Opcode.TEXT, b"{}", mask=False)
    await peer.recv_until_closed()


ENDS: dict[tuple[str, int], Callable[[RawPeer], Any]] = {
    ("client_close", 1000): normal,
    ("client_close", 4321): with_code,
    ("transport_lost", 1006): reset,
    ("unsupported_data", 1003): binary,
    ("protocol_error", 1002): unmasked,
}


async def test_the_history_has_the_last_thousand(gateway: StartGateway) -> None:
    process = await gateway()
    ends: list[tuple[str, tuple[str, int]]] = []
    kinds = list(ENDS.items())
    for number in range(1100):
        expected, end = kinds[number % len(kinds)]
        async with client(process) as leaving:
            await end(leaving.peer)
        ends.append((leaving.conn_id, expected))
    async with client(process) as admin:
        async with asyncio.timeout(WAIT):
            while len(process.events("connection.closed")) < 1100:
                await asyncio.sleep(0.02)
        history = (await admin.call("connection.history", {"limit": 1000}))["connections"]
        # The log says the same, in the same order.
        logged = process.events("connection.closed")[:99:-1]
        assert len(history) == 1000
        same = (
            "connId",
            "remote",
            "code",
            "cause",
            "reason",
            "messagesIn",
            "messagesOut",
            "bytesIn",
            "bytesOut",
        )
        assert [[each[key] for key in same] for each in history] == [[line[key] for key in same] for line in logged]
        assert all(
            each["duration"] == pytest.approx(line["duration"], abs=0.5)
            for each, line in zip(history, logged, strict=True)
        )
        whys = {each["connId"]: (each["cause"], each["code"]) for each in history}
        assert all(whys.get(conn_id, expected) == expected for conn_id, expected in ends)
        assert Counter(whys.values()) == dict.fromkeys(ENDS, 200)
        assert {each["reason"] for each in history if each["code"] == 4321} == {"goodbye – é"}
        for each in history:
            opened, closed = (datetime.fromisoformat(each[key]) for key in ("openedAt", "closedAt"))
            assert abs((closed - opened).total_seconds() - each["duration"]) < 0.5

        (one,) = (await admin.call("connection.history", {"connId": history[500]["connId"]}))["connections"]
        assert one == history[500]
        assert (await admin.call("connection.history", {"limit": 3}))["connections"] == history[:3]
        assert (await admin.call("connection.history", {"connId": ends[0][0]}))["connections"] == []


async def test_a_connection_is_closed_by_an_operator(gateway: StartGateway) -> None:
    process = await gateway()
    async with client(process) as admin, client(process) as first, client(process) as second:
        reason = "é" * 100
        assert await admin.call("connection.close", {"connId": first.conn_id, "reason": reason}) == {"closed": True}
        assert await admin.call("connection.close", [second.conn_id]) == {"closed": True}
        for closed, said in ((first, "é" * 61), (second, "closed by an operator")):
            await closed.peer.recv_frame()
            assert (closed.peer.close_code, closed.peer.close_reason) == (4501, said)
            await closed.peer.send_close(4501)
            await closed.peer.wait_closed()
            line = await process.wait_event("connection.closed", connId=closed.conn_id)
            assert (line["code"], line["cause"], line["reason"]) == (4501, "closed_by_operator", said)
            (past,) = (await admin.call("connection.history", {"connId": closed.conn_id}))["connections"]
            assert (past["code"], past["cause"], past["reason"]) == (4501, "closed_by_operator", said)
        left = (await admin.call("connection.list"))["connections"]
        assert [each["connId"] for each in left] == [admin.conn_id]
        await admin.peer.send_json(request("again", "connection.close", {"connId": first.conn_id}))
        assert (await admin.peer.recv_json())["error"]["code"] == -32004
