"""Events over real gateways: subscribers that stall, that stop reading, and that are cut and come back."""

import asyncio
import json
import random
import zlib
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import pytest

from gateway.cluster.stream import Position
from tests.support.fleet import forget_peak, peak, request, until
from tests.support.patience import Sized
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess, StartGateway

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("reset", [False, True])
async def test_what_a_subscriber_was_sent_is_counted_to_the_byte(gateway: StartGateway, reset: bool) -> None:
    """Events pass the outbox, and are counted later: when somebody asks, and at the latest with the end."""
    where = await gateway()
    subscriber = await RawPeer.open(where)
    sizes: list[int] = []

    async def read() -> dict[str, Any]:
        payload = (await subscriber.recv_frame()).payload
        sizes.append(len(frame(Opcode.TEXT, payload, mask=False)))
        decoded: dict[str, Any] = json.loads(payload)
        return decoded

    with subscriber, await RawPeer.open(where) as publisher:
        await publisher.welcome()
        conn_id = (await read())["params"]["connId"]
        await request(subscriber, "event.subscribe", topics=["a", "b.*"])
        await read()
        for number, topic in enumerate(("a", "b.c", "a", "a", "b.d", "b.c", "nobody's")):
            await request(publisher, "event.publish", topic=topic, data="x" * number * 50)
            await publisher.recv_json()
            if topic != "nobody's":
                await read()
        await request(publisher, "connection.get", connId=conn_id)
        told = (await publisher.recv_json())["result"]
        assert (told["messagesOut"], told["bytesOut"]) == (len(sizes), sum(sizes))
        await request(publisher, "event.publish", topic="a", data=None)
        await read()
        if reset:
            subscriber.rst()
        else:
            await subscriber.send_close()
            sizes.append(4)  # the close frame, which is no message
        line = await where.wait_event("connection.closed", remote=subscriber.local)
        assert (line["messagesOut"], line["bytesOut"]) == (9, sum(sizes))


# Subscribers that do not read


CONFLATED = {"events": {"conflate": ["pos.>"]}}


async def published(peer: RawPeer, topic: str, count: int, size: int) -> None:
    """Publish so many messages, and wait until the last one is."""
    for number in range(count):
        data = {"n": number, "pad": "x" * size}
        last = {"id": "last"} if number == count - 1 else {}
        params = {"topic": topic, "data": data}
        await peer.send_json({"jsonrpc": "2.0", **last, "method": "event.publish", "params": params})
    assert (await peer.recv_json())["result"]["offset"] == count


async def joined(
    where: GatewayProcess, topic: str, since: Position | None = None, **options: Any
) -> tuple[RawPeer, Any]:
    """Connect and subscribe; returns the peer, and what was replied about the topic."""
    peer = await RawPeer.open(where, **options)
    await peer.welcome()
    params: dict[str, Any] = {"topics": [topic]}
    if since is not None:
        params["since"] = {topic: {"epoch": since.epoch, "offset": since.offset}}
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "event.subscribe", "params": params})
    return peer, (await peer.recv_json())["result"]["topics"][topic]


async def test_a_subscriber_that_stalls_gets_the_last_value_in_the_end(gateway: StartGateway) -> None:
    where = await gateway(CONFLATED)
    subscriber, _ = await joined(where, "pos.a", rcvbuf=16 * KIB)
    with subscriber, await RawPeer.open(where) as publisher:
        await publisher.welcome()
        await published(publisher, "pos.a", 300, 60_000)  # 18 MB, and it has read nothing
        assert not where.events("connection.closed")
        got = [0]
        while got[-1] < 300:
            got.append((await subscriber.recv_json())["params"]["offset"])
        assert got == sorted(set(got))
        assert len(got) < 250, "what it could not take was replaced"
        await request(publisher, "event.publish", topic="pos.a", data=None)
        assert (await subscriber.recv_json())["params"]["offset"] == 301


