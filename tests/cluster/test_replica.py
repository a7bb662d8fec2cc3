"""The tail of a shared stream in memory: what it says is complete is complete, whatever was missed meanwhile."""

import itertools
import random
from collections.abc import Iterator

import pytest

from gateway.cluster.replica import Replica, StrangeError, opened, sealed
from gateway.cluster.stream import Lapse, Position
from tests.support.listening import Listening, data_of, place_of

TIME = "1970-01-01T00:00:01.999Z"


class Desk:
    """A replica with a clock that the test moves."""

    def __init__(self, *, count: int = 100, age: float = 60.0, octets: int = 1 << 20) -> None:
        self.now = 1000.0
        self.replica = Replica(lambda: self.now, count=count, age=age, octets=octets)
        self.listener = self.replica.listener = Listening()
        self.replica.reset("e1")
        self.replica.caught_up(1, 0)

    def take(self, topic: str, *numbers: int, age: float = 0.0, owner: str = "") -> None:
        """Messages with these numbers, which are their data, too."""
        for number in numbers:
            self.replica.take(topic, number, age, sealed(TIME, owner, b"%d" % number))

    def since(self, topic: str, offset: int, most: int = 1000) -> list[int] | None:
        """The numbers of what follows an offset."""
        found = self.replica.since(topic, Position(self.replica.epoch, offset), most)
        return None if found is None else [number for number, _ in found]


def test_a_message_comes_back_out_as_it_went_in() -> None:
    assert opened(sealed(TIME, "küche, links", b'{"a":\n"b c"}')) == (TIME.encode(), "küche, links", b'{"a":\n"b c"}')
    assert opened(sealed(TIME, "", b"1")) == (TIME.encode(), "", b"1")


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"\n1", b"hello world\n1", b"\xff" * 24 + b" a\n1", TIME.encode() + b"\n1"]
)
def test_what_no_gateway_has_published_is_strange_and_has_a_number_nonetheless(text: bytes) -> None:
    desk = Desk()
    with pytest.raises(StrangeError):
        desk.replica.take("a", 1, 0.0, text)
    assert (desk.replica.head, desk.listener.heard) == (1, [])
    desk.take("a", 2)
    assert desk.listener.places() == [("a", 2)]


@pytest.mark.parametrize("topic", ["", "a..b", "a b", "a.*", "x" * 201, "a\x00"])
def test_a_topic_that_nobody_may_publish_to_is_strange(topic: str) -> None:
    with pytest.raises(StrangeError):
        Desk().take(topic, 1)


def test_the_listener_learns_whose_message_comes_before_it_gets_it() -> None:
    desk = Desk()
    desk.take("a", 1, owner="pi")
    ((topic, before, text),) = desk.listener.heard
    assert (topic, before, place_of(text), data_of(text)) == ("a", Position("e1", 0), Position("e1", 1), b"1")
    assert desk.listener.owners == {"a": "pi"}


def test_no_data_stands_for_messages_that_are_lost() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.replica.take("a", 2, 0.0, sealed(TIME, "", b""))
    told = b'{"jsonrpc":"2.0","method":"event.gap","params":{"topic":"a","epoch":"e1","offset":2}}'
    assert desk.listener.heard[-1] == ("a", Position("e1", 1), told)
    assert desk.replica.since("a", Position("e1", 1), 10) == [(2, told)], "it is told to those who come back, too"


def test_a_message_that_is_caught_up_with_is_as_old_as_it_is() -> None:
    desk = Desk(age=10.0)
    desk.take("a", 1, age=8.0)
    desk.take("a", 2, age=3.0)
    assert desk.since("a", 0) == [1, 2]
    desk.now += 2.0
    assert (desk.since("a", 0), desk.since("a", 1)) == (None, [2])
    assert desk.replica.oldest("a") == Position("e1", 1)
    desk.now += 5.0
    assert (desk.since("a", 1), desk.since("a", 2)) == (None, [])
    assert desk.replica.oldest("a") == Position("e1", 2)


def test_other_topics_make_no_holes() -> None:
    desk = Desk()
    desk.take("a", 1, 4)
    desk.replica.take("b", 7, 0.0, sealed(TIME, "", b"7"))
    assert [desk.since("a", offset) for offset in range(9)] == [[1, 4], [4], [4], [4], [], [], [], [], None]
    assert [desk.since("b", offset) for offset in (0, 6, 7)] == [[7], [7], []]
    assert [desk.since("c", offset) for offset in (0, 7, 8)] == [[], [], None]


