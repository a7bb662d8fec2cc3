"""`rpc.cancel`, `rpc.discover` and `rpc.progress` over a connection. What cancelling does is in test_dispatcher.py."""

import asyncio
import json

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.nodes.registry import Served
from gateway.rpc.method import CALL, method
from tests.support import sample_methods
from tests.support.meta_schema import document_problems, params_problems, result_problems
from tests.support.patience import WAIT
from tests.support.rpc import Caller, NodeListing, accepted, connect, notification, refused, request, serve

OWN = [
    "connection.ack",
    "connection.close",
    "connection.get",
    "connection.history",
    "connection.keep",
    "connection.list",
    "connection.resume",
    "event.publish",
    "event.subscribe",
    "event.unsubscribe",
    "gateway.authenticate",
    "gateway.info",
    "gateway.ping",
    "node.call",
    "node.get",
    "node.list",
    "node.register",
    "node.unregister",
    "rpc.cancel",
    "rpc.credit",
    "rpc.demand",
    "rpc.discover",
    "rpc.progress",
    "rpc.push",
]
ADMINS = ["connection.close", "connection.get", "connection.history", "connection.list"]
AUTHENTICATED = [name for name in OWN if name not in ADMINS]
"""Those that need no scope of their own, and two that need some `call:`."""


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, [sample_methods])


async def test_a_request_is_cancelled_by_a_notification(caller: Caller) -> None:
    await caller.send(request("wait", id="slow"))
    await caller.send(notification("rpc.cancel", {"id": "slow"}))
    assert await caller.receive() == refused(-32800, id='"slow"')
    assert await caller.answers(notification("rpc.cancel", {"id": "slow"})) == []


async def test_a_request_is_cancelled_by_a_request(caller: Caller) -> None:
    await caller.send(request("wait", id=7))
    assert await caller.ask(request("rpc.cancel", [7], 8)) == accepted("true", "8")
    assert await caller.receive() == refused(-32800, id="7")
    assert await caller.ask(request("rpc.cancel", [7], 8)) == accepted("false", "8")


async def test_who_is_unknown_can_cancel_what_is_its_own(caller: Caller) -> None:
    await caller.send(request("wait", id=7))
    await caller.ask(request("gateway.ping"))
    caller.connection.principal = Principal("nobody", "ui", ())
    assert await caller.ask(request("rpc.cancel", {"id": 7}, 8)) == accepted("true", "8")


async def test_the_id_is_compared_as_it_was_written(caller: Caller) -> None:
    await caller.send(r'{"jsonrpc":"2.0","id":"\u0061","method":"wait"}')
    assert await caller.ask(request("rpc.cancel", {"id": "a"}, 8)) == accepted("false", "8")
    text = r'{"jsonrpc":"2.0","id":8,"method":"rpc.cancel","params":{"id": "\u0061" }}'
    assert await caller.ask(text) == accepted("true", "8")
    assert await caller.receive() == refused(-32800, id=r'"\u0061"')


async def test_discover_describes_every_method(caller: Caller) -> None:
    whole = await caller.result("rpc.discover")
    assert document_problems(whole) == []
    listed = [entry["name"] for entry in whole["methods"]]
    assert listed == sorted([*OWN, *caller.app[GATEWAY].dispatcher.methods.keys() - OWN])
    assert {"subtract", "sum", "wait"} < set(listed)
    assert all(entry["summary"].endswith(".") for entry in whole["methods"])
    assert result_problems(whole, "rpc.discover", whole) == []
    assert params_problems(whole, "rpc.cancel", {"id": "a"}) == []
    assert params_problems(whole, "rpc.cancel", {}) != []


async def test_discover_leaves_out_what_the_connection_may_not_call(caller: Caller) -> None:
    caller.connection.principal = Principal("page", "ui", ("call:echo",))
    open_to_all = ["get_data", "notify_hello", "notify_sum", "subtract", "sum", "update"]
    assert await discovered(caller) == sorted([*AUTHENTICATED, *open_to_all, "echo"])


