"""Events: who may subscribe to what, resuming, the order of messages, and the hold behind a subscription's reply."""

import itertools
import json
import random
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any, TypeVar
from unittest import mock

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.auth.scopes import Principal
from gateway.cluster.stream import Position
from gateway.events.delivery import SENT_AT_ONCE
from gateway.events.hub import MAX_SUBSCRIPTIONS, OWN_TOPICS
from gateway.rpc import work
from gateway.rpc.method import Refusal
from gateway.rpc.work import at_once
from tests.support import sample_methods
from tests.support.ears import MIB, Ear, Hall, Way, hall, join, notification_in, subscribe, unsubscribe
from tests.support.rpc import Caller, connect, notification, serve
from tests.support.rpc import request as asked

Result = TypeVar("Result")

# One process, no sockets


def test_a_message_is_one_frame_for_all() -> None:
    here, ears = hall(now=lambda: "1970-01-01T00:00:01.999Z"), [Ear() for _ in range(3)]
    events = here.events
    for ear, pattern in zip(ears, ("a.b", "a.*", ">"), strict=True):
        join(events, ear, pattern, "a.>")
    data = b'{"n": 1e400, "t":"\\u00e9"}'
    assert events.publish("a.b", data) == Position("e1", 1)
    (sent,) = ears[0].frames
    assert all(len(ear.frames) == 1 and ear.frames[0] is sent for ear in ears), "once to each, and the very same"
    head = b'"topic":"a.b","offset":1,"epoch":"e1","time":"1970-01-01T00:00:01.999Z","data":'
    assert sent.endswith(b'{"jsonrpc":"2.0","method":"event.message","params":{' + head + data + b"}}")
    assert (events.published, here.delivery.delivered) == (1, 3)


@pytest.mark.parametrize("free", [True, False])
def test_topics_have_offsets_of_their_own(free: bool) -> None:
    events, ear = hall(way=Way(free)).events, Ear()
    join(events, ear, ">")
    for name in ("a", "b", "a", "a", "b"):
        events.publish(name, b"0")
    assert ear.take() == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]


@pytest.mark.parametrize("free", [True, False])
def test_the_missed_come_first_then_what_was_held_back(free: bool) -> None:
    events, ear = hall(way=Way(free)).events, Ear()
    for _ in range(3):
        events.publish("a", b"0")
    met, release = subscribe(events, ear, ["a", "b"], {"a": Position("e1", 1)})
    events.publish("a", b"0")
    events.publish("b", b"0")
    assert ear.frames == [], "the reply is not out yet"
    release()
    assert ear.take() == [("a", 2), ("a", 3), ("a", 4), ("b", 1)]
    assert met == {"a": (Position("e1", 3), True), "b": (Position("e1", 0), None)}
    events.publish("a", b"0")
    assert ear.take() == [("a", 5)]


def test_two_subscriptions_before_either_is_answered_keep_the_order() -> None:
    events, ear = hall().events, Ear()
    events.publish("a", b"0")
    first = events.publish("b", b"0")
    _, release = subscribe(events, ear, ["a"], {"a": Position("e1", 0)})
    _, release_other = subscribe(events, ear, ["b"], {"b": Position(first.epoch, 0)})
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
    events, ear = hall().events, Ear()
    for _ in range(12):
        events.publish("a", b"0")
    met, release = subscribe(events, ear, ["a"], {"a": since})
    release()
    assert met == {"a": (Position("e1", 12), recovered)}
    assert ear.take() == [("a", offset) for offset in range(since.offset + 1, 13) if recovered]


def test_a_topic_that_is_gone_is_told_to_who_resumes_by_a_pattern() -> None:
    """The gateway is another one, or the topic had to go: silence would look like nothing missed."""
    events, ear = hall().events, Ear()
    met, release = subscribe(events, ear, ["a.*"], {"a.b": Position("before", 7), "x": Position("before", 7)})
    release()
    assert {name: recovered for name, (_, recovered) in met.items()} == {"a.b": False}


def test_overlapping_patterns_report_and_deliver_a_topic_once() -> None:
    events, ear = hall().events, Ear()
    events.publish("a", b"0")
    assert list(join(events, ear, "a", "*", ">", a=0)) == ["a"]
    events.publish("a", b"0")
    assert ear.take() == [("a", 1), ("a", 2)]


