"""Tests of the example's methods, written as you would write them for your own methods."""

import json
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse
from mypackage import handlers
from pytest_aiohttp import AiohttpClient

from gateway.app import create_app
from gateway.config import parse


@pytest.fixture
async def ws(aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch) -> ClientWebSocketResponse:
    """Connect to a gateway in this process that has a tank of its own."""
    monkeypatch.setattr(handlers, "tank", handlers.Tank())
    monkeypatch.setattr(handlers, "SECONDS_A_LITRE", 0.0)
    app = create_app(parse({"limits": {"max_in_flight": 2}}), methods=[handlers])
    client = await aiohttp_client(app)
    ws = await client.ws_connect("/ws")
    assert (await ws.receive_json())["method"] == "gateway.welcome"
    return ws


async def call(ws: ClientWebSocketResponse, method: str, params: object = None) -> dict[str, Any]:
    """Call a method and return the whole reply."""
    await ws.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}})
    reply: dict[str, Any] = await ws.receive_json()
    return reply


async def test_a_bed_gets_its_water(ws: ClientWebSocketResponse) -> None:
    """The result is what the function returns."""
    reply = await call(ws, "greenhouse.water", {"bed": 2, "litres": 0.5})
    assert reply["result"] == {"bed": 2, "left": 11.5}
    assert (await call(ws, "greenhouse.level"))["result"] == 11.5


async def test_there_is_no_fifth_bed(ws: ClientWebSocketResponse) -> None:
    """The parameters are checked before the function is called."""
    reply = await call(ws, "greenhouse.water", {"bed": 5})
    assert reply["error"]["message"] == "Invalid parameters: bed: Expected `int` <= 4"


async def test_a_cancelled_call_closes_the_valve(ws: ClientWebSocketResponse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function's `finally` has run when the reply arrives."""
    monkeypatch.setattr(handlers, "SECONDS_A_LITRE", 3600.0)
    await ws.send_json({"jsonrpc": "2.0", "id": 7, "method": "greenhouse.water", "params": [3]})
    await ws.send_json({"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": 7}})
    reply = await ws.receive_json()
    assert (reply["id"], reply["error"]["code"]) == (7, -32800)
    assert handlers.tank.open_valves == set()


@pytest.mark.parametrize(("answer", "left"), [({"result": True}, 0.0), ({"error": {"code": 1, "message": "no"}}, 12.0)])
async def test_an_operator_is_asked(ws: ClientWebSocketResponse, answer: dict[str, Any], left: float) -> None:
    """The gateway calls a method of its client; `answer` is what the client says."""
    await ws.send_json({"jsonrpc": "2.0", "id": "drain", "method": "greenhouse.drain"})
    asked = await ws.receive_json()
    assert (asked["method"], asked["params"]["question"]) == ("operator.confirm", "Empty the tank, 12.0 litres?")
    await ws.send_str(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}))
    assert ("result" in await ws.receive_json()) == ("result" in answer)
    assert handlers.tank.litres == left
