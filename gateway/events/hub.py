"""Publishing and subscribing: puts topics, the stream of messages and their delivery together.

Messages of one topic arrive in the order of their offsets, or the subscriber is told that there is a gap. The stream
(`cluster.stream`) numbers and keeps messages, `topics` knows the subscribers, and `delivery` hands messages to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Generic

from gateway import errors
from gateway.cluster.stream import Position, Published_co, Stream
from gateway.events.delivery import Delivery, Recipient, Subscriber
from gateway.events.index import Patterns, is_wild
from gateway.events.topics import FullError, Topic, Topics, meets
from gateway.names import OWN, is_dotted_name
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.work import STEPS, Pace, Work

MAX_SUBSCRIPTIONS: Final = 1000
"""The most topics and patterns that one connection may be subscribed to."""

OWN_TOPICS: Final = (
    "gateway.connection.opened",
    "gateway.connection.closed",
    "gateway.node.online",
    "gateway.node.offline",
    "gateway.node.held",
    "gateway.node.back",
    "gateway.draining",
)
"""The gateway's own topics. Each begins with its first subscription."""

Met = dict[str, tuple[Position, bool | None]]
"""The topics that a subscription meets, by name: where each is now, and whether all that was missed is still kept.

The latter is None if the subscriber did not say which message it had last.
"""


SINCE_STEPS: Final = 10
"""What a position in ``since`` counts for."""

PARTED: Final = 4 * STEPS
"""How many topics a subscriber parts from in one step."""


