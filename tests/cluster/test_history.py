"""How much is kept of each topic, for how long, and of whom, as the stream of a gateway alone shows it."""

import itertools
import random

import pytest

from gateway.cluster.history import EXPIRE
from gateway.cluster.stream import Position
from tests.support.desk import OVERHEAD, Desk


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
        assert desk.stream.since(topic, Position("another", offset), 1000) is None


def test_a_topic_without_messages_has_nothing_to_miss() -> None:
    desk = Desk()
    topic = desk.publish("a")
    assert desk.since(topic, 0) == []
    assert desk.since(topic, 1) is None


def test_history_has_a_count_for_each_topic() -> None:
    desk = Desk(count=2)
    one, two = desk.publish("a", b"1", b"2", b"3"), desk.publish("b", b"4", b"5")
    assert [desk.since(one, offset) for offset in range(4)] == [None, [b"2", b"3"], [b"3"], []]
    assert desk.since(two, 0) == [b"4", b"5"]
    assert desk.stream.kept_bytes == 4 * (OVERHEAD + 1)


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
    assert desk.stream.kept_bytes == OVERHEAD + 1


def test_very_many_messages_that_are_too_old_at_once_go_bit_by_bit_and_are_gone_at_once() -> None:
    desk = Desk(count=10 * EXPIRE, age=10.0, size=10**9)
    topic = desk.publish("a", *[b"1"] * (3 * EXPIRE))
    size = desk.stream.kept_bytes // (3 * EXPIRE)
    desk.now += 10.0
    left = []
    for _ in range(4):
        desk.publish("b", b"2")
        assert desk.since(topic, 3 * EXPIRE - 1) is None
        left.append(desk.stream.kept_bytes)
    assert all(0 < before - after < 2.1 * EXPIRE * size for before, after in itertools.pairwise(left[:2]))
    assert left[-1] < 5 * size, "in the end nothing is left of them"


def test_history_has_bytes_over_all_topics() -> None:
    size = 2 * OVERHEAD + 100
    desk = Desk(size=size)
    one, two = desk.publish("a", bytes(40)), desk.publish("b", bytes(60))
    assert desk.since(one, 0) == [bytes(40)]
    assert desk.stream.kept_bytes == size
    desk.publish("b", b"x")
    assert desk.since(one, 0) is None
    assert desk.since(two, 0) == [bytes(60), b"x"]
    desk.publish("a", bytes(size))
    assert desk.stream.kept_bytes == 0, "what is larger than all of it is not kept, and leaves nothing else"
    assert desk.since(one, 1) is None
    assert desk.since(two, 1) is None
    desk.publish("a", bytes(7))
    assert desk.since(one, 2) == [bytes(7)]


def test_a_flood_erases_the_history_of_its_own_principal_alone() -> None:
    """68 MB of one, in messages of any size, cost the others nothing, though theirs are older."""
    desk = Desk(size=1 << 26)
    quiet = desk.publish("quiet.a", *(b"%d" % number for number in range(50)), owner="quiet")
    for number in range(68):
        desk.publish("flood.a", bytes(10**6), owner="flood")
        desk.publish(f"flood.{number}", b"1", owner="flood")
    assert desk.since(quiet, 0) == [b"%d" % number for number in range(50)]
    assert desk.since("flood.a", 0) is None
    assert desk.since("flood.a", 67) == [bytes(10**6)]
    assert (1 << 26) - 10**6 < desk.stream.kept_bytes <= 1 << 26
    desk.publish("flood.b", bytes(1 << 26), owner="flood")
    assert desk.since(quiet, 0) is not None, "what is larger than all of it is not kept"
    assert desk.stream.kept_bytes < 50 * (OVERHEAD + 20), "and leaves nothing else of its principal"


def test_who_holds_most_gives_until_another_holds_more() -> None:
    size = OVERHEAD + 100
    desk = Desk(size=10 * size)
    for number in range(7):
        desk.publish("a", bytes(100), owner="a")
        if number < 3:
            desk.publish("b", bytes(100), owner="b")
    for _ in range(4):
        desk.publish("b", bytes(100), owner="b")
    kept = [next(offset for offset in range(8) if desk.since(name, offset) is not None) for name in "ab"]
    assert kept in ([2, 2], [1, 3], [3, 1]), "five each, or nearly"
    assert desk.stream.kept_bytes == 10 * size


