"""python-socketio on aiohttp with default settings: `python -m tests.bench.servers.python_socketio_server relay`."""

import importlib
import itertools
import socket
from typing import Any

from aiohttp import web

from tests.bench.servers import announce

# By name: python-socketio is not among the project's dependencies.
socketio: Any = importlib.import_module("socketio")
server: Any = socketio.AsyncServer(async_mode="aiohttp")
_nodes: dict[str, str] = {}
_waiting: dict[int, tuple[str, Any]] = {}
_numbers = itertools.count(1)


async def relay(sid: str, message: Any) -> None:
    """Register nodes, send calls on to them under ids of its own, and the answers back."""
    method = message.get("method")
    if method is None:
        caller, message["id"] = _waiting.pop(message["id"])
        await server.emit("rpc", message, to=caller)
    elif method == "node.register":
        for served in message["params"]["methods"]:
            _nodes[served["name"]] = sid
        await server.emit("rpc", {"jsonrpc": "2.0", "id": message["id"], "result": {}}, to=sid)
    else:
        number = next(_numbers)
        _waiting[number] = (sid, message["id"])
        message["id"] = number
        await server.emit("rpc", message, to=_nodes[method])


def main() -> None:
    """Serve on a free port of 127.0.0.1 until SIGTERM."""
    app = web.Application()
    server.attach(app)
    server.on("rpc", relay)
    sock = socket.create_server(("127.0.0.1", 0))
    announce(sock.getsockname()[1])
    web.run_app(app, sock=sock, print=None)


if __name__ == "__main__":
    main()
