"""Events of three gateways at one NATS, whatever is cut, stopped and restarted: complete, once, in order, or told."""

import asyncio
import random
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from gateway.cluster.stream import Position
from gateway.rpc.method import Refusal
from gateway.rpc.work import at_once
from tests.support.ears import Ear, Way, subscribe
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.nats import NatsServer
from tests.support.patience import Sized
from tests.support.stations import Auditorium

TOPIC: Final = "t.a"
MESSAGE: Final = re.compile(rb'"offset":(\d+),"epoch":"(\w+)","time":"[^"]+","data":(\d+)}}$')
GAP: Final = re.compile(rb'"method":"event.gap".*"epoch":"(\w+)","offset":(\d+)}}$')
AT_ONCE: Final = 64
"""How many publishes a publisher has in flight."""


class LoopWay(Way):
    """The way out of a gateway, which is always free, and the real event loop."""

    def later(self, act: Callable[[], None]) -> None:
        """Do it in the next iteration."""
        asyncio.get_running_loop().call_soon(act)


@dataclass
class Place:
    """Three gateways, each of which reaches NATS by a proxy of its own."""

    server: NatsServer
    proxies: list[FaultyProxy]
    gateways: list[Auditorium]


@asynccontextmanager
async def three(**options: Any) -> AsyncIterator[Place]:
    """Three gateways."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(jetstream=True))
        proxies = [await stack.enter_async_context(FaultyProxy("127.0.0.1", server.port)) for _ in range(3)]
        gateways = [
            await stack.enter_async_context(Auditorium(f"nats://127.0.0.1:{one.port}", way=LoopWay(True), **options))
            for one in proxies
        ]
        yield Place(server, proxies, gateways)


class Reader(Ear):
    """A subscriber that may be cut, and comes back at another gateway from where it was."""

    def __init__(self, place: Place, gateway: Auditorium, pattern: str) -> None:
        super().__init__()
        self.place = place
        self.gateway = gateway
        self.pattern = pattern
        self.at: Position | None = None
        self.got: list[tuple[Position, int] | None] = []
        """Position and number of each message; None for a gap."""
        self.refused: set[tuple[str, str]] = set()

    def send_frame(self, frame: bytes) -> None:
        """Take it."""
        self.take_in(frame)

    def write(self, frame: bytes) -> None:
        """Take it."""
        self.take_in(frame)

    def take_in(self, frame: bytes) -> None:
        """Note it, and where it is now."""
        found = MESSAGE.search(frame)
        if found is not None:
            self.at = Position(found[2].decode(), int(found[1]))
            self.got.append((self.at, int(found[3])))
        elif b'"topic":"%b"' % TOPIC.encode() in frame:
            gap = GAP.search(frame)
            assert gap is not None
            self.at = Position(gap[1].decode(), int(gap[2]))
            self.got.append(None)

    async def join(self) -> None:
        """Subscribe, as soon as that is possible."""
        since = {} if self.at is None else {TOPIC: self.at}
        while True:
            try:
                await self.gateway.events.reach(list(since.values()))
                met, release = subscribe(self.gateway.events, self, [self.pattern], since)
                break
            except Refusal as refusal:
                self.refused.add((refusal.error.name, str(refusal.data["outcome"])))
                await asyncio.sleep(0.02)
        at, recovered = met[TOPIC]
        assert recovered is not None or not since
        if since and not recovered:
            self.got.append(None)
        if not recovered:
            self.at = at
        release()

    async def cut(self, chance: random.Random) -> None:
        """Lose the connection, and come back somewhere."""
        at_once(self.gateway.events.lost(self))
        await asyncio.sleep(chance.random() * 0.05)
        self.gateway = chance.choice(self.place.gateways)
        await self.join()


@dataclass
class Publisher:
    """Publishes the numbers from ``first`` on in steps of three, and notes what became of each.

    ``pause``: seconds between two messages of each of the `AT_ONCE` that are in flight.
    """

    gateway: Auditorium
    first: int
    count: int
    pause: float = 0.0
    done: dict[int, Position] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    refused: int = 0

    async def run(self) -> None:
        """All of them."""
        numbers = iter(range(self.first, 3 * self.count, 3))
        await asyncio.gather(*(self._lane(numbers) for _ in range(AT_ONCE)))

    async def _lane(self, numbers: Any) -> None:
        for number in numbers:
            await asyncio.sleep(self.pause)
            while True:
                try:
                    self.done[number] = await self.gateway.events.publish(TOPIC, b"%d" % number)
                    break
                except Refusal as refusal:
                    if refusal.data["outcome"] == "unknown":
                        self.unknown.add(number)
                        break
                    self.refused += 1
                    await asyncio.sleep(0.02)


def published(publishers: list[Publisher], readers: list[Reader]) -> dict[int, Position]:
    """All that is known to be in the stream: what was acknowledged, and what anybody has got."""
    order = {number: at for one in publishers for number, at in one.done.items()}
    for reader in readers:
        for at, number in filter(None, reader.got):
            assert order.setdefault(number, at) == at, "a message has one position"
    assert len(set(order.values())) == len(order), "and a position one message"
    return order


def verdict(reader: Reader, order: dict[int, Position]) -> tuple[int, int]:
    """Check what a subscriber has got. Returns how many messages that were, and how many gaps."""
    number_of = {at: number for number, at in order.items()}
    holes = sorted(number_of)
    before = Position(holes[0].epoch, 0)
    epochs = [before.epoch]
    seen: set[int] = set()
    gap = False
    for item in reader.got:
        if item is None:
            gap = True
            continue
        at, number = item
        assert number not in seen, f"{number} came twice"
        seen.add(number)
        if at.epoch != before.epoch:
            assert gap, "another epoch, and no gap was told"
            assert at.epoch not in epochs, "an epoch does not come back"
            epochs.append(at.epoch)
        else:
            assert at.offset > before.offset, "in the order of offsets"
            left_out = holes[bisect_right(holes, before) : bisect_left(holes, at)]
            assert gap or not left_out, f"{left_out} are missing, and no gap was told"
        before, gap = at, False
    left_out = [at for at in holes[bisect_right(holes, before) :] if at.epoch == before.epoch]
    assert gap or not left_out, f"{left_out} are missing at the end, and no gap was told"
    assert reader.refused <= {("unavailable", "not_delivered")}
    return len(seen), reader.got.count(None)


async def finish(place: Place, publishers: list[Publisher], readers: list[Reader]) -> None:
    """Wait until all has been handed to every subscriber."""
    for gateway in place.gateways:
        await gateway.within_reach()
    last = await place.gateways[0].publish("end", b"1")
    for gateway in place.gateways:
        await gateway.known(last)
    await until(
        lambda: (
            all(reader.subscriber is not None and not reader.subscriber.behind for reader in readers)
            and not any(gateway.delivery.aside for gateway in place.gateways)
        ),
        "somebody is still behind",
    )


async def crowd(place: Place) -> list[Reader]:
    """Six subscribers, two at each gateway, one by name and one by a pattern. Each knows where the topic was."""
    before = await place.gateways[0].publish(TOPIC, b'"before"')
    for gateway in place.gateways:
        await gateway.known(before)
    readers = [Reader(place, gateway, pattern) for gateway in place.gateways for pattern in (TOPIC, "t.>")]
    for reader in readers:
        await reader.join()
    return readers


async def test_messages_of_three_publishers_are_heard_everywhere_once_in_the_same_order(sized: Sized) -> None:
    count = sized(1000, 33_334)
    async with three(count=100) as place:
        readers = await crowd(place)
        publishers = [Publisher(gateway, number, count) for number, gateway in enumerate(place.gateways)]
        began = time.perf_counter()
        await asyncio.gather(*(publisher.run() for publisher in publishers))
        await finish(place, publishers, readers)
        print(f"{3 * count} messages in {time.perf_counter() - began:.1f} s")
        for reader in readers:
            assert reader.got == readers[0].got
            assert verdict(reader, published(publishers, readers)) == (3 * count, 0)
        assert all(publisher.refused == 0 and not publisher.unknown for publisher in publishers)


@pytest.mark.parametrize("all_is_kept", [True, False])
async def test_cuts_and_restarts_leave_no_message_out_in_silence(sized: Sized, all_is_kept: bool) -> None:
    """Cuts of subscribers, cuts between gateways and NATS, and restarts of NATS, all at any time."""
    count, chance = sized(2000, 33_334), random.Random(7)
    kept = 1_000_000 if all_is_kept else sized(20, 200)
    async with three(count=kept, octets=1 << 28) as place:
        readers = await crowd(place)
        pause = sized(60, 10) / 1000
        publishers = [Publisher(gateway, number, count, pause) for number, gateway in enumerate(place.gateways)]
        publishing = asyncio.gather(*(publisher.run() for publisher in publishers))
        harm = ["subscriber"] * sized(10, 50) + ["nats"] * sized(4, 20)
        chance.shuffle(harm)
        for where in (len(harm) // 3, 2 * len(harm) // 3):
            harm.insert(where, "restart")
        for what in harm:
            await asyncio.sleep(chance.random() * 0.1)
            if what == "subscriber":
                await asyncio.wait_for(chance.choice(readers).cut(chance), 60)
            elif what == "nats":
                chance.choice(place.proxies).cut(chance.choice(("fin", "reset")))
            elif chance.random() < 0.5:
                await place.server.restart()
            else:
                place.server.kill()
                await place.server.start()
        await asyncio.wait_for(publishing, 240)
        await finish(place, publishers, readers)
        found = [verdict(reader, published(publishers, readers)) for reader in readers]
        unknown, refused = (sum(map(of, publishers)) for of in (lambda one: len(one.unknown), lambda one: one.refused))
        print(f"messages and gaps: {found}; unknown {unknown}, refused and sent again {refused}")
        if all_is_kept:
            assert {gaps for _, gaps in found} == {0}
            assert len({number for number, _ in found}) == 1


@pytest.mark.parametrize("storage", ["file", "memory"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_nats_is_away_and_all_is_well_soon_after_its_return(sized: Sized, storage: str, how: str) -> None:
    away = sized(3, 10)
    async with three(storage=storage, count=10_000) as place:
        readers = await crowd(place)
        publishers = [Publisher(gateway, number, 50) for number, gateway in enumerate(place.gateways)]
        await asyncio.gather(*(publisher.run() for publisher in publishers))
        epoch = place.gateways[0].replica.epoch
        before = [list(reader.got) for reader in readers]
        if how == "stopped":
            place.server.pause()
        else:
            place.server.kill()
        pending = [gateway.events.publish(TOPIC, b"999") for gateway in place.gateways if gateway.stream.available]
        for publishing in pending:
            with suppress(Refusal):
                await publishing
                raise AssertionError("nobody has acknowledged it")
        for gateway in place.gateways:
            await until(lambda gateway=gateway: not gateway.stream.available, "it has not noticed")  # type: ignore[misc]
            with pytest.raises(Refusal) as refusal:
                gateway.events.publish(TOPIC, b"1000")
            assert (refusal.value.error.code, refusal.value.data["outcome"]) == (-32012, "not_delivered")
        await asyncio.sleep(away - 2)
        assert [reader.got for reader in readers] == before, "live events stop"
        began = time.monotonic()
        if how == "stopped":
            place.server.resume()
        else:
            await place.server.start()
        for gateway in place.gateways:
            await gateway.within_reach()
        print(f"within reach {time.monotonic() - began:.2f} s after the return")
        late = [Publisher(gateway, 3000 + number, 1010) for number, gateway in enumerate(place.gateways)]
        await asyncio.gather(*(publisher.run() for publisher in late))
        await finish(place, late, readers)
        anew = place.gateways[0].replica.epoch != epoch
        assert anew is (storage == "memory" and how == "killed")
        for reader, old in zip(readers, before, strict=True):
            new = reader.got[len(old) :]
            assert (None in new) is anew, "a gap is told if there is another stream, and not otherwise"
            numbers = [item[1] for item in new if item is not None]
            assert 1000 not in numbers
            assert [number for number in numbers if number != 999] == [
                number for _, number in sorted((at, number) for one in late for number, at in one.done.items())
            ]
