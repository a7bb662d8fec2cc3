"""Call a node's method, and say how long it took. Run it: .venv/bin/python docs/example/node/call.py machine.about"""

import asyncio
import os
import sys
import time

import aiohttp

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")


async def main(method: str) -> None:
    """Call `method`, and print the reply and the seconds that it took."""
    async with aiohttp.ClientSession() as session, session.ws_connect(URL) as gateway:
        await gateway.receive()  # the welcome
        begun = time.monotonic()
        await gateway.send_json({"jsonrpc": "2.0", "id": 1, "method": method})
        print(await gateway.receive_json(), f"after {time.monotonic() - begun:.3f} s")


asyncio.run(main(sys.argv[1]))
