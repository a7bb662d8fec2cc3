"""Topics: their names and patterns, and who is subscribed to them. Pure.

A topic has its subscribers, those by pattern too, so that publishing looks at no pattern.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.names import OWN, is_dotted_name, matches
from gateway.websocket.frames import NOTHING_WRITTEN, Written


def meets(pattern: str, topic: str) -> bool:
    """Whether a subscription to ``pattern`` is one to ``topic``; the gateway's own topics have to be asked for."""
    return pattern.startswith(OWN) == topic.startswith(OWN) and matches(pattern, topic)


class Topic:
    """One topic: who is subscribed to it, and how each of them is written to."""

    __slots__ = ("conflated", "name", "subscribers", "written")

    def __init__(self, name: str, conflated: bool) -> None:
        self.name = name
        self.conflated = conflated
        self.subscribers: dict[Follower, Callable[[bytes], None]] = {}
        self.written = NOTHING_WRITTEN
        """What every subscriber was written at once, since the topic began."""


class Follower(Protocol):
    """A subscriber, as far as the topics know it (`delivery.Subscriber`).

    ``patterns`` are those that it is subscribed to, and `Topics`' to change. ``topics`` are those that they meet now.
    """

    patterns: dict[str, None]
    topics: dict[Topic, Written]

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends it one message's frame, at once."""

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """One message, as it goes on the wire."""

    def joined(self, topic: Topic) -> None:
        """One of its patterns meets this topic. May be called again."""

    def parted(self, topic: Topic) -> None:
        """None of its patterns meets this topic any more. May be called again."""


class FullError(Exception):
    """There are as many topics as there may be, and each has a subscriber."""


class Topics:
    """All topics. ``forgotten`` is told the name of each that had to make room for another one.

    ``conflate`` are the patterns of topics of which a subscriber wants the latest message alone.
    """

    def __init__(self, forgotten: Callable[[str], None], *, max_topics: int, conflate: Sequence[str] = ()) -> None:
        self._forgotten = forgotten
        self._max_topics = max_topics
        self._conflate = tuple(conflate)
        self._topics: dict[str, Topic] = {}
        self._idle: OrderedDict[Topic, None] = OrderedDict()
        """Those without a subscriber, the one published to last at its end."""
        self._patterns: dict[str, dict[Follower, None]] = {}

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic | None:
        """A topic that there is."""
        return self._topics.get(name)

    def open(self, name: str) -> Topic:
        """A topic that there is from now on; if there is no room, one without a subscriber goes.

        Raises FullError.
        """
        topic = self._topics.get(name)
        if topic is not None:
            return topic
        if len(self._topics) >= self._max_topics:
            if not self._idle:
                raise FullError
            self._forget(next(iter(self._idle)))
        topic = self._topics[name] = Topic(name, any(meets(p, name) for p in self._conflate))
        self._idle[topic] = None
        for pattern, followers in self._patterns.items():
            if meets(pattern, name):
                for follower in followers:
                    self._join(follower, topic)
        return topic

    def touch(self, name: str) -> None:
        """Open a topic because a message of it is published: it is the last one to make room. Raises FullError."""
        topic = self.open(name)
        if not topic.subscribers:
            self._idle.move_to_end(topic)

    def _forget(self, topic: Topic) -> None:
        del self._idle[topic], self._topics[topic.name]
        self._forgotten(topic.name)

    # Subscriptions

    def subscribe(self, follower: Follower, pattern: str) -> list[Topic]:
        """Add a subscription; returns the topics that it meets now. Again is harmless. Raises FullError."""
        if pattern in self._topics or is_dotted_name(pattern):
            topics = [self.open(pattern)]
        else:
            self._patterns.setdefault(pattern, {})[follower] = None
            topics = [topic for name, topic in self._topics.items() if meets(pattern, name)]
        follower.patterns[pattern] = None
        for topic in topics:
            self._join(follower, topic)
        return topics

    def unsubscribe(self, follower: Follower, pattern: str) -> None:
        """Take a subscription away; a topic that another one of the subscriber meets stays. Harmless without it."""
        if pattern not in follower.patterns:
            return
        del follower.patterns[pattern]
        self._drop(follower, pattern)
        for topic in [topic for topic in follower.topics if meets(pattern, topic.name)]:
            if not any(meets(other, topic.name) for other in follower.patterns):
                self._part(follower, topic)

    def leave(self, follower: Follower) -> None:
        """Take all subscriptions away. May be called twice."""
        for pattern in follower.patterns:
            self._drop(follower, pattern)
        follower.patterns.clear()
        for topic in list(follower.topics):
            self._part(follower, topic)

    def _drop(self, follower: Follower, pattern: str) -> None:
        followers = self._patterns.get(pattern)
        if followers is not None:
            followers.pop(follower, None)
            if not followers:
                del self._patterns[pattern]

    def _join(self, follower: Follower, topic: Topic) -> None:
        topic.subscribers[follower] = follower.write
        follower.joined(topic)
        self._idle.pop(topic, None)

    def _part(self, follower: Follower, topic: Topic) -> None:
        topic.subscribers.pop(follower, None)
        follower.parted(topic)
        if not topic.subscribers:
            self._idle[topic] = None
