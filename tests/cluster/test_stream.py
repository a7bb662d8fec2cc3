"""What any stream does, a gateway's own in memory and the one that gateways share by NATS; and a message's text."""

import inspect
import itertools
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from gateway.cluster.memory import MemoryStream
from gateway.cluster.stream import Position, Stream, gap, message
from tests.support.fleet import until
from tests.support.listening import Listening, data_of, place_of
from tests.support.nats import NatsServer
from tests.support.stations import Station

TIME = "1970-01-01T00:00:01.999Z"


class Stage:
    """A stream that keeps three messages of a topic, and who listens."""

    def __init__(self, stream: Stream[Position | Awaitable[Position]], listener: Listening) -> None:
        self.stream = stream
        self.listener = listener

    async def publish(self, topic: str, *data: bytes, owner: str = "") -> list[Position]:
        """Publish one message after the other. Returns their positions, when all have been handed over."""
        before = len(self.listener.heard)
        positions = []
        for one in data:
            published = self.stream.publish(topic, one, owner)
            positions.append(await published if inspect.isawaitable(published) else published)
        await until(lambda: len(self.listener.heard) == before + len(data), "it is not handed over")
        return positions

    def since(self, topic: str, position: Position, most: int = 100) -> list[bytes] | None:
        """The data of what is kept after a position."""
        found = self.stream.since(topic, position, most)
        if found is not None:
            assert [offset for offset, _ in found] == [place_of(text).offset for _, text in found]
        return None if found is None else [data_of(text) for _, text in found]


@asynccontextmanager
async def in_memory() -> AsyncIterator[Stage]:
    epochs = itertools.count(1)
    stream = MemoryStream(lambda: 0.0, lambda: TIME, lambda: f"e{next(epochs)}", count=3, age=60.0, octets=1 << 20)
    listener = Listening()
    await stream.connect(listener)
    yield Stage(stream, listener)


@asynccontextmanager
async def at_nats() -> AsyncIterator[Stage]:
    async with NatsServer(jetstream=True) as server, Station(server.url, count=3) as station:
        yield Stage(station.stream, station.listener)


@pytest.fixture(params=[in_memory, at_nats], ids=["memory", "nats"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with request.param() as stage:
        yield stage


async def test_a_message_is_handed_over_with_its_position_and_its_data_byte_for_byte(stage: Stage) -> None:
    data = b'{"n": 1e400, "t":"\\u00e9"}'
    (position,) = await stage.publish("a.b", data)
    ((topic, _, text),) = stage.listener.heard
    assert (topic, place_of(text), data_of(text)) == ("a.b", position, data)
    told = json.loads(text)
    assert (told["method"], told["params"]["topic"]) == ("event.message", "a.b")
    assert len(told["params"]["time"]) == len(TIME)


async def test_messages_of_a_topic_are_handed_over_in_order_each_after_the_one_before(stage: Stage) -> None:
    positions: dict[str, list[Position]] = {}
    for number in range(30):
        topic = f"t.{number % 3}"
        positions.setdefault(topic, []).extend(await stage.publish(topic, b"%d" % number))
    assert [int(data_of(text)) for *_, text in stage.listener.heard] == list(range(30))
    for topic, told in positions.items():
        mine = [(before, place_of(text)) for name, before, text in stage.listener.heard if name == topic]
        assert [at for _, at in mine] == told == sorted(set(told))
        assert [before for before, _ in mine][1:] == told[:-1]
        assert stage.stream.position(topic) == told[-1]


async def test_all_that_was_missed_is_there_as_far_as_it_is_kept(stage: Stage) -> None:
    at = await stage.publish("a", b"1")
    at += await stage.publish("b", b"x")
    at += await stage.publish("a", b"2", b"3", b"4", b"5")
    one, _, two, three, four, five = at
    found = [stage.since("a", position) for position in (one, two, three, four, five)]
    assert found == [None, [b"3", b"4", b"5"], [b"4", b"5"], [b"5"], []]
    assert stage.since("a", two, 2) == [b"3", b"4"]
    assert stage.stream.oldest("a") == two
    assert stage.since("a", Position(one.epoch, 0)) is None
    assert stage.since("a", Position("another", five.offset)) is None
    assert stage.since("a", Position(five.epoch, five.offset + 1)) is None, "it was never told of such a message"


async def test_asking_where_a_topic_is_begins_none_and_its_first_message_follows(stage: Stage) -> None:
    told = stage.stream.position("a")
    assert stage.stream.position("a") == stage.stream.oldest("a") == told
    assert stage.since("a", told) == [], "nothing was missed"
    assert stage.stream.expect("b") == told
    await stage.publish("a", b"1")
    assert stage.since("a", told) == [b"1"]
    assert (stage.stream.position("b"), stage.since("b", told)) == (told, [])


async def test_an_expected_topic_begins_where_it_was_expected_whatever_is_forgotten(stage: Stage) -> None:
    told = stage.stream.expect("a")
    await stage.publish("b", b"1")
    stage.stream.forget("b")
    await stage.publish("a", b"2")
    assert stage.since("a", told) == [b"2"]
    assert stage.listener.heard[-1][1] == told


async def test_of_a_topic_that_is_forgotten_nobody_can_say_that_nothing_was_missed(stage: Stage) -> None:
    one, two = await stage.publish("a", b"1", b"2")
    elsewhere = stage.stream.position("c")
    await stage.publish("b", b"3")
    stage.stream.forget("a")
    stage.stream.forget("never there")
    assert stage.since("a", one) is None
    (again,) = await stage.publish("a", b"4")
    assert again not in (one, two)
    assert stage.since("a", one) is None
    assert stage.since("a", elsewhere) is None or elsewhere.offset >= two.offset


async def test_nothing_is_handed_over_after_the_end(stage: Stage) -> None:
    await stage.publish("a", b"1")
    for _ in range(2):
        await stage.stream.close()
    if isinstance(stage.stream, MemoryStream):
        stage.stream.publish("a", b"2")
    assert len(stage.listener.heard) == 1


def test_a_message_is_a_notification_with_its_data_byte_for_byte() -> None:
    text = message("küche.licht", Position("3f0c", 7), "2026-11-23T08:30:12.003Z", b'{"n": 1.50 }')
    assert text.endswith(b'"data":{"n": 1.50 }}}')
    assert json.loads(text) == {
        "jsonrpc": "2.0",
        "method": "event.message",
        "params": {
            "topic": "küche.licht",
            "offset": 7,
            "epoch": "3f0c",
            "time": "2026-11-23T08:30:12.003Z",
            "data": {"n": 1.5},
        },
    }


def test_a_gap_is_a_notification() -> None:
    told = {"topic": "küche.licht", "epoch": "3f0c", "offset": 7}
    assert json.loads(gap("küche.licht", Position("3f0c", 7))) == {
        "jsonrpc": "2.0",
        "method": "event.gap",
        "params": told,
    }
