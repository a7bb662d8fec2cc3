"""Events: who publishes what to whom. Messages of one topic arrive in the order of their offsets, or a gap is told.

A message is one frame, made once, whatever the number of subscribers. Nobody is waited for: a subscriber that does not
read is cut by its outbox (`gateway.outbox`), or has the latest message alone where the topic is conflated. Where no
subscriber has anything to wait for, the frame is written straight to their transports, and counted later: only to look
at each of a thousand connections costs a tenth of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from gateway import errors, frames, jsonrpc
from gateway.bus import Bus
from gateway.errors import Disconnect
from gateway.method import Refusal
from gateway.names import OWN, is_dotted_name
from gateway.scopes import Principal
from gateway.timestamps import rfc3339
from gateway.topics import FullError, Position, Topic, Topics, Written, meets

AT_ONCE: Final = 1000
"""Subscribers that one message may be written to in one go; of more each has its turn in the cork."""

MAX_SUBSCRIPTIONS: Final = 1000
"""Topics and patterns that one connection may have subscribed to."""

OWN_TOPICS: Final = (
    "gateway.connection.opened",
    "gateway.connection.closed",
    "gateway.node.online",
    "gateway.node.offline",
    "gateway.draining",
)
"""The gateway's own topics. Each begins with its first subscription."""

_SUBJECT: Final = "event."
_MESSAGE: Final = (
    b'{"jsonrpc":"2.0","method":"event.message","params":{"topic":%b,"offset":%d,"epoch":"%b","time":"%b","data":%b}}'
)


class Reader(Protocol):
    """A connection that events are sent to."""

    principal: Principal
    subscriber: Subscriber | None

    @property
    def is_open(self) -> bool:
        """Whether it is open, and not on its way out."""

    @property
    def stalled(self) -> bool:
        """Whether it does not read at the moment."""

    @property
    def max_held_bytes(self) -> int:
        """How much may be held back for it."""

    def send_frame(self, frame: bytes) -> None:
        """Send one frame; the same one goes to many."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past all that would have to wait. For one that is open, and reads."""

    def count(self, messages: int, octets: int) -> None:
        """Count what was written so."""

    def end(self, end: Disconnect) -> None:
        """End the connection."""


class Way(Protocol):
    """The way out of all connections (`outbox.Cork`)."""

    def make_way(self) -> bool:
        """Whether one frame may be written past the outboxes now; if so, what was sent before has been written."""


