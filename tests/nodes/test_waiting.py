"""Calls that wait for a node, and what becomes of them."""

import asyncio
import json
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS, GATEWAY, STATUS
from gateway.config import Server
from gateway.names import MAX_NAME
from gateway.nodes.waiting import WaitingCall
from tests.support.apart import each
from tests.support.kept import Client, gateway_for, until
from tests.support.rpc import Caller, connect

pytestmark = pytest.mark.apart


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await gateway_for(aiohttp_client)


def call(id: object, method: str = "m.one", node: str = "pi", wait: int = 600_000, **more: object) -> dict[str, Any]:
    """A call that waits."""
    params = {"node": node, "method": method, "waitMs": wait, **more}
    return {"jsonrpc": "2.0", "id": id, "method": "node.call", "params": params}


async def send(caller: Caller, message: object) -> None:
    """Send one message."""
    await caller.send(json.dumps(message))


async def next_of(caller: Caller) -> Any:
    """The next message."""
    return json.loads(await caller.receive())


async def register(node: Caller, *methods: str, id: object = "register") -> None:
    """Be the node; the reply comes first."""
    params = {"name": "pi", "methods": [{"name": method} for method in methods]}
    await send(node, {"jsonrpc": "2.0", "id": id, "method": "node.register", "params": params})
    assert "result" in await next_of(node)


async def waiting(caller: Caller, count: int) -> None:
    """Wait until so many requests of a caller are in flight."""
    await until(lambda: len(caller.connection.running) == count)


async def failure(caller: Caller) -> tuple[object, int, str]:
    """The id, the code and the outcome of the next reply."""
    reply = await next_of(caller)
    return reply["id"], reply["error"]["code"], reply["error"]["data"]["outcome"]


