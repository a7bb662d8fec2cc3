"""`event.*` over WebSocket: parameters, errors, scopes, and what another credential takes away."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.events.hub import OWN_TOPICS
from tests.support.credentials import Holder, KeySet, TokensFile, authenticate, discreet, entered, signed
from tests.support.fleet import request as ask
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess
from tests.support.rpc import Caller, connect, refused, request, serve

NO_PATTERN = "must be at most 200 characters, parts with dots between; * stands for one, a last > for the rest"
NO_TOPIC = "topic: must be at most 200 characters, parts with dots between, without * and >"


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, events={"max_topics": 8})


async def test_no_envelope_makes_an_event_larger_than_a_message_may_be(aiohttp_client: AiohttpClient) -> None:
    """The library of each subscriber would close with 1009."""
    bound = 4096
    caller = await serve(aiohttp_client, limits={"max_message_bytes": bound})
    await caller.result("event.subscribe", {"topics": ["a.b"]})
    head, tail = '{"jsonrpc":"2.0","id":1,"method":"event.publish","params":{"topic":"a.b","data":"', '"}}'
    whole = head + "x" * (bound - len(head) - len(tail)) + tail
    assert len(whole) == bound
    reply = json.loads(await caller.ask(whole))
    assert (reply["error"]["code"], reply["error"]["data"]["outcome"]) == (-32009, "not_delivered")
    room = int(reply["error"]["message"].split()[-2])
    assert (await caller.call("event.publish", {"topic": "a.b", "data": "x" * (room - 1)}))["error"]["code"] == -32009
    await caller.send(request("event.publish", {"topic": "a.b", "data": "x" * (room - 2)}))
    got = [await caller.receive(), await caller.receive()]
    (message,) = [text for text in got if "event.message" in text]
    assert bound - 32 < len(message) <= bound


# Parameters


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        ("subscribe", None, "Object missing required field `topics`"),
        ("subscribe", {}, "Object missing required field `topics`"),
        ("subscribe", {"topics": "a"}, "topics: Expected `array`, got `str`"),
        ("subscribe", {"topics": []}, "topics: Expected `array` of length >= 1"),
        ("subscribe", {"topics": ["a"] * 1001}, "topics: Expected `array` of length <= 1000"),
        ("subscribe", {"topics": ["a", 1]}, "topics[1]: Expected `str`, got `int`"),
        ("subscribe", {"topics": ["a", "b..c"]}, f"topics[1]: {NO_PATTERN}"),
        ("subscribe", {"topics": [">.a"]}, f"topics[0]: {NO_PATTERN}"),
        ("subscribe", {"topics": ["a" * 201]}, f"topics[0]: {NO_PATTERN}"),
        ("subscribe", {"topics": ["a"], "sinse": {}}, "Object contains unknown field `sinse`"),
        ("subscribe", {"topics": ["a"], "since": []}, "since: Expected `object`, got `array`"),
        ("subscribe", {"topics": ["a"], "since": {"a": 1}}, "since[...]: Expected `object`, got `int`"),
        (
            "subscribe",
            {"topics": ["a"], "since": {"a": {"offset": 1}}},
            "since[...]: Object missing required field `epoch`",
        ),
        (
            "subscribe",
            {"topics": ["a"], "since": {"a": {"epoch": "e", "offset": -1}}},
            "since[...].offset: Expected `int` >= 0",
        ),
        (
            "subscribe",
            {"topics": ["a"], "since": {f"a.{number}": {"epoch": "e", "offset": 1} for number in range(1001)}},
            "since: Expected `object` of length <= 1000",
        ),
        (
            "subscribe",
            {"topics": ["a", "*" + 12 * ".a"]},
            "topics[1]: must have at most 12 parts, because it has * or >",
        ),
        ("unsubscribe", {}, "Object missing required field `topics`"),
        ("unsubscribe", {"topics": []}, "topics: Expected `array` of length >= 1"),
        ("publish", {"topic": "a"}, "Object missing required field `data`"),
        ("publish", {"data": 1}, "Object missing required field `topic`"),
        ("publish", {"topic": 1, "data": 1}, "topic: Expected `str`, got `int`"),
        ("publish", {"topic": "a", "data": 1, "ttl": 1}, "Object contains unknown field `ttl`"),
        ("publish", {"topic": "", "data": 1}, NO_TOPIC),
        ("publish", {"topic": "a.*", "data": 1}, NO_TOPIC),
        ("publish", {"topic": ">", "data": 1}, NO_TOPIC),
        ("publish", {"topic": "a" * 201, "data": 1}, NO_TOPIC),
    ],
)
async def test_wrong_parameters(caller: Caller, method: str, params: object, why: str) -> None:
    assert await caller.ask(request(f"event.{method}", params)) == refused(-32602, why)
    assert await caller.result("event.unsubscribe", {"topics": ["a"]}) == {"topics": []}, "and nothing has happened"


async def test_a_position_that_is_out_of_all_bounds_is_no_error(caller: Caller) -> None:
    since = {"a": {"epoch": "", "offset": (1 << 63) - 1}}
    result = await caller.result("event.subscribe", {"topics": ["a"], "since": since})
    assert (result["topics"]["a"]["offset"], result["topics"]["a"]["recovered"]) == (0, False)


async def test_subscribing_tells_where_each_topic_is(caller: Caller) -> None:
    places = {
        name: await caller.result("event.publish", {"topic": name, "data": name}) for name in ("a.b", "a.b", "a.c", "x")
    }
    assert places["a.b"]["offset"] == 2
    expected = {name: places[name] for name in ("a.b", "a.c")}
    assert await caller.result("event.subscribe", {"topics": ["a.*", "a.b"]}) == {"topics": expected}
    assert await caller.result("event.subscribe", [["nothing.>"]]) == {"topics": {}}
    new = (await caller.result("event.subscribe", {"topics": ["new"]}))["topics"]
    assert (list(new), new["new"]["offset"]) == (["new"], 0)


async def test_unsubscribing_tells_what_is_left(caller: Caller) -> None:
    await caller.result("event.subscribe", {"topics": ["a.>", "b", "a.b"]})
    assert await caller.result("event.unsubscribe", {"topics": ["b", "unknown"]}) == {"topics": ["a.>", "a.b"]}
    assert await caller.result("event.unsubscribe", {"topics": ["a.*"]}) == {"topics": ["a.>", "a.b"]}
    assert await caller.answers(request("event.publish", {"topic": "b", "data": 1})) != []
    assert await caller.result("event.unsubscribe", {"topics": ["a.b", "a.>"]}) == {"topics": []}
    assert len(await caller.answers(request("event.publish", {"topic": "a.b", "data": 1}))) == 1


@pytest.mark.apart
@pytest.mark.parametrize("data", ["null", '{"b" : 1e400,  "a":"\\u00e9\\/"}', "123456789012345678901234567890", "[ ]"])
async def test_data_arrives_byte_for_byte(caller: Caller, data: str) -> None:
    await caller.result("event.subscribe", {"topics": ["a"]})
    other = await connect(caller.client)
    await other.send(f'{{"jsonrpc":"2.0","method":"event.publish","params":{{"topic":"a","data":{data}}}}}')
    assert (await caller.receive()).endswith(f'"data":{data}}}}}')


@pytest.mark.parametrize("topic", ["gateway.draining", "gateway.x", "node.a", "rpc.a", "connection.a", "event.a"])
async def test_nobody_publishes_to_the_gateways_topics(caller: Caller, topic: str) -> None:
    reply = await caller.ask(request("event.publish", {"topic": topic, "data": 1}))
    assert reply == refused(-32003, f"publish:{topic}")


async def test_the_gateway_has_no_other_topics_of_its_own(caller: Caller) -> None:
    reply = await caller.ask(request("event.subscribe", {"topics": ["a", "gateway.nothing"]}))
    assert reply == refused(-32004, f"no topic 'gateway.nothing'; there are {', '.join(OWN_TOPICS)}")
    assert await caller.result("event.unsubscribe", {"topics": ["x"]}) == {"topics": []}


async def test_there_is_a_limit_to_topics(caller: Caller) -> None:
    names = [f"a.{number}" for number in range(8)]
    await caller.result("event.subscribe", {"topics": names})
    for name in names:
        await caller.answers(request("event.publish", {"topic": name, "data": 1}))
    full = refused(-32009, "as many topics as events.max_topics", retryAfterMs=1000, outcome="not_delivered")
    assert await caller.ask(request("event.publish", {"topic": "b", "data": 1})) == full
    assert "b" in (await caller.result("event.subscribe", {"topics": ["b"]}))["topics"]


async def test_there_is_a_limit_to_subscriptions(caller: Caller) -> None:
    await caller.result("event.subscribe", {"topics": [f"a.{number}.*" for number in range(1000)]})
    await caller.result("event.subscribe", {"topics": ["a.0.*"]})
    reply = await caller.ask(request("event.subscribe", {"topics": ["b.*"]}))
    assert reply == refused(-32009, "1000 subscriptions of one connection", outcome="not_delivered")


# Scopes


LISTENER = Holder("listener", "ui", ("subscribe:a.*", "subscribe:b.>", "publish:a.b"))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[tuple[GatewayProcess, TokensFile]]:
    tokens = TokensFile(tmp_path / "tokens.toml", LISTENER)
    async with discreet({"auth": tokens.auth}) as where:
        yield where, tokens


async def test_subscriptions_and_messages_need_scopes(desk: tuple[GatewayProcess, TokensFile]) -> None:
    where, tokens = desk
    allowed = ["a.b", "a.*", "b.c", "b.c.d", "b.>", "b.*", "b.*.c", "b.*.>"]
    wrong = ["a", "a.>", "a.b.c", "*", "*.b", ">", "*.*", "*.>", "b", "gateway.>", "gateway.*", "gateway.draining"]
    with await entered(where, tokens.of(LISTENER)) as peer:
        for topic in allowed:
            await ask(peer, "event.subscribe", topics=[topic])
            assert "result" in await peer.recv_json(), topic
        for topic in wrong:
            await ask(peer, "event.subscribe", topics=["a.c", topic])
            error = (await peer.recv_json())["error"]
            assert (error["code"], error["message"].rpartition(": ")[2]) == (-32003, f"subscribe:{topic}")
        await ask(peer, "event.unsubscribe", topics=["nothing"])
        assert (await peer.recv_json())["result"] == {"topics": allowed}, "of a refused one nothing stays"
        await ask(peer, "event.publish", topic="a.c", data=1)
        assert (await peer.recv_json())["error"]["code"] == -32003
        await ask(peer, "event.publish", topic="a.b", data=1)
        assert {(await peer.recv_json()).get("method") for _ in range(2)} == {"event.message", None}


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("subscribe:>",), False),
        (("subscribe:gateway.>", "subscribe:*.draining"), False),
        (("admin",), True),
    ],
)
async def test_the_gateways_topics_need_admin(
    desk: tuple[GatewayProcess, TokensFile], scopes: tuple[str, ...], allowed: bool
) -> None:
    where, tokens = desk
    holder = Holder("somebody", "operator", scopes)
    tokens.put(holder)
    where.signal(signal.SIGHUP)
    await where.wait_event("server.reloaded")
    with await entered(where, tokens.of(holder)) as peer:
        for topic in ("gateway.>", "gateway.*", "gateway.draining", "gateway.node.*"):
            await ask(peer, "event.subscribe", topics=[topic])
            assert ("result" in await peer.recv_json()) == allowed, topic


# Another credential

WIDE = ("subscribe:>", "publish:>", "serve:>", "call:>", "admin")
NARROW = ("subscribe:a.*", "publish:>", "serve:lamp.*", "call:>")
METHODS = [{"name": "camera.snap"}, {"name": "lamp.on"}]
TOPICS = ["a.b", "a.*", "a.>", "x", "gateway.>"]


async def settle_in(peer: RawPeer) -> None:
    """Subscribe and register with a wide credential."""
    await ask(peer, "event.subscribe", topics=TOPICS)
    assert "result" in await peer.recv_json()
    await ask(peer, "node.register", methods=METHODS)
    await reply(peer)


async def reply(peer: RawPeer) -> Any:
    """The next reply's result; messages before it are thrown away."""
    while "id" not in (message := await peer.recv_json()):
        pass
    return message["result"]


