"""JSON-RPC clients that are not ours call, notify, batch, get errors, are called, and cancel: both ends mean the same.

One is aiorpcX over websockets, in Python. The others are in JavaScript: json-rpc-2.0 over ws (tests/js/client.cjs), and
vscode-ws-jsonrpc and rpc-websockets (tests/js/foreign.mjs).
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiorpcx  # type: ignore[import-untyped]  # it has no types
import pytest
import pytest_asyncio
from aiorpcx.websocket import WSTransport  # type: ignore[import-untyped]  # as above

from tests.support.command import run_node
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess
from tests.support.rpc import refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

JS: Final = Path(__file__).resolve().parents[1] / "js"
TEXT: Final = '\N{GRINNING FACE} \u2028 \\ " \0'


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["asyncio", "uvloop"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[GatewayProcess]:
    """A gateway with the methods of tests/support/sample_methods.py, one of which has a defect."""
    config = {"methods": {"modules": ["tests.support.sample_methods"]}}
    async with GatewayProcess(config, loop=request.param, allow_tracebacks=True) as process:
        yield process


def error(code: int, detail: str = "", **data: object) -> dict[str, Any]:
    """The error object of a refusal."""
    found: dict[str, Any] = json.loads(refused(code, detail, "1", **data))["error"]
    return found


async def test_a_client_in_javascript(served: GatewayProcess) -> None:
    outcome = await run_node(str(JS / "client.cjs"), served.url("/ws", websocket=True), timeout=WAIT)
    conn_id = outcome.pop("connId")
    assert sorted(outcome.pop("batch"), key=lambda reply: str(reply["id"])) == [
        {"jsonrpc": "2.0", "id": "echo", "result": {"a": None}},
        {"jsonrpc": "2.0", "id": "none", "error": error(-32601, "nothing", outcome="not_delivered")},
        {"jsonrpc": "2.0", "id": "sum", "result": 7},
    ]
    assert outcome == {
        "byPosition": 19,
        "byName": 19,
        "withoutParams": ["hello", 5],
        "nothing": None,
        "text": [TEXT],
        "many": [[number] for number in range(50)],
        "notFound": error(-32601, "nothing", outcome="not_delivered"),
        "badParams": error(-32602, "minuend: Expected `int`, got `str`"),
        "defect": error(-32603),
        "called": {"asked": {"question": 1}},
        "cancelled": {"jsonrpc": "2.0", "id": "slow", "error": error(-32800)},
    }
    line = await served.wait_event("connection.closed", connId=conn_id)
    assert (line["cause"], line["code"], line["reason"]) == ("client_close", 1000, "done")


async def foreign(served: GatewayProcess, name: str) -> dict[str, Any]:
    """What has become of one of the clients of tests/js/foreign.mjs."""
    found: dict[str, Any] = await run_node(
        str(JS / "foreign.mjs"), name, served.url("/ws", websocket=True), timeout=WAIT
    )
    return found


CALLS: Final = {
    "byPosition": 19,
    "byName": 19,
    "withoutParams": ["hello", 5],
    "text": {"text": TEXT},
    "many": [{"n": number} for number in range(50)],
    "events": [1, 2, 3],
    "notFound": error(-32601, "nothing", outcome="not_delivered"),
    "badParams": error(-32602, "minuend: Expected `int`, got `str`"),
    "defect": error(-32603),
}
"""What every caller of tests/js/foreign.mjs finds."""


async def test_vscode_ws_jsonrpc_calls_and_is_called(served: GatewayProcess) -> None:
    outcome = await foreign(served, "vscode")
    conn_id = outcome.pop("connId")
    assert outcome == CALLS | {
        "called": [{"asked": {"n": number}} for number in range(50)],
        "cancelled": error(-32800),
        "complaints": [],
    }
    line = await served.wait_event("connection.closed", connId=conn_id)
    assert (line["cause"], line["code"], line["reason"]) == ("client_close", 1000, "done")


async def test_vscode_ws_jsonrpc_is_a_node(served: GatewayProcess) -> None:
    assert await foreign(served, "vscodeNode") == {
        "registered": {
            "name": "kettle",
            "methods": [f"kettle.{name}" for name in ("boil", "break", "nothing", "wait")],
        },
        "many": [{"cups": number, "text": TEXT} for number in range(50)],
        "refused": {"code": 7, "message": "no water", "data": {"on": "floor"}},
        "nothing": None,
        "cancelled": error(-32800, "kettle: kettle.wait", outcome="unknown"),
        "told": "number",
        "gone": error(-32601, "kettle.boil", outcome="not_delivered"),
        "complaints": [],
    }


async def test_rpc_websockets_calls(served: GatewayProcess) -> None:
    outcome = await foreign(served, "rpcWebsockets")
    conn_id = outcome.pop("connId")
    assert outcome == CALLS
    line = await served.wait_event("connection.closed", connId=conn_id)
    assert (line["cause"], line["code"], line["reason"]) == ("client_close", 1000, "done")


async def test_rpc_websockets_is_called_while_its_own_calls_are_in_flight(served: GatewayProcess) -> None:
    outcome = await foreign(served, "rpcWebsocketsCalled")
    assert outcome.pop("echoes") == [one for number in range(20) for one in ({"n": number}, number - 1)]
    assert outcome == {"alone": [], "asked": list(range(21)), "together": []}


class Client(aiorpcx.RPCSession):  # type: ignore[misc]  # its base has no types
    """A client that answers calls, and keeps what else it hears."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.heard: list[Any] = []

    async def handle_request(self, request: Any) -> Any:
        """One request or notification of the gateway's."""
        if isinstance(request, aiorpcx.Request) and request.method == "answer":
            if request.args == ["no"]:
                raise aiorpcx.RPCError(7, "I will not")
            return {"asked": request.args}
        self.heard.append((request.method, request.args))
        return None


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: GatewayProcess) -> AsyncIterator[Any]:
    url = served.url("/ws", websocket=True)
    # Not connect_ws(), which forgets its session_factory.
    transport = await WSTransport.ws_client(url, session_factory=Client)
    reader = asyncio.create_task(transport.process_messages())
    yield transport.session
    await transport.close()
    await asyncio.wait_for(reader, WAIT)
    (name, params), *others = transport.session.heard
    assert name == "gateway.welcome"
    line = await served.wait_event("connection.closed", connId=params["connId"])
    assert (line["cause"], line["code"]) == ("client_close", 1000)
    assert others == []


