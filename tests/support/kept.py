"""A client whose connection outlives its link: it numbers, acknowledges, loses its link and comes back."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Self

from aiohttp import ClientWebSocketResponse
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS, GATEWAY
from gateway.client import Client as PythonClient
from gateway.connections.connection import Connection
from tests.support.apart import place, settled, started
from tests.support.patience import WAIT

Client = TestClient[Request, Application]
Message = dict[str, Any]


async def gateway_for(aiohttp_client: AiohttpClient, methods: Iterable[object] = (), **config: object) -> Client:
    """A gateway in this process, with these methods and sections of the configuration."""
    return await started(aiohttp_client, methods, config)


def counts(message: Message | list[Message]) -> bool:
    """Whether a message that comes from the gateway has a number, once the connection is kept."""
    method = "" if isinstance(message, list) else message.get("method", "")
    return not (method.startswith("gateway.") or method in ("event.message", "event.gap", "connection.ack"))


class Kept:
    """One connection, by whichever link. ``heard`` has the messages that count, in order; all else is in ``others``."""

    def __init__(self, client: Client, token: str = "") -> None:
        self.client = place(client)
        self.token = token
        self.heard: list[Message] = []
        self.others: list[Message] = []
        self.session = ""
        self.sent = 0
        self.attempt = 0
        self.conn_id = ""
        self.ws: ClientWebSocketResponse

    @classmethod
    async def open(cls, client: Client, token: str = "", **params: object) -> Self:
        """Connect, be kept, and acknowledge."""
        kept = cls(client, token)
        await kept.link()
        await kept.keep(**params)
        await kept.ack(0)
        session = kept.connection.session
        await until(lambda: session is not None and session.established)
        return kept

    async def link(self, compress: int = 0) -> Message:
        """Get a new link. Returns the welcome's parameters."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self.ws = await self.client.ws_connect("/ws", headers=headers, max_msg_size=0, compress=compress)
        welcome = await self.ws.receive_json(timeout=WAIT)
        assert welcome["method"] == "gateway.welcome"
        self.conn_id = self.conn_id or welcome["params"]["connId"]
        params: Message = welcome["params"]
        return params

    async def keep(self, **params: object) -> Message:
        """Ask for a session."""
        reply = await self.raw("connection.keep", params)
        self.session = reply["result"]["session"]
        return reply

    async def raw(self, method: str, params: object, id: object = "raw") -> Message:
        """Call a method without counting, and return the next message."""
        await self.ws.send_json({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        reply: Message = await self.ws.receive_json(timeout=WAIT)
        return reply

    async def ack(self, number: int | None = None) -> None:
        """Acknowledge all, or up to this number."""
        received = len(self.heard) if number is None else number
        await self.ws.send_json({"jsonrpc": "2.0", "method": "connection.ack", "params": {"received": received}})

    async def send(self, message: object) -> None:
        """Send one message that counts."""
        self.sent += 1
        await self.ws.send_json(message)

    async def request(self, method: str, params: object = None, id: object = 1) -> None:
        """Send a request."""
        await self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": {} if params is None else params})

    async def result(self, method: str, params: object = None, id: object = 1) -> Any:
        """Call a method that must succeed, with nothing else that counts coming before."""
        await self.request(method, params, id)
        reply = await self.next()
        assert "result" in reply, reply
        return reply["result"]

    async def answer(self, call: Message, result: object = None) -> None:
        """Answer a call that the gateway has sent."""
        await self.send({"jsonrpc": "2.0", "id": call["id"], "result": result})

    async def next(self) -> Message:
        """The next message that counts."""
        while True:
            message: Message = await self.ws.receive_json(timeout=WAIT)
            if counts(message):
                self.heard.append(message)
                return message
            self.others.append(message)

    @property
    def connection(self) -> Connection:
        """The gateway's end of it. KeyError when it is over."""
        return self.client.app[CONNECTIONS][self.conn_id]

    async def cut(self) -> None:
        """Lose the link, without a close frame. Returns when the gateway holds the connection."""
        connection = self.connection
        connection.link.transport.abort()
        await until(lambda: not connection.is_linked)
        await asyncio.sleep(0)
        await self.ws.close()

    async def resume(self, received: int | None = None, attempt: int | None = None) -> Message:
        """Ask by this link, which is new, to go on with the connection. Returns the reply."""
        self.attempt = self.attempt + 1 if attempt is None else attempt
        params = {
            "session": self.session,
            "received": len(self.heard) if received is None else received,
            "attempt": self.attempt,
        }
        return await self.raw("connection.resume", params)

    async def back(self) -> Message:
        """Get a new link and go on by it. Returns the reply's result."""
        await self.link()
        reply = await self.resume()
        assert reply.get("result", {}).get("connId") == self.conn_id, reply
        result: Message = reply["result"]
        return result

    async def quiet(self) -> None:
        """See that nothing else that counts has come: a ping's answer is the next."""
        await settled(self.ws)
        assert await self.result("gateway.ping", {"quiet": self.sent}, "quiet") == {"quiet": self.sent - 1}


async def is_kept(client: PythonClient) -> None:
    """Wait until the gateway has the client's acknowledgement, without which nothing is held."""
    # The first may leave before the reply that is acknowledged has come; the second leaves after the acknowledgement.
    for _ in range(2):
        await client.call("gateway.ping", timeout=WAIT)


async def until(done: Any) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(WAIT):
        while not done():
            await asyncio.sleep(0.005)


def held(client: Client) -> int:
    """How many connections are held."""
    return client.app[GATEWAY].sessions.held


def code_of(reply: Message) -> int:
    """The code of an error reply."""
    code: int = reply["error"]["code"]
    return code


def texts(messages: Iterable[object]) -> list[str]:
    """Messages as text, to look for something in them."""
    return [json.dumps(message) for message in messages]
