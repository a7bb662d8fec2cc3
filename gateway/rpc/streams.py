"""The counts of streams: what the sender of one direction may still send, and what may be on its way to one peer. Pure.

The receiver of a `Flow` grants, and the flow's sender is told. Between the two a grant may wait, because its receiver
has no room for more, or because its sender does not read. What waits is two numbers, whatever was granted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta

MAX_CREDIT: Final = 1024
"""The most values that may be granted and not sent yet."""


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """How much a peer can take: so many values, as long as some of the ``bytes`` are left before each of them."""

    credit: Annotated[int, Meta(ge=0, le=MAX_CREDIT)] = 0
    octets: Annotated[int, Meta(ge=0)] = msgspec.field(default=0, name="bytes")


class Waiter(Hashable, Protocol):
    """A flow of which its sender is to be told more."""

    def tell(self) -> bool:
        """Tell its sender as much as may be told now. Returns whether it was told of more bytes."""


class Pool:
    """What streams of one peer have in common.

    ``promised`` is how many bytes may be sent to it, because their senders were told so. ``wanting`` are flows to it
    for which it has no room now; ``unread`` are flows from it, of which it is to be told more when it reads.
    """

    __slots__ = ("promised", "unread", "wanting")

    def __init__(self) -> None:
        self.promised = 0
        self.wanting: dict[Waiter, None] = {}
        self.unread: dict[Waiter, None] = {}

    def share(self) -> None:
        """Let the flows to it go on, in turn, as long as there is room."""
        for flow in list(self.wanting):
            if not flow.tell():
                return

    def read_on(self) -> None:
        """Tell it of all that waits for it, because it reads again."""
        for flow in list(self.unread):
            flow.tell()


class Flow:
    """One direction of a stream.

    ``credit`` and ``octets`` are what its sender has been told of and has not used. The latter are below zero if its
    last value was longer than what was left. ``more_credit`` and ``more_octets`` are what it is still to be told. All
    together is at most `MAX_CREDIT`, and ``most`` bytes.

    ``pool`` is that of the receiver. ``least`` is how many bytes it may always have, and by how many it is told more.
    """

    __slots__ = ("credit", "least", "more_credit", "more_octets", "most", "octets", "pool")

    def __init__(self, pool: Pool, most: int, least: int) -> None:
        self.pool = pool
        self.most = most
        self.least = least
        self.credit = self.octets = 0
        self.more_credit = self.more_octets = 0

    def grant(self, credit: int, octets: int) -> bool:
        """Take a grant, as far as it keeps within the bounds. Returns whether there is anything new to tell."""
        credit = min(credit, MAX_CREDIT - self.credit - self.more_credit)
        octets = min(octets, self.most - self.octets - self.more_octets)
        self.more_credit += credit
        self.more_octets += octets
        return bool(credit or octets)

    def offer(self, room: int, flowing: bool) -> tuple[int, int]:
        """Return the credit and the bytes of which the sender may be told now.

        The receiver has room for so many bytes more than are ``promised`` to it. If what is sent to it leaves at once,
        ``flowing``, each flow to it may have ``least`` bytes anyway: none waits until others have used theirs.
        """
        room -= self.pool.promised
        if flowing:
            room = max(room, self.least - self.octets)
        octets = min(self.more_octets, max(0, room))
        if octets < self.least and octets < self.more_octets:
            octets = 0
        return self.more_credit, octets

    def told(self, credit: int, octets: int) -> None:
        """Count what the sender is told now."""
        self.more_credit -= credit
        self.more_octets -= octets
        self.credit += credit
        self._set(self.octets + octets)

    def spend(self, length: int) -> bool:
        """Count a value of so many bytes. Returns False if its sender may not send it."""
        if self.credit <= 0 or self.octets <= 0:
            return False
        self.credit -= 1
        self._set(self.octets - length)
        return True

    def close(self) -> None:
        """Let nothing more be sent, nor told."""
        self.credit = self.more_credit = self.more_octets = 0
        self._set(0)

    def _set(self, octets: int) -> None:
        self.pool.promised += max(0, octets) - max(0, self.octets)
        self.octets = octets
