"""Topics: names and patterns, who makes room for others, and subscriptions that overlap."""

import random
import weakref

import pytest

from gateway.cluster.stream import Position
from gateway.events.topics import FullError, Topic, Topics, meets
from gateway.websocket.frames import Written


class Someone:
    """A subscriber that keeps what it is given."""

    def __init__(self) -> None:
        self.patterns: dict[str, None] = {}
        self.overlaps: dict[Topic, int] = {}
        self.topics: dict[Topic, Written] = {}
        self.frames: list[bytes] = []

    def write(self, frame: bytes) -> None:
        """Keep it."""
        self.frames.append(frame)

    def deliver(self, topic: Topic, before: Position, frame: bytes) -> None:
        """Keep it."""
        self.frames.append(frame)

    def parted(self, topic: Topic) -> None:
        """Give it up."""
        del self.topics[topic]

    def forgotten(self, topic: Topic) -> None:
        """Give it up."""
        del self.topics[topic]

    @property
    def names(self) -> list[str]:
        """Its topics, in order."""
        return sorted(topic.name for topic in self.topics)


class Desk:
    """Topics, and the names of those that had to make room."""

    def __init__(self, *, max_topics: int = 100, conflate: tuple[str, ...] = ()) -> None:
        self.forgotten: list[str] = []
        self.topics = Topics(self.forgotten.append, max_topics=max_topics, conflate=conflate)

    def publish(self, name: str, owner: str = "") -> Topic:
        """A message of a topic; returns the topic."""
        self.topics.touch(name, owner)
        return self.topics.open(name)

    def of(self, owner: str) -> list[str]:
        """The topics that count for a principal, in order."""
        there = (self.topics.get(name) for name in sorted(topic.name for topic in self.topics.names.met_by(">")))
        return [topic.name for topic in there if topic is not None and topic.holder.owner == owner]


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


def test_a_topic_with_a_subscriber_by_its_name_stays() -> None:
    desk, someone = Desk(max_topics=2), Someone()
    desk.topics.subscribe(someone, "a")
    for name in ("a", "b", "c", "d"):
        desk.publish(name)
    assert [name for name in "abcd" if desk.topics.get(name)] == ["a", "d"]
    desk.topics.subscribe(someone, "d")
    with pytest.raises(FullError):
        desk.topics.open("e")
    assert desk.topics.subscribe(someone, "e") == [], "it only has not begun"
    assert (list(someone.patterns), someone.names, len(desk.topics)) == (["a", "d", "e"], ["a", "d"], 2)
    assert desk.topics.open("a").name == "a", "one that is there needs no room"
    desk.topics.unsubscribe(someone, "a")
    desk.topics.open("e")
    assert [name for name in "ade" if desk.topics.get(name)] == ["d", "e"]
    assert someone.names == ["d", "e"]


def test_one_message_of_names_and_a_pattern_leaves_all_topics_to_those_who_publish() -> None:
    desk, hoarder = Desk(max_topics=3), Someone()
    for pattern in (">", *(f"mine.{number}" for number in range(999))):
        assert desk.topics.subscribe(hoarder, pattern) == []
    assert len(desk.topics) == 0, "only publishing opens one"
    for number in range(10):
        desk.publish(f"new.{number}")
    assert hoarder.names == ["new.7", "new.8", "new.9"], "and a pattern keeps none"
    desk.publish("mine.5")
    assert hoarder.names == ["mine.5", "new.8", "new.9"]


def test_a_topic_without_a_subscriber_makes_room_before_one_that_a_pattern_meets() -> None:
    desk, someone = Desk(max_topics=3), Someone()
    desk.topics.subscribe(someone, "a.>")
    for name in ("a.b", "x", "a.c", "y", "z"):
        desk.publish(name)
    assert desk.forgotten == ["x", "y"]
    desk.publish("a.b")
    desk.topics.subscribe(someone, "z")
    desk.publish("new")
    assert desk.forgotten == ["x", "y", "a.c"], "of those that it meets the one goes that was published to longest ago"
    assert someone.names == ["a.b", "z"]
    desk.topics.leave(someone)
    desk.publish("newer")
    assert "new" in desk.forgotten
    assert (someone.topics, someone.overlaps) == ({}, {})


