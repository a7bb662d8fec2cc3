"""Streams over real connections: what each side may send, what it is told, how they end, and how long they live."""

import asyncio
import json
import socket
from typing import Any

import pytest
from msgspec import Raw
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS
from gateway.nodes.registry import Nodes, Served
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc.calls import Calls
from gateway.rpc.jsonrpc import Message
from gateway.rpc.streams import Grant
from gateway.telemetry.lines import Lines
from tests.support.apart import place
from tests.support.kept import Client, Kept, gateway_for, until
from tests.support.patience import Sized
from tests.support.peers import RawPeer, Target
from tests.support.routing_model import HandLoop
from tests.support.rpc import Listing, NodeListing, notification, request
from tests.support.streaming import (
    REGISTRATION,
    by_node,
    credit,
    demand,
    dropped,
    end,
    node,
    note,
    opened,
    opening,
    peer,
    promised,
    push,
    refused,
    reply,
    value,
)

pytestmark = pytest.mark.apart

MIB = 1 << 20


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await gateway_for(aiohttp_client)


# What passes


async def test_values_pass_byte_for_byte_and_grants_reach_the_node(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, id="a", credit=1, bytes=100)
    text = '[1e400 , "\\u0041",2.50]'
    await pi.send(f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"value" : {text} ,"id":{call_id}}}}}')
    assert await caller.receive() == (
        f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"id":"a","value":{text}}}}}'
    )
    await caller.say(credit("a", 8, 524288))
    assert await pi.next() == credit(call_id, 8, 524288)
    for number in range(8):
        await pi.say(value(call_id, number))
        assert await caller.next() == value("a", number)
    await pi.say(reply(call_id, "done"))
    assert await caller.next() == reply("a", "done")
    assert promised(caller) == promised(pi) == 0


async def test_pushes_and_their_end_reach_the_node(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, id="a")
    await pi.say(demand(call_id, 2, 100))
    assert await caller.next() == demand("a", 2, 100)
    await caller.send('{"jsonrpc":"2.0","method":"rpc.push","params":{"id":"a","value": {"n" : 1e1} }}')
    assert await pi.receive() == (
        f'{{"jsonrpc":"2.0","method":"rpc.push","params":{{"id":{call_id},"value":{{"n" : 1e1}}}}}}'
    )
    await caller.say(push("a", 2))
    assert await pi.next() == push(call_id, 2)
    await caller.say(end("a"))
    assert await pi.next() == end(call_id)
    await pi.say(demand(call_id, 5, 5))
    await caller.say(end("a"))
    await caller.quiet()
    await pi.quiet()
    assert dropped(client, "push") == 1, "the second end"
    await pi.say(reply(call_id))
    assert await caller.next() == reply("a")


async def test_a_call_by_node_is_a_stream_too(client: Client) -> None:
    caller, pi = await peer(client), await node(client, context=True)
    await caller.say(by_node(stream={"credit": 1, "bytes": 1}, timeoutMs=7000))
    call = await pi.next()
    assert call["stream"] == {"credit": 1, "bytes": 1}
    assert call["context"] == {"caller": "anonymous", "timeLeftMs": 7000}
    await pi.say(value(call["id"], "longer than what is left"))
    assert await caller.next() == value(1, "longer than what is left")


async def test_the_same_id_both_ways(client: Client) -> None:
    """A connection that is caller and node has two spaces of ids."""
    one, two = await node(client), await peer(client)
    await two.result("node.register", {"name": "attic", "methods": [{"name": "attic.log"}], "streams": True})
    await two.say(opening("x", credit=9, bytes=900))
    served = (await one.next())["id"]
    await one.say(opening(served, "attic.log", credit=3, bytes=300))
    other = (await two.next())["id"]
    await one.say(credit(served, 1, 10))
    assert await two.next() == credit(other, 1, 10)
    await one.say(demand(served, 2, 20))
    assert await two.next() == demand("x", 2, 20)
    await one.say(value(served, "down"))
    assert await two.next() == value("x", "down")
    await two.say(demand(other, 4, 40))
    assert await one.next() == demand(served, 4, 40)
    await one.say(push(served, "up"))
    assert await two.next() == push(other, "up")
    await one.say(note("rpc.cancel", id=served))
    assert await two.next() == note("rpc.cancel", id=other)
    assert refused(await one.next()) == (served, -32800, "unknown")
    await one.say(value(served, "goes on"))
    assert await two.next() == value("x", "goes on")


