"""The cork: the frames of one event-loop iteration leave together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

CORK_BYTES: Final = 64 * 1024
"""If more bytes than these are corked, they are written without waiting for the end of the iteration."""

CORK_FLUSHES: Final = 256
"""How many outboxes are flushed in one go at most."""

CORK_WRITES: Final = 16 * 1024 * 1024
"""If a flush of many outboxes has written more bytes than these, the rest has its turn later: copying takes time."""

ALONE: Final = 16
"""After a read that was alone in its event-loop iteration, how many more are taken to be alone in theirs."""


class Flushed(Protocol):
    """The outbox of a peer whose read is being handled."""

    def flush(self) -> None:
        """Write its frames now. Harmless at any time."""


class Corked(Flushed, Protocol):
    """Something that has frames to write, or mail for other gateways."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""

    @property
    def corked_bytes(self) -> int:
        """How many bytes it has."""


class _Mail:
    """Stands for the outbox of the peer whose read is being handled, if what is read is mail."""

    def flush(self) -> None:
        """Do nothing."""


_MAIL: Final = _Mail()


class Cork:
    """Lets the frames of one event-loop iteration leave together, in one ``transport.write`` for each socket.

    There is one cork for each event loop. The replies to a read leave at its end. What the read sends to other peers
    leaves at the end of the iteration, because other reads may send to the same peers. But if reads come one in an
    iteration, that leaves at the end of the read too: a callback of the event loop costs as much as a message.
    """

    __slots__ = ("_alone", "_corked", "_loop", "_made_way", "due", "reading", "reads")

    def __init__(self) -> None:
        self._corked: list[Corked] = []
        self._made_way = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alone = 0
        self.reading: Flushed | None = None
        """The outbox of the peer whose read is being handled. Its frames wait for the end of the read."""
        self.reads = 0
        """How many reads there were since the last flush at the end of an iteration or of a read."""
        self.due = False
        """Whether `end_read` is to be called at the end of this read."""

    def make_way(self) -> bool:
        """Write all that is corked, and return whether one frame may now be written past the outboxes.

        It may once in each iteration: the frames after it are corked, and leave in one write. If it may not, or if very
        many outboxes are corked, this writes nothing. If very much is corked, some of that is left.
        """
        if self._made_way or len(self._corked) > CORK_FLUSHES:
            return False
        self._made_way = True
        loop = self._loop
        if loop is None:  # asked for once: that makes a system call before Python 3.12
            loop = self._loop = asyncio.get_running_loop()
        loop.call_soon(self._next_iteration)
        if self.reading is not None:
            self.reading.flush()
        self._flush()
        return not self._corked

    def _next_iteration(self) -> None:
        self._made_way = False

    def later(self, act: Callable[[], None]) -> None:
        """Do something in the next event-loop iteration."""
        asyncio.get_running_loop().call_soon(act)

    def add(self, outbox: Corked) -> None:
        """Flush ``outbox`` at the end of this iteration, or of this read. Adding it twice is harmless."""
        if not self._corked:
            if self._alone and self.reading is not None:
                self.due = True
            else:
                outbox.loop.call_soon(self._end_iteration)
        self._corked.append(outbox)

    def begin_mail(self) -> None:
        """Let what is sent because of mail from other gateways leave at the end of its read, which is `end_mail`."""
        self.reading = _MAIL
        self._alone += 1

    def end_mail(self) -> None:
        """Flush what was corked since `begin_mail`."""
        self.reading = None
        self._alone -= 1
        if self.due:
            self.due = False
            self.reads = 0
            self._flush()

    def end_read(self) -> None:
        """Flush what was corked by a read that is taken to be alone in its iteration."""
        self.due = False
        self._alone -= 1
        self.reads = 0
        self._flush()

    def _end_iteration(self) -> None:
        self._alone = ALONE if self.reads == 1 else 0
        self.reads = 0
        self._flush()

    def _flush(self) -> None:
        corked = self._corked
        self._corked = []
        if len(corked) == 1:  # as nearly always if there is little to do
            corked[0].flush()
            return
        octets = 0
        for number, outbox in enumerate(corked, 1):
            octets += outbox.corked_bytes
            outbox.flush()
            if (number == CORK_FLUSHES or octets > CORK_WRITES) and number < len(corked):
                # A message to very many, or a large one to many: let others have their turn in between.
                self._corked = corked[number:] + self._corked
                outbox.loop.call_soon(self._flush)
                return
