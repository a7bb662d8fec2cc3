"""The way out: frames to one peer are corked for one event-loop iteration (`cork`), and then written or kept.

The outbox is what is kept and what is in the transport's write buffer. It has a bound, and a peer that stays over it is
cut. So no peer makes the gateway grow, and no peer waits for another. The transport gets no more than fills it to its
high-water mark: under TLS it hides what it holds beyond that from `get_write_buffer_size()`, and what it holds cannot
be overtaken. What is kept can: a peer's own replies go before what others sent to it (`lanes`).
"""

from __future__ import annotations

import abc
import asyncio
from typing import Final, Protocol

from gateway import errors
from gateway.deadlines import Standstill
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.cork import CORK_BYTES, Cork
from gateway.websocket.frames import State, Written
from gateway.websocket.lanes import Lanes

HIGH_WATER: Final = 16 * 1024
"""Bytes that the transport holds when it says that it takes no more. At a fourth of it, it takes more again."""

REPLIES: Final = 16 * 1024
"""If more bytes than these of a peer's own replies wait, it is not read."""

_LOOKS: Final = 20
"""How often an outbox over its bound is checked within its timeout."""

_OPEN: Final = State.OPEN


class Flow(Protocol):
    """The transport's protocol, for its flow control (asyncio's ``pause_writing``)."""

    @property
    def writing_paused(self) -> bool:
        """Whether the write buffer was over its high-water mark, and is not yet under its low one."""


