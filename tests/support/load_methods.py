"""Methods that `tests/system/test_load.py` has its gateways load: slow ones and large ones."""

import asyncio

import msgspec

from gateway.connections.connection import Connection
from gateway.rpc.method import AUTHENTICATED, method


class _State:
    """What the calls of this process share."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.peak = 0


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