async def test_a_node_may_call_itself(client: Client) -> None:
    pi = await node(client)
    await pi.say(opening(5, credit=1, bytes=10))
    call_id = (await pi.next())["id"]
    await pi.say(value(call_id, 1))
    assert await pi.next() == value(5, 1)
    await pi.say(reply(call_id, 2))
    assert await pi.next() == reply(5, 2)


async def test_in_a_batch_the_values_come_by_themselves_and_the_result_in_the_batch(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    await caller.say([opening("a", credit=2, bytes=99), request_of("gateway.ping", "b"), credit("a", 1, 1)])
    call = await pi.next()
    assert call["stream"] == {"credit": 2, "bytes": 99}
    assert await pi.next() == credit(call["id"], 1, 1)
    await pi.say(value(call["id"], 1))
    assert await caller.next() == value("a", 1)
    await pi.say([value(call["id"], 2), reply(call["id"], 3)])
    assert await caller.next() == value("a", 2)
    assert sorted(await caller.next(), key=lambda each: str(each["id"])) == [reply("a", 3), reply("b")]


def request_of(method: str, id: object) -> Any:
    return json.loads(request(method, id=id))


async def test_a_call_without_stream_is_as_before(client: Client) -> None:
    """However many reports there are, and of the member nothing reaches a node."""
    caller, pi = await peer(client), await node(client)
    for member in ({}, {"stream": None}):
        await caller.say({"jsonrpc": "2.0", "id": 1, "method": "log.follow", **member})
        call = await pi.next()
        assert call.keys() == {"jsonrpc", "id", "method"}
        for number in range(3):
            await pi.say(value(call["id"], number))
            assert await caller.next() == value(1, number)
        for message in (credit(1, 1, 1), push(1, 1), end(1)):
            await caller.say(message)
        await pi.say(demand(call["id"], 1, 1))
        await pi.say(reply(call["id"]))
        assert await caller.next() == reply(1)
        await caller.quiet()
        await pi.quiet()
    assert [dropped(client, kind) for kind in ("credit", "demand", "push")] == [2, 2, 4]
    assert caller.connection.pool is None


async def test_a_notification_is_no_stream(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    message = opening(credit=1, bytes=1)
    del message["id"]
    await caller.say(message)
    assert await pi.next() == {"jsonrpc": "2.0", "method": "log.follow", "params": []}


# What is refused


async def test_a_node_without_streams_gets_none(client: Client) -> None:
    caller, pi = await peer(client), await node(client, streams=False)
    for message in (opening(credit=1, bytes=1), by_node(stream={}), by_node(stream={}, waitMs=1000)):
        await caller.say(message)
        assert refused(await caller.next()) == (1, -32602, "not_delivered")
    await pi.quiet()
    assert "streams" not in await caller.result("node.get", {"name": "pi"})
    await pi.result("node.register", REGISTRATION)
    assert (await caller.result("node.get", {"name": "pi"}))["streams"] is True
    assert [entry["streams"] for entry in (await caller.result("node.list"))["nodes"]] == [True]
    await opened(caller, pi, credit=1, bytes=1)


async def test_of_several_nodes_one_that_knows_streams_gets_them(client: Client) -> None:
    caller, old, new = await peer(client), await node(client, streams=False), await node(client, name="new")
    for number in range(4):
        await opened(caller, new, id=number, credit=1, bytes=1)
    await old.quiet()


@pytest.mark.parametrize(
    "stream", [7, [], "", {"credit": -1}, {"credit": 1025}, {"bytes": 2 * MIB + 1}, {"credit": 1.5}, {"more": 1}]
)
async def test_a_first_grant_out_of_bounds_is_refused(client: Client, stream: Any) -> None:
    caller, pi = await peer(client), await node(client)
    await caller.say({"jsonrpc": "2.0", "id": 1, "method": "log.follow", "stream": stream})
    assert refused(await caller.next()) == (1, -32602, "not_delivered")
    await caller.say(by_node(stream=stream))
    assert (await caller.next())["error"]["code"] == -32602
    await pi.quiet()
    assert not caller.connection.running


@pytest.mark.parametrize("grant", [{"credit": -1}, {"credit": 1025}, {"bytes": 2 * MIB + 1}, {"bytes": "1"}, {"x": 1}])
async def test_a_later_grant_out_of_bounds_is_refused_and_the_stream_goes_on(client: Client, grant: Any) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=1, bytes=1)
    for side, method, id in ((caller, "rpc.credit", 1), (pi, "rpc.demand", call_id)):
        assert (await side.call(method, {"id": id, **grant}, "grant"))["error"]["code"] == -32602
        await side.send(notification(method, {"id": id, **grant}))
    await caller.quiet()
    await pi.quiet()
    await pi.say(value(call_id, 1))
    assert await caller.next() == value(1, 1)


async def test_grants_that_add_up_to_more_than_the_bounds_are_cut_and_the_sender_is_told_so(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=1000, bytes=MIB)
    await caller.say(credit(1, 1024, 1))
    assert await pi.next() == credit(call_id, 24, 1)
    await caller.say(credit(1, 5, 2 * MIB))
    assert await pi.next() == credit(call_id, 0, MIB - 1)
    await caller.say(credit(1, 5, 5))
    await caller.quiet()
    await pi.quiet()
    await pi.say(value(call_id, "1234"))
    assert await caller.next() == value(1, "1234")
    await caller.say(credit(1, 5, 50))
    assert await pi.next() == credit(call_id, 1, 6)


@pytest.mark.parametrize("left", [{"credit": 1, "bytes": 100}, {"credit": 100, "bytes": 1}])
async def test_what_a_node_sends_beyond_the_credit_ends_the_call(client: Client, left: dict[str, int]) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, **left)
    for number in range(2):
        await pi.say(value(call_id, number))
    assert await caller.next() == value(1, 0)
    assert refused(await caller.next()) == (1, -32009, "unknown")
    assert await pi.next() == note("rpc.cancel", id=call_id)
    await pi.say(value(call_id, 2))
    await pi.say(reply(call_id))
    await pi.quiet()
    await caller.quiet()
    assert not caller.connection.running
    assert not pi.connection.calls


