"""How a message reaches those who are subscribed to its topic here: straight to their transports, or by their outboxes.

A message is one frame, made once, whatever the number of subscribers. Nobody is waited for: a subscriber that does not
read is cut by its outbox (`websocket.outbox`), or gets the latest message alone if the topic is conflated. If no
subscriber has anything to wait for, the frame is written straight to their transports, and counted later: only to look
at each of a thousand connections costs a tenth of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.events.topics import Topic, Topics
from gateway.websocket import frames
from gateway.websocket.frames import NOTHING_WRITTEN, Written

AT_ONCE: Final = 1000
"""Subscribers that one message may be written to in one go; of more each has its turn in the cork."""


class Recipient(Protocol):
    """A connection that events are sent to. Its subscriptions live as long as the link that they were made on."""

    principal: Principal
    subscriber: Subscriber | None

    @property
    def is_open(self) -> bool:
        """Whether it is open, and not on its way out."""

    @property
    def stalled(self) -> bool:
        """Whether its peer does not read at the moment."""

    @property
    def max_held_bytes(self) -> int:
        """How much may be held back for it."""

    @property
    def send_frame(self) -> Callable[[bytes], None]:
        """Sends one frame; the same one goes to many."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past all that would have to wait. For a connection that is open, and reads."""

    def count(self, messages: int, octets: int) -> None:
        """Count what was written so, once the subscriber is no more."""

    def end(self, end: Disconnect) -> None:
        """End the connection."""


class Way(Protocol):
    """The way out of all connections (`outbox.Cork`)."""

    def make_way(self) -> bool:
        """Whether one frame may be written past the outboxes now; if so, what was sent before has been written."""


class Subscriber:
    """What one connection is subscribed to, and what it must not have yet.

    It is among ``aside`` while what is sent to it has to wait. With each of its ``topics`` there is what of
    ``Topic.written`` came before it.
    """

    __slots__ = ("_aside", "_held", "_held_bytes", "_holds", "_latest", "_parted", "_recipient", "patterns", "topics")

    def __init__(self, recipient: Recipient, aside: set[Subscriber]) -> None:
        self._recipient = recipient
        self._aside = aside
        self._holds = 0
        self._held_bytes = 0
        self._held: list[bytes] = []
        self._latest: dict[Topic, bytes] = {}
        self._parted = NOTHING_WRITTEN
        self.patterns: dict[str, None] = {}
        self.topics: dict[Topic, Written] = {}

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends a message at once. For one that is not aside."""
        return self._recipient.write

    @property
    def past(self) -> Written:
        """What was written to it at once, and not by its outbox."""
        messages, octets = self._parted
        for topic, before in self.topics.items():
            written = topic.written
            if written is not before:
                messages += written.messages - before.messages
                octets += written.octets - before.octets
        return Written(messages, octets)

    def joined(self, topic: Topic) -> None:
        """From `Topics`: one of its patterns meets this topic. Harmless if another one does already."""
        self.topics.setdefault(topic, topic.written)

    def parted(self, topic: Topic) -> None:
        """From `Topics`: none of its patterns meets this topic any more. Harmless if none did."""
        before = self.topics.pop(topic, None)
        if before is not None:
            messages, octets = self._parted
            written = topic.written
            self._parted = Written(
                messages + written.messages - before.messages, octets + written.octets - before.octets
            )
        self._latest.pop(topic, None)

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """Send a message, or keep it back."""
        if not self._holds and not topic.conflated:
            self._recipient.send_frame(frame)
        elif self._holds:
            self._held.append(frame)
            self._held_bytes += len(frame)
            if self._held_bytes > self._recipient.max_held_bytes:
                self._recipient.end(errors.SLOW_CONSUMER)
        elif self._recipient.stalled:
            self._latest.pop(topic, None)
            self._latest[topic] = frame
        else:
            self._recipient.send_frame(frame)

    def hold(self, missed: Iterable[bytes]) -> None:
        """Keep back what was missed and what comes, until `release`: the reply to the subscription goes first."""
        self._holds += 1
        self._held += map(frames.text_frame, missed)
        self.review()

    def release(self) -> None:
        """Send what was kept back, unless another reply is still to go first."""
        self._holds -= 1
        if self._holds:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        for frame in held:
            self._recipient.send_frame(frame)
        self.review()

    def review(self) -> None:
        """Step aside or back, whichever is right now."""
        if self._holds or self._recipient.stalled or not self._recipient.is_open:
            self._aside.add(self)
        else:
            self._aside.discard(self)

    def forget_latest(self, topic: Topic) -> None:
        """The latest message of a conflated topic is not wanted: all that was missed follows."""
        self._latest.pop(topic, None)

    def drained(self) -> None:
        """Its peer reads again: send the latest messages of conflated topics."""
        while self._latest and not self._recipient.stalled:
            topic = next(iter(self._latest))
            self._recipient.send_frame(self._latest.pop(topic))
        self.review()


class Delivery:
    """Hands messages to the subscribers of this process. ``delivered`` counts them, once for each subscriber."""

    def __init__(self, topics: Topics, way: Way) -> None:
        self._topics = topics
        self._way = way
        self._aside: set[Subscriber] = set()
        self.delivered = 0

    def deliver(self, name: str, message: bytes) -> None:
        """A message of a topic, as JSON text. Never blocks; a topic without subscribers is no error."""
        topic = self._topics.get(name)
        if topic is None or not topic.subscribers:
            return
        subscribers = topic.subscribers
        self.delivered += len(subscribers)
        frame = frames.text_frame(message)
        # In this order, because making way may show that one of them takes no more.
        if len(subscribers) <= AT_ONCE and self._way.make_way() and subscribers.keys().isdisjoint(self._aside):
            before = topic.written
            topic.written = Written(before.messages + 1, before.octets + len(frame))
            for write in subscribers.values():
                write(frame)
        else:
            for subscriber in subscribers:
                subscriber.deliver(topic, frame)

    def subscriber(self, recipient: Recipient) -> Subscriber:
        """The subscriber of a connection, which begins here if it has none."""
        if recipient.subscriber is None:
            recipient.subscriber = Subscriber(recipient, self._aside)
        return recipient.subscriber

    def lost(self, recipient: Recipient) -> None:
        """The connection hears no more. May be called twice."""
        subscriber = recipient.subscriber
        if subscriber is None:
            return
        self._topics.leave(subscriber)
        self._aside.discard(subscriber)
        recipient.subscriber = None
        recipient.count(*subscriber.past)
