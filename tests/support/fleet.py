"""One gateway for each kind of connection: TCP and TLS on both event loops, all asked at the same time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.certs import authority
from tests.support.peers import RawPeer
from tests.support.process import Config, EventLoopName, GatewayProcess, Line
from tests.support.serving import run_on

COMBINATIONS: Final[tuple[tuple[EventLoopName, bool], ...]] = (
    ("uvloop", False),
    ("uvloop", True),
    ("asyncio", False),
    ("asyncio", True),
)
"""Event loop, and whether it is TLS."""
FLOOD_SERVER: Final = "tests.support.flood_server"

Gateways = list[GatewayProcess]
Scenario = Callable[[GatewayProcess], Awaitable[None]]


@asynccontextmanager
async def started(config: Config, *, module: str = "gateway", only: slice = slice(None)) -> AsyncIterator[Gateways]:
    """Start a gateway for each of COMBINATIONS, or for some of them."""
    async with AsyncExitStack() as stack:
        starts = (
            stack.enter_async_context(GatewayProcess(config, loop=loop, tls=tls, module=module))
            for loop, tls in COMBINATIONS[only]
        )
        yield list(await asyncio.gather(*starts))


class Other:
    """Another peer of the same gateway, which asks every 5 ms and measures how long each answer takes.

    It asks whether or not it has been answered, so a standstill is seen by all who would have asked meanwhile.
    """

    EVERY = 0.005

    def __init__(self, peer: RawPeer) -> None:
        self._peer = peer
        self._due: list[float] = []
        self._asking = asyncio.create_task(self._ask())
        self._reading = asyncio.create_task(self._read())
        self.seconds: list[float] = []

    async def _ask(self) -> None:
        due = time.monotonic()
        while True:
            due += self.EVERY
            await asyncio.sleep(due - time.monotonic())
            self._due.append(due)
            await self._peer.send_json({"jsonrpc": "2.0", "id": len(self._due) - 1, "method": "none"})

    async def _read(self) -> None:
        while True:
            reply = await self._peer.recv_json()
            self.seconds.append(time.monotonic() - self._due[reply["id"]])

    async def stop(self) -> None:
        """Ask no more, and wait for the answers that are owed. Raises what went wrong meanwhile."""
        self._asking.cancel()
        while len(self.seconds) < len(self._due) and not self._reading.done():
            await asyncio.sleep(self.EVERY)
        self._reading.cancel()
        for task in (self._asking, self._reading):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def p99(self) -> float:
        """The 99th percentile of what it measured, in seconds."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


async def on_each(gateways: Gateways, *scenarios: Scenario) -> None:
    """Run scenarios on all gateways, all at the same time. Each gateway must have its sockets back soon after it."""
    before = [where.sockets() for where in gateways]
    await asyncio.gather(*(scenario(where) for where in gateways for scenario in scenarios))
    await asyncio.gather(*map(sockets_back, gateways, before))


async def sockets_back(where: GatewayProcess, count: int, timeout: float = 2.0) -> None:
    """Fail unless the gateway soon has no more open sockets than these."""

    def freed() -> bool:
        return where.sockets() <= count

    await until(freed, "a socket is still open", timeout)


async def in_process(scenario: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
    """Run `scenario(tls)` for each of COMBINATIONS, on an event loop in a thread of its own."""
    authority()  # one for all threads
    await asyncio.gather(*(asyncio.to_thread(run_on, loop, scenario(tls)) for loop, tls in COMBINATIONS))


async def until(condition: Callable[[], bool], complaint: str, timeout: float = 1.0) -> None:
    """Wait for what nothing reports. AssertionError with the complaint when it does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, complaint
        await asyncio.sleep(0.01)


async def ended(where: GatewayProcess, peer: RawPeer, cause: str, code: int, timeout: float = 5.0) -> Line:
    """Return the line about the end of this peer's connection: the only one, with this cause and code."""
    line = await where.wait_event("connection.closed", timeout=timeout, remote=peer.local)
    assert len(where.events("connection.closed", remote=peer.local)) == 1
    assert (line["cause"], line["code"]) == (cause, code), line
    return line


async def request(peer: RawPeer, method: str, **params: object) -> None:
    """Send a request with the id 1."""
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def forget_peak(where: GatewayProcess) -> int:
    """Let the peak of the resident memory be what it is now, and return that, in bytes."""
    Path(f"/proc/{where.pid}/clear_refs").write_text("5")
    return peak(where)


def peak(where: GatewayProcess) -> int:
    """Return the highest resident memory since forget_peak, in bytes."""
    status = Path(f"/proc/{where.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
