"""Methods that `tests/system/test_load.py` has gateways load: slow and large ones, and a look at the event loop."""

import asyncio
import time

import msgspec

from gateway.connections.connection import Connection
from gateway.rpc.method import AUTHENTICATED, method

TICK = 0.001
"""Seconds between two looks at the event loop."""


class _State:
    """What the calls of this process share."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.peak = 0
        self.watch: asyncio.Task[None] | None = None
        self.worst = 0.0


class NapParams(msgspec.Struct):
    """How long."""

    seconds: float


class LargeParams(msgspec.Struct):
    """How large."""

    size: int


_state = _State()


@method("load.wait", scope=AUTHENTICATED)
async def wait(peer: Connection) -> str:
    """Return when `load.open` is called."""
    _state.running += 1
    _state.peak = max(_state.peak, _state.running)
    try:
        await _state.gate.wait()
    finally:
        _state.running -= 1
    return "through"


@method("load.open", scope=AUTHENTICATED)
def open_gate(peer: Connection) -> dict[str, int]:
    """Let all who wait go. Returns how many of them there are, and how many there ever were at once."""
    _state.gate.set()
    return {"running": _state.running, "peak": _state.peak}


@method("load.nap", scope=AUTHENTICATED)
async def nap(peer: Connection, params: NapParams) -> None:
    """Take some time."""
    await asyncio.sleep(params.seconds)


@method("load.large", scope=AUTHENTICATED)
def large(peer: Connection, params: LargeParams) -> str:
    """Return a text of this size."""
    return "x" * params.size


@method("load.watch", scope=AUTHENTICATED)
def watch(peer: Connection) -> float:
    """Look at the event loop from now on. Returns what was seen since the last call.

    That is the longest time between two looks, in seconds of this thread's processor time: how long something has held
    the loop. What other processes do on a busy machine is not in it.
    """
    if _state.watch is None:
        _state.watch = asyncio.create_task(_look())
    worst, _state.worst = _state.worst, 0.0
    return worst


async def _look() -> None:
    last = time.thread_time()
    while True:
        await asyncio.sleep(TICK)
        now = time.thread_time()
        _state.worst = max(_state.worst, now - last)
        last = now
