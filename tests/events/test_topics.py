"""Topics: names and patterns, who makes room for others, and subscriptions that overlap."""

import random
import weakref

import pytest

from gateway.events.topics import FullError, Topic, Topics, meets
from gateway.websocket.frames import Written


class Someone:
    """A subscriber that keeps what it is given."""

    def __init__(self) -> None:
        self.patterns: dict[str, None] = {}
        self.topics: dict[Topic, Written] = {}
        self.frames: list[bytes] = []

    def write(self, frame: bytes) -> None:
        """Keep it."""
        self.frames.append(frame)

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """Keep it."""
        self.frames.append(frame)

    def joined(self, topic: Topic) -> None:
        """Keep it."""
        self.topics[topic] = topic.written

    def parted(self, topic: Topic) -> None:
        """Give it up."""
        self.topics.pop(topic, None)

    @property
    def names(self) -> list[str]:
        """Its topics, in order."""
        return sorted(topic.name for topic in self.topics)


class Desk:
    """Topics, and the names of those that had to make room."""

    def __init__(self, *, max_topics: int = 100, conflate: tuple[str, ...] = ()) -> None:
        self.forgotten: list[str] = []
        self.topics = Topics(self.forgotten.append, max_topics=max_topics, conflate=conflate)

    def publish(self, name: str) -> Topic:
        """A message of a topic; returns the topic."""
        self.topics.touch(name)
        return self.topics.open(name)


# Patterns


