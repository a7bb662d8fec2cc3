"""A shell on a node: Ctrl-] leaves it. Run it: .venv/bin/python docs/example/terminal/terminal.py"""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable

from gateway.client import CallError, Client, State, Stream, connect

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")


async def keys(shell: Stream, leave: Callable[[], object]) -> None:
    """Push what is typed, bytes as a text of Latin-1."""
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    while True:
        typed.clear()
        loop.add_reader(0, typed.set)
        await typed.wait()
        loop.remove_reader(0)
        if not (data := os.read(0, 1024)):
            return await shell.end()
        if data == b"\x1d":  # Ctrl-]
            leave()
        await shell.send(data.decode("latin-1"))


async def screen(shell: Stream) -> int:
    """Show what the shell shows, until it ends; returns its exit status."""
    async for shown in shell:
        os.write(1, shown.encode("latin-1"))
    return int(await shell.result())


async def sizes(shell: Stream, resized: asyncio.Event) -> None:
    """Push the size of the window, now and whenever it changes."""
    while await resized.wait():
        resized.clear()
        await shell.send(termios.tcgetwinsize(0))


async def away(gateway: Client) -> None:
    """Say when the network is away, and when it is back."""
    async for state in gateway.states():
        if state is not State.OPEN or gateway.why:
            os.write(2, f"\r\n[{state.value}]\r\n".encode())


async def main() -> int:
    """Open a shell until it ends; returns its exit status."""
    async with (
        connect(URL, os.environ.get("GATEWAY_TOKEN"), heartbeat=5.0) as gateway,
        gateway.stream("shell.open") as shell,
    ):
        resized = asyncio.Event()
        resized.set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, resized.set)
        shown = asyncio.create_task(screen(shell))
        others = [
            asyncio.create_task(work) for work in (keys(shell, shown.cancel), sizes(shell, resized), away(gateway))
        ]
        await asyncio.wait([shown])
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return 1 if shown.cancelled() else shown.result()


before = termios.tcgetattr(0)
tty.setraw(0)
try:
    status: int | str = asyncio.run(main())
except CallError as error:
    status = str(error)
finally:
    termios.tcsetattr(0, termios.TCSADRAIN, before)
sys.exit(status)
