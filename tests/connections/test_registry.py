"""The registry, and how all connections leave it: a drain inside the test's own event loop, with all kinds of peers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.connections.connection import Connection
from gateway.connections.history import Closed
from gateway.connections.registry import LEAVE_WITHIN, RECONNECT_MS, Connections
from gateway.errors import CLIENT_CLOSE
from tests.support.fleet import in_process, until
from tests.support.patience import SLACK, TICK, WAIT
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.serving import Script, keep_busy, serving

DRAIN_TIMEOUT, CLOSE_TIMEOUT = 2.5, 0.4
LONG = 100.0
"""A timeout that nobody comes to feel."""


class Registered(Script):
    """An endpoint that keeps a registry of its connections."""

    def __init__(self, close_timeout: float) -> None:
        super().__init__()
        self.registry = Connections()
        self._close_timeout = close_timeout

    def opened(self, connection: Connection) -> None:
        """Note and register it."""
        super().opened(connection)
        self.registry.add(connection)

    def let_owe(self, connection: Connection) -> None:
        """Take it out, as one that owes its credential."""
        del self.registry[connection.conn_id]
        self.registry.owe(connection)

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Note the end and forget it."""
        super().closed(connection, closed)
        self.registry.remove(connection, closed)
        self.registry.owe_no_more(connection)

    async def drain(self, drain_timeout: float) -> float:
        """Drain and return how many seconds it took."""
        begin = time.monotonic()
        await self.registry.drain(drain_timeout, self._close_timeout)
        return time.monotonic() - begin


class Room:
    """A served registry, and its peers: their sockets are closed at the end."""

    def __init__(self, endpoint: Registered, target: Target, stack: ExitStack) -> None:
        self.endpoint = endpoint
        self.registry = endpoint.registry
        self._target = target
        self._stack = stack

    async def peers(self, count: int) -> list[RawPeer]:
        """Connect some; they are registered when this returns."""
        wanted = len(self.registry) + count
        peers = [self._stack.enter_context(await RawPeer.open(self._target)) for _ in range(count)]
        await until(lambda: len(self.registry) == wanted, "not registered")
        return peers

    def newest(self) -> Connection:
        """Return the connection that was registered last."""
        return list(self.registry.values())[-1]


@asynccontextmanager
async def room(*, tls: bool, close_timeout: float = LONG) -> AsyncIterator[Room]:
    """Serve, and have somebody who leaves nothing open."""
    endpoint = Registered(close_timeout)
    with ExitStack() as stack:
        async with serving(endpoint, {"server": {"close_timeout": close_timeout}}, tls=tls) as target:
            yield Room(endpoint, target, stack)