class Subscriber:
    """What one connection has subscribed to, and what it must not have yet.

    It is among ``aside`` while what is sent to it has to wait, and in it while it is open.
    """

    __slots__ = ("_aside", "_held", "_held_bytes", "_holds", "_latest", "_reader", "_send", "patterns", "topics")

    def __init__(self, reader: Reader, aside: set[Subscriber]) -> None:
        self._reader = reader
        self._aside = aside
        self._send = reader.send_frame
        self._holds = 0
        self._held_bytes = 0
        self._held: list[bytes] = []
        self._latest: dict[Topic, bytes] = {}
        self.patterns: dict[str, None] = {}
        self.topics: dict[Topic, Written] = {}

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends a message at once. For one that is not aside."""
        return self._reader.write

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """Send a message, or keep it back."""
        if not self._holds and not topic.conflated:
            self._send(frame)
        elif self._holds:
            self._held.append(frame)
            self._held_bytes += len(frame)
            if self._held_bytes > self._reader.max_held_bytes:
                self._reader.end(errors.SLOW_CONSUMER)
        elif self._reader.stalled:
            self._latest.pop(topic, None)
            self._latest[topic] = frame
        else:
            self._send(frame)

    def hold(self, missed: Iterable[bytes]) -> None:
        """Keep back what was missed and what comes, until `release`: the reply to the subscription goes first."""
        self._holds += 1
        self._held += missed
        self.place()

    def release(self) -> None:
        """Send what was kept back, unless another reply is still to go first."""
        self._holds -= 1
        if self._holds:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        for frame in held:
            self._reader.send_frame(frame)
        self.place()

    def place(self) -> None:
        """Stand aside or not, whichever is right now."""
        if self._holds or self._reader.stalled or not self._reader.is_open:
            self.settle()
            self._aside.add(self)
        else:
            self._aside.discard(self)

    def settle(self) -> None:
        """Count what was written to it at once."""
        for topic, counted in self.topics.items():
            if topic.written is not counted:
                self._reader.count(topic.written.messages - counted.messages, topic.written.octets - counted.octets)
                self.topics[topic] = topic.written

    def forget(self, topics: Iterable[Topic]) -> None:
        """The latest messages of these topics are not wanted."""
        for topic in topics:
            self._latest.pop(topic, None)

    def trim(self) -> None:
        """Nor are those of topics that it does not subscribe to any more."""
        self.forget([topic for topic in self._latest if topic not in self.topics])

    def drained(self) -> None:
        """It reads again: the latest messages of conflated topics."""
        while self._latest and not self._reader.stalled:
            topic = next(iter(self._latest))
            self._reader.send_frame(self._latest.pop(topic))
        self.place()


class Events:
    """Publishing and subscribing, over one table of topics and one bus. ``published`` and ``delivered`` are counts.

    A message goes to the bus, and what the bus brings is delivered: with more processes than one, that of any of them.
    """

    def __init__(self, topics: Topics, bus: Bus, way: Way, wall: Callable[[], float] = time.time) -> None:
        self._topics = topics
        self._bus = bus
        self._way = way
        self._aside: set[Subscriber] = set()
        self._wall = wall
        self.published = 0
        self.delivered = 0
        bus.subscribe(f"{_SUBJECT}>", self._deliver)

    def publish(self, name: str, data: bytes) -> Position:
        """Publish JSON under a topic, which begins with its first message. Raises Refusal where there are too many."""
        try:
            topic = self._topics.open(name)
        except FullError:
            raise _full() from None
        topic.offset += 1
        place = (jsonrpc.encode(name), topic.offset, topic.epoch.encode(), rfc3339(self._wall()).encode())
        frame = frames.text_frame(_MESSAGE % (*place, data))
        self.published += 1
        self._topics.keep(topic, frame)
        self._bus.publish(_SUBJECT + name, frame)
        return topic.position

    def wanted(self, name: str) -> bool:
        """Whether anybody has ever subscribed to one of the gateway's own topics."""
        return self._topics.get(name) is not None

    def own(self, name: str, data: object) -> None:
        """Publish under one of the gateway's own topics, where it is wanted."""
        if self.wanted(name):
            self.publish(name, jsonrpc.encode(data))

    def _deliver(self, subject: str, frame: bytes, reply: str) -> None:
        topic = self._topics.get(subject.removeprefix(_SUBJECT))
        if topic is None:
            return
        subscribers = topic.subscribers
        self.delivered += len(subscribers)
        # In this order, for to make way may show that one of them takes no more.
        if 0 < len(subscribers) <= AT_ONCE and self._way.make_way() and subscribers.keys().isdisjoint(self._aside):
            before = topic.written
            topic.written = Written(before.messages + 1, before.octets + len(frame))
            for write in subscribers.values():
                write(frame)
        else:
            for subscriber in subscribers:
                subscriber.deliver(topic, frame)

    def subscribe(
        self, reader: Reader, patterns: Sequence[str], since: Mapping[str, Position]
    ) -> tuple[dict[str, tuple[Position, bool | None]], Callable[[], None]]:
        """Subscribe a connection, that may, to topics and patterns.

        Returns where each topic is that they meet now, and whether what is missed since then is there, None where it
        was not asked; and what sends the missed and all that has come meanwhile: to be called behind the reply, once.
        Raises Refusal.
        """
        subscriber = reader.subscriber
        if subscriber is None:
            subscriber = reader.subscriber = Subscriber(reader, self._aside)
        if len(subscriber.patterns.keys() | set(patterns)) > MAX_SUBSCRIPTIONS:
            raise Refusal(errors.OVERLOADED, f"{MAX_SUBSCRIPTIONS} subscriptions of one connection")
        for pattern in patterns:
            if pattern.startswith(OWN) and is_dotted_name(pattern) and pattern not in OWN_TOPICS:
                raise Refusal(errors.NOT_FOUND, f"no topic {pattern!r}; there are {', '.join(OWN_TOPICS)}")
        met: dict[str, tuple[Position, bool | None]] = {}
        missed: list[bytes] = []
        before = set(subscriber.patterns)
        try:
            for topic in self._join(subscriber, patterns):
                if topic.name in met:
                    continue
                found = self._topics.since(topic, since[topic.name]) if topic.name in since else None
                met[topic.name] = (topic.position, found is not None if topic.name in since else None)
                if found is not None:
                    missed += found
                    subscriber.forget([topic])
            for name in since:
                wanted = any(meets(pattern, name) for pattern in patterns)
                if wanted and name not in met and not name.startswith(OWN) and is_dotted_name(name):
                    met[name] = (self._topics.open(name).position, False)  # gone: told, like any other gap
        except FullError:
            self.unsubscribe(reader, [pattern for pattern in patterns if pattern not in before])
            raise _full() from None
        subscriber.hold(missed)
        return met, subscriber.release

    def _join(self, subscriber: Subscriber, patterns: Sequence[str]) -> Iterator[Topic]:
        for pattern in patterns:
            if pattern.startswith(OWN):  # the gateway's topics begin when somebody wants them
                for name in OWN_TOPICS:
                    if meets(pattern, name):
                        self._topics.open(name)
            yield from self._topics.subscribe(subscriber, pattern)

    def unsubscribe(self, reader: Reader, patterns: Iterable[str]) -> list[str]:
        """Take subscriptions away; returns what is left."""
        subscriber = reader.subscriber
        if subscriber is None:
            return []
        subscriber.settle()
        for pattern in patterns:
            self._topics.unsubscribe(subscriber, pattern)
        subscriber.trim()
        return list(subscriber.patterns)

    def rescoped(self, reader: Reader) -> None:
        """The connection has another credential: what that does not allow goes."""
        subscriber = reader.subscriber
        if subscriber is not None:
            gone = [p for p in subscriber.patterns if not reader.principal.allows(f"subscribe:{p}")]
            self.unsubscribe(reader, gone)

    def lost(self, reader: Reader) -> None:
        """The connection is over. May be called twice."""
        subscriber, reader.subscriber = reader.subscriber, None
        if subscriber is not None:
            self._topics.leave(subscriber)
            self._aside.discard(subscriber)


def _full() -> Refusal:
    return Refusal(errors.OVERLOADED, "as many topics as events.max_topics", retryAfterMs=errors.RETRY_FULL_MS)