@pytest.mark.parametrize("left", [None, (1, 100), (100, 1)])
async def test_what_a_caller_pushes_beyond_the_credit_ends_the_call(client: Client, left: Any) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi)
    if left is not None:
        await pi.say(demand(call_id, *left))
        assert await caller.next() == demand(1, *left)
        await caller.say(push(1, 0))
        assert await pi.next() == push(call_id, 0)
    await caller.say(push(1, 1))
    assert refused(await caller.next()) == (1, -32600, "unknown")
    assert await pi.next() == note("rpc.cancel", id=call_id)
    await caller.say(push(1, 2))
    await caller.quiet()
    await pi.quiet()
    assert dropped(client, "push") == 1


async def test_a_value_behind_the_end_ends_the_call(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi)
    await pi.say(demand(call_id, 9, 99))
    assert await caller.next() == demand(1, 9, 99)
    await caller.say(end(1))
    await caller.say(push(1, 1))
    assert refused(await caller.next()) == (1, -32600, "unknown")
    assert [await pi.next() for _ in range(2)] == [end(call_id), note("rpc.cancel", id=call_id)]


@pytest.mark.parametrize("params", [{"id": 1}, {"id": 1, "value": 1, "end": True}, {"id": 1, "end": False}])
async def test_a_push_is_a_value_or_the_end(client: Client, params: Any) -> None:
    caller, pi = await peer(client), await node(client)
    await opened(caller, pi)
    assert (await caller.call("rpc.push", params, 2))["error"]["code"] == -32602
    await pi.quiet()


