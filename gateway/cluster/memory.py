"""The stream of a gateway without others: it numbers, keeps and hands over a message within ``publish``. Pure.

What it keeps is bounded as `history.History` says.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from gateway.cluster.history import History, Sequence
from gateway.cluster.stream import Deliver, Listener, Position, message_of
from gateway.rpc import jsonrpc


class MemoryStream(History):
    """A `stream.Stream` within one process.

    ``clock`` returns monotonic seconds, ``now`` the time as RFC 3339, and ``new_epoch`` a text that was never an epoch
    before. ``count``, ``age`` and ``octets`` bound what is kept.
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
        super().__init__(clock, count=count, age=age, octets=octets)
        self._now = now
        self._new_epoch = new_epoch
        self._deliver: Deliver = _nowhere
        self._sequences: dict[str, Sequence] = {}
        self._beginning = Position(new_epoch(), 0)
        """Where all topics begin, until the next one is forgotten."""
        self._number = 0
        """The number of the latest message, over all topics."""

    async def connect(self, listener: Listener) -> None:
        """Have each message delivered from now on, within ``publish``."""
        self._deliver = listener.deliver

    async def close(self) -> None:
        """Hand over no more messages. May be called twice."""
        self._deliver = _nowhere

    def publish(self, topic: str, data: bytes, owner: str = "") -> Position:
        """Number a message, keep it as far as the bounds allow, and hand it over. Returns its position."""
        sequence = self._sequence(topic)
        before = sequence.position
        position = sequence.position = Position(before.epoch, before.offset + 1)
        if not sequence.topic:
            sequence.topic = jsonrpc.encode(topic)
        text = message_of(sequence.topic, position, self._now(), data)
        if self._count:
            self._number = number = self._number + 1
            self._keep(sequence, number, text, owner, self._clock())
        self._deliver(topic, before, text)
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

    def since(self, topic: str, position: Position, most: int) -> list[tuple[int, bytes]] | None:
        """Return the first messages after a position; None if the next is gone, or the topic has no such position."""
        now = self._clock()
        self._expire(now)
        sequence = self._sequences.get(topic)
        if sequence is None:
            return [] if position == self._beginning else None
        missed = sequence.position.offset - position.offset
        if position.epoch != sequence.position.epoch or not 0 <= missed <= len(sequence.kept):
            return None
        first = len(sequence.kept) - missed
        found = [self._kept[number] for number in islice(sequence.kept, first, first + most)]
        if found and now - found[0].at >= self._age:
            return None
        return [(position.offset + n, kept.message) for n, kept in enumerate(found, 1)]

    def oldest(self, topic: str) -> Position:
        """Return the position right before the oldest message that is kept; where the topic is now if none is."""
        now = self._clock()
        self._expire(now)
        sequence = self._sequences.get(topic)
        if sequence is None:
            return self._beginning
        return Position(sequence.position.epoch, sequence.position.offset - len(self._young(sequence, now)))

    def forget(self, topic: str) -> None:
        """Drop a topic with all that is kept of it. If it begins again, it has a new epoch."""
        sequence = self._sequences.pop(topic, None)
        if sequence is None or not sequence.position.offset:
            return
        self._beginning = Position(self._new_epoch(), 0)
        self._drop_all(sequence)

    def _sequence(self, topic: str) -> Sequence:
        sequence = self._sequences.get(topic)
        if sequence is None:
            sequence = self._sequences[topic] = Sequence(self._beginning)
        return sequence


def _nowhere(topic: str, before: Position, message: bytes) -> None:
    """Deliver nothing, as before ``connect`` and after ``close``."""
