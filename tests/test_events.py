"""Events: the order of messages, the hold behind a subscription's reply, resuming, and conflation."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.bus.memory import MemoryBus
from gateway.errors import Disconnect
from gateway.events import AT_ONCE, MAX_SUBSCRIPTIONS, OWN_TOPICS, Events, Subscriber
from gateway.method import Refusal
from gateway.scopes import ANONYMOUS, Principal
from gateway.topics import Position, Topics
from tests import sample_methods
from tests.rpc import Caller, connect, notification, serve
from tests.rpc import request as asked

KIB, MIB = 1 << 10, 1 << 20


class Ear:
    """A connection that keeps what it is sent, and reads or does not as the test says."""

    def __init__(self, principal: Principal = ANONYMOUS) -> None:
        self.principal = principal
        self.subscriber: Subscriber | None = None
        self.is_open = True
        self.max_held_bytes = 4096
        self.counted = (0, 0)
        self.sent = 0
        self._stalled = False
        self.ended: Disconnect | None = None
        self.frames: list[bytes] = []

    @property
    def stalled(self) -> bool:
        """As the test says."""
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        if stalled:
            self.place()

    def place(self) -> None:
        """Tell its subscriber that something has changed."""
        assert self.subscriber is not None
        self.subscriber.place()

    def send_frame(self, frame: bytes) -> None:
        """Keep it, and count it."""
        self.sent += 1
        self.frames.append(frame)

    def write(self, frame: bytes) -> None:
        """Keep it."""
        assert self.is_open
        assert not self._stalled
        self.frames.append(frame)

    def count(self, messages: int, octets: int) -> None:
        """Add it up."""
        self.counted = (self.counted[0] + messages, self.counted[1] + octets)

    def end(self, end: Disconnect) -> None:
        """Keep how."""
        self.ended = self.ended or end

    def take(self) -> list[tuple[str, int]]:
        """Topic and offset of each message since this was last asked."""
        frames, self.frames = self.frames, []
        return [(params["topic"], params["offset"]) for params in map(message, frames)]


class Way:
    """The way out, free or not as the test says."""

    def __init__(self, free: bool) -> None:
        self.free = free
        self.asked = 0

    def make_way(self) -> bool:
        """Whether it is free."""
        self.asked += 1
        return self.free


def message(data: bytes) -> dict[str, Any]:
    """The params of the message in a frame."""
    start = {126: 4, 127: 10}.get(data[1], 2)
    decoded = json.loads(data[start:])
    assert (decoded["jsonrpc"], decoded["method"]) == ("2.0", "event.message")
    params: dict[str, Any] = decoded["params"]
    return params


def make(
    *,
    conflate: tuple[str, ...] = (),
    max_topics: int = 100,
    wall: Callable[[], float] = lambda: 0.0,
    way: Way | None = None,
) -> Events:
    epochs = itertools.count(1)
    topics = Topics(
        lambda: 0.0,
        lambda: f"e{next(epochs)}",
        max_topics=max_topics,
        history_count=10,
        history_age=60.0,
        history_bytes=MIB,
        conflate=conflate,
    )
    return Events(topics, MemoryBus(), way or Way(True), wall)


def join(events: Events, ear: Ear, *patterns: str, **since: int) -> dict[str, tuple[Position, bool | None]]:
    """Subscribe, with offsets in the first epoch, and let the reply be behind at once."""
    met, release = events.subscribe(ear, patterns, {name: Position("e1", offset) for name, offset in since.items()})
    release()
    return met


# One process, no sockets


def test_a_message_is_one_frame_for_all() -> None:
    events, ears = make(wall=lambda: 1.9996), [Ear() for _ in range(3)]
    for ear, pattern in zip(ears, ("a.b", "a.*", ">"), strict=True):
        join(events, ear, pattern, "a.>")
    data = b'{"n": 1e400, "t":"\\u00e9"}'
    assert events.publish("a.b", data) == Position("e1", 1)
    (sent,) = ears[0].frames
    assert all(len(ear.frames) == 1 and ear.frames[0] is sent for ear in ears), "once to each, and the very same"
    head = b'"topic":"a.b","offset":1,"epoch":"e1","time":"1970-01-01T00:00:01.999Z","data":'
    assert sent.endswith(b'{"jsonrpc":"2.0","method":"event.message","params":{' + head + data + b"}}")
    assert (events.published, events.delivered) == (1, 3)


@pytest.mark.parametrize("free", [True, False])
def test_topics_have_offsets_of_their_own(free: bool) -> None:
    events, ear = make(way=Way(free)), Ear()
    join(events, ear, ">")
    for name in ("a", "b", "a", "a", "b"):
        events.publish(name, b"0")
    assert ear.take() == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]


@pytest.mark.parametrize("free", [True, False])
def test_the_missed_come_first_then_what_was_held_back(free: bool) -> None:
    events, ear = make(way=Way(free)), Ear()
    for _ in range(3):
        events.publish("a", b"0")
    met, release = events.subscribe(ear, ["a", "b"], {"a": Position("e1", 1)})
    events.publish("a", b"0")
    events.publish("b", b"0")
    assert ear.frames == [], "the reply is not out yet"
    release()
    assert ear.take() == [("a", 2), ("a", 3), ("a", 4), ("b", 1)]
    assert met == {"a": (Position("e1", 3), True), "b": (Position("e2", 0), None)}
    events.publish("a", b"0")
    assert ear.take() == [("a", 5)]


def test_two_subscriptions_before_either_is_answered_keep_the_order() -> None:
    events, ear = make(), Ear()
    events.publish("a", b"0")
    first = events.publish("b", b"0")
    _, release = events.subscribe(ear, ["a"], {"a": Position("e1", 0)})
    _, release_other = events.subscribe(ear, ["b"], {"b": Position(first.epoch, 0)})
    events.publish("b", b"0")
    release()
    release_other()
    assert [place for place in ear.take() if place[0] == "b"] == [("b", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("since", "recovered"),
    [
        (Position("e1", 0), False),
        (Position("e1", 2), True),
        (Position("e1", 12), True),
        (Position("e1", 13), False),
        (Position("another", 12), False),
    ],
)
def test_whether_all_is_there_is_told(since: Position, recovered: bool) -> None:
    events, ear = make(), Ear()
    for _ in range(12):
        events.publish("a", b"0")
    met, release = events.subscribe(ear, ["a"], {"a": since})
    release()
    assert met == {"a": (Position("e1", 12), recovered)}
    assert ear.take() == [("a", offset) for offset in range(since.offset + 1, 13) if recovered]


def test_a_topic_that_is_gone_is_told_to_who_resumes_by_a_pattern() -> None:
    """The gateway is another one, or the topic had to go: silence would look like nothing missed."""
    events, ear = make(), Ear()
    met, release = events.subscribe(ear, ["a.*"], {"a.b": Position("before", 7), "x": Position("before", 7)})
    release()
    assert {name: recovered for name, (_, recovered) in met.items()} == {"a.b": False}


def test_overlapping_patterns_report_and_deliver_a_topic_once() -> None:
    events, ear = make(), Ear()
    events.publish("a", b"0")
    assert list(join(events, ear, "a", "*", ">", a=0)) == ["a"]
    events.publish("a", b"0")
    assert ear.take() == [("a", 1), ("a", 2)]


def test_a_connection_has_so_many_subscriptions_at_most() -> None:
    events, ear = make(max_topics=5000), Ear()
    first = [f"a.{number}" for number in range(MAX_SUBSCRIPTIONS)]
    join(events, ear, *first)
    join(events, ear, *first[:10])
    with pytest.raises(Refusal) as refusal:
        events.subscribe(ear, ["b"], {})
    assert refusal.value.error.name == "overloaded"
    assert len(events.unsubscribe(ear, first[:1])) == MAX_SUBSCRIPTIONS - 1
    join(events, ear, "b")
    events.publish("b", b"0")
    assert ear.take() == [("b", 1)]


def test_where_topics_are_full_nothing_of_a_subscription_stays() -> None:
    events, ear, other = make(max_topics=3), Ear(), Ear()
    join(events, other, "x", "y")
    join(events, ear, "x")
    with pytest.raises(Refusal) as refusal:
        events.subscribe(ear, ["x", "z.*", "a", "b"], {})
    assert (refusal.value.error.name, refusal.value.data) == ("overloaded", {"retryAfterMs": 1000})
    assert events.unsubscribe(ear, []) == ["x"]
    events.publish("x", b"0")
    assert ear.take() == [("x", 1)], "and nothing is held back"
    join(events, other, "z")
    with pytest.raises(Refusal):
        events.publish("new", b"0")


def test_the_gateways_own_topics_begin_with_their_first_subscription() -> None:
    events, ear = make(), Ear()
    events.own("gateway.draining", {"n": 1})
    assert (events.wanted("gateway.draining"), events.published) == (False, 0)
    assert list(join(events, ear, ">", "*.*")) == [], "they have to be asked for"
    assert list(join(events, ear, "gateway.*")) == ["gateway.draining"]
    events.own("gateway.draining", {"n": 2})
    events.own("gateway.node.online", {"n": 3})
    assert ear.take() == [("gateway.draining", 1)]
    assert set(join(events, ear, "gateway.>")) == set(OWN_TOPICS)
    with pytest.raises(Refusal) as refusal:
        events.subscribe(ear, ["gateway.nothing"], {})
    assert refusal.value.error.name == "not_found"


def test_another_credential_takes_what_it_does_not_allow() -> None:
    events = make()
    ear = Ear(Principal("op", "operator", ("admin", "subscribe:>")))
    join(events, ear, "a.b", "a.*", "a.>", "b", ">", "gateway.>", "gateway.draining")
    for scopes, left in ((("subscribe:>",), ["a.b", "a.*", "a.>", "b", ">"]), (("subscribe:a.*",), ["a.b", "a.*"])):
        ear.principal = Principal("op", "operator", scopes)
        events.rescoped(ear)
        assert events.unsubscribe(ear, []) == left
    for name in ("a.b", "a.b.c", "b"):
        events.publish(name, b"0")
    events.own("gateway.draining", {})
    assert ear.take() == [("a.b", 1)]
    ear.principal = Principal("op", "operator", ())
    events.rescoped(ear)
    events.rescoped(Ear())
    assert events.unsubscribe(ear, []) == []


def test_who_is_lost_is_forgotten() -> None:
    events, ear = make(), Ear()
    join(events, ear, "a", "b.>")
    events.lost(ear)
    events.lost(ear)
    for name in ("a", "b.c"):
        events.publish(name, b"0")
    assert (ear.frames, ear.subscriber, events.delivered) == ([], None, 0)
    assert events.unsubscribe(ear, ["a"]) == []


# Past the outboxes, without sockets


def size(frames: list[bytes]) -> tuple[int, int]:
    """How many there are, and their bytes."""
    return len(frames), sum(map(len, frames))


def settled(ear: Ear) -> tuple[int, int]:
    """What has been written past its outbox, as it would be told now."""
    assert ear.subscriber is not None
    ear.subscriber.settle()
    return ear.counted


def test_what_nobody_has_to_wait_for_is_written_at_once_and_counted_when_asked() -> None:
    way, ears = Way(True), [Ear() for _ in range(3)]
    events = make(way=way)
    events.publish("a", b"0")
    assert way.asked == 0, "nobody is there"
    for ear in ears:
        join(events, ear, "a", ">")
    for data in (b"1", b"22", b'"333"'):
        events.publish("a", data)
        events.publish("b", data)
    join(events, ears[0], "a", "b")
    assert [ear.counted for ear in ears] == [size(ears[0].frames), (0, 0), (0, 0)], "the first has stood aside once"
    for ear in ears:
        assert len(ear.frames) == 6
        assert settled(ear) == settled(ear) == size(ear.frames)
        assert ear.sent == 0
    assert (way.asked, events.delivered) == (6, 18)


def test_who_has_come_later_counts_from_then_on() -> None:
    events, early, late = make(), Ear(), Ear()
    join(events, early, "a")
    events.publish("a", b"0")
    join(events, late, ">")
    events.publish("a", b"0")
    assert settled(late) == size(late.frames) == size(early.frames[1:])
    assert events.unsubscribe(early, ["a"]) == []
    events.publish("a", b"0")
    assert early.counted == size(early.frames), "counted with the subscription's end"
    assert settled(late) == size(late.frames)


def test_while_one_has_to_wait_all_are_sent_to_by_their_outboxes() -> None:
    way, ear, other, elsewhere = Way(True), Ear(), Ear(), Ear()
    events = make(way=way)
    for one, name in ((ear, "a"), (other, "a"), (elsewhere, "b")):
        join(events, one, name)

    def past() -> bool:
        """Whether the next message is written past the outboxes."""
        before = ear.sent, other.sent, way.asked
        events.publish("a", b"0")
        return (ear.sent, other.sent, way.asked) == (before[0], before[1], before[2] + 1)

    assert past()
    _, release = events.subscribe(ear, ["c"], {})
    assert not past(), "its reply is not out yet"
    ear.stalled = True
    release()
    assert not past(), "it does not read"
    ear.stalled = False
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert past()
    way.free = False
    assert not past()
    way.free = True
    assert past()
    elsewhere.stalled = True
    assert past(), "nobody waits for one who has not subscribed"
    ear.is_open = False
    ear.place()
    assert ear.counted == (4, size(ear.frames[:1])[1] * 4), "its end is on the way: all is counted"
    assert not past()
    events.lost(ear)
    assert past()
    assert settled(other) == (5, size(ear.frames[:1])[1] * 5)


def test_one_that_takes_no_more_of_what_is_corked_is_not_written_past() -> None:
    """To make way is to write, and so may be what fills a transport."""
    ear, other = Ear(), Ear()

    class Narrow(Way):
        def make_way(self) -> bool:
            ear.stalled = True
            return True

    events = make(way=Narrow(True))
    for one in (ear, other):
        join(events, one, "a")
    events.publish("a", b"0")
    assert (ear.sent, other.sent) == (1, 1)


@pytest.mark.parametrize(("count", "past"), [(AT_ONCE, True), (AT_ONCE + 1, False)])
def test_so_many_are_written_to_in_one_go_and_no_more(count: int, past: bool) -> None:
    events, ears = make(), [Ear() for _ in range(count)]
    for ear in ears:
        join(events, ear, "a")
    events.publish("a", b"0")
    assert {ear.sent for ear in ears} == {0 if past else 1}
    assert {len(ear.frames) for ear in ears} == {1}


# Conflation, without sockets


def test_who_does_not_read_has_the_latest_of_a_conflated_topic() -> None:
    events, ear = make(conflate=("pos.*",)), Ear()
    join(events, ear, ">")
    events.publish("pos.a", b"0")
    ear.stalled = True
    for name in ("pos.a", "pos.b", "pos.a", "other", "other", "pos.b", "pos.a"):
        events.publish(name, b"0")
    assert ear.take() == [("pos.a", 1), ("other", 1), ("other", 2)]
    ear.stalled = False
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert ear.take() == [("pos.b", 2), ("pos.a", 4)], "in the order in which they were published"
    ear.subscriber.drained()
    events.publish("pos.a", b"0")
    assert ear.take() == [("pos.a", 5)]


def test_a_latest_message_waits_as_long_as_nothing_is_read() -> None:
    events, ear = make(conflate=(">",)), Ear()
    join(events, ear, ">")
    ear.stalled = True
    events.publish("a", b"0")
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert ear.frames == []


def test_who_has_unsubscribed_has_no_latest_message_later() -> None:
    events, ear = make(conflate=(">",)), Ear()
    join(events, ear, "a", "b")
    ear.stalled = True
    for name in ("a", "b"):
        events.publish(name, b"0")
    events.unsubscribe(ear, ["a"])
    ear.stalled = False
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert ear.take() == [("b", 1)]


def test_a_latest_message_that_was_asked_for_as_missed_comes_once() -> None:
    events, ear = make(conflate=(">",)), Ear()
    join(events, ear, "a")
    ear.stalled = True
    events.publish("a", b"0")
    events.publish("a", b"0")
    join(events, ear, "a", a=0)
    ear.stalled = False
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert ear.take() == [("a", 1), ("a", 2)]


# A gateway, over WebSocket


async def heard(caller: Caller, count: int) -> list[tuple[str, int, Any]]:
    """The next messages: topic, offset and data."""
    found = []
    for _ in range(count):
        params = json.loads(await caller.receive())["params"]
        found.append((params["topic"], params["offset"], params["data"]))
    return found


async def test_the_reply_comes_first_then_the_missed_then_the_new(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    other = await connect(caller.client)
    for number in range(3):
        place = await other.result("event.publish", {"topic": "a", "data": number})
    since = {"a": {"epoch": place["epoch"], "offset": 1}}
    topics = {"a": {"epoch": place["epoch"], "offset": 3, "recovered": True}}
    assert await caller.result("event.subscribe", {"topics": ["a"], "since": since}) == {"topics": topics}
    await other.result("event.publish", {"topic": "a", "data": 3})
    assert await heard(caller, 3) == [("a", offset, offset - 1) for offset in (2, 3, 4)]


async def test_a_batch_is_answered_before_what_it_publishes(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    place = await caller.result("event.publish", {"topic": "a", "data": "missed"})
    since = {"a": {"epoch": place["epoch"], "offset": 0}}
    parts = [
        asked("event.subscribe", {"topics": ["a"], "since": since}, id=1),
        notification("event.publish", {"topic": "a", "data": "held"}),
        asked("event.publish", {"topic": "a", "data": "back"}, id=2),
    ]
    replies = json.loads(await caller.ask(f"[{','.join(parts)}]"))
    assert {reply["id"] for reply in replies} == {1, 2}
    assert await heard(caller, 3) == [("a", 1, "missed"), ("a", 2, "held"), ("a", 3, "back")]


async def test_events_wait_for_the_last_reply_of_a_batch(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client, [sample_methods])
    other = await connect(caller.client)
    await caller.result("event.subscribe", {"topics": ["b"]})
    await caller.send(f"[{asked('event.subscribe', {'topics': ['a']}, id=1)},{asked('ask', [], id=2)}]")
    question = json.loads(await caller.receive())
    for topic in ("a", "b", "a"):
        await other.result("event.publish", {"topic": topic, "data": None})
    await caller.send(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": "done"}))
    replies = json.loads(await caller.receive())
    assert [reply["id"] for reply in replies] == [1, 2]
    assert await heard(caller, 3) == [("a", 1, None), ("b", 1, None), ("a", 2, None)]


async def test_notifications_subscribe_and_publish(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    await caller.send(notification("event.subscribe", {"topics": ["a"]}))
    await caller.send(notification("event.publish", {"topic": "a", "data": {"n": 1}}))
    assert await heard(caller, 1) == [("a", 1, {"n": 1})], "and no reply before it"
