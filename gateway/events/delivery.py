"""Delivers messages to the subscribers in this process: straight to their transports, or through their outboxes.

A message is one frame, made once, whatever the number of subscribers. No subscriber is waited for: if it does not read,
its outbox cuts it (`websocket.outbox`), or it gets the latest message alone if the topic is conflated. If the frame has
to wait for nothing at any subscriber, it is written straight to their transports and counted later, because merely
looking at each of a thousand connections costs a tenth of the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster.stream import Position
from gateway.errors import Disconnect
from gateway.events.topics import Topic, Topics
from gateway.websocket import frames
from gateway.websocket.frames import NOTHING_WRITTEN, Written

AT_ONCE: Final = 1000
"""The most subscribers to whose transports one message is written in one go. Of more, each has its turn in the cork."""

SENT_AT_ONCE: Final = 500
"""The most messages of those kept back that one subscriber is sent in one go, and as many of those that it missed."""


class Recipient(Protocol):
    """A connection that events are sent to. Its subscriptions live as long as the link on which they were made."""

    principal: Principal
    subscriber: Subscriber | None
    """Its subscriber; None before its first subscription, and after its end."""

    @property
    def is_open(self) -> bool:
        """Whether it is open, and has not begun to end."""

    @property
    def stalled(self) -> bool:
        """Whether its peer does not read at the moment."""

    @property
    def max_held_bytes(self) -> int:
        """The most bytes of frames that may be held back for it."""

    @property
    def send_frame(self) -> Callable[[bytes], None]:
        """Sends one frame through the outbox. The same frame can go to many connections."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past the outbox. Only for a connection that is open, not stalled, and has nothing corked."""

    def count(self, messages: int, octets: int) -> None:
        """Count what was written past the outbox, once the subscriber is gone."""

    def end(self, end: Disconnect) -> None:
        """End the connection, for this reason."""


class Cork(Protocol):
    """What all outboxes share (`websocket.outbox.Cork`)."""

    def make_way(self) -> bool:
        """Write what is corked. Returns whether one frame may now be written past the outboxes."""


