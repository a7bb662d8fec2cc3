"""Delivers messages to the subscribers in this process: straight to their transports, or through their outboxes.

A message is one frame, made once, whatever the number of subscribers. No subscriber is waited for. If it does not
read fast enough, messages go into its outbox, up to the high mark. Beyond that only its positions are kept,
and as it reads it is fed from the stream's history. Of a conflated topic it gets the latest message alone. If the frame
has to wait for nothing at any subscriber, it is written straight to their transports and counted later, because merely
looking at each of a thousand connections costs a tenth of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Final, NamedTuple, Protocol

from gateway.auth.scopes import Principal
from gateway.cluster.stream import Lapse, Position, Stream, gap
from gateway.events.index import is_wild
from gateway.events.pauses import Pauses
from gateway.events.topics import Follower, Topic, Topics, meets
from gateway.websocket import frames
from gateway.websocket.frames import NOTHING_WRITTEN, Written

AT_ONCE: Final = 1000
"""The most subscribers to whose transports one message is written in one go. Of more, each has its turn in the cork."""

BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""The most bytes that one message writes in one go, to all its subscribers. Of more, each has its turn in the cork."""

CROWD: Final = 2000
"""How many subscribers one message is sent to by their outboxes in one event-loop iteration."""

SENT_AT_ONCE: Final = 500
"""The most messages that one subscriber which is behind is sent in one go."""

OF_ONE_TOPIC: Final = 100
"""The most messages of one topic that a subscriber is sent before it is another topic's turn."""

PATTERNS: Final = 20
"""How many patterns are looked at in the time in which one message is sent."""


