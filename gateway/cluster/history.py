"""What is kept of a stream's messages: bounded by number and age for each topic, by bytes over all of them. Pure.

If these are too many bytes, the principal that holds the most of them loses its oldest message: so no principal can
erase what others have said.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import dropwhile
from typing import Final

import msgspec

from gateway.cluster.stream import Position
from gateway.limits import Largest

EXPIRE: Final = 1000
"""How many messages that are too old are dropped in one go at most. The others go with the next messages."""

_NONE: Final[deque[int]] = deque()
"""No messages: most topics that are only expected have none, and an empty deque takes 600 bytes."""


class Sequence:
    """Where one topic is. ``kept`` are the numbers of its messages that are kept, the oldest first.

    ``floor`` is the number of the last one that is kept no longer; ``topic`` is its name in JSON, from its first
    message on.
    """

    __slots__ = ("floor", "kept", "position", "topic")

    def __init__(self, position: Position, floor: int = 0) -> None:
        self.position = position
        self.floor = floor
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

    sequence: Sequence
    account: _Account
    at: float
    message: bytes


class History:
    """The messages that are kept of all topics, by a number that grows from each to the next.

    ``clock`` returns monotonic seconds. Of each topic ``count`` messages are kept, for ``age`` seconds; ``octets``
    bounds the bytes of them all. If one of the three is 0, nothing is kept.
    """

    def __init__(self, clock: Callable[[], float], *, count: int, age: float, octets: int) -> None:
        self._clock = clock
        self._count = count if age and octets else 0
        self._age = age
        self._octets = octets
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # the oldest first, over all topics
        self._accounts: dict[str, _Account] = {}
        self._largest: Largest[_Account] = Largest(octets)
        self._grain = self._largest.grain
        self._due = 0.0
        """When the oldest message may be too old, at the earliest."""
        self.kept_bytes = 0

    def _keep(self, sequence: Sequence, number: int, text: bytes, owner: str, at: float) -> None:
        """Keep a message that was published ``at`` this time of the clock, as far as the bounds allow."""
        octets = len(text)
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = _Account(owner)
        if not self._kept:
            self._due = at + self._age
        self._kept[number] = _Kept(sequence, account, at, text)
        account.kept[number] = None
        kept = sequence.kept
        if kept is _NONE:
            kept = sequence.kept = deque()
        kept.append(number)
        self.kept_bytes += octets
        account.octets += octets
        if len(kept) > self._count:
            self._drop(sequence)
        if account.octets - account.placed >= self._grain or account.level < 0:
            self._place(account)
        if at >= self._due or self.kept_bytes > self._octets:
            self._expire(at)

    def _expire(self, now: float) -> None:
        """Drop what is too much, and some of what is too old."""
        left = EXPIRE
        while self._kept:
            oldest = next(iter(self._kept.values()))  # the oldest of its topic, too
            if not left or now - oldest.at < self._age:
                self._due = oldest.at + self._age
                break
            left -= 1
            self._drop(oldest.sequence)
        while self.kept_bytes > self._octets and (account := self._largest.holder()) is not None:
            number = next(iter(account.kept))
            sequence = self._kept[number].sequence
            # What others have said on the topic before that goes, too: no subscriber could go on from there.
            while sequence.kept and sequence.kept[0] <= number:
                self._drop(sequence)

    def _drop(self, sequence: Sequence) -> None:
        """Drop the oldest message of a topic."""
        number = sequence.floor = sequence.kept.popleft()
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

    def _drop_all(self, sequence: Sequence) -> None:
        while sequence.kept:
            self._drop(sequence)

    def _young(self, sequence: Sequence, now: float) -> list[int]:
        """Return the numbers of a topic's messages that are kept, but for those that are too old and still there."""
        kept, age = self._kept, self._age
        return list(dropwhile(lambda number: now - kept[number].at >= age, sequence.kept))

    def _place(self, account: _Account) -> None:
        account.placed = account.octets
        self._largest.place(account, account.octets)
