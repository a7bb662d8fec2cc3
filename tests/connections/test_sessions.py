"""Connections that outlive their link: keep, acknowledge, lose the link, come back; and how that ends."""

import asyncio
import json
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway import errors
from gateway.api import CALL, Connection, method
from gateway.app import CONNECTIONS, GATEWAY
from gateway.config import Config
from gateway.connections import sessions
from gateway.connections.session import ACK_EVERY
from gateway.telemetry.counts import Traffic
from tests.support.apart import place
from tests.support.kept import Client, Kept, Message, code_of, counts, gateway_for, held, until
from tests.support.patience import WAIT
from tests.support.peers import Opcode, frame
from tests.support.rpc import Caller, connect


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await gateway_for(aiohttp_client)


@pytest.fixture
async def kept(client: Client) -> Kept:
    return await Kept.open(client)


async def pings(kept: Kept, count: int, first: int = 0) -> None:
    """Send so many requests, and read their answers."""
    for number in range(first, first + count):
        assert await kept.result("gateway.ping", {"n": number}, number) == {"n": number}


async def one_of(kept: Kept) -> Message:
    """The only message of the next batch."""
    (message,) = await kept.next()
    assert isinstance(message, dict)
    return message


# Keep


async def test_what_came_behind_a_keep_that_had_to_wait_has_a_number(client: Client) -> None:
    kept = Kept(client)
    await kept.link()
    large = {"jsonrpc": "2.0", "id": 1, "method": "gateway.ping", "params": {"x": "x" * 270_000}}
    await kept.ws.send_json([large])  # has an event-loop iteration of its own
    await kept.ws.send_json({"jsonrpc": "2.0", "id": 2, "method": "connection.keep", "params": {}})
    await kept.ws.send_json({"jsonrpc": "2.0", "id": 3, "method": "gateway.ping", "params": {}})
    for _ in range(3):
        await kept.ws.receive_json(timeout=WAIT)
    session = kept.connection.session
    assert session is not None and session.received == 1
    assert session.clocked, "it is acknowledged in time"


async def test_keep_tells_a_secret_and_the_bounds(client: Client) -> None:
    kept = Kept(client)
    await kept.link()
    reply = await kept.keep(holdMs=1500)
    assert reply["result"] == {"session": kept.session, "holdMs": 1500, "maxBytes": 8_388_608}
    assert len(kept.session) == 43
    other = await Kept.open(client)
    assert other.session != kept.session
    assert other.connection.session is not None
    assert other.connection.session.hold == 30.0


@pytest.mark.parametrize(
    ("params", "code"), [({"holdMs": 30_001}, -32602), ({"holdMs": -1}, -32602), ({"x": 1}, -32602)]
)
async def test_what_keep_does_not_take(client: Client, params: dict[str, object], code: int) -> None:
    kept = Kept(client)
    await kept.link()
    assert code_of(await kept.raw("connection.keep", params)) == code
    assert kept.connection.session is None


async def test_once_a_connection_and_alone(kept: Kept) -> None:
    await kept.request("connection.keep")
    assert code_of(await kept.next()) == -32007
    await kept.send([{"jsonrpc": "2.0", "id": 2, "method": "connection.keep"}])
    assert code_of(await one_of(kept)) == -32600
    await kept.send({"jsonrpc": "2.0", "method": "connection.keep"})
    assert code_of(await kept.next()) == -32600


async def test_without_a_hold_timeout_there_is_no_such_method(aiohttp_client: AiohttpClient) -> None:
    kept = Kept(await gateway_for(aiohttp_client, server={"hold_timeout": 0}))
    await kept.link()
    for name in ("connection.keep", "connection.resume"):
        assert code_of(await kept.raw(name, {})) == -32601


async def test_a_client_that_has_not_acknowledged_is_not_held(client: Client) -> None:
    kept = Kept(client)
    await kept.link()
    await kept.keep()
    await kept.cut()
    await until(lambda: not client.app[CONNECTIONS])
    await kept.link()
    assert code_of(await kept.resume()) == -32004


# Acknowledgements


async def test_the_gateway_acknowledges_every_so_many_messages(kept: Kept) -> None:
    await pings(kept, ACK_EVERY)
    await kept.quiet()
    acks = [message["params"]["received"] for message in kept.others if message["method"] == "connection.ack"]
    assert acks == [ACK_EVERY]