class Recipient(Protocol):
    """A connection that events are sent to. Its subscriptions live as long as the link on which they were made."""

    principal: Principal
    subscriber: Subscriber | None
    """Its subscriber; None before its first subscription, and after its end."""

    @property
    def is_linked(self) -> bool:
        """Whether it is open, and has a link by which messages leave."""

    @property
    def stalled(self) -> bool:
        """Whether its peer does not read at the moment."""

    @property
    def pressed(self) -> bool:
        """Whether so much waits for its peer that nothing more may be sent to it now."""

    @property
    def send_frame(self) -> Callable[[bytes], None]:
        """Sends one frame through the outbox. The same frame can go to many connections."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past the outbox. Only for a connection that is open, not stalled, and has nothing corked."""

    def count(self, messages: int, octets: int) -> None:
        """Count what was written past the outbox, once the subscriber is gone."""

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for it until `let_go`. Returns False if there is no room for them."""

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""

    def feed(self) -> None:
        """Have its subscriber sent what it is behind with: some now, the rest in later event-loop iterations."""


class Cork(Protocol):
    """What all outboxes share (`websocket.cork.Cork`)."""

    def make_way(self) -> bool:
        """Write what is corked. Returns whether one frame may now be written past the outboxes."""

    def later(self, act: Callable[[], None]) -> None:
        """Do something in the next event-loop iteration."""


class Subscriber:
    """What one connection is subscribed to, and what it must not get yet.

    It is in the set `Delivery.aside` while what is sent to it has to wait. Its ``topics`` have what `Topic.written` was
    when it joined each of them. ``behind`` has, by name, the topics of which it has yet to get messages, each with the
    position of the last one that it got. ``feeding`` belongs to whoever calls `feed`.
    """

    __slots__ = (
        "_asked",
        "_delivery",
        "_holds",
        "_latest",
        "_parted",
        "_recipient",
        "behind",
        "feeding",
        "overlaps",
        "patterns",
        "topics",
    )

    def __init__(self, recipient: Recipient, delivery: Delivery) -> None:
        self._recipient = recipient
        self._delivery = delivery
        self._holds = 0
        self._asked: set[str] = set()
        self._latest: dict[Topic, bytes] = {}
        self._parted = NOTHING_WRITTEN
        self.behind: dict[str, Position] = {}
        self.feeding = False
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
        self.forget_latest(topic)
        self.behind.pop(topic.name, None)
        self._asked.discard(topic.name)

    def forgotten(self, topic: Topic) -> None:
        """Drop this topic, because it makes room for another one.

        What is kept as its latest message is still sent. If messages of it were still to come, a gap is told.
        """
        self._delivery.owed(topic, self)
        before, written = self.topics.pop(topic), topic.written
        if written is not before:
            messages, octets = self._parted
            self._parted = Written(
                messages + written.messages - before.messages, octets + written.octets - before.octets
            )

    def deliver(self, topic: Topic, before: Position, frame: bytes) -> None:
        """Send a message's frame, or note that the subscriber is behind since the position ``before`` it."""
        recipient = self._recipient
        if self._holds or self.behind or recipient.pressed:
            self.behind.setdefault(topic.name, before)
        elif not topic.conflated or not recipient.stalled:
            recipient.send_frame(frame)
            self._delivery.delivered += 1
        else:
            self.forget_latest(topic)
            if recipient.hold(len(frame)):
                self._latest[topic] = frame
            else:
                self.behind[topic.name] = before

    def hold(self) -> None:
        """Send nothing until `release`, because the reply to the subscription goes first.

        May be called again before `release`, which is then due once for each.
        """
        self._holds += 1
        self.review()

    def release(self) -> None:
        """End one `hold`. After the last one `feed` is to be called. Raises RuntimeError if there is none to end."""
        if not self._holds:
            raise RuntimeError("a subscriber is released that is not held")
        self._holds -= 1
        self.review()

    def go_on(self) -> None:
        """End one `hold`, and send what has waited for that: some of it now, the rest in later iterations."""
        self.release()
        self._recipient.feed()

    def lapsed(self, lapse: Lapse) -> int:
        """Be behind on all that a lapse says may be lost: on topics, and on patterns that met no topic known by then.

        Only between `hold` and `release`. Returns how many topics and patterns were looked at.
        """
        for name in chain([topic.name for topic in self.topics], self.patterns):
            since = lapse.rest if is_wild(name) else lapse.topics.get(name)
            if since is not None:
                at = self.behind.get(name)
                if at is None or at.epoch != since.epoch or since.offset < at.offset:
                    self.behind[name] = since
        return len(self.topics) + len(self.patterns)

    def missed(self, name: str, position: Position) -> None:
        """Have all messages of a topic sent that come after a position. Only between `hold` and `release`."""
        self.behind[name] = position
        self._asked.add(name)

    def feed(self) -> bool:
        """Send some of the messages that the subscriber is behind with, as long as its peer reads.

        Returns whether it is to be called again, in a later event-loop iteration.
        """
        recipient = self._recipient
        if self._holds or recipient.subscriber is not self:
            return False
        left = SENT_AT_ONCE
        while self.behind and left > 0 and recipient.is_linked and not recipient.stalled:
            left -= self._feed_topic(*next(iter(self.behind.items())), min(left, OF_ONE_TOPIC))
        self._delivery.fed += SENT_AT_ONCE - left
        self.review()
        return bool(self.behind) and recipient.is_linked and not recipient.stalled

    def _feed_topic(self, name: str, position: Position, most: int) -> int:
        """Send some messages of a topic, or tell the gap. Returns how much work that was, in messages."""
        del self.behind[name]
        topic = self._delivery.topics.get(name)
        if topic not in self.topics and not any(meets(pattern, name) for pattern in self.patterns):
            self._asked.discard(name)
            return 1 + len(self.patterns) // PATTERNS
        stream, recipient = self._delivery.stream, self._recipient
        now = stream.position(name)
        conflated = topic is not None and topic.conflated and name not in self._asked
        found = stream.since(name, position, most)
        if found is None:
            found, position = (), stream.oldest(name)
            if not conflated or position.offset >= now.offset:
                recipient.send_frame(frames.text_frame(gap(name, position)))
                self._delivery.gaps += 1
        elif not found:
            position = now  # which may be further: a topic without messages is where the stream is
        elif conflated:
            position = Position(now.epoch, found[-1][0])
            found = found[-1:] if position.offset >= now.offset else ()
        for offset, message in found:
            recipient.send_frame(frames.text_frame(message))
            self._delivery.delivered += 1
            position = Position(position.epoch, offset)
            if recipient.stalled:
                break
        if position.offset >= now.offset:
            self._asked.discard(name)
        else:
            self.behind[name] = position
        return 1 + len(found)

    def review(self) -> None:
        """Step aside if what is sent has to wait now, otherwise step back in line. May be called at any time."""
        if self._recipient.subscriber is not self:
            return  # a reply may end its hold after the connection is lost, and nothing would take it out again
        recipient = self._recipient
        if self._holds or self.behind or recipient.stalled or recipient.pressed or not recipient.is_linked:
            self._delivery.aside.add(self)
        else:
            self._delivery.aside.discard(self)

    def forget_latest(self, topic: Topic) -> None:
        """Drop what is kept as the latest message of a conflated topic, if there is any."""
        frame = self._latest.pop(topic, None)
        if frame is not None:
            self._recipient.let_go(len(frame))

    def drained(self) -> None:
        """Send the latest messages of conflated topics, because the peer reads again. Then `feed` is to be called."""
        while self._latest and not self._recipient.stalled:
            topic, frame = next(iter(self._latest.items()))
            self.forget_latest(topic)
            self._recipient.send_frame(frame)
            self._delivery.delivered += 1
        self.review()

    def lost(self) -> None:
        """Drop all that is kept for it, because the connection is over. May be called twice."""
        for topic in list(self._latest):
            self.forget_latest(topic)
        self.behind.clear()