async def test_grants_and_pushes_for_what_is_over_are_dropped_and_counted(client: Client) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=1, bytes=1)
    await pi.say(reply(call_id))
    assert await caller.next() == reply(1)
    for number, id in enumerate((1, "x"), 1):
        for side, message in (
            (caller, credit(id, 1, 1)),
            (caller, push(id, 1)),
            (caller, end(id)),
            (pi, demand(call_id, 1, 1)),
        ):
            await side.say(message)
        await caller.quiet()
        await pi.quiet()
        assert [dropped(client, kind) for kind in ("credit", "demand", "push")] == [number, number, 2 * number]
    assert await caller.result("rpc.credit", {"id": 1, "credit": 1, "bytes": 1}) is False


async def test_a_value_that_its_envelope_makes_too_large_ends_the_call(aiohttp_client: AiohttpClient) -> None:
    """It must not be missed without a word."""
    client = await gateway_for(aiohttp_client, limits={"max_message_bytes": 65536})
    caller, pi = await peer(client), await node(client)
    long = "x" * 1000
    call_id = await opened(caller, pi, id=long, credit=1, bytes=70000)
    await pi.say(value(call_id, "y" * 65000))
    assert refused(await caller.next()) == (long, -32009, "unknown")
    assert await pi.next() == note("rpc.cancel", id=call_id)


# Its end


@pytest.mark.parametrize("how", ["cancel", "caller", "node", "error"])
async def test_at_its_end_nothing_is_left_of_it(client: Client, how: str) -> None:
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=5, bytes=500)
    await pi.say(demand(call_id, 5, 500))
    assert await caller.next() == demand(1, 5, 500)
    pools = caller.connection.pool, pi.connection.pool
    assert [pool.promised for pool in pools if pool] == [500, 500]
    if how == "cancel":
        await caller.say(note("rpc.cancel", id=1))
        assert refused(await caller.next()) == (1, -32800, "unknown")
    elif how == "caller":
        await caller.ws.close()
    elif how == "node":
        await pi.ws.close()
        assert refused(await caller.next()) == (1, -32010, "unknown")
    else:
        await pi.say({"jsonrpc": "2.0", "id": call_id, "error": {"code": 1, "message": "no"}})
        assert (await caller.next())["error"]["code"] == 1
    if how in ("cancel", "caller"):
        assert await pi.next() == note("rpc.cancel", id=call_id)
    await until(lambda: [pool.promised for pool in pools if pool] == [0, 0])
    assert not any(pool.wanting or pool.unread for pool in pools if pool)


# Time


class Quiet:
    """A stream between two lists, in a loop whose time passes by hand. Its deadline is 9 s."""

    def __init__(self) -> None:
        self.loop = HandLoop()
        self.calls, nodes = Calls(), Nodes(lambda node, change: None, lambda node: None)
        router = Router(
            nodes,
            self.calls,
            call_timeout=9.0,
            max_in_flight=9,
            max_node_in_flight=9,
            max_message_bytes=MIB,
            max_credit_bytes=MIB,
            lines=Lines(),
        )
        self.caller, self.node = Listing(), NodeListing()
        nodes.register(self.node, "pi", [Served("log", b'"log"', "call:log", "", b"")], False, True)
        self.router, self.streams = router, Streams(router.dropped)
        with self.loop.inside():
            message = Message("2.0", method="log", stream=Raw(b'{"credit":9,"bytes":99}'))
            router.call(self.caller, message, b"", b"7", None)
        (self.call_id,) = self.node.calls
        self.take()

    def take(self) -> list[str]:
        """What both have got."""
        return self.caller.take() + self.node.take()

    def passes(self, seconds: float) -> bool:
        """Let time pass. Returns whether the stream still runs."""
        self.loop.now += seconds
        self.loop.turn()
        self.loop.turn()
        return bool(self.caller.running)


