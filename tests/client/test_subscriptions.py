"""Subscriptions: what meets what, a slow reader, places to begin at, several at once, and their end."""

import asyncio
import contextlib
import itertools
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec import Raw

from gateway.client import CallError, Client, ConnectionLost, Event, Gap, Subscription, connect
from gateway.client.sending.pending import OnReply
from gateway.client.sending.session import Session
from gateway.client.subscriptions import MAX_POSITIONS, MAX_SINCE
from gateway.events.topics import meets
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess, StartGateway
from tests.support.scripted_gateway import Peer, scripted

pytestmark = pytest.mark.apart

PATTERNS = ("a", "a.b", "a.*", "*.b", "*", ">", "a.>", "*.*", "gateway.>", "gateway.node.*", "gateway")
TOPICS = ("a", "a.b", "a.b.c", "b", "c.b", "gateway.draining", "gateway.node.online", "gateways.x", "gateway")


def to(process: GatewayProcess) -> Client:
    return connect(process.url("/ws", websocket=True))


async def _never(subscription: Subscription) -> None:
    raise AssertionError


async def test_it_meets_what_the_gateway_sends() -> None:
    for pattern in PATTERNS:
        subscription = Subscription((pattern,), None, 1, _never, lambda _: None)
        for topic in TOPICS:
            assert subscription.meets(topic) is meets(pattern, topic), (pattern, topic)


@pytest.mark.parametrize("since", [{"a": {"epoch": "x"}}, {"a": 7}, {"a": {"epoch": 1, "offset": 1}}])
async def test_a_place_has_an_epoch_and_an_offset(since: Any) -> None:
    with pytest.raises(ValueError, match="epoch and an offset"):
        Subscription(("a",), since, 1, _never, lambda _: None)
    with pytest.raises(ValueError, match="one topic"):
        Subscription((), None, 1, _never, lambda _: None)


async def take(subscription: Subscription, count: int) -> list[Any]:
    """The data of the next events, and the topics of gaps."""
    items = aiter(subscription)
    async with asyncio.timeout(WAIT):
        taken = [await anext(items) for _ in range(count)]
    return [item.data if isinstance(item, Event) else f"gap in {item.topic}" for item in taken]