class Subscriber:
    """What one connection is subscribed to, and what it must not get yet.

    It is in the set ``aside`` while what is sent to it has to wait. Its ``topics`` have what `Topic.written` was when
    it joined each of them.
    """

    __slots__ = (
        "_aside",
        "_held",
        "_held_bytes",
        "_held_of",
        "_holds",
        "_latest",
        "_missed",
        "_parted",
        "_recipient",
        "overlaps",
        "patterns",
        "topics",
    )

    def __init__(self, recipient: Recipient, aside: set[Subscriber]) -> None:
        self._recipient = recipient
        self._aside = aside
        self._holds = 0
        self._held_bytes = 0
        self._missed: deque[bytes] = deque()
        self._held: deque[tuple[Topic, bytes]] = deque()
        self._held_of: dict[Topic, int] = {}
        self._latest: dict[Topic, bytes] = {}
        self._parted = NOTHING_WRITTEN
        self.patterns: dict[str, None] = {}
        self.overlaps: dict[Topic, int] = {}
        self.topics: dict[Topic, Written] = {}

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes a message's frame past the outbox. Only for a subscriber that is not aside."""
        return self._recipient.write

    @property
    def past(self) -> Written:
        """What was written to it past its outbox."""
        messages, octets = self._parted
        for topic, before in self.topics.items():
            written = topic.written
            if written is not before:
                messages += written.messages - before.messages
                octets += written.octets - before.octets
        return Written(messages, octets)

    def parted(self, topic: Topic) -> None:
        """Drop this topic: `Topics` has found that no pattern meets it any more."""
        self.forgotten(topic)
        self._latest.pop(topic, None)

    def forgotten(self, topic: Topic) -> None:
        """Drop this topic, because it makes room for another one. What is kept as its latest message is still sent."""
        before, written = self.topics.pop(topic), topic.written
        if written is not before:
            messages, octets = self._parted
            self._parted = Written(
                messages + written.messages - before.messages, octets + written.octets - before.octets
            )

    def deliver(self, topic: Topic, frame: bytes) -> None:
        """Send a message's frame, or keep it back. Ends the connection if more is kept back than may be."""
        waits = self._holds or self._missed or self._held
        if not waits and not topic.conflated:
            self._recipient.send_frame(frame)
        elif waits:
            self._held.append((topic, frame))
            self._held_of[topic] = self._held_of.get(topic, 0) + 1
            self._held_bytes += len(frame)
            if self._held_bytes > self._recipient.max_held_bytes:
                self._recipient.end(errors.SLOW_CONSUMER)
        elif self._recipient.stalled:
            self._latest.pop(topic, None)
            self._latest[topic] = frame
        else:
            self._recipient.send_frame(frame)

    def hold(self) -> None:
        """Keep back what comes until `release`, because the reply to the subscription goes first.

        May be called again before `release`, which is then due once for each.
        """
        self._holds += 1
        self.review()

    def missed(self, messages: Iterable[bytes]) -> None:
        """Have these messages, as JSON text, sent before all that is kept back. Only between `hold` and `release`."""
        self._missed.extend(map(frames.text_frame, messages))

    @property
    def holds(self) -> bool:
        """Whether any message is kept back."""
        return bool(self._held_of)

    def before_held(self, topic: Topic, now: Position) -> Position:
        """Return the position of the last message that is not kept back, given the topic's position now."""
        held = self._held_of.get(topic)
        return Position(now.epoch, now.offset - held) if held else now

    def release(self) -> bool:
        """End one `hold`, and begin to send what was kept back. Returns whether `send_held` is to be called."""
        self._holds -= 1
        return self.send_held()

    def send_held(self) -> bool:
        """Send some of what was kept back, unless another reply still has to go first.

        Returns whether it is to be called again, in the next event-loop iteration.
        """
        if self._recipient.subscriber is not self:
            return False
        if not self._holds:
            missed, held = self._missed, self._held
            for _ in range(min(len(missed), SENT_AT_ONCE)):
                self._recipient.send_frame(missed.popleft())
            for _ in range(0 if missed else min(len(held), SENT_AT_ONCE)):
                topic, frame = held.popleft()
                self._held_bytes -= len(frame)
                self._held_of[topic] -= 1
                self._recipient.send_frame(frame)
            if not held:
                self._held_of.clear()
        self.review()
        return not self._holds and bool(self._missed or self._held)

    def review(self) -> None:
        """Step aside if what is sent has to wait now, otherwise step back in line. May be called at any time."""
        if self._recipient.subscriber is not self:
            return  # a reply may end its hold after the connection is lost, and nothing would take it out again
        waits = self._holds or self._missed or self._held
        if waits or self._recipient.stalled or not self._recipient.is_open:
            self._aside.add(self)
        else:
            self._aside.discard(self)

    def forget_latest(self, topic: Topic) -> None:
        """Drop what is kept as the latest message of a conflated topic, because all that was missed follows."""
        self._latest.pop(topic, None)

    def drained(self) -> None:
        """Send the latest messages of conflated topics, because the peer reads again."""
        while self._latest and not self._recipient.stalled:
            topic = next(iter(self._latest))
            self._recipient.send_frame(self._latest.pop(topic))
        self.review()


class Delivery:
    """Hands messages to the subscribers in this process. ``delivered`` counts each message once for each subscriber."""

    def __init__(self, topics: Topics, cork: Cork) -> None:
        self._topics = topics
        self._cork = cork
        self._aside: set[Subscriber] = set()
        self.delivered = 0

    def deliver(self, name: str, message: bytes) -> None:
        """Deliver a message of a topic, as JSON text. Never blocks. Does nothing if the topic has no subscriber."""
        topic = self._topics.get(name)
        if topic is None or not topic.subscribers:
            return
        subscribers = topic.subscribers
        self.delivered += len(subscribers)
        frame = frames.text_frame(message)
        # The cork comes first: what it writes may show that a subscriber's transport takes no more.
        if len(subscribers) <= AT_ONCE and self._cork.make_way() and subscribers.keys().isdisjoint(self._aside):
            before = topic.written
            topic.written = Written(before.messages + 1, before.octets + len(frame))
            for write in subscribers.values():
                write(frame)
        else:
            for subscriber in subscribers:
                subscriber.deliver(topic, frame)

    def subscriber(self, recipient: Recipient) -> Subscriber:
        """Return the subscriber of a connection, a new one if it has none yet."""
        if recipient.subscriber is None:
            recipient.subscriber = Subscriber(recipient, self._aside)
        return recipient.subscriber

    def lost(self, recipient: Recipient) -> None:
        """End all subscriptions of a connection, because it is over. May be called twice."""
        subscriber = recipient.subscriber
        if subscriber is None:
            return
        self._topics.leave(subscriber)
        self._aside.discard(subscriber)
        recipient.subscriber = None
        recipient.count(*subscriber.past)