def test_a_quiet_stream_is_kept_alive_by_grants_of_nothing() -> None:
    it = Quiet()
    for _ in range(9):
        assert it.passes(3.0)
        assert it.streams.credit(it.caller, b"7", Grant())
        (told,) = map(json.loads, it.take())
        assert told == credit(int(it.call_id))
    assert it.passes(8.8)
    assert not it.passes(0.4)
    (timeout,) = it.caller.take()
    assert refused(json.loads(timeout)) == (7, -32008, "unknown")
    it.loop.close()


@pytest.mark.parametrize("how", ["credit", "demand", "value", "push", "end"])
def test_the_deadline_of_a_stream_counts_from_its_last_value_or_grant(how: str) -> None:
    it = Quiet()
    assert it.streams.demand(it.node, it.call_id, Grant(9, 99))
    assert it.passes(8.5)
    acts = {
        "credit": lambda: it.streams.credit(it.caller, b"7", Grant(1, 1)),
        "demand": lambda: it.streams.demand(it.node, it.call_id, Grant()),
        "value": lambda: it.router.progress(it.node, it.call_id, b"1"),
        "push": lambda: it.streams.push(it.caller, b"7", b"1"),
        "end": lambda: it.streams.push(it.caller, b"7", None),
    }
    assert acts[how]()
    assert it.passes(8.8), "17.3 s after its beginning"
    assert not it.passes(0.4)
    assert not it.calls
    it.loop.close()


def test_what_does_not_move_a_stream_does_not_renew_it() -> None:
    it = Quiet()
    assert it.passes(8.8)
    assert not it.streams.credit(it.caller, b"8", Grant())
    assert not it.streams.demand(it.node, b"2", Grant())
    assert not it.passes(0.4)
    it.loop.close()


# Pressure


