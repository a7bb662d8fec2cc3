"""Bare aiohttp handlers with default settings.

`python -m tests.bench.servers.aiohttp_server echo|json|relay|fanout|write asyncio|uvloop`
"""

import asyncio
import importlib
import itertools
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from gateway.websocket.frames import text_frame
from tests.bench.servers import announce


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send every text message back."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        await ws.send_str(msg.data)
    return ws


async def answer(request: web.Request) -> web.WebSocketResponse:
    """Answer every JSON-RPC request with its params."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        call = json.loads(msg.data)
        await ws.send_str(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": call.get("params")}))
    return ws


_nodes: dict[str, web.WebSocketResponse] = {}
_waiting: dict[int, tuple[web.WebSocketResponse, Any]] = {}
_numbers = itertools.count(1)
_subscribers: dict[web.WebSocketResponse, Any] = {}
"""With their transports."""


async def relay(request: web.Request) -> web.WebSocketResponse:
    """Register nodes, send calls on to them under ids of its own, and the answers back."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        message = json.loads(msg.data)
        method = message.get("method")
        if method is None:
            caller, message["id"] = _waiting.pop(message["id"])
            await caller.send_str(json.dumps(message))
        elif method == "node.register":
            for served in message["params"]["methods"]:
                _nodes[served["name"]] = ws
            await ws.send_str(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
        else:
            number = next(_numbers)
            _waiting[number] = (ws, message["id"])
            message["id"] = number
            await _nodes[method].send_str(json.dumps(message))
    return ws


async def fanout(request: web.Request) -> web.WebSocketResponse:
    """Take subscribers, and send them what is published."""

    async def publish(data: Any) -> None:
        text = json.dumps(data)
        for subscriber in _subscribers:
            await subscriber.send_str(text)

    return await _hub(request, publish)


async def write(request: web.Request) -> web.WebSocketResponse:
    """The same with one frame for all, straight into their transports: the least that a loop lets it cost."""

    async def publish(data: Any) -> None:
        frame = text_frame(json.dumps(data).encode())
        for transport in _subscribers.values():
            transport.write(frame)

    return await _hub(request, publish)


async def _hub(request: web.Request, publish: Callable[[Any], Awaitable[None]]) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        message = json.loads(msg.data)
        if message["method"] == "event.subscribe":
            _subscribers[ws] = request.transport
        else:
            await publish(message["params"]["data"])
        await ws.send_str(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
    _subscribers.pop(ws, None)
    return ws


HANDLERS = {"echo": echo, "json": answer, "relay": relay, "fanout": fanout, "write": write}


def main(kind: str, loop_name: str) -> None:
    """Serve `/ws` on a free port of 127.0.0.1 until SIGTERM."""
    app = web.Application()
    app.router.add_get("/ws", HANDLERS[kind])
    sock = socket.create_server(("127.0.0.1", 0))
    announce(sock.getsockname()[1])
    web.run_app(app, sock=sock, print=None, loop=_new_loop(loop_name))


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    # By name, so that the stdlib's loop is measured in a process that has not loaded uvloop.
    module: Any = importlib.import_module(name)
    loop: asyncio.AbstractEventLoop = module.new_event_loop()
    return loop


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
