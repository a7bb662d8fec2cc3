"""What other gateways have sent to a node here, until it is written: in order, whole reads at once, and never late."""

import asyncio
from collections import Counter

import pytest

from gateway.nodes.elsewhere import unwritten
from gateway.nodes.elsewhere.unwritten import SLICE, Queue, Unwritten, Writer
from gateway.rpc.streams import Grant
from tests.support.cluster import TIMEOUT, Two
from tests.support.rpc import NodeListing, Way


class Flushes(Way):
    """A link that notes what was sent by the time it is flushed."""

    def __init__(self, node: NodeListing) -> None:
        super().__init__()
        self._node = node
        self.flushed: list[int] = []

    def flush(self) -> None:
        """Note it."""
        self.flushed.append(len(self._node.sent))


class Scene:
    """A queue of notifications to one node."""

    def __init__(self) -> None:
        self.it = Two()
        self.node = NodeListing()
        self.node.link = self.link = Flushes(self.node)
        (member,) = self.it.b.members.others.values()
        self.distant = self.it.b.relay._of(member)
        self.distant.fence = b"1"
        self.dropped: Counter[str] = Counter()
        self.writer = Writer(self.it.b.members.is_fresh, self.dropped)
        self.queue = Queue(self.writer, self.distant, self.node)
        self.distant.queues[self.node] = self.queue

    def add(self, *texts: str) -> None:
        """Add notifications."""
        for text in texts:
            self.queue.add(None, text.encode())

    def hear_of_now(self) -> None:
        """Have the other gateway name the last heartbeat."""
        self.distant.fence = b"%d" % self.it.b.members._fence.number


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_what_one_read_brings_is_flushed_once_and_the_queue_is_gone(scene: Scene) -> None:
    scene.add("1", "2", "3")
    scene.queue.write()
    assert (scene.node.take(), scene.link.flushed, scene.distant.queues) == (["1", "2", "3"], [3], {})


async def test_much_is_flushed_in_between_and_waits_if_the_node_takes_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = scene.link.flush

    def full() -> None:
        flush()
        scene.node.flowing = False

    monkeypatch.setattr(scene.link, "flush", full)
    big = "x" * (SLICE + 1)
    scene.add("1", big, "2", big)
    scene.queue.write()
    assert (scene.node.take(), scene.link.flushed) == (["1", big], [2])
    assert scene.node.room == (1 << 20) - len(big) - 1
    monkeypatch.setattr(scene.link, "flush", flush)
    scene.node.flowing = True
    assert scene.node.pool is not None
    scene.node.pool.read_on()
    assert (scene.node.take(), scene.node.room) == (["2", big], 1 << 20)
    assert scene.node.pool.unread == {}


async def test_what_comes_meanwhile_waits_behind_it(scene: Scene) -> None:
    scene.node.flowing = False
    scene.add("1")
    scene.queue.write()
    scene.add("2")
    scene.node.flowing = True
    scene.queue.tell()
    assert scene.node.take() == ["1", "2"]


async def test_that_for_which_there_is_no_room_is_dropped(scene: Scene) -> None:
    scene.node.flowing = False
    scene.node.room = 10
    scene.add("12345678", "123", "1")
    scene.queue.write()
    scene.node.flowing = True
    scene.queue.tell()
    assert (scene.node.take(), scene.node.room, scene.dropped["notification"]) == (["12345678", "1"], 10, 1)


async def test_a_node_that_is_held_takes_no_more_than_half_of_what_may_be_kept(scene: Scene) -> None:
    scene.node.flowing = False
    scene.add("1")
    scene.queue.write()
    scene.node.crowded = True
    scene.add("2")
    scene.queue.write()
    scene.node.flowing, scene.node.crowded = True, False
    scene.queue.tell()
    assert (scene.node.take(), scene.node.room, scene.dropped["notification"]) == (["1"], 1 << 20, 1)


async def test_what_may_have_been_given_up_is_asked_for(scene: Scene) -> None:
    scene.it.b.clock.now += TIMEOUT + 1
    scene.add("1")
    scene.queue.write()
    scene.queue.write()
    assert (scene.node.take(), scene.it.b.link.sent[b"stale"]) == ([], 1)
    scene.hear_of_now()
    scene.queue.write()
    assert scene.node.take() == ["1"]
    assert scene.node.pool is not None
    assert scene.node.pool.unread == {}, "it does not wait for the node to read"


async def test_it_tries_again_in_a_while_and_forgets_what_is_for_a_node_that_is_gone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unwritten, "LOOK", 0.001)
    scene.node.flowing = False
    scene.add("1")
    scene.queue.write()
    scene.node.flowing = True
    while scene.distant.queues:
        await asyncio.sleep(0.001)
    assert scene.node.take() == ["1"]
    scene.node.flowing = False
    scene.distant.queues[scene.node] = scene.queue
    scene.add("2")
    scene.queue.write()
    scene.node.is_open = False
    while scene.distant.queues:
        await asyncio.sleep(0.001)
    assert (scene.node.take(), scene.node.room) == ([], 1 << 20)


async def test_nothing_is_left_after_it_was_cleared(scene: Scene) -> None:
    scene.node.flowing = False
    scene.add("1", "2")
    scene.queue.write()
    scene.queue.clear()
    scene.node.flowing = True
    scene.queue.tell()
    assert (scene.node.take(), scene.node.room, scene.distant.queues) == ([], 1 << 20, {})
    assert not scene.queue.drop("nothing")


async def test_what_can_be_written_at_once_has_no_queue(scene: Scene) -> None:
    scene.distant.queues.clear()
    scene.writer.write(scene.distant, scene.node, [(None, b"1"), (None, b"2")])
    assert (scene.node.take(), scene.link.flushed, scene.distant.queues) == (["1", "2"], [2], {})


@pytest.mark.parametrize("why", ["flow", "fence"])
async def test_what_cannot_be_written_at_once_waits_and_so_does_what_comes_later(scene: Scene, why: str) -> None:
    scene.distant.queues.clear()
    scene.node.flowing = why != "flow"
    scene.it.b.clock.now += (TIMEOUT + 1) * (why == "fence")
    scene.writer.write(scene.distant, scene.node, [(None, b"1"), (None, b"2")])
    assert scene.node.take() == []
    scene.node.flowing = True
    scene.hear_of_now()
    scene.writer.write(scene.distant, scene.node, [(None, b"3")])
    assert (scene.node.take(), scene.node.room, scene.distant.queues) == (["1", "2", "3"], 1 << 20, {})


async def test_what_is_more_than_a_node_takes_waits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.distant.queues.clear()
    flush = scene.link.flush

    def full() -> None:
        flush()
        scene.node.flowing = False

    monkeypatch.setattr(scene.link, "flush", full)
    big = b"x" * (SLICE + 1)
    scene.writer.write(scene.distant, scene.node, [(None, big), (None, b"2")])
    assert (len(scene.node.take()), len(scene.distant.queues), scene.node.room) == (1, 1, (1 << 20) - 1)


async def test_nothing_waits_for_a_gateway_that_is_lost(scene: Scene) -> None:
    scene.distant.queues.clear()
    scene.distant.lose()
    scene.writer.write(scene.distant, scene.node, [(None, b"1")])
    assert (scene.node.take(), scene.distant.queues) == ([], {})


def test_grants_add_up() -> None:
    entry = Unwritten(None, b"")
    entry.granted(Grant(1, 2))
    entry.granted(Grant(3, 4))
    assert entry.grant == Grant(4, 6)
