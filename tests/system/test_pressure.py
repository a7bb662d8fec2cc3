"""Pressure goes back to the sender: peers that do not read, and who is refused, slowed down or cut for it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.credentials import OP, Holder, TokensFile, bearer, entered, scrape
from tests.support.fleet import ended
from tests.support.patience import Sized
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import Config, GatewayProcess, StartGateway
from tests.support.routed import register
from tests.support.siegers import GROWTH, MIB, PRESSURE, growth, pressure

KIB: Final = 1 << 10
SIZE: Final = 60 * KIB
"""Of a message: the kernel's buffers take some megabytes of them before anything waits in the gateway."""

ENOUGH: Final = 400
"""So many messages are more than those buffers and an outbox take."""

LIMITS: Final[Config] = {
    "limits": {
        "max_message_bytes": 64 * KIB,
        "max_outbox_bytes": 256 * KIB,
        "outbox_timeout": 1.0,
        "max_in_flight": 2 * ENOUGH,
        "max_node_in_flight": 2 * ENOUGH,
    }
}
PAD: Final = "x" * SIZE


@asynccontextmanager
async def node_and_caller(where: GatewayProcess) -> AsyncIterator[tuple[RawPeer, RawPeer, RawPeer]]:
    """A node that serves `x.y`, a caller and another caller. Sockets of node and caller have small buffers."""
    with ExitStack() as stack:
        node, caller, other = [stack.enter_context(await RawPeer.open(where, rcvbuf=4 * KIB)) for _ in range(3)]
        for peer in (node, caller, other):
            await peer.welcome()
        await register(node, "pi", "x.y")
        yield node, caller, other
    assert not where.events("connection.closed", cause="slow_consumer"), "somebody is cut for what others send"


async def call(peer: RawPeer, identity: int, params: Any = None) -> None:
    await peer.send_json({"jsonrpc": "2.0", "id": identity, "method": "x.y", "params": [params]})


async def ping(peer: RawPeer) -> Any:
    """Return the next message, which may be the reply to this ping."""
    await peer.send_json({"jsonrpc": "2.0", "id": "ping", "method": "gateway.ping"})
    return await peer.recv_json()


async def called(caller: RawPeer, node: RawPeer) -> list[Any]:
    """Call ENOUGH times; returns the ids under which the node has the calls."""
    for number in range(ENOUGH):
        await call(caller, number)
    return [(await node.recv_json())["id"] for _ in range(ENOUGH)]


async def answer(node: RawPeer, ids: Iterable[Any]) -> None:
    """Answer these calls with much."""
    for number, identity in enumerate(ids):
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": [number, PAD]})


def is_refused(reply: Any, outcome: str) -> bool:
    """Whether a call was refused as overloaded."""
    return bool(reply["error"]["code"] == -32009 and reply["error"]["data"]["outcome"] == outcome)


async def test_who_calls_a_node_that_does_not_read_is_refused_and_the_node_is_not_cut(gateway: StartGateway) -> None:
    where = await gateway(LIMITS)
    async with node_and_caller(where) as (node, caller, other):
        sent, reply = 0, None
        while sent < ENOUGH and (reply is None or reply["id"] == "ping"):
            sent += 1
            await call(caller, sent, PAD)
            reply = await ping(caller)
        assert reply is not None
        assert is_refused(reply, "not_delivered"), reply
        assert "retryAfterMs" in reply["error"]["data"]
        assert (await caller.recv_json())["id"] == "ping", "the caller is served otherwise"
        assert "result" in await ping(other)
        for number in range(1, sent):
            request = await node.recv_json()
            assert (request["method"], request["params"]) == ("x.y", [PAD]), "what was taken is delivered"
            await node.send_json({"jsonrpc": "2.0", "id": request["id"], "result": number})
        for number in range(1, sent):
            assert (await caller.recv_json())["result"] == number
        await call(caller, 0)
        await node.send_json({"jsonrpc": "2.0", "id": (await node.recv_json())["id"], "result": "again"})
        assert (await caller.recv_json())["result"] == "again"


async def test_notifications_to_a_node_that_does_not_read_are_dropped_and_counted(gateway: StartGateway) -> None:
    where = await gateway(LIMITS)
    async with node_and_caller(where) as (node, caller, _):
        for number in range(ENOUGH):
            await caller.send_json({"jsonrpc": "2.0", "method": "x.y", "params": [number, PAD]})
        assert "result" in await ping(caller)
        dropped = int((await scrape(where))['gateway_dropped_total{kind="notification"}'])
        assert dropped > 0
        got = [(await node.recv_json())["params"][0] for _ in range(ENOUGH - dropped)]
        assert got == sorted(set(got)), "in their order, and each once"
        assert "result" in await ping(node), "and nothing else"


