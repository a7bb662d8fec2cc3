"""websockets with the stdlib's json and default settings.

`python -m tests.bench.servers.websockets_server json|relay|fanout`
"""

import asyncio
import itertools
import json
import sys
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve

from tests.bench.servers import announce

_nodes: dict[str, ServerConnection] = {}
_waiting: dict[int, tuple[ServerConnection, Any]] = {}
_numbers = itertools.count(1)
_subscribers: set[ServerConnection] = set()


async def answer(connection: ServerConnection) -> None:
    """Answer every JSON-RPC request with its params."""
    async for message in connection:
        call = json.loads(message)
        await connection.send(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": call.get("params")}))


async def relay(connection: ServerConnection) -> None:
    """Register nodes, send calls on to them under ids of its own, and the answers back."""
    async for text in connection:
        message = json.loads(text)
        method = message.get("method")
        if method is None:
            caller, message["id"] = _waiting.pop(message["id"])
            await caller.send(json.dumps(message))
        elif method == "node.register":
            for served in message["params"]["methods"]:
                _nodes[served["name"]] = connection
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
        else:
            number = next(_numbers)
            _waiting[number] = (connection, message["id"])
            message["id"] = number
            await _nodes[method].send(json.dumps(message))


async def fanout(connection: ServerConnection) -> None:
    """Take subscribers, and send them what is published with `broadcast`."""
    async for text in connection:
        message = json.loads(text)
        if message["method"] == "event.subscribe":
            _subscribers.add(connection)
        else:
            broadcast(_subscribers, json.dumps(message["params"]["data"]))
        await connection.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}))
    _subscribers.discard(connection)


HANDLERS = {"json": answer, "relay": relay, "fanout": fanout}


async def main(kind: str) -> None:
    """Serve on a free port of 127.0.0.1 until the process is ended."""
    async with serve(HANDLERS[kind], "127.0.0.1", 0) as server:
        announce(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
