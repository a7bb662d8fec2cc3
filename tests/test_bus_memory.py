"""The bus of a gateway alone, as `gateway.bus` describes any bus."""

from collections.abc import Callable

import pytest

from gateway.bus import Bus, Handler
from gateway.bus.memory import MemoryBus

Heard = list[tuple[str, bytes, str]]


@pytest.fixture
def bus() -> Bus:
    return MemoryBus()


def ear(heard: Heard, name: str = "") -> Handler:
    """A handler that notes what it takes, under a name where it has one."""

    def handler(subject: str, payload: bytes, reply: str) -> None:
        heard.append((name or subject, payload, reply))

    return handler


def test_a_message_reaches_everybody_who_has_subscribed(bus: Bus) -> None:
    heard: Heard = []
    for name in ("one", "two"):
        bus.subscribe("a.b", ear(heard, name))
    bus.subscribe("a.c", ear(heard, "other"))
    bus.publish("a.b", b"1")
    assert heard == [("one", b"1", ""), ("two", b"1", "")], "within the call, and without a reply subject"


def test_a_message_that_nobody_wants_is_gone(bus: Bus) -> None:
    heard: Heard = []
    bus.publish("a", b"1")
    bus.subscribe("a", ear(heard))
    assert heard == []


def test_messages_come_in_the_order_of_the_calls(bus: Bus) -> None:
    heard: Heard = []
    bus.subscribe("a.*", ear(heard))
    for number in range(100):
        bus.publish(f"a.{number % 3}", b"%d" % number)
    assert [int(payload) for _, payload, _ in heard] == list(range(100))


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("event.a", ["event.a"]),
        ("event.*", ["event.a", "event.b"]),
        ("event.>", ["event.a", "event.b", "event.a.b"]),
        ("*.a", ["event.a", "call.a"]),
        ("*.a.b", ["event.a.b"]),
        (">", ["event.a", "event.b", "event.a.b", "call.a"]),
    ],
)
def test_subjects_have_wildcards(bus: Bus, pattern: str, taken: list[str]) -> None:
    heard: Heard = []
    bus.subscribe(pattern, ear(heard))
    for subject in ("event.a", "event.b", "event.a.b", "call.a"):
        bus.publish(subject, b"x")
    assert [subject for subject, *_ in heard] == taken


def test_of_a_queue_one_takes_each_message_in_turn(bus: Bus) -> None:
    heard: Heard = []
    for name in ("one", "two", "three"):
        bus.subscribe("work", ear(heard, name), "queue")
    bus.subscribe("work", ear(heard, "all"))
    bus.subscribe("work", ear(heard, "alone"), "another queue")
    for number in range(6):
        bus.publish("work", b"%d" % number)
    for name, taken in (("one", "03"), ("two", "14"), ("three", "25"), ("all", "012345"), ("alone", "012345")):
        assert "".join(payload.decode() for who, payload, _ in heard if who == name) == taken, name


def test_a_reply_finds_its_way_back(bus: Bus) -> None:
    heard: Heard = []

    def answer(subject: str, payload: bytes, reply: str) -> None:
        bus.publish(reply, payload.upper())

    bus.subscribe("upper", answer, "workers")
    bus.subscribe("inbox.7", ear(heard))
    bus.publish("upper", b"text", "inbox.7")
    assert heard == [("inbox.7", b"TEXT", "")]


@pytest.mark.parametrize("queue", ["", "queue"])
def test_who_has_ended_hears_no_more(bus: Bus, queue: str) -> None:
    heard: Heard = []
    ends = {name: bus.subscribe("a", ear(heard, name), queue) for name in ("one", "two")}
    ends["one"]()
    for _ in range(2):
        bus.publish("a", b"x")
    ends["two"]()
    bus.publish("a", b"x")
    assert [name for name, *_ in heard] == ["two", "two"]
    bus.subscribe("a", ear(heard, "three"), queue)
    bus.publish("a", b"x")
    assert heard[2:] == [("three", b"x", "")]


@pytest.mark.parametrize("queue", ["", "queue"])
def test_a_handler_may_subscribe_and_end(bus: Bus, queue: str) -> None:
    heard: Heard = []
    ends: list[Callable[[], None]] = []

    def once(subject: str, payload: bytes, reply: str) -> None:
        heard.append(("once", payload, reply))
        ends.pop()()
        bus.subscribe("a", ear(heard, "next"), queue)

    ends.append(bus.subscribe("a", once, queue))
    for number in range(3):
        bus.publish("a", b"%d" % number)
    assert heard == [("once", b"0", ""), ("next", b"1", ""), ("next", b"2", "")]
