"""What outlives a link: the numbers of the messages both ways, and what the peer has not acknowledged. Pure.

Each side numbers the messages that it sends, from 1 on, and tells the other from time to time up to which number it has
had them. What the peer has not acknowledged is kept, so that it can be sent again by another link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Final, Protocol

from gateway import errors
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.cork import CORK_BYTES
from gateway.websocket.frames import SHORT_TEXT, State

ACK_EVERY: Final = 64
"""After how many messages of the peer they are acknowledged at the latest."""

GRAIN: Final = 16 * 1024
"""Bytes that are kept before they are counted, and charged to the account. What is corked at a time comes on top."""

MANY: Final = 128
"""How many short messages are kept before they are counted."""

AT_ONCE: Final = 256 * 1024
"""How many bytes are written again in one event-loop iteration."""

_LOSSES: Final = frozenset({errors.TRANSPORT_LOST.cause, errors.HEARTBEAT_TIMEOUT.cause, errors.RECEIVE_TIMEOUT.cause})


def is_loss(end: Disconnect) -> bool:
    """Return whether a link has ended in such a way that its connection may go on with another one."""
    return end.cause in _LOSSES or (end.cause == errors.CLIENT_CLOSE.cause and end.code == errors.INTERNAL_FAILURE.code)


class Cork(Protocol):
    """What has frames that leave together."""

    corked: list[bytes] | None
    corked_bytes: int

    def flush(self) -> None:
        """Write what is corked."""


class _NoCork:
    """Has none."""

    __slots__ = ("corked", "corked_bytes")

    def __init__(self) -> None:
        self.corked: list[bytes] | None = None
        self.corked_bytes = 0

    def flush(self) -> None:
        """Nothing is corked."""


_NO_CORK: Final = _NoCork()


class Link(Cork, Protocol):
    """The link by which a session's messages come and leave. What it counts only ever grows."""

    state: State
    barred: bool
    messages_in: int
    bytes_in: int
    watched_messages: int
    watched_octets: int

    @property
    def blocked(self) -> bool:
        """Whether what is sent has to wait."""

    @property
    def compress(self) -> int | bool:
        """Whether messages are compressed."""

    def send_text(self, payload: bytes) -> None:
        """Send one text message, at once or before all that waits. Does nothing unless the link is open."""

    def pass_on(self, payload: bytes) -> None:
        """Send one text message, after all that was sent so before. Does nothing unless the link is open."""

    def unbar(self) -> None:
        """Let others send again, unless so much waits that they may not."""


def _later(payload: bytes) -> None:
    """Write nothing now: there is no link, or others have to be written first."""