async def test_of_reports_that_a_caller_does_not_read_it_gets_the_latest(gateway: StartGateway) -> None:
    where = await gateway(LIMITS)
    async with node_and_caller(where) as (node, caller, _):
        await call(caller, 1)
        identity = (await node.recv_json())["id"]
        for number in range(ENOUGH):
            params = {"id": identity, "value": [number, PAD]}
            await node.send_json({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})
        assert "result" in await ping(node)
        dropped = int((await scrape(where))['gateway_dropped_total{kind="progress"}'])
        assert dropped > 0
        got = [(await caller.recv_json())["params"]["value"][0] for _ in range(ENOUGH - dropped)]
        assert got == sorted(set(got))
        assert got[-1] == ENOUGH - 1, "the latest is not lost"
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": "done"})
        assert (await caller.recv_json())["result"] == "done"


async def test_a_caller_that_does_not_read_holds_its_node_up_for_a_while_and_is_refused_then(
    gateway: StartGateway,
) -> None:
    where = await gateway(LIMITS)
    async with node_and_caller(where) as (node, caller, other):
        ids = await called(caller, node)
        answering = asyncio.create_task(answer(node, ids))
        await call(other, 1)
        await answering
        late = (await node.recv_json())["id"]
        await node.send_json({"jsonrpc": "2.0", "id": late, "result": "served"})
        assert (await other.recv_json())["result"] == "served", "others wait for a while, and not for ever"
        replies = [await caller.recv_json() for _ in range(ENOUGH)]
        results = [reply for reply in replies if "result" in reply]
        assert len(results) > 2
        assert all(reply["result"] == [reply["id"], PAD] for reply in results)
        assert len(results) < ENOUGH
        assert all(is_refused(reply, "unknown") for reply in replies if "result" not in reply)
        await call(caller, ENOUGH)
        await node.send_json({"jsonrpc": "2.0", "id": (await node.recv_json())["id"], "result": [PAD]})
        assert (await caller.recv_json())["result"] == [PAD]


async def test_many_large_results_reach_a_caller_that_reads_at_its_own_pace(gateway: StartGateway) -> None:
    """More than twice `max_outbox_bytes` at once: the node waits, and nothing is refused."""
    where = await gateway({"limits": {**LIMITS["limits"], "outbox_timeout": 60.0}})
    async with node_and_caller(where) as (node, caller, _):
        ids = await called(caller, node)
        answering = asyncio.create_task(answer(node, ids))
        for number in range(ENOUGH):
            assert (await caller.recv_json())["result"] == [number, PAD]
        await answering


# Events


async def publish(peer: RawPeer, topic: str, number: int) -> None:
    params = {"topic": topic, "data": [number, PAD]}
    await peer.send_json({"jsonrpc": "2.0", "id": number, "method": "event.publish", "params": params})
    assert "result" in await peer.recv_json()


async def subscribed(peer: RawPeer, topic: str, **since: Any) -> Any:
    params = {"topics": [topic], "since": {topic: since} if since else {}}
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "event.subscribe", "params": params})
    return (await peer.recv_json())["result"]["topics"][topic]


async def test_who_has_missed_very_much_gets_all_of_it_and_is_served_meanwhile(gateway: StartGateway) -> None:
    """More than a hundred times `max_outbox_bytes`, to one that reads little by little."""
    where = await gateway({**LIMITS, "events": {"history_count": 1000}})
    async with node_and_caller(where) as (_, subscriber, publisher):
        for number in range(ENOUGH):
            await publish(publisher, "a", number)
        begin = await subscribed(subscriber, "a")
        reply = await subscribed(subscriber, "a", epoch=begin["epoch"], offset=0)
        assert reply["recovered"] is True
        offsets: list[int] = []
        pings, pinged = 0, False
        while len(offsets) < ENOUGH or pinged:
            if not pinged and len(offsets) % 40 == 0:
                pinged = True
                await subscriber.send_json({"jsonrpc": "2.0", "id": "ping", "method": "gateway.ping"})
            message = await subscriber.recv_json()
            if "method" in message:
                offsets.append(message["params"]["offset"])
            else:
                pings, pinged = pings + 1, False
        assert offsets == list(range(1, ENOUGH + 1))
        assert pings > 1, "it is not read while it catches up"


