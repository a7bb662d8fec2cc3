"""Delivery: past the outboxes or by them, what is counted, and the latest message of conflated topics."""

import gc
import weakref

import pytest

from gateway.cluster.stream import Lapse, Position
from gateway.events.delivery import AT_ONCE, BYTES_AT_ONCE
from gateway.events.pauses import FED_AT_ONCE
from gateway.rpc.work import at_once
from tests.support.ears import Ear, Way, hall, join, notification_in, size, subscribe, unsubscribe
from tests.support.shared import SharedHall
from tests.support.stations import heard

CROWD = 3


def test_what_nobody_has_to_wait_for_is_written_at_once_and_counted_when_asked() -> None:
    way, ears = Way(True), [Ear() for _ in range(3)]
    here = hall(way=way)
    events = here.events
    events.publish("a", b"0")
    assert way.asked == 0, "nobody is there"
    for ear in ears:
        join(events, ear, "a", ">")
    for data in (b"1", b"22", b'"333"'):
        events.publish("a", data)
        events.publish("b", data)
    join(events, ears[0], "a", "b")
    for ear in ears:
        assert len(ear.frames) == 6
        assert ear.past == ear.past == size(ear.frames), "asking changes nothing"
        assert (ear.sent, ear.counted) == (0, (0, 0))
    assert (way.asked, here.delivery.delivered) == (6, 18)