def test_what_is_older_on_a_topic_than_a_message_that_goes_goes_with_it() -> None:
    """Nobody could go on from there: what was missed is complete, or nothing."""
    desk = Desk(size=4 * (OVERHEAD + 100))
    topic = desk.publish("t", bytes(100), owner="b")
    desk.publish("t", bytes(100), owner="a")
    desk.publish("t", bytes(100), owner="b")
    desk.publish("u", *([bytes(100)] * 2), owner="a")
    assert desk.since(topic, 2) == [bytes(100)]
    assert [desk.since(topic, offset) for offset in (0, 1)] == [None, None]
    assert desk.stream.kept_bytes == 3 * (OVERHEAD + 100)
    desk.stream.forget("t")
    desk.stream.forget("u")
    assert (desk.stream.kept_bytes, desk.stream._accounts) == (0, {})


@pytest.mark.parametrize("seed", range(3))
def test_whoever_publishes_no_share_is_lost_that_is_smaller_than_the_largest(seed: int) -> None:
    """Against what is kept itself: complete or nothing, within the bounds, and who holds little loses nothing."""
    chance, desk = random.Random(seed), Desk(count=8, age=50.0, size=3000)
    told: dict[str, list[bytes]] = {}
    for number in range(1000):
        owner = chance.choice("aab")
        name = f"{owner}.{chance.randrange(9)}"
        position = desk.stream.publish(name, b"%d" % number + bytes(chance.choice((0, 10, 200))), owner)
        told.setdefault(name, []).append(desk.heard[-1][1])
        desk.now += chance.choice((0.0, 0.5))
        assert position.offset == len(told[name])
        for missed in range(len(told[name]) + 1):
            found = desk.stream.since(name, Position(position.epoch, position.offset - missed), 1000)
            assert found is None or [text for _, text in found] == told[name][len(told[name]) - missed :]
        if number % 20 == 0:
            desk.stream.publish("still", b"1", "little")
            assert desk.since("still", desk.stream.position("still").offset - 1) == [b"1"]
        accounts = desk.stream._accounts.values()
        assert sum(account.octets for account in accounts) == desk.stream.kept_bytes <= 3000
        assert sum(len(account.kept) for account in accounts) == len(desk.stream._kept)


@pytest.mark.parametrize("bounds", [{"count": 0}, {"age": 0.0}, {"size": 0}], ids=str)
def test_no_history(bounds: dict[str, int]) -> None:
    desk = Desk(**bounds)
    topic = desk.publish("a", b"1", b"2")
    assert [desk.since(topic, offset) for offset in range(4)] == [None, None, [], None]
    assert desk.stream.kept_bytes == 0


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_published_what_is_missed_is_complete_or_nothing(seed: int) -> None:
    """Against a model that keeps everything: never a gap, and nothing is kept over the bounds or lost within them."""
    chance, desk = random.Random(seed), Desk(count=8, age=20.0, size=1500)
    told: list[tuple[str, float, bytes]] = []
    for number in range(1000):
        name, data = chance.choice("abc"), b"%d" % number + bytes(chance.choice((0, 10, 60)))
        position = desk.stream.publish(name, data)
        told.append((name, desk.now, desk.heard[-1][1]))
        desk.now += chance.choice((0.0, 0.5, 4.0))
        own = [(at, text) for one, at, text in told if one == name]
        for missed in range(min(10, len(own)) + 1):
            found = desk.stream.since(name, Position(position.epoch, position.offset - missed), 1000)
            expected = own[len(own) - missed :]
            young = all(desk.now - at < 20.0 for at, _ in expected)
            numbered = list(enumerate((text for _, text in expected), position.offset - missed + 1))
            assert found is None or (found == numbered and missed <= 8 and young)
            if missed <= 8 and young and volume(told, expected) <= 1500:
                assert found is not None, (number, missed)
    assert desk.stream.kept_bytes <= 1500


def volume(told: list[tuple[str, float, bytes]], messages: list[tuple[float, bytes]]) -> int:
    """The bytes of all that was told since the first of these messages."""
    if not messages:
        return 0
    first = next(index for index in range(len(told) - 1, -1, -1) if told[index][2] == messages[0][1])
    return sum(len(text) for *_, text in told[first:])
