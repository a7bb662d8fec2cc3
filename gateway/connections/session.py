"""What outlives a link: the numbers of the messages both ways, and what the peer has not acknowledged. Pure.

Each side numbers the messages that it sends, from 1 on, and tells the other from time to time up to which number it has
had them. What the peer has not acknowledged is kept, so that it can be sent again by another link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from gateway import errors
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.frames import State

ACK_EVERY: Final = 64
"""After how many messages of the peer they are acknowledged at the latest."""

GRAIN: Final = 16 * 1024
"""Bytes by which what is kept may differ from what the account is charged with."""

AT_ONCE: Final = 256 * 1024
"""How many bytes are written again in one event-loop iteration."""

_LOSSES: Final = frozenset({errors.TRANSPORT_LOST.cause, errors.HEARTBEAT_TIMEOUT.cause, errors.RECEIVE_TIMEOUT.cause})


def is_loss(end: Disconnect) -> bool:
    """Return whether a link has ended in such a way that its connection may go on with another one."""
    return end.cause in _LOSSES or (end.cause == errors.CLIENT_CLOSE.cause and end.code == errors.INTERNAL_FAILURE.code)


class Link(Protocol):
    """The link by which a session's messages leave."""

    state: State
    barred: bool

    @property
    def blocked(self) -> bool:
        """Whether what is sent has to wait."""

    def pass_on(self, payload: bytes) -> None:
        """Send one text message, after all that was sent so before. Does nothing unless the link is open."""

    def unbar(self) -> None:
        """Let others send again, unless so much waits that they may not."""


