"""A gateway in the test's own event loop that does with each connection what the test has written."""

import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

ANYBODY: Final = {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None}
"""The principal in mode none."""

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection, from the gateway's side."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request) -> None:
        self.ws = ws
        self.headers = request.headers
        self._transport = request.transport
        self._early: deque[Any] = deque()

    async def welcome(self, principal: Mapping[str, Any] | None = ANYBODY, **limits: int) -> None:
        """Send the welcome."""
        await self.notify("gateway.welcome", connId="1", protocol=1, limits=limits, principal=principal)

    async def notify(self, method: str, **params: Any) -> None:
        """Send a notification."""
        await self.ws.send_json({"jsonrpc": "2.0", "method": method, "params": params})

    async def message(self) -> Any:
        """The next message, mostly an object."""
        return self._early.popleft() if self._early else await self._next()

    async def _next(self) -> Any:
        return json.loads(await self.ws.receive_str(timeout=5))

    async def request(self) -> Any:
        """The next message. One that asks to keep the connection is refused, as by an older gateway."""
        message = await self.message()
        while isinstance(message, dict) and message.get("method") == "connection.keep":
            await self.keep_nothing(message)
            message = await self.message()
        return message

    async def keep(self, *, hold: float = 30.0, max_bytes: int = 1 << 20) -> None:
        """Welcome it, and keep the connection as "the secret"."""
        await self.welcome()
        asked = await self.message()
        assert asked["method"] == "connection.keep"
        await self.answer(asked, {"session": "the secret", "holdMs": hold * 1000, "maxBytes": max_bytes})
        while (message := await self._next())["method"] != "connection.ack":
            self._early.append(message)  # sent before the client had the reply
        assert message["params"] == {"received": 0}

    async def asked_to_resume(self) -> Any:
        """Welcome it, and return the request by which it comes back."""
        await self.welcome()
        asked = await self.message()
        assert asked["method"] == "connection.resume"
        assert asked["params"]["session"] == "the secret"
        return asked

    async def resume(self, received: int) -> Any:
        """Welcome it, and let it come back; ``received`` is the number of the last message that has come from it."""
        asked = await self.asked_to_resume()
        await self.answer(asked, {"connId": "1", "received": received})
        return asked["params"]

    async def cut(self) -> None:
        """End TCP without a close frame."""
        assert self._transport is not None
        self._transport.abort()
        await self.stay()

    async def keep_nothing(self, request: Mapping[str, Any]) -> None:
        """Refuse to keep the connection."""
        error = {"code": -32601, "message": "No such method", "data": {"code": "method_not_found", "temporary": False}}
        await self.ws.send_json({"jsonrpc": "2.0", "id": request["id"], "error": error})

    async def answer(self, request: Mapping[str, Any], result: Any) -> None:
        """Answer a request."""
        await self.ws.send_json({"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def refuse(self, request: Mapping[str, Any], code: int, name: str, **data: Any) -> None:
        """Answer a request with a temporary error."""
        error = {"code": code, "message": name, "data": {"code": name, "temporary": True, **data}}
        await self.ws.send_json({"jsonrpc": "2.0", "id": request["id"], "error": error})

    async def close(self, code: int, reason: str = "") -> None:
        """End it."""
        await self.ws.close(code=code, message=reason.encode())

    def stop_reading(self) -> None:
        """Read nothing more: what it sends stays with it."""
        assert self._transport is not None
        self._transport.pause_reading()

    async def stay(self) -> None:
        """Read until the other side is gone."""
        async for _ in self.ws:
            pass


class ScriptedGateway:
    """Runs one script for each connection, the last one again and again, after its refusals."""

    def __init__(self, scripts: tuple[Script, ...], refusals: list[tuple[int, dict[str, str]]]) -> None:
        self._scripts = scripts
        self._refusals = refusals
        self.connections = 0
        """Attempts, those that were refused included."""
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One attempt."""
        self.connections += 1
        if self._refusals:
            status, headers = self._refusals.pop(0)
            return web.Response(status=status, headers=headers)
        ws = web.WebSocketResponse(timeout=1)
        await ws.prepare(request)
        script = self._scripts[0]
        if len(self._scripts) > 1:
            self._scripts = self._scripts[1:]
        await script(Peer(ws, request))
        return ws


@asynccontextmanager
async def scripted(
    *scripts: Script,
    refusals: list[tuple[int, dict[str, str]]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ScriptedGateway]:
    """Serve these scripts, after these refusals: statuses and headers. With ``tls`` the scheme is wss."""
    gateway = ScriptedGateway(scripts, refusals or [])
    app = web.Application()
    app.router.add_get("/ws", gateway.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    gateway.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{runner.addresses[0][1]}/ws"
    try:
        yield gateway
    finally:
        await runner.cleanup()


async def serve_nothing(peer: Peer) -> None:
    """Welcome it, and answer nothing."""
    await peer.welcome()
    await peer.stay()
