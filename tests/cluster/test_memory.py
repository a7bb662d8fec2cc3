"""The stream of a gateway alone, beside what `test_stream` says of any: offsets without holes, and epochs."""

import json

from gateway.cluster.stream import Position
from tests.support.desk import TIME, Desk
from tests.support.ears import at_once
from tests.support.listening import data_of


def test_a_message_is_numbered_and_handed_over_within_the_call() -> None:
    desk = Desk()
    data = b'{"n": 1e400, "t":"\\u00e9"}'
    assert desk.stream.publish("a.b", data) == Position("epoch 1", 1)
    head = b'{"jsonrpc":"2.0","method":"event.message","params":{"topic":"a.b","offset":1,"epoch":"epoch 1","time":"%b"'
    assert desk.heard == [("a.b", head % TIME.encode() + b',"data":' + data + b"}}")]


def test_messages_of_a_topic_are_handed_over_in_the_order_of_their_offsets() -> None:
    desk = Desk()
    positions = [desk.stream.publish(f"t.{number % 3}", b"%d" % number) for number in range(99)]
    assert [int(data_of(message)) for _, message in desk.heard] == list(range(99))
    assert [position.offset for position in positions] == [number // 3 + 1 for number in range(99)]
    assert [json.loads(message)["params"]["offset"] for _, message in desk.heard] == [at.offset for at in positions]


def test_asking_where_a_topic_is_begins_none_and_its_first_message_follows() -> None:
    desk = Desk()
    assert desk.stream.position("a") == desk.stream.position("a") == Position("epoch 1", 0)
    assert desk.stream.since("a", Position("epoch 1", 0), 1000) == [], "nothing was missed"
    assert desk.stream.since("a", Position("epoch 1", 1), 1000) is None
    assert desk.stream.publish("a", b"1") == Position("epoch 1", 1)
    assert desk.since("a", 0) == [b"1"]
    desk.stream.forget("b")
    assert desk.stream.position("b") == Position("epoch 1", 0), "of what never was nothing is forgotten"


def test_where_another_topic_was_forgotten_nobody_can_say_that_nothing_was_missed() -> None:
    desk = Desk()
    desk.publish("a", b"1")
    desk.stream.forget("a")
    assert desk.stream.since("b", Position("epoch 1", 0), 1000) is None
    assert desk.stream.position("b") == Position("epoch 2", 0)


def test_a_topic_that_is_forgotten_begins_again_in_another_epoch() -> None:
    desk = Desk()
    desk.publish("a", b"1", b"2")
    desk.stream.forget("a")
    desk.stream.forget("never there")
    assert desk.stream.kept_bytes == 0
    assert desk.stream.since("a", Position("epoch 1", 1), 1000) is None
    assert desk.stream.publish("a", b"3") == Position("epoch 2", 1)


def test_nothing_is_handed_over_after_the_end() -> None:
    desk = Desk()
    for _ in range(2):
        at_once(desk.stream.close())
    desk.publish("a", b"1")
    assert desk.heard == []