async def test_a_subscriber_that_is_slower_than_its_topic_is_told_of_the_gap(gateway: StartGateway) -> None:
    where = await gateway({**LIMITS, "events": {"history_count": 10}})
    async with node_and_caller(where) as (_, subscriber, publisher):
        await subscribed(subscriber, "a")
        for number in range(ENOUGH):
            await publish(publisher, "a", number)
        at, gaps = 0, 0
        while at < ENOUGH:
            message = await subscriber.recv_json()
            if message["method"] == "event.gap":
                gaps += 1
                assert message["params"]["offset"] > at
            else:
                assert message["params"]["offset"] == at + 1, "a gap is told"
            at = message["params"]["offset"]
        assert gaps > 0
        assert (await scrape(where))['gateway_dropped_total{kind="event"}'] == gaps


# What is held for one principal


PI: Final = Holder("pi", "operator")


async def test_unfinished_messages_of_one_principal_have_a_bound(gateway: StartGateway, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI)
    limits = {**LIMITS["limits"], "max_principal_bytes": 320 * KIB, "max_message_bytes": 64 * KIB}
    where = await gateway({"limits": limits, "auth": tokens.auth})
    part = frame(Opcode.TEXT, b'{"x":"' + b"y" * 50 * KIB, fin=False)
    with ExitStack() as stack:
        peers = [stack.enter_context(await entered(where, tokens.of(PI))) for _ in range(12)]
        other = stack.enter_context(await entered(where, tokens.of(OP)))
        kept = []
        for peer in peers:
            await peer.send_raw(part)
            await peer.send_frame(Opcode.PING, b"between two fragments")
            if (await peer.recv_frame()).opcode == Opcode.PONG:
                kept.append(peer)
            else:
                assert (await ended(where, peer, "message_too_big", 1009))["principal"] == "pi"
        assert 4 <= len(kept) <= 8, "six of them are 320 KiB"
        await other.send_raw(part + frame(Opcode.CONTINUATION, b'"}'))
        assert (await other.recv_json())["error"]["code"] == -32600, "others have room"
        for peer in peers:
            peer.rst()
        for peer in kept:
            await ended(where, peer, "transport_lost", 1006)
        again = stack.enter_context(await entered(where, tokens.of(PI)))
        await again.send_raw(part + frame(Opcode.CONTINUATION, b'"}'))
        assert (await again.recv_json())["error"]["code"] == -32600, "and so has it, when nothing is held any more"


async def test_unread_replies_to_one_principal_have_a_bound(gateway: StartGateway, tmp_path: Path) -> None:
    """One that does not read what it asks for is cut, and never another one for it."""
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI)
    limits = {**LIMITS["limits"], "max_principal_bytes": 320 * KIB, "outbox_timeout": 60.0}
    where = await gateway({"limits": limits, "auth": tokens.auth})
    with ExitStack() as stack:
        other = stack.enter_context(await entered(where, tokens.of(OP)))
        asking: list[asyncio.Task[None]] = []
        for _ in range(10):
            deaf = await RawPeer.open(where, headers=bearer(tokens.of(PI)), rcvbuf=4 * KIB)
            await stack.enter_context(deaf).welcome()
            asking.append(asyncio.create_task(ask_on(deaf)))
        await where.wait_event("connection.closed", cause="slow_consumer", principal="pi")
        assert "result" in await ping(other)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def ask_on(peer: RawPeer) -> None:
    """Ask again and again, as fast as it is taken. No request is so large that it counts before it is finished."""
    while True:
        await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "gateway.ping", "params": ["x" * 12 * KIB]})


# The attacks as a whole


@pytest.mark.parametrize("kind", PRESSURE)
async def test_nobody_is_cut_by_others(kind: str, sized: Sized) -> None:
    found = await pressure(kind, sized(2, 30))
    assert found.ended == []


@pytest.mark.parametrize("kind", GROWTH)
async def test_nothing_grows_beyond_what_one_principal_may_hold(kind: str, sized: Sized) -> None:
    """What is held for it, the history, and what the allocator keeps of both."""
    found = await growth(kind, sized(1, 60))
    assert found.ended == []
    assert found.grown < (256 + 64 + 128) * MIB
