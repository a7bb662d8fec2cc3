"""Events where other gateways share the topics: what is refused while they are out of reach, and the own topics."""

import pytest

from gateway.cluster.stream import Position, unavailable
from tests.support.ears import notification_in, subscribe
from tests.support.rpc import passes
from tests.support.shared import SharedHall
from tests.support.stations import heard, refused


@pytest.fixture
async def hall() -> SharedHall:
    hall = SharedHall()
    await hall.events.start()
    return hall


async def test_what_is_published_has_its_position_later(hall: SharedHall) -> None:
    ear = hall.ear("a")
    assert await hall.events.publish("a", b"1", "pi") == Position("e1", 1)
    assert (heard(ear), hall.events.published) == ([("event.message", "a", 1)], 1)
    topic = hall.topics.get("a")
    assert topic is not None
    assert topic.holder.owner == "pi"


async def test_out_of_reach_nothing_is_published_and_no_topic_begins(hall: SharedHall) -> None:
    hall.stream.be(False)
    refusal = refused(lambda: hall.events.publish("a", b"1"))
    assert (refusal.error.code, refusal.data["outcome"]) == (-32012, "not_delivered")
    assert (len(hall.topics), hall.events.published) == (0, 0)


async def test_out_of_reach_nobody_is_told_what_was_missed_but_all_may_subscribe(hall: SharedHall) -> None:
    await hall.events.publish("a", b"1")
    hall.stream.be(False)
    ear = hall.ear("a")
    refusal = refused(lambda: subscribe(hall.events, ear, ["b"], {"b": Position("e1", 0)}))
    assert (refusal.error.name, refusal.data["outcome"]) == ("unavailable", "not_delivered")
    assert ear.subscriber is not None
    assert list(ear.subscriber.patterns) == ["a"], "and nothing has happened"
    hall.stream.be(True)
    met, _ = subscribe(hall.events, ear, ["a"], {"a": Position("e1", 0)})
    assert met["a"] == (Position("e1", 1), True)


async def test_a_position_that_is_not_known_yet_is_no_small_work_and_is_waited_for(hall: SharedHall) -> None:
    await hall.events.publish("a", b"1")
    known, ahead, other = Position("e1", 1), Position("e1", 5), Position("before", 9)
    assert hall.events.is_small(["a"], [known, other])
    assert not hall.events.is_small(["a"], [known, ahead])
    assert not hall.events.is_small([str(number) for number in range(2000)])
    await hall.events.reach([known, other])
    assert hall.stream.asked == []
    await hall.events.reach([known, ahead, Position("e1", 4), other])
    assert hall.stream.asked == [ahead]


async def test_as_many_topics_as_there_may_be() -> None:
    hall = SharedHall(max_topics=1)
    await hall.events.start()
    hall.ear("a")
    await hall.events.publish("a", b"1")
    assert refused(lambda: hall.events.publish("b", b"1")).error.name == "overloaded"


async def test_the_gateways_own_topics_are_told_always_and_with_the_member(hall: SharedHall) -> None:
    """A connection at another gateway may have subscribed."""
    assert hall.events.wanted("gateway.draining")
    hall.events.own("gateway.draining", {"deadlineMs": 1})
    ear = hall.ear("gateway.>", since={"gateway.draining": Position("e1", 0)})
    ((_, params),) = map(notification_in, ear.frames)
    assert params["data"] == {"deadlineMs": 1, "member": "attic:8765"}


@pytest.mark.parametrize("how", ["refused", "not acknowledged"])
async def test_what_could_not_be_told_on_an_own_topic_is_told_to_be_missing(hall: SharedHall, how: str) -> None:
    ear = hall.ear("gateway.node.>")
    if how == "refused":
        hall.stream.be(False)
    else:
        hall.stream.refusal = unavailable("late")
    for topic in ("gateway.node.online", "gateway.node.online", "gateway.node.offline"):
        hall.events.own(topic, {})
    await passes()
    assert ear.frames == []
    hall.stream.refusal = None
    hall.stream.be(True)
    told = [("event.gap", "gateway.node.offline"), ("event.gap", "gateway.node.online")]
    assert sorted((kind, topic) for kind, topic, _ in heard(ear)) == told
    ear.frames.clear()
    hall.stream.be(True)
    assert ear.frames == [], "once"
    hall.events.own("gateway.node.online", {})
    assert [kind for kind, *_ in heard(ear)] == ["event.message"]


async def test_a_gap_that_could_not_be_told_is_told_the_next_time(hall: SharedHall) -> None:
    ear = hall.ear("gateway.draining")
    hall.stream.refusal = unavailable("late")
    hall.events.own("gateway.draining", {})
    await passes()
    hall.stream.be(True)
    await passes()
    hall.stream.refusal = None
    hall.stream.be(True)
    assert [(kind, topic) for kind, topic, _ in heard(ear)] == [("event.gap", "gateway.draining")]


async def test_what_could_not_be_told_while_the_stream_is_there_is_told_soon_to_be_missing(hall: SharedHall) -> None:
    """NATS may be reached for days, and the window was full for a moment."""
    ear = hall.ear("gateway.node.>")
    for late in (False, True):
        hall.stream.refusal, hall.stream.is_full = unavailable("late"), not late
        for topic in ("gateway.node.online", "gateway.node.online", "gateway.node.offline"):
            hall.events.own(topic, {})
            await passes()
        assert len(hall.timers) == 1
        for _ in range(3):
            assert 0 < await hall.wait() <= 5
            assert ear.frames == [], "not yet"
            assert len(hall.timers) == 1
        hall.stream.refusal, hall.stream.is_full = None, False
        await hall.wait()
        told = [("event.gap", "gateway.node.offline"), ("event.gap", "gateway.node.online")]
        assert sorted((kind, topic) for kind, topic, _ in heard(ear)) == told
        ear.frames.clear()
        assert hall.timers == [], "once"


async def test_while_the_stream_is_out_of_reach_no_timer_is_set(hall: SharedHall) -> None:
    ear = hall.ear("gateway.draining")
    hall.stream.is_full = True
    hall.events.own("gateway.draining", {})
    hall.stream.be(False)
    hall.stream.is_full = False
    hall.events.own("gateway.draining", {})
    await hall.wait()
    hall.events.own("gateway.draining", {})
    assert (ear.frames, hall.timers) == ([], [])
    hall.stream.be(True)
    assert [kind for kind, *_ in heard(ear)] == ["event.gap"]
