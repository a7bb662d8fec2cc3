"""How the peers with an allowance, which owe their credential, share the event loop's time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

SHARE: Final = 0.005
"""Seconds of one event-loop iteration for what comes from all peers with an allowance, together."""


class Resumable(Protocol):
    """What waits for its turn."""

    def go_on(self) -> None:
        """Parse what has come. Must be harmless at any time."""


class Turns:
    """The time that all peers with an allowance may take together in one event-loop iteration. One for each loop.

    A peer that comes when the time is used up waits for the next iteration. One such peer costs little, but anybody
    can open very many.
    """

    __slots__ = ("_armed", "_clock", "_left", "_waiting")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._left = SHARE
        self._armed = False
        self._waiting: deque[Resumable] = deque()

    @property
    def over(self) -> bool:
        """Whether this iteration has no time left."""
        return self._left <= 0

    def wait(self, reader: Resumable, loop: asyncio.AbstractEventLoop) -> None:
        """Let ``reader`` go on when it is its turn."""
        self._waiting.append(reader)
        self._arm(loop)

    @contextmanager
    def timed(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Charge the time that the body takes to this iteration."""
        begin = self._clock()
        try:
            yield
        finally:
            self._left -= self._clock() - begin
            self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._armed:
            self._armed = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next iteration with those that wait, in the order in which they came."""
        self._armed = False
        self._left = SHARE
        while self._waiting and not self.over:
            with self.timed(loop):
                self._waiting.popleft().go_on()