class Seen:
    """What a reading peer saw of a drain: the notification, then the close, which it answers at once."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.told_at = 0.0
        self.closed_at = 0.0
        self.code: int | None = None

    async def read(self, peer: RawPeer) -> None:
        """Read until the end."""
        message = await peer.recv_json()
        self.told_at = time.monotonic()
        assert message["method"] == "gateway.draining", message
        assert "id" not in message
        self.params = message["params"]
        got = await peer.recv_frame()
        self.closed_at = time.monotonic()
        assert got.opcode == Opcode.CLOSE, got
        self.code = peer.close_code
        await peer.leave(1001)


@contextlib.asynccontextmanager
async def reading(peers: list[RawPeer]) -> AsyncIterator[list[Seen]]:
    """Let peers read in the background; at the end each must have read to its own."""
    seen = [Seen() for _ in peers]
    tasks = [asyncio.create_task(one.read(peer)) for one, peer in zip(seen, peers, strict=True)]
    yield seen
    async with asyncio.timeout(WAIT):
        await asyncio.gather(*tasks)


# A dictionary


async def test_it_is_a_dictionary_of_open_connections() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            first, second = await here.peers(2)
            assert isinstance(here.registry, dict)
            assert all(key == connection.conn_id for key, connection in here.registry.items())
            assert {connection.remote for connection in here.registry.values()} == {first.local, second.local}
            await first.leave()
            await until(lambda: len(here.registry) == 1, "it is still registered")
            (left,) = here.registry.values()
            assert left.remote == second.local
            assert here.registry.opened_total == 2

    await in_process(scenario)


async def test_a_census_counts_who_leaves_meanwhile_once_and_as_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.connections.registry._COUNTED", 1)  # one in each pass

    async with room(tls=False) as here:
        first, second = await here.peers(2)
        for peer in (first, second):
            await peer.send_frame(Opcode.TEXT, b"twelve bytes")
        await until(lambda: len(here.endpoint.messages) == 2, "the messages did not arrive")
        census = await here.registry.census()
        assert census.roles == {"operator": 2}
        assert (census.traffic.messages_in, census.traffic.bytes_in) == (2, 2 * (12 + 6))

        counting = asyncio.create_task(here.registry.census())
        await asyncio.sleep(0)
        for connection in list(here.registry.values()):
            here.registry.remove(connection, connection.summary(CLIENT_CLOSE))
        assert (await counting).traffic.bytes_in == 2 * (12 + 6)
        census = await here.registry.census()
        assert census.roles == {}
        assert (census.traffic.messages_in, census.traffic.bytes_in) == (2, 2 * (12 + 6))


async def test_removing_what_is_not_there_is_no_error() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            await here.peers(1)
            connection = here.newest()
            for _ in range(2):
                here.registry.remove(connection, connection.summary(CLIENT_CLOSE))
                assert here.registry == {}

    await in_process(scenario)


# The drain


@pytest.mark.parametrize("drain_timeout", [0.0, LONG])
async def test_with_nobody_there_it_is_over_at_once(drain_timeout: float) -> None:
    registry = Connections()
    async with asyncio.timeout(WAIT):
        await registry.drain(drain_timeout, LONG)


async def test_everybody_is_told_and_then_closed() -> None:
    """All hear of it before the first is closed; nobody is kept for longer than its closing takes."""
    count = 60

    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            peers = await here.peers(count)
            async with reading(peers) as seen:
                assert await here.endpoint.drain(LONG) <= LEAVE_WITHIN + SLACK
            assert {one.code for one in seen} == {1001}
            assert [end.cause for end in here.endpoint.ends] == ["shutdown"] * count
            assert here.registry == {}
            # The deadline is the same for all, told as what is left.
            for one in seen:
                assert 1000 * (LONG - SLACK) <= one.params["deadlineMs"] <= 1000 * LONG
            low, high = RECONNECT_MS
            drawn = sorted(one.params["reconnectAfterMs"] for one in seen)
            assert low <= drawn[0] <= drawn[-1] <= high
            assert len(set(drawn)) > count / 2
            assert drawn[-1] - drawn[0] > (high - low) / 2
            order = sorted(range(count), key=lambda number: seen[number].closed_at)
            assert order != list(range(count)), "each leaves at a moment of its own"
            assert all(one.told_at <= one.closed_at for one in seen)

    await in_process(scenario)


async def test_the_busy_stay_until_the_deadline() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            (busy,) = await here.peers(1)
            keep_busy(here.newest())
            idle = await here.peers(3)
            async with reading([busy, *idle]) as seen:
                begin = time.monotonic()
                took = await here.endpoint.drain(DRAIN_TIMEOUT)
            assert DRAIN_TIMEOUT - TICK <= took <= DRAIN_TIMEOUT + SLACK
            assert seen[0].closed_at - begin >= DRAIN_TIMEOUT - TICK
            assert max(one.closed_at for one in seen[1:]) < seen[0].closed_at, "the idle go before"
            assert {one.code for one in seen} == {1001}

    await in_process(scenario)


async def test_who_does_not_answer_is_cut() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls, close_timeout=CLOSE_TIMEOUT) as here:
            (silent,) = await here.peers(1)
            peers = await here.peers(3)
            async with reading(peers):
                took = await here.endpoint.drain(LONG)
            assert CLOSE_TIMEOUT - TICK <= took <= LEAVE_WITHIN + CLOSE_TIMEOUT + SLACK
            assert here.registry == {}
            end = await silent.recv_until_closed()
            assert [got.opcode for got in end.frames] == [Opcode.TEXT, Opcode.CLOSE]

    await in_process(scenario)


async def test_who_does_not_answer_at_the_deadline_is_cut() -> None:
    """The longest that a drain may take."""

    async def scenario(tls: bool) -> None:
        async with room(tls=tls, close_timeout=CLOSE_TIMEOUT) as here:
            await here.peers(1)
            keep_busy(here.newest())
            took = await here.endpoint.drain(DRAIN_TIMEOUT)
            assert DRAIN_TIMEOUT + CLOSE_TIMEOUT - TICK <= took <= DRAIN_TIMEOUT + CLOSE_TIMEOUT + SLACK
            assert here.registry == {}

    await in_process(scenario)


async def test_without_a_drain_timeout_all_are_closed_at_once() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            peers = await here.peers(5)
            keep_busy(here.newest())
            async with reading(peers) as seen:
                await here.endpoint.drain(0.0)
            assert {(one.code, one.params["deadlineMs"]) for one in seen} == {(1001, 0)}

    await in_process(scenario)


async def test_who_leaves_by_itself_meanwhile_is_no_trouble() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls) as here:
            peers = await here.peers(8)
            drain = asyncio.create_task(here.endpoint.drain(LONG))
            await asyncio.gather(*(peer.recv_json() for peer in peers))
            for number, peer in enumerate(peers):
                if number % 2:
                    peer.rst()
                else:
                    await peer.leave()
            assert await drain <= LEAVE_WITHIN + SLACK
            causes = [end.cause for end in here.endpoint.ends]
            assert len(causes) == 8
            assert set(causes) <= {"client_close", "transport_lost", "shutdown"}

    await in_process(scenario)


async def test_those_who_owe_their_credential_are_closed_too_and_waited_for() -> None:
    async def scenario(tls: bool) -> None:
        async with room(tls=tls, close_timeout=CLOSE_TIMEOUT) as here:
            polite, deaf = await here.peers(2)
            for connection in list(here.registry.values()):
                here.endpoint.let_owe(connection)
            assert (len(here.registry), len(here.registry.owing)) == (0, 2)
            drain = asyncio.create_task(here.endpoint.drain(60.0))
            assert (await polite.recv_frame()).opcode == Opcode.CLOSE, "and they are not told before"
            await polite.leave(1001)
            await drain
            assert (len(here.registry.owing), [end.cause for end in here.endpoint.ends]) == (0, ["shutdown"] * 2)
            assert [got.opcode for got in (await deaf.recv_until_closed()).frames] == [Opcode.CLOSE]

    await in_process(scenario)
