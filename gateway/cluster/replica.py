"""The tail of a stream that several gateways share, as one of them keeps it in memory. Pure.

Offsets are the numbers of the shared stream: they grow, but a topic's do not grow by one. So a hole between two
messages of a topic is normal, and proves nothing. What is known of a topic is its *floor*: of the messages after it
none is missing here. Every message that goes raises a floor, and so does every message that may have been missed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Final

from gateway.cluster.history import History, Sequence
from gateway.cluster.stream import MESSAGE, Lapse, Listener, Position, gap_of, position_of
from gateway.names import is_dotted_name
from gateway.rpc import jsonrpc

TIME: Final = 24
"""Characters of the time in `sealed`."""


class StrangeError(Exception):
    """A message of the shared stream is none that a gateway has published."""


class Replica(History):
    """What is known here of the shared stream: of its ``epoch``, up to the message with the number ``head``.

    ``clock``, ``count``, ``age`` and ``octets`` are those of `History`. Messages are handed to ``listener`` as they are
    taken, which is set before the first of them.

    Between `catch_up` and `caught_up` it may miss messages. It notices where, at the end.
    """

    listener: Listener

    def __init__(self, clock: Callable[[], float], *, count: int, age: float, octets: int) -> None:
        super().__init__(clock, count=count, age=age, octets=octets)
        self.epoch = ""
        self.head = 0
        self._floor = 0
        """The floor of all topics that are not known."""
        self._sequences: dict[str, Sequence] = {}
        self._lapsed: dict[str, Position] = {}
        self._rest: Position | None = None
        """What becomes the next lapse, and None as long as there is none."""
        self._behind: int | None = None
        """What the head was at `catch_up`."""
        self._taken: Counter[str] = Counter()
        """How many messages of each topic have been taken since then."""

    # What a stream is asked for

    def position(self, topic: str) -> Position:
        """Return where a topic is now. One that has no messages here is where the stream is."""
        sequence = self._sequences.get(topic)
        return Position(self.epoch, self.head) if sequence is None else sequence.position

    def expect(self, topic: str) -> Position:
        """Return the same, and keep it until the topic begins or is forgotten."""
        return self._sequence(topic, self.head).position

    def since(self, topic: str, position: Position, most: int) -> list[tuple[int, bytes]] | None:
        """Return the first messages after a position; None if any may be gone, or there is no such position."""
        now = self._clock()
        self._expire(now)
        sequence = self._sequences.get(topic)
        floor = self._floor if sequence is None else sequence.floor
        if position.epoch != self.epoch or not floor <= position.offset <= self.head:
            return None
        if sequence is None:
            return []
        first = bisect_right(sequence.kept, position.offset)
        numbers = list(islice(sequence.kept, first, first + most))
        found = [self._kept[number] for number in numbers]
        if found and now - found[0].at >= self._age:
            return None
        return [(number, kept.message) for number, kept in zip(numbers, found, strict=True)]

    def oldest(self, topic: str) -> Position:
        """Return the position right before the oldest message that is kept; where the topic is now if none is."""
        now = self._clock()
        self._expire(now)
        sequence = self._sequences.get(topic)
        young = [] if sequence is None else self._young(sequence, now)
        if sequence is None or not young:
            return self.position(topic)
        older = bisect_right(sequence.kept, young[0]) - 2
        return Position(self.epoch, sequence.kept[older] if older >= 0 else sequence.floor)

    def forget(self, topic: str) -> None:
        """Drop a topic with all that is kept of it. Of what comes before its last message nothing is known then."""
        sequence = self._sequences.pop(topic, None)
        if sequence is not None and sequence.topic:
            self._drop_all(sequence)
            self._floor = max(self._floor, sequence.position.offset)

    # What comes from the shared stream

    def take(self, topic: str, number: int, age: float, sealed: bytes) -> None:
        """Take the next message, which was published ``age`` seconds ago, and hand it over.

        Its ``number`` is greater than the head. Raises StrangeError, and knows that there was a message nonetheless.
        """
        self.head = number
        time, owner, data = opened(sealed)
        sequence = self._sequences.get(topic)
        if sequence is None:
            if not is_dotted_name(topic):
                raise StrangeError(f"no topic has the name {topic[:100]!r}")
            sequence = self._sequence(topic, number - 1 if self._behind is None else self._behind)
        if self._behind is not None:
            self._taken[topic] += 1
        listener = self.listener
        listener.begin(topic, owner)
        epoch, before = self.epoch, sequence.position
        position = sequence.position = position_of((epoch, number))
        encoded = sequence.topic
        if not encoded:
            encoded = sequence.topic = jsonrpc.encode(topic)
        text = MESSAGE % (encoded, number, epoch.encode(), time, data) if data else gap_of(encoded, position)
        if self._count:
            self._keep(sequence, number, text, owner, self._clock() - age)
        else:
            sequence.floor = number
        listener.deliver(topic, before, text)

    def reset(self, epoch: str) -> None:
        """Begin with another stream, of which all is to be caught up with. What was known of the one before is lost."""
        if self._rest is None:
            self._rest = Position(self.epoch, self.head)
        for topic, sequence in self._sequences.items():
            self._lapsed.setdefault(topic, sequence.position)
            self._drop_all(sequence)
            sequence.position, sequence.floor = Position(epoch, 0), 0
        self.epoch, self.head, self._floor = epoch, 0, 0
        self._behind = 0
        self._taken.clear()

    def catch_up(self) -> None:
        """Note that messages after the head may be missed from now on. May be called again before `caught_up`."""
        if self._behind is None:
            self._behind = self.head

    def caught_up(self, first: int, limit: int) -> Lapse | None:
        """Note that all has been taken that could be. Returns what has been missed, if it is not known what that is.

        ``first`` is the number of the first message that the shared stream still has, or will have. It keeps the last
        ``limit`` messages of each topic, or all of them if that is 0.

        A message that this limit has dropped unseen has ``limit`` messages of its topic after it, all of which were
        seen. So if fewer were seen none is missing; otherwise none is missing among the last ``limit`` of them.
        """
        behind, self._behind = self._behind, None
        if behind is not None and first - 1 > behind:
            if self._rest is None:
                self._rest = Position(self.epoch, behind)
            for topic, sequence in self._sequences.items():
                if topic not in self._taken:
                    self._lapsed.setdefault(topic, sequence.position)
                self._raise(sequence, first - 1)
            self._floor = max(self._floor, first - 1)
        for topic, taken in self._taken.items() if limit else ():
            sequence_of = self._sequences.get(topic)
            if sequence_of is not None and taken >= limit and len(sequence_of.kept) >= limit:
                self._raise(sequence_of, sequence_of.kept[-limit] - 1)
        self._taken.clear()
        lapse = None if self._rest is None else Lapse(self._lapsed, self._rest)
        self._lapsed, self._rest = {}, None
        return lapse

    def _raise(self, sequence: Sequence, floor: int) -> None:
        """Take it that messages of a topic are missing up to this floor. Those before it are of no use then."""
        while sequence.kept and sequence.kept[0] <= floor:
            self._drop(sequence)
        sequence.floor = max(sequence.floor, floor)
        if sequence.position.offset < sequence.floor:
            sequence.position = Position(self.epoch, sequence.floor)

    def _sequence(self, topic: str, at: int) -> Sequence:
        sequence = self._sequences.get(topic)
        if sequence is None:
            sequence = self._sequences[topic] = Sequence(Position(self.epoch, at), self._floor)
        return sequence


def sealed(time: str, owner: str, data: bytes) -> bytes:
    """Return a message as it is published to the shared stream, of the principal ``owner``.

    ``time`` is RFC 3339 with milliseconds. No ``data`` stands for messages that are lost.
    """
    return f"{time} {owner}\n".encode() + data


def opened(text: bytes) -> tuple[bytes, str, bytes]:
    """Return time, owner and data of such a message. Raises StrangeError if it is none."""
    line, found, data = text.partition(b"\n")
    time, space, owner = line.partition(b" ")
    if found and space and len(time) == TIME and time.isascii():
        try:
            return time, owner.decode(), data
        except UnicodeDecodeError:
            pass
    raise StrangeError(f"a message that no gateway has published: {text[:60]!r}")
