"""One soak: connections in turns, readings between the turns, and what is left at the end."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.soak.endings import CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_MESSAGE_BYTES, PATIENCE, Ending, endings
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import EventLoopName, GatewayProcess

TIMEOUTS_LOGGED = 100
"""Missed handshake deadlines of one address that are logged without a gap."""

CONFIG = {
    "server": {"handshake_timeout": HANDSHAKE_TIMEOUT, "close_timeout": CLOSE_TIMEOUT, "drain_timeout": 0.0},
    "limits": {"max_message_bytes": MAX_MESSAGE_BYTES},
}
MISHAPS_TOLD = 5
SEED = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: `count` connections in `turns` turns, `at_once` at a time, in `limit` seconds at most."""

    count: int
    turns: int
    at_once: int
    loop: EventLoopName
    tls: bool
    limit: float


class Reading(NamedTuple):
    """The gateway between two turns, with no connection: connections so far, seconds since the start, RSS in bytes."""

    cycles: int
    seconds: float
    rss: int


class Stock(NamedTuple):
    """What the gateway holds while it serves nobody; see `tests.soak.counted.census`."""

    descriptors: int
    connections: int
    tasks: int
    objects: dict[str, int]
    blocks: int
    heap: int
    garbage: int


class End(NamedTuple):
    """What `connection.closed` says."""

    cause: str
    code: int


@dataclass(slots=True)
class Result:
    """What was seen."""

    plan: Plan
    before: Stock
    after: Stock
    readings: list[Reading] = field(default_factory=list)
    dealt: Counter[Ending] = field(default_factory=Counter)
    """How often each way was gone, the first round included, which is before the first reading."""
    mishaps: list[str] = field(default_factory=list)
    """What peers saw that they should not have."""
    opened: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    """Lines in the log by connId."""
    ends: Counter[End] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    """Lines about a missed handshake deadline, by stage."""


async def soak(plan: Plan, say: Callable[[str], None]) -> Result:
    """Run it. Raises TimeoutError after `plan.limit` seconds, AssertionError on a gateway that shows a defect."""
    module = "tests.soak.counted"
    async with (
        asyncio.timeout(plan.limit),
        GatewayProcess(CONFIG, loop=plan.loop, tls=plan.tls, module=module, stop_timeout=PATIENCE) as gateway,
    ):
        every = endings(tls=plan.tls)
        mishaps = await _turn(gateway, every, plan.at_once)
        before = await _take_stock(gateway)
        result = Result(plan, before, before, mishaps=mishaps, dealt=Counter(every))
        begin = time.monotonic()
        result.readings.append(Reading(0, 0.0, gateway.rss()))
        for turn in _deal(plan, every):
            result.mishaps += await _turn(gateway, turn, plan.at_once)
            result.dealt.update(turn)
            await _settle(gateway, before.descriptors)
            cycles = result.readings[-1].cycles + len(turn)
            result.readings.append(Reading(cycles, time.monotonic() - begin, gateway.rss()))
            say(f"{cycles} of {plan.count}: {gateway.rss() >> 10} KiB, {time.monotonic() - begin:.1f} s")
        result.after = await _take_stock(gateway)
        await _read_log(gateway, result)
    return result


def _deal(plan: Plan, every: Sequence[Ending]) -> list[list[Ending]]:
    """Return what is done in each turn: all ways by their share, in the same random order in each run."""
    deck = [ending for ending in every for _ in range(ending.share)]
    order = random.Random(SEED)
    dealt: list[Ending] = []
    while len(dealt) < plan.count:
        order.shuffle(deck)
        dealt += deck
    size = -(-plan.count // plan.turns)
    turns = [dealt[: plan.count][at : at + size] for at in range(0, plan.count, size)]
    # The slow ones first, so that the others do not wait for them.
    return [sorted(turn, key=lambda ending: ending.share) for turn in turns]


async def _turn(gateway: GatewayProcess, turn: Sequence[Ending], at_once: int) -> list[str]:
    """Go each way once, and return what went wrong."""
    waiting = iter(turn)
    mishaps: list[str] = []

    async def go() -> None:
        for ending in waiting:
            try:
                await ending.act(gateway)
            except (AssertionError, OSError) as error:
                mishaps.append(f"{ending.name}: {type(error).__name__}: {error}")

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(go())
    return mishaps


async def _settle(gateway: GatewayProcess, descriptors: int) -> None:
    """Wait until the gateway has closed its sockets, for a moment at most: what stays is a finding."""
    deadline = time.monotonic() + CLOSE_TIMEOUT + HANDSHAKE_TIMEOUT + 10.0
    while gateway.fds() > descriptors and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


async def _take_stock(gateway: GatewayProcess) -> Stock:
    descriptors = gateway.fds()
    with await RawPeer.connect(gateway, timeout=PATIENCE) as peer:
        response = await peer.get("/census", timeout=PATIENCE)
    census: dict[str, Any] = json.loads(response.body)
    return Stock(descriptors, **census)


async def _read_log(gateway: GatewayProcess, result: Result) -> None:
    """Count openings and ends; the last lines may still be on their way."""
    late = sum(times for ending, times in result.dealt.items() if ending.stage)

    def is_whole() -> bool:
        ended = len(gateway.events("connection.closed")) >= len(gateway.events("connection.opened"))
        return ended and len(gateway.events("handshake.timeout")) >= min(late, TIMEOUTS_LOGGED)

    deadline = time.monotonic() + WAIT
    while not is_whole() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    result.opened.update(line["connId"] for line in gateway.events("connection.opened"))
    closed = gateway.events("connection.closed")
    result.closed.update(line["connId"] for line in closed)
    result.ends.update(End(line["cause"], line["code"]) for line in closed)
    result.late.update(line["stage"] for line in gateway.events("handshake.timeout"))