async def failure(client: Any, method: str, params: object = ()) -> tuple[int, str]:
    """The code and the message that a call is refused with."""
    with pytest.raises(aiorpcx.RPCError) as caught:
        await client.send_request(method, params)
    return caught.value.code, caught.value.message


async def test_a_client_in_python_calls(client: Any) -> None:
    assert await client.send_request("subtract", [42, 23]) == 19
    assert await client.send_request("subtract", {"subtrahend": 23, "minuend": 42}) == 19
    assert await client.send_request("get_data") == ["hello", 5]
    assert await client.send_request("gateway.ping") is None
    assert await client.send_request("echo", [TEXT]) == [TEXT]
    calls = [client.send_request("echo", [number]) for number in range(50)]
    assert await asyncio.gather(*calls) == [[number] for number in range(50)]


async def test_a_client_in_python_notifies(client: Any) -> None:
    before = await client.send_request("connection.list")
    for name in ("update", "nothing", "fail"):
        await client.send_notification(name, [1])
    after = await client.send_request("connection.list")
    (one,), (other,) = before["connections"], after["connections"]
    assert (one["connId"], one["messagesIn"] + 4) == (other["connId"], other["messagesIn"])


async def test_a_client_in_python_gets_errors(client: Any) -> None:
    for code, detail, method, params in (
        (-32601, "nothing", "nothing", ()),
        (-32602, "minuend: Expected `int`, got `str`", "subtract", ["a", 1]),
        (-32602, "this method has no parameters", "get_data", [1]),
        (-32603, "", "fail", ()),
    ):
        assert await failure(client, method, params) == (code, error(code, detail)["message"])
    assert await client.send_request("get_data") == ["hello", 5]


async def test_a_client_in_python_batches(client: Any) -> None:
    async with client.send_batch() as batch:
        batch.add_request("sum", [1, 2, 4])
        batch.add_notification("update", [4])
        batch.add_request("echo", {"a": None})
        batch.add_request("nothing")
        batch.add_request("subtract", [42, 23])
    total, echoed, refusal, difference = batch.results
    assert (total, echoed, difference) == (7, {"a": None}, 19)
    assert isinstance(refusal, aiorpcx.RPCError)
    assert refusal.code == -32601


async def test_a_client_in_python_is_called(client: Any) -> None:
    assert await client.send_request("ask", {"question": 1}) == {"asked": {"question": 1}}
    answers = await asyncio.gather(*(client.send_request("ask", [number]) for number in range(20)))
    assert answers == [{"asked": [number]} for number in range(20)]
    assert (await failure(client, "ask", ["no"]))[0] == -32603