async def test_from_a_place_on_and_only_once(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client, to(process) as publisher:
        async with client.subscribe("a.b") as first:
            places = [await publisher.publish("a.b", number) for number in range(3)]
            event = await anext(aiter(first))
            assert isinstance(event, Event)
            assert (event.topic, event.offset, event.data) == ("a.b", places[0]["offset"], 0)
            assert event.time.tzinfo is not None
            # The same messages come once more over the same connection; the first one has had them.
            async with client.subscribe("a.*", since={"a.b": event}) as second:
                assert await take(second, 2) == [1, 2]
                await publisher.publish("a.b", 3)
                assert await take(second, 1) == [3]
            await publisher.publish("a.b", 4)
            assert await take(first, 4) == [1, 2, 3, 4]
        place = {"epoch": "another", "offset": 1}
        async with client.subscribe("a.b", since={"a.b": place, "of.nobody": place}) as lost:
            assert await take(lost, 1) == ["gap in a.b"]


async def test_a_slow_reader_is_told_what_it_has_missed(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client, client.subscribe("a.*", buffer=2) as events:
        for number in range(5):
            await client.publish("a.b", number)
        await until(lambda: events.waiting == 2, "they did not come")
        assert await take(events, 3) == ["gap in a.b", 3, 4]


class _Instant:
    """A connection whose gateway takes every subscription at once."""

    async def request(self, method: str, params: Any, *, on_reply: OnReply, of_link: bool) -> None:
        on_reply({"topics": {}})


class Publisher:
    """Publishes in many topics in turn, and checks what the reader is told: nothing is lost without a gap."""

    def __init__(self, topics: int, buffer: int) -> None:
        self.subscription = Subscription(("a.*",), None, buffer, self._begin, lambda _: None)
        self._topics = topics
        self._count = 0
        self._seen: dict[str, int] = {}
        self._unseen = 0
        self.events = self.gaps = 0

    async def _begin(self, subscription: Subscription) -> None:
        await subscription.join(cast(Session, _Instant()))

    def publish(self, count: int) -> None:
        for _ in range(count):
            offset, number = divmod(self._count, self._topics)
            self._count += 1
            self.subscription.deliver(Event(f"a.{number}", offset, "x", datetime.now(UTC), None))

    def take(self, item: Event | Gap) -> None:
        if isinstance(item, Gap):
            self.gaps += 1
            if item.topic == "a.*":
                self._unseen, self._seen = -1, {}
            self._seen[item.topic] = -1
            return
        self.events += 1
        expected = self._seen.get(item.topic, self._unseen)
        assert expected in (-1, item.offset), f"{item.offset} and not {expected} in {item.topic}, and no gap"
        self._seen[item.topic] = item.offset + 1


@pytest.mark.parametrize(("topics", "buffer"), [(1, 100), (1, 1), (30, 100), (1000, 100), (7, 2), (5000, 10)])
async def test_a_reader_that_is_always_too_slow_gets_events_and_not_only_gaps(topics: int, buffer: int) -> None:
    publisher = Publisher(topics, buffer)
    reads = 2 * MAX_POSITIONS
    async with publisher.subscription as subscription:
        publisher.publish(buffer)
        items = aiter(subscription)
        for _ in range(reads):
            publisher.take(await anext(items))
            publisher.publish(3)
        assert publisher.events >= reads / 3
        if topics == 1 and buffer == 100:
            # One gap, then half a buffer of what has been kept, less what was dropped meanwhile.
            assert publisher.gaps <= publisher.events / 20
        subscription.close()
        async for item in subscription:
            publisher.take(item)
    if topics == 1:
        assert subscription.waiting == 0


async def test_so_it_does_from_a_real_gateway(gateway: StartGateway) -> None:
    process, told = await gateway(), []
    async with to(process) as client, to(process) as publisher, client.subscribe("a.b", buffer=20) as events:
        reader = aiter(events)
        for number in range(0, 240, 3):
            for more in range(3):
                await publisher.publish("a.b", number + more)
            told.append(await anext(reader))
        while not isinstance(told[-1], Event) or told[-1].data != 239:
            told.append(await anext(reader))
    numbers = [item.data if isinstance(item, Event) else None for item in told]
    assert numbers.count(None) <= len(numbers) / 4
    for before, after in itertools.pairwise(numbers):
        assert before is None or after is None or after == before + 1, "lost without a gap"


async def test_a_reader_that_leaves_after_a_gap_comes_back_to_the_event() -> None:
    publisher = Publisher(1, 2)
    async with publisher.subscription as subscription:
        publisher.publish(5)
        assert await take(subscription, 1) == ["gap in a.0"]
        assert subscription.waiting == 2
        async for item in subscription:
            assert isinstance(item, Event)
            assert item.offset == 3
            break


async def test_leaving_the_loop_ends_it_and_leaves_the_others_what_they_need(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client, client.subscribe("a.b") as stays:
        publishing = asyncio.create_task(_publish(client))
        async for event in client.subscribe("a.b", "a.c"):
            assert isinstance(event, Event)
            break
        publishing.cancel()
        await asyncio.wait([publishing])
        for _ in range(2):
            left = await client.call("event.unsubscribe", {"topics": ["none"]})
        assert left == {"topics": ["a.b"]}
        assert isinstance((await take(stays, 1))[0], int)


async def _publish(client: Client) -> None:
    for number in range(1000):
        await client.publish("a.b", number)
        await asyncio.sleep(0.01)


async def test_it_is_used_once_and_a_refusal_is_raised(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client:
        async with client.subscribe("a.b") as events:
            with pytest.raises(RuntimeError, match="once"):
                await events.__aenter__()
        with pytest.raises(CallError) as failed:
            async for _ in client.subscribe("a..b"):
                pass
        assert failed.value.name == "invalid_params"


async def test_it_stops_with_the_client_and_raises_where_the_gateway_ends_it(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client:
        events = aiter(client.subscribe("a.b"))
        waiting = asyncio.ensure_future(anext(events, "stopped"))
        await until(lambda: process.events("connection.opened") != [], "it did not open")
        await client.call("gateway.ping")
    assert await waiting == "stopped"
    async with to(process) as client, to(process) as operator, client.subscribe("a.b") as others:
        await operator.call("connection.close", {"connId": client.welcome["connId"]})
        with pytest.raises(ConnectionLost, match="4501"):
            await take(others, 1)


async def test_an_own_topic_begins_anew_and_a_refusal_ends_it() -> None:
    refused = {"code": -32003, "message": "no", "data": {"code": "forbidden", "temporary": False}}

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.answer(await peer.request(), {"topics": {"a": {"epoch": "x", "offset": 1}}})
        await peer.close(4000)

    async def busy(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.request()
        assert request["params"]["since"] == {"a": {"epoch": "x", "offset": 1}}
        await peer.refuse(request, -32009, "overloaded", retryAfterMs=10)
        request = await peer.request()
        await peer.ws.send_json({"jsonrpc": "2.0", "id": request["id"], "error": refused})
        await peer.stay()

    async with scripted(first, busy) as gateway, connect(gateway.url) as client:
        async with client.subscribe("a") as events:
            with pytest.raises(CallError) as failed:
                await take(events, 1)
        assert failed.value.name == "forbidden"


async def test_what_it_remembers_is_bounded() -> None:
    asked: list[int] = []

    async def first(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=1 << 20)
        topics = {f"a.{number}": {"epoch": "x" * 16, "offset": 1} for number in range(MAX_POSITIONS + 10)}
        await peer.answer(await peer.request(), {"topics": topics})
        await peer.close(4000)

    async def second(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=1 << 20)
        for _ in range(MAX_POSITIONS // MAX_SINCE):
            request = await peer.request()
            asked.append(len(request["params"]["since"]))
            await peer.answer(request, {"topics": {}})
        await peer.stay()

    async with (
        scripted(first, second) as gateway,
        connect(gateway.url) as client,
        client.subscribe("a.*", buffer=MAX_POSITIONS) as events,
    ):
        assert len(set(await take(events, MAX_POSITIONS))) == MAX_POSITIONS, "a gap in each topic"
    assert asked == [MAX_SINCE] * (MAX_POSITIONS // MAX_SINCE)


async def test_it_resumes_in_many_topics_with_several_requests_and_gets_each_message_once() -> None:
    count = MAX_SINCE + 1

    def states(offset: int, since: Any) -> dict[str, Any]:
        names = [f"a.{number}" for number in range(count)]
        return {
            name: {"epoch": "x", "offset": offset, **({"recovered": True} if name in since else {})} for name in names
        }

    async def first(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=1 << 20)
        await peer.answer(await peer.request(), {"topics": states(1, {})})
        await peer.close(4000)

    async def second(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=1 << 20)
        for _ in range(2):
            request = await peer.request()
            since = request["params"]["since"]
            assert all(place == {"epoch": "x", "offset": 1} for place in since.values())
            await peer.answer(request, {"topics": states(2, since)})
            for topic in since:
                params = {"topic": topic, "offset": 2, "epoch": "x", "time": "2026-01-01T00:00:00Z", "data": topic}
                await peer.notify("event.message", **params)
        await peer.stay()

    async with (
        scripted(first, second) as gateway,
        connect(gateway.url) as client,
        client.subscribe("a.*", buffer=2 * count) as events,
    ):
        assert sorted(await take(events, count)) == sorted(states(1, {}))


def test_a_gap_names_its_topic() -> None:
    assert Gap("a.b").topic == "a.b"


async def test_a_gap_that_the_gateway_tells_is_passed_on_once_and_in_its_place() -> None:
    def at(offset: int) -> dict[str, object]:
        return {"topic": "a.b", "epoch": "x", "offset": offset}

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.answer(await peer.request(), {"topics": {"a.b": {"epoch": "x", "offset": 0}}})
        await peer.notify("event.message", **at(1), time="2026-01-01T00:00:00Z", data="first")
        for offset in (7, 7, 1):
            await peer.notify("event.gap", **at(offset))
        await peer.notify("event.gap", topic="other", epoch="x", offset=9)
        await peer.notify("event.message", **at(8), time="2026-01-01T00:00:00Z", data="last")
        await peer.stay()

    async with (
        scripted(script) as gateway,
        connect(gateway.url) as client,
        client.subscribe("a.*") as events,
    ):
        assert await take(events, 3) == ["first", "gap in a.b", "last"]


async def test_a_gap_in_a_pattern_is_passed_on_and_is_no_position_to_come_back_from() -> None:
    """Gateways of a cluster cannot always tell which topics have lost messages."""

    async def first(peer: Peer) -> None:
        await second(peer)
        await peer.close(4000)

    async def second(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.request()
        assert not asked["params"]["since"]
        await peer.answer(asked, {"topics": {}})
        for topic in ("a.*", "b.>", "a.*"):
            await peer.notify("event.gap", topic=topic, epoch="x", offset=7)

    async def last(peer: Peer) -> None:
        await second(peer)
        await peer.stay()

    async with (
        scripted(first, last) as gateway,
        connect(gateway.url) as client,
        client.subscribe("a.*") as events,
    ):
        assert await take(events, 4) == ["gap in a.*"] * 4


async def heard(subscription: Subscription, client: Client, data: str) -> None:
    """What is published now comes at once: a subscription that says that it is active hears."""
    await client.publish("a.b", data)
    assert await take(subscription, 1) == [data]


async def test_a_subscription_that_begins_where_another_has_just_ended_hears(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client, to(process) as publisher:
        for number in range(10):
            async with client.subscribe("a.b", "a.c") as events:
                await heard(events, publisher, f"first {number}")
            async with client.subscribe("a.b") as events:
                await heard(events, publisher, f"second {number}")


async def test_a_reading_task_that_is_cancelled_and_started_again_hears(gateway: StartGateway) -> None:
    process = await gateway()
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def read(client: Client) -> None:
        async for event in client.subscribe("a.b"):
            assert isinstance(event, Event)
            got.put_nowait(event.data)

    async with to(process) as client, to(process) as publisher:
        reading = asyncio.create_task(read(client))
        for number in range(10):
            await client.call("gateway.ping")
            reading.cancel()
            reading = asyncio.create_task(read(client))
            await asyncio.sleep(0)  # it has asked for the topic; what comes now comes after that
            await client.call("gateway.ping")
            await publisher.publish("a.b", number)
            assert await asyncio.wait_for(got.get(), WAIT) == number


async def test_topics_that_are_too_many_for_one_message_cost_nothing_else(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"max_message_bytes": 10_000, "max_outbox_bytes": 100_000}})
    async with to(process) as client, client.subscribe("a.b") as events:
        conn_id = client.welcome["connId"]
        with pytest.raises(CallError, match="the gateway takes 10000") as failed:
            await client.subscribe(*(f"long.{'x' * 100}.{number}" for number in range(200))).__aenter__()
        assert (failed.value.name, failed.value.outcome) == ("invalid_request", "not_delivered")
        await heard(events, client, "still there")
        assert client.welcome["connId"] == conn_id


async def test_it_resumes_with_no_more_positions_than_a_message_has_room_for() -> None:
    topics = {f"a.{'x' * 90}.{number}": {"epoch": "e", "offset": 1} for number in range(100)}
    asked: list[set[str]] = []

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.answer(await peer.request(), {"topics": topics})
        await peer.close(4000)

    async def second(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=4000)
        while sum(map(len, asked)) < len(topics):
            request = await peer.request()
            assert len(json.dumps(request, separators=(",", ":"))) <= 4000
            asked.append(set(request["params"]["since"]))
            await peer.answer(request, {"topics": {one: {**topics[one], "recovered": True} for one in asked[-1]}})
        resumed.set()
        await peer.answer(await peer.request(), None)
        await peer.stay()

    resumed = asyncio.Event()

    async with scripted(first, second) as gateway, connect(gateway.url) as client, client.subscribe("a.>") as events:
        await asyncio.wait_for(resumed.wait(), WAIT)
        await client.call("x.y", timeout=WAIT)
        assert events.waiting == 0
    assert set.union(*asked) == set(topics)
    assert len(asked) > 2


async def test_an_event_that_is_nested_as_deeply_as_the_gateway_bears_costs_nothing(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as client, client.subscribe("a.b") as events:
        for levels in range(930, 1000):
            deep = Raw(b"[" * levels + b"]" * levels)
            with contextlib.suppress(CallError, RecursionError):
                await client.publish("a.b", deep, timeout=0.5)
        await client.publish("a.b", "last")
        async for event in events:
            assert isinstance(event, Event)
            if event.data == "last":
                break
