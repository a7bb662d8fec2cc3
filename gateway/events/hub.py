"""Publishing and subscribing: puts topics, the stream of messages and their delivery together.

Messages of one topic arrive in the order of their offsets, or the subscriber is told that there is a gap. The stream
(`cluster.stream`) numbers and keeps messages, `topics` knows the subscribers, and `delivery` hands messages to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from gateway import errors
from gateway.cluster.stream import Position, Stream
from gateway.events.delivery import Delivery, Recipient, Subscriber
from gateway.events.topics import FullError, Topic, Topics, meets
from gateway.names import OWN, is_dotted_name
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal

MAX_SUBSCRIPTIONS: Final = 1000
"""The most topics and patterns that one connection may be subscribed to."""

OWN_TOPICS: Final = (
    "gateway.connection.opened",
    "gateway.connection.closed",
    "gateway.node.online",
    "gateway.node.offline",
    "gateway.draining",
)
"""The gateway's own topics. Each begins with its first subscription."""

Met = dict[str, tuple[Position, bool | None]]
"""The topics that a subscription meets, by name: where each is now, and whether all that was missed is still kept.

The latter is None if the subscriber did not say which message it had last.
"""


class Events:
    """Publishing and subscribing, over one table of topics and one stream. ``published`` counts the messages.

    ``start`` is called before all other methods, ``stop`` after them.
    """

    def __init__(self, topics: Topics, stream: Stream, delivery: Delivery) -> None:
        self._topics = topics
        self._stream = stream
        self._delivery = delivery
        self.published = 0

    async def start(self) -> None:
        """Connect the stream. Once."""
        await self._stream.connect(self._delivery.deliver)

    async def stop(self) -> None:
        """Close the stream. May be called twice."""
        await self._stream.close()

    def publish(self, name: str, data: bytes) -> Position:
        """Publish JSON on a topic, which begins if there is none of this name. Returns the message's position.

        Raises Refusal if there are too many topics.
        """
        try:
            self._topics.touch(name)
        except FullError:
            raise _full() from None
        self.published += 1
        return self._stream.publish(name, data)

    def wanted(self, name: str) -> bool:
        """Return whether there is this topic of the gateway's own. It begins with its first subscription."""
        return self._topics.get(name) is not None

    def own(self, name: str, data: object) -> None:
        """Publish ``data``, encoded, on one of the gateway's own topics, if it is wanted."""
        if self.wanted(name):
            self.publish(name, jsonrpc.encode(data))

    def subscribe(
        self, recipient: Recipient, patterns: Sequence[str], since: Mapping[str, Position]
    ) -> tuple[Met, Callable[[], None]]:
        """Subscribe a connection to topics and patterns. The caller has checked that it may.

        ``since`` has, by topic, the position of the last message that the connection got. Returns the topics that are
        met now, and a function to call once, after the reply has been sent: it sends the messages that were missed and
        all that have come meanwhile. Raises Refusal, and then the connection's subscriptions are as they were.
        """
        subscriber = self._delivery.subscriber(recipient)
        _check(subscriber, patterns)
        before = set(subscriber.patterns)
        missed: list[bytes] = []
        try:
            met = self._met(subscriber, patterns, since, missed)
        except FullError:
            self.unsubscribe(recipient, [pattern for pattern in patterns if pattern not in before])
            raise _full() from None
        subscriber.hold(missed)
        return met, subscriber.release

    def _met(
        self, subscriber: Subscriber, patterns: Sequence[str], since: Mapping[str, Position], missed: list[bytes]
    ) -> Met:
        """Join the topics, and add to ``missed`` what was missed of them. Raises FullError."""
        met: Met = {}
        for topic in self._join(subscriber, patterns):
            name = topic.name
            if name in met:
                continue
            found = self._stream.since(name, since[name]) if name in since else None
            met[name] = (self._stream.position(name), found is not None if name in since else None)
            if found is not None:
                missed += found
                subscriber.forget_latest(topic)
        for name in since:
            wanted = any(meets(pattern, name) for pattern in patterns)
            if wanted and name not in met and not name.startswith(OWN) and is_dotted_name(name):
                self._topics.open(name)
                met[name] = (self._stream.position(name), False)  # it was forgotten: told like any other gap
        return met

    def _join(self, subscriber: Subscriber, patterns: Sequence[str]) -> Iterator[Topic]:
        for pattern in patterns:
            if pattern.startswith(OWN):  # the gateway's own topics begin with their first subscription
                for name in OWN_TOPICS:
                    if meets(pattern, name):
                        self._topics.open(name)
            yield from self._topics.subscribe(subscriber, pattern)

    def unsubscribe(self, recipient: Recipient, patterns: Iterable[str]) -> list[str]:
        """End subscriptions of a connection. Returns those that are left."""
        subscriber = recipient.subscriber
        if subscriber is None:
            return []
        for pattern in patterns:
            self._topics.unsubscribe(subscriber, pattern)
        return list(subscriber.patterns)

    def rescoped(self, recipient: Recipient) -> None:
        """End the subscriptions that a connection's new credential does not allow."""
        subscriber = recipient.subscriber
        if subscriber is not None:
            allows = recipient.principal.allows
            self.unsubscribe(recipient, [p for p in subscriber.patterns if not allows(f"subscribe:{p}")])

    def lost(self, recipient: Recipient) -> None:
        """End all subscriptions of a connection, because it is over. May be called twice."""
        self._delivery.lost(recipient)


def _check(subscriber: Subscriber, patterns: Sequence[str]) -> None:
    """Raise Refusal if these are too many, or name a topic of the gateway's own that does not exist."""
    if len(subscriber.patterns.keys() | set(patterns)) > MAX_SUBSCRIPTIONS:
        raise Refusal(errors.OVERLOADED, f"{MAX_SUBSCRIPTIONS} subscriptions of one connection")
    for pattern in patterns:
        if pattern.startswith(OWN) and is_dotted_name(pattern) and pattern not in OWN_TOPICS:
            raise Refusal(errors.NOT_FOUND, f"no topic {pattern!r}; there are {', '.join(OWN_TOPICS)}")


def _full() -> Refusal:
    return Refusal(errors.OVERLOADED, "as many topics as events.max_topics", retryAfterMs=errors.RETRY_FULL_MS)