def test_a_connection_has_so_many_subscriptions_at_most() -> None:
    events, ear = hall(max_topics=5000).events, Ear()
    first = [f"a.{number}" for number in range(MAX_SUBSCRIPTIONS)]
    join(events, ear, *first)
    join(events, ear, *first[:10])
    with pytest.raises(Refusal) as refusal:
        subscribe(events, ear, ["b"], {})
    assert refusal.value.error.name == "overloaded"
    assert len(unsubscribe(events, ear, first[:1])) == MAX_SUBSCRIPTIONS - 1
    join(events, ear, "b")
    events.publish("b", b"0")
    assert ear.take() == [("b", 1)]


def test_where_topics_are_full_nothing_more_begins_but_all_may_subscribe() -> None:
    events, ear, other = hall(max_topics=2).events, Ear(), Ear()
    join(events, other, "x", "y", ">")
    for name in ("x", "y"):
        events.publish(name, b"0")
    with pytest.raises(Refusal) as refusal:
        events.publish("new", b"0")
    assert (refusal.value.error.name, refusal.value.data) == (
        "overloaded",
        {"retryAfterMs": 1000, "outcome": "not_delivered"},
    )
    assert list(join(events, ear, "z.*", "a", "gateway.draining")) == ["a", "gateway.draining"]
    unsubscribe(events, other, ["x"])
    events.publish("a", b"0")
    assert ear.take() == [("a", 1)]


def test_a_topic_that_has_not_begun_begins_where_its_subscribers_were_told() -> None:
    """Whatever else is forgotten meanwhile. Otherwise a client would have to take its first message for a gap."""
    here, ear = hall(max_topics=1), Ear()
    events = here.events
    told = join(events, ear, "a")["a"][0]
    for name in ("x", "y", "z"):
        events.publish(name, b"0")
    assert here.stream.position("b") != told
    assert join(events, Ear(), "a") == {"a": (told, None)}
    assert subscribe(events, Ear(), ["a"], {"a": told})[0] == {"a": (told, True)}
    assert events.publish("a", b"0") == Position(told.epoch, 1)


def test_a_name_that_nobody_is_subscribed_to_any_more_takes_no_memory() -> None:
    here, ear, other = hall(), Ear(), Ear()
    join(here.events, ear, *(f"a.{number}" for number in range(1000)))
    join(here.events, other, "a.5")
    at_once(here.events.lost(ear))
    assert unsubscribe(here.events, other, ["a.5"]) == []
    here.events.publish("x", b"0")
    here.stream.forget("x")
    assert {here.stream.position(f"a.{number}").epoch for number in range(1000)} == {"e2"}
    assert len(here.topics) == 1


# The cost of one message


class Steps:
    """Takes the steps of some work, and keeps what each of them has looked at: topics and nodes of both indexes."""

    def __init__(self, here: Hall) -> None:
        self._here = here
        self.visits: list[int] = []

    def take(self, work: Generator[None, None, Result], between: Callable[[], object] = lambda: None) -> Result:
        """All of them; returns the result."""
        topics = self._here.topics
        while True:
            before = topics.names.visits + topics.patterns.visits
            try:
                next(work)
            except StopIteration as done:
                result: Result = done.value
                return result
            finally:
                self.visits.append(topics.names.visits + topics.patterns.visits - before)
            between()


def test_the_dearest_subscription_looks_at_all_topics_once_a_step_at_most() -> None:
    """A thousand patterns, each of which meets every topic; and the end of them all."""
    here, ear = hall(max_topics=1200), Ear()
    for number in range(1200):
        here.events.publish(f"a.a.a.a.a.a.a.a.a.a.a.{number}", b"0")
    patterns = [f"{'.'.join(parts)}.*" for parts in islice(itertools.product("a*", repeat=11), MAX_SUBSCRIPTIONS)]
    assert not here.events.is_small(patterns)
    begin, end = Steps(here), Steps(here)
    met, subscriber = begin.take(here.events.subscribe(ear, patterns, {}))
    subscriber.release()
    assert len(met) == 1200
    assert len(begin.visits) == MAX_SUBSCRIPTIONS + 3, "each pattern has a step, and noting so many topics two"
    assert end.take(here.events.unsubscribe(ear, patterns)) == []
    assert max(begin.visits + end.visits) <= 1200 + 11
    assert len(end.visits) == MAX_SUBSCRIPTIONS + 1


