"""Connections that hear events without sockets, for the tests of `events` and of `delivery`."""

import itertools
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.cluster.memory import MemoryStream
from gateway.cluster.stream import Position
from gateway.events.delivery import Delivery, Subscriber
from gateway.events.hub import Events, Met
from gateway.events.topics import Topics
from gateway.rpc import work
from gateway.websocket.frames import NOTHING_WRITTEN

MIB = 1 << 20


class Ear:
    """A connection that keeps what it is sent, and reads or does not as the test says."""

    def __init__(self, principal: Principal = ANONYMOUS) -> None:
        self.principal = principal
        self.subscriber: Subscriber | None = None
        self.is_linked = True
        self.pressed = False
        self.room = 4096
        self.counted = (0, 0)
        self.sent = 0
        self._stalled = False
        self.frames: list[bytes] = []

    @property
    def stalled(self) -> bool:
        """As the test says."""
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        if stalled:
            self.review()

    def review(self) -> None:
        """Tell its subscriber that something has changed."""
        assert self.subscriber is not None
        self.subscriber.review()

    @property
    def past(self) -> tuple[int, int]:
        """What has been written past its outbox: messages and bytes."""
        gone, now = self.counted, NOTHING_WRITTEN if self.subscriber is None else self.subscriber.past
        return gone[0] + now.messages, gone[1] + now.octets

    def send_frame(self, frame: bytes) -> None:
        """Keep it, and count it."""
        self.sent += 1
        self.frames.append(frame)

    def write(self, frame: bytes) -> None:
        """Keep it."""
        assert self.is_linked
        assert not self._stalled
        self.frames.append(frame)

    def count(self, messages: int, octets: int) -> None:
        """Add it up."""
        self.counted = (self.counted[0] + messages, self.counted[1] + octets)

    def hold(self, octets: int) -> bool:
        """Take so many bytes of its room, if it has them."""
        if octets > self.room:
            return False
        self.room -= octets
        return True

    def let_go(self, octets: int) -> None:
        """Give them back."""
        self.room += octets

    def feed(self) -> None:
        """Take all that its subscriber is behind with."""
        while self.subscriber is not None and self.subscriber.feed():
            pass

    def drain(self) -> None:
        """Read all, and take what comes then."""
        self._stalled = self.pressed = False
        assert self.subscriber is not None
        self.subscriber.drained()
        self.feed()

    def take(self) -> list[tuple[str, int]]:
        """Topic and offset of each message since this was last asked."""
        frames, self.frames = self.frames, []
        return [(params["topic"], params["offset"]) for params in map(message, frames)]


class Way:
    """The way out, free or not as the test says."""

    def __init__(self, free: bool) -> None:
        self.free = free
        self.asked = 0
        self.acts: list[Callable[[], None]] = []

    def later(self, act: Callable[[], None]) -> None:
        """Keep it for `turn`."""
        self.acts.append(act)

    def turn(self) -> int:
        """One event-loop iteration. Returns how much was done."""
        acts, self.acts = self.acts, []
        for act in acts:
            act()
        return len(acts)

    def make_way(self) -> bool:
        """Whether it is free."""
        self.asked += 1
        return self.free


def notification_in(frame: bytes) -> tuple[str, dict[str, Any]]:
    """Method and params of the notification in a frame."""
    start = {126: 4, 127: 10}.get(frame[1], 2)
    decoded = json.loads(frame[start:])
    assert decoded["jsonrpc"] == "2.0"
    return decoded["method"], decoded["params"]


def message(frame: bytes) -> dict[str, Any]:
    """The params of the message in a frame."""
    method, params = notification_in(frame)
    assert method == "event.message"
    return params


@dataclass(frozen=True)
class Hall:
    """Events with all that they need, in one process and without sockets. ``stream`` is a gateway's that is alone."""

    events: Events[Position]
    topics: Topics
    stream: MemoryStream
    delivery: Delivery


def hall(
    *,
    conflate: tuple[str, ...] = (),
    max_topics: int = 100,
    now: Callable[[], str] = lambda: "1970-01-01T00:00:00.000Z",
    way: Way | None = None,
) -> Hall:
    """Events that have started."""
    epochs = itertools.count(1)
    stream = MemoryStream(lambda: 0.0, now, lambda: f"e{next(epochs)}", count=10, age=60.0, octets=MIB)
    topics = Topics(stream.forget, max_topics=max_topics, conflate=conflate)
    delivery = Delivery(topics, stream, way or Way(True))
    events = Events(topics, stream, delivery)
    at_once(events.start())
    return Hall(events, topics, stream, delivery)


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run what takes no time without an event loop. AssertionError if it waits for anything."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def join(events: Events[Any], ear: Ear, *patterns: str, **since: int) -> dict[str, tuple[Position, bool | None]]:
    """Subscribe, with offsets in the first epoch, and let the reply be behind at once."""
    met, release = subscribe(events, ear, patterns, {name: Position("e1", offset) for name, offset in since.items()})
    release()
    return met


def subscribe(
    events: Events[Any], ear: Ear, patterns: Sequence[str], since: Mapping[str, Position]
) -> tuple[Met, Callable[[], None]]:
    """Subscribe in one go; returns the topics that are met, and what is to be called behind the reply."""
    met, subscriber = work.at_once(events.subscribe(ear, patterns, since))

    def release() -> None:
        subscriber.release()
        while subscriber.feed():
            pass

    return met, release


def unsubscribe(events: Events[Any], ear: Ear, patterns: Sequence[str]) -> list[str]:
    """Unsubscribe in one go; returns what is left."""
    return work.at_once(events.unsubscribe(ear, patterns))


def size(frames: list[bytes]) -> tuple[int, int]:
    """How many there are, and their bytes."""
    return len(frames), sum(map(len, frames))
