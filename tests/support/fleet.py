"""One gateway for each kind of connection: TCP and TLS on both event loops, all asked at the same time."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.support.certs import authority
from tests.support.patience import TICK, WAIT
from tests.support.peers import Frame, RawPeer
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
    """Another peer of the same gateway, which asks again and again; each answer has to come."""

    EVERY = 0.005
    """Seconds between an answer and the next request."""

    def __init__(self, peer: RawPeer) -> None:
        self._peer = peer
        self._stopped = False
        self._asking = asyncio.create_task(self._ask())
        self.answers = 0
        """How many there were so far."""

    async def _ask(self) -> None:
        while not self._stopped:
            identity = self.answers
            await self._peer.send_json({"jsonrpc": "2.0", "id": identity, "method": "none"})
            assert (await self._peer.recv_json())["id"] == identity
            self.answers += 1
            await asyncio.sleep(self.EVERY)

    async def answered(self, count: int) -> None:
        """Wait until it has had this many answers more. Raises what went wrong meanwhile."""
        wanted = self.answers + count
        await until(lambda: self.answers >= wanted or self._asking.done(), "the other peer is not answered")
        if self._asking.done():
            await self._asking

    async def stop(self) -> None:
        """Ask no more, and wait for the answer that is owed. Raises what went wrong meanwhile."""
        self._stopped = True
        await self._asking


async def on_each(gateways: Gateways, *scenarios: Scenario) -> None:
    """Run scenarios on all gateways, all at the same time. Each gateway must have its sockets back soon after it."""
    before = [where.sockets() for where in gateways]
    await asyncio.gather(*(scenario(where) for where in gateways for scenario in scenarios))
    await asyncio.gather(*map(sockets_back, gateways, before))


async def sockets_back(where: GatewayProcess, count: int) -> None:
    """Fail unless the gateway soon has no more open sockets than these."""

    def freed() -> bool:
        return where.sockets() <= count

    await until(freed, "a socket is still open")


async def in_process(scenario: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
    """Run `scenario(tls)` for each of COMBINATIONS, on an event loop in a thread of its own."""
    authority()  # one for all threads
    await asyncio.gather(*(asyncio.to_thread(run_on, loop, scenario(tls)) for loop, tls in COMBINATIONS))


async def until(condition: Callable[[], bool], complaint: str, timeout: float = WAIT) -> None:
    """Wait for what nothing reports. AssertionError with the complaint when it does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, complaint
        await asyncio.sleep(0.01)


async def ended(where: GatewayProcess, peer: RawPeer, cause: str, code: int, timeout: float = WAIT) -> Line:
    """Return the line about the end of this peer's connection: the only one, with this cause and code."""

    def its_own(line: Line) -> bool:
        """Whether it is not that of an earlier peer whose port the kernel has given out again."""
        return datetime.fromisoformat(line["time"]).timestamp() >= peer.since - TICK

    line = await where.wait_event("connection.closed", timeout=timeout, where=its_own, remote=peer.local)
    assert len(list(filter(its_own, where.events("connection.closed", remote=peer.local)))) == 1
    assert (line["cause"], line["code"]) == (cause, code), line
    return line


async def request(peer: RawPeer, method: str, **params: object) -> None:
    """Send a request with the id 1."""
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def is_late(got: Frame) -> bool:
    """Whether a frame is the reply of test.late."""
    return got.payload.startswith(b'{"jsonrpc":"2.0","id":1,')


async def repeat(peer: RawPeer, data: bytes, every: float) -> None:
    """Send the same bytes again and again, until the gateway has gone."""
    with suppress(OSError):
        while True:
            await peer.send_raw(data)
            await asyncio.sleep(every)


def forget_peak(where: GatewayProcess) -> int:
    """Let the peak of the resident memory be what it is now, and return that, in bytes."""
    Path(f"/proc/{where.pid}/clear_refs").write_text("5")
    return peak(where)


def peak(where: GatewayProcess) -> int:
    """Return the highest resident memory since forget_peak, in bytes."""
    status = Path(f"/proc/{where.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
