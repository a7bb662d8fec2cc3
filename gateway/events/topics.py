"""Topics: their names and patterns, and their subscribers. Pure.

A topic knows its subscribers, including those that have subscribed by a pattern, so publishing looks at no pattern. A
subscriber knows how many of its patterns meet each of its topics, so ending a subscription looks at no other pattern.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, Protocol

from gateway.cluster.stream import Position
from gateway.events.index import Names, Patterns, is_wild
from gateway.limits import Largest
from gateway.names import OWN, matches
from gateway.websocket.frames import NOTHING_WRITTEN, Written


def meets(pattern: str, topic: str) -> bool:
    """Return whether a subscription to ``pattern`` includes ``topic``.

    A pattern includes topics of the gateway's own only if it begins as they do.
    """
    return pattern.startswith(OWN) == topic.startswith(OWN) and matches(pattern, topic)


class Holder:
    """A principal, as the one whose messages some topics began with. ``count`` is how many of them there are."""

    __slots__ = ("count", "idle", "level", "met", "owner")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.count = 0
        self.level = -1
        self.idle: OrderedDict[Topic, None] = OrderedDict()
        """The topics without a subscriber. The first one makes room first; publishing to one moves it to the end."""
        self.met: OrderedDict[Topic, None] = OrderedDict()
        """The topics whose subscribers have all come by patterns, in the same order. They go if none is idle."""


class Topic:
    """One topic, which counts for its ``holder``.

    ``subscribers`` has for each subscriber what writes a frame straight to its transport. If it is ``conflated``, a
    subscriber that does not read gets the latest message alone.
    """

    __slots__ = ("conflated", "holder", "name", "subscribers", "written")

    def __init__(self, name: str, holder: Holder, conflated: bool) -> None:
        self.name = name
        self.holder = holder
        self.conflated = conflated
        self.subscribers: dict[Follower, Callable[[bytes], None]] = {}
        self.written = NOTHING_WRITTEN
        """What was written past the outboxes since the topic began, each time to all subscribers of that moment."""


class Follower(Protocol):
    """A subscriber, as far as the topics know it (`delivery.Subscriber`).

    ``patterns`` are the names and patterns that it is subscribed to. ``topics`` are the topics that they meet now, each
    with what `Topic.written` was when the subscriber joined. ``overlaps`` says how many meet a topic beside the
    first one, if there are any. `Topics` adds to these three, and takes from the first and the last.
    """

    patterns: dict[str, None]
    overlaps: dict[Topic, int]
    topics: dict[Topic, Written]

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one message's frame straight to the transport."""

    def deliver(self, topic: Topic, before: Position, frame: bytes) -> None:
        """Send one message's frame, or note that it is to be sent: it comes after the position ``before``."""

    def parted(self, topic: Topic) -> None:
        """Drop a topic, because none of its patterns meets it any more."""

    def forgotten(self, topic: Topic) -> None:
        """Drop a topic, because that has to make room."""


Followers = dict[Follower, Callable[[bytes], None]]
"""Subscribers, each with what writes a frame straight to its transport."""


class FullError(Exception):
    """There are as many topics as there may be, and none that may make room.

    Each has a subscriber by its name, or its principal has no more topics than the one that wants another.
    """


