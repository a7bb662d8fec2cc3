"""For tests of JSON-RPC: a client of a gateway in this process, and a peer that is nothing but a list of replies."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from aiohttp import ClientWebSocketResponse
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.connections.connection import Connection
from gateway.errors import Disconnect
from gateway.limits import Bucket
from gateway.nodes.registry import Node
from gateway.rpc.calls import Call, Link
from gateway.rpc.requests import Request as InFlight
from gateway.rpc.streams import Pool
from tests.support.apart import place, started
from tests.support.patience import WAIT

LAST = '{"jsonrpc":"2.0","id":"the last","result":null}'

MESSAGES = {
    -32700: ("Not valid JSON", "parse_error"),
    -32600: ("Not a valid JSON-RPC 2.0 request", "invalid_request"),
    -32601: ("No such method", "method_not_found"),
    -32602: ("Invalid parameters", "invalid_params"),
    -32603: ("Internal error", "internal_error"),
    -32003: ("A scope is missing", "forbidden"),
    -32004: ("No such connection, node or topic", "not_found"),
    -32007: ("Conflict", "conflict"),
    -32008: ("The call's deadline passed", "timeout"),
    -32009: ("Too many calls in flight", "overloaded"),
    -32010: ("The node went away before it answered", "node_lost"),
    -32011: ("The gateway is shutting down", "draining"),
    -32012: ("What it needs is not reachable now", "unavailable"),
    -32800: ("Cancelled", "cancelled"),
}
TEMPORARY = {-32008, -32009, -32010, -32011, -32012}


def request(method: str, params: object = None, id: object = 1) -> str:
    """A request; no `params` where there are none."""
    message: dict[str, object] = {"jsonrpc": "2.0", "id": id, "method": method}
    return json.dumps(message if params is None else message | {"params": params})


def notification(method: str, params: object = None) -> str:
    """A notification."""
    message: dict[str, object] = {"jsonrpc": "2.0", "method": method}
    return json.dumps(message if params is None else message | {"params": params})


def accepted(result: str, id: str = "1") -> str:
    """The text of a reply with a result; both arguments are JSON."""
    return f'{{"jsonrpc":"2.0","id":{id},"result":{result}}}'


def refused(code: int, detail: str = "", id: str = "1", **data: object) -> str:
    """The text of an error reply, as section 3 of the contract has it; `id` is JSON."""
    message, name = MESSAGES[code]
    if code in TEMPORARY:
        data.setdefault("outcome", "unknown")
    error = {
        "code": code,
        "message": f"{message}: {detail}" if detail else message,
        "data": {"code": name, "temporary": code in TEMPORARY, **data},
    }
    body = json.dumps(error, ensure_ascii=False, separators=(",", ":"))
    return f'{{"jsonrpc":"2.0","id":{id},"error":{body}}}'


class Caller:
    """One client's connection to a gateway in this process."""

    def __init__(self, client: TestClient[Request, Application], ws: ClientWebSocketResponse, conn_id: str) -> None:
        self.client = client
        self.ws = ws
        self.conn_id = conn_id

    @property
    def app(self) -> Application:
        """The application."""
        return self.client.app

    @property
    def connection(self) -> Connection:
        """The gateway's end of it. KeyError when it is over."""
        return self.app[CONNECTIONS][self.conn_id]

    async def send(self, text: str) -> None:
        """Send one text message."""
        await self.ws.send_str(text)

    async def receive(self) -> str:
        """The next text message."""
        return await self.ws.receive_str(timeout=WAIT)

    async def ask(self, text: str) -> str:
        """Send one text message and return the next that comes."""
        await self.send(text)
        return await self.receive()

    async def call(self, method: str, params: object = None, id: object = 1) -> Any:
        """Call a method and return the whole reply."""
        return json.loads(await self.ask(request(method, params, id)))

    async def result(self, method: str, params: object = None) -> Any:
        """Call a method that must succeed."""
        reply = await self.call(method, params)
        assert "result" in reply, reply
        return reply["result"]

    async def answers(self, text: str) -> list[str]:
        """Send one text message and return all that comes for it before the reply to a ping behind it."""
        await self.send(text)
        await self.send(request("gateway.ping", id="the last"))
        found: list[str] = []
        while (answer := await self.receive()) != LAST:
            found.append(answer)
        return found

    async def closed(self) -> int | None:
        """Read until the gateway has closed the connection and return the code."""
        async with asyncio.timeout(WAIT):
            async for _ in self.ws:
                pass
        return self.ws.close_code


async def connect(client: TestClient[Request, Application]) -> Caller:
    """One more connection to the gateway of `client`."""
    client = place(client)
    ws = await client.ws_connect("/ws")
    welcome = await ws.receive_json(timeout=WAIT)
    assert welcome["method"] == "gateway.welcome"
    return Caller(client, ws, welcome["params"]["connId"])


async def serve(aiohttp_client: AiohttpClient, methods: Iterable[object] = (), **config: object) -> Caller:
    """A gateway with these methods and sections of the configuration, and a connection to it."""
    return await connect(await started(aiohttp_client, methods, config))


class Way:
    """The link of a `Listing`."""

    def __init__(self) -> None:
        self.pressed = self.barred = False
        self.waits = 0

    def wait(self) -> None:
        """Count it."""
        self.waits += 1

    def go_on(self) -> None:
        """Count it."""
        self.waits -= 1

    def flush(self) -> None:
        """Keep nothing back anyway."""


class Listing:
    """A peer for a dispatcher or for calls, without a connection: what it is sent is kept in `sent`."""

    def __init__(self, principal: Principal = ANONYMOUS) -> None:
        self.conn_id = "3f0c9d5e-6a51-4c1f-9d0e-2f6a3a3c8b11"
        self.remote = "127.0.0.1:1"
        self.principal = principal
        self.running: dict[object, InFlight] = {}
        self.calls: dict[bytes, Call] = {}
        self.bucket: Bucket | None = None
        self.ended: Disconnect | None = None
        self.sent: list[str] = []
        self.leaving = True  # so that it is told of each that is settled
        self.settlements = 0
        self.link = Way()
        self.room = 1 << 20
        self.unheeding = False
        self.is_open = True
        self.crowded = False
        self.held: Disconnect | None = None
        self.held_up: list[Link] = []
        self.pool: Pool | None = None
        self.flowing = True
        self.elsewhere = False

    def hold(self, octets: int) -> bool:
        """Take so many bytes of its room, if it has them."""
        if octets > self.room:
            return False
        self.room -= octets
        return True

    def let_go(self, octets: int) -> None:
        """Give them back."""
        self.room += octets

    def wait(self) -> None:
        """Count it."""
        self.link.wait()

    def go_on(self) -> None:
        """Count it."""
        self.link.go_on()

    def hold_up(self, sender: Link) -> None:
        """Keep which."""
        self.held_up.append(sender)

    def send(self, payload: bytes) -> None:
        """Keep it."""
        self.sent.append(payload.decode())

    pass_on = send

    def end(self, end: Disconnect) -> None:
        """Keep how it was ended first."""
        self.ended = self.ended or end

    def settled(self) -> None:
        """Count it."""
        self.settlements += 1

    def take(self) -> list[str]:
        """What was sent since this was last asked."""
        sent, self.sent = self.sent, []
        return sent


class NodeListing(Listing):
    """The same, and a node."""

    node: Node | None = None


async def passes(count: int = 3) -> None:
    """Let the loop turn a few times: tasks start, end, and their callbacks run."""
    for _ in range(count):
        await asyncio.sleep(0)
