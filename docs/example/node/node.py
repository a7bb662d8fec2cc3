"""A node: a machine that serves two methods, wherever it is. Run it: .venv/bin/python docs/example/node/node.py"""

import asyncio
import contextlib
import os
import platform
from typing import Any

from gateway.client import ServedCall, connect

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")


async def main() -> None:
    """Serve until Ctrl-C, or until the client will not connect again."""
    async with connect(URL) as gateway:

        @gateway.method("machine.about", summary="What it runs on")
        def about(params: Any, call: ServedCall) -> str:
            return platform.platform()

        @gateway.method("machine.think", summary="Takes 20 seconds")
        async def think(params: Any, call: ServedCall) -> str:
            await asyncio.sleep(20)
            return "42"

        await gateway.serve("kitchen-pi")
        async for state in gateway.states():
            print(state.value, gateway.why)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
