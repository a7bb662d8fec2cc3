"""The lists of a cluster: what all gateways say becomes one answer, and who has not answered is named."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import STATUS
from gateway.cluster.asking import Told
from gateway.methods.everywhere import SHARED, Shared, answering, each
from tests.support.clustered import callers, cluster_of, nats_for_gateways
from tests.support.fleet import until
from tests.support.meta_schema import result_problems
from tests.support.rpc import Caller, connect, refused, request


class Cluster:
    """Two gateways, each with a caller: `a` and `b`."""

    def __init__(self, a: Caller, b: Caller) -> None:
        self.a, self.b = a, b

    def silence(self) -> None:
        """Let b answer no more questions."""
        cluster_of(self.b).members.on(b"ask", lambda *mail: None)

    async def fits(self, name: str, result: object) -> None:
        """Check a result against the schema of the method."""
        assert result_problems(await self.a.result("rpc.discover"), name, result) == []


@pytest.fixture
async def cluster(aiohttp_client: AiohttpClient) -> AsyncIterator[Cluster]:
    async with nats_for_gateways() as server:
        yield Cluster(*await callers(aiohttp_client, server, "a", "b"))


def ids(page: Any) -> list[tuple[str, str]]:
    return [(one["connId"], one["member"]) for one in page["connections"]]


# connection.*


async def test_connections_of_all_gateways_are_in_one_list(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    for _ in range(3):
        await connect(a.client)
        await connect(b.client)
    everybody = sorted(
        [(conn_id, "a") for conn_id in a.app["connections"]] + [(conn_id, "b") for conn_id in b.app["connections"]]
    )
    whole = await a.result("connection.list")
    assert (ids(whole), whole["next"], whole["missing"]) == (everybody, None, [])
    await cluster.fits("connection.list", whole)
    for limit in (1, 3, 7, 8):
        found, after = [], ""
        while after is not None:
            page = await b.result("connection.list", {"limit": limit, "after": after})
            assert len(page["connections"]) <= limit
            found += ids(page)
            after = page["next"]
        assert found == everybody, limit


async def test_one_gateway_is_asked_by_its_name_or_its_instance(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    for name in ("b", b.app[STATUS].instance):
        page = await a.result("connection.list", {"member": name})
        assert (ids(page), page["missing"]) == ([(b.conn_id, "b")], [])
    assert ids(await a.result("connection.list", {"member": "a"})) == [(a.conn_id, "a")]
    assert ids(await a.result("connection.list", {"role": "node"})) == []
    unknown = await a.ask(request("connection.list", {"member": "c"}))
    assert unknown == refused(-32004, "no gateway 'c' in the cluster")


async def test_a_connection_elsewhere_is_found(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    found = await a.result("connection.get", {"connId": b.conn_id})
    assert (found["connId"], found["member"]) == (b.conn_id, "b")
    await cluster.fits("connection.get", found)
    assert (await a.result("connection.get", {"connId": a.conn_id}))["member"] == "a"
    nobody = f"no open connection {a.conn_id!r}; see connection.history"
    assert await a.ask(request("connection.get", {"connId": a.conn_id, "member": "b"})) == refused(-32004, nobody)
    cluster.silence()
    nobody = f"no open connection {b.conn_id!r}; see connection.history"
    silent = await a.ask(request("connection.get", {"connId": b.conn_id}))
    assert silent == refused(-32004, nobody, missing=["b"]), "it may be there"


async def test_a_connection_elsewhere_is_closed(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    other = await connect(b.client)
    closed = await a.result("connection.close", {"connId": other.conn_id, "reason": "enough"})
    assert closed == {"closed": True}
    assert await other.closed() == 4501
    await until(lambda: other.conn_id not in b.app["connections"], "it is still there")
    nobody = f"no open connection {other.conn_id!r}; see connection.history"
    assert await a.ask(request("connection.close", {"connId": other.conn_id})) == refused(-32004, nobody)
    for asked in (a, b):
        history = await asked.result("connection.history")
        assert history["missing"] == []
        (past,) = history["connections"]
        assert (past["connId"], past["member"], past["reason"]) == (other.conn_id, "b", "enough")
        await cluster.fits("connection.history", history)
    assert (await a.result("connection.history", {"member": "a"}))["connections"] == []
    own = await connect(a.client)
    assert await own.result("connection.close", {"connId": own.conn_id}) == {"closed": True}, "the reply comes first"
    assert await own.closed() == 4501


async def test_who_has_not_answered_may_have_closed_it(cluster: Cluster) -> None:
    cluster.silence()
    reply = await cluster.a.ask(request("connection.close", {"connId": cluster.b.conn_id}))
    assert reply == refused(-32008, "no answer of b", missing=["b"])


async def test_the_history_of_all_is_in_the_order_of_its_ends(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    gone = []
    for caller in (a, b, a, b):
        other = await connect(caller.client)
        await other.ws.close()
        gone.append(other.conn_id)
        await until(lambda: len(a.app["connections"]) + len(b.app["connections"]) == 2, "it is still there")
        await asyncio.sleep(0.002)  # times are in milliseconds
    history = await a.result("connection.history")
    assert [one["connId"] for one in history["connections"]] == gone[::-1]
    assert ids(await b.result("connection.history", {"limit": 1})) == [(gone[-1], "b")]
    assert ids(await b.result("connection.history", {"connId": gone[0]})) == [(gone[0], "a")]


# Who does not answer


async def test_a_gateway_that_does_not_answer_is_named(cluster: Cluster) -> None:
    a = cluster.a
    cluster.silence()
    names = ("connection.list", "connection.history", "gateway.info")
    for name in names:
        await a.send(request(name, id=name))
    replies = {reply["id"]: reply["result"] for reply in [json.loads(await a.receive()) for _ in names]}
    assert [replies[name]["missing"] for name in names] == [["b"]] * 3
    assert [one["member"] for one in replies["gateway.info"]["members"]] == ["a"]
    assert await a.ask(request("gateway.info", {"member": "b"})) == refused(-32008, "no answer of b", missing=["b"])


def test_what_cannot_be_read_is_missing() -> None:
    class Known(msgspec.Struct):
        a: int

    told = Told([("x", b'{"a":1,"new":2}'), ("y", b'{"b":1}'), ("z", b"no")], ["w"])
    assert each(told, Known) == ([("x", Known(1))], ["w", "y", "z"])


def test_a_question_that_cannot_be_read_has_no_answer() -> None:
    class Params(msgspec.Struct, forbid_unknown_fields=True):
        a: int = 0

    answer = answering(Params, lambda params: [params.a])
    assert (answer(b'{"a":3}'), answer(b"{}"), answer(b'{"new":1}'), answer(b"no")) == (b"[3]", b"[0]", b"", b"")


# gateway.info


async def test_info_tells_of_all_gateways(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    await b.result("node.register", {"name": "pi", "methods": [{"name": "disk.free"}]})
    await connect(b.client)
    info = await a.result("gateway.info")
    assert (info["member"], info["missing"], info["server"]["instance"]) == ("a", [], a.app[STATUS].instance)
    assert info["counts"] == {"connections": 1, "connectionsTotal": 1, "nodes": 0}
    here, there = info["members"]
    assert (here["member"], here["instance"]) == ("a", a.app[STATUS].instance)
    assert there == {
        "member": "b",
        "instance": b.app[STATUS].instance,
        "version": info["server"]["version"],
        "since": there["since"],
        "nodes": 1,
        "connections": 2,
    }
    await cluster.fits("gateway.info", info)
    of_b = await a.result("gateway.info", {"member": "b"})
    assert of_b["member"] == "b" and "members" not in of_b
    assert of_b["counts"] == {"connections": 2, "connectionsTotal": 2, "nodes": 1}


async def test_many_who_ask_for_info_are_one_question(cluster: Cluster) -> None:
    """It is for everybody, and must not cost the other gateways more than that."""
    asked: list[bytes] = []
    members = cluster_of(cluster.b).members
    members.on(b"ask", lambda member, token, headers, payload: asked.append(payload))
    for number in range(19):
        await cluster.a.send(request("gateway.info", id=number))
    replies = [json.loads(await cluster.a.receive()) for _ in range(19)]
    assert {reply["result"]["missing"][0] for reply in replies} == {"b"}
    assert asked == [b"gateway.info\n{}"]


async def test_many_who_ask_for_info_of_one_gateway_are_one_question(cluster: Cluster) -> None:
    """By its name or its instance. Otherwise everybody could take all places that there are for questions."""
    a, b = cluster.a, cluster.b
    asked: list[bytes] = []
    cluster_of(b).members.on(b"ask", lambda member, token, headers, payload: asked.append(payload))
    for number in range(20):
        member = "b" if number % 2 else b.app[STATUS].instance
        await a.send(request("gateway.info", {"member": member}, number))
    replies = [json.loads(await a.receive()) for _ in range(20)]
    assert [reply["error"]["data"]["missing"] for reply in replies] == [["b"]] * 20
    assert asked == [b"gateway.info\n{}"]
    assert (await a.result("gateway.info", {"member": "a"}))["member"] == "a", "which nobody is asked for"
    assert asked == [b"gateway.info\n{}"]
    assert (await a.call("gateway.info", {"member": "c"}))["error"]["code"] == -32004


async def test_a_shared_question_is_asked_again_when_its_answer_is_too_old() -> None:
    now, asked = 10.0, []
    shared: Shared[int] = Shared(lambda: now)

    async def ask() -> int:
        asked.append(now)
        return len(asked)

    assert [await shared.of("x", ask), await shared.of("y", ask), await shared.of("x", ask)] == [1, 2, 1]
    now += SHARED - 0.1
    assert (await shared.of("x", ask), len(asked)) == (1, 2)
    now += 0.1
    assert [await shared.of("x", ask), await shared.of("x", ask)] == [3, 3]
    assert list(shared._asked) == ["x"], "what is too old is not kept"


async def test_who_waits_no_more_takes_the_answer_from_nobody() -> None:
    shared: Shared[str] = Shared(lambda: 0.0)
    gate = asyncio.Event()

    async def ask() -> str:
        await gate.wait()
        return "told"

    first, second = (asyncio.create_task(shared.of(None, ask)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == "told"
    assert first.cancelled()


# node.*


async def test_a_node_tells_where_it_is(cluster: Cluster) -> None:
    a = cluster.a
    await a.result("node.register", {"name": "pi", "methods": [{"name": "disk.free"}]})
    (entry,) = (await a.result("node.list"))["nodes"]
    assert (entry["name"], entry["member"]) == ("pi", "a")
    assert (await a.result("node.get", {"name": "pi"}))["member"] == "a"
    assert (await a.result("node.list", {"member": "a"}))["nodes"] == [entry]
    assert (await a.result("node.list", {"member": "b"}))["nodes"] == []
    assert (await a.call("node.get", {"name": "pi", "member": "b"}))["error"]["message"].endswith("no node 'pi'")
    assert (await a.call("node.list", {"member": "c"}))["error"]["code"] == -32004
    assert (await a.result("node.list"))["missing"] == []
    await cluster.fits("node.list", await a.result("node.list"))


async def test_a_gateway_that_does_not_tell_its_nodes_is_named(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    await b.result("node.register", {"name": "pi", "methods": [{"name": "disk.free"}]})
    there = cluster_of(b)
    there.members.on(b"snapshot", lambda *mail: None)
    there.roster.number += 1  # as after a change that did not arrive: a asks for all
    await until(lambda: bool(cluster_of(a).roster.untold()), "it was not asked")
    page = await a.result("node.list")
    assert ([node["name"] for node in page["nodes"]], page["missing"]) == (["pi"], ["b"])
    assert (await a.result("node.list", {"member": "b"}))["missing"] == ["b"]
    assert (await a.result("node.list", {"member": "a"}))["missing"] == []
    assert await a.ask(request("node.get", {"name": "x"})) == refused(-32004, "no node 'x'", missing=["b"])
    assert (await b.result("node.list"))["missing"] == []


async def test_without_nats_the_nodes_of_all_others_are_missing(cluster: Cluster) -> None:
    a = cluster.a
    cluster_of(a).members.lost()
    page = await a.result("node.list")
    assert (page["nodes"], page["missing"]) == ([], ["b"])
    await cluster.fits("node.list", page)