async def discovered(caller: Caller) -> list[str]:
    """The names that `rpc.discover` lists."""
    return [entry["name"] for entry in (await caller.result("rpc.discover"))["methods"]]


async def test_discover_without_other_methods(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    assert await discovered(caller) == OWN


async def test_discover_follows_what_nodes_serve(caller: Caller) -> None:
    node = await connect(caller.client)
    before = await discovered(caller)
    snap = {"name": "camera.snap", "summary": "Take a picture.", "params": {"type": "object"}}
    await node.result("node.register", {"name": "pi", "methods": [{"name": "camera.off"}, snap]})
    whole = await caller.result("rpc.discover")
    assert document_problems(whole) == []
    assert [entry["name"] for entry in whole["methods"]] == [*before, "camera.off", "camera.snap"]
    off, described = whole["methods"][-2:]
    assert (off["summary"], "x-params" in off) == ("", False)
    assert described["summary"] == "Take a picture."
    assert (described["x-params"], described["x-scope"]) == ({"type": "object"}, "call:camera.snap")
    caller.connection.principal = Principal("page", "ui", ("call:camera.snap",))
    assert {"camera.off", "camera.snap"} & set(await discovered(caller)) == {"camera.snap"}
    caller.connection.principal = ANONYMOUS
    await node.result("node.register", {"name": "pi", "methods": [snap | {"summary": "Shoot."}]})
    assert (await caller.result("rpc.discover"))["methods"][-1]["summary"] == "Shoot."
    await node.ws.close()
    async with asyncio.timeout(WAIT):
        while await discovered(caller) != before:
            await asyncio.sleep(0.01)


def populate(caller: Caller, count: int, params: bytes, each: int = 1) -> None:
    """Register nodes with so many methods each; what a node says of a method is `params`."""
    nodes = caller.app[GATEWAY].nodes
    for number in range(count):
        names = [f"n{number}.m{method}" for method in range(each)]
        served = [Served(name, b'"%b"' % name.encode(), f"call:{name}", "Do it.", params) for name in names]
        nodes.register(NodeListing(), f"n{number}", served, False)


def scoped(caller: Caller, *scopes: str) -> None:
    caller.connection.principal = Principal("page", "ui", scopes)


async def test_documents_are_remembered_up_to_a_bound_in_bytes(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of scopes has a document of its own."""
    documents = caller.app[GATEWAY].documents
    one = len(json.dumps(await caller.result("rpc.discover")))
    monkeypatch.setattr("gateway.methods.rpc.DOCUMENTS_BYTES", 5 * one)
    for number in range(20):
        scoped(caller, "*", f"call:n{number}")
        first, second = await caller.result("rpc.discover"), await caller.result("rpc.discover")
        assert first == second
        assert 0 < documents.octets <= 5 * one


async def test_documents_of_what_was_served_before_are_gone(caller: Caller) -> None:
    documents = caller.app[GATEWAY].documents
    node = await connect(caller.client)
    seen = set()
    for _ in range(20):
        for action in ("node.register", "node.unregister"):
            params = {"name": "pi", "methods": [{"name": "a"}]} if action == "node.register" else {}
            await node.result(action, params)
            assert ("a" in await discovered(caller)) is (action == "node.register")
            seen.add(documents.octets)
    assert len(seen) == 2, "there is one document at a time"


async def test_a_document_names_only_the_methods_of_which_nodes_say_too_much(caller: Caller) -> None:
    """A reader of 2 MB/s was cut while 24 MB of schemas were on the way."""
    populate(caller, 100, b'"' + b"x" * 240_000 + b'"')
    whole = await caller.result("rpc.discover")
    assert document_problems(whole) == []
    named = {entry["name"]: entry for entry in whole["methods"] if entry["name"].startswith("n")}
    assert len([name for name in named if name.endswith(".m0")]) == 100
    assert all("x-params" not in entry and not entry["summary"] for name, entry in named.items() if ".m" in name)
    scoped(caller, "call:n7.m0")
    (entry,) = [one for one in (await caller.result("rpc.discover"))["methods"] if one["name"].endswith(".m0")]
    assert (entry["name"], entry["summary"], len(entry["x-params"])) == ("n7.m0", "Do it.", 240_000)


async def test_a_document_that_would_be_too_large_is_refused_and_others_have_theirs(caller: Caller) -> None:
    populate(caller, 50, b"", each=1000)
    reply = await caller.call("rpc.discover")
    assert (reply["error"]["code"], reply["error"]["data"]["temporary"]) == (-32009, False)
    scoped(caller, "call:n7.m7")
    assert "n7.m7" in await discovered(caller)


async def test_a_document_is_made_in_slices(caller: Caller) -> None:
    populate(caller, 5, b"{}", each=1000)
    replies = await caller.answers(f"{request('rpc.discover', id='whole')}")
    await caller.send(request("rpc.discover", id="again"))
    assert replies == [], "a ping behind it is answered before it"
    first, second = json.loads(await caller.receive()), json.loads(await caller.receive())
    assert {first["id"], second["id"]} == {"whole", "again"}
    assert first["result"] == second["result"]
    assert len(first["result"]["methods"]) > 5000


# Progress


async def test_progress_reaches_the_caller_under_its_own_id(caller: Caller) -> None:
    node = await connect(caller.client)
    await node.result("node.register", {"name": "pi", "methods": [{"name": "camera.snap"}]})
    await caller.send(r'{"jsonrpc":"2.0","id":"\u0061 1","method":"camera.snap"}')
    identity = json.loads(await node.receive())["id"]
    values = ["0.50", '{"a" : [1e400, "\\u00e9"]}', "null", '" "']
    for value in values:
        text = f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"value": {value} ,"id":{identity}}}}}'
        assert await node.answers(text) == []
        wanted = r'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":"\u0061 1","value":' + value + "}}"
        assert await caller.receive() == wanted
    assert await node.ask(request("rpc.progress", [identity, 1], 8)) == accepted("true", "8")
    assert json.loads(await caller.receive())["params"]["value"] == 1


async def test_progress_of_a_call_that_is_not_there_goes_nowhere(caller: Caller) -> None:
    node, other = await connect(caller.client), await connect(caller.client)
    await node.result("node.register", {"name": "pi", "methods": [{"name": "camera.snap"}]})
    await caller.send(request("camera.snap", id="a"))
    identity = json.loads(await node.receive())["id"]
    for peer, wrong in ((other, identity), (caller, identity), (node, identity + 1), (node, "a"), (node, None)):
        assert await peer.ask(request("rpc.progress", {"id": wrong, "value": 1}, 8)) == accepted("false", "8")
        assert await peer.answers(notification("rpc.progress", {"id": wrong, "value": 1})) == []
    await node.send(json.dumps({"jsonrpc": "2.0", "id": identity, "result": 7}))
    assert await caller.receive() == accepted("7", '"a"')
    assert await node.ask(request("rpc.progress", [identity, 1], 8)) == accepted("false", "8")


async def test_progress_of_the_gateways_own_call_goes_nowhere(caller: Caller) -> None:
    await caller.send(request("ask", ["well?"], 1))
    identity = json.loads(await caller.receive())["id"]
    assert await caller.ask(request("rpc.progress", [identity, 1], 8)) == accepted("false", "8")


@pytest.mark.parametrize("params", [None, {}, {"id": 1}, {"value": 1}, [1], [1, 2, 3], {"id": 1, "value": 1, "a": 1}])
async def test_progress_needs_an_id_and_a_value(caller: Caller, params: object) -> None:
    assert (await caller.call("rpc.progress", params))["error"]["code"] == -32602


async def test_one_method_cannot_spoil_discovery_for_all(aiohttp_client: AiohttpClient) -> None:
    """A result type that JSON schema does not know stops the start, and the error names the method."""

    @method("opaque", scope=CALL)
    def opaque(peer: object) -> object:
        """Return what only the method knows."""
        return None

    with pytest.raises(TypeError, match=r"^method opaque: "):
        await serve(aiohttp_client, [opaque])
