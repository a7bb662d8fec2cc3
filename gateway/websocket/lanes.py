"""What waits for a peer, in the order in which it leaves: its own replies go before what others sent to it. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

PIECE: Final = 16 * 1024
"""Frames that wait leave together up to about so many bytes. A larger frame leaves alone."""


class Lanes:
    """The frames that wait for one peer: what the gateway itself has to say to it, and what comes from others.

    ``octets`` is the size of all that waits, ``own_octets`` of what is the gateway's own.
    """

    __slots__ = ("_others", "_own", "octets", "own_octets")

    def __init__(self) -> None:
        self._own: deque[bytes] = deque()
        self._others: deque[bytes] = deque()
        self.octets = 0
        self.own_octets = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not (self._own or self._others)

    def put(self, data: bytes) -> None:
        """Keep whole frames of the gateway's own. They leave after those before them, and before all of others."""
        self._own.append(data)
        self.octets += len(data)
        self.own_octets += len(data)

    def put_last(self, data: bytes) -> None:
        """Keep a whole frame that leaves after all that waits now."""
        self._others.append(data)
        self.octets += len(data)

    def take(self) -> bytes:
        """Return the whole frames that leave next. Raises IndexError if nothing waits."""
        if self._own:
            data = _joined(self._own)
            self.own_octets -= len(data)
        else:
            data = _joined(self._others)
        self.octets -= len(data)
        return data


def _joined(lane: deque[bytes]) -> bytes:
    data = lane.popleft()
    if not lane or len(data) + len(lane[0]) > PIECE:
        return data
    frames, size = [data], len(data)
    while lane and size + len(lane[0]) <= PIECE:
        frames.append(lane.popleft())
        size += len(frames[-1])
    return b"".join(frames)
