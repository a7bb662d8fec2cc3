"""Gives what is much work event-loop iterations of its own, and keeps the order of each peer's messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.rpc.replies import ANSWERED, Batch
from gateway.rpc.requests import Peer
from gateway.websocket.frames import Payload

TURN: Final = 0.004
"""Seconds of work after which a turn ends, at the end of the message or of the batch's element that is handled then."""

PATIENCE: Final = 20
"""Event-loop iterations for which turns wait at most until work that others have left behind is done."""


class _Late:
    """What waits for a peer's turn: the rest of a message, and those that came behind it in the same read.

    ``held`` are the bytes that the peer's account holds for the message.
    """

    __slots__ = ("batch", "held", "texts", "work")

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None
        self.batch: Batch | None = None
        self.held = 0
        self.texts: deque[Payload] = deque()


class Receiver(Protocol):
    """What the messages of peers are handed to."""

    text: Callable[[Any, Payload], None]
    """Called with the peer and the message."""


class Deferred:
    """The peers that wait for a turn, one in an event-loop iteration, so that very many take no longer than one.

    Nothing more is read from a peer that waits. ``dispatch`` takes what came behind. ``clock`` returns monotonic
    seconds, ``spent`` those that the processor has spent on this thread: a process that had to wait for the processor
    has not worked for so long. ``busy`` returns whether a message has left work for later iterations: more of its kind
    would have to do that first, so turns wait. ``failed`` is called with a peer and what its work has raised: a defect
    of ours. Nothing waits for that peer any more then. ``overtakes`` returns whether a message may be dispatched before
    those that came before it.
    """

    def __init__(
        self,
        dispatch: Callable[[Peer, Payload], None],
        clock: Callable[[], float],
        spent: Callable[[], float],
        busy: Callable[[], bool],
        *,
        failed: Callable[[Peer, Exception], None],
        overtakes: Callable[[Payload], bool],
    ) -> None:
        self._dispatch = dispatch
        self._clock = clock
        self._spent = spent
        self._busy = busy
        self._failed = failed
        self._overtakes = overtakes
        self._waited = 0
        self._until = 0.0, 0.0
        self._receiver: Receiver | None = None
        self.late: dict[Peer, _Late] = {}
        """What waits, by peer."""

    def attach(self, receiver: Receiver) -> None:
        """Let the messages of this receiver be dispatched, those that came behind one that waits in their order.

        Nearly always none waits, so there is a function in between only then. Called once.
        """
        self._receiver = receiver
        receiver.text = self._dispatch

    def _check(self) -> None:
        """Have a function in between if anything waits."""
        if self._receiver is not None:
            self._receiver.text = self._take if self.late else self._dispatch

    def begin(self) -> None:
        """Count from here what a turn, or a message that may want one, takes."""
        self._until = self._clock() + TURN, self._spent() + TURN

    @property
    def over(self) -> bool:
        """Whether that was enough for one event-loop iteration."""
        until, spent = self._until
        return (self._clock() >= until and self._spent() >= spent) or self._busy()

    def _take(self, peer: Peer, text: Payload) -> None:
        """Dispatch a message, or keep it if it comes behind one that waits."""
        late = self.late.get(peer)
        if late is None or self._overtakes(text):
            self._dispatch(peer, text)
        else:
            late.texts.append(text)

    def defer_large(self, peer: Peer, work: Callable[[], None], octets: int) -> bool:
        """Let a message of so many bytes be handled in a turn. Returns False if its peer has no room for them."""
        if not peer.hold(octets):
            return False
        self.defer(peer, work)
        self.late[peer].held += octets
        return True

    def behind(self, peer: Peer) -> int:
        """Return how many messages of a peer have come behind one that waits, and are not handled yet."""
        late = self.late.get(peer)
        return 0 if late is None else len(late.texts)

    def defer(self, peer: Peer, work: Callable[[], None], batch: Batch | None = None) -> None:
        """Let the rest of the message that is being handled be done in a turn. ``batch`` is the one that it is of."""
        late = self.late.get(peer)
        if late is None:
            late = _Late()
            peer.wait()
            peer.running[late] = ANSWERED  # so that the connection does not leave meanwhile
            if not self.late:
                asyncio.get_running_loop().call_soon(self._next)
            self.late[peer] = late
            self._check()
        late.work, late.batch = work, batch

    def _next(self) -> None:
        if self._is_too_early():
            asyncio.get_running_loop().call_soon(self._next)
            return
        peer, late = next(iter(self.late.items()))
        batch = late.batch
        self.begin()
        try:
            self._go_on(peer, late)
        except Exception as error:
            late.work = late.batch = None
            late.texts.clear()
            self._failed(peer, error)
            if batch is not None:
                batch.done(b"", None)
        if late.work is None:
            peer.let_go(late.held)
            late.held = 0
        del self.late[peer]
        if late.work is not None or late.texts:
            self.late[peer] = late
        else:
            peer.running.pop(late, None)
            peer.go_on()
            peer.settled()
            self._check()
        if self.late:
            asyncio.get_running_loop().call_soon(self._next)

    def _go_on(self, peer: Peer, late: _Late) -> None:
        work, batch, late.work, late.batch = late.work, late.batch, None, None
        if peer.is_open:
            if work is not None:
                work()
            while late.texts and late.work is None and peer.is_open and not self.over:
                self._dispatch(peer, late.texts.popleft())
        elif batch is not None:
            batch.done(b"", None)
        if not peer.is_open:  # the work may have ended it: nothing is done for one that is over
            late.texts.clear()

    def _is_too_early(self) -> bool:
        """Return whether turns wait for what a message has left behind. They do in the iteration of its end, too."""
        busy, waited = self._busy(), self._waited
        self._waited = waited + 1 if busy and waited < PATIENCE else 0
        return bool(self._waited or (waited and not busy))
