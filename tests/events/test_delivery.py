"""Delivery: past the outboxes or by them, what is counted, and the latest message of conflated topics."""

import gc
import weakref

import pytest

from gateway.events.delivery import AT_ONCE, BYTES_AT_ONCE
from gateway.rpc.work import at_once
from tests.support.ears import Ear, Way, hall, join, notification_in, size, subscribe, unsubscribe

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
