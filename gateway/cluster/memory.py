"""The stream of a gateway without others: it numbers, keeps and hands over a message within ``publish``. Pure.

What it keeps is bounded by number and age for each topic, and by bytes over all topics. If these are too many bytes,
the principal that holds the most of them loses its oldest message: so no principal can erase what others have said.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import msgspec

from gateway.cluster.stream import Deliver, Position, message_of
from gateway.limits import Largest
from gateway.rpc import jsonrpc

EXPIRE: Final = 1000
"""How many messages that are too old are dropped in one go at most. The others go with the next messages."""

_NONE: Final[deque[int]] = deque()
"""No messages: most topics that are only expected have none, and an empty deque takes 600 bytes."""


class _Sequence:
    """Where one topic is. ``kept`` are the numbers of its messages that are kept, the oldest first.

    ``topic`` is its name in JSON, from its first message on.
    """

    __slots__ = ("kept", "position", "topic")

    def __init__(self, position: Position) -> None:
        self.position = position
        self.kept = _NONE
        self.topic = b""


class _Account:
    """What is kept for one principal. ``kept`` are the numbers of its messages, the oldest first.

    ``placed`` is what ``octets`` was when the account was last placed among the others.
    """

    __slots__ = ("kept", "level", "octets", "owner", "placed")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.octets = 0
        self.placed = 0
        self.level = -1


class _Kept(msgspec.Struct, frozen=True, gc=False):
    """A message that is kept. ``at`` is when it was published, in seconds of the clock.

    A struct is made in a third of the time of a tuple with names. The garbage collector need not see it: what it refers
    to knows messages by their numbers only.
    """

    sequence: _Sequence
    account: _Account
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
        self._accounts: dict[str, _Account] = {}
        self._largest: Largest[_Account] = Largest(octets)
        self._grain = self._largest.grain
        self.kept_bytes = 0

    async def connect(self, deliver: Deliver) -> None:
        """Hand each message to ``deliver`` from now on, within ``publish``."""
        self._deliver = deliver

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
        self._keep(sequence, text, owner)
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
        young = len(sequence.kept)
        for number in sequence.kept:
            if now - self._kept[number].at < self._age:
                break
            young -= 1
        return Position(sequence.position.epoch, sequence.position.offset - young)

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

    def _keep(self, sequence: _Sequence, text: bytes, owner: str) -> None:
        if not self._count:
            return
        now, octets = self._clock(), len(text)
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = _Account(owner)
        self._number = number = self._number + 1
        self._kept[number] = _Kept(sequence, account, now, text)
        account.kept[number] = None
        if sequence.kept is _NONE:
            sequence.kept = deque()
        sequence.kept.append(number)
        self.kept_bytes += octets
        account.octets += octets
        if len(sequence.kept) > self._count:
            self._drop(sequence)
        if account.octets - account.placed >= self._grain or account.level < 0:
            self._place(account)
        self._expire(now)

    def _expire(self, now: float) -> None:
        """Drop what is too much, and some of what is too old."""
        left = EXPIRE
        while self._kept:
            oldest = next(iter(self._kept.values()))  # the oldest of its topic, too
            if not left or now - oldest.at < self._age:
                break
            left -= 1
            self._drop(oldest.sequence)
        while self.kept_bytes > self._octets and (account := self._largest.holder()) is not None:
            number = next(iter(account.kept))
            sequence = self._kept[number].sequence
            # What others have said on the topic before that goes, too: no subscriber could go on from there.
            while sequence.kept and sequence.kept[0] <= number:
                self._drop(sequence)

    def _drop(self, sequence: _Sequence) -> None:
        number = sequence.kept.popleft()
        dropped = self._kept.pop(number)
        account, octets = dropped.account, len(dropped.message)
        self.kept_bytes -= octets
        account.octets -= octets
        del account.kept[number]
        if not account.kept:
            self._largest.remove(account)
            del self._accounts[account.owner]
        elif account.placed - account.octets >= self._grain:
            self._place(account)

    def _place(self, account: _Account) -> None:
        account.placed = account.octets
        self._largest.place(account, account.octets)


def _nowhere(topic: str, before: Position, message: bytes) -> None:
    """Deliver nothing, as before ``connect`` and after ``close``."""
