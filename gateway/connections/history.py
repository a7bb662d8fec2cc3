"""The connections that are over, of which each principal has a share: the answer to "why did it disconnect?"."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from gateway.auth.scopes import Principal
from gateway.errors import Disconnect

HISTORY: Final = 1000
"""How many ended connections are remembered."""


class Closed(NamedTuple):
    """What is kept of a connection that is over.

    ``closed_at`` is in seconds since the epoch, ``duration`` in seconds, and the rest is as the connection had it.
    ``origin`` is whose share of the history it takes (`auth.scopes.origin`).
    """

    conn_id: str
    principal: Principal
    remote: str
    closed_at: float
    duration: float
    end: Disconnect
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    origin: str


class History:
    """Remembers the last ``most`` connections that are over, in the order in which they ended.

    If it is full, the oldest entry of the origin that has the most makes room; an origin is a principal, or an address
    if the peer has named none (`auth.scopes.origin`). So an origin that comes and goes all the time takes the place of
    its own entries. Adding an entry takes the same time however many origins there are.
    """

    def __init__(self, most: int = HISTORY) -> None:
        self._most = most
        self._added = 0
        self._entries: dict[int, Closed] = {}  # by number, the oldest first
        self._of: dict[str, deque[int]] = {}  # the numbers of each origin's entries
        self._with: list[dict[str, None]] = [{}]  # the origins with so many entries; the one that has longest, first
        self._largest = 0  # the number of entries of an origin that has the most

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Closed]:
        return iter(self._entries.values())

    def __reversed__(self) -> Iterator[Closed]:
        return reversed(self._entries.values())

    def append(self, closed: Closed) -> None:
        """Add an entry. If there are too many now, drop another."""
        name, number, entries = closed.origin, self._added, self._entries
        self._added = number + 1
        entries[number] = closed
        numbers = self._of.get(name)
        if numbers is None:
            numbers = self._of[name] = deque()
        numbers.append(number)
        count = len(numbers)
        full = len(entries) > self._most
        if full and count > self._largest > 0:
            del entries[numbers.popleft()]  # it would be the one that has the most
            return
        self._move(name, count - 1, count)
        self._largest = max(self._largest, count)
        if full:
            self._drop()

    def _drop(self) -> None:
        """Drop the oldest entry of the origin that has the most, or of the first of them if several have as many."""
        name = next(iter(self._with[self._largest]))
        numbers = self._of[name]
        del self._entries[numbers.popleft()]
        self._move(name, len(numbers) + 1, len(numbers))
        if not numbers:
            del self._of[name]
        if not self._with[self._largest]:
            self._largest -= 1

    def _move(self, name: str, before: int, count: int) -> None:
        """Note that an origin had ``before`` entries and has ``count`` now."""
        if before:
            del self._with[before][name]
        if count == len(self._with):
            self._with.append({})
        if count:
            self._with[count][name] = None
