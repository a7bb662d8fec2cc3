"""JSON-RPC with websockets and default settings: `python -m tests.bench.servers.websockets_server`."""

import asyncio
import json

from websockets.asyncio.server import ServerConnection, serve

from tests.bench.servers import announce


async def answer(connection: ServerConnection) -> None:
    """Answer every JSON-RPC request with its params."""
    async for message in connection:
        call = json.loads(message)
        await connection.send(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": call.get("params")}))


async def main() -> None:
    """Serve on a free port of 127.0.0.1 until the process is ended."""
    async with serve(answer, "127.0.0.1", 0) as server:
        announce(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