class Outbox(abc.ABC):
    """The sending half of a link. Every call is plain. Nothing is written to a transport that is closing."""

    __slots__ = (
        "_bytes_out",
        "_charged",
        "_kept",
        "_messages_out",
        "_outbox_timer",
        "_over_since",
        "_partial",
        "_standstill",
        "account",
        "barred",
        "cork",
        "corked",
        "corked_bytes",
        "flow",
        "high_mark",
        "loop",
        "outbox_bound",
        "outbox_timeout",
        "pressed",
        "stalled",
        "state",
        "transport",
    )

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: Flow

    def __init__(
        self, cork: Cork, account: Account, max_outbox_bytes: int, outbox_timeout: float, standstill: Standstill
    ) -> None:
        self.cork = cork
        self.account = account
        """What it charges while the peer does not read: see `charge_to`."""
        self._charged = 0
        self._partial = 0
        self.outbox_bound = max_outbox_bytes
        self.high_mark = max_outbox_bytes // 2
        self.pressed = False
        """Whether it is over its high mark, or not empty and its account over its own."""
        self.barred = False
        """Whether others may send nothing more: it is `pressed`, or was, and the peer has not been read since."""
        self.outbox_timeout = outbox_timeout
        self._standstill = standstill
        self._over_since = 0.0
        self._outbox_timer: asyncio.TimerHandle | None = None
        self.corked_bytes = 0
        self._kept: Lanes | None = None
        self.corked: list[bytes] | None = None
        self.state = State.OPENING
        self.stalled = False
        """Whether the peer is not read, because its own replies wait, or more than the bound."""
        self._messages_out = 0
        self._bytes_out = 0

    @property
    def messages_out(self) -> int:
        """How many messages were sent, in all."""
        return self._messages_out + len(self.corked or ()) + self.past.messages

    @property
    def bytes_out(self) -> int:
        """Bytes of frames that were written or kept, in all."""
        return self._bytes_out + self.past.octets

    def count(self, messages: int, octets: int) -> None:
        """Count frames that were written past this outbox, as soon as `past` no longer has them."""
        self._messages_out += messages
        self._bytes_out += octets

    @property
    def blocked(self) -> bool:
        """Whether the transport takes no more, so what is sent is kept."""
        return self._kept is not None

    def send_frame_bytes(self, data: bytes) -> None:
        """Send one whole data frame, as `frames.text_frame` makes it. It does nothing unless the link is open."""
        if self.state is _OPEN:
            self.put(data)

    def pass_frame_on(self, data: bytes) -> None:
        """Send one whole data frame that comes from others. The peer's own replies may overtake it.

        Unlike others a large one leaves at the end of the iteration too, because it may go to many peers.
        """
        if self.state is not _OPEN:
            return
        corked = self.corked
        if corked is not None and self.corked_bytes <= CORK_BYTES and self._kept is None:  # without a call of put()
            corked.append(data)
            self.corked_bytes += len(data)
            return
        if self._kept is None and self.corked_bytes > CORK_BYTES:
            self.flush()
        if self._kept is None:
            self.put(data, CORK_BYTES + len(data))
        else:
            self._keep_last(self._kept, data)
            self._check()

    def put_last(self, data: bytes) -> None:
        """Send a close frame. Nothing overtakes it, and nothing may be sent after it."""
        if self.corked is not None:
            self.flush()
        self._messages_out -= 1
        if self._kept is None:
            self.put(data)
            self.flush()
        else:
            self._keep_last(self._kept, data)

    def _keep_last(self, kept: Lanes, data: bytes) -> None:
        self._messages_out += 1
        if not self.transport.is_closing():
            self._bytes_out += len(data)
            kept.put_last(data)

    def put_control(self, data: bytes) -> None:
        """Cork what is no message: a whole control frame, or the head of the 101."""
        self._messages_out -= 1  # because all that is corked counts as messages when it leaves
        self.put(data)

    def put(self, data: bytes, most: int = CORK_BYTES) -> None:
        """Cork one whole data frame. If it replies to a read it leaves at the end of that, otherwise as `Cork` says.

        If more bytes than ``most`` are corked then, they leave at once.
        """
        if self.corked is None:
            self.corked = [data]
            if self.cork.reading is not self:
                self.cork.add(self)
        else:
            self.corked.append(data)
        self.corked_bytes += len(data)
        if self.corked_bytes > most:
            self.flush()

    def flush(self) -> None:
        """Write what is corked now. Harmless at any time."""
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
        kept = self._kept
        if kept is None and not self.flow.writing_paused:
            self._bytes_out += len(data)
            transport.write(data)
            return
        if kept is None:
            kept = self._block()
        self._bytes_out += len(data)
        kept.put(data)
        if not self.flow.writing_paused:  # it takes more again, and the pump has not had its turn yet
            self.pump()
        elif self.state is _OPEN:
            self._check()

    def full(self) -> None:
        """Keep what is sent from now on, because the transport takes no more.

        Its protocol's ``pause_writing`` calls this, and so within any write to it.
        """
        if self._kept is None:
            self._block()
        if self.state is _OPEN:
            self._check()

    def _block(self) -> Lanes:
        kept = self._kept = Lanes()
        if self.corked_bytes > CORK_BYTES:  # a large frame from others, which has waited for its turn
            corked, self.corked, self.corked_bytes = self.corked, None, 0
            for data in corked or ():
                self._keep_last(kept, data)
        self.on_blocked()
        return kept

    @property
    def may_be_read(self) -> bool:
        """Whether few of the peer's own replies wait, and no more than the bound in all."""
        kept = self._kept
        return kept is None or (kept.own_octets <= REPLIES and self._unsent <= self.outbox_bound)

    def pump(self, *, everything: bool = False) -> bool:
        """Write what was kept, as far as the transport takes it without pausing.

        Returns whether nothing is left and the transport takes more. ``everything`` writes all, whether the transport
        pauses or not, and is for the last moment before it is closed.
        """
        if self.corked is not None:
            self.flush()  # it may be a reply, and what is kept has to come after it
        kept = self._kept
        while (
            kept is not None
            and not kept.empty
            and (everything or not self.flow.writing_paused)
            and not self.transport.is_closing()
        ):
            self.transport.write(kept.take())
        if (kept is not None and not kept.empty) or self.flow.writing_paused:
            if self.state is _OPEN:
                self._note(self._unsent)
            return False
        self._kept = None
        if self._charged:
            self._note(0)
        return True

    @property
    def outbox_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken yet."""
        if self.state is State.OPENING or self.state is State.CLOSED:
            return 0
        return self._unsent + sum(map(len, self.corked or ()))

    @property
    def drained(self) -> int:
        """Bytes that the kernel has taken, in all. While this grows the peer's machine is alive."""
        return self.bytes_out - self._unsent

    @property
    def _unsent(self) -> int:
        kept = self._kept
        return self.transport.get_write_buffer_size() + (0 if kept is None else kept.octets)

    def unbar(self) -> None:
        """Let others send again, unless the outbox is over its high mark again."""
        self.barred = self.pressed

    def _note(self, size: int) -> None:
        """Charge the account with so many bytes that wait for the peer, and see whether others may send more."""
        account = self.account
        account.held += size - self._charged
        self._charged = size
        self.pressed = size > self.high_mark or (size > 0 and account.held > account.high_mark)
        if self.pressed:
            self.barred = True

    def charge_to(self, account: Account) -> None:
        """Let ``account`` have what is held here, from now on."""
        charged = self._charged + self._partial
        self.account.held -= charged
        account.held += charged
        self.account = account

    def on_partial(self, octets: int) -> bool:
        """Charge so many more bytes of an unfinished message. Returns False if the account does not suffice."""
        self._partial += octets
        self.account.held += octets
        return self.account.held <= self.account.bound

    def on_whole(self) -> None:
        """Charge nothing for an unfinished message any more, because it is finished."""
        self.account.held -= self._partial
        self._partial = 0

    def _check(self) -> None:
        """Cut a peer whose outbox has been over its bound for too long, over twice the bound, or has its account full.

        Others send nothing more to one that is `barred`. So what goes over a bound is what the peer asked for.
        """
        size = self._unsent
        self._note(size)
        if not self.stalled and not self.may_be_read:
            self.stall()
        full = self.account.held > self.account.bound
        if size <= self.outbox_bound and not full:
            self._over_since = 0.0
            return
        now = self.loop.time()
        self._over_since = self._over_since or now
        late = now - self._over_since >= self.outbox_timeout and not self._standstill.left()
        if size > 2 * self.outbox_bound or full or late:
            self.end(errors.SLOW_CONSUMER)
        elif self._outbox_timer is None:
            self._outbox_timer = self.loop.call_later(self.outbox_timeout / _LOOKS, self._look)

    def _look(self) -> None:
        self._outbox_timer = None
        if self.state is _OPEN:
            self._check()

    def discard(self) -> None:
        """Forget what has not left, and stop checking, because the transport is gone. May be called twice."""
        self._messages_out += len(self.corked or ())
        self.corked = self._kept = None
        if self._charged:
            self._note(0)
        self.barred = False
        if self._outbox_timer is not None:
            self._outbox_timer.cancel()
            self._outbox_timer = None

    @property
    @abc.abstractmethod
    def past(self) -> Written:
        """What was written past this outbox, and is not counted here yet. For the class that knows the writers."""

    @abc.abstractmethod
    def end(self, end: Disconnect) -> None:
        """End the link, for this reason. For the class that has the link's life."""

    @abc.abstractmethod
    def on_blocked(self) -> None:
        """Have what is kept written as soon as the transport takes more. For the class that waits for that."""

    @abc.abstractmethod
    def stall(self) -> None:
        """Read no more from the peer until it `may_be_read`. For the class that reads."""