class Topics:
    """All topics. ``forgotten`` is called with the name of each that has to make room.

    It is also called with the name of a topic that has not begun, when its last subscriber by name has gone.

    There are ``max_topics`` at most, and the gateway's own beside them. If there are as many, the principal that has
    most of them gives up the one that was published to longest ago. So no principal takes the topics of others, unless
    it has fewer. ``conflate`` are the names and patterns of topics that are conflated.
    """

    def __init__(self, forgotten: Callable[[str], None], *, max_topics: int, conflate: Sequence[str] = ()) -> None:
        self._forgotten = forgotten
        self._max_topics = max_topics
        self._conflate = tuple(conflate)
        self._topics: dict[str, Topic] = {}
        self.get: Final[Callable[[str], Topic | None]] = self._topics.get
        """Returns a topic, or None if there is none of this name."""
        self._own = 0
        self._gateway = Holder("")
        """The holder of the gateway's own topics, which do not count."""
        self._holders: dict[str, Holder] = {}
        self._largest: Largest[Holder] = Largest(max_topics)
        """The holders that have a topic which may make room, by all the topics that they have."""
        self._named: dict[str, Followers] = {}
        """The subscribers by name, whether or not the topic has begun."""
        self.names = Names[Topic]()
        self.patterns = Patterns[Followers]()
        self._wild: dict[str, Followers] = {}

    def __len__(self) -> int:
        return len(self._topics)

    def open(self, name: str, owner: str = "") -> Topic:
        """Return a topic, which begins if there is none of this name. If there is no room, another one is forgotten.

        A topic that begins counts for the principal ``owner``. Raises FullError if no topic may make room.
        """
        topic = self._topics.get(name)
        return self._begin(name, owner) if topic is None else topic

    def touch(self, name: str, owner: str = "") -> None:
        """Open a topic because ``owner`` publishes a message on it, and make it its holder's last to be forgotten.

        Raises FullError.
        """
        topic = self._topics.get(name)
        if topic is None:
            self._begin(name, owner)
        elif topic in (holder := topic.holder).met:
            holder.met.move_to_end(topic)
        elif topic in holder.idle:
            holder.idle.move_to_end(topic)

    def arrive(self, name: str, owner: str = "") -> None:
        """Do the same for a message that another gateway has taken, which cannot be refused any more.

        If no topic may make room by right, any principal's topic makes room that has no subscriber by name. If there is
        none, there are more topics than there may be: those, and one, that subscribers have named.
        """
        if name not in self._topics:
            self._begin(name, owner, arrives=True)
        else:
            self.touch(name)

    def _begin(self, name: str, owner: str, *, arrives: bool = False) -> Topic:
        if name.startswith(OWN):
            holder = self._gateway
            self._own += 1
        else:
            holder = self._holders.get(owner) or Holder(owner)
            if len(self._topics) - self._own >= self._max_topics:
                self._make_room(holder, arrives)
            self._holders[owner] = holder
            holder.count += 1
        topic = self._topics[name] = Topic(name, holder, any(meets(p, name) for p in self._conflate))
        self.names[name] = topic
        met = self.patterns.met_by(name)
        if name in self._named:
            met.append(self._named[name])
        self._join(topic, met)
        self._file(topic)
        return topic

    def _join(self, topic: Topic, met: Iterable[Followers]) -> None:
        """Let those join a topic that begins whose names and patterns it meets. There may be very many of them."""
        subscribers = topic.subscribers
        for followers in met:
            for follower, write in followers.items():
                if follower not in subscribers:
                    subscribers[follower] = write
                    follower.topics[topic] = NOTHING_WRITTEN
                else:
                    overlaps = follower.overlaps
                    overlaps[topic] = overlaps.get(topic, 0) + 1

    def _make_room(self, wants: Holder, arrives: bool) -> None:
        """Forget a topic of the holder that has the most, or of the one that wants room if that has as many."""
        largest = giver = self._largest.holder()
        if giver is not None and giver.count <= wants.count:
            giver = wants if wants.idle or wants.met else None
        if giver is None and not arrives:
            raise FullError
        giver = giver or largest
        if giver is not None:
            self._forget(next(iter(giver.idle or giver.met)))

    def _forget(self, topic: Topic) -> None:
        holder = topic.holder
        holder.idle.pop(topic, None)
        holder.met.pop(topic, None)
        holder.count -= 1
        self._rank(holder)
        if not holder.count:
            del self._holders[holder.owner]
        del self._topics[topic.name]
        del self.names[topic.name]
        for follower in topic.subscribers:
            if follower.overlaps:
                follower.overlaps.pop(topic, None)
            follower.forgotten(topic)
        topic.subscribers.clear()
        self._forgotten(topic.name)

    def _rank(self, holder: Holder) -> None:
        if holder.idle or holder.met:
            self._largest.place(holder, holder.count)
        else:
            self._largest.remove(holder)

    def _file(self, topic: Topic) -> None:
        """Put a topic where it belongs among those that may make room, if it may."""
        name, holder = topic.name, topic.holder
        if not topic.subscribers:
            holder.met.pop(topic, None)
            kept = holder.idle
        else:
            holder.idle.pop(topic, None)
            kept = holder.met
        if name in self._named or name.startswith(OWN):
            kept.pop(topic, None)
        else:
            kept.setdefault(topic)
        self._rank(holder)

    # Subscriptions

    def subscribe(self, follower: Follower, pattern: str) -> list[Topic]:
        """Add a subscription; the pattern `index.fits`. Returns the topics that it meets now. May be called again."""
        topics = self.met_by(pattern)
        if pattern in follower.patterns:
            return topics
        follower.patterns[pattern] = None
        self._enter(follower, pattern)
        # There may be ten thousand of them, in one go: so that the subscriber joins all at one moment.
        joined, overlaps, write = follower.topics, follower.overlaps, follower.write
        for topic in topics:
            if topic in joined:
                overlaps[topic] = overlaps.get(topic, 0) + 1
                continue
            joined[topic] = topic.written
            subscribers = topic.subscribers
            if not subscribers and topic in topic.holder.idle:
                del topic.holder.idle[topic]
                topic.holder.met[topic] = None
            subscribers[follower] = write
        return topics

    def met_by(self, pattern: str) -> list[Topic]:
        """Return the topics that a name or a pattern meets now."""
        if is_wild(pattern):
            return self.names.met_by(pattern)
        topic = self._topics.get(pattern)
        return [] if topic is None else [topic]

    def unsubscribe(self, follower: Follower, pattern: str) -> int:
        """End a subscription. Harmless if there is none. Returns how many topics it met.

        Topics that another pattern of the subscriber meets stay.
        """
        topics = self.drop(follower, pattern)
        self.part(follower, topics)
        return len(topics)

    def drop(self, follower: Follower, pattern: str) -> list[Topic]:
        """Begin to end a subscription. Harmless if there is none. Returns the topics that are to be given to `part`."""
        if pattern not in follower.patterns:
            return []
        del follower.patterns[pattern]
        self._drop(follower, pattern)
        return self.met_by(pattern)

    def part(self, follower: Follower, topics: Iterable[Topic]) -> None:
        """Take one subscription to each of these topics from a subscriber. Those that were forgotten do no harm."""
        overlaps, joined = follower.overlaps, follower.topics
        for topic in topics:
            if topic not in joined:
                continue
            others = overlaps.get(topic, 0)
            if not others:
                self._part(follower, topic)
            elif others == 1:
                del overlaps[topic]
            else:
                overlaps[topic] = others - 1

    def leave(self, follower: Follower) -> None:
        """End all subscriptions of a subscriber. May be called twice."""
        while self.leave_some(follower, len(follower.patterns) + len(follower.topics)):
            pass

    def leave_some(self, follower: Follower, most: int) -> bool:
        """End so many subscriptions of a subscriber, or leave so many topics. Returns whether any are left.

        Messages may come to it until none are left.
        """
        patterns = list(islice(follower.patterns, most))
        for pattern in patterns:
            del follower.patterns[pattern]
            self._drop(follower, pattern)
        if follower.patterns:
            return True
        for topic in list(islice(follower.topics, most - len(patterns))):
            self._part(follower, topic)
        if follower.topics:
            return True
        follower.overlaps.clear()
        return False

    def _enter(self, follower: Follower, pattern: str) -> None:
        wild = is_wild(pattern)
        table = self._wild if wild else self._named
        followers = table.get(pattern)
        if followers is None:
            followers = table[pattern] = {}
            if wild:
                self.patterns[pattern] = followers
            elif (topic := self._topics.get(pattern)) is not None:
                self._file(topic)
        followers[follower] = follower.write

    def _drop(self, follower: Follower, pattern: str) -> None:
        wild = is_wild(pattern)
        table = self._wild if wild else self._named
        followers = table[pattern]
        del followers[follower]
        if not followers:
            del table[pattern]
            if wild:
                del self.patterns[pattern]
            elif (topic := self._topics.get(pattern)) is not None:
                self._file(topic)
            else:
                self._forgotten(pattern)

    def _part(self, follower: Follower, topic: Topic) -> None:
        topic.subscribers.pop(follower, None)
        follower.parted(topic)
        if not topic.subscribers:
            self._file(topic)