@pytest.fixture
def by_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledge nothing because time has passed."""
    monkeypatch.setattr(sessions, "ACK_WITHIN", 3600.0)


@pytest.mark.usefixtures("by_number_alone")
async def test_messages_that_have_no_answer_are_acknowledged_too_by_each_link(client: Client) -> None:
    kept = await Kept.open(client)
    for number in range(1, 4):
        for _ in range(ACK_EVERY):
            await kept.send({"jsonrpc": "2.0", "method": "gateway.ping"})
        ack = await kept.ws.receive_json(timeout=WAIT)
        assert ack["params"] == {"received": number * ACK_EVERY}
        await kept.cut()
        await kept.back()


@pytest.mark.usefixtures("by_number_alone")
async def test_messages_that_were_held_back_are_acknowledged_too(aiohttp_client: AiohttpClient) -> None:
    @method("read.no_more", scope=CALL)
    def read_no_more(peer: Connection) -> None:
        peer.link.stall()

    kept = await Kept.open(await gateway_for(aiohttp_client, [read_no_more]))
    names = ["read.no_more", *["gateway.ping"] * (ACK_EVERY - 1)]
    texts = [json.dumps({"jsonrpc": "2.0", "method": name}).encode() for name in names]
    writer: Any = kept.ws._writer
    writer.transport.write(b"".join(frame(Opcode.TEXT, text) for text in texts))
    ack = await kept.ws.receive_json(timeout=WAIT)
    assert ack["params"] == {"received": ACK_EVERY}


@pytest.mark.parametrize("compress", [0, 15])
async def test_a_quarter_of_what_may_be_kept_is_acknowledged_soon_even_if_few_bytes_came(
    aiohttp_client: AiohttpClient, compress: int
) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_held_bytes": 40_000}, server={"compression": True})
    kept = Kept(client)
    await kept.link(compress)
    await kept.keep()
    assert kept.ws.compress == compress
    await kept.send({"jsonrpc": "2.0", "method": "gateway.ping", "params": ["x" * 10_000]})
    await pings(kept, 2)
    acks = [message["params"]["received"] for message in kept.others if message["method"] == "connection.ack"]
    assert len(acks) == 1, "with the first answer at the latest"
    assert acks[0] in (1, 2)


async def test_it_acknowledges_a_single_message_within_two_seconds(kept: Kept) -> None:
    await pings(kept, 1)
    ack = await kept.ws.receive_json(timeout=30)
    assert ack == {"jsonrpc": "2.0", "method": "connection.ack", "params": {"received": 1}}


async def test_an_acknowledgement_of_more_than_was_sent_ends_with_1002(kept: Kept) -> None:
    await kept.ack(1)
    await kept.ws.receive()
    assert kept.ws.close_code == 1002


async def test_a_smaller_one_is_ignored_and_others_are_refused(kept: Kept) -> None:
    await pings(kept, 3)
    await kept.ack(3)
    await kept.ack(1)
    await kept.request("connection.ack", {"received": 0})
    assert code_of(await kept.next()) == -32600
    await kept.send([{"jsonrpc": "2.0", "method": "connection.ack", "params": {"received": 0}}])
    assert code_of(await one_of(kept)) == -32600
    await kept.cut()
    assert (await kept.back())["received"] == 5  # both were counted


async def test_acknowledgements_are_outside_of_every_rate(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client, limits={"rate": 0.01, "burst": 3}))
    for _ in range(100):
        await kept.ack(0)
    await pings(kept, 1)


# Held and back


async def test_what_was_on_its_way_arrives_once_and_in_order(kept: Kept, client: Client) -> None:
    await pings(kept, 3)
    for number in range(3, 6):
        await kept.request("gateway.ping", {"n": number}, number)
    session = kept.connection.session
    await until(lambda: session is not None and session.received == 6)
    conn_id = kept.connection.conn_id
    await kept.cut()
    assert held(client) == 1
    assert await kept.back() == {"connId": conn_id, "received": 6}
    assert [(await kept.next())["id"] for _ in range(3)] == [3, 4, 5]
    await pings(kept, 2, 6)
    assert held(client) == 0


async def test_what_has_not_come_is_sent_again_by_the_client(kept: Kept) -> None:
    await pings(kept, 2)
    await kept.cut()
    kept.sent += 1  # a message that was lost
    assert (await kept.back())["received"] == 2
    kept.sent = 2
    await pings(kept, 3, 2)


async def test_any_number_of_times(kept: Kept) -> None:
    for number in range(5):
        await kept.request("gateway.ping", {"n": number}, number)
        await kept.cut()
        received = (await kept.back())["received"]
        if received < kept.sent:
            kept.sent -= 1
            await kept.request("gateway.ping", {"n": number}, number)
        assert (await kept.next())["result"] == {"n": number}


async def test_half_a_message_does_not_count(kept: Kept) -> None:
    await pings(kept, 1)
    writer: Any = kept.ws._writer
    await writer.send_frame(b'{"jsonrpc":"2.0","id":9,"method":"gateway.ping"', 1)  # unfinished by its meaning
    await kept.next()
    connection = kept.connection
    await kept.cut()
    assert connection.session is not None
    assert connection.session.received == 2


async def test_a_request_runs_on_and_its_answer_waits(aiohttp_client: AiohttpClient) -> None:
    going, runs = asyncio.Event(), list[Connection]()

    @method("slow.one", scope=CALL)
    async def slow(peer: Connection) -> str:
        runs.append(peer)
        await going.wait()
        return "done"

    client = await gateway_for(aiohttp_client, [slow])
    kept = await Kept.open(client)
    await kept.request("slow.one", id="slow")
    await until(lambda: runs)
    await kept.cut()
    going.set()
    await until(lambda: not kept.connection.running)
    await kept.back()
    assert (await kept.next())["result"] == "done"
    assert len(runs) == 1


async def node(client: Client, name: str = "pi", *methods: str) -> Kept:
    """A node that is kept."""
    kept = await Kept.open(client)
    await kept.result("node.register", {"name": name, "methods": [{"name": each} for each in methods or ("m.one",)]})
    return kept


@pytest.mark.apart
async def test_a_call_to_a_held_node_waits_and_is_answered_once(client: Client) -> None:
    pi, caller, other = await node(client), await connect(client), await connect(client)
    await caller.send('{"jsonrpc":"2.0","id":1,"method":"m.one"}')
    first = await pi.next()
    await pi.cut()
    await caller.send('{"jsonrpc":"2.0","id":2,"method":"m.one"}')
    assert (await other.result("node.list"))["nodes"][0]["held"] is True
    await pi.back()
    await pi.answer(await pi.next(), "two")
    assert json.loads(await caller.receive()) == {"jsonrpc": "2.0", "id": 2, "result": "two"}
    await pi.answer(first, "one")
    assert json.loads(await caller.receive()) == {"jsonrpc": "2.0", "id": 1, "result": "one"}
    assert "held" not in (await other.result("node.list"))["nodes"][0]


@pytest.mark.apart
async def test_of_two_nodes_the_one_with_a_link_is_chosen(client: Client) -> None:
    first, second = await node(client, "a"), await node(client, "b")
    caller = await connect(client)
    await first.cut()
    for number in range(4):
        await caller.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": "m.one"}))
        await second.next()


async def failure(caller: Caller) -> tuple[int, str]:
    """The code of the next reply, and its outcome."""
    error = json.loads(await caller.receive())["error"]
    return error["code"], error["data"].get("outcome")


@pytest.mark.apart
async def test_not_back_in_time_is_the_end_by_the_loss_and_what_was_never_written_is_not_delivered(
    client: Client,
) -> None:
    pi = Kept(client)
    await pi.link()
    await pi.keep(holdMs=2000)
    await pi.ack(0)
    await pi.result("node.register", {"name": "pi", "methods": [{"name": "m.one"}]})
    caller = await connect(client)
    await caller.send('{"jsonrpc":"2.0","id":1,"method":"m.one"}')
    await pi.next()
    await pi.cut()
    await caller.send('{"jsonrpc":"2.0","id":2,"method":"m.one"}')
    assert await failure(caller) == (-32010, "unknown")
    assert await failure(caller) == (-32010, "not_delivered")
    history = (await caller.result("connection.history"))["connections"]
    assert [(closed["connId"], closed["cause"], closed["code"]) for closed in history] == [
        (pi.conn_id, "transport_lost", 1006)
    ]
    await pi.link()
    assert code_of(await pi.resume()) == -32004


@pytest.mark.apart
async def test_who_does_not_want_to_wait_for_a_held_node_is_told_at_once(client: Client) -> None:
    pi, caller = await node(client), await connect(client)
    params = {"node": "pi", "method": "m.one", "held": False}
    await caller.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "node.call", "params": params}))
    call = await pi.next()
    await pi.cut()
    assert await failure(caller) == (-32010, "unknown")
    await caller.send(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "node.call", "params": params}))
    assert await failure(caller) == (-32010, "not_delivered")
    await pi.back()
    cancel = await pi.next()
    assert (cancel["method"], cancel["params"]) == ("rpc.cancel", {"id": call["id"]})


@pytest.mark.apart
async def test_a_held_node_takes_calls_up_to_half_of_what_may_be_kept(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_held_bytes": 20_000})
    pi, caller = await node(client), await connect(client)
    await pi.cut()
    text = "x" * 6000
    for number in range(2):
        await caller.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": "m.one", "params": [text]}))
    await caller.send(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "m.one", "params": [text]}))
    assert await failure(caller) == (-32009, "not_delivered")
    await pi.back()
    for number in range(2):
        await pi.answer(await pi.next(), number)
        assert json.loads(await caller.receive())["result"] == number


async def test_what_becomes_too_much_while_held_ends_the_connection(aiohttp_client: AiohttpClient) -> None:
    @method("big.one", scope=CALL)
    async def big(peer: Connection) -> str:
        await until(lambda: not peer.is_linked)
        return "x" * 30_000

    client = await gateway_for(aiohttp_client, [big], limits={"max_held_bytes": 20_000})
    kept = await Kept.open(client)
    await kept.request("big.one")
    await until(lambda: kept.connection.running)
    await kept.cut()
    await until(lambda: not client.app[CONNECTIONS])
    await kept.link()
    assert code_of(await kept.resume()) == -32004


@pytest.mark.apart
async def test_very_much_comes_again_as_it_is_read(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client)
    pi, caller = await node(client), await connect(client)
    await pi.cut()
    text = "x" * 100_000
    for number in range(40):
        await caller.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": "m.one", "params": [number, text]}))
    await until(lambda: len(pi.connection.calls) == 40)
    await pi.back()
    for number in range(40):
        call = await pi.next()
        assert call["params"][0] == number
        await pi.answer(call, number)
        assert json.loads(await caller.receive())["id"] == number


@pytest.mark.apart
async def test_subscriptions_end_with_the_link_and_begin_anew(kept: Kept, client: Client) -> None:
    publisher = await connect(client)
    await kept.result("event.subscribe", {"topics": ["a.b"]})
    first = await publisher.result("event.publish", {"topic": "a.b", "data": 1})
    await kept.quiet()
    assert [message["params"]["data"] for message in kept.others if "event" in message["method"]] == [1]
    await kept.cut()
    await publisher.result("event.publish", {"topic": "a.b", "data": 2})
    await kept.back()
    result = await kept.result("event.subscribe", {"topics": ["a.b"], "since": {"a.b": first}})
    assert result["topics"]["a.b"]["recovered"] is True
    await kept.quiet()
    assert [message["params"]["data"] for message in kept.others if "event" in message["method"]] == [1, 2]


@pytest.mark.apart
async def test_a_subscription_whose_reply_was_lost_is_made_again(kept: Kept, client: Client) -> None:
    publisher = await connect(client)
    await kept.request("event.subscribe", {"topics": ["a.b"]})
    session = kept.connection.session
    await until(lambda: session is not None and session.received == 1)
    await kept.cut()
    await kept.back()
    assert "result" in await kept.next()  # of the subscription that has ended with its link
    await kept.result("event.subscribe", {"topics": ["a.b"]})
    await publisher.result("event.publish", {"topic": "a.b", "data": 1})
    await kept.quiet()
    assert [message["params"]["data"] for message in kept.others if "event" in message["method"]] == [1]


async def test_what_the_gateway_says_of_itself_does_not_count(kept: Kept) -> None:
    kept.connection.notify("gateway.expiring", {"leftMs": 1})
    kept.connection.notify("of.a.method", {})
    await kept.next()
    assert not counts(kept.others[0])
    await kept.cut()
    kept.connection.notify("gateway.expiring", {"leftMs": 1})
    kept.connection.notify("of.a.method", {"n": 2})
    await kept.back()
    assert (await kept.next())["params"] == {"n": 2}
    assert len(kept.others) == 1


# The end


async def test_a_close_frame_is_an_end(kept: Kept, client: Client) -> None:
    await kept.ws.close()
    await until(lambda: not client.app[CONNECTIONS])
    await kept.link()
    assert code_of(await kept.resume()) == -32004


async def test_a_peer_that_closes_with_1011_is_held(kept: Kept, client: Client) -> None:
    await kept.ws.close(code=1011)
    await until(lambda: held(client) == 1)
    await kept.back()
    await pings(kept, 1)


@pytest.mark.parametrize("linked", [True, False])
async def test_an_operator_ends_it_and_the_client_is_told_how(kept: Kept, client: Client, linked: bool) -> None:
    admin = await connect(client)
    if linked:
        connection = kept.connection
        assert await admin.result("connection.close", {"connId": kept.conn_id}) == {"closed": True}
        await until(lambda: not connection.is_open)
        connection.link.transport.abort()  # before the close frame is answered
    else:
        await kept.cut()
        assert await admin.result("connection.close", {"connId": kept.conn_id}) == {"closed": True}
    await until(lambda: len(client.app[CONNECTIONS]) == 1)
    await kept.link()
    error = (await kept.resume())["error"]
    assert (error["code"], error["data"]["cause"], error["data"]["closeCode"]) == (-32004, "closed_by_operator", 4501)


@pytest.mark.apart
async def test_it_is_resumed_at_its_own_gateway_alone(client: Client, placed: str) -> None:
    kept = await Kept.open(client)
    await kept.cut()
    kept.client = place(client)
    await kept.link()
    reply = await kept.resume()
    assert ("result" in reply) if placed == "alone" else (code_of(reply) == -32004)


@pytest.mark.apart
async def test_a_held_node_is_replaced_and_stays_so(client: Client) -> None:
    old = await node(client)
    await old.cut()
    newer = await node(client)
    caller = await connect(client)
    assert [entry["connId"] for entry in (await caller.result("node.list"))["nodes"]] == [newer.conn_id]
    await old.link()
    error = (await old.resume())["error"]
    assert (error["code"], error["data"]["cause"], error["data"]["closeCode"]) == (-32004, "replaced", 4502)


async def test_the_one_that_is_held_longest_goes_first(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_held": 2})
    many = [await Kept.open(client) for _ in range(3)]
    for kept in many:
        await kept.cut()
    assert held(client) == 2
    assert [kept.conn_id in client.app[CONNECTIONS] for kept in many] == [False, True, True]


async def test_none_is_held_if_none_may_be(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_held": 0})
    kept = await Kept.open(client)
    await kept.cut()
    await until(lambda: not client.app[CONNECTIONS])


async def test_a_drain_ends_those_that_are_held(kept: Kept, client: Client) -> None:
    await kept.cut()
    config = Config()
    await client.app[GATEWAY].drain(config.server)
    assert (held(client), len(client.app[CONNECTIONS])) == (0, 0)
    assert client.app[CONNECTIONS].disconnects["shutdown"] == 1


# What others see


@pytest.mark.apart
async def test_lists_lines_and_topics_tell_of_it_and_never_of_the_secret(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gateway")
    pi, admin = await node(client), await connect(client)
    await admin.result("event.subscribe", {"topics": ["gateway.node.*"]})
    seen = [await admin.ask('{"jsonrpc":"2.0","id":1,"method":"connection.list"}')]
    assert '"held"' not in seen[0]
    await pi.cut()
    seen.append(await admin.receive())
    assert json.loads(seen[-1])["params"]["topic"] == "gateway.node.held"
    seen.append(await admin.ask('{"jsonrpc":"2.0","id":1,"method":"connection.list"}'))
    (entry,) = [each for each in json.loads(seen[-1])["result"]["connections"] if each["connId"] == pi.conn_id]
    assert entry["held"] is True
    assert 0 < entry["holdLeftMs"] <= 30_000
    await pi.back()
    seen.append(await admin.receive())
    assert json.loads(seen[-1])["params"]["topic"] == "gateway.node.back"
    seen.append(await admin.ask('{"jsonrpc":"2.0","id":1,"method":"connection.history"}'))
    assert json.loads(seen[-1])["result"]["connections"] == []
    lines = {record.__dict__["event"]: record.__dict__ for record in caplog.records if "event" in record.__dict__}
    line = lines["connection.held"]
    assert (line["connId"], line["cause"]) == (pi.conn_id, "transport_lost")
    line = lines["connection.resumed"]
    assert (line["connId"], line["cause"]) == (pi.conn_id, "transport_lost")
    assert line["link"] not in (pi.conn_id, None)
    assert line["heldFor"] >= 0
    assert lines["connection.closed"]["cause"] == "resumed"
    assert not any(pi.session in text for text in [*seen, *map(str, caplog.records), str(lines)])


async def test_counts_of_traffic_never_fall(kept: Kept, client: Client) -> None:
    async def total() -> Traffic:
        return (await client.app[CONNECTIONS].census()).traffic

    before = await total()
    for number in range(3):
        await pings(kept, 3, number)
        await kept.cut()
        meanwhile = await total()
        await kept.back()
        now = await total()
        for earlier, later in ((before, meanwhile), (meanwhile, now)):
            assert later.messages_in >= earlier.messages_in
            assert later.messages_out >= earlier.messages_out
            assert later.bytes_in >= earlier.bytes_in
            assert later.bytes_out >= earlier.bytes_out
        before = now
    assert client.app[CONNECTIONS].disconnects[errors.RESUMED.cause] == 3
