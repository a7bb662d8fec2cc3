"""The way out: the frames on their way to one peer, corked for one loop pass, then written, or kept.

What is kept, and what is in the transport's write buffer, is the outbox. It has a bound, and a peer that stays over it
is cut: no peer makes the gateway grow, and none is waited for by another. The transport gets no more than fills it to
its high-water mark, for under TLS it hides what it holds beyond that from `get_write_buffer_size()`.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from typing import Final, Protocol

from gateway import errors
from gateway.errors import Disconnect
from gateway.websocket.frames import State, Written

CORK_BYTES: Final = 64 * 1024
"""Corked bytes that are written at once, without waiting for the end of the loop pass."""

CORK_FLUSHES: Final = 256
"""Connections that are written to in one go."""

ALONE: Final = 16
"""How many reads are taken to be alone in their loop pass after one was seen to be."""

_LOOKS: Final = 20
"""How often an outbox over its bound is looked at within its timeout."""

_OPEN: Final = State.OPEN


class Corked(Protocol):
    """Whose frames wait."""

    def flush(self) -> None:
        """Write them, now. Harmless at any time."""


class Cork:
    """Lets the frames of one loop pass leave together, one ``transport.write`` a socket. One for each event loop.

    A read's replies leave at its end, and what it has sent to other peers at the end of the pass, for the reads of many
    may go to one peer. But where reads come one in a pass, that leaves at the read's end too: the loop's way to a
    callback costs as much as a message.
    """

    __slots__ = ("_alone", "_corked", "_passed", "due", "reading", "reads")

    def __init__(self) -> None:
        self._corked: list[Outbox] = []
        self._passed = False
        self._alone = 0
        self.reading: Corked | None = None
        """The outbox whose peer has sent what is being handled: its frames wait for the end of the read."""
        self.reads = 0
        """How many there have been since something was corked for the end of a pass, or at the end of a read."""
        self.due = False
        """Whether `end_read` is to be called at the end of this read."""

    def make_way(self) -> bool:
        """Write all that is corked; returns whether one frame may now be written past the outboxes.

        It may once in each loop pass: the frames behind it are corked, and leave in one write.
        """
        if self._passed or len(self._corked) > CORK_FLUSHES:
            return False
        self._passed = True
        asyncio.get_running_loop().call_soon(self._next_pass)
        if self.reading is not None:
            self.reading.flush()
        self._flush()
        return True

    def _next_pass(self) -> None:
        self._passed = False

    def add(self, outbox: Outbox) -> None:
        """Flush ``outbox`` at the end of this loop pass, or read. Adding it twice is harmless."""
        if not self._corked:
            if self._alone and self.reading is not None:
                self.due = True
            else:
                outbox.loop.call_soon(self._end_pass)
        self._corked.append(outbox)

    def end_read(self) -> None:
        """Flush what a read has corked that is taken to be alone in its pass."""
        self.due = False
        self._alone -= 1
        self.reads = 0
        self._flush()

    def _end_pass(self) -> None:
        self._alone = ALONE if self.reads == 1 else 0
        self.reads = 0
        self._flush()

    def _flush(self) -> None:
        corked = self._corked
        if len(corked) <= CORK_FLUSHES:
            self._corked = []
        else:  # a message to very many: others have their turn in between
            self._corked = corked[CORK_FLUSHES:]
            corked = corked[:CORK_FLUSHES]
            corked[0].loop.call_soon(self._flush)
        for outbox in corked:
            outbox.flush()


class Flow(Protocol):
    """The transport's protocol, as far as it knows of flow control (asyncio's ``pause_writing``)."""

    @property
    def writing_paused(self) -> bool:
        """Whether the write buffer is over its high-water mark, and not yet under its low one."""


class Outbox(abc.ABC):
    """The sending half of a connection. Every call is plain, and does nothing unless the connection is open."""

    __slots__ = (
        "_bytes_out",
        "_kept",
        "_kept_bytes",
        "_messages_out",
        "_outbox_timeout",
        "_outbox_timer",
        "_over_since",
        "cork",
        "corked",
        "corked_bytes",
        "flow",
        "loop",
        "outbox_bound",
        "stalled",
        "state",
        "transport",
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: Flow

    def __init__(self, cork: Cork, max_outbox_bytes: int, outbox_timeout: float) -> None:
        self.cork = cork
        self.outbox_bound = max_outbox_bytes
        self._outbox_timeout = outbox_timeout
        self._over_since = 0.0
        self._outbox_timer: asyncio.TimerHandle | None = None
        self.corked_bytes = 0
        self._kept: deque[bytes] | None = None
        self._kept_bytes = 0
        self.corked: list[bytes] | None = None
        self.state = State.OPENING
        self.stalled = False
        self._messages_out = 0
        self._bytes_out = 0

    @property
    def messages_out(self) -> int:
        """Messages that were sent, in all."""
        return self._messages_out + len(self.corked or ()) + self.past.messages

    @property
    def bytes_out(self) -> int:
        """Bytes of frames that were written or kept, in all."""
        return self._bytes_out + self.past.octets

    def count(self, messages: int, octets: int) -> None:
        """Count frames that were written past this outbox, once they are in `past` no more."""
        self._messages_out += messages
        self._bytes_out += octets

    def send_frame_bytes(self, data: bytes) -> None:
        """Send one whole data frame, as `gateway.websocket.frames.text_frame` makes it."""
        if self.state is _OPEN:
            self.put(data)

    def put_control(self, data: bytes) -> None:
        """Cork what is no message: a whole control frame, or the head of the 101."""
        self._messages_out -= 1  # for all that is corked counts as messages when it leaves
        self.put(data)

    def put(self, data: bytes) -> None:
        """Cork one whole data frame. While a read is being handled its end flushes, else the loop pass's end does."""
        if self.corked is None:
            self.corked = [data]
            if self.cork.reading is not self:
                self.cork.add(self)
        else:
            self.corked.append(data)
        self.corked_bytes += len(data)
        if self.corked_bytes > CORK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is corked, now. Harmless at any time."""
        corked = self.corked
        if corked is None:
            return
        self.corked = None
        self.corked_bytes = 0
        self._messages_out += len(corked)
        transport = self.transport
        if transport.is_closing():
            return
        data = corked[0] if len(corked) == 1 else b"".join(corked)
        self._bytes_out += len(data)
        if self._kept is None and not self.flow.writing_paused:
            transport.write(data)
            return
        if self._kept is None:
            self._kept = deque()
        self._kept.append(data)
        self._kept_bytes += len(data)
        self.full()

    def full(self) -> None:
        """The transport takes no more: from its protocol's ``pause_writing``, so within any write to it."""
        if self.state is _OPEN:
            self._check()
        if not self.stalled:
            self.stall()

    def pump(self, *, everything: bool = False) -> bool:
        """Write what was kept, as far as the transport takes it without pausing; returns whether nothing is left.

        ``everything``: whatever the transport says. For the last moment before it is closed.
        """
        kept = self._kept
        while kept and (everything or not self.flow.writing_paused) and not self.transport.is_closing():
            data = kept.popleft()
            self._kept_bytes -= len(data)
            self.transport.write(data)
        if kept:
            return False
        self._kept = None
        return not self.flow.writing_paused

    @property
    def outbox_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken yet."""
        if self.state is State.OPENING or self.state is State.CLOSED:
            return 0
        return self.transport.get_write_buffer_size() + self._kept_bytes + sum(map(len, self.corked or ()))

    @property
    def drained(self) -> int:
        """Bytes that the kernel has taken, in all: while it grows the peer's machine is alive."""
        return self.bytes_out - self._kept_bytes - self.transport.get_write_buffer_size()

    def _check(self) -> None:
        """Cut a peer whose outbox is over its bound for too long, or over twice the bound at once."""
        size = self.transport.get_write_buffer_size() + self._kept_bytes
        if size <= self.outbox_bound:
            self._over_since = 0.0
            return
        now = self.loop.time()
        self._over_since = self._over_since or now
        if size > 2 * self.outbox_bound or now - self._over_since >= self._outbox_timeout:
            self.end(errors.SLOW_CONSUMER)
        elif self._outbox_timer is None:
            self._outbox_timer = self.loop.call_later(self._outbox_timeout / _LOOKS, self._look)

    def _look(self) -> None:
        self._outbox_timer = None
        if self.state is _OPEN:
            self._check()

    def discard(self) -> None:
        """Forget what has not left, and stop looking: the transport is gone. May be called twice."""
        self._messages_out += len(self.corked or ())
        self.corked = self._kept = None
        self._kept_bytes = 0
        if self._outbox_timer is not None:
            self._outbox_timer.cancel()
            self._outbox_timer = None

    @property
    @abc.abstractmethod
    def past(self) -> Written:
        """What was written past this outbox and is not counted here. For the class that knows who writes so."""

    @abc.abstractmethod
    def end(self, end: Disconnect) -> None:
        """End the connection. For the class that owns the connection's life."""

    @abc.abstractmethod
    def stall(self) -> None:
        """The peer does not read: read no more of it until it does. For the class that reads."""