async def assert_narrowed(peer: RawPeer, name: str) -> None:
    """What the narrow credential does not allow is gone, and the rest is as it was."""
    await ask(peer, "event.unsubscribe", topics=["nothing"])
    assert await reply(peer) == {"topics": ["a.b", "a.*"]}
    await ask(peer, "node.get", name=name)
    assert (await reply(peer))["methods"] == [{"name": "lamp.on"}]
    for topic in ("x", "a.b.c", "a.b"):
        await ask(peer, "event.publish", topic=topic, data=topic)
    got = [await peer.recv_json() for _ in range(4)]
    assert [message["params"]["topic"] for message in got if "params" in message] == ["a.b"]
    await ask(peer, "event.subscribe", topics=["x"])
    assert (await peer.recv_json())["error"]["code"] == -32003


async def test_a_refreshed_credential_with_fewer_scopes_takes_what_it_does_not_allow(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet({"auth": keys.auth}) as where:
        with await entered(where, signed(Holder("pi", "node", WIDE))) as peer:
            await settle_in(peer)
            await peer.send_json({"jsonrpc": "2.0", "method": "event.unsubscribe", "params": {"topics": ["gateway.>"]}})
            await authenticate(peer, signed(Holder("pi", "node", NARROW)))
            await assert_narrowed(peer, "pi")
            assert where.events("node.offline") == []
            await authenticate(peer, signed(Holder("pi", "node", ("subscribe:a.b",))))
            await where.wait_event("node.offline", node="pi")


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_refresh_that_is_much_work_is_done_whatever_the_client_does(tmp_path: Path, cancelled: bool) -> None:
    """What follows it has the new scopes at once, and cancelling it saves no subscription."""
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet({"auth": keys.auth}) as where:
        with await entered(where, signed(Holder("pi", "node", WIDE))) as peer:
            await ask(peer, "node.register", methods=[{"name": f"m{number}"} for number in range(60)])
            await reply(peer)
            await ask(peer, "event.subscribe", topics=[f"x.y{number}" for number in range(900)] + ["a.b"])
            await reply(peer)
            token = signed(Holder("pi", "node", NARROW))
            messages = [
                {"jsonrpc": "2.0", "id": "new", "method": "gateway.authenticate", "params": {"token": token}},
                {"jsonrpc": "2.0", "id": "sub", "method": "event.subscribe", "params": {"topics": ["x.z"]}},
            ]
            if cancelled:
                messages.append({"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": "new"}})
            await peer.send_raw(b"".join(frame(Opcode.TEXT, json.dumps(message).encode()) for message in messages))
            replies = {answer["id"]: answer for answer in [await peer.recv_json(), await peer.recv_json()]}
            assert replies["sub"]["error"]["code"] == -32003
            assert ("error" in replies["new"]) is cancelled
            while True:
                await ask(peer, "event.unsubscribe", topics=["nothing"])
                left = await reply(peer)
                if left == {"topics": ["a.b"]} or not cancelled:
                    break
            assert left == {"topics": ["a.b"]}
            await where.wait_event("node.offline", node="pi")


async def test_a_token_that_has_fewer_scopes_since_sighup_takes_what_it_does_not_allow(
    desk: tuple[GatewayProcess, TokensFile],
) -> None:
    where, tokens = desk
    tokens.put(Holder("pi", "node", WIDE))
    where.signal(signal.SIGHUP)
    await where.wait_event("server.reloaded")
    with await entered(where, tokens.of(Holder("pi", "node"))) as peer:
        await settle_in(peer)
        tokens.put(Holder("pi", "node", NARROW))
        where.signal(signal.SIGHUP)
        await where.wait_event("server.reloaded")
        await assert_narrowed(peer, "pi")
        tokens.put(Holder("pi", "node", ("subscribe:a.b",)))
        where.signal(signal.SIGHUP)
        await where.wait_event("node.offline", node="pi")
