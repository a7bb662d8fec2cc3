"""A gateway of three is killed, stopped and cut off, with calls in flight to its node: each call ends once, and soon.

No call begins after its caller was told that it is lost.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest
from aiohttp import ClientSession

from tests.support.clustered import clustered, nats_for_gateways
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.ledger import Bookkeeper, Ledger, Registrar
from tests.support.patience import SLACK, Sized
from tests.support.process import GatewayProcess

WAITING: Final = 64
"""Calls that the node has begun when the fault comes."""

PAUSE: Final = 0.004
"""Seconds between two further calls of a caller."""

ENDED: Final = 0.5
"""Seconds in which calls are answered when the TCP connection of the other gateway has ended."""

SILENT: Final = 2.0
"""Seconds in which they are answered when it says nothing."""

LIMITS: Final = {"max_in_flight": 5000, "max_node_in_flight": 10_000}


class Trio:
    """Three gateways. The node is at `victim`, which reaches NATS by a proxy, and a caller is at each of the others."""

    def __init__(self, stack: AsyncExitStack, ledger: Ledger) -> None:
        self._enter = stack.enter_async_context
        self.ledger = ledger
        self.chance = random.Random(7)
        self.callers = [Bookkeeper(ledger, name) for name in "ac"]
        self.node = Registrar(ledger)

    async def start(self) -> None:
        """Start all."""
        self._server = await self._enter(nats_for_gateways())
        self.proxy = await self._enter(FaultyProxy("127.0.0.1", self._server.port))
        configs = [{**clustered(self._server, name), "limits": LIMITS} for name in "ac"]
        *others, self.victim = await asyncio.gather(
            *(self._enter(GatewayProcess(config)) for config in configs), self._another_victim()
        )
        self._session = await self._enter(ClientSession())  # it ends first, so that no gateway has to wait in its drain
        await self.node.serve(self._session, self.victim, "pi")
        for caller, gateway in zip(self.callers, others, strict=True):
            await caller.join(self._session, gateway)

    async def start_again(self) -> None:
        """Start the gateway that suffers, and its node, after it was killed."""
        self.victim = await self._another_victim()
        await self.node.serve(self._session, self.victim, "pi")

    async def _another_victim(self) -> GatewayProcess:
        config = clustered(self._server, "b", nats=[f"nats://127.0.0.1:{self.proxy.port}"])
        return await self._enter(GatewayProcess({**config, "limits": LIMITS}))

    async def stand_still(self, seconds: float) -> None:
        """Stop the gateway that suffers for so long."""
        self.victim.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.victim.signal(signal.SIGCONT)

    def cut(self) -> None:
        """End its link to NATS, and let it have no other."""
        self.proxy.refuse = True
        self.proxy.cut(self.chance.choice(("fin", "reset")))

    async def suffer(self, fault: "Fault") -> float:
        """Do harm while calls are in each phase, and wait until all is well again. Returns when it began."""
        for caller in self.callers:
            await caller.knows("pi")
        self.ledger.calls.clear()
        waiting = [await caller.call("wait") for caller in self.callers for _ in range(WAITING // 2)]
        await until(lambda: all(self.ledger.calls[call].begun for call in waiting), "not all have begun")
        async with asyncio.TaskGroup() as group:
            flows = [group.create_task(caller.flow(PAUSE)) for caller in self.callers]
            await asyncio.sleep(self.chance.uniform(0.1, 0.2))
            began = time.monotonic()
            await fault(self)
            for caller in self.callers:
                await caller.knows("pi")
            self.node.go_on()
            await asyncio.sleep(0.1)
            for flow in flows:
                flow.cancel()
        await self.ledger.settled()
        return began


Fault = Callable[[Trio], Awaitable[None]]


@asynccontextmanager
async def trio() -> AsyncIterator[Trio]:
    """Three gateways."""
    async with Ledger() as ledger, AsyncExitStack() as stack:
        three = Trio(stack, ledger)
        await three.start()
        yield three


async def suffers(fault: Fault, rounds: int, bound: float, lost: int = WAITING) -> None:
    """Do harm so many times. Fails if an answer takes longer than the bound, or a call ends as it must not.

    At least so many have to be lost.
    """
    async with trio() as three:
        for number in range(rounds):
            began = await three.suffer(fault)
            worst, verdicts = three.ledger.worst(began), three.ledger.verdicts()
            print(f"round {number}: the last answer after {worst:.2f} s; {dict(verdicts)}")
            three.ledger.check()
            assert verdicts["ok"]
            assert verdicts["node_lost"] >= lost
            assert worst < bound


@pytest.fixture
def slack(sized: Sized) -> float:
    """What is added to the contract's seconds: nothing with `--full`, which is for a machine that does nothing else."""
    return sized(int(SLACK), 0)


async def test_calls_to_a_gateway_that_is_killed_end_soon(sized: Sized, slack: float) -> None:
    async def kill(three: Trio) -> None:
        three.victim.signal(signal.SIGKILL)
        await three.victim.wait()
        await three.start_again()

    await suffers(kill, sized(1, 20), ENDED + slack)


async def test_calls_to_a_gateway_that_stands_still_end_and_begin_no_more(sized: Sized, slack: float) -> None:
    seconds = sized(2, 5)

    async def stop(three: Trio) -> None:
        await three.stand_still(seconds)

    await suffers(stop, sized(1, 20), SILENT + slack)


async def test_calls_to_a_gateway_that_is_cut_off_end_soon(sized: Sized, slack: float) -> None:
    seconds = sized(1, 5)

    async def cut(three: Trio) -> None:
        three.cut()
        await asyncio.sleep(seconds)
        three.proxy.heal()

    await suffers(cut, sized(1, 20), ENDED + slack)


async def test_calls_to_a_gateway_whose_link_goes_down_without_a_word_end(sized: Sized, slack: float) -> None:
    seconds = sized(2, 5)

    async def swallow(three: Trio) -> None:
        three.proxy.swallow = True
        await asyncio.sleep(seconds)
        three.proxy.heal()
        three.proxy.cut()

    await suffers(swallow, sized(1, 20), SILENT + slack)


async def test_calls_wait_for_a_gateway_that_stands_still_for_nearly_as_long_as_it_may(sized: Sized) -> None:
    """What it reads when it goes on is on the edge of the fence. It may be taken for lost before, or not."""

    async def stop(three: Trio) -> None:
        await three.stand_still(three.chance.uniform(1.2, 1.8))
        await asyncio.sleep(0.3)

    await suffers(stop, sized(1, 20), SILENT + SLACK, lost=0)


async def test_calls_to_a_gateway_that_stands_still_while_it_is_cut_off_begin_no_more(
    sized: Sized, slack: float
) -> None:
    """What it reads when it goes on is not old, and yet the callers were told that its link has ended."""

    async def stop_and_cut(three: Trio) -> None:
        stopped = asyncio.create_task(three.stand_still(three.chance.uniform(0.5, 1.4)))
        await asyncio.sleep(three.chance.uniform(0.0, 0.2))
        three.cut()
        await stopped
        await asyncio.sleep(0.2)
        three.proxy.heal()

    await suffers(stop_and_cut, sized(1, 20), 0.2 + ENDED + slack)