class Events(Generic[Published_co]):
    """Publishing and subscribing, over one table of topics and one stream. ``published`` counts the messages.

    ``start`` is called before all other methods, ``stop`` after them.
    """

    def __init__(self, topics: Topics, stream: Stream[Published_co], delivery: Delivery) -> None:
        self._topics = topics
        self._stream = stream
        self._delivery = delivery
        self.published = 0

    async def start(self) -> None:
        """Connect the stream. Once."""
        await self._stream.connect(self._delivery)

    async def stop(self) -> None:
        """Close the stream. May be called twice."""
        await self._stream.close()

    def publish(self, name: str, data: bytes, owner: str = "") -> Published_co:
        """Publish JSON on a topic, which begins if there is none of this name.

        Returns the message's position, or what will be it if the stream takes its time. The message counts for the
        principal ``owner``, and so does a topic that begins with it. Raises Refusal if there are too many topics.
        """
        try:
            self._topics.touch(name, owner)
        except FullError:
            raise full() from None
        self.published += 1
        return self._stream.publish(name, data, owner)

    def wanted(self, name: str) -> bool:
        """Return whether there is this topic of the gateway's own. It begins with its first subscription."""
        return self._topics.get(name) is not None

    def own(self, name: str, data: Mapping[str, object], owner: str = "") -> None:
        """Publish ``data``, encoded, on one of the gateway's own topics, if it is wanted.

        It counts for the principal ``owner``, whose doing it tells of.
        """
        if self.wanted(name):
            self.publish(name, jsonrpc.encode(data), owner)

    def is_small(self, patterns: Sequence[str], since: Collection[Position] = ()) -> bool:
        """Return whether to subscribe to these, or to unsubscribe, is little work even if they meet all topics.

        ``since`` are the positions that come with them.
        """
        wild = sum(map(is_wild, patterns))
        return len(patterns) + len(since) * SINCE_STEPS + wild * len(self._topics) <= STEPS

    async def reach(self, since: Collection[Position]) -> None:
        """Wait until the stream is known up to these positions, for a moment at most."""

    def subscribe(
        self, recipient: Recipient, patterns: Sequence[str], since: Mapping[str, Position]
    ) -> Work[tuple[Met, Subscriber]]:
        """Subscribe a connection to topics and patterns, in steps. The caller has checked that it may.

        ``since`` has, by topic, the position of the last message that the connection got. Returns the topics that are
        met now, and the subscriber. Its `go_on` is to be called once, after the reply has been sent: it sends the
        messages that were missed and all that have come meanwhile. Work that is closed before its end does that itself.

        Raises Refusal in the first step, and then the connection's subscriptions are as they were.
        """
        patterns = list(dict.fromkeys(patterns))
        subscriber = self._delivery.subscriber(recipient)
        _check(subscriber, patterns)
        subscriber.hold()
        met: Met = {}
        try:
            yield from self._join(recipient, subscriber, patterns, met)
            if since:
                yield from self._catch_up(subscriber, patterns, since, met)
        except BaseException:  # also if the steps that are left are not taken: then there is no reply to wait for
            subscriber.go_on()
            raise
        return met, subscriber

    def _join(self, recipient: Recipient, subscriber: Subscriber, patterns: Sequence[str], met: Met) -> Work[None]:
        """Join the topics of each pattern at one moment, and note where they were."""
        pace = Pace()
        principal = recipient.principal
        for pattern in patterns:
            if recipient.subscriber is not subscriber:
                return
            if recipient.principal is not principal and not recipient.principal.allows(f"subscribe:{pattern}"):
                continue  # another credential has come meanwhile
            if pattern.startswith(OWN):  # the gateway's own topics begin with their first subscription
                for name in OWN_TOPICS:
                    if meets(pattern, name):
                        self._topics.open(name)
            topics = self._topics.subscribe(subscriber, pattern)
            if not topics and not is_wild(pattern):
                at = self._stream.expect(pattern)
                met[pattern] = (subscriber.behind.get(pattern) or at, None)
            fresh = [topic for topic in topics if topic.name not in met]
            for begin in range(0, len(fresh), STEPS):
                if len(fresh) > STEPS:
                    yield
                self._note(subscriber, fresh[begin : begin + STEPS], met)
            if pace.over(1 + len(topics)):
                yield

    def _note(self, subscriber: Subscriber, topics: Iterable[Topic], met: Met) -> None:
        """Note where these topics were when the subscriber joined them: it is behind on what has come since then."""
        position, behind = self._stream.position, subscriber.behind
        for topic in topics:
            met[topic.name] = (behind.get(topic.name) or position(topic.name), None)

    def _catch_up(
        self, subscriber: Subscriber, patterns: Sequence[str], since: Mapping[str, Position], met: Met
    ) -> Work[None]:
        """Have the subscriber sent what comes after the positions in ``since``, of topics of which all that is kept."""
        pace = Pace()
        wanted: Patterns[None] = Patterns()
        for pattern in patterns:
            if is_wild(pattern):
                wanted[pattern] = None
        for name, position in since.items():
            visits = wanted.visits
            if name in met:
                at = met[name][0]
            elif not name.startswith(OWN) and is_dotted_name(name) and wanted.met_by(name):
                # It was forgotten, or has never begun.
                at = subscriber.behind.get(name) or self._stream.position(name)
            else:
                at = None
            if at is not None:
                recovered = self._stream.since(name, position, 1) is not None
                met[name] = (at, recovered)
                if recovered:
                    subscriber.missed(name, position)
                    if (topic := self._topics.get(name)) is not None:
                        subscriber.forget_latest(topic)
            if pace.over(SINCE_STEPS + wanted.visits - visits):
                yield

    def unsubscribe(self, recipient: Recipient, patterns: Iterable[str]) -> Work[list[str]]:
        """End subscriptions of a connection, in steps. Returns those that are left."""
        pace = Pace()
        subscriber = recipient.subscriber
        for pattern in dict.fromkeys(patterns):
            if subscriber is None or recipient.subscriber is not subscriber:
                return []
            topics = self._topics.drop(subscriber, pattern)
            yield from self._part(subscriber, topics)
            if pace.over(1 + len(topics)):
                yield
        return [] if subscriber is None else list(subscriber.patterns)

    def rescoped(self, recipient: Recipient) -> Work[None]:
        """End the subscriptions that a connection's new credential does not allow, in steps.

        A subscription that is being made meanwhile heeds the new credential itself.
        """
        pace = Pace()
        subscriber = recipient.subscriber
        for pattern in () if subscriber is None else list(subscriber.patterns):
            if subscriber is None or recipient.subscriber is not subscriber:
                return
            topics: list[Topic] = []
            if not recipient.principal.allows(f"subscribe:{pattern}"):
                topics = self._topics.drop(subscriber, pattern)
                yield from self._part(subscriber, topics)
            if pace.over(1 + len(topics)):
                yield

    def _part(self, subscriber: Subscriber, topics: Sequence[Topic]) -> Work[None]:
        """Part a subscriber from topics that a pattern of its met, in steps."""
        for begin in range(0, len(topics), PARTED):
            if begin:
                yield
            self._topics.part(subscriber, topics[begin : begin + PARTED])

    def rescopes_at_once(self, recipient: Recipient) -> bool:
        """Return whether to look at all subscriptions of a connection again is little work."""
        subscriber = recipient.subscriber
        return subscriber is None or self.is_small(list(subscriber.patterns))

    def lost(self, recipient: Recipient) -> Work[None]:
        """End all subscriptions of a connection, because its link is lost, in steps. May be called twice.

        What comes meanwhile is kept back, and dropped in the end. The connection may subscribe anew at once.
        """
        subscriber = recipient.subscriber
        if subscriber is None:
            return
        subscriber.hold()
        self._delivery.detach(recipient, subscriber)
        while self._topics.leave_some(subscriber, PARTED):
            yield
        self._delivery.lost(subscriber)


def full() -> Refusal:
    """Return the refusal of a message on a topic that has not begun, and has no room."""
    detail = "as many topics as events.max_topics"
    return not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_FULL_MS)


def _check(subscriber: Subscriber, patterns: Sequence[str]) -> None:
    """Raise Refusal if these are too many, or name a topic of the gateway's own that does not exist."""
    if len(subscriber.patterns.keys() | set(patterns)) > MAX_SUBSCRIPTIONS:
        raise not_run(errors.OVERLOADED, f"{MAX_SUBSCRIPTIONS} subscriptions of one connection")
    for pattern in patterns:
        if pattern.startswith(OWN) and is_dotted_name(pattern) and pattern not in OWN_TOPICS:
            raise Refusal(errors.NOT_FOUND, f"no topic {pattern!r}; there are {', '.join(OWN_TOPICS)}")