async def test_many_streams_share_the_room_of_their_caller_and_each_goes_on(client: Client) -> None:
    """64 of them may not send 128 MiB to a caller that does not read; but none waits for those that are quiet."""
    caller, pi = await peer(client), await node(client)
    call_ids = {}
    for number in range(64):
        await caller.say(opening(number, credit=9, bytes=2 * MIB))
        call = await pi.next()
        assert call["stream"]["credit"] == 9
        assert call["stream"]["bytes"] > 0
        call_ids[number] = call["id"]
        if number < 1:
            assert call["stream"]["bytes"] == 2 * MIB
    assert promised(caller) <= 3 * MIB + 64 * (2 * MIB // 256)
    await pi.say(value(call_ids[63], "x" * 100_000))
    assert (await caller.next())["params"]["id"] == 63
    told = await pi.next()
    assert (told["method"], told["params"]["id"]) == ("rpc.credit", call_ids[63])
    assert told["params"]["bytes"] >= 100_000, "so that it may send again"
    await pi.say(reply(call_ids[0]))
    assert await caller.next() == reply(0)
    given = 0
    while given < 2 * MIB - 2 * 100_000 - 64 * (2 * MIB // 256):
        told = await pi.next()
        assert told["method"] == "rpc.credit"
        given += told["params"]["bytes"]


async def test_1024_credits_of_64_kib_cut_nobody(aiohttp_client: AiohttpClient) -> None:
    """The caller reads nothing, the node sends all that it may, and hardly anything fits into the kernel.

    There are two streams, so that so much waits that of reports on a call only the latest would be left.
    """
    client = await gateway_for(aiohttp_client, limits={"outbox_timeout": 0.1})
    pi = await node(client)
    client = place(client)
    with await RawPeer.open(Target(client.port or 0), rcvbuf=4096) as caller:
        connection = client.app[CONNECTIONS][(await caller.welcome())["connId"]]
        connection.link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        grants, call_ids, order, text = (2 * MIB, MIB - 65536), list[int](), list[int](), "x" * 65533
        for id, octets in enumerate(grants):
            await caller.send_json(opening(id, credit=1024, bytes=octets))
            call = await pi.next()
            assert call["stream"] == {"credit": 1024, "bytes": octets}
            call_ids.append(call["id"])
        for id, octets in enumerate(grants):
            for _ in range(0, octets, 65535):
                await pi.say(value(call_ids[id], text))
                order.append(id)
        await pi.quiet()
        await until(lambda: connection.link.pressed)
        await asyncio.sleep(0.3)  # longer than an outbox may be over its bound
        assert connection.link.pressed, "or it has read"
        assert connection.is_open
        for id in order:
            got = (await caller.recv_json())["params"]
            assert (got["id"], len(got["value"])) == (id, 65533)
        for id, call_id in enumerate(call_ids):
            await pi.say(reply(call_id))
            assert await caller.recv_json() == reply(id)


async def test_a_slow_caller_slows_the_node_down_and_nothing_grows(client: Client, sized: Sized) -> None:
    """210 MB with --full. The caller grants what it has read; the node sends as soon as it may."""
    values, window, size = sized(60, 3300), 16, 65536
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=window, bytes=window * size)
    text = "x" * (size - 2)
    most = 0

    async def produce() -> None:
        credits, octets, sent = window, window * size, 0
        while sent < values:
            while sent < values and credits > 0 and octets > 0:
                await pi.say(value(call_id, text))
                credits, octets, sent = credits - 1, octets - size, sent + 1
            if sent < values:
                grant = (await pi.next())["params"]
                credits, octets = credits + grant["credit"], octets + grant["bytes"]
        await pi.say(reply(call_id, sent))

    producing = asyncio.create_task(produce())
    for number in range(values):
        got = await caller.next()
        assert len(got["params"]["value"]) == size - 2
        most = max(most, caller.connection.outbox_bytes + promised(caller))
        if number % 4 == 3:
            await caller.say(credit(1, 4, 4 * size))
    await producing
    assert await caller.next() == reply(1, values)
    assert most <= (window + 1) * size + 4096


async def test_a_node_that_does_not_read_is_told_of_all_grants_at_once_when_it_reads(client: Client) -> None:
    """However many there are, they take no room meanwhile."""
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi)
    link = pi.connection.link
    link.barred = True
    for _ in range(100):
        await caller.say(credit(1, 2, 3))
        await caller.say(credit(1))
    await caller.quiet()
    assert pi.connection.outbox_bytes == 0
    pi.connection._admit_others(link)
    assert await pi.next() == credit(call_id, 200, 300)
    await pi.quiet()


async def test_the_rate_loses_no_value_and_no_credit_and_bounds_the_rest(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"rate": 0.001, "burst": 3})
    caller, pi = await peer(client), await node(client)
    call_id = await opened(caller, pi, credit=1, bytes=10)
    await pi.say(demand(call_id, 9, 99))
    assert await caller.next() == demand(1, 9, 99)
    for number in range(9):
        await pi.say(value(call_id, number))
        assert await caller.next() == value(1, number)
        await caller.say(credit(1, 1, 1))
        assert await pi.next() == credit(call_id, 1, 1)
        await caller.say(push(1, number))
        assert await pi.next() == push(call_id, number)
    for _ in range(9):
        await caller.say(credit(1))
    for method in ("rpc.push", "rpc.progress"):
        error = (await caller.call(method, {"id": "none", "value": 1}, "x"))["error"]
        assert error["code"] == -32002, "what is of no stream"
    await pi.say(reply(call_id))
    assert await caller.next() == reply(1)
    await caller.say(credit(1, 1, 1))
    assert [await pi.next() for _ in range(2)] == [credit(call_id)] * 2, "of nine that grant nothing"
    assert (await pi.call("gateway.ping"))["result"] is None


