"""Topics: their names and patterns, who has subscribed to them, and what is kept of each. Pure.

A topic's messages are numbered from 1 on. Its ``epoch`` is another one whenever the numbers begin anew. What is kept is
bounded by count and age for each topic, and by bytes over all of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from gateway.names import OWN, is_dotted_name, matches


def meets(pattern: str, topic: str) -> bool:
    """Whether a subscription to ``pattern`` is one to ``topic``; the gateway's own topics have to be asked for."""
    return pattern.startswith(OWN) == topic.startswith(OWN) and matches(pattern, topic)


class Position(NamedTuple):
    """A place in a topic: behind the message of this ``offset``, in this ``epoch``."""

    epoch: str
    offset: int


class Written(NamedTuple):
    """Messages, and the bytes of their frames, that every subscriber of a topic has been written at once."""

    messages: int
    octets: int


class Topic:
    """One topic: its position, its subscribers and how each is written to, and how much of it is kept."""

    __slots__ = ("conflated", "epoch", "kept", "name", "offset", "subscribers", "written")

    def __init__(self, name: str, epoch: str, conflated: bool) -> None:
        self.name = name
        self.epoch = epoch
        self.conflated = conflated
        self.offset = 0
        self.subscribers: dict[Subscriber, Callable[[bytes], None]] = {}
        self.written = Written(0, 0)
        self.kept: deque[int] = deque()

    @property
    def position(self) -> Position:
        """Where it is now."""
        return Position(self.epoch, self.offset)


class Subscriber(Protocol):
    """Who subscribes: the patterns, and the topics that they meet now. Both are `Topics`' to change.

    With each topic there is what of ``Topic.written`` the subscriber has counted already; that is its own to change.
    """

    patterns: dict[str, None]
    topics: dict[Topic, Written]

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends it one message's frame, at once."""

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """One message, as it goes on the wire."""


class _Kept(NamedTuple):
    topic: Topic
    at: float
    frame: bytes


class FullError(Exception):
    """There are as many topics as there may be, and somebody has subscribed to each."""


class Topics:
    """All topics. ``clock`` gives monotonic seconds, ``new_epoch`` a text that was never an epoch before.

    ``conflate`` are the patterns of topics of which a subscriber wants the latest message alone.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        new_epoch: Callable[[], str],
        *,
        max_topics: int,
        history_count: int,
        history_age: float,
        history_bytes: int,
        conflate: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        self._new_epoch = new_epoch
        self._max_topics = max_topics
        self._count = history_count if history_age and history_bytes else 0
        self._age = history_age
        self._bytes = history_bytes
        self._conflate = tuple(conflate)
        self._topics: dict[str, Topic] = {}
        self._idle: OrderedDict[Topic, None] = (
            OrderedDict()
        )  # without a subscriber, the one published to last at its end
        self._patterns: dict[str, dict[Subscriber, None]] = {}
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # the oldest first, over all topics
        self._number = 0
        self.kept_bytes = 0

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic | None:
        """A topic that there is."""
        return self._topics.get(name)

    def open(self, name: str) -> Topic:
        """A topic that there is from now on; where there is no room, one goes that nobody has subscribed to.

        Raises FullError.
        """
        topic = self._topics.get(name)
        if topic is not None:
            return topic
        if len(self._topics) >= self._max_topics:
            if not self._idle:
                raise FullError
            self._forget(next(iter(self._idle)))
        topic = self._topics[name] = Topic(name, self._new_epoch(), any(meets(p, name) for p in self._conflate))
        self._idle[topic] = None
        for pattern, subscribers in self._patterns.items():
            if meets(pattern, name):
                for subscriber in subscribers:
                    self._join(subscriber, topic)
        return topic

    def _forget(self, topic: Topic) -> None:
        while topic.kept:
            self._drop(topic)
        del self._idle[topic], self._topics[topic.name]

    # Subscriptions

    def subscribe(self, subscriber: Subscriber, pattern: str) -> list[Topic]:
        """Add a subscription; returns the topics that it meets now. Again is harmless. Raises FullError."""
        if pattern in self._topics or is_dotted_name(pattern):
            topics = [self.open(pattern)]
        else:
            self._patterns.setdefault(pattern, {})[subscriber] = None
            topics = [topic for name, topic in self._topics.items() if meets(pattern, name)]
        subscriber.patterns[pattern] = None
        for topic in topics:
            self._join(subscriber, topic)
        return topics

    def unsubscribe(self, subscriber: Subscriber, pattern: str) -> None:
        """Take a subscription away; a topic that another one of the subscriber meets stays. Harmless without it."""
        if pattern not in subscriber.patterns:
            return
        del subscriber.patterns[pattern]
        subscribers = self._patterns.get(pattern)
        if subscribers is not None:
            subscribers.pop(subscriber, None)
            if not subscribers:
                del self._patterns[pattern]
        for topic in [topic for topic in subscriber.topics if meets(pattern, topic.name)]:
            if not any(meets(other, topic.name) for other in subscriber.patterns):
                self._part(subscriber, topic)

    def leave(self, subscriber: Subscriber) -> None:
        """Take all subscriptions away. May be called twice."""
        for pattern in subscriber.patterns:
            subscribers = self._patterns.get(pattern)
            if subscribers is not None:
                subscribers.pop(subscriber, None)
                if not subscribers:
                    del self._patterns[pattern]
        subscriber.patterns.clear()
        for topic in list(subscriber.topics):
            self._part(subscriber, topic)

    def _join(self, subscriber: Subscriber, topic: Topic) -> None:
        topic.subscribers[subscriber] = subscriber.write
        subscriber.topics.setdefault(topic, topic.written)
        self._idle.pop(topic, None)

    def _part(self, subscriber: Subscriber, topic: Topic) -> None:
        topic.subscribers.pop(subscriber, None)
        subscriber.topics.pop(topic, None)
        if not topic.subscribers:
            self._idle[topic] = None

    # History

    def keep(self, topic: Topic, frame: bytes) -> None:
        """Keep the message that has just got the topic's newest offset, as far as the bounds allow."""
        if not topic.subscribers:
            self._idle.move_to_end(topic)
        if not self._count:
            return
        now = self._clock()
        self._number += 1
        self._kept[self._number] = _Kept(topic, now, frame)
        topic.kept.append(self._number)
        self.kept_bytes += len(frame)
        if len(topic.kept) > self._count:
            self._drop(topic)
        self._expire(now)

    def since(self, topic: Topic, position: Position) -> list[bytes] | None:
        """All messages behind a position; None where some of them are gone, or it is no position of this topic."""
        self._expire(self._clock())
        missed = topic.offset - position.offset
        if position.epoch != topic.epoch or not 0 <= missed <= len(topic.kept):
            return None
        return [self._kept[number].frame for number in islice(topic.kept, len(topic.kept) - missed, None)]

    def _expire(self, now: float) -> None:
        """What is oldest over all is oldest in its topic."""
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if self.kept_bytes <= self._bytes and now - oldest.at < self._age:
                break
            self._drop(oldest.topic)

    def _drop(self, topic: Topic) -> None:
        self.kept_bytes -= len(self._kept.pop(topic.kept.popleft()).frame)
