"""The stream of a gateway without others: it numbers, keeps and hands over a message within ``publish``. Pure.

What it keeps is bounded by number and age for each topic, and by bytes over all topics.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from gateway.cluster.stream import Deliver, Position, message

EXPIRE: Final = 1000
"""How many messages that are too old are dropped in one go at most. The others go with the next messages."""

_NONE: Final[deque[int]] = deque()
"""No messages: most topics that are only expected have none, and an empty deque takes 600 bytes."""


class _Sequence:
    """Where one topic is. ``kept`` are the numbers of its messages that are kept, the oldest first."""

    __slots__ = ("kept", "position")

    def __init__(self, position: Position) -> None:
        self.position = position
        self.kept = _NONE


class _Kept(NamedTuple):
    """A message that is kept. ``at`` is when it was published, in seconds of the clock."""

    sequence: _Sequence
    at: float
    message: bytes


class MemoryStream:
    """A `stream.Stream` within one process.

    ``clock`` returns monotonic seconds, ``now`` the time as RFC 3339, and ``new_epoch`` a text that was never an epoch
    before. Of each topic ``count`` messages are kept, for ``age`` seconds; ``octets`` bounds the bytes of them all. If
    one of the three is 0, nothing is kept.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        now: Callable[[], str],
        new_epoch: Callable[[], str],
        *,
        count: int,
        age: float,
        octets: int,
    ) -> None:
        self._clock = clock
        self._now = now
        self._new_epoch = new_epoch
        self._count = count if age and octets else 0
        self._age = age
        self._octets = octets
        self._deliver: Deliver = _nowhere
        self._sequences: dict[str, _Sequence] = {}
        self._beginning = Position(new_epoch(), 0)
        """Where all topics begin, until the next one is forgotten."""
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # the oldest first, over all topics
        self._number = 0
        self.kept_bytes = 0

    async def connect(self, deliver: Deliver) -> None:
        """Hand each message to ``deliver`` from now on, within ``publish``."""
        self._deliver = deliver

    async def close(self) -> None:
        """Hand over no more messages. May be called twice."""
        self._deliver = _nowhere

    def publish(self, topic: str, data: bytes) -> Position:
        """Number a message, keep it as far as the bounds allow, and hand it over. Returns its position."""
        sequence = self._sequence(topic)
        epoch, offset = sequence.position
        position = sequence.position = Position(epoch, offset + 1)
        text = message(topic, position, self._now(), data)
        self._keep(sequence, text)
        self._deliver(topic, text)
        return position

    def position(self, topic: str) -> Position:
        """Return where a topic is now. One that has not begun would begin there until any topic is forgotten.

        Then nobody can say any more whether it has begun meanwhile.
        """
        sequence = self._sequences.get(topic)
        return self._beginning if sequence is None else sequence.position

    def expect(self, topic: str) -> Position:
        """Return where a topic is now. If it has not begun it will begin there, until it is forgotten."""
        return self._sequence(topic).position

    def since(self, topic: str, position: Position) -> list[bytes] | None:
        """Return all messages after a position; None if some are gone, or the topic has no such position."""
        now = self._clock()
        self._expire(now)
        sequence = self._sequences.get(topic)
        if sequence is None:
            return [] if position == self._beginning else None
        missed = sequence.position.offset - position.offset
        if position.epoch != sequence.position.epoch or not 0 <= missed <= len(sequence.kept):
            return None
        found = [self._kept[number] for number in islice(sequence.kept, len(sequence.kept) - missed, None)]
        if found and now - found[0].at >= self._age:
            return None
        return [kept.message for kept in found]

    def forget(self, topic: str) -> None:
        """Drop a topic with all that is kept of it. If it begins again, it has a new epoch."""
        sequence = self._sequences.pop(topic, None)
        if sequence is None or not sequence.position.offset:
            return
        self._beginning = Position(self._new_epoch(), 0)
        while sequence.kept:
            self._drop(sequence)

    def _sequence(self, topic: str) -> _Sequence:
        sequence = self._sequences.get(topic)
        if sequence is None:
            sequence = self._sequences[topic] = _Sequence(self._beginning)
        return sequence

    def _keep(self, sequence: _Sequence, text: bytes) -> None:
        if not self._count:
            return
        now = self._clock()
        self._number += 1
        self._kept[self._number] = _Kept(sequence, now, text)
        if sequence.kept is _NONE:
            sequence.kept = deque()
        sequence.kept.append(self._number)
        self.kept_bytes += len(text)
        if len(sequence.kept) > self._count:
            self._drop(sequence)
        self._expire(now)

    def _expire(self, now: float) -> None:
        """Drop what is too much, and some of what is too old, from the oldest message on.

        The oldest message is the oldest of its topic, too.
        """
        left = EXPIRE
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if self.kept_bytes <= self._octets and (not left or now - oldest.at < self._age):
                break
            left = max(0, left - 1)
            self._drop(oldest.sequence)

    def _drop(self, sequence: _Sequence) -> None:
        self.kept_bytes -= len(self._kept.pop(sequence.kept.popleft()).message)


def _nowhere(topic: str, message: bytes) -> None:
    """Deliver nothing, as before ``connect`` and after ``close``."""
