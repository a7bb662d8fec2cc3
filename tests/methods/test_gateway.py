"""`gateway.ping`, `gateway.info` and the welcome."""

import json
from typing import Any
from uuid import UUID

import pytest
from pytest_aiohttp import AiohttpClient

from gateway import __version__
from gateway.app import STATUS
from gateway.auth.scopes import Principal
from tests.support.meta_schema import result_problems
from tests.support.patience import WAIT
from tests.support.rpc import Caller, accepted, connect, refused, request, serve

CONFIG: dict[str, dict[str, Any]] = {
    "heartbeat": {"interval": 7.5, "timeout": 2.0},
    "limits": {
        "max_message_bytes": 4096,
        "max_in_flight": 5,
        "max_batch": 6,
        "max_outbox_bytes": 65536,
        "call_timeout": 1.5,
        "max_call_timeout": 20.0,
        "rate": 50,
    },
}
LIMITS = {
    "maxMessageBytes": 4096,
    "maxInFlight": 5,
    "maxBatch": 6,
    "maxOutboxBytes": 65536,
    "callTimeoutMs": 1500,
    "maxCallTimeoutMs": 20000,
    "rate": 50.0,
    "burst": 50,
}
HEARTBEAT = {"interval": 7.5, "timeout": 2.0}


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, **CONFIG)


@pytest.mark.parametrize("params", ["{}", "[]", '{"a": 1.0,"b":[ null ]}', '[ 1 ,"\\u0041", "\u00e9"]', "[1e400]"])
async def test_ping_returns_its_parameters_unchanged(caller: Caller, params: str) -> None:
    text = f'{{"jsonrpc":"2.0","id":1,"method":"gateway.ping","params":{params}}}'
    assert await caller.ask(text) == accepted(params)


async def test_ping_without_parameters_returns_null(caller: Caller) -> None:
    assert await caller.ask(request("gateway.ping")) == accepted("null")


async def test_ping_of_the_longest_message(caller: Caller) -> None:
    empty = request("gateway.ping", [""])
    text = request("gateway.ping", ["x" * (4096 - len(empty))])
    assert len(text) == 4096
    assert await caller.ask(text) == accepted(json.dumps(json.loads(text)["params"]))


async def test_info_tells_about_the_gateway(caller: Caller) -> None:
    others = [await connect(caller.client) for _ in range(2)]
    info = await caller.result("gateway.info")
    assert info["server"] == {
        "name": "aisopod-gateway",
        "version": __version__,
        "instance": caller.app[STATUS].instance,
    }
    assert info["protocol"] == 1
    assert info["limits"] == LIMITS
    assert info["heartbeat"] == HEARTBEAT
    assert info["counts"] == {"connections": 3, "connectionsTotal": 3}
    assert 0 <= info["uptime"] < 60
    assert result_problems(await caller.result("rpc.discover"), "gateway.info", info) == []
    await others[0].ws.close()
    await connect(caller.client)
    later = await caller.result("gateway.info")
    assert later["counts"] == {"connections": 3, "connectionsTotal": 4}
    assert later["uptime"] >= info["uptime"]


async def test_info_of_another_gateway_is_refused_where_there_is_none(caller: Caller) -> None:
    assert await caller.ask(request("gateway.info", {"a": 1})) == refused(-32602, "Object contains unknown field `a`")
    alone = "this gateway is alone; see [cluster] in its configuration"
    for name in ("gateway.info", "connection.list", "connection.history", "node.list"):
        assert await caller.ask(request(name, {"member": "b"})) == refused(-32004, alone)
    for name in ("connection.get", "connection.close"):
        assert await caller.ask(request(name, {"connId": "a", "member": "b"})) == refused(-32004, alone)
    assert await caller.ask(request("node.get", {"name": "a", "member": "b"})) == refused(-32004, alone)


async def test_everybody_may_ping_and_ask_for_info(caller: Caller) -> None:
    caller.connection.principal = Principal("nobody", "ui", ())
    assert await caller.ask(request("gateway.ping")) == accepted("null")
    assert "server" in await caller.result("gateway.info")


async def test_authenticate_in_mode_none_gives_what_everybody_has(caller: Caller) -> None:
    answer = await caller.result("gateway.authenticate", {"token": "anything"})
    assert answer == {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None}
    assert await caller.ask(request("gateway.authenticate")) == refused(-32602, "Object missing required field `token`")


async def test_the_welcome_is_that_of_the_contract(caller: Caller) -> None:
    ws = await caller.client.ws_connect("/ws")
    welcome = json.loads(await ws.receive_str(timeout=WAIT))
    conn_id = welcome["params"]["connId"]
    assert str(UUID(conn_id)) == conn_id
    assert UUID(conn_id).version == 4
    assert welcome == {
        "jsonrpc": "2.0",
        "method": "gateway.welcome",
        "params": {
            "connId": conn_id,
            "protocol": 1,
            "server": (await caller.result("gateway.info"))["server"],
            "heartbeat": HEARTBEAT,
            "limits": LIMITS,
            "principal": {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None},
        },
    }
    assert conn_id != caller.conn_id


async def test_each_start_is_another_instance(aiohttp_client: AiohttpClient) -> None:
    instances = [(await (await serve(aiohttp_client)).result("gateway.info"))["server"]["instance"] for _ in range(2)]
    assert len(set(instances)) == 2
