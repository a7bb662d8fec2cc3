"""Topics: their names and patterns, and their subscribers. Pure.

A topic knows its subscribers, including those that have subscribed by a pattern, so publishing looks at no pattern.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.names import OWN, is_dotted_name, matches
from gateway.websocket.frames import NOTHING_WRITTEN, Written


def meets(pattern: str, topic: str) -> bool:
    """Return whether a subscription to ``pattern`` includes ``topic``.

    A pattern includes topics of the gateway's own only if it begins as they do.
    """
    return pattern.startswith(OWN) == topic.startswith(OWN) and matches(pattern, topic)


class Topic:
    """One topic. ``subscribers`` has for each subscriber what writes a frame straight to its transport.

    If it is ``conflated``, a subscriber that does not read gets the latest message alone.
    """

    __slots__ = ("conflated", "name", "subscribers", "written")

    def __init__(self, name: str, conflated: bool) -> None:
        self.name = name
        self.conflated = conflated
        self.subscribers: dict[Follower, Callable[[bytes], None]] = {}
        self.written = NOTHING_WRITTEN
        """What was written past the outboxes since the topic began, each time to all subscribers of that moment."""


class Follower(Protocol):
    """A subscriber, as far as the topics know it (`delivery.Subscriber`).

    ``patterns`` are the names and patterns that it is subscribed to; only `Topics` changes them. ``topics`` are the
    topics that they meet now, each with what `Topic.written` was when the subscriber joined.
    """

    patterns: dict[str, None]
    topics: dict[Topic, Written]

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one message's frame straight to the transport."""

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """Send one message's frame, or keep it back."""

    def joined(self, topic: Topic) -> None:
        """Note that one of its patterns meets this topic. May be called again."""

    def parted(self, topic: Topic) -> None:
        """Note that none of its patterns meets this topic any more. May be called again."""


class FullError(Exception):
    """There are as many topics as there may be, and each of them has a subscriber."""


class Topics:
    """All topics, ``max_topics`` at most. ``forgotten`` is called with the name of each that has to make room.

    ``conflate`` are the names and patterns of topics that are conflated.
    """

    def __init__(self, forgotten: Callable[[str], None], *, max_topics: int, conflate: Sequence[str] = ()) -> None:
        self._forgotten = forgotten
        self._max_topics = max_topics
        self._conflate = tuple(conflate)
        self._topics: dict[str, Topic] = {}
        self._idle: OrderedDict[Topic, None] = OrderedDict()
        """The topics without a subscriber. The first one makes room first; publishing to one moves it to the end."""
        self._patterns: dict[str, dict[Follower, None]] = {}

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic | None:
        """Return a topic, or None if there is none of this name."""
        return self._topics.get(name)

    def open(self, name: str) -> Topic:
        """Return a topic, which begins if there is none of this name. If there is no room, an idle one is forgotten.

        Raises FullError if no topic is idle.
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
        """Open a topic because a message is published on it, and make it the last to be forgotten. Raises FullError."""
        topic = self.open(name)
        if not topic.subscribers:
            self._idle.move_to_end(topic)

    def _forget(self, topic: Topic) -> None:
        del self._idle[topic], self._topics[topic.name]
        self._forgotten(topic.name)

    # Subscriptions

    def subscribe(self, follower: Follower, pattern: str) -> list[Topic]:
        """Add a subscription. Returns the topics that it meets now. May be called again. Raises FullError."""
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
        """End a subscription. Harmless if there is none.

        Topics that another pattern of the subscriber meets stay.
        """
        if pattern not in follower.patterns:
            return
        del follower.patterns[pattern]
        self._drop(follower, pattern)
        for topic in [topic for topic in follower.topics if meets(pattern, topic.name)]:
            if not any(meets(other, topic.name) for other in follower.patterns):
                self._part(follower, topic)

    def leave(self, follower: Follower) -> None:
        """End all subscriptions of a subscriber. May be called twice."""
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