def test_a_large_message_to_many_goes_by_the_outboxes() -> None:
    ears = [Ear() for _ in range(8)]
    events = hall().events
    for ear in ears:
        join(events, ear, "a")
    few = b'"' + bytes(BYTES_AT_ONCE // len(ears) - 1000) + b'"'
    many = b'"' + bytes(BYTES_AT_ONCE // len(ears)) + b'"'
    events.publish("a", few)
    assert {ear.sent for ear in ears} == {0}
    events.publish("a", many)
    assert {ear.sent for ear in ears} == {1}


def test_who_has_come_later_counts_from_then_on() -> None:
    events, early, late = hall().events, Ear(), Ear()
    join(events, early, "a")
    events.publish("a", b"0")
    join(events, late, ">")
    events.publish("a", b"0")
    assert late.past == size(late.frames) == size(early.frames[1:])
    assert unsubscribe(events, early, ["a"]) == []
    events.publish("a", b"0")
    assert early.past == size(early.frames), "what was written stays counted after the subscription's end"
    assert late.past == size(late.frames)


def test_while_one_has_to_wait_all_are_sent_to_by_their_outboxes() -> None:
    way, ear, other, elsewhere = Way(True), Ear(), Ear(), Ear()
    events = hall(way=way).events
    for one, name in ((ear, "a"), (other, "a"), (elsewhere, "b")):
        join(events, one, name)

    def past() -> bool:
        """Whether the next message is written past the outboxes."""
        before = ear.sent, other.sent, way.asked
        events.publish("a", b"0")
        return (ear.sent, other.sent, way.asked) == (before[0], before[1], before[2] + 1)

    assert past()
    _, release = subscribe(events, ear, ["c"], {})
    assert not past(), "its reply is not out yet"
    ear.stalled = True
    release()
    assert not past(), "it does not read"
    ear.drain()
    assert past()
    way.free = False
    assert not past()
    way.free = True
    assert past()
    elsewhere.stalled = True
    assert past(), "nobody waits for one who has not subscribed"
    ear.is_linked = False
    ear.review()
    assert ear.past == (4, size(ear.frames[:1])[1] * 4), "its end is on the way"
    assert not past()
    at_once(events.lost(ear))
    assert ear.counted == ear.past == (4, size(ear.frames[:1])[1] * 4), "the connection counts it from now on"
    assert past()
    assert other.past == (5, size(ear.frames[:1])[1] * 5)


def test_one_that_takes_no_more_of_what_is_corked_is_not_written_past() -> None:
    """To make way is to write, and so may be what fills a transport."""
    ear, other = Ear(), Ear()

    class Narrow(Way):
        def make_way(self) -> bool:
            ear.stalled = True
            return True

    events = hall(way=Narrow(True)).events
    for one in (ear, other):
        join(events, one, "a")
    events.publish("a", b"0")
    assert (ear.sent, other.sent) == (1, 1)


def test_of_a_crowd_some_get_a_message_at_once_and_the_others_later_in_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.events.delivery.CROWD", CROWD)
    monkeypatch.setattr("gateway.events.delivery.AT_ONCE", 0)
    way, ears = Way(True), [Ear() for _ in range(2 * CROWD + 1)]
    events = hall(way=way).events
    for ear in ears:
        join(events, ear, "a")

    def heard(*counts: int) -> bool:
        """Whether so many have each of the messages 1, 2, …."""
        return [sum(len(ear.frames) >= number for ear in ears) for number in range(1, 1 + len(counts))] == [*counts]

    events.publish("a", b"1")
    assert heard(CROWD)
    assert way.turn() == 1, "one slice in an iteration"
    assert heard(2 * CROWD)
    events.publish("a", b"2")
    assert heard(2 * CROWD + 1, CROWD), "the first has reached all before the second begins"
    assert len(way.acts) == 1
    last = next(ear for ear in reversed(ears) if len(ear.frames) == 1)
    assert unsubscribe(events, last, ["a"]) == []
    assert len(last.frames) == 2, "it was subscribed when the message came"
    lost = next(ear for ear in reversed(ears) if len(ear.frames) == 1)
    lost.is_linked = False
    at_once(events.lost(lost))
    while done := way.turn():
        assert done == 1
    assert heard(2 * CROWD + 1, 2 * CROWD)
    assert [offset for _, offset in ears[0].take()] == [offset for _, offset in ears[-3].take()] == [1, 2]


@pytest.mark.parametrize(("count", "past"), [(AT_ONCE, True), (AT_ONCE + 1, False)])
def test_so_many_are_written_to_in_one_go_and_no_more(count: int, past: bool) -> None:
    events, ears = hall().events, [Ear() for _ in range(count)]
    for ear in ears:
        join(events, ear, "a")
    events.publish("a", b"0")
    assert {ear.sent for ear in ears} == {0 if past else 1}
    assert {len(ear.frames) for ear in ears} == {1}


def test_who_is_lost_while_its_reply_is_awaited_is_forgotten() -> None:
    """A batch may end after its connection: then a task of a user's ends the hold of a subscriber that is no more."""
    here, ear = hall(), Ear()
    _, release = subscribe(here.events, ear, ["a"], {})
    at_once(here.events.lost(ear))
    ear.is_linked = False
    release()
    gone = weakref.ref(ear)
    del release, ear
    gc.collect()
    assert gone() is None, "a table still holds it"


# Conflation, without sockets


def test_who_is_not_held_cannot_be_released() -> None:
    """It would never be sent anything again."""
    here, ear = hall(), Ear()
    join(here.events, ear, "a")
    assert ear.subscriber is not None
    with pytest.raises(RuntimeError):
        ear.subscriber.release()
    here.events.publish("a", b"1")
    assert ear.take() == [("a", 1)]


def test_who_does_not_read_has_the_latest_of_a_conflated_topic() -> None:
    events, ear = hall(conflate=("pos.*",)).events, Ear()
    join(events, ear, ">")
    events.publish("pos.a", b"0")
    ear.stalled = True
    for name in ("pos.a", "pos.b", "pos.a", "other", "other", "pos.b", "pos.a"):
        events.publish(name, b"0")
    assert ear.take() == [("pos.a", 1), ("other", 1), ("other", 2)]
    ear.drain()
    assert ear.take() == [("pos.b", 2), ("pos.a", 4)], "in the order in which they were published"
    ear.drain()
    events.publish("pos.a", b"0")
    assert ear.take() == [("pos.a", 5)]


def test_a_latest_message_waits_as_long_as_nothing_is_read() -> None:
    events, ear = hall(conflate=(">",)).events, Ear()
    join(events, ear, ">")
    ear.stalled = True
    events.publish("a", b"0")
    assert ear.subscriber is not None
    ear.subscriber.drained()
    assert ear.frames == []


def test_who_has_unsubscribed_has_no_latest_message_later() -> None:
    events, ear = hall(conflate=(">",)).events, Ear()
    join(events, ear, "a", "b")
    ear.stalled = True
    for name in ("a", "b"):
        events.publish(name, b"0")
    unsubscribe(events, ear, ["a"])
    ear.drain()
    assert ear.take() == [("b", 1)]


def test_a_latest_message_that_was_asked_for_as_missed_comes_once() -> None:
    events, ear = hall(conflate=(">",)).events, Ear()
    join(events, ear, "a")
    ear.stalled = True
    events.publish("a", b"0")
    events.publish("a", b"0")
    join(events, ear, "a", a=0)
    ear.drain()
    assert ear.take() == [("a", 1), ("a", 2)]


# Subscribers that are behind, without sockets


def test_one_that_is_full_is_fed_from_the_history_when_it_has_read() -> None:
    here, ear = hall(), Ear()
    join(here.events, ear, ">")
    here.events.publish("a", b"0")
    ear.stalled = True
    here.events.publish("a", b"0")
    ear.pressed = True
    for name in ("a", "b", "a"):
        here.events.publish(name, b"0")
    ear.pressed = False
    here.events.publish("a", b"0")
    assert ear.take() == [("a", 1), ("a", 2)], "the rest comes in order, or not at all"
    assert here.delivery.delivered == 2
    ear.drain()
    assert ear.take() == [("a", 3), ("a", 4), ("a", 5), ("b", 1)]
    assert here.delivery.delivered == 6
    here.events.publish("b", b"0")
    assert ear.take() == [("b", 2)]


def test_one_that_is_behind_more_than_is_kept_is_told_of_the_gap_and_goes_on() -> None:
    here, ear = hall(), Ear()
    join(here.events, ear, "a", "b")
    ear.stalled = ear.pressed = True
    for _ in range(15):
        here.events.publish("a", b"0")
    ear.drain()
    method, params = notification_in(ear.frames.pop(0))
    assert (method, params) == ("event.gap", {"topic": "a", "epoch": "e1", "offset": 5})
    assert ear.take() == [("a", offset) for offset in range(6, 16)]
    assert here.delivery.gaps == 1


def test_one_that_is_behind_on_a_topic_that_makes_room_is_told_of_the_gap() -> None:
    here, ear = hall(max_topics=2), Ear()
    join(here.events, ear, ">")
    ear.stalled = ear.pressed = True
    for name in ("a", "b", "c"):
        here.events.publish(name, b"0")
    ear.drain()
    method, params = notification_in(ear.frames.pop(0))
    assert (method, params) == ("event.gap", {"topic": "a", "epoch": "e2", "offset": 0})
    assert ear.take() == [("b", 1), ("c", 1)]


def test_one_that_has_unsubscribed_is_not_fed_what_it_was_behind_with() -> None:
    here, ear = hall(max_topics=2), Ear()
    join(here.events, ear, "a.*", "b")
    ear.stalled = ear.pressed = True
    for name in ("a.a", "b", "a.b", "a.c"):
        here.events.publish(name, b"0")
    unsubscribe(here.events, ear, ["a.*"])
    ear.drain()
    assert ear.take() == [("b", 1)]


def test_feeding_stops_when_the_peer_does_not_read_and_goes_on_where_it_was() -> None:
    class Narrow(Ear):
        def send_frame(self, frame: bytes) -> None:
            super().send_frame(frame)
            self.stalled = len(self.frames) >= 2

    here, ear = hall(), Narrow()
    join(here.events, ear, "a")
    ear.stalled = ear.pressed = True
    for _ in range(5):
        here.events.publish("a", b"0")
    heard = []
    while ear.subscriber is not None and ear.subscriber.behind:
        ear.drain()
        assert len(ear.frames) <= 2
        heard += ear.take()
    assert heard == [("a", offset) for offset in range(1, 6)]


def test_a_latest_message_without_room_comes_from_the_history() -> None:
    here, ear = hall(conflate=(">",)), Ear()
    join(here.events, ear, "a")
    ear.stalled = True
    ear.room = 0
    for _ in range(5):
        here.events.publish("a", b"0")
    ear.drain()
    assert ear.take() == [("a", 5)]
    assert here.delivery.gaps == 0


def test_what_a_connection_holds_is_let_go_of_with_it() -> None:
    here, ear = hall(conflate=(">",)), Ear()
    join(here.events, ear, "a")
    room, ear.stalled = ear.room, True
    here.events.publish("a", b"0")
    assert ear.room < room
    at_once(here.events.lost(ear))
    assert ear.room == room


# A stream that was out of reach


async def missed_by(*ears: Ear, first: int = 1) -> SharedHall:
    """A hall in which a message of `a` and one of `b` were heard, and three of `a` were handed over in a pause.

    The stream then has messages from the number ``first`` on.
    """
    here = SharedHall()
    await here.events.start()
    for ear, patterns in zip(ears, (("a", "not.begun"), ("a", "a.*", ">")), strict=False):
        join(here.events, ear, *patterns)
    for name in ("a", "b"):
        await here.events.publish(name, b"0")
    here.delivery.pause()
    here.stream.replica.catch_up()
    for _ in range(3):
        await here.events.publish("a", b"0")
    here.delivery.resume(here.stream.replica.caught_up(first, 10))
    return here


def by_topic(ear: Ear) -> list[tuple[str, str, int]]:
    """What was heard of one topic after the other: their order is not promised."""
    return sorted(heard(ear), key=lambda one: one[1])


async def test_what_comes_in_a_pause_is_sent_after_it_and_before_what_is_new() -> None:
    ears = Ear(), Ear()
    here = await missed_by(*ears)
    assert [ear.take() for ear in ears] == [[("a", 1)], [("a", 1), ("b", 2)]]
    await here.events.publish("a", b"0")
    await here.events.publish("b", b"0")
    assert [ear.frames for ear in ears] == [[], []]
    here.way.turn()
    assert ears[0].take() == [("a", offset) for offset in range(3, 7)]
    assert sorted(ears[1].take()) == [*(("a", offset) for offset in range(3, 7)), ("b", 7)]
    assert not here.delivery.aside
    await here.events.publish("a", b"0")
    assert [ear.take() for ear in ears] == [[("a", 8)], [("a", 8)]], "at once"
    assert here.delivery.gaps == 0


async def test_a_lapse_is_told_of_each_topic_that_is_heard_and_of_each_pattern() -> None:
    ears = Ear(), Ear()
    here = await missed_by(*ears, first=5)
    for ear in ears:
        ear.frames.clear()
    here.way.turn()
    mine = [("event.gap", "a", 4), ("event.message", "a", 5)]
    by_patterns = [("event.gap", ">", 5), *mine, ("event.gap", "a.*", 5), ("event.gap", "b", 4)]
    assert [by_topic(ear) for ear in ears] == [[*mine, ("event.gap", "not.begun", 4)], by_patterns]
    assert here.delivery.gaps == 6


async def test_after_a_lapse_gaps_and_topics_without_news_count_for_what_is_done_at_once() -> None:
    """Otherwise two hundred subscribers would be told of five hundred gaps each in one event-loop iteration."""
    for lost in (True, False):
        here = SharedHall(max_topics=1000)
        await here.events.start()
        names = [f"a.{number}" for number in range(FED_AT_ONCE)]
        for name in names:
            await here.events.publish(name, b"0")
        ears = [here.ear(">"), here.ear("a.*"), here.ear(*names)]
        here.delivery.pause()
        here.stream.replica.catch_up()
        at = Position("e1", 0 if lost else here.stream.replica.head)
        here.stream.replica.head += 1
        lapse = Lapse(dict.fromkeys(names, at), at)
        if lost:
            here.stream.replica.caught_up(here.stream.replica.head + 1, 10)
        here.delivery.resume(lapse)
        went = []
        while here.way.turn():
            went.append(sum(ear.subscriber not in here.delivery.aside for ear in ears))
        assert went == [1, 2, 3]
        assert here.delivery.delivered == 0
        assert (here.delivery.gaps >= 3 * FED_AT_ONCE) is lost


async def test_a_peer_that_does_not_read_learns_of_a_lapse_when_it_reads() -> None:
    ear = Ear()
    here = await missed_by(ear, first=5)
    ear.frames.clear()
    ear.stalled = True
    here.way.turn()
    assert ear.frames == []
    ear.drain()
    assert by_topic(ear) == [("event.gap", "a", 4), ("event.message", "a", 5), ("event.gap", "not.begun", 4)]


async def test_a_connection_that_is_lost_in_a_pause_is_sent_nothing() -> None:
    gone, ear = Ear(), Ear()
    here = SharedHall()
    await here.events.start()
    for one in (gone, ear):
        join(here.events, one, "a")
    here.delivery.pause()
    at_once(here.events.lost(gone))
    await here.events.publish("a", b"0")
    join(here.events, gone, "a")
    here.delivery.resume(None)
    here.way.turn()
    assert (gone.frames, ear.take()) == ([], [("a", 1)])
    await here.events.publish("a", b"0")
    assert (gone.take(), ear.take()) == ([("a", 2)], [("a", 2)])


@pytest.mark.parametrize("pattern", ["new", "*", ">"])
async def test_who_was_before_the_place_of_a_topic_without_messages_has_missed_nothing(pattern: str) -> None:
    """It was told that place by another gateway, when the stream was not as far."""
    here, ear = SharedHall(), Ear()
    await here.events.start()
    for _ in range(5):
        await here.events.publish("b", b"0")
    met, subscriber = at_once(here.events.subscribe(ear, [pattern], {"new": Position("e1", 3)}))
    assert met["new"] == (Position("e1", 5), True)
    subscriber.release()
    assert not subscriber.feed()
    assert (subscriber.behind, here.delivery.aside, ear.frames) == ({}, set(), [])
    await here.events.publish("new", b"0")
    assert ear.take() == [("new", 6)]


async def test_who_was_further_than_a_topic_is_has_missed_nothing() -> None:
    """Another gateway, which did not know the topic, has told it where the stream was."""
    here, ear = SharedHall(), Ear()
    await here.events.start()
    for name in ("a", "b", "b"):
        await here.events.publish(name, b"0")
    met, release = subscribe(here.events, ear, ["a"], {"a": Position("e1", 3)})
    release()
    assert met == {"a": (Position("e1", 1), True)}
    assert (ear.frames, ear.subscriber is not None and ear.subscriber.behind) == ([], {})
    await here.events.publish("a", b"0")
    assert ear.take() == [("a", 4)]