class Session:
    """The numbers of one connection, and what is kept for its peer. Every call is plain.

    ``digest`` is that of the secret, ``hold`` the seconds for which the connection is held, and ``max_bytes`` what may
    be kept. It is charged to ``account``. ``behind`` is how many messages the link has counted already that have a
    number, because they came behind the request. ``overrun`` is called if a message is lost that has not been written
    yet.

    ``told`` is the number of the peer's message that was acknowledged last, ``acked`` that of our own which the peer
    has acknowledged last. ``attempt`` is the greatest that a resume had. While it is
    ``clocked``, `time_is_up` will be called in time for what has come.
    """

    __slots__ = (
        "_account",
        "_before",
        "_charged",
        "_counted",
        "_gone",
        "_grain",
        "_kept",
        "_octets",
        "_overrun",
        "_quick",
        "_rewritten",
        "_skipped",
        "_uncounted",
        "_write",
        "acked",
        "attempt",
        "clocked",
        "digest",
        "established",
        "hold",
        "link",
        "max_bytes",
        "owes",
        "told",
    )

    def __init__(
        self,
        digest: bytes,
        link: Link,
        account: Account,
        *,
        hold: float,
        behind: int = 0,
        max_bytes: int,
        overrun: Callable[[Session], object],
    ) -> None:
        self.digest: Final = digest
        self.hold: Final = hold
        self.max_bytes: Final = max_bytes
        self.link = link
        self._write: Callable[[bytes], None] = link.send_text
        self._account = account
        self._overrun = overrun
        self._kept: list[bytes] = []
        """What is kept, in order. The first ``_gone`` of it are not kept any more: they are empty, and go later."""
        self._gone = self._before = 0
        """``_before`` is how many messages there were before those in the list."""
        self._octets = self._counted = self._uncounted = self._charged = 0
        """``_octets`` is the size of what is kept of the first ``_counted`` in the list. Of the others, those that were
        not `_quick`ly sent have ``_uncounted``, or less, because some may be kept no more."""
        self._quick: Cork = _NO_CORK
        """The link, if its state is such that short messages are just corked, if others are: nothing waits there."""
        self._grain = 0
        self.acked = self._rewritten = 0
        self._skipped = link.messages_in - behind
        """How many of the link's messages have no number, less those that came by the links before."""
        self.clocked = False
        self.owes = False
        """Whether an acknowledgement is to leave with the next message."""
        self._told(0)
        self.established = False
        """Whether the peer has ever acknowledged anything. Before that it may not know of the session."""
        self.attempt = 0
        self.adapt()

    # Our messages

    def send(self, payload: bytes) -> None:
        """Number one message and keep it, and write it unless others have to be written first."""
        self._kept.append(payload)
        size = len(payload)
        link = self._quick
        corked = link.corked
        if corked is None or size > 125:
            self._send(payload, size)
            return
        corked.append(SHORT_TEXT[size] + payload)  # as send_text() does, and all else is done once a write
        link.corked_bytes += size
        if link.corked_bytes > CORK_BYTES:
            link.flush()

    def _send(self, payload: bytes, size: int) -> None:
        """Send the first message of a write, or a long one, or any one while the link is not at its best."""
        write = self._write
        write(payload)
        if self.owes:
            self.tell()
        self._uncounted += size
        if self._uncounted > self._grain or len(self._kept) - self._counted > MANY:
            if self.crowded:
                self.link.barred = True
            self._lose()
            if self._first > self.written + 1:
                self._overrun(self)

    @property
    def sent(self) -> int:
        """The number of our last message."""
        return self._before + len(self._kept)

    @property
    def written(self) -> int:
        """The number of the last message that was written to the link, or to the last one if there is none."""
        return self.sent if self.caught_up else self._rewritten

    @property
    def _first(self) -> int:
        """The number of the first message that is kept, or would be."""
        return self._before + self._gone + 1

    @property
    def octets(self) -> int:
        """The size of what is kept."""
        kept = self._kept
        if self._counted < len(kept):
            self._octets += sum(map(len, kept[self._counted :]))
            self._counted = len(kept)
        self._uncounted = 0
        return self._octets

    def _settle(self) -> None:
        """Charge the account with what is counted now."""
        self._account.held += self._octets - self._charged
        self._charged = self._octets

    @property
    def crowded(self) -> bool:
        """Whether half of what may be kept waits for another link, or for its turn there."""
        return self.crowded_with(0)

    def crowded_with(self, octets: int) -> bool:
        """Whether that is so together with so many bytes which wait elsewhere until there is a link."""
        return not self.caught_up and self.octets + octets > self.max_bytes // 2

    def _lose(self) -> None:
        """Keep the latest messages alone, as many as there is room for. A loss of the link would be final then."""
        octets = self.octets
        self._settle()
        while octets and (octets > self.max_bytes or self._account.held > self._account.bound):
            self._drop(self._gone + 1)
            octets = self._octets
            self._settle()

    def _drop(self, end: int) -> None:
        """Keep the first messages of the list no longer, so many of them.

        The list moves up only if no more of it is left than goes: so a message costs the same, however many there are.
        """
        kept, begin, counted = self._kept, self._gone, self._counted
        if begin < counted:
            self._octets -= sum(map(len, kept[begin : min(end, counted)]))
        if end > counted:
            self._counted = end
        if 2 * end >= len(kept):
            del kept[:end]
            self._before += end
            self._counted -= end
            self._gone = 0
        else:
            kept[begin:end] = repeat(b"", end - begin)
            self._gone = end

    def acknowledged(self, number: int) -> bool:
        """Keep no more what the peer has had, up to this number. Returns False if that was never sent.

        A smaller number than before is ignored.
        """
        self.established = True
        end = number - self._before
        if end > len(self._kept):
            return False
        self.acked = max(self.acked, number)
        if end > self._gone:
            self._drop(end)
            if self._octets != self._charged:
                self._settle()
        return True

    def holds(self, end: Disconnect) -> bool:
        """Return whether a connection whose link ends so is held: everything is there that the peer has not had."""
        self._lose()
        return self.established and self.hold > 0 and self._first == self.acked + 1 and is_loss(end)

    def adapt(self) -> None:
        """Write so that all leaves in the order of its numbers: the link may have been blocked, or is no longer."""
        if not self.caught_up:
            return
        link, grain = self.link, min(GRAIN, self.max_bytes // 64)
        self._write = link.pass_on if link.blocked else link.send_text
        # What is corked at a time must be little beside what may be kept.
        is_quick = link.state is State.OPEN and grain == GRAIN and not (link.blocked or link.compress)
        self._quick = link if is_quick else _NO_CORK
        self._grain = grain

    def detach(self) -> None:
        """Write nothing more, because the link is lost."""
        self._rewritten = self.written
        self._pause()

    def _pause(self) -> None:
        self._write = _later
        self._quick = _NO_CORK
        self._grain = 0  # each message is looked at now

    def attach(self, link: Link) -> None:
        """Go on by another link, with what comes after the last message acknowledged. `rewrite` is to be called."""
        received = self.received
        self.link = link
        self._skipped = link.messages_in - received
        self._told(received)  # by the reply to the resume
        self._rewritten = self.acked
        if self.crowded:
            link.barred = True

    def rewrite(self) -> bool:
        """Write some of what is kept, as long as the peer reads. Returns whether to call it again soon.

        When all is written, each further message is written as it is sent.
        """
        link, left = self.link, AT_ONCE
        for payload in self._unwritten():
            if left <= 0 or link.blocked or link.state is not State.OPEN:
                return left <= 0
            self._rewritten += 1
            left -= len(payload)
            link.pass_on(payload)
        if link.state is State.OPEN:
            self._write = link.pass_on
            self.adapt()
            link.unbar()
        return False

    @property
    def caught_up(self) -> bool:
        """Whether nothing is left to be written again."""
        return self._write is not _later

    def _unwritten(self) -> Iterator[bytes]:
        return islice(self._kept, max(self._gone, self.written - self._before), None)

    def unwritten(self) -> list[bytes]:
        """Return the messages that were never written to a link."""
        return list(self._unwritten())

    def clear(self) -> None:
        """Keep nothing more, because the connection is over."""
        self._pause()
        self._before = self.sent
        self._kept.clear()
        self._gone = self._counted = self._octets = 0
        self._settle()

    # The peer's messages

    @property
    def received(self) -> int:
        """The number of the peer's last message that has come. The link has counted it."""
        return self.link.messages_in - self._skipped

    def discount(self) -> None:
        """Take back the number of the message that has just come."""
        self._skipped += 1

    def weigh(self) -> bool:
        """Acknowledge if so much has come that it is time, and something else leaves now with the acknowledgement.

        Returns whether the session ``owes`` one now, which leaves with the next message. `pay` is for the case that
        none is sent soon. A packet of its own would cost more than all else about an acknowledgement.
        """
        link = self.link
        since = link.messages_in - self._skipped - self.told
        if not since:
            return False
        if since < ACK_EVERY and link.bytes_in < link.watched_octets:
            link.watched_messages = link.messages_in + ACK_EVERY - since
        elif self.owes or link.corked is not None:
            self.tell()
        else:
            link.watched_messages = link.messages_in + ACK_EVERY
            self.owes = True
        return self.owes

    def pay(self) -> None:
        """Acknowledge if one is owed."""
        if self.owes and self.link.state is State.OPEN:
            self.tell()

    def time_is_up(self) -> None:
        """Acknowledge if anything has come. It is `clocked` no more."""
        self.clocked = False
        if self.received != self.told and self.link.state is State.OPEN:
            self.tell()
        else:
            self._told(self.told)

    def tell(self) -> None:
        """Tell the peer up to which number its messages have come."""
        link = self.link
        received = link.messages_in - self._skipped
        link.send_text(b'{"jsonrpc":"2.0","method":"connection.ack","params":{"received":%d}}' % received)
        self._told(received)

    def _told(self, received: int) -> None:
        link = self.link
        self.told = received
        self.owes = False
        link.watched_messages = link.messages_in + (ACK_EVERY if self.clocked else 1)
        link.watched_octets = link.bytes_in + self.max_bytes // 4
