"""`rpc.cancel` and `rpc.discover` over a connection. What cancelling does is in test_dispatcher.py."""

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY
from gateway.method import CALL, method
from gateway.scopes import Principal
from tests import sample_methods
from tests.meta_schema import document_problems, params_problems, result_problems
from tests.rpc import Caller, accepted, notification, refused, request, serve

OWN = [
    "connection.close",
    "connection.get",
    "connection.history",
    "connection.list",
    "gateway.authenticate",
    "gateway.info",
    "gateway.ping",
    "rpc.cancel",
    "rpc.discover",
]


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
    listed = [entry["name"] for entry in (await caller.result("rpc.discover"))["methods"]]
    open_to_all = ["get_data", "notify_hello", "notify_sum", "subtract", "sum", "update"]
    assert listed == ["echo", *OWN[4:7], *open_to_all[:3], *OWN[7:], *open_to_all[3:]]


async def test_discover_without_other_methods(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    assert [entry["name"] for entry in (await caller.result("rpc.discover"))["methods"]] == OWN


async def test_one_method_cannot_spoil_discovery_for_all(aiohttp_client: AiohttpClient) -> None:
    """A result type that JSON schema does not know stops the start, or may be anything."""

    @method("opaque", scope=CALL)
    def opaque(peer: object) -> object:
        """Return what only the method knows."""
        return None

    try:
        caller = await serve(aiohttp_client, [opaque])
    except TypeError as error:
        assert str(error).startswith("method opaque: ")  # noqa: PT017  # either is right
        return
    assert document_problems(await caller.result("rpc.discover")) == []
