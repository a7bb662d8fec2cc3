"""The numbers of the messages both ways: what is kept, what is sent again, and when the gateway's are acknowledged."""

from collections import deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.client.link import Incoming
from gateway.client.sending.counting import ACK_EVERY, Counting, Kept, is_counted


def counting(max_bytes: int = 1000) -> Counting:
    """Numbers of a connection that is kept."""
    one = Counting()
    one.begin()
    one.established(Kept("secret", 30_000, max_bytes))
    return one


def rewritten(one: Counting) -> list[bytes]:
    """What is written again by a new link."""
    one.rewind()
    written = []
    while (data := one.again()) is not None:
        written.append(data)
    return written


def test_what_was_not_acknowledged_is_written_again_in_order() -> None:
    one = counting()
    for data in (b"1", b"2", b"3"):
        one.keep(data)
    assert one.acknowledged(1)
    assert one.whole
    assert [rewritten(one), rewritten(one)] == [[b"2", b"3"]] * 2
    assert one.acknowledged(0)
    assert rewritten(one) == [b"2", b"3"]
    assert not one.acknowledged(4)
    assert one.acknowledged(3)
    assert (rewritten(one), one.octets) == ([], 0)


def test_what_is_acknowledged_while_it_is_written_again_is_left_out() -> None:
    one = counting()
    for data in (b"1", b"2", b"3", b"4"):
        one.keep(data)
    one.rewind()
    assert one.again() == b"1"
    one.acknowledged(3)
    assert (one.again(), one.again()) == (b"4", None)


def test_over_the_bound_a_loss_is_final_until_that_was_acknowledged() -> None:
    one = counting(max_bytes=10)
    one.keep(b"x" * 6)
    assert one.whole
    one.keep(b"y" * 6)
    assert (one.whole, one.octets) == (False, 6)
    one.acknowledged(1)
    assert one.whole
    one.keep(b"z" * 11)
    assert (one.whole, one.octets) == (False, 0)
    one.acknowledged(3)
    assert one.whole


def test_before_the_reply_and_after_a_refusal_a_loss_is_final() -> None:
    one = Counting()
    assert not one.whole
    one.begin()
    one.keep(b"1")
    assert not one.whole
    one.established(Kept("secret", 30_000, 1000))
    assert (one.whole, one.hold) == (True, 30.0)
    one.stop()
    assert (one.whole, one.counts, one.octets) == (False, False, 0)


def test_a_gateway_that_holds_for_no_time_holds_nothing() -> None:
    one = Counting()
    one.begin()
    one.established(Kept("secret", 0, 1000))
    assert not one.whole


def test_the_gateways_messages_are_acknowledged_by_their_number_and_by_their_size() -> None:
    one = counting(max_bytes=1000)
    assert [one.heard(1) for _ in range(ACK_EVERY)] == [False] * (ACK_EVERY - 1) + [True]
    assert (one.tell(), one.told) == (ACK_EVERY, ACK_EVERY)
    assert [one.heard(249), one.heard(1)] == [False, True]
    one.tell()
    assert not one.heard(249)
    one.rewind()  # a resume tells it as well
    assert one.told == one.received


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ('"id":1,"result":2', True),
        ('"id":1,"method":"work.do"', True),
        ('"method":"rpc.cancel"', True),
        ('"method":"rpc.progress"', True),
        ('"method":"connection.ack"', False),
        ('"id":1,"method":"connection.ack"', True),
        ('"method":"event.message"', False),
        ('"method":"event.gap"', False),
        ('"method":"gateway.draining"', False),
    ],
)
def test_which_messages_have_a_number(text: str, counted: bool) -> None:
    message = msgspec.json.decode(f'{{"jsonrpc":"2.0",{text}}}', type=Incoming)
    assert is_counted(message) is counted


class Line:
    """A client that counts, a gateway that is nothing but lists, and a link between them that may be cut anywhere."""

    def __init__(self) -> None:
        self.client = counting(max_bytes=10_000)
        self.linked = True
        self.to_gateway: deque[bytes] = deque()
        self.acks: deque[int] = deque()
        self.to_client: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.had: list[bytes] = []
        self.said: list[bytes] = []
        self.heard: list[bytes] = []
        self.told = 0

    def send(self) -> None:
        """The client sends the next message."""
        if self.linked and self.client.written == self.client.sent:
            data = b"%d" % len(self.sent)
            self.sent.append(data)
            self.client.keep(data)
            self.to_gateway.append(data)

    def write_again(self) -> None:
        """The client writes one message more of those that were lost."""
        if self.linked and (data := self.client.again()) is not None:
            self.to_gateway.append(data)

    def arrive(self) -> None:
        """One message arrives at the gateway."""
        if self.to_gateway:
            self.had.append(self.to_gateway.popleft())

    def acknowledge(self) -> None:
        """The gateway acknowledges what it has had."""
        if self.linked:
            self.acks.append(len(self.had))

    def take_ack(self) -> None:
        """An acknowledgement arrives at the client."""
        if self.acks:
            assert self.client.acknowledged(self.acks.popleft())

    def say(self) -> None:
        """The gateway sends the next message."""
        if self.linked:
            data = b"%d" % len(self.said)
            self.said.append(data)
            self.to_client.append(data)

    def hear(self) -> None:
        """One message arrives at the client, which may acknowledge what it has had."""
        if self.to_client:
            self.heard.append(self.to_client.popleft())
            if self.client.heard(100):
                self.told = self.client.tell()
                assert self.told == len(self.heard)

    def cut(self) -> None:
        """The link is lost, with all that is under way."""
        self.linked = False
        for way in (self.to_gateway, self.to_client):
            way.clear()
        self.acks.clear()

    def resume(self, lost: bool = False) -> None:
        """Another link. If the reply is ``lost`` it is as if it had not been there."""
        if self.linked:
            self.cut()
        received = self.client.received
        assert self.told <= received <= len(self.said), "the gateway would refuse that"
        if not lost:
            assert self.client.acked <= len(self.had)
            assert self.client.acknowledged(len(self.had))
            self.client.rewind()
            self.told = received
            self.to_client.extend(self.said[received:])
            self.linked = True

    def reply_is_lost(self) -> None:
        """A resume whose reply does not come."""
        self.resume(lost=True)


STEPS = ("send", "write_again", "arrive", "acknowledge", "take_ack", "say", "hear", "cut", "resume", "reply_is_lost")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=120))
def test_whatever_happens_each_message_arrives_once_and_in_order(steps: list[str]) -> None:
    line = Line()
    for step in steps:
        getattr(line, step)()
        assert line.had == line.sent[: len(line.had)]
        assert line.heard == line.said[: len(line.heard)]
        assert line.client.octets <= sum(map(len, line.sent))
    line.resume()
    while line.client.written < line.client.sent:
        line.write_again()
    while line.to_gateway or line.to_client:
        line.arrive()
        line.hear()
    assert (line.had, line.heard) == (line.sent, line.said)