def test_a_topic_that_is_forgotten_takes_with_it_what_is_known_of_others_that_have_not_begun() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.take("b", 2)
    desk.replica.expect("expected")
    desk.replica.forget("a")
    assert [desk.since("a", offset) for offset in (0, 1, 2)] == [None, [], []]
    assert [desk.since("new", offset) for offset in (0, 1)] == [None, []]
    assert [desk.since(name, 0) for name in ("b", "expected")] == [[2], []]
    assert desk.replica.kept_bytes == len(desk.listener.heard[1][2])


# Catching up


def test_less_than_the_limit_was_missed_nothing_is_missing() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.replica.catch_up()
    desk.take("a", 5, 6)
    assert desk.replica.caught_up(1, 3) is None
    assert [desk.since("a", offset) for offset in (0, 1)] == [[1, 5, 6], [5, 6]]


def test_as_many_as_the_limit_came_so_some_before_them_may_be_missing() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.take("b", 2)
    desk.replica.catch_up()
    desk.take("a", 5, 6, 8, 9)
    desk.take("b", 10)
    assert desk.replica.caught_up(1, 3) is None, "it is known of which topic"
    assert [desk.since("a", offset) for offset in (0, 1, 4, 5, 6)] == [None, None, None, [6, 8, 9], [8, 9]]
    assert desk.replica.oldest("a") == Position("e1", 5)
    assert desk.since("b", 1) == [2, 10]


@pytest.mark.parametrize(
    ("bounds", "complete"),
    [({"count": 2}, {6: [8, 9], 7: [8, 9], 8: [9]}), ({"octets": 200}, {8: [9]}), ({"count": 0}, {})],
    ids=str,
)
def test_what_was_missed_counts_even_if_less_of_it_is_kept_here(
    bounds: dict[str, int], complete: dict[int, list[int]]
) -> None:
    desk = Desk(**bounds)
    desk.take("a", 1)
    desk.replica.catch_up()
    desk.take("a", 5, 6, 8, 9)
    desk.replica.caught_up(1, 3)
    found = {offset: desk.since("a", offset) for offset in range(10)}
    assert found == dict.fromkeys(range(9)) | complete | {9: []}


def test_an_attempt_that_came_to_nothing_counts_with_the_next_one() -> None:
    desk = Desk()
    desk.replica.catch_up()
    desk.take("a", 5, 6)
    desk.replica.catch_up()
    desk.take("a", 9)
    desk.replica.caught_up(1, 3)
    assert [desk.since("a", offset) for offset in (0, 3, 4)] == [None, None, [5, 6, 9]]
    desk.replica.catch_up()
    desk.take("a", 11)
    desk.replica.caught_up(1, 3)
    assert desk.since("a", 4) == [5, 6, 9, 11], "and then no more"


def test_what_the_stream_has_dropped_may_have_been_of_any_topic() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.take("b", 2)
    expected = desk.replica.expect("c")
    desk.replica.catch_up()
    desk.take("a", 9)
    lapse = desk.replica.caught_up(8, 100)
    assert lapse == Lapse({"b": Position("e1", 2), "c": expected}, Position("e1", 2))
    assert [desk.since("a", offset) for offset in (1, 6, 7)] == [None, None, [9]]
    for topic in ("b", "c", "never heard of"):
        assert [desk.since(topic, offset) for offset in (2, 6, 7, 9)] == [None, None, [], []]
    assert desk.replica.position("b") == Position("e1", 7), "nobody can be told of a gap and then be before it"
    assert desk.replica.caught_up(8, 100) is None, "once"


def test_another_stream_may_have_lost_messages_of_any_topic_that_was_known() -> None:
    desk = Desk()
    desk.take("a", 1)
    desk.replica.expect("b")
    desk.replica.reset("e2")
    assert desk.replica.kept_bytes == 0
    desk.take("a", 1, 2)
    lapse = desk.replica.caught_up(1, 100)
    assert lapse == Lapse({"a": Position("e1", 1), "b": Position("e1", 1)}, Position("e1", 1))
    assert desk.since("a", 0) == [1, 2]
    assert desk.replica.since("a", Position("e1", 1), 10) is None


