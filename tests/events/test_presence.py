"""Who comes and goes: the gateway's own topics, and the log's lines about nodes, after every kind of end."""

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from gateway.auth.scopes import ANONYMOUS
from gateway.errors import CLIENT_CLOSE
from gateway.events.presence import MAX_NAMED, Presence
from gateway.telemetry.lines import Lines
from tests.support.credentials import farewell
from tests.support.ears import hall
from tests.support.fleet import request
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, Line, StartGateway


class Someone:
    """A connection, as far as others are told of it."""

    principal = ANONYMOUS
    conn_id = "3f0c9d5e-6a51-4c1f-9d0e-2f6a3a3c8b11"
    remote = "127.0.0.1:1"


def test_what_nobody_has_asked_for_is_not_published() -> None:
    here = hall()
    presence = Presence(here.events, Lines())
    presence.opened(Someone())
    presence.closed(Someone(), CLIENT_CLOSE, 1.0)
    presence.draining(10.0)
    assert (here.events.published, len(here.topics)) == (0, 0)


class Watcher:
    """A peer that has subscribed to all of the gateway's own topics."""

    def __init__(self, where: GatewayProcess, peer: RawPeer) -> None:
        self.where = where
        self.peer = peer

    async def next(self, topic: str) -> dict[str, Any]:
        """The next message's data; it must be of this topic."""
        params = (await self.peer.recv_json())["params"]
        assert params["topic"] == topic, params
        data: dict[str, Any] = params["data"]
        return data

    async def line(self, event: str, **fields: Any) -> Line:
        """The line in the log about a node, without what every line has."""
        line = await self.where.wait_event(event, **fields)
        return {name: line[name] for name in line.keys() - {"time", "level", "logger", "event", "message"}}

    async def enters(self, stack: ExitStack) -> tuple[RawPeer, str]:
        """Open another connection, of which it is told."""
        peer = stack.enter_context(await RawPeer.open(self.where))
        conn_id = (await peer.welcome())["connId"]
        opened = await self.next("gateway.connection.opened")
        assert opened == {"connId": conn_id, "name": "anonymous", "role": "operator", "remote": peer.local}
        return peer, conn_id

    async def leaves(self, conn_id: str, cause: str, code: int) -> None:
        """Be told of a connection's end."""
        closed = await self.next("gateway.connection.closed")
        assert (closed["connId"], closed["cause"], closed["code"]) == (conn_id, cause, code)
        assert closed.keys() == {"connId", "name", "role", "remote", "cause", "code", "reason", "duration"}
        assert 0 <= closed["duration"] < 60


@pytest.fixture
async def watcher(gateway: StartGateway) -> AsyncIterator[Watcher]:
    where = await gateway()
    with await RawPeer.open(where) as peer:
        await peer.welcome()
        await request(peer, "event.subscribe", topics=["gateway.>"])
        topics = (await peer.recv_json())["result"]["topics"]
        assert sorted(topics) == [
            "gateway.connection.closed",
            "gateway.connection.opened",
            "gateway.draining",
            "gateway.node.back",
            "gateway.node.held",
            "gateway.node.offline",
            "gateway.node.online",
        ]
        yield Watcher(where, peer)


def news(*added: str, removed: Sequence[str] = (), changed: Sequence[str] = ()) -> dict[str, Any]:
    """What an event says of the methods of a node."""
    return {"added": [*added], "removed": [*removed], "changed": [*changed]}


async def register(peer: RawPeer, *methods: str, name: str = "pi") -> None:
    """Be a node."""
    await request(peer, "node.register", name=name, methods=[{"name": method} for method in methods])
    reply = await peer.recv_json()
    assert "result" in reply, reply


async def test_a_node_that_comes_serves_more_and_less_and_leaves(watcher: Watcher) -> None:
    with ExitStack() as stack:
        node, conn_id = await watcher.enters(stack)
        who = {"connId": conn_id, "node": "pi"}
        await register(node, "a.b", "a.c")
        assert await watcher.next("gateway.node.online") == who | {"serves": 2} | news("a.b", "a.c")
        assert await watcher.line("node.online") == who | {"serves": 2, "remote": node.local}
        await register(node, "a.d", "a.c")
        assert await watcher.next("gateway.node.online") == who | {"serves": 3} | news("a.d")
        assert await watcher.line("node.online") == who | {"serves": 3, "remote": node.local}
        await request(node, "node.unregister", methods=["a.b", "never there"])
        await node.recv_json()
        assert await watcher.next("gateway.node.online") == who | {"serves": 2} | news(removed=["a.b"])
        await request(node, "node.unregister", methods=["a.c", "a.d"])
        await node.recv_json()
        assert await watcher.next("gateway.node.offline") == who
        assert await watcher.line("node.offline") == who | {"remote": node.local}
        await node.leave()
        await watcher.leaves(conn_id, "client_close", 1000)
    assert len(watcher.where.events("node.offline")) == 1


async def test_a_registration_that_changes_nothing_leaves_no_line_and_no_event(watcher: Watcher) -> None:
    with ExitStack() as stack:
        node, conn_id = await watcher.enters(stack)
        for _ in range(500):
            await register(node, "a.b", "a.c")
        await request(node, "node.register", name="pi", methods=[{"name": "a.b", "summary": "Anew."}, {"name": "a.d"}])
        await node.recv_json()
        await request(node, "node.unregister")
        await node.recv_json()
        who = {"connId": conn_id, "node": "pi"}
        assert await watcher.next("gateway.node.online") == who | {"serves": 2} | news("a.b", "a.c")
        assert await watcher.next("gateway.node.online") == who | {"serves": 3} | news("a.d", changed=["a.b"])
        assert await watcher.next("gateway.node.offline") == who
        await watcher.line("node.offline")
    assert [line["serves"] for line in watcher.where.events("node.online")] == [2, 3]