# What waits, and what is held


async def test_a_stream_waits_for_its_node_and_takes_grants_and_the_end_meanwhile(client: Client) -> None:
    caller = await peer(client)
    await caller.say(by_node(waitMs=600_000, stream={"credit": 1000, "bytes": 10}))
    await caller.say(by_node(2, waitMs=600_000, stream={}))
    await caller.say(by_node(3, waitMs=600_000))
    await caller.say(credit(1, 20, 5))
    await caller.say(credit(1, 20, 2 * MIB))
    await caller.say(end(1))
    await caller.say(push(2, 1))
    assert refused(await caller.next()) == (2, -32600, "not_delivered")
    await caller.say(credit(3, 1, 1))
    await caller.quiet()
    assert dropped(client, "credit") == 1
    pi = await node(client)
    call = await pi.next()
    assert call["stream"] == {"credit": 1024, "bytes": 2 * MIB}
    assert await pi.next() == end(call["id"])
    assert "stream" not in await pi.next()
    await pi.say(value(call["id"], 1))
    assert await caller.next() == value(1, 1)


async def test_a_stream_that_waits_for_a_node_which_knows_none_is_refused(client: Client) -> None:
    caller = await peer(client)
    await caller.say(by_node(waitMs=600_000, stream={}))
    await caller.quiet()
    await node(client, streams=False)
    assert refused(await caller.next()) == (1, -32602, "not_delivered")


async def handled(kept: Kept) -> None:
    """Wait until the gateway has had all that a kept connection has sent."""
    session = kept.connection.session
    await until(lambda: session is not None and session.received == kept.sent)


async def test_a_stream_through_several_losses_of_either_link_loses_nothing(client: Client) -> None:
    """Values, pushes and grants are numbered like all messages. They come while there is no link, too."""
    caller, pi = await Kept.open(client), await Kept.open(client)
    await pi.result("node.register", REGISTRATION)
    await caller.send(opening("s", credit=10, bytes=100))
    call_id = (await pi.next())["id"]
    await pi.send(demand(call_id, 500, 5000))
    down: list[Any] = [demand("s", 500, 5000)]
    up: list[Any] = []

    async def speak(one: Kept) -> None:
        if one is pi:
            for _ in range(3):
                down.append(value("s", len(down)))
                await pi.send(value(call_id, len(down) - 1))
        else:
            for message in (push, push, credit):
                number = len(up)
                up.append(credit(call_id, 3, 9) if message is credit else push(call_id, number))
                await caller.send(credit("s", 3, 9) if message is credit else push("s", number))
        await handled(one)

    for turn in range(8):
        lost, other = (caller, pi) if turn % 2 else (pi, caller)
        await handled(lost)
        await lost.cut()
        await speak(other)
        assert lost.connection.held is not None
        await lost.back()
        await speak(lost)
    await caller.send(end("s"))
    for message in [*up, end(call_id)]:
        assert await pi.next() == message
    await pi.send(reply(call_id, "whole"))
    for message in [*down, reply("s", "whole")]:
        assert await caller.next() == message
    assert promised(caller) == promised(pi) == 0


async def test_while_its_caller_is_held_a_stream_keeps_no_more_than_was_granted(client: Client) -> None:
    caller, pi = await Kept.open(client), await node(client)
    await caller.send(opening(1, credit=3, bytes=1000))
    call_id = (await pi.next())["id"]
    await handled(caller)
    await caller.cut()
    for number in range(3):
        await pi.say(value(call_id, number))
    await pi.quiet()
    await caller.back()
    assert [await caller.next() for _ in range(3)] == [value(1, number) for number in range(3)]
    await caller.cut()
    await pi.say(value(call_id, 3))
    assert await pi.next() == note("rpc.cancel", id=call_id)
    await caller.back()
    assert refused(await caller.next()) == (1, -32009, "unknown")