def test_after_two_other_streams_the_first_positions_count() -> None:
    desk = Desk()
    desk.take("a", 7)
    desk.replica.reset("e2")
    desk.take("a", 1)
    desk.take("b", 2)
    desk.replica.reset("e3")
    lapse = desk.replica.caught_up(1, 100)
    assert lapse == Lapse({"a": Position("e1", 7), "b": Position("e2", 2)}, Position("e1", 7))


class Server:
    """What JetStream does: it numbers messages, and keeps the last ``limit`` of each topic and the last ``most``."""

    def __init__(self, limit: int, most: int) -> None:
        self.limit = limit
        self.most = most
        self.all: list[str] = []
        self.kept: dict[int, str] = {}

    def publish(self, topic: str) -> int:
        """Returns its number."""
        self.all.append(topic)
        number = len(self.all)
        self.kept[number] = topic
        mine = [one for one, name in self.kept.items() if name == topic]
        for one in mine[: -self.limit]:
            del self.kept[one]
        while len(self.kept) > self.most:
            del self.kept[min(self.kept)]
        return number

    @property
    def first(self) -> int:
        """The number of the first that is kept."""
        return min(self.kept, default=len(self.all) + 1)

    def walk(self, number: int) -> Iterator[tuple[int, str]]:
        """What a consumer gets, at the time when it gets it."""
        while number := min((one for one in self.kept if one >= number), default=0):
            yield number, self.kept[number]
            number += 1


@pytest.mark.parametrize("seed", range(15))
def test_whatever_is_missed_and_dropped_meanwhile_nothing_is_called_complete_that_is_not(seed: int) -> None:
    """Against all that was ever published: what is said is complete, and what is not known is told to all."""
    chance = random.Random(seed)
    server = Server(limit=chance.choice((1, 2, 4)), most=chance.choice((6, 15, 1000)))
    desk = Desk(count=chance.choice((1, 3, 100)))
    recovered = 0
    for _ in range(30):
        for _ in range(chance.randrange(12)):  # heard as they come
            topic = chance.choice("aaabbc")
            desk.take(topic, server.publish(topic))
        known, head = set("abcd") & desk.replica._sequences.keys(), desk.replica.head
        heard = len(desk.listener.heard)
        for _ in range(chance.randrange(12)):  # missed
            server.publish(chance.choice("aaabbcd"))
        desk.replica.catch_up()
        early: list[tuple[int, str]] = []
        for number, topic in server.walk(head + 1):
            desk.take(topic, number)
            for _ in range(chance.choice((0, 0, 1, 3)) if len(early) < 30 else 0):  # dropped before they are seen
                other = chance.choice("aab")
                early.append((server.publish(other), other))
            if early and number >= early[0][0] - 1:
                break
        for number, topic in early:
            if number > desk.replica.head:
                desk.take(topic, number)
        desk.replica.head = len(server.all)
        lapse = desk.replica.caught_up(server.first, server.limit)
        for topic in "abcd":
            truth = [n for n, name in enumerate(server.all, 1) if name == topic]
            for offset in range(max(0, len(server.all) - 60), len(server.all) + 1):
                found = desk.since(topic, offset)
                assert found is None or found == [n for n in truth if n > offset], (topic, offset)
                recovered += bool(found)
            missed = [n for n in truth if n > head]
            news = [
                (before, place_of(text).offset) for name, before, text in desk.listener.heard[heard:] if name == topic
            ]
            if not {n for _, n in news}.issuperset(missed):
                # Each subscriber that was there is fed from before the first message that it was handed, or is told.
                lapsed = lapse is not None and (topic not in known or topic in lapse.topics)
                assert lapsed or (news and desk.since(topic, news[0][0].offset) is None), (topic, missed)
    assert recovered, "and something is complete"


def test_the_bounds_hold_for_each_account_and_nothing_grows() -> None:
    chance, desk = random.Random(1), Desk(count=8, age=50.0, octets=3000)
    for number in itertools.islice(itertools.count(1), 2000):
        owner = chance.choice("aab")
        desk.take(f"{owner}.{chance.randrange(9)}", number, owner=owner)
        desk.now += chance.choice((0.0, 0.5))
    accounts = desk.replica._accounts.values()
    assert sum(account.octets for account in accounts) == desk.replica.kept_bytes <= 3000
    for name in list(desk.replica._sequences):
        desk.replica.forget(name)
    assert (desk.replica.kept_bytes, desk.replica._kept, desk.replica._accounts) == (0, {}, {})
