"""`python -m tests.soak.stream_end node|caller URL`: one end of a long stream, with the Python client.

The node serves `soak.stream`, which sends so many values of so many bytes; the caller reads each and then waits. What
both say is told by `tests.soak.streams`.
"""

import asyncio
import json
import sys
from typing import Any

from gateway.client import Client, ServedCall, connect


def say(**said: object) -> None:
    """Write one line of JSON."""
    print(json.dumps(said), flush=True)


async def line() -> str:
    """Wait for a line of standard input; empty at its end."""
    return await asyncio.to_thread(sys.stdin.readline)


async def serve(client: Client) -> None:
    """Be the node until standard input ends."""

    @client.method("soak.stream")
    async def stream(params: Any, call: ServedCall) -> int:
        for number in range(params["values"]):
            await call.progress(f"{number}:".ljust(params["size"], "x"))
        return int(params["values"])

    await client.serve("streamer")
    say(ready=True)
    await line()


async def read(client: Client) -> None:
    """Be the caller: when a line of standard input says what is to be asked, read it slowly, and say how far it is."""
    await client.call("gateway.ping")
    say(ready=True)
    asked = json.loads(await line())
    values, size, pause = asked["values"], asked["size"], asked["pause"]
    async with client.stream("soak.stream", {"values": values, "size": size}, timeout=asked["timeout"]) as stream:
        read = 0
        async for value in stream:
            assert len(value) == size and value.startswith(f"{read}:"), f"value {read} is {value[:20]!r}"
            read += 1
            if read % asked["every"] == 0:
                say(read=read)
            await asyncio.sleep(pause)
        assert await stream.result() == read == values, f"{read} of {values} values came"
    say(done=read)
    await line()


async def main(role: str, url: str) -> None:
    """Be one of them."""
    async with connect(url) as client:
        await (serve if role == "node" else read)(client)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