async def test_they_go_on_in_order_behind_the_reply_of_the_registration(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    for number in range(5):
        await send(caller, call(number, params=[number], timeoutMs=400_000))
    await waiting(caller, 5)
    await register(node, "m.one")
    for number in range(5):
        got = await next_of(node)
        assert (got["method"], got["params"]) == ("m.one", [number])
        await send(node, {"jsonrpc": "2.0", "id": got["id"], "result": number})
        assert await next_of(caller) == {"jsonrpc": "2.0", "id": number, "result": number}


async def test_a_node_that_is_there_is_called_at_once(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    await register(node, "m.one")
    await send(caller, call(1))
    assert (await next_of(node))["method"] == "m.one"


async def test_only_those_whose_method_is_served_go_on(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    await register(node, "m.zero")
    for number, method in enumerate(("m.two", "m.one", "m.two")):
        await send(caller, call(number, method))
    await waiting(caller, 3)
    await register(node, "m.one")
    assert (await next_of(node))["method"] == "m.one"
    await register(node, "m.two")
    assert [(await next_of(node))["method"] for _ in range(2)] == ["m.two", "m.two"]


@pytest.mark.parametrize(("there", "code"), [(False, -32004), (True, -32601)])
async def test_the_end_of_the_wait_is_the_usual_refusal(client: Client, there: bool, code: int) -> None:
    caller, node = await connect(client), await connect(client)
    if there:
        await register(node, "m.zero")
    await send(caller, call(1, wait=200))
    assert await failure(caller) == (1, code, "not_delivered")
    assert not caller.connection.running


async def test_one_that_is_cancelled_was_not_delivered(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    await send(caller, call(1))
    await send(caller, call(2))
    await waiting(caller, 2)
    await send(caller, {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": 1}})
    assert await failure(caller) == (1, -32800, "not_delivered")
    await register(node, "m.one")
    await next_of(node)
    assert len(caller.connection.running) == 1


async def test_in_a_batch_the_answers_come_together(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    await send(
        caller, [call(1), call(2, wait=1000, node="nobody"), {"jsonrpc": "2.0", "id": 3, "method": "gateway.ping"}]
    )
    await waiting(caller, 2)
    await register(node, "m.one")
    got = await next_of(node)
    await send(node, {"jsonrpc": "2.0", "id": got["id"], "result": "one"})
    replies = {reply["id"]: reply for reply in await next_of(caller)}
    assert replies[1]["result"] == "one"
    assert replies[2]["error"]["code"] == -32004
    assert set(replies) == {1, 2, 3}
    assert not caller.connection.running


async def test_its_caller_goes(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    await send(caller, call(1))
    await waiting(caller, 1)
    await caller.ws.close()
    await until(lambda: sum(len(one.app[CONNECTIONS]) for one in each(client)) == 1)
    await register(node, "m.one")
    assert await node.result("gateway.ping", {"n": 1}) == {"n": 1}


async def test_so_many_wait_for_one_node_and_so_many_are_in_flight(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_waiting": 2, "max_in_flight": 3})
    caller = await connect(client)
    for number in range(3):
        await send(caller, call(number))
    assert await failure(caller) == (2, -32009, "not_delivered")
    await send(caller, call(3, node="another"))
    await waiting(caller, 3)
    await send(caller, call(4, node="a third"))
    assert await failure(caller) == (4, -32009, "not_delivered")


@pytest.mark.parametrize(
    ("node", "method", "code"),
    [("x" * (MAX_NAME + 1), "m.one", -32004), ("attic\n", "m.one", -32004), ("pi", "m." + "x" * MAX_NAME, -32601)],
)
async def test_what_no_node_can_register_is_not_waited_for(client: Client, node: str, method: str, code: int) -> None:
    caller, pi = await connect(client), await connect(client)
    await register(pi, "m.zero")
    await send(caller, call(1, method, node))
    assert await failure(caller) == (1, code, "not_delivered")
    assert not caller.connection.running


@pytest.mark.parametrize("where", ["params", "traceparent"])
async def test_what_they_hold_is_counted_until_their_end(aiohttp_client: AiohttpClient, where: str) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_message_bytes": 32_768, "max_outbox_bytes": 65_536})
    caller = await connect(client)
    text = "x" * 30_000

    def large(id: int) -> dict[str, Any]:
        return call(id, params=[text]) if where == "params" else {**call(id), where: text}

    for number in range(3):
        await send(caller, large(number))
    assert await failure(caller) == (2, -32009, "not_delivered")
    await send(caller, {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": 0}})
    assert await failure(caller) == (0, -32800, "not_delivered")
    await send(caller, large(3))
    await waiting(caller, 2)
    await send(caller, large(4))
    assert await failure(caller) == (4, -32009, "not_delivered")


async def test_the_request_itself_is_not_kept_beside_what_is_counted(client: Client) -> None:
    """The frames of a traceback would keep it."""
    caller = await connect(client)
    await send(caller, call(1, params=["x"]))
    await waiting(caller, 1)
    (it,) = caller.connection.running.values()
    assert isinstance(it, WaitingCall)
    assert (it.refusal.__traceback__, it.refusal.__context__) == (None, None)


async def test_the_longest_wait_is_that_of_a_call(client: Client) -> None:
    caller = await connect(client)
    await send(caller, call(1, wait=600_001))
    assert (await next_of(caller))["error"]["code"] == -32602


async def test_a_notification_waits_too(client: Client) -> None:
    caller, node = await connect(client), await connect(client)
    message = call(1, params=["quiet"])
    del message["id"]
    await send(caller, message)
    await waiting(caller, 1)
    await register(node, "m.one")
    assert await next_of(node) == {"jsonrpc": "2.0", "method": "m.one", "params": ["quiet"]}
    assert not caller.connection.running


async def test_a_drain_refuses_those_that_wait(client: Client) -> None:
    caller = await connect(client)
    await send(caller, [call(1), call(2, node="attic")])
    await send(caller, call(3))
    await waiting(caller, 3)
    caller.app[STATUS].drain()
    draining = asyncio.create_task(caller.app[GATEWAY].drain(Server(close_timeout=0.1)))
    assert await failure(caller) == (3, -32011, "not_delivered")
    replies = await next_of(caller)
    assert [(reply["id"], reply["error"]["code"]) for reply in replies] == [(1, -32011), (2, -32011)]
    await caller.ws.close()
    await draining