def test_a_pattern_a_thousand_times_is_one() -> None:
    here, ear = hall(max_topics=5000), Ear()
    for number in range(5000):
        here.events.publish(f"a.{number}", b"0")
    begin, end = Steps(here), Steps(here)
    _, subscriber = begin.take(here.events.subscribe(ear, [">"] * 1000, {}))
    subscriber.release()
    assert end.take(here.events.unsubscribe(ear, [">"] * 1000)) == []
    assert (sum(begin.visits), sum(end.visits)) == (5001, 5001)


def test_positions_of_unknown_topics_are_looked_up_in_steps() -> None:
    here, ear = hall(), Ear()
    patterns = [f"{'.'.join(parts)}.*" for parts in islice(itertools.product("a*", repeat=11), MAX_SUBSCRIPTIONS)]
    since = {f"a.a.a.a.a.a.a.a.a.a.a.{number}": Position("before", 7) for number in range(1000)}
    since["a.b"] = Position("before", 7)
    steps = Steps(here)
    met, _ = steps.take(here.events.subscribe(ear, patterns, since))
    assert list(met) == list(since)[:-1]
    assert {recovered for _, recovered in met.values()} == {False}
    assert len(steps.visits) > 1000


def test_what_most_ask_for_is_answered_in_one_go() -> None:
    here = hall(max_topics=5000)
    for number in range(5000):
        here.events.publish(f"a.{number}", b"0")
    assert here.events.is_small([f"a.{number}" for number in range(500)], since=[Position("e", 1)] * 50)
    assert not here.events.is_small(["a.*"])
    assert hall().events.is_small(["a.*"] * 100)


def test_between_the_steps_of_a_subscription_nothing_is_lost_and_nothing_comes_twice() -> None:
    """Others publish, topics begin, and one has to make room: each goes on where the reply or `since` says."""
    here, ear, chance = hall(max_topics=40), Ear(), random.Random(5)
    last: dict[str, Position] = {}

    def publish() -> None:
        for _ in range(5):
            name = f"a.{chance.randrange(50)}"
            last[name] = here.events.publish(name, b"0")

    for _ in range(20):
        publish()
    since = {name: place for name, place in last.items() if here.topics.get(name) is not None and chance.random() < 0.5}
    publish()
    patterns = ["a.*", *(f"a.{number}" for number in range(0, 50, 3)), "*.*", ">", "*.>", "a.>"]
    places = {}
    steps = Steps(here)
    with mock.patch.object(work, "STEPS", 1):
        met, subscriber = steps.take(here.events.subscribe(ear, patterns, since), publish)
    assert len(steps.visits) > 20
    publish()
    assert ear.frames == [], "the reply is not out yet"
    subscriber.release()
    while subscriber.feed():
        publish()
    for name, (place, recovered) in met.items():
        places[name] = since[name] if recovered else place
    for frame in ear.frames:
        method, params = notification_in(frame)
        name, place = params["topic"], Position(params["epoch"], params["offset"])
        before = places.get(name, Position(place.epoch, 0))
        if method == "event.gap":
            assert name not in places or place.epoch != before.epoch, "only what had to make room is lost"
        else:
            assert place.offset == (before.offset if before.epoch == place.epoch else 0) + 1, name
        places[name] = place
    assert {name: places[name] for name in last if here.topics.get(name)} == {
        name: place for name, place in last.items() if here.topics.get(name)
    }