@pytest.mark.parametrize(
    ("pattern", "met", "not_met"),
    [
        ("a", ["a"], ["b", "a.b", "A"]),
        ("a.b", ["a.b"], ["a", "a.c", "a.b.c"]),
        ("*", ["a", "gateway"], ["a.b", "gateway.draining"]),
        ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
        ("*.b", ["a.b", "b.b"], ["b", "a.c", "a.b.b"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a", "ab.c"]),
        (">", ["a", "a.b", "gateway", "gateways.a"], ["gateway.draining", "gateway.node.online"]),
        ("*.draining", ["a.draining"], ["gateway.draining"]),
        ("*.>", ["a.b", "gateways.a"], ["a", "gateway.draining"]),
        ("*.node.online", ["a.node.online"], ["gateway.node.online"]),
        ("gateway.*", ["gateway.draining"], ["gateway.node.online", "gateway", "a.draining"]),
        ("gateway.>", ["gateway.draining", "gateway.node.online"], ["gateway", "a.b"]),
        ("gateway.node.*", ["gateway.node.online", "gateway.node.offline"], ["gateway.connection.opened"]),
        ("gateway.draining", ["gateway.draining"], ["draining"]),
    ],
)
def test_which_topics_a_pattern_meets(pattern: str, met: list[str], not_met: list[str]) -> None:
    assert [name for name in met if not meets(pattern, name)] == []
    assert [name for name in not_met if meets(pattern, name)] == []


# Topics come and go


def test_a_topic_begins_once() -> None:
    desk = Desk()
    topic = desk.topics.open("a")
    assert topic is desk.topics.open("a") is desk.topics.get("a")
    assert desk.topics.open("b") is not topic
    assert len(desk.topics) == 2
    assert desk.topics.get("c") is None


def test_the_topics_that_are_conflated() -> None:
    desk = Desk(conflate=("pos.*", "exactly", "gateway.node.online"))
    names = ["pos.a", "pos.a.b", "exactly", "other", "gateway.node.online", "gateway.node.offline"]
    assert [name for name in names if desk.topics.open(name).conflated] == ["pos.a", "exactly", "gateway.node.online"]
    assert not Desk(conflate=(">",)).topics.open("gateway.draining").conflated


def test_where_there_is_no_room_the_topic_goes_that_was_published_to_longest_ago() -> None:
    desk = Desk(max_topics=3)
    for name in ("a", "b", "c"):
        desk.publish(name)
    desk.publish("a")
    desk.topics.open("d")
    assert [name for name in "abcd" if desk.topics.get(name)] == ["a", "c", "d"]
    assert desk.forgotten == ["b"]
    desk.topics.open("b")
    assert desk.forgotten == ["b", "c"]


def test_a_topic_with_a_subscriber_stays() -> None:
    desk, someone = Desk(max_topics=2), Someone()
    desk.topics.subscribe(someone, "a")
    for name in ("b", "c", "d"):
        desk.publish(name)
    assert [name for name in "abcd" if desk.topics.get(name)] == ["a", "d"]
    desk.topics.subscribe(someone, "d")
    with pytest.raises(FullError):
        desk.topics.open("e")
    with pytest.raises(FullError):
        desk.topics.subscribe(someone, "e")
    assert (list(someone.patterns), someone.names, len(desk.topics)) == (["a", "d"], ["a", "d"], 2)
    assert desk.topics.open("a").name == "a", "one that is there needs no room"
    desk.topics.unsubscribe(someone, "a")
    desk.topics.open("e")
    assert [name for name in "ade" if desk.topics.get(name)] == ["d", "e"]


def test_a_pattern_keeps_the_topics_that_it_meets() -> None:
    desk, someone = Desk(max_topics=2), Someone()
    desk.topics.subscribe(someone, "a.>")
    desk.publish("a.b")
    desk.publish("a.c")
    with pytest.raises(FullError):
        desk.topics.open("x")
    desk.topics.leave(someone)
    desk.topics.open("x")
    assert len(desk.topics) == 2


# Subscriptions


def test_subscriptions_that_overlap() -> None:
    desk, someone = Desk(), Someone()
    subscribe, unsubscribe = desk.topics.subscribe, desk.topics.unsubscribe
    assert [topic.name for topic in subscribe(someone, "a.b")] == ["a.b"]
    assert [topic.name for topic in subscribe(someone, "a.*")] == ["a.b"]
    assert subscribe(someone, "x.>") == []
    assert [topic.name for topic in subscribe(someone, "a.*")] == ["a.b"], "again is harmless"
    desk.topics.open("a.c")
    desk.topics.open("x.y.z")
    assert someone.names == ["a.b", "a.c", "x.y.z"]
    unsubscribe(someone, "a.*")
    assert someone.names == ["a.b", "x.y.z"]
    unsubscribe(someone, "a.*")
    unsubscribe(someone, "a.c")
    unsubscribe(someone, ">")
    assert someone.names == ["a.b", "x.y.z"], "what was not subscribed to cannot be given up"
    desk.topics.open("a.d")
    unsubscribe(someone, "a.b")
    unsubscribe(someone, "x.>")
    assert (someone.names, someone.patterns) == ([], {})


def test_a_topic_and_a_pattern_that_meets_it_are_one_subscriber() -> None:
    desk, someone = Desk(), Someone()
    for pattern in (">", "a", "*"):
        desk.topics.subscribe(someone, pattern)
    assert list(desk.topics.open("a").subscribers) == [someone]


def test_who_leaves_is_forgotten() -> None:
    desk, someone, other = Desk(), Someone(), Someone()
    for pattern in ("a", "a.*", ">"):
        desk.topics.subscribe(someone, pattern)
        desk.topics.subscribe(other, pattern)
    desk.topics.open("a.b")
    desk.topics.leave(someone)
    desk.topics.leave(someone)
    assert (someone.names, someone.patterns) == ([], {})
    assert other.names == ["a", "a.b"]
    desk.topics.open("new")
    assert (someone.names, other.names) == ([], ["a", "a.b", "new"])
    gone = weakref.ref(someone)
    del someone
    assert gone() is None, "a table still holds it"


NAMES = ["a", "b", "a.a", "a.b", "b.a", "a.b.c", "gateway.node.online", "gateway.draining"]
PATTERNS = [*NAMES, "*", ">", "a.*", "a.>", "*.a", "*.>", "a.*.c", "gateway.>", "gateway.*"]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_a_topic_has_those_who_have_asked_for_it(seed: int) -> None:
    chance, desk = random.Random(seed), Desk(max_topics=6)
    people = [Someone() for _ in range(4)]
    wanted: dict[Someone, set[str]] = {someone: set() for someone in people}
    for _ in range(1500):
        someone, pattern, act = chance.choice(people), chance.choice(PATTERNS), chance.random()
        try:
            if act < 0.4:
                desk.topics.subscribe(someone, pattern)
                wanted[someone].add(pattern)
            elif act < 0.75:
                desk.topics.unsubscribe(someone, pattern)
                wanted[someone].discard(pattern)
            elif act < 0.8:
                desk.topics.leave(someone)
                wanted[someone].clear()
            else:
                desk.publish(chance.choice(NAMES))
        except FullError:
            assert all((topic := desk.topics.get(name)) is None or topic.subscribers for name in NAMES)
        there = [topic for name in NAMES if (topic := desk.topics.get(name)) is not None]
        assert len(there) == len(desk.topics) <= 6
        for one in people:
            assert set(one.patterns) == wanted[one]
            met = {topic for topic in there if any(meets(pattern, topic.name) for pattern in wanted[one])}
            assert set(one.topics) == met == {topic for topic in there if one in topic.subscribers}
    emptied(desk, people)


def emptied(desk: Desk, people: list[Someone]) -> None:
    """All leave, and nothing is left of anybody."""
    for someone in people:
        desk.topics.leave(someone)
        assert (someone.patterns, someone.topics) == ({}, {})
    for number in range(6):
        assert not desk.topics.open(f"new.{number}").subscribers
    assert len(desk.topics) == 6, "every other topic could go"
