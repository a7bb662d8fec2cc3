"""Bare aiohttp handlers with default settings.

`python -m tests.bench.servers.aiohttp_server echo|json asyncio|uvloop`
"""

import asyncio
import importlib
import json
import socket
import sys
from typing import Any

from aiohttp import web

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


HANDLERS = {"echo": echo, "json": answer}


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