class Session:
    """The numbers of one connection, and what is kept for its peer. Every call is plain.

    ``digest`` is that of the secret, ``hold`` the seconds for which the connection is held, and ``max_bytes`` what may
    be kept. It is charged to ``account``. ``overrun`` is called if a message is lost that has not been written yet.

    ``received`` and ``told`` are numbers of the peer's messages: the last one that came, and the last acknowledged.
    ``sent``, ``written`` and ``acked`` are numbers of our own: the last one, the last that was written to a link, and
    the last that the peer has acknowledged. ``octets`` is what is kept. ``attempt`` is the greatest that a resume had.
    """

    __slots__ = (
        "_account",
        "_charged",
        "_due",
        "_first",
        "_kept",
        "_overrun",
        "_quarter",
        "_rewritten",
        "_settled",
        "_since_told",
        "_write",
        "acked",
        "attempt",
        "digest",
        "established",
        "hold",
        "link",
        "max_bytes",
        "octets",
        "received",
        "sent",
        "told",
    )

    def __init__(
        self,
        digest: bytes,
        link: Link,
        account: Account,
        *,
        hold: float,
        max_bytes: int,
        overrun: Callable[[], object],
    ) -> None:
        self.digest: Final = digest
        self.hold: Final = hold
        self.max_bytes: Final = max_bytes
        self._quarter: Final = max_bytes // 4
        self.link = link
        self._write: Callable[[bytes], None] | None = link.pass_on
        self._account = account
        self._overrun = overrun
        self._kept: deque[bytes] = deque()
        self._first = 1
        self.octets = self._charged = self._settled = 0
        self.sent = self.acked = self._rewritten = 0
        self.received = self.told = 0
        self._since_told = 0
        self._due = False
        self.established = False
        """Whether the peer has ever acknowledged anything. Before that it may not know of the session."""
        self.attempt = 0

    # Our messages

    def send(self, payload: bytes) -> None:
        """Number one message and keep it, and write it unless others have to be written first."""
        self.sent += 1
        self._kept.append(payload)
        self.octets = octets = self.octets + len(payload)
        write = self._write
        if write is not None:
            write(payload)
        elif self.crowded:
            self.link.barred = True
        if octets > self._settled:  # nearly always it is not, so the account is not touched for each message
            self._settle()
            self._lose()

    @property
    def written(self) -> int:
        """The number of the last message that was written to the link, or to the last one if there is none."""
        return self._rewritten if self._write is None else self.sent

    def _settle(self) -> None:
        """Charge the account with what is kept now."""
        self._account.held += self.octets - self._charged
        self._charged = self.octets
        self._settled = min(self.octets + min(GRAIN, self.max_bytes // 64), self.max_bytes)

    @property
    def crowded(self) -> bool:
        """Whether half of what may be kept waits for another link, or for its turn there."""
        return self._write is None and self.octets > self.max_bytes // 2

    def _lose(self) -> None:
        """Keep the latest messages alone, as many as there is room for. A loss of the link would be final then."""
        while self._kept and (self.octets > self.max_bytes or self._account.held > self._account.bound):
            self._drop(1)
            self._settle()
        if self._write is None and self._first > self.written + 1:
            self._overrun()

    def _drop(self, count: int) -> None:
        self._first += count
        pop = self._kept.popleft
        self.octets -= sum([len(pop()) for _ in range(count)])

    def acknowledged(self, number: int) -> bool:
        """Keep no more what the peer has had, up to this number. Returns False if that was never sent.

        A smaller number than before is ignored.
        """
        self.established = True
        if number > self.sent:
            return False
        self.acked = max(self.acked, number)
        if self._first <= number:
            self._drop(number + 1 - self._first)
            self._settle()
        return True

    def holds(self, end: Disconnect) -> bool:
        """Return whether a connection whose link ends so is held: everything is there that the peer has not had."""
        return self.established and self.hold > 0 and self._first == self.acked + 1 and is_loss(end)

    def detach(self) -> None:
        """Write nothing more, because the link is lost."""
        self._rewritten = self.written
        self._write = None

    def attach(self, link: Link) -> None:
        """Go on by another link, with what comes after the last message acknowledged. `rewrite` is to be called."""
        self.link = link
        self.told = self.received  # the reply to the resume tells it
        self._since_told = 0
        self._due = False
        self._rewritten = self.acked
        if self.crowded:
            link.barred = True

    def rewrite(self) -> bool:
        """Write some of what is kept, as long as the peer reads. Returns whether to call it again soon.

        When all is written, each further message is written as it is sent.
        """
        link, left = self.link, AT_ONCE
        for payload in islice(self._kept, max(0, self.written + 1 - self._first), None):
            if left <= 0 or link.blocked or link.state is not State.OPEN:
                return left <= 0
            self._rewritten += 1
            left -= len(payload)
            link.pass_on(payload)
        if link.state is State.OPEN:
            self._write = link.pass_on
            link.unbar()
        return False

    @property
    def caught_up(self) -> bool:
        """Whether nothing is left to be written again."""
        return self._write is not None

    def unwritten(self) -> list[bytes]:
        """Return the messages that were never written to a link."""
        return list(islice(self._kept, max(0, self.written + 1 - self._first), None))

    def clear(self) -> None:
        """Keep nothing more, because the connection is over."""
        self._write = None
        self._kept.clear()
        self.octets = 0
        self._settle()

    # The peer's messages

    def heard(self, octets: int) -> bool:
        """Count the bytes of a message of the peer's. Returns whether to look if something is to be acknowledged.

        That is so for the first message after an acknowledgement, and as long as one `is_due`.
        """
        self._since_told = since = self._since_told + octets
        if self._due:  # as `is_due`, without a call
            return self.received - self.told >= ACK_EVERY or since >= self._quarter
        self._due = True
        return True

    @property
    def is_due(self) -> bool:
        """Whether so much has come that it is to be acknowledged now, and not in a while."""
        return self.received - self.told >= ACK_EVERY or self._since_told >= self._quarter

    def nothing_due(self) -> None:
        """Note that there is nothing to acknowledge after all: what has come was an acknowledgement itself."""
        self._due = False

    def tell(self) -> int:
        """Return the number up to which the peer's messages have come, which it is told now."""
        self.told = self.received
        self._since_told = 0
        self._due = False
        return self.received