def test_the_gateways_own_topics_take_no_room_and_make_none() -> None:
    desk = Desk(max_topics=1)
    for name in ("gateway.draining", "gateway.node.online", "a", "b"):
        desk.topics.open(name)
    assert desk.forgotten == ["a"]
    assert desk.topics.get("gateway.draining") is not None


# Subscriptions


def test_subscriptions_that_overlap() -> None:
    desk, someone = Desk(), Someone()
    subscribe, unsubscribe = desk.topics.subscribe, desk.topics.unsubscribe
    desk.topics.open("a.b")
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
    for name in ("a", "a.b"):
        desk.topics.open(name)
    desk.topics.leave(someone)
    desk.topics.leave(someone)
    assert (someone.names, someone.patterns) == ([], {})
    assert other.names == ["a", "a.b"]
    desk.topics.open("new")
    assert (someone.names, other.names) == ([], ["a", "a.b", "new"])
    gone = weakref.ref(someone)
    del someone
    assert gone() is None, "a table still holds it"


def test_ending_a_subscription_costs_what_it_met() -> None:
    """With ten thousand topics and a thousand patterns beside it: nothing is matched again."""
    desk, someone = Desk(max_topics=10_000), Someone()
    for number in range(10_000):
        desk.topics.open(f"t.{number}")
    for pattern in (">", "t.*", "a.b", *(f"x.{number}.*" for number in range(990))):
        desk.topics.subscribe(someone, pattern)
    before = desk.topics.names.visits, desk.topics.patterns.visits
    assert desk.topics.unsubscribe(someone, "a.b") == 0
    assert desk.topics.unsubscribe(someone, "x.5.*") == 0
    assert desk.topics.unsubscribe(someone, "unknown") == 0
    assert (desk.topics.names.visits - before[0], desk.topics.patterns.visits - before[1]) == (0, 0)
    assert desk.topics.unsubscribe(someone, "t.*") == 10_000
    assert desk.topics.names.visits - before[0] == 10_001
    assert desk.topics.patterns.visits == before[1]
    assert (len(someone.topics), someone.overlaps) == (10_000, {})


def test_a_new_topic_looks_at_none_of_30000_patterns_of_others() -> None:
    desk, people = Desk(), [Someone() for _ in range(30)]
    for one, someone in enumerate(people):
        for number in range(1000):
            desk.topics.subscribe(someone, f"c{one}.site{number}.*.v")
    before = desk.topics.patterns.visits
    assert list(desk.topics.open("c7.site9.lamp.v").subscribers) == [people[7]]
    assert not desk.topics.open("nobody.asked.for.this").subscribers
    assert desk.topics.patterns.visits - before == 4


# Whose topics make room


def test_10001_topics_of_one_principal_take_none_of_another() -> None:
    desk = Desk(max_topics=10_000)
    for number in range(20):
        desk.publish(f"quiet.{number}", "quiet")
    for number in range(10_001):
        desk.publish(f"flood.{number}", "flood")
    assert len(desk.of("quiet")) == 20
    assert desk.forgotten == [f"flood.{number}" for number in range(21)], (
        "its own, the one published to longest ago first"
    )
    desk.publish("late.1", "late")
    assert desk.forgotten[21:] == ["flood.21"], "and a newcomer finds room"


def test_who_has_as_many_topics_as_any_other_gives_up_its_own() -> None:
    desk = Desk(max_topics=4)
    for name, owner in (("a.1", "a"), ("a.2", "a"), ("b.1", "b"), ("b.2", "b")):
        desk.publish(name, owner)
    desk.publish("a.3", "a")
    assert (desk.of("a"), desk.of("b")) == (["a.2", "a.3"], ["b.1", "b.2"])
    desk.publish("c.1", "c")
    assert (len(desk.of("a")) + len(desk.of("b")), desk.of("c")) == (3, ["c.1"])
    desk.publish("c.2", "c")
    assert sorted(map(len, map(desk.of, "abc"))) == [1, 1, 2]


def test_a_topic_counts_for_who_began_it_and_a_message_of_another_keeps_it() -> None:
    desk = Desk(max_topics=3)
    for name in ("a.1", "a.2", "a.3"):
        desk.publish(name, "a")
    desk.publish("a.1", "b")
    desk.publish("b.1", "b")
    assert (desk.of("a"), desk.of("b")) == (["a.1", "a.3"], ["b.1"])


