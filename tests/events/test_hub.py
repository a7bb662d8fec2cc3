"""Events: who may subscribe to what, resuming, the order of messages, and the hold behind a subscription's reply."""

import json
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.auth.scopes import Principal
from gateway.cluster.stream import Position
from gateway.events.hub import MAX_SUBSCRIPTIONS, OWN_TOPICS
from gateway.rpc.method import Refusal
from tests.support import sample_methods
from tests.support.ears import Ear, Way, hall, join
from tests.support.rpc import Caller, connect, notification, serve
from tests.support.rpc import request as asked

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
    events, ear = hall().events, Ear()
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
    events, ear = hall().events, Ear()
    for _ in range(12):
        events.publish("a", b"0")
    met, release = events.subscribe(ear, ["a"], {"a": since})
    release()
    assert met == {"a": (Position("e1", 12), recovered)}
    assert ear.take() == [("a", offset) for offset in range(since.offset + 1, 13) if recovered]


def test_a_topic_that_is_gone_is_told_to_who_resumes_by_a_pattern() -> None:
    """The gateway is another one, or the topic had to go: silence would look like nothing missed."""
    events, ear = hall().events, Ear()
    met, release = events.subscribe(ear, ["a.*"], {"a.b": Position("before", 7), "x": Position("before", 7)})
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
        events.subscribe(ear, ["b"], {})
    assert refusal.value.error.name == "overloaded"
    assert len(events.unsubscribe(ear, first[:1])) == MAX_SUBSCRIPTIONS - 1
    join(events, ear, "b")
    events.publish("b", b"0")
    assert ear.take() == [("b", 1)]


def test_where_topics_are_full_nothing_of_a_subscription_stays() -> None:
    events, ear, other = hall(max_topics=3).events, Ear(), Ear()
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
        events.subscribe(ear, ["gateway.nothing"], {})
    assert refusal.value.error.name == "not_found"


def test_another_credential_takes_what_it_does_not_allow() -> None:
    events = hall().events
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
    here, ear = hall(), Ear()
    events = here.events
    join(events, ear, "a", "b.>")
    events.lost(ear)
    events.lost(ear)
    for name in ("a", "b.c"):
        events.publish(name, b"0")
    assert (ear.frames, ear.subscriber, here.delivery.delivered) == ([], None, 0)
    assert events.unsubscribe(ear, ["a"]) == []


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
