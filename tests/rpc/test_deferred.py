"""What is deferred: the turns of peers, one in an iteration, and the order of the messages of each."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.rpc import deferred
from gateway.rpc.deferred import TURN, Deferred
from gateway.rpc.replies import Batch
from gateway.websocket.frames import Payload
from tests.support.rpc import Listing, passes


class Play:
    """What is deferred, with a clock, and what was done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy = False
        self.done: list[object] = []
        self.text: Callable[[Listing, Payload], None]
        self.failed: list[tuple[object, Exception]] = []
        self.deferred = Deferred(
            self._dispatch,
            lambda: self.now,
            lambda: self.now,
            lambda: self.busy,
            failed=lambda peer, error: self.failed.append((peer, error)),
            overtakes=lambda text: text == b"overtakes",
        )
        self.deferred.attach(self)

    def _dispatch(self, peer: object, text: object) -> None:
        self.done.append(text)
        self.now += TURN / 2

    def work(self, peer: Listing, name: str, parts: int) -> Callable[[], None]:
        """Return work that takes so many turns."""

        def do() -> None:
            self.done.append(name)
            if parts > 1:
                self.deferred.defer(peer, self.work(peer, name, parts - 1))

        return do


@pytest.fixture
def play() -> Play:
    return Play()


async def test_those_who_wait_take_turns(play: Play) -> None:
    one, two = Listing(), Listing()
    play.deferred.defer(one, play.work(one, "one", 2))
    play.deferred.defer(two, play.work(two, "two", 2))
    assert (play.done, one.link.waits, two.link.waits) == ([], 1, 1)
    for count in range(1, 5):
        await asyncio.sleep(0)
        assert play.done == ["one", "two", "one", "two"][:count]
    assert (one.link.waits, two.link.waits, one.running, play.deferred.late) == (0, 0, {}, {})


async def test_what_came_behind_is_done_when_the_work_is_and_has_turns_too(play: Play) -> None:
    peer = Listing()
    play.text(peer, b"alone")
    assert play.done.pop() == b"alone"
    play.deferred.defer(peer, play.work(peer, "work", 2))
    for text in (b"1", b"2", b"3"):
        play.text(peer, text)
    play.text(Listing(), b"another's")
    assert play.done.pop() == b"another's"
    await asyncio.sleep(0)
    assert play.done == ["work"]
    await asyncio.sleep(0)
    assert play.done == ["work", "work", b"1", b"2"]
    assert peer.link.waits == 1
    await asyncio.sleep(0)
    assert play.done[4:] == [b"3"]
    assert (peer.link.waits, peer.settlements) == (0, 1)


async def test_nothing_is_done_for_a_peer_that_is_gone(play: Play) -> None:
    peer = Listing()
    play.deferred.defer(peer, play.work(peer, "work", 1))
    play.text(peer, b"behind")
    peer.is_open = False
    await passes()
    assert (play.done, peer.running, peer.link.waits) == ([], {}, 0)


async def test_what_comes_behind_is_not_done_for_a_peer_that_the_work_has_ended(play: Play) -> None:
    peer = Listing()

    def ends() -> None:
        peer.is_open = False

    play.deferred.defer(peer, ends)
    play.text(peer, b"behind")
    await passes()
    assert (play.done, peer.running, play.deferred.late) == ([], {}, {})


async def test_what_overtakes_others_is_done_at_once(play: Play) -> None:
    peer = Listing()
    play.deferred.defer(peer, play.work(peer, "work", 1))
    play.text(peer, b"behind")
    play.text(peer, b"overtakes")
    assert play.done == [b"overtakes"]
    await passes()
    assert play.done == [b"overtakes", "work", b"behind"]


async def test_a_large_message_is_held_by_its_peer_until_its_work_is_done(play: Play) -> None:
    peer = Listing()
    peer.room = 100
    assert play.deferred.defer_large(peer, play.work(peer, "work", 2), 80)
    assert not play.deferred.defer_large(peer, play.work(peer, "other", 1), 80)
    assert peer.room == 20
    await asyncio.sleep(0)
    assert (play.done, peer.room) == (["work"], 20)
    await passes()
    assert (play.done, peer.room, play.deferred.late) == (["work", "work"], 100, {})


async def test_a_batch_with_a_defect_lets_go_of_what_it_holds(play: Play) -> None:
    peer = Listing()
    room = peer.room
    batch = Batch(peer)
    batch.add(b"1", b"x" * 100)

    def fails() -> None:
        raise ValueError("a defect")

    play.deferred.defer(peer, fails, batch)
    await passes()
    assert (len(play.failed), peer.room) == (1, room)


async def test_a_defect_of_one_is_told_and_leaves_the_others_their_turns(play: Play) -> None:
    one, two = Listing(), Listing()
    error = ValueError("a defect")

    def fails() -> None:
        raise error

    play.deferred.defer(one, fails)
    play.text(one, b"behind")
    play.deferred.defer(two, play.work(two, "two", 1))
    await passes()
    assert (play.failed, play.done, one.link.waits) == ([(one, error)], ["two"], 0)


async def test_turns_wait_for_what_others_left_behind_but_not_for_ever(play: Play) -> None:
    peer = Listing()
    play.busy = True
    play.deferred.defer(peer, play.work(peer, "work", 1))
    await passes(deferred.PATIENCE)
    assert play.done == []
    await passes(2)
    assert play.done == ["work"]
