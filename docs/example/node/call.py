"""Call a node's method, and say how long it took. Run it: .venv/bin/python docs/example/node/call.py machine.about"""

import asyncio
import os
import sys
import time

from gateway.client import CallError, connect

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")


async def main(method: str) -> None:
    """Call `method`, and print what came of it and the seconds that it took."""
    async with connect(URL) as gateway:
        begun = time.monotonic()
        try:
            found = await gateway.call(method)
        except CallError as error:
            found = f"{error.name}, outcome {error.outcome}"
        print(found, f"after {time.monotonic() - begun:.3f} s")


asyncio.run(main(sys.argv[1]))
