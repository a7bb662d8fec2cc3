"""Three gateways are started again, one after the other, while kept clients call all the time."""

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from gateway.client import CallError, Client, ServedCall, connect
from gateway.client import connection as client_connection
from gateway.errors import NOT_DELIVERED
from tests.support.clustered import clustered, nats_for_gateways
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import WAIT, Sized
from tests.support.process import GatewayProcess

NODES: Final = ("attic", "cellar", "roof")
NAMES: Final = "abc"
SHARED: Final = "work"
"""A method that all nodes serve."""


class Crew:
    """Nodes and callers that come in by one address, wherever that leads to, and what has become of each call."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._enter = stack.enter_async_context
        self._numbers = itertools.count()
        self.begun: Counter[int] = Counter()
        self.failed: dict[int, tuple[str, CallError]] = {}
        self.answered: Counter[str] = Counter()
        self.going = True

    async def enter(self) -> Client:
        """One more client."""
        return await self._enter(connect(self._url))

    async def serve(self, name: str) -> None:
        """One more node. It takes some time for each call."""
        client = await self.enter()

        async def work(params: list[int], call: ServedCall) -> int:
            self.begun[params[0]] += 1
            await asyncio.sleep(params[0] % 10 / 100)
            return params[0]

        client.method(SHARED)(work)
        await client.serve(name)

    async def call(self, client: Client, kind: str, **options: Any) -> None:
        """Call as long as it goes, and note how each call ends."""
        while self.going:
            number = next(self._numbers)
            try:
                assert await client.call(SHARED, [number], timeout=WAIT, **options) == number
                self.answered[kind] += 1
            except CallError as error:
                self.failed[number] = kind, error
                await asyncio.sleep(0.02)

    def check(self) -> None:
        """Fail if a call was run twice, may have been run for nothing, or could have been sent again and was not."""
        assert set(self.begun.values()) == {1}
        for number, (kind, error) in self.failed.items():
            assert (kind, error.outcome) == ("plain", NOT_DELIVERED), f"{number}: {error!r}"
            assert number not in self.begun


class Fleet:
    """Three gateways behind a balancer, which looks which of them are there, or sends clients to all in turn."""

    def __init__(self, stack: AsyncExitStack, *, looks: bool) -> None:
        self._enter = stack.enter_async_context
        self._looks = looks
        self._running: dict[str, GatewayProcess] = {}

    async def open(self) -> None:
        """Start all."""
        self._server = await self._enter(nats_for_gateways())
        await asyncio.gather(*map(self.start, NAMES))
        self.proxy = await self._enter(FaultyProxy("127.0.0.1", 0))
        self._spread()

    async def start(self, name: str) -> None:
        """Start one."""
        self._running[name] = await self._enter(GatewayProcess(clustered(self._server, name)))

    async def restart(self, name: str) -> None:
        """End one, as a service manager does, and start it again."""
        gateway = self._running[name]
        if self._looks:
            self._spread(without=name)
        gateway.terminate()
        assert await gateway.wait() == 0
        await self.start(name)
        self._spread()

    def _spread(self, without: str = "") -> None:
        self.proxy.spread("127.0.0.1", [one.port for name, one in self._running.items() if name != without])


async def test_no_call_fails_but_those_that_a_drain_refuses(sized: Sized, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that name their node, wait for it and may be sent again do not fail at all."""
    small = bool(sized(1, 0))
    if small:
        monkeypatch.setattr(client_connection, "MAX_PAUSE", 0.6)  # gateways ask for up to ten seconds
    async with AsyncExitStack() as stack:
        fleet = Fleet(stack, looks=small)
        await fleet.open()
        crew = Crew(fleet.proxy.url(), stack)
        for name in NODES:
            await crew.serve(name)
        async with asyncio.TaskGroup() as group:
            for number in range(sized(6, 30)):
                client = await crew.enter()
                name = NODES[number // 2 % len(NODES)]
                for _ in range(2):
                    group.create_task(crew.call(client, "plain"))
                    group.create_task(crew.call(client, "retriable", node=name, wait=WAIT, retry=True))
            for name in NAMES * sized(1, 3):
                await asyncio.sleep(sized(0, 1))
                await fleet.restart(name)
            crew.going = False
    print(crew.answered, Counter(error.name for _, error in crew.failed.values()))
    crew.check()