class _Rest(NamedTuple):
    """A message of a topic, its position ``before`` it, and the subscribers that are still to get it."""

    before: Position
    frame: bytes
    left: dict[Follower, None]


class Delivery:
    """Hands messages to the subscribers in this process. ``stream`` is where those are fed from that are behind.

    ``delivered`` counts each message once for each subscriber, ``gaps`` each time that a subscriber was told of one.
    ``fed`` counts what feeding those that were behind has taken, in messages.
    """

    def __init__(self, topics: Topics, stream: Stream[Any], cork: Cork) -> None:
        self.topics: Final = topics
        self.stream: Final = stream
        self.begin: Final = topics.arrive
        """Has a topic, because a message of it comes next."""
        self._cork = cork
        self.aside: Final[set[Subscriber]] = set()
        self._pauses = Pauses(cork.later, lambda: self.fed)
        self._rests: dict[Topic, _Rest] = {}
        self._goes_on = False
        self.delivered = 0
        self.gaps = 0
        self.fed = 0

    def deliver(self, name: str, before: Position, message: bytes) -> None:
        """Deliver a message of a topic, as JSON text. Never blocks. Does nothing if the topic has no subscriber.

        ``before`` is the position of the topic before it.
        """
        topic = self.topics.get(name)
        if topic is None or not topic.subscribers:
            return
        subscribers = topic.subscribers
        frame = frames.text_frame(message)
        if topic in self._rests:  # in their order
            rest = self._rests.pop(topic)
            _hand_out(topic, rest, len(rest.left))
        # The cork comes first: what it writes may show that a subscriber's transport takes no more.
        few = len(subscribers) <= AT_ONCE and len(subscribers) * len(frame) <= BYTES_AT_ONCE
        if few and self._cork.make_way() and subscribers.keys().isdisjoint(self.aside):
            self.delivered += len(subscribers)
            written = topic.written
            topic.written = Written(written.messages + 1, written.octets + len(frame))
            for write in subscribers.values():
                write(frame)
        elif len(subscribers) <= CROWD:
            for subscriber in subscribers:
                subscriber.deliver(topic, before, frame)
        else:
            self._begin(topic, _Rest(before, frame, dict.fromkeys(subscribers)))

    @property
    def busy(self) -> bool:
        """Whether a message is still to be handed to some of very many subscribers."""
        return bool(self._rests)

    def _begin(self, topic: Topic, rest: _Rest) -> None:
        """Hand a message out to some of very many subscribers, and to the others in later event-loop iterations."""
        _hand_out(topic, rest, CROWD)
        self._rests[topic] = rest
        self._go_on_later()

    def _go_on_later(self) -> None:
        if self._rests and not self._goes_on:
            self._goes_on = True
            self._cork.later(self._go_on)

    def _go_on(self) -> None:
        """Hand out some more of the message that has waited longest: one slice in an iteration, whatever waits."""
        self._goes_on = False
        for topic, rest in list(islice(self._rests.items(), 1)):
            _hand_out(topic, rest, CROWD)
            if not rest.left:
                del self._rests[topic]
        self._go_on_later()

    def owed(self, topic: Topic, subscriber: Subscriber) -> None:
        """Send a subscriber that leaves a topic what it is still to get of it."""
        rest = self._rests.get(topic)
        if rest is not None and subscriber in rest.left:
            del rest.left[subscriber]
            subscriber.deliver(topic, rest.before, rest.frame)

    def subscriber(self, recipient: Recipient) -> Subscriber:
        """Return the subscriber of a connection, a new one if it has none yet."""
        if recipient.subscriber is None:
            recipient.subscriber = Subscriber(recipient, self)
            self._pauses.enter(recipient.subscriber)
        return recipient.subscriber

    def detach(self, recipient: Recipient, subscriber: Subscriber) -> None:
        """Take a subscriber that is aside from its connection, whose link is lost. `lost` is to follow."""
        recipient.subscriber = None
        recipient.count(*subscriber.past)
        self._pauses.leave(subscriber)

    def lost(self, subscriber: Subscriber) -> None:
        """End all subscriptions of a subscriber that was detached."""
        self.topics.leave(subscriber)
        subscriber.lost()
        self.aside.discard(subscriber)

    # For a stream that was out of reach

    def pause(self) -> None:
        """Send nothing to subscribers until `resume`, but note where each of them is. May be called again before it."""
        self._pauses.pause()

    def resume(self, lapse: Lapse | None) -> None:
        """Feed all subscribers from where they were, and from the positions of a ``lapse``."""
        self._pauses.resume(lapse)


def _hand_out(topic: Topic, rest: _Rest, most: int) -> None:
    for subscriber in list(islice(rest.left, most)):
        del rest.left[subscriber]
        subscriber.deliver(topic, rest.before, rest.frame)