async def test_a_batch_that_takes_its_time_does_not_make_the_gateway_grow(gateway: StartGateway) -> None:
    """What waits behind its reply is bounded, as all that waits for a peer."""
    where = await gateway({"limits": {"max_outbox_bytes": 2 * MIB}, "events": {"history_count": 2}})
    with ExitStack() as stack:
        subscriber, node, publisher = [stack.enter_context(await RawPeer.open(where)) for _ in range(3)]
        for peer in (subscriber, node, publisher):
            await peer.welcome()
        await request(node, "node.register", name="pi", methods=[{"name": "x.y"}])
        assert "result" in await node.recv_json()
        parts = {"event.subscribe": {"topics": ["a"]}, "x.y": {}}
        await subscriber.send_json(
            [{"jsonrpc": "2.0", "id": name, "method": name, "params": params} for name, params in parts.items()]
        )
        assert (await node.recv_json())["method"] == "x.y", "it is never answered"
        before = forget_peak(where)
        await published(publisher, "a", 100, 500_000)
        grown = peak(where) - before
    assert grown < 25 * MIB, f"{grown / MIB:.1f} MiB of 48 were kept"


BOUND = 128 * KIB
ROUNDS, SIZE = 40, 16 * KIB


async def test_of_many_subscribers_ten_stop_reading_and_the_others_get_all(gateway: StartGateway, sized: Sized) -> None:
    count = sized(100, 990)
    limits = {"max_message_bytes": BOUND // 2, "max_outbox_bytes": BOUND, "outbox_timeout": 0.5}
    where = await gateway({"limits": limits})
    with ExitStack() as stack:
        deaf = [stack.enter_context((await joined(where, "a", rcvbuf=4 * KIB))[0]) for _ in range(10)]
        for peer in deaf:
            # The kernel holds megabytes for who does not read: this fills them without the others.
            await request(peer, "event.subscribe", topics=["filler"])
            assert "result" in await peer.recv_json()
            peer.stop_reading()
        streams = [Stream(stack.enter_context((await joined(where, "a"))[0])) for _ in range(count)]
        readers = [asyncio.create_task(stream.read()) for stream in streams]
        publisher = stack.enter_context(await RawPeer.open(where))
        await publisher.welcome()
        before = forget_peak(where)
        sent = 0

        def all_have_more_than(size: int) -> bool:
            return min(stream.size for stream in streams) > size

        for number in range(10, 10 + ROUNDS):
            data = str(number) * (SIZE // 2)
            sent += SIZE
            for topic, size in (("a", SIZE), ("filler", BOUND // 4), ("filler", BOUND // 4), ("filler", BOUND // 4)):
                await request(publisher, "event.publish", topic=topic, data=(data * 2)[:size])
                assert "result" in await publisher.recv_json()
            # The ten fall behind; the others do not, however busy this machine is.
            await until(partial(all_have_more_than, sent), "somebody waits")
        await until(lambda: len({stream.digest for stream in streams}) == 1, "not everybody has the same")
        grown = peak(where) - before
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for peer in deaf:
            peer.read_on()
            told = {message["method"] for message in [await peer.recv_json() for _ in range(5)]}
            assert told <= {"event.message", "event.gap"}, "it is not cut, and reads on"
    assert not where.events("connection.closed", cause="slow_consumer")
    # Every message for everybody would be 16 MiB and more for each hundred.
    every = ROUNDS * SIZE * (count + 10)
    assert grown < 16 * MIB + every / 8, f"{grown / MIB:.1f} MiB; every message for everybody is {every / MIB:.0f}"


class Stream:
    """A peer that reads all that comes, and remembers how much and what it was."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.size = 0
        self.digest = 0

    async def read(self) -> None:
        """Read for ever."""
        while data := await self.peer.wire.recv():
            self.size += len(data)
            self.digest = zlib.crc32(data, self.digest)


# A subscriber that is cut again and again


class Cuts(NamedTuple):
    """How often, while how much is published, with how much kept."""

    messages: int
    cuts: int
    kept: int


CHUNK = 50


class Resuming:
    """A subscriber that is cut at random, comes back with `since`, and checks every message that it gets."""

    def __init__(self, where: GatewayProcess, plan: Cuts, chance: random.Random) -> None:
        self._where = where
        self._plan = plan
        self._chance = chance
        self.cuts = 0
        self.last = Position("", 0)
        self.gaps: list[tuple[int, int]] = []
        """Offsets between which messages were gone, as it was told."""
        self.got = 0

    async def run(self, subscribed: asyncio.Event) -> None:
        """Until it has been cut often enough, and has the last message."""
        peer, place = await joined(self._where, "a")
        self.last = Position(place["epoch"], place["offset"])
        subscribed.set()
        often = self._plan.messages // self._plan.cuts
        while self.cuts < self._plan.cuts:
            with peer:
                await self._read(peer, self.last.offset + self._chance.randrange(2 * often))
                peer.rst()
            self.cuts += 1
            peer, place = await joined(self._where, "a", self.last)
            self._resumed(place)
        with peer:
            await self._read(peer, self._plan.messages)

    def _resumed(self, place: dict[str, Any]) -> None:
        """What is told is true: all is there, or messages are gone."""
        assert place["epoch"] == self.last.epoch
        missed = place["offset"] - self.last.offset
        assert place["recovered"] == (missed <= self._plan.kept), (missed, place)
        if not place["recovered"]:
            self.gaps.append((self.last.offset, place["offset"]))
            self.last = Position(self.last.epoch, place["offset"])

    def is_due(self, published: int) -> bool:
        """Whether it was cut about as often as is due after so many messages, or waits for more of them."""
        due = published * self._plan.cuts // self._plan.messages
        return self.cuts >= due - 3 or self.last.offset >= published

    async def _read(self, peer: RawPeer, end: int) -> None:
        """Read up to an offset."""
        while self.last.offset < min(end, self._plan.messages):
            params = (await peer.recv_json())["params"]
            assert params["offset"] == self.last.offset + 1 == params["data"], "in order, and each once"
            assert params["epoch"] == self.last.epoch
            self.last = Position(self.last.epoch, params["offset"])
            self.got += 1


async def publish_beside(where: GatewayProcess, plan: Cuts, subscriber: Resuming) -> None:
    """Publish in the background, no faster than the cuts come, so that each comes while messages do."""
    with await RawPeer.open(where) as peer:
        await peer.welcome()
        for begin in range(1, plan.messages + 1, CHUNK):
            await until(partial(subscriber.is_due, begin - 1), "no cuts")
            messages = [
                {"jsonrpc": "2.0", "method": "event.publish", "params": {"topic": "a", "data": number}}
                for number in range(begin, begin + CHUNK)
            ]
            await peer.send_raw(b"".join(frame(Opcode.TEXT, json.dumps(one).encode()) for one in messages))
            await asyncio.sleep(0)


async def cut_at_random(where: GatewayProcess, plan: Cuts) -> Resuming:
    """Both at once; returns the subscriber."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    subscriber = Resuming(where, plan, random.Random(seed))
    async with asyncio.TaskGroup() as group:
        group.create_task(subscriber.run(subscribed := asyncio.Event()))
        await subscribed.wait()
        group.create_task(publish_beside(where, plan, subscriber))
    assert subscriber.cuts == plan.cuts
    assert subscriber.last.offset == plan.messages
    return subscriber


async def test_a_subscriber_that_is_cut_again_and_again_has_every_message_once(
    gateway: StartGateway, sized: Sized
) -> None:
    messages = sized(5_000, 50_000)
    plan = Cuts(messages=messages, cuts=messages // 250, kept=messages)
    subscriber = await cut_at_random(await gateway({"events": {"history_count": plan.kept}}), plan)
    assert (subscriber.got, subscriber.gaps) == (plan.messages, [])


async def test_a_subscriber_that_misses_too_much_is_told_so(gateway: StartGateway, sized: Sized) -> None:
    messages = sized(2_000, 10_000)
    plan = Cuts(messages=messages, cuts=messages // 200, kept=40)
    subscriber = await cut_at_random(await gateway({"events": {"history_count": plan.kept}}), plan)
    print(len(subscriber.gaps), "gaps")
    gone = sum(end - begin for begin, end in subscriber.gaps)
    assert subscriber.got + gone == plan.messages
