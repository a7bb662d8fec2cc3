"""Topics: names and patterns, subscriptions that overlap, and how much of each topic is kept."""

import itertools
import random
import weakref

import pytest

from gateway.topics import FullError, Position, Topic, Topics, Written, meets


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

    @property
    def names(self) -> list[str]:
        """Its topics, in order."""
        return sorted(topic.name for topic in self.topics)


class Desk:
    """Topics with a clock that the test moves, and epochs that it can tell apart."""

    def __init__(
        self,
        *,
        max_topics: int = 100,
        count: int = 100,
        age: float = 60.0,
        size: int = 10_000,
        conflate: tuple[str, ...] = (),
    ) -> None:
        self.now = 1000.0
        epochs = itertools.count(1)
        self.topics = Topics(
            lambda: self.now,
            lambda: f"epoch {next(epochs)}",
            max_topics=max_topics,
            history_count=count,
            history_age=age,
            history_bytes=size,
            conflate=conflate,
        )

    def publish(self, name: str, *frames: bytes) -> Topic:
        """One message after the other; returns the topic."""
        topic = self.topics.open(name)
        for frame in frames:
            topic.offset += 1
            self.topics.keep(topic, frame)
        return topic

    def since(self, topic: Topic, offset: int) -> list[bytes] | None:
        """What is kept of this epoch behind an offset."""
        return self.topics.since(topic, Position(topic.epoch, offset))


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
    assert topic.position == Position("epoch 1", 0)
    assert desk.topics.open("b").epoch == "epoch 2"
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
        desk.publish(name, b"1")
    desk.publish("a", b"2")
    desk.topics.open("d")
    assert [name for name in "abcd" if desk.topics.get(name)] == ["a", "c", "d"]
    assert desk.topics.kept_bytes == 3, "what was kept of it has gone too"
    again = desk.topics.open("b")
    assert again.position == Position("epoch 5", 0), "its numbers begin anew, and so does its epoch"
    assert desk.topics.since(again, Position("epoch 2", 1)) is None


def test_a_topic_with_a_subscriber_stays() -> None:
    desk, someone = Desk(max_topics=2), Someone()
    desk.topics.subscribe(someone, "a")
    for name in ("b", "c", "d"):
        desk.publish(name, b"1")
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
    desk.publish("a.b", b"1")
    desk.publish("a.c", b"1")
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
                desk.publish(chance.choice(NAMES), b"x")
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
    """All leave, and nothing is left of anybody or of what was kept."""
    for someone in people:
        desk.topics.leave(someone)
        assert (someone.patterns, someone.topics) == ({}, {})
    for number in range(6):
        assert not desk.topics.open(f"new.{number}").subscribers
    assert len(desk.topics) == 6, "every other topic could go"
    assert desk.topics.kept_bytes == 0, "and what was kept of it with it"


# History


def test_all_that_was_missed_is_there() -> None:
    desk = Desk()
    topic = desk.publish("a", b"1", b"2", b"3")
    found = {offset: desk.since(topic, offset) for offset in range(-1, 6)}
    assert found == {
        -1: None,
        0: [b"1", b"2", b"3"],
        1: [b"2", b"3"],
        2: [b"3"],
        3: [],
        4: None,  # beyond the end: it was never told of such a message
        5: None,
    }
    for offset in range(4):
        assert desk.topics.since(topic, Position("another", offset)) is None


def test_a_topic_without_messages_has_nothing_to_miss() -> None:
    desk = Desk()
    topic = desk.topics.open("a")
    assert desk.since(topic, 0) == []
    assert desk.since(topic, 1) is None


def test_history_has_a_count_for_each_topic() -> None:
    desk = Desk(count=2)
    one, two = desk.publish("a", b"1", b"2", b"3"), desk.publish("b", b"4", b"5")
    assert [desk.since(one, offset) for offset in range(4)] == [None, [b"2", b"3"], [b"3"], []]
    assert desk.since(two, 0) == [b"4", b"5"]
    assert desk.topics.kept_bytes == 4


def test_history_has_an_age() -> None:
    desk = Desk(age=10.0)
    topic = desk.publish("a", b"1")
    desk.now += 6.0
    desk.publish("a", b"2")
    desk.now += 3.9
    assert desk.since(topic, 0) == [b"1", b"2"]
    desk.now += 0.1
    assert desk.since(topic, 0) is None
    assert desk.since(topic, 1) == [b"2"]
    desk.now += 5.9
    assert desk.since(topic, 1) == [b"2"]
    desk.publish("b", b"3")
    desk.now += 0.2
    assert desk.since(topic, 1) is None
    assert desk.since(topic, 2) == [], "who has all is told so, however long ago that was"
    assert desk.topics.kept_bytes == 1


def test_history_has_bytes_over_all_topics() -> None:
    desk = Desk(size=100)
    one, two = desk.publish("a", bytes(40)), desk.publish("b", bytes(60))
    assert desk.since(one, 0) == [bytes(40)]
    assert desk.topics.kept_bytes == 100
    desk.publish("b", b"x")
    assert desk.since(one, 0) is None
    assert desk.since(two, 0) == [bytes(60), b"x"]
    desk.publish("a", bytes(101))
    assert desk.topics.kept_bytes == 0, "what is larger than all of it is not kept, and leaves nothing else"
    assert desk.since(one, 1) is None
    assert desk.since(two, 1) is None
    desk.publish("a", bytes(7))
    assert desk.since(one, 2) == [bytes(7)]


@pytest.mark.parametrize("bounds", [{"count": 0}, {"age": 0.0}, {"size": 0}], ids=str)
def test_no_history(bounds: dict[str, int]) -> None:
    desk = Desk(**bounds)  # type: ignore[arg-type]
    topic = desk.publish("a", b"1", b"2")
    assert [desk.since(topic, offset) for offset in range(4)] == [None, None, [], None]
    assert desk.topics.kept_bytes == 0


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_published_what_is_missed_is_complete_or_nothing(seed: int) -> None:
    """Against a model that keeps everything: never a gap, and nothing is kept over the bounds or lost within them."""
    chance, desk = random.Random(seed), Desk(count=8, age=20.0, size=300)
    told: list[tuple[str, float, bytes]] = []
    for number in range(1000):
        name, frame = chance.choice("abc"), b"%d" % number + bytes(chance.choice((0, 10, 60)))
        topic = desk.publish(name, frame)
        told.append((name, desk.now, frame))
        desk.now += chance.choice((0.0, 0.5, 4.0))
        own = [(at, frame) for one, at, frame in told if one == name]
        for missed in range(min(10, len(own)) + 1):
            found = desk.since(topic, topic.offset - missed)
            expected = own[len(own) - missed :]
            young = all(desk.now - at < 20.0 for at, _ in expected)
            assert found is None or (found == [frame for _, frame in expected] and missed <= 8 and young)
            if missed <= 8 and young and volume(told, expected) <= 300:
                assert found is not None, (number, missed)
    assert desk.topics.kept_bytes <= 300


def volume(told: list[tuple[str, float, bytes]], messages: list[tuple[float, bytes]]) -> int:
    """The bytes of all that was told since the first of these messages."""
    if not messages:
        return 0
    first = next(index for index in range(len(told) - 1, -1, -1) if told[index][2] == messages[0][1])
    return sum(len(frame) for *_, frame in told[first:])