async def test_an_event_names_a_hundred_methods_at_most(watcher: Watcher) -> None:
    """And who has a thousand, and registers one more, causes a message about one."""
    with ExitStack() as stack:
        node, _ = await watcher.enters(stack)
        many = [f"a.{'x' * 190}{number:03}" for number in range(999)]
        await register(node, *many)
        first = await watcher.next("gateway.node.online")
        assert (first["serves"], first["added"], first["truncated"]) == (999, many[:MAX_NAMED], True)
        await register(node, *many, "b")
        second = await watcher.next("gateway.node.online")
        assert (second["serves"], second["added"], "truncated" in second) == (1000, ["b"], False)
        await request(node, "node.unregister", methods=many[: MAX_NAMED + 1])
        await node.recv_json()
        third = await watcher.next("gateway.node.online")
        assert (third["removed"], third["truncated"]) == (many[:MAX_NAMED], True)
        await request(node, "node.unregister", methods=many[MAX_NAMED + 1 : 2 * MAX_NAMED + 1])
        await node.recv_json()
        fourth = await watcher.next("gateway.node.online")
        assert (len(fourth["removed"]), "truncated" in fourth) == (MAX_NAMED, False)


@pytest.mark.parametrize("how", ["close", "leave", "rst", "fin"])
async def test_a_node_is_offline_however_it_ends(watcher: Watcher, how: str) -> None:
    with ExitStack() as stack:
        node, conn_id = await watcher.enters(stack)
        await register(node, "a")
        await watcher.next("gateway.node.online")
        ending = getattr(node, how)()
        if ending is not None:
            await ending
        told = [(await watcher.peer.recv_json())["params"] for _ in range(2)]
        assert {params["topic"] for params in told} == {"gateway.node.offline", "gateway.connection.closed"}
        assert {params["data"]["connId"] for params in told} == {conn_id}
        await watcher.line("node.offline", connId=conn_id, node="pi")


async def test_a_node_that_is_replaced_stays_online(watcher: Watcher) -> None:
    with ExitStack() as stack:
        older, older_id = await watcher.enters(stack)
        newer, newer_id = await watcher.enters(stack)
        await register(older, "a", "b")
        assert (await watcher.next("gateway.node.online"))["connId"] == older_id
        await register(newer, "a")
        online = await watcher.next("gateway.node.online")
        who = {"connId": newer_id, "node": "pi", "serves": 1, "replaced": older_id}
        assert online == who | news(removed=["b"])
        line = await watcher.line("node.online", connId=newer_id)
        assert line == {"connId": newer_id, "node": "pi", "serves": 1, "replaced": older_id, "remote": newer.local}
        assert await farewell(older) == []
        assert older.close_code == 4502
        await watcher.leaves(older_id, "replaced", 4502)
        assert watcher.where.events("node.offline") == []
        newer.rst()
        assert await watcher.next("gateway.node.offline") == {"connId": newer_id, "node": "pi"}
        await watcher.leaves(newer_id, "transport_lost", 1006)
        await watcher.line("node.offline", connId=newer_id)
    assert len(watcher.where.events("node.offline")) == 1


async def test_whoever_closes_first_presence_is_right_after_many_takeovers(watcher: Watcher) -> None:
    """Each newer connection registers while the older one is cut, closed, or alive."""
    with ExitStack() as stack:
        peers: list[RawPeer] = []
        for number in range(12):
            peer = stack.enter_context(await RawPeer.open(watcher.where))
            await peer.welcome()
            peers.append(peer)
            await register(peer, "a")
            (peer.rst, peer.close, peer.fin, bool)[number % 4]()
        last = stack.enter_context(await RawPeer.open(watcher.where))
        conn_id = (await last.welcome())["connId"]
        await register(last, "a")
        last.rst()
        state = "offline"
        told: dict[str, Any] = {}
        while not (state == "offline" and told.get("connId") == conn_id):
            params = (await watcher.peer.recv_json())["params"]
            if params["topic"] == "gateway.node.online":
                assert ("replaced" in params["data"]) == (state == "online")
                state, told = "online", params["data"]
            elif params["topic"] == "gateway.node.offline":
                assert state == "online"
                assert params["data"]["connId"] == told["connId"], "the end of an older one says nothing of the newer"
                state, told = "offline", params["data"]
    await request(watcher.peer, "node.list")
    while "result" not in (reply := await watcher.peer.recv_json()):
        pass
    assert reply["result"] == {"nodes": [], "next": None}


async def test_who_is_there_is_told_that_the_gateway_drains(watcher: Watcher) -> None:
    watcher.where.signal(signal.SIGTERM)
    found: dict[str, Any] = {}
    while len(found) < 2:
        message = await watcher.peer.recv_json()
        found[message["method"]] = message["params"]
    assert found["event.message"]["topic"] == "gateway.draining"
    assert found["event.message"]["data"] == {"deadlineMs": 10_000}
    assert found["gateway.draining"]["deadlineMs"] <= 10_000
    assert await watcher.where.wait() == 0