def test_what_was_missed_is_sent_in_steps_and_then_what_has_come_meanwhile() -> None:
    ear = Ear()
    names = [f"a.{number}" for number in range(SENT_AT_ONCE // 2)]
    here = hall(max_topics=len(names))
    for name in names * 6:
        here.events.publish(name, b"0")
    subscribe(here.events, ear, ["a.*"], dict.fromkeys(names, Position("e1", 0)))
    assert ear.subscriber is not None
    ear.subscriber.release()
    sizes, more = [], ear.subscriber.feed()
    while more:
        sizes.append(len(ear.frames))
        if len(sizes) <= 3:
            here.events.publish(names[0], b"0")
        more = ear.subscriber.feed()
    assert len(sizes) > 2
    assert max(later - sooner for sooner, later in itertools.pairwise([0, *sizes])) <= SENT_AT_ONCE
    heard: dict[str, list[int]] = {}
    for name, offset in ear.take():
        heard.setdefault(name, []).append(offset)
    assert heard == {name: list(range(1, 7 + 3 * (name == names[0]))) for name in names}
    here.events.publish("a.0", b"0")
    assert len(ear.frames) == 1


def test_the_gateways_own_topics_begin_with_their_first_subscription() -> None:
    events, ear = hall().events, Ear()
    events.own("gateway.draining", {"n": 1})
    assert (events.wanted("gateway.draining"), events.published) == (False, 0)
    assert list(join(events, ear, ">", "*.*")) == [], "they have to be asked for"
    assert list(join(events, ear, "gateway.*")) == ["gateway.draining"]
    events.own("gateway.draining", {"n": 2})
    events.own("gateway.node.online", {"n": 3})
    assert ear.take() == [("gateway.draining", 1)]
    assert set(join(events, ear, "gateway.>")) == set(OWN_TOPICS)
    with pytest.raises(Refusal) as refusal:
        subscribe(events, ear, ["gateway.nothing"], {})
    assert refusal.value.error.name == "not_found"


def test_another_credential_takes_what_it_does_not_allow() -> None:
    events = hall().events
    ear = Ear(Principal("op", "operator", ("admin", "subscribe:>")))
    join(events, ear, "a.b", "a.*", "a.>", "b", ">", "gateway.>", "gateway.draining")
    for scopes, left in ((("subscribe:>",), ["a.b", "a.*", "a.>", "b", ">"]), (("subscribe:a.*",), ["a.b", "a.*"])):
        ear.principal = Principal("op", "operator", scopes)
        at_once(events.rescoped(ear))
        assert unsubscribe(events, ear, []) == left
    for name in ("a.b", "a.b.c", "b"):
        events.publish(name, b"0")
    events.own("gateway.draining", {})
    assert ear.take() == [("a.b", 1)]
    ear.principal = Principal("op", "operator", ())
    at_once(events.rescoped(ear))
    at_once(events.rescoped(Ear()))
    assert unsubscribe(events, ear, []) == []


def test_subscriptions_that_another_credential_does_not_allow_end_in_steps() -> None:
    here = hall(max_topics=1200)
    ear = Ear(Principal("op", "operator", ("subscribe:>",)))
    for number in range(1200):
        here.events.publish(f"a.a.a.a.a.a.a.a.a.a.a.{number}", b"0")
    patterns = [f"{'.'.join(parts)}.*" for parts in islice(itertools.product("a*", repeat=11), MAX_SUBSCRIPTIONS)]
    assert here.events.rescopes_at_once(ear)
    join(here.events, ear, *patterns)
    assert not here.events.rescopes_at_once(ear)
    ear.principal = Principal("op", "operator", ())
    steps = Steps(here)
    steps.take(here.events.rescoped(ear))
    assert len(steps.visits) == MAX_SUBSCRIPTIONS + 1
    assert unsubscribe(here.events, ear, []) == []


def test_a_subscription_heeds_the_credential_that_comes_between_its_steps() -> None:
    here, ear = hall(), Ear(Principal("op", "operator", ("subscribe:>",)))
    events = here.events
    with mock.patch.object(work, "STEPS", 1):
        subscribing = events.subscribe(ear, ["a.*", "b.*", "c.*"], {})
        next(subscribing)
        ear.principal = Principal("op", "operator", ("subscribe:c.*",))
        at_once(events.rescoped(ear))
        _, subscriber = at_once(subscribing)
    subscriber.release()
    assert unsubscribe(events, ear, []) == ["c.*"]


def test_who_is_lost_with_very_many_topics_goes_in_steps_and_gets_nothing_more() -> None:
    here, ear, other = hall(max_topics=10_000), Ear(), Ear()
    for number in range(9000):
        here.events.publish(f"a.{number}", b"0")
    join(here.events, ear, ">", "*.*", *[f"x.{number}" for number in range(500)])
    join(here.events, other, ">")
    here.events.publish("a.1", b"0")
    ear.is_linked = False
    leaving = here.events.lost(ear)
    steps = 0
    for _ in leaving:
        steps += 1
        for name in ("a.1", "a.8999", f"a.new{steps}"):
            here.events.publish(name, b"0")
    assert steps == 2
    assert len(ear.take()) == 1
    assert len(other.take()) == 1 + 3 * steps
    assert (ear.subscriber, ear.past[0]) == (None, 1)
    here.events.publish("a.2", b"0")
    at_once(here.events.lost(ear))
    assert ear.frames == []


@pytest.mark.parametrize("lost", [False, True])
def test_the_end_of_a_subscription_heeds_what_comes_between_its_steps(lost: bool) -> None:
    """Topics that are forgotten, topics that begin, and the end of the connection."""
    here, ear = hall(max_topics=9000), Ear()
    for number in range(9000):
        here.events.publish(f"a.{number}", b"0")
    join(here.events, ear, ">", "a.*")
    ending = here.events.unsubscribe(ear, [">", "a.*"])
    for step, _ in enumerate(ending):
        here.events.publish(f"b.{step}", b"0")
        if lost and step == 1:
            at_once(here.events.lost(ear))
    here.events.publish("a.8999", b"0")
    assert "a.8999" not in dict(ear.take())
    assert unsubscribe(here.events, ear, []) == []
    assert here.topics.patterns.met_by("a.b") == []


def test_who_is_lost_is_forgotten() -> None:
    here, ear = hall(), Ear()
    events = here.events
    join(events, ear, "a", "b.>")
    at_once(events.lost(ear))
    at_once(events.lost(ear))
    for name in ("a", "b.c"):
        events.publish(name, b"0")
    assert (ear.frames, ear.subscriber, here.delivery.delivered) == ([], None, 0)
    assert unsubscribe(events, ear, ["a"]) == []


# A gateway, over WebSocket


async def heard(caller: Caller, count: int, *offsets: int) -> list[tuple[str, Any]]:
    """The next messages: topic and data. They have these offsets, or others that grow."""
    found, last = [], dict[str, int]()
    for number in range(count):
        params = json.loads(await caller.receive())["params"]
        assert params["offset"] > last.get(params["topic"], 0)
        assert not offsets or params["offset"] == offsets[number]
        last[params["topic"]] = params["offset"]
        found.append((params["topic"], params["data"]))
    return found


@pytest.mark.apart
async def test_the_reply_comes_first_then_the_missed_then_the_new(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    other = await connect(caller.client)
    places = [await other.result("event.publish", {"topic": "a", "data": number}) for number in range(3)]
    topics = {"a": {**places[2], "recovered": True}}
    assert await caller.result("event.subscribe", {"topics": ["a"], "since": {"a": places[0]}}) == {"topics": topics}
    places.append(await other.result("event.publish", {"topic": "a", "data": 3}))
    offsets = [place["offset"] for place in places[1:]]
    assert await heard(caller, 3, *offsets) == [("a", number) for number in (1, 2, 3)]


@pytest.mark.apart
async def test_a_batch_is_answered_before_what_it_publishes(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    place = await caller.result("event.publish", {"topic": "a", "data": "missed"})
    since = {"a": {"epoch": place["epoch"], "offset": place["offset"] - 1}}
    parts = [
        asked("event.subscribe", {"topics": ["a"], "since": since}, id=1),
        notification("event.publish", {"topic": "a", "data": "held"}),
        asked("event.publish", {"topic": "a", "data": "back"}, id=2),
    ]
    replies = json.loads(await caller.ask(f"[{','.join(parts)}]"))
    assert {reply["id"] for reply in replies} == {1, 2}
    assert await heard(caller, 3) == [("a", "missed"), ("a", "held"), ("a", "back")]


@pytest.mark.apart
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
    assert sorted(await heard(caller, 3)) == [("a", None), ("a", None), ("b", None)]


@pytest.mark.apart
async def test_notifications_subscribe_and_publish(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client)
    await caller.send(notification("event.subscribe", {"topics": ["a"]}))
    await caller.send(notification("event.publish", {"topic": "a", "data": {"n": 1}}))
    assert await heard(caller, 1) == [("a", {"n": 1})], "and no reply before it"


MANY = 2000
"""Topics with which a pattern is much work."""


async def with_many_topics(aiohttp_client: AiohttpClient) -> tuple[Caller, Caller, list[dict[str, Any]]]:
    """A caller, another one, and where the topics are."""
    caller = await serve(aiohttp_client)
    other = await connect(caller.client)
    places = []
    for number in range(0, MANY, 100):
        parts = [asked("event.publish", {"topic": f"a.{number + one}", "data": 0}, id=one) for one in range(100)]
        replies = json.loads(await other.ask(f"[{','.join(parts)}]"))
        places += [reply["result"] for reply in sorted(replies, key=lambda reply: reply["id"])]
    return caller, other, places


@pytest.mark.apart
async def test_a_subscription_that_is_much_work_is_answered_before_what_follows(aiohttp_client: AiohttpClient) -> None:
    caller, other, places = await with_many_topics(aiohttp_client)
    names = [f"a.{number}" for number in range(0, MANY, 200)]
    since = {name: {**place, "offset": place["offset"] - 1} for name, place in zip(names, places[::200], strict=True)}
    await caller.send(asked("event.subscribe", {"topics": ["*.*", "a.*", ">"] * 300, "since": since}, id=1))
    await other.result("event.publish", {"topic": "a.0", "data": "new"})
    topics = json.loads(await caller.receive())["result"]["topics"]
    assert len(topics) == MANY
    assert [name for name, state in topics.items() if state.get("recovered")] == names
    expected = [*((name, 0) for name in names), ("a.0", "new")]
    assert sorted(await heard(caller, len(expected)), key=str) == sorted(expected, key=str)


@pytest.mark.apart
async def test_changes_of_subscriptions_are_made_in_the_order_in_which_they_were_asked_for(
    aiohttp_client: AiohttpClient,
) -> None:
    caller, other, _ = await with_many_topics(aiohttp_client)
    for number in range(5):
        await caller.send(asked("event.subscribe", {"topics": [f"a.{number}", ">", "*.*"]}, id=1))
        await caller.send(asked("event.unsubscribe", {"topics": [f"a.{number}"]}, id=2))
        await caller.send(asked("event.unsubscribe", {"topics": [">", "*.*"]}, id=3))
        await caller.send(asked("event.subscribe", {"topics": ["x"]}, id=4))
        replies = [json.loads(await caller.receive()) for _ in range(4)]
        assert [reply["id"] for reply in replies] == [1, 2, 3, 4]
        assert replies[2]["result"] == {"topics": ["x"][:number]}
    await other.result("event.publish", {"topic": "a.0", "data": None})
    await other.result("event.publish", {"topic": "x", "data": None})
    assert await heard(caller, 1) == [("x", None)]


@pytest.mark.apart
async def test_a_subscription_that_is_cancelled_holds_nothing_back(aiohttp_client: AiohttpClient) -> None:
    caller, other, _ = await with_many_topics(aiohttp_client)
    await caller.result("event.subscribe", {"topics": ["x"]})
    patterns = [f"{number}.*" for number in range(900)]
    with mock.patch.object(work, "STEPS", 1):
        await caller.send(asked("event.subscribe", {"topics": patterns}, id=1))
        await caller.send(notification("rpc.cancel", {"id": 1}))
        await other.result("event.publish", {"topic": "x", "data": None})
        both = [json.loads(await caller.receive()) for _ in range(2)]
    (error,) = [one["error"]["data"]["code"] for one in both if "error" in one]
    (heard_of,) = [one["params"]["topic"] for one in both if "params" in one]
    assert (error, heard_of) == ("cancelled", "x")


def test_news_of_a_node_and_messages_count_for_their_principals() -> None:
    """A node that registers again and again fills its own share of the history, not that of others."""
    here = hall(max_topics=3)
    watcher = Ear()
    join(here.events, watcher, "gateway.>")
    first = here.events.publish("quiet.a", b"1", "quiet")
    for number in range(300):
        here.events.own("gateway.node.online", {"methods": "x" * 100_000}, "rogue")
        here.events.publish(f"rogue.{number}", bytes(1000), "rogue")
    assert here.stream.since("quiet.a", Position(first.epoch, 0), 1) is not None
    assert here.stream.since("gateway.node.online", Position(first.epoch, 0), 1) is None
    assert here.stream.kept_bytes <= MIB
