"""The connections that outlive their link: which are kept, which are held, until when, and how they ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.connections.connection import Connection
from gateway.connections.session import Session, is_loss
from gateway.deadlines import Deadlines, Sweep
from gateway.errors import Disconnect
from gateway.rpc.method import Refusal

ACK_WITHIN: Final = 2.0
"""Seconds after a message of the peer's within which it is acknowledged."""

ACK_SOON: Final = 0.02
"""Seconds that an acknowledgement which is due may wait for a message with which it leaves."""

MAX_ENDED: Final = 1000
"""Of how many sessions that the gateway has ended it is remembered why."""

MAX_SECRET: Final = 100
"""Characters that are looked at in a session's secret. It has 43."""


class Ended(NamedTuple):
    """How the gateway has ended the connection of a session, and whose it was."""

    principal: str
    end: Disconnect


class Sessions:
    """All sessions. ``hold_timeout`` is in seconds, ``max_bytes`` is what may be kept for one connection.

    At most ``max_held`` connections are held; the one that is held longest goes first. ``held`` is called with each
    connection whose link is lost. ``behind`` returns how many of a connection's messages its link has counted that are
    not handled yet. ``resumes`` counts how attempts to come back have ended.
    """

    def __init__(
        self,
        *,
        hold_timeout: float,
        max_held: int,
        max_bytes: int,
        held: Callable[[Connection], None],
        behind: Callable[[Connection], int],
    ) -> None:
        self.hold_timeout: Final = hold_timeout
        self.resumes: Final = Counter(dict.fromkeys(("resumed", "unknown", "ended", "conflict", "invalid"), 0))
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._tell_held = held
        self._behind = behind
        self._kept: dict[bytes, Connection] = {}
        self._held: OrderedDict[Connection, None] = OrderedDict()
        self._held_of: Counter[str] = Counter()
        self._ends: Sweep[Connection] = Sweep(_too_late)
        self._acks: Deadlines[Connection] = Deadlines(ACK_WITHIN, _time_is_up)
        self._owed: Deadlines[Connection] = Deadlines(ACK_SOON, _pay)
        self._tell_overrun = self._overrun  # one for all sessions, to save memory
        self._ended: OrderedDict[bytes, Ended] = OrderedDict()
        self._draining = False

    @property
    def held(self) -> int:
        """How many connections are held."""
        return len(self._held)

    def held_of(self, principal: str) -> int:
        """How many connections of the principal with this name are held."""
        return self._held_of[principal]

    def left(self, connection: Connection) -> float | None:
        """Return the seconds for which a connection is still held; None if it is not held."""
        return self._ends.left(connection)

    # A kept connection

    def secret(self) -> str:
        """Return the secret of a new session: 256 random bits, as base64url."""
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()

    def keep(self, connection: Connection, secret: str, hold: float) -> None:
        """Begin to count, after the reply that names the secret. ``hold`` is in seconds."""
        if not connection.is_open or connection.session is not None:
            return
        session = Session(
            _digest(secret),
            connection.link,
            connection.account,
            hold=hold,
            behind=self._behind(connection),
            max_bytes=self._max_bytes,
            overrun=self._tell_overrun,
        )
        self._kept[session.digest] = connection
        connection.keep(session, self)
        if session.received:  # with the link's next read it might be too late
            self.after_read(connection)

    def _overrun(self, session: Session) -> None:
        """End a connection soon for which more was kept than may be, before it was written."""
        connection = self._kept.get(session.digest)
        if connection is not None:
            asyncio.get_running_loop().call_soon(_end_overrun, connection)

    @property
    def max_bytes(self) -> int:
        """What may be kept for one connection."""
        return self._max_bytes

    def acknowledged(self, connection: Connection, number: int) -> None:
        """Take an acknowledgement of the peer's, which is a message that does not count."""
        session = connection.session
        if session is None:
            raise Refusal(errors.CONFLICT, "this connection is not kept")
        session.discount()
        if not session.acknowledged(number):
            why = f"message {number} was acknowledged, {session.sent} were sent"
            connection.end(errors.PROTOCOL_ERROR._replace(reason=why[:123]))
        connection.let_streams_go_on()

    def after_read(self, connection: Connection) -> None:
        """See that the messages are acknowledged that a read has brought."""
        session = connection.session
        if session is None:
            return
        if not session.clocked and session.received != session.told:
            session.clocked = True
            self._acks.begin(connection)
        if session.weigh():
            self._owed.begin(connection)

    # Held

    def may_hold(self) -> bool:
        """Return whether a connection whose link is lost may be held."""
        return self._max_held > 0 and not self._draining

    def hold(self, connection: Connection, seconds: float) -> None:
        """Hold a connection whose link is lost, for so many seconds. If there are too many, the oldest goes."""
        if len(self._held) >= self._max_held:
            _too_late(next(iter(self._held)))
        self._held[connection] = None
        self._held_of[connection.principal.name] += 1
        self._ends.begin(connection, seconds)
        self._tell_held(connection)

    def make_room(self, fits: Callable[[Connection], bool]) -> bool:
        """End the connection that is held longest of those that fit. Returns whether there was one."""
        chosen = next(filter(fits, self._held), None)
        if chosen is not None:
            _too_late(chosen)
        return chosen is not None

    def _hold_no_more(self, connection: Connection) -> None:
        if connection in self._held:
            del self._held[connection]
            self._ends.done(connection)
            name = connection.principal.name
            self._held_of[name] -= 1
            if not self._held_of[name]:
                del self._held_of[name]

    def ended(self, connection: Connection, session: Session, end: Disconnect | None) -> None:
        """Forget the session of a connection that is over. Why is remembered if it is the gateway that has ended it."""
        self._acks.done(connection)
        self._hold_no_more(connection)
        self._kept.pop(session.digest, None)
        if end is not None and end.cause != errors.CLIENT_CLOSE.cause and not is_loss(end):
            self._ended[session.digest] = Ended(connection.principal.name, end)
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def drain(self) -> None:
        """End all that are held, and hold none from now on."""
        self._draining = True
        for connection in list(self._held):
            connection.end(errors.SHUTDOWN)

    # Back

    def find(self, secret: str, principal: Principal, received: int, attempt: int) -> Connection:
        """Return the connection of a session. Raises Refusal if it cannot go on.

        ``received`` is the number of the last message that the client has had, and acknowledges that one, because the
        first acknowledgement may have been lost with the link. ``attempt`` grows with each try.
        """
        digest = _digest(secret)
        connection = self._kept.get(digest)  # a digest cannot be guessed byte by byte, so this tells no time
        session = None if connection is None or not connection.is_open else connection.session
        if connection is None or session is None or connection.principal.name != principal.name:
            raise self._gone(digest, principal)
        if attempt < session.attempt:
            self.resumes["conflict"] += 1
            raise Refusal(errors.CONFLICT, f"attempt {session.attempt} has come already")
        if not session.acked <= received <= session.sent:
            self.resumes["invalid"] += 1
            right = f"received: must be from {session.acked} to {session.sent}"
            raise Refusal(errors.INVALID_PARAMS, right)
        session.attempt = attempt
        session.acknowledged(received)
        if not connection.outlives_link:
            raise self._gone(digest, principal)
        return connection

    def _gone(self, digest: bytes, principal: Principal) -> Refusal:
        ended = self._ended.get(digest)
        if ended is None or ended.principal != principal.name:
            self.resumes["unknown"] += 1
            return Refusal(errors.NOT_FOUND, "no such session")
        self.resumes["ended"] += 1
        return Refusal(errors.NOT_FOUND, "the session has ended", cause=ended.end.cause, closeCode=ended.end.code)

    def back(self, connection: Connection) -> None:
        """Note that a connection has another link."""
        self._hold_no_more(connection)
        self.resumes["resumed"] += 1


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret[:MAX_SECRET].encode("utf-8", "surrogatepass")).digest()


def _too_late(connection: Connection) -> None:
    if connection.held is not None:
        connection.finish(connection.held)


def _time_is_up(connection: Connection) -> None:
    if connection.session is not None:
        connection.session.time_is_up()


def _pay(connection: Connection) -> None:
    if connection.session is not None:
        connection.session.pay()


def _end_overrun(connection: Connection) -> None:
    connection.end(connection.held or errors.SLOW_CONSUMER)
