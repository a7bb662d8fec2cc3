"""A node: a machine that serves two methods, wherever it is. Run it: .venv/bin/python docs/example/node/node.py"""

import asyncio
import contextlib
import os
import platform

import aiohttp

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")
METHODS = [
    {"name": "machine.about", "summary": "What it runs on"},
    {"name": "machine.think", "summary": "Takes 20 seconds"},
]


async def main() -> None:
    """Register, then answer each call in a task of its own."""
    async with aiohttp.ClientSession() as session, session.ws_connect(URL) as gateway:
        await gateway.send_json(
            {"jsonrpc": "2.0", "id": 0, "method": "node.register", "params": {"name": "kitchen-pi", "methods": METHODS}}
        )
        async with asyncio.TaskGroup() as tasks:
            async for message in gateway:
                call = message.json()
                if call.get("method") in ("machine.about", "machine.think"):
                    tasks.create_task(answer(gateway, call))


async def answer(gateway: aiohttp.ClientWebSocketResponse, call: dict[str, object]) -> None:
    """Do what the call asks for, and send the result."""
    if call["method"] == "machine.think":
        await asyncio.sleep(20)
    await gateway.send_json({"jsonrpc": "2.0", "id": call["id"], "result": platform.platform()})


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