def test_where_the_largest_holder_s_topics_are_all_asked_for_by_name_the_next_one_gives() -> None:
    desk, someone = Desk(max_topics=5), Someone()
    for number in range(3):
        desk.topics.subscribe(someone, f"a.{number}")
        desk.publish(f"a.{number}", "a")
    for number in range(2):
        desk.publish(f"b.{number}", "b")
    desk.publish("c.0", "c")
    assert (desk.of("a"), desk.of("b"), desk.of("c")) == (["a.0", "a.1", "a.2"], ["b.1"], ["c.0"])
    with pytest.raises(FullError):
        desk.publish("a.3", "a")
    desk.topics.unsubscribe(someone, "a.0")
    desk.publish("c.1", "c")
    assert desk.of("a") == ["a.1", "a.2"]


def test_what_another_gateway_has_taken_begins_here_whoever_has_to_make_room_for_it() -> None:
    """It cannot be refused any more. Otherwise a subscriber by a pattern would miss it, and not be told."""
    desk, someone = Desk(max_topics=3), Someone()
    for name in ("a.0", "a.1"):
        desk.topics.subscribe(someone, name)
        desk.publish(name, "a")
    desk.publish("b.0", "b")
    with pytest.raises(FullError):
        desk.publish("a.2", "a")
    desk.topics.arrive("a.2", "a")
    assert (desk.of("a"), desk.of("b"), desk.forgotten) == (["a.0", "a.1", "a.2"], [], ["b.0"])
    desk.topics.arrive("a.0", "c")
    assert desk.of("c") == [], "it is there"


def test_if_nothing_may_make_room_what_arrives_is_one_too_many_and_the_next_to_go() -> None:
    desk, someone = Desk(max_topics=2), Someone()
    for name in ("a", "b", "c", ">"):
        desk.topics.subscribe(someone, name)
    for name in ("a", "b", "c", *(f"new.{number}" for number in range(9))):
        desk.topics.arrive(name, "x")
    assert someone.names == ["a", "b", "c", "new.8"]
    desk.topics.arrive("gateway.draining", "")
    assert len(desk.topics) == 5, "the gateway's own are beside them"


def test_who_has_no_topic_left_is_forgotten() -> None:
    desk = Desk(max_topics=2)
    for number in range(1000):
        desk.publish(f"t.{number}", f"owner {number}")
    assert len(desk.topics) == 2
    assert len(desk.topics._holders) == 2


LONG = ".".join("abcdefghijkl")
OWN = ["gateway.node.online", "gateway.draining"]
NAMES = ["a", "b", "a.a", "a.b", "b.a", "a.b.c", "gateway", LONG, f"{LONG}.m", f"{LONG}.m.n", *OWN]
PATTERNS = [*NAMES, "*", ">", "a.*", "a.>", "*.a", "*.>", "a.*.c", "gateway.>", "gateway.*", "*.*.online", "*.*.*"]
PATTERNS += ["*.b.c.d.e.f.g.h.i.j.k.l", "a.b.c.d.e.f.g.h.i.j.k.*", "a.b.c.d.e.f.g.h.i.j.k.>", "a.*.c.>"]


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
            named = set().union(*wanted.values())
            assert all(desk.topics.get(name) is None or name in named for name in NAMES if name not in OWN)
        there = [topic for name in NAMES if (topic := desk.topics.get(name)) is not None]
        assert len(there) == len(desk.topics)
        assert len([topic for topic in there if topic.name not in OWN]) <= 6
        for one in people:
            assert set(one.patterns) == wanted[one]
            met = {topic for topic in there if any(meets(pattern, topic.name) for pattern in wanted[one])}
            assert set(one.topics) == met == {topic for topic in there if one in topic.subscribers}
            for topic in met:
                assert one.overlaps.get(topic, 0) == sum(meets(pattern, topic.name) for pattern in wanted[one]) - 1
            assert one.overlaps.keys() <= met
    emptied(desk, people)


def emptied(desk: Desk, people: list[Someone]) -> None:
    """All leave, and nothing is left of anybody."""
    for someone in people:
        desk.topics.leave(someone)
        assert (someone.patterns, someone.topics, someone.overlaps) == ({}, {}, {})
    for number in range(6):
        assert not desk.topics.open(f"new.{number}").subscribers
    left = [name for name in (*NAMES, *(f"new.{number}" for number in range(6))) if desk.topics.get(name)]
    assert len([name for name in left if name not in OWN]) == 6, "every other topic could go"
