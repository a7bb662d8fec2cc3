"""Peers that owe a credential share the event loop's time, and the others never wait for them."""

import asyncio

from aiohttp.http_websocket import WebSocketError

from gateway.websocket.frames import Payload, State
from gateway.websocket.reader import SLICE
from gateway.websocket.turns import SHARE, Turns
from tests.support.fleet import until
from tests.support.peers import Opcode, frame
from tests.support.sinks import Sink, reader_of


class Stranger(Sink):
    """One who may not send much yet, and each of whose messages takes three fifths of their time."""

    def __init__(self, clock: "Clock", turns: Turns) -> None:
        super().__init__()
        self.allowance = 2 * SLICE
        self.turns = turns
        self.clock = clock
        self.knows = b""
        """The message after which it may send as much as anybody."""
        self.reader = reader_of(self)

    def text(self, connection: object, data: Payload) -> None:
        """Note it; time passes."""
        super().text(connection, data)
        self.clock.now += SHARE * 0.6
        if data == self.knows:
            self.allowance = None

    def say(self, *texts: bytes) -> None:
        """One read with these messages."""
        self.reader.feed_data(b"".join(frame(Opcode.TEXT, text) for text in texts))

    @property
    def texts(self) -> list[object]:
        """What it has said that was understood."""
        return [data for _, data in self.seen]


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def strangers(count: int) -> list[Stranger]:
    """So many on one loop."""
    clock = Clock()
    turns = Turns(clock)
    return [Stranger(clock, turns) for _ in range(count)]


def said(peers: list[Stranger]) -> str:
    """How many messages of each were understood."""
    return "".join(str(len(peer.texts)) for peer in peers)


async def test_who_owes_a_credential_waits_for_the_next_pass_when_the_others_have_used_this_one() -> None:
    peers = strangers(7)
    for peer in peers:
        peer.say(b"[]")
    assert said(peers) == "1100000"
    assert [peer.transport.is_reading() for peer in peers] == [True] * 2 + [False] * 5
    await asyncio.sleep(0)
    assert said(peers) == "1111000"
    await asyncio.sleep(0)
    assert said(peers) == "1111110"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert said(peers) == "1111111"
    assert all(peer.transport.is_reading() for peer in peers)
    peers[0].say(b"[]")
    assert said(peers) == "2111111", "a pass in which nobody waits is a whole one"


async def test_who_has_a_credential_never_waits_for_those_who_owe_one() -> None:
    *peers, other = strangers(3)
    other.allowance = None
    for peer in peers:
        peer.say(b"[]")
    other.say(b"[]", b"[]", b"[]")
    assert said([other]) == "3"


async def test_nothing_is_lost_of_a_read_that_has_waited() -> None:
    *others, peer = strangers(3)
    for other in others:
        other.say(b"[]")
    peer.knows = b"[1]"
    large = b"[%b]" % (b" " * 20_000)
    peer.say(b"[1]", large, large, b"[4]")
    peer.say(b"[5]")  # as TLS delivers, though nobody reads
    await until(lambda: len(peer.texts) == 5, "something is missing")
    assert peer.texts == [b"[1]", large, large, b"[4]", b"[5]"]
    assert peer.transport.is_reading()


async def test_a_read_that_is_more_than_may_be_sent_is_not_kept() -> None:
    *others, peer = strangers(3)
    for other in others:
        other.say(b"[]")
    peer.say(b" " * (2 * SLICE))
    assert isinstance(peer.failure, WebSocketError) and peer.failure.code == 1009
    assert peer.transport.is_reading()


async def test_who_has_gone_while_it_waited_is_passed_over() -> None:
    peers = strangers(4)
    for peer in peers:
        peer.say(b"[]")
    peers[2].state = State.CLOSED
    await asyncio.sleep(0)
    assert said(peers) == "1101"
