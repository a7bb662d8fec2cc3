"""`node.*`: what can be registered, by whom and under which name, what is told of nodes, and what `node.call` takes."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY
from gateway.auth.scopes import Principal
from gateway.methods.node import PAGE_BYTES, PAGE_METHODS
from gateway.names import MAX_NAME
from gateway.nodes.registry import MAX_METHODS, Served
from gateway.rpc.work import at_once
from tests.support import sample_methods
from tests.support.credentials import OP, Holder, TokensFile, entered
from tests.support.meta_schema import params_problems, result_problems
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import StartGateway
from tests.support.rpc import Caller, NodeListing, accepted, connect, refused, request, serve

SNAP = {"name": "camera.snap"}
NAME = f"name: must be a text of 1 to {MAX_NAME} printable characters"
RESERVED = "names under gateway., rpc., connection., node., event. are the gateway's own"
PARTS = "must be parts with dots between, without blanks, *, > and :"


@pytest.fixture
async def node(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, [sample_methods], limits={"max_call_timeout": 60.0})


def methods(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


async def register(node: Caller, *names: str, name: str = "pi", **more: object) -> Any:
    """Register methods; returns the result."""
    return await node.result("node.register", {"name": name, "methods": methods(*names), **more})


# node.register


async def test_methods_are_registered_bit_by_bit(node: Caller) -> None:
    assert await register(node, "camera.snap") == {"name": "pi", "methods": ["camera.snap"]}
    assert await register(node, "lamp.on", "camera.snap") == {"name": "pi", "methods": ["camera.snap", "lamp.on"]}


@pytest.mark.parametrize("name", ["a", "Kitchen pi 4", "küche", "*", "a:b", "x" * MAX_NAME])
async def test_names_that_a_node_may_have(node: Caller, name: str) -> None:
    assert (await register(node, "a", name=name))["name"] == name
    assert (await node.result("node.get", {"name": name}))["name"] == name


@pytest.mark.parametrize(
    "name", ["a", "camera.snap", "a-b.c_d.E9", "küche.licht", "nodes.list", "gateway", "x" * MAX_NAME]
)
async def test_names_that_a_method_may_have(node: Caller, name: str) -> None:
    assert (await register(node, name))["methods"] == [name]


async def test_a_node_that_no_credential_names_has_to_say_its_name(node: Caller) -> None:
    said = "name: without a credential the node has to say its name"
    for named in ({}, {"name": None}):
        asked = request("node.register", {**named, "methods": methods("a")})
        assert await node.ask(asked) == refused(-32602, said)


@pytest.mark.parametrize("name", ["", " ", " pi", "pi ", "p\ni", "p\u0000i", "\u202epi", "x" * (MAX_NAME + 1)])
async def test_names_that_no_node_can_have(node: Caller, name: str) -> None:
    params = {"methods": [SNAP], "name": name}
    assert await node.ask(request("node.register", params)) == refused(-32602, NAME)
    assert await node.result("node.list") == {"nodes": [], "next": None}


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "a.*", "*", ">", "a.>", "a:b", "a\u0000", "x" * (MAX_NAME + 1)]
)
async def test_names_that_no_method_can_have(node: Caller, name: str) -> None:
    reply = await node.ask(request("node.register", {"name": "pi", "methods": methods("good", name)}))
    assert reply == refused(-32602, f"methods[1].name: {PARTS}")
    assert await node.result("node.list") == {"nodes": [], "next": None}, "none of them, or all"


@pytest.mark.parametrize("name", ["gateway.ping", "gateway.x", "rpc.x", "connection.x", "node.x", "event.x.y"])
async def test_the_gateways_names_are_not_to_be_had(node: Caller, name: str) -> None:
    reply = await node.ask(request("node.register", {"name": "pi", "methods": methods(name)}))
    assert reply == refused(-32602, f"methods[0].name: {RESERVED}")


async def test_a_method_that_the_gateway_serves_itself_is_taken(node: Caller) -> None:
    reply = await node.ask(request("node.register", {"name": "pi", "methods": methods("camera.snap", "echo")}))
    assert reply == refused(-32007, "the gateway serves echo itself")
    assert await node.result("node.list") == {"nodes": [], "next": None}


@pytest.mark.parametrize(
    ("params", "detail"),
    [
        ({"name": "pi"}, "Object missing required field `methods`"),
        ({"name": "pi", "methods": []}, "methods: Expected `array` of length >= 1"),
        ({"name": "pi", "methods": "a"}, "methods: Expected `array`, got `str`"),
        ({"name": "pi", "methods": ["a"]}, "methods[0]: Expected `object`, got `str`"),
        ({"name": "pi", "methods": [{}]}, "methods[0]: Object missing required field `name`"),
        ({"name": "pi", "methods": [SNAP | {"a": 1}]}, "methods[0]: Object contains unknown field `a`"),
        ({"name": 1, "methods": [SNAP]}, "name: Expected `str | null`, got `int`"),
        ({"name": "pi", "methods": [SNAP], "context": 1}, "context: Expected `bool`, got `int`"),
        ({"name": "pi", "methods": [SNAP], "a": 1}, "Object contains unknown field `a`"),
    ],
)
async def test_parameters_of_register_that_do_not_fit(node: Caller, params: dict[str, Any], detail: str) -> None:
    assert await node.ask(request("node.register", params)) == refused(-32602, detail)


async def test_a_summary_has_a_bound(node: Caller) -> None:
    for length, code in ((2000, None), (2001, -32602)):
        spec = SNAP | {"summary": "x" * length}
        reply = await node.call("node.register", {"name": "pi", "methods": [spec]})
        assert reply.get("error", {}).get("code") == code


@pytest.mark.apart
async def test_a_node_has_no_more_methods_than_these(node: Caller) -> None:
    names = [f"m{number}" for number in range(MAX_METHODS)]
    assert len((await register(node, *names))["methods"]) == MAX_METHODS
    assert len((await register(node, *names))["methods"]) == MAX_METHODS
    reply = await node.ask(request("node.register", {"name": "pi", "methods": methods("m0", "more")}))
    assert reply == refused(-32602, f"methods: a node has {MAX_METHODS} at most")
    other = await connect(node.client)
    reply = (await other.call("node.register", {"name": "big", "methods": methods(*names, "more")}))["error"]
    assert reply["code"] == -32602
    await node.result("node.unregister", {"methods": ["m1"]})
    assert (await register(node, "more"))["methods"][-1] == "more"


async def test_a_connection_is_one_node(node: Caller) -> None:
    await register(node, "camera.snap")
    reply = await node.ask(request("node.register", {"name": "lamp", "methods": [SNAP]}))
    assert reply == refused(-32007, "this connection is the node pi")
    await node.result("node.unregister")
    assert (await register(node, "camera.snap", name="lamp"))["name"] == "lamp"


async def test_each_method_needs_its_scope(node: Caller) -> None:
    node.connection.principal = Principal("pi", "node", ("serve:camera.*",))
    params = {"name": "pi", "methods": methods("camera.snap", "lamp.on")}
    assert await node.ask(request("node.register", params)) == refused(-32003, "serve:lamp.on")
    node.connection.principal = Principal("pi", "node", ("serve:camera.*", "serve:lamp.on"))
    assert (await register(node, "camera.snap", "lamp.on"))["methods"] == ["camera.snap", "lamp.on"]


@pytest.mark.apart
async def test_the_newer_connection_of_a_name_takes_over(node: Caller) -> None:
    newer = await connect(node.client)
    await register(node, "camera.snap")
    assert await register(newer, "lamp.on") == {"name": "pi", "methods": ["lamp.on"]}
    assert await node.closed() == 4502
    async with asyncio.timeout(WAIT):
        while (await newer.result("gateway.info"))["counts"]["connections"] == 2:
            await asyncio.sleep(0.01)
    (found,) = (await newer.result("node.list"))["nodes"]
    assert (found["connId"], found["methods"]) == (newer.conn_id, [{"name": "lamp.on"}])


# node.unregister


async def test_what_is_left_is_returned(node: Caller) -> None:
    await register(node, "a", "b", "c")
    assert await node.result("node.unregister", {"methods": ["b", "never"]}) == {"name": "pi", "methods": ["a", "c"]}
    assert await node.result("node.unregister", {"methods": []}) == {"name": "pi", "methods": ["a", "c"]}
    assert await node.result("node.unregister", {"methods": ["c", "a"]}) == {"name": "pi", "methods": []}
    assert await node.result("node.list") == {"nodes": [], "next": None}
    await register(node, "a", "b")
    assert await node.result("node.unregister") == {"name": "pi", "methods": []}
    assert await node.result("node.unregister") == {"name": None, "methods": []}


@pytest.mark.apart
async def test_a_node_takes_back_nothing_of_anothers(node: Caller) -> None:
    other = await connect(node.client)
    await register(node, "a")
    await register(other, "b", name="lamp")
    assert await other.result("node.unregister", {"methods": ["a"]}) == {"name": "lamp", "methods": ["b"]}
    assert [one["name"] for one in (await node.result("node.list"))["nodes"]] == ["lamp", "pi"]


@pytest.mark.apart
async def test_a_call_in_flight_is_answered_after_its_method_is_gone(node: Caller) -> None:
    caller = await connect(node.client)
    await register(node, "a")
    await caller.send(request("a", id=5))
    message = json.loads(await node.receive())
    assert await node.result("node.unregister") == {"name": "pi", "methods": []}
    assert await caller.ask(request("a", id=6)) == refused(-32601, "a", id="6", outcome="not_delivered")
    await node.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": True}))
    assert await caller.receive() == accepted("true", "5")


async def test_very_many_names_are_not_taken_back(node: Caller) -> None:
    await register(node, "a")
    reply = await node.call("node.unregister", {"methods": ["a"] * (MAX_METHODS + 1)})
    assert reply["error"]["code"] == -32602
    assert await node.result("node.unregister", {"methods": ["a"] * MAX_METHODS}) == {"name": "pi", "methods": []}


async def test_what_a_new_credential_does_not_allow_is_served_no_more(node: Caller) -> None:
    await register(node, "camera.snap", "lamp.on")
    node.connection.principal = Principal("pi", "node", ("serve:lamp.on", "call:>"))
    at_once(node.app[GATEWAY].rescoped(node.connection))
    assert (await node.result("node.get", {"name": "pi"}))["methods"] == [{"name": "lamp.on"}]
    node.connection.principal = Principal("pi", "node", ("call:>",))
    at_once(node.app[GATEWAY].rescoped(node.connection))
    assert await node.result("node.list") == {"nodes": [], "next": None}
    at_once(node.app[GATEWAY].rescoped(node.connection))


# node.list and node.get


@pytest.mark.apart
async def test_nodes_are_listed_with_what_they_serve_and_do(node: Caller, placed: str) -> None:
    caller = await connect(node.client)
    params = {"b": [1.50, "\u00e9"], "a": None}
    described = SNAP | {"summary": "Take a picture.", "params": params}
    await node.result("node.register", {"name": "pi", "methods": [described, {"name": "off"}]})
    for number in range(3):
        await caller.send(request("camera.snap", id=f"slow {number}"))
        await node.receive()
    (found,) = (await caller.result("node.list"))["nodes"]
    assert found.pop("since").endswith("Z")
    member = {} if placed == "alone" else {"member": "a"}
    assert found == {
        **member,
        "name": "pi",
        "connId": node.conn_id,
        "remote": node.connection.remote,
        "inFlight": 3,
        "methods": [SNAP, {"name": "off"}],
    }
    whole = await caller.result("node.get", {"name": "pi"})
    assert whole.pop("since").endswith("Z")
    assert whole == found | {"methods": [described, {"name": "off"}]}
    whole = await caller.result("rpc.discover")
    for method, arguments in (("node.list", {}), ("node.get", {"name": "pi"})):
        assert params_problems(whole, method, arguments) == []
        assert result_problems(whole, method, await caller.result(method, arguments)) == []


async def test_a_node_that_is_not_there(node: Caller) -> None:
    assert await node.ask(request("node.get", {"name": "nix"})) == refused(-32004, "no node 'nix'")
    assert await node.ask(request("node.get")) == refused(-32602, "Object missing required field `name`")
    long = await node.call("node.get", {"name": "x" * 100_000})
    assert (long["error"]["code"], len(long["error"]["message"]) < 300) == (-32004, True)


@pytest.mark.parametrize(
    ("scopes", "may"),
    [(("call:a",), True), (("call:>",), True), (("admin",), False), (("serve:>",), False), ((), False)],
)
@pytest.mark.apart
async def test_who_may_call_anything_may_see_the_nodes(node: Caller, scopes: tuple[str, ...], may: bool) -> None:
    await register(node, "a")
    caller = await connect(node.client)
    caller.connection.principal = Principal("page", "ui", scopes)
    for method, params in (("node.list", None), ("node.get", {"name": "pi"})):
        reply = await caller.ask(request(method, params))
        assert ("result" in json.loads(reply)) if may else (reply == refused(-32003, "call:")), method


@pytest.mark.apart
async def test_a_caller_sees_only_what_it_may_call(node: Caller) -> None:
    await register(node, "camera.snap", "lamp.on", "lamp.off")
    await register(await connect(node.client), "camera.snap", name="attic")
    caller = await connect(node.client)
    caller.connection.principal = Principal("page", "ui", ("call:lamp.on", "call:lamp.o*"))
    page = await caller.result("node.list")
    assert [(one["name"], one["methods"]) for one in page["nodes"]] == [("pi", [{"name": "lamp.on"}])]
    assert (await caller.result("node.get", {"name": "pi"}))["methods"] == [{"name": "lamp.on"}]
    assert await caller.ask(request("node.get", {"name": "attic"})) == refused(-32004, "no node 'attic'")
    caller.connection.principal = Principal("page", "ui", ("call:door.*",))
    page = await caller.result("node.list")
    assert (page["nodes"], page["next"], page.get("missing", [])) == ([], None, [])
    assert await caller.ask(request("node.get", {"name": "pi"})) == refused(-32004, "no node 'pi'")


async def pages(caller: Caller, **params: object) -> list[list[str]]:
    """The names of all nodes, page by page."""
    found: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        page = await caller.result("node.list", {"after": after, **params})
        found.append([one["name"] for one in page["nodes"]])
        after = page["next"]
    return found


async def test_nodes_come_in_pages(node: Caller) -> None:
    names = [f"n{number:03}" for number in range(230)]
    nodes = node.app[GATEWAY].nodes
    for name in reversed(names):
        nodes.register(NodeListing(), name, [Served("a", b'"a"', "call:a", "", b"")], False)
    assert await pages(node) == [names[:100], names[100:200], names[200:]]
    assert await pages(node, limit=200) == [names[:200], names[200:]]
    assert await pages(node, limit=115) == [names[:115], names[115:]]
    for limit in (0, 201):
        assert (await node.call("node.list", {"limit": limit}))["error"]["code"] == -32602


async def test_a_page_of_nodes_is_bounded_by_what_there_is_to_look_at_and_to_tell(node: Caller) -> None:
    """Nodes with very many methods, or very long names of them, do not all come in one page; a node is never cut."""
    nodes = node.app[GATEWAY].nodes
    names = [f"n{number:03}" for number in range(40)]
    for number, name in enumerate(names):
        many = [f"m{number}.{n}" for n in range(1000)] if number < 20 else [f"{n:0200}" for n in range(1000)]
        served = [Served(one, b'"%b"' % one.encode(), f"call:{one}", "", b"") for one in many]
        nodes.register(NodeListing(), name, served, False)
    found = await pages(node, limit=200)
    assert [name for page in found for name in page] == names
    assert max(map(len, found[:5])) == PAGE_METHODS // 1000
    assert max(map(len, found[5:])) == -(-PAGE_BYTES // 202_000)
    caller = await connect(node.client)
    caller.connection.principal = Principal("page", "ui", ("call:m19.7",))
    found = await pages(caller)
    assert [name for page in found for name in page] == ["n019"]
    assert len(found) == 40_000 // PAGE_METHODS, "a page without a node is not the last one"


async def test_a_registration_has_a_bound_in_bytes(aiohttp_client: AiohttpClient) -> None:
    node = await serve(aiohttp_client, limits={"max_registration_bytes": 1000})
    described = SNAP | {"summary": "Take a picture.", "params": {"a": 1}}
    await node.result("node.register", {"name": "pi", "methods": [described]})
    before = await node.result("node.get", {"name": "pi"})
    for more in (
        {"name": "off", "params": {"a": "x" * 1000}},
        {"name": "off", "summary": "\u0001" * 200},
        SNAP | {"params": ["x" * 1000]},
    ):
        reply = await node.call("node.register", {"name": "pi", "methods": [{"name": "new"}, more]})
        assert (reply["error"]["code"], reply["error"]["data"]["temporary"]) == (-32009, False)
        assert await node.result("node.get", {"name": "pi"}) == before
    await node.result("node.register", {"name": "pi", "methods": [{"name": "off", "params": ["x" * 900]}]})


# node.call


@pytest.mark.parametrize(
    ("params", "detail"),
    [
        ({"method": "a"}, "Object missing required field `node`"),
        ({"node": "pi"}, "Object missing required field `method`"),
        ({"node": "pi", "method": "a", "params": 1}, "params: must be an array or an object"),
        ({"node": "pi", "method": "a", "params": "b"}, "params: must be an array or an object"),
        ({"node": "pi", "method": "a", "params": None}, "params: must be an array or an object"),
        ({"node": "pi", "method": "a", "timeoutMs": 60001}, "timeoutMs: at most 60000, see limits.max_call_timeout"),
        ({"node": "pi", "method": "a", "timeoutMs": 0}, "timeoutMs: Expected `int` >= 1"),
        ({"node": "pi", "method": "a", "timeoutMs": -5}, "timeoutMs: Expected `int` >= 1"),
        ({"node": "pi", "method": "a", "timeoutMs": 1.5}, "timeoutMs: Expected `int | null`, got `float`"),
        ({"node": "pi", "method": "a", "timeout": 5}, "Object contains unknown field `timeout`"),
    ],
)
async def test_parameters_of_call_that_do_not_fit(node: Caller, params: dict[str, Any], detail: str) -> None:
    await register(node, "a")
    assert await node.answers(request("node.call", params)) == [refused(-32602, detail)]


@pytest.mark.apart
@pytest.mark.parametrize("timeout", [None, 1000, 60_000])
async def test_a_call_with_a_time_of_its_own(node: Caller, timeout: int | None) -> None:
    caller = await connect(node.client)
    await register(node, "a", context=True)
    await caller.send(request("node.call", {"node": "pi", "method": "a", "timeoutMs": timeout}))
    message = json.loads(await node.receive())
    assert message["context"] == {"caller": "anonymous", "timeLeftMs": timeout or 30_000}
    assert "params" not in message
    await node.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": 1}))
    assert await caller.receive() == accepted("1")


@pytest.mark.apart
async def test_a_call_goes_to_the_node_that_was_named(node: Caller) -> None:
    other = await connect(node.client)
    await register(node, "a")
    await register(other, "a", name="lamp")
    caller = await connect(node.client)
    for number in range(3):
        await caller.send(request("node.call", ["lamp", "a", [number]], number))
        assert json.loads(await other.receive())["params"] == [number]


# Names where credentials are needed


async def test_under_tokens_a_node_has_its_principals_name(gateway: StartGateway, tmp_path: Path) -> None:
    pi = Holder("kitchen-pi", "node", ("serve:camera.*",))
    tokens = TokensFile(tmp_path / "tokens.toml", OP, pi)
    where = await gateway({"auth": tokens.auth})
    with await entered(where, tokens.of(pi)) as peer, await entered(where, tokens.of(OP)) as operator:

        async def reply(of: RawPeer, method: str, params: dict[str, Any]) -> Any:
            await of.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            return await of.recv_json()

        for name in ("attic-pi", "", "kitchen-pi "):
            refusal = refused(-32003, "a node has its principal's name, kitchen-pi")
            assert await reply(peer, "node.register", {"name": name, "methods": [SNAP]}) == json.loads(refusal)
        wanted = json.loads(accepted('{"name":"kitchen-pi","methods":["camera.snap"]}'))
        for params in ({}, {"name": None}, {"name": "kitchen-pi"}):
            assert await reply(peer, "node.register", {**params, "methods": [SNAP]}) == wanted
        missing = json.loads(refused(-32003, "serve:lamp.on"))
        assert await reply(peer, "node.register", {"methods": methods("lamp.on")}) == missing
        missing = json.loads(refused(-32003, "serve:camera.snap"))
        assert await reply(operator, "node.register", {"methods": [SNAP]}) == missing
        found = (await reply(operator, "node.list", {}))["result"]["nodes"]
        assert [(one["name"], one["methods"]) for one in found] == [("kitchen-pi", [SNAP])]


async def test_a_method_of_another_principal_is_refused_unless_both_may_share_it(
    gateway: StartGateway, tmp_path: Path
) -> None:
    """The connection that is told so goes on; a token that is given `share:` later is enough, without a reconnect."""
    share = ("serve:>", "share:disk.*")
    pi, nas = Holder("pi", "node", share), Holder("nas", "node")
    tokens = TokensFile(tmp_path / "tokens.toml", pi, nas)
    where = await gateway({"auth": tokens.auth})
    with await entered(where, tokens.of(pi)) as first, await entered(where, tokens.of(nas)) as second:

        async def reload(*holders: Holder) -> None:
            tokens.put(*holders)
            where.signal(signal.SIGHUP)
            await where.wait_event("server.reloaded")

        async def registered(peer: RawPeer, *names: str) -> Any:
            await peer.send_json(json.loads(request("node.register", {"methods": methods(*names)})))
            return await peer.recv_json()

        assert (await registered(first, "disk.free", "disk.used"))["result"]["name"] == "pi"
        both = "both need the scope share: to serve a method together"
        taken: dict[str, Any] = {"node": "pi", "methods": ["disk.used", "disk.free"]}
        conflict = refused(-32007, f"the node pi has disk.used, disk.free; {both}", **taken)
        assert await registered(second, "lamp.on", "disk.used", "disk.free") == json.loads(conflict)
        await reload(nas._replace(scopes=share))
        shared = ["disk.free", "disk.used"]
        assert (await registered(second, *shared))["result"] == {"name": "nas", "methods": shared}
        await reload(pi._replace(scopes=("serve:>",)))
        await where.wait_event("node.offline", node="pi")
        assert (await registered(second, "lamp.on"))["result"]["methods"] == [*shared, "lamp.on"]
