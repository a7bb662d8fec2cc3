"""`connection.*`: who is connected, who was and why no longer, and ending a connection."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
from aiohttp import WSMsgType
from pytest_aiohttp import AiohttpClient

from gateway import errors
from gateway.app import CONNECTIONS, GATEWAY
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.config import Config
from gateway.connections.connection import Connection
from gateway.connections.history import HISTORY, Closed
from gateway.connections.regime import Regime
from gateway.connections.registry import Connections
from gateway.connections.sessions import Sessions
from gateway.errors import Disconnect
from gateway.methods.connection import ConnectionMethods, ListParams
from tests.support import sample_methods
from tests.support.meta_schema import result_problems
from tests.support.patience import WAIT
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.rpc import Caller, accepted, connect, notification, refused, request, serve
from tests.support.serving import Script

NOBODY = "00000000-0000-4000-8000-000000000000"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MANY = 10_000


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> AsyncIterator[Caller]:
    caller = await serve(aiohttp_client, [sample_methods], limits={"max_message_bytes": 8192})
    yield caller
    registry = caller.app[CONNECTIONS]
    for conn_id in [conn_id for conn_id, connection in registry.items() if not connection.opened_at]:
        del registry[conn_id]  # of the crowd


async def gone(caller: Caller, conn_id: str) -> None:
    """Wait until a connection is out of the registry."""
    async with asyncio.timeout(WAIT):
        while conn_id in caller.app[CONNECTIONS]:
            await asyncio.sleep(0.001)


def seconds(text: str) -> float:
    """The time that a text stands for."""
    assert TIME.fullmatch(text), text
    return datetime.fromisoformat(text).timestamp()


def crowd(caller: Caller, count: int) -> list[str]:
    """Enter connections that exist in the registry alone, and return all connIds in order."""
    regime = Regime(Config())
    registry = caller.app[CONNECTIONS]
    for number in range(count):
        registry.add(Connection(f"127.0.0.1:{number}", caller.app[GATEWAY], regime))
    return sorted(registry)


# connection.list, connection.get


async def test_a_connection_is_told_about(caller: Caller) -> None:
    begin = time.time()
    other = await connect(caller.client)
    await other.ask(request("gateway.ping"))
    await other.send(request("wait", id=2))
    await other.ask(request("gateway.ping"))
    info = await caller.result("connection.get", {"connId": other.conn_id})
    link = other.connection.link
    opened, seen = seconds(info.pop("openedAt")), seconds(info.pop("lastSeenAt"))
    assert begin - 0.01 <= opened <= seen + 0.5 <= time.time() + 0.51
    assert info == {
        "connId": other.conn_id,
        "name": "anonymous",
        "role": "operator",
        "remote": other.connection.remote,
        "messagesIn": 3,
        "messagesOut": 3,
        "bytesIn": link.bytes_in,
        "bytesOut": link.bytes_out,
        "inFlight": 1,
        "outboxBytes": 0,
    }
    assert re.fullmatch(r"127\.0\.0\.1:\d+", info["remote"])
    assert link.bytes_in > 0 < link.bytes_out


async def test_bytes_and_messages_are_counted_up(caller: Caller) -> None:
    before = await caller.result("connection.get", [caller.conn_id])
    await caller.ask(request("gateway.ping", ["x" * 1000]))
    after = await caller.result("connection.get", [caller.conn_id])
    assert (after["messagesIn"], after["messagesOut"]) == (before["messagesIn"] + 2, before["messagesOut"] + 2)
    assert after["bytesIn"] - before["bytesIn"] > 1000 < after["bytesOut"] - before["bytesOut"]
    assert seconds(after["lastSeenAt"]) >= seconds(before["lastSeenAt"])


async def test_calls_of_the_gateway_are_in_flight_too(caller: Caller) -> None:
    other = await connect(caller.client)
    await other.send(request("ask"))
    await other.receive()
    assert (await caller.result("connection.get", [other.conn_id]))["inFlight"] == 2


async def test_the_list_is_what_get_tells(caller: Caller) -> None:
    others = [await connect(caller.client) for _ in range(3)]
    page = await caller.result("connection.list")
    assert page["next"] is None
    assert [info["connId"] for info in page["connections"]] == sorted(each.conn_id for each in (caller, *others))
    whole = await caller.result("rpc.discover")
    assert result_problems(whole, "connection.list", page) == []
    for info in page["connections"]:
        if info["connId"] != caller.conn_id:
            got = await caller.result("connection.get", {"connId": info["connId"]})
            assert got == info
            assert result_problems(whole, "connection.get", got) == []


async def pages(caller: Caller, limit: int, **more: object) -> list[list[str]]:
    """The connIds of all pages."""
    found: list[list[str]] = []
    after = ""
    while True:
        page = await caller.result("connection.list", {"limit": limit, "after": after, **more})
        found.append([info["connId"] for info in page["connections"]])
        if page["next"] is None:
            return found
        assert page["next"] == found[-1][-1]
        after = page["next"]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (7, [6])])
async def test_pages_hold_everybody_once(caller: Caller, limit: int, sizes: list[int]) -> None:
    everybody = crowd(caller, 5)
    found = await pages(caller, limit)
    assert [len(page) for page in found] == sizes
    assert [conn_id for page in found for conn_id in page] == everybody


async def test_who_comes_and_goes_between_two_pages_changes_nothing_for_the_others(caller: Caller) -> None:
    everybody = crowd(caller, 9)
    first = await caller.result("connection.list", {"limit": 5})
    registry = caller.app[CONNECTIONS]
    for conn_id in (everybody[4], everybody[0], everybody[7]):
        if conn_id != caller.conn_id:
            del registry[conn_id]
    second = await caller.result("connection.list", {"limit": 5, "after": first["next"]})
    rest = [conn_id for conn_id in everybody[5:] if conn_id in registry]
    assert [info["connId"] for info in second["connections"]] == rest
    assert second["next"] is None


async def test_one_role_can_be_listed(caller: Caller) -> None:
    everybody = crowd(caller, 6)
    nodes = [conn_id for conn_id in everybody if conn_id != caller.conn_id][::2]
    for conn_id in nodes:
        caller.app[CONNECTIONS][conn_id].principal = Principal("kitchen", "node", ())
    assert await pages(caller, 2, role="node") == [nodes[:2], nodes[2:]]
    assert await pages(caller, 100, role="ui") == [[]]
    (page,) = await pages(caller, 100, role="operator")
    assert page == [conn_id for conn_id in everybody if conn_id not in nodes]
    info = await caller.result("connection.get", [nodes[0]])
    assert (info["name"], info["role"]) == ("kitchen", "node")


@pytest.mark.parametrize("after", ["zzz", "g", "\N{GRINNING FACE}"])
async def test_there_is_nothing_after_the_last(caller: Caller, after: str) -> None:
    assert await caller.result("connection.list", {"after": after}) == {"connections": [], "next": None}


@pytest.mark.parametrize(
    ("name", "params", "why"),
    [
        ("list", {"limit": 0}, "limit: Expected `int` >= 1"),
        ("list", {"limit": 201}, "limit: Expected `int` <= 200"),
        ("list", {"limit": "1"}, "limit: Expected `int`, got `str`"),
        ("list", {"after": None}, "after: Expected `str`, got `null`"),
        ("list", {"page": 2}, "Object contains unknown field `page`"),
        ("list", [1, "", "node", "here", 5], "more than 4 parameters by position"),
        ("get", {}, "Object missing required field `connId`"),
        ("get", {"conn_id": NOBODY}, "Object contains unknown field `conn_id`"),
        ("get", {"connId": 7}, "connId: Expected `str`, got `int`"),
        ("close", [], "Object missing required field `connId`"),
        ("close", {"connId": NOBODY, "reason": 1}, "reason: Expected `str`, got `int`"),
        ("history", {"limit": 0}, "limit: Expected `int` >= 1"),
        ("history", {"connId": 1}, "connId: Expected `str | null`, got `int`"),
    ],
)
async def test_parameters_are_checked(caller: Caller, name: str, params: object, why: str) -> None:
    assert await caller.ask(request(f"connection.{name}", params)) == refused(-32602, why)


@pytest.mark.parametrize("name", ["get", "close"])
@pytest.mark.parametrize("conn_id", [NOBODY, "", "x" * 1000])
async def test_who_is_not_connected_is_not_found(caller: Caller, name: str, conn_id: str) -> None:
    detail = f"no open connection {conn_id[:36]!r}; see connection.history"
    assert await caller.ask(request(f"connection.{name}", [conn_id])) == refused(-32004, detail)


@pytest.mark.parametrize("name", ["list", "get", "close", "history"])
async def test_only_an_admin_may(caller: Caller, name: str) -> None:
    caller.connection.principal = Principal("page", "ui", ("call:>", "subscribe:>"))
    assert await caller.ask(request(f"connection.{name}", [caller.conn_id])) == refused(-32003, "admin")
    caller.connection.principal = Principal("auditor", "ui", ("admin",))
    assert (await caller.call(f"connection.{name}", [NOBODY])).get("error", {}).get("code") != -32003


class Compared(str):
    """A connId that counts how often one of its kind is compared."""

    times = 0

    def __gt__(self, other: str) -> bool:
        Compared.times += 1
        return str.__gt__(self, other)

    def __lt__(self, other: str) -> bool:
        Compared.times += 1
        return str.__lt__(self, other)


@pytest.mark.parametrize("limit", [100, 200])
async def test_a_page_of_very_many_looks_at_each_a_few_times(limit: int) -> None:
    """All others wait for a page, so it neither sorts everybody nor tells about more than it lists."""
    registry, regime = Connections(), Regime(Config())
    for number in range(MANY):
        connection = Connection(f"127.0.0.1:{number}", Script(), regime)
        registry[Compared(connection.conn_id)] = connection
    sessions = Sessions(hold_timeout=30.0, max_held=1, max_bytes=1, held=lambda connection: None, behind=lambda _: 0)
    listing = ConnectionMethods(registry, sessions)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        Compared.times = 0
        page = listing.list(next(iter(registry.values())), ListParams(limit=limit, after=after))
        assert Compared.times < 3 * MANY
        assert len(page.connections) <= limit
        found += [info.conn_id for info in page.connections]
        after = page.next
    assert found == sorted(registry)


# connection.close


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (None, "closed by an operator"),
        ("", "closed by an operator"),
        ("moved house", "moved house"),
        ("x" * 200, "x" * 123),
        ("\N{GRINNING FACE}" * 40, "\N{GRINNING FACE}" * 30),
    ],
)
async def test_a_connection_is_closed_with_a_reason(caller: Caller, reason: str | None, told: str) -> None:
    other = await connect(caller.client)
    params = {"connId": other.conn_id} if reason is None else {"connId": other.conn_id, "reason": reason}
    assert await caller.result("connection.close", params) == {"closed": True}
    message = await other.ws.receive(timeout=WAIT)
    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4501, told)
    await gone(caller, other.conn_id)
    (entry,) = (await caller.result("connection.history"))["connections"]
    assert (entry["cause"], entry["code"], entry["reason"]) == ("closed_by_operator", 4501, told)
    assert await caller.ask(request("connection.close", [other.conn_id])) != accepted('{"closed":true}')


async def test_a_notification_closes_too(caller: Caller) -> None:
    other = await connect(caller.client)
    await caller.send(notification("connection.close", [other.conn_id]))
    assert await other.closed() == 4501


async def test_a_connection_may_close_itself(caller: Caller) -> None:
    await caller.send(request("connection.close", [caller.conn_id, "enough"]))
    assert await caller.closed() == 4501


async def test_what_ran_for_a_closed_connection_is_cancelled(caller: Caller) -> None:
    other = await connect(caller.client)
    await other.send(request("wait"))
    await other.ask(request("gateway.ping", id=2))
    connection = other.connection
    assert connection.in_flight == 1
    await caller.result("connection.close", [other.conn_id])
    assert await other.closed() == 4501
    await gone(caller, other.conn_id)
    async with asyncio.timeout(WAIT):
        while connection.in_flight:
            await asyncio.sleep(0.001)


# connection.history


async def test_an_end_is_remembered(caller: Caller) -> None:
    begin = time.time()
    other = await connect(caller.client)
    remote, link = other.connection.remote, other.connection.link
    other.connection.principal = Principal("kitchen", "node", ())
    await other.ask(request("gateway.ping"))
    await asyncio.sleep(0.05)
    await other.ws.close(code=4000, message=b"bye")
    await gone(caller, other.conn_id)
    history = await caller.result("connection.history")
    assert result_problems(await caller.result("rpc.discover"), "connection.history", history) == []
    (entry,) = history["connections"]
    opened, closed, duration = seconds(entry.pop("openedAt")), seconds(entry.pop("closedAt")), entry.pop("duration")
    assert begin - 0.01 <= opened <= closed <= time.time() + 0.01
    assert duration >= 0.05
    assert closed - opened == pytest.approx(duration, abs=0.5)
    assert entry == {
        "connId": other.conn_id,
        "name": "kitchen",
        "role": "node",
        "remote": remote,
        "cause": "client_close",
        "code": 4000,
        "reason": "bye",
        "messagesIn": 1,
        "messagesOut": 2,
        "bytesIn": link.bytes_in,
        "bytesOut": link.bytes_out,
    }


async def end_by(caller: Caller, how: str) -> str:
    """Open a connection, end it, and return its connId."""
    assert caller.client.port is not None
    with await RawPeer.open(Target(caller.client.port)) as peer:
        conn_id = str((await peer.welcome())["connId"])
        match how:
            case "close":
                await peer.send_close(1000)
            case "no code":
                await peer.send_close(None)
            case "fin":
                peer.fin()
            case "rst":
                peer.rst()
            case "unmasked":
                await peer.send_frame(Opcode.TEXT, b"{}", mask=False)
            case "binary":
                await peer.send_frame(Opcode.BINARY, b"{}")
            case "utf-8":
                await peer.send_frame(Opcode.TEXT, b'"\xff"')
            case "size":
                await peer.send_frame(Opcode.TEXT, b" " * 8193)
            case "operator":
                await caller.result("connection.close", [conn_id])
        if how != "rst":
            while (await peer.recv_frame()).opcode != Opcode.CLOSE and how != "fin":
                pass
            await peer.send_close()
    await gone(caller, conn_id)
    return conn_id


@pytest.mark.parametrize(
    ("how", "cause", "code"),
    [
        ("close", "client_close", 1000),
        ("no code", "client_close", 1005),
        ("rst", "transport_lost", 1006),
        ("unmasked", "protocol_error", 1002),
        ("binary", "unsupported_data", 1003),
        ("utf-8", "invalid_utf8", 1007),
        ("size", "message_too_big", 1009),
        ("operator", "closed_by_operator", 4501),
    ],
)
async def test_why_did_it_disconnect(caller: Caller, how: str, cause: str, code: int) -> None:
    conn_id = await end_by(caller, how)
    (entry,) = (await caller.result("connection.history", {"connId": conn_id}))["connections"]
    assert (entry["connId"], entry["cause"], entry["code"]) == (conn_id, cause, code)


async def test_the_newest_comes_first(caller: Caller) -> None:
    ended: list[str] = []
    for _ in range(4):
        other = await connect(caller.client)
        await other.ws.close()
        await gone(caller, other.conn_id)
        ended.insert(0, other.conn_id)

    async def told(**params: object) -> list[str]:
        history = await caller.result("connection.history", params)
        return [entry["connId"] for entry in history["connections"]]

    assert await told() == ended
    assert await told(limit=2) == ended[:2]
    assert await told(limit=2, connId=ended[3]) == [ended[3]]
    assert await told(connId=None) == ended
    assert await told(connId=caller.conn_id) == []
    assert await told(connId=NOBODY) == []


async def test_the_last_thousand_are_remembered(caller: Caller) -> None:
    history = caller.app[CONNECTIONS].history
    for number in range(HISTORY + 500):
        end = Disconnect(1000, errors.CLIENT_CLOSE.cause, str(number))
        history.append(Closed(NOBODY, ANONYMOUS, "127.0.0.1:1", time.time(), 1.0, end, 0, 0, 0, 0, "@127.0.0.1"))
    found = (await caller.result("connection.history", {"limit": 1000}))["connections"]
    assert HISTORY == 1000
    assert [int(entry["reason"]) for entry in found] == list(range(1499, 499, -1))
    assert len((await caller.result("connection.history"))["connections"]) == 100
    filtered = (await caller.result("connection.history", {"connId": NOBODY, "limit": 7}))["connections"]
    assert [int(entry["reason"]) for entry in filtered] == list(range(1499, 1492, -1))
