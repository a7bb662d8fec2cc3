"""A node that serves a shell of this machine over a stream. Run it: .venv/bin/python docs/example/terminal/node.py"""

import asyncio
import contextlib
import os
import pty
import signal
import termios
from typing import Any

from gateway.client import ServedCall, connect

URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8765/ws")
TOKEN = os.environ.pop("GATEWAY_TOKEN", None)  # it is not for the shell


async def keys(call: ServedCall, terminal: int) -> None:
    """Type what the caller pushes, bytes as a text of Latin-1, or give the terminal the size that is pushed."""
    with contextlib.suppress(OSError):  # the shell has ended
        async for pushed in call:
            if isinstance(pushed, str):
                await asyncio.to_thread(os.write, terminal, pushed.encode("latin-1"))
            else:
                termios.tcsetwinsize(terminal, pushed)
        os.write(terminal, b"\x04")


def ended(pid: int) -> int | None:
    """Return the exit status of the shell, or None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


async def shell(params: Any, call: ServedCall) -> int:
    """Run a shell, send what it shows, and return its exit status. Without its caller it is hung up."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash"])
    typing = asyncio.create_task(keys(call, terminal))
    try:
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while shown := await asyncio.to_thread(os.read, terminal, 4096):
                await call.progress(shown.decode("latin-1"))
    finally:
        typing.cancel()
        while (status := ended(pid)) is None:
            os.kill(pid, signal.SIGHUP)  # one may come when bash does not look, the second ends it at once
            await asyncio.sleep(0.1)
        os.close(terminal)
    return status


async def main() -> None:
    """Serve until Ctrl-C, or until the client will not connect again."""
    async with connect(URL, TOKEN, heartbeat=5.0) as gateway:
        gateway.method("shell.open", summary="A shell, for docs/example/terminal/terminal.py")(shell)
        await gateway.serve("kitchen-pi")
        async for state in gateway.states():
            print(state.value, gateway.why, flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
