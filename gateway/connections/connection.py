"""One connection: its connId and its principal, its link, its counts, and its two lines in the log.

A connection also has everything that is in flight. Its link, one WebSocket, may change. What a link says counts only
while it is the connection's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from aiohttp import web

from gateway import errors
from gateway.auth.credentials import ANYBODY, Credential
from gateway.auth.scopes import NOBODY
from gateway.connections.history import Closed
from gateway.connections.identity import Identity, new_id
from gateway.connections.regime import Regime
from gateway.connections.session import Session
from gateway.errors import Disconnect
from gateway.limits import Bucket
from gateway.names import OWN
from gateway.nodes.registry import Node
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Calls, call, failed
from gateway.rpc.requests import Request
from gateway.telemetry.counts import Traffic
from gateway.telemetry.lines import CLOSED, DEFECT, HELD, OPENED, RESUMED
from gateway.websocket.frames import State
from gateway.websocket.link import Link
from gateway.websocket.owner import NO_OWNER, Receiver

logger = logging.getLogger(__name__)


class Endpoint(Receiver, Protocol):
    """What handles a connection from its opening to its end, and knows what its messages mean.

    If ``opened``, ``text`` or ``binary`` raises, the link ends with 1011.
    """

    @property
    def calls(self) -> Calls:
        """The calls that the gateway has sent to its connections."""

    def opened(self, connection: Connection) -> None:
        """Register and welcome a connection, which is open now. Called once."""

    def release(self, connection: Connection) -> None:
        """End everything that others expect of a connection, because nothing more comes from it.

        Called once, before ``closed``.
        """

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection that is over. Called once, the last of all calls."""


class Keeper(Protocol):
    """What holds connections whose link is lost (`connections.sessions.Sessions`)."""

    def after_read(self, connection: Connection) -> None:
        """See that what a read has brought is acknowledged (`websocket.owner.Watcher`)."""

    def may_hold(self) -> bool:
        """Return whether a connection whose link is lost may be held."""

    def hold(self, connection: Connection, seconds: float) -> None:
        """Hold a connection for so many seconds. Called once for each loss, with the connection in `held` already."""

    def ended(self, connection: Connection, session: Session, end: Disconnect | None) -> None:
        """Forget the session of a connection that is over. May be called twice."""


class Connection(Identity):
    """One peer. ``serve(request)`` lives as long as the connection's first link. All else but ``call`` is plain.

    ``running`` has the peer's requests in flight, by ``request_id``; a notification has a key of its own. ``calls`` has
    the calls to the peer, by ``call_id``. ``node`` is its registration, and ``bucket`` its share of `limits.rate`. The
    end of a ``quiet`` connection is not logged, because very many end at once.

    A connection with a ``session`` outlives its link. While it has none it is ``held``, which says how it has lost it.
    ``introductions`` counts the messages that brought a credential.
    """

    __slots__ = (
        "_accounts",
        "_keeper",
        "_lines",
        "_over",
        "_released",
        "bucket",
        "calls",
        "credential",
        "endpoint",
        "held",
        "introductions",
        "leaving",
        "node",
        "pass_on",
        "quiet",
        "running",
        "send",
        "session",
    )

    send: Callable[[bytes], None]
    pass_on: Callable[[bytes], None]

    def __init__(self, remote: str, endpoint: Endpoint, regime: Regime, credential: Credential = ANYBODY) -> None:
        super().__init__(new_id(), remote, credential.principal, regime.accounts.of(credential.principal.name))
        self.credential = credential
        self.bucket: Bucket | None = None
        self.quiet = False
        self.node: Node | None = None
        self.session: Session | None = None
        self._keeper: Keeper | None = None
        self.held: Disconnect | None = None
        self.introductions = 0
        self.running: dict[object, Request] = {}
        self.calls: dict[bytes, Call] = {}
        self._accounts = regime.accounts
        self.leaving = False
        self._released = False
        self._over = False
        self.endpoint = endpoint
        self._lines = regime.lines
        self.attach(Link(self, regime.cork, regime, regime.closings))

    def attach(self, link: Link) -> None:
        """Make ``link`` the connection's own: what is sent leaves by it, and only what it says counts."""
        link.owner = self
        link.watcher = self._keeper
        link.charge_to(self.account)
        self.link = link
        self.send = link.send_text  # on the hot path: no call in between
        """Sends one JSON text. It does nothing unless the connection is open. A session numbers and keeps it."""
        self.pass_on = link.send_text if not link.blocked else link.pass_on
        """Sends one JSON text that comes from another connection. What `send` sends goes before it."""

    def serve(self, request: web.Request) -> Coroutine[Any, Any, Link]:
        """Upgrade ``request``. To be awaited, until the connection's first link is over. Called once.

        Returns that link, even if the connection has another one by then: aiohttp closes what it is given. It is no
        coroutine itself, because the frame of one would be held as long as the link.
        """
        link = self.link
        with suppress(ConnectionResetError):  # the peer left before the 101; aiohttp would take that for a defect
            link.upgrade(request)
        return link.run()

    def notify(self, method: str, params: object) -> None:
        """Send a notification. One of the gateway's own is for this link: it is not kept, but told anew if it holds."""
        send = self.link.send_text if method.startswith(OWN) else self.send
        send(jsonrpc.notification(method, params))

    async def call(self, method: str, params: object = None, timeout: float = 30.0) -> Any:
        """Call a method of the client, and return its decoded result. ``timeout`` is in seconds.

        Raises `rpc.calls.CallError` with the client's error, `timeout` or `node_lost`. Cancelling it cancels the call.
        """
        if not self.is_open:
            raise failed(errors.NODE_LOST)
        return await call(self.endpoint.calls, self, method, params, timeout)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, and not on its way out. It may be held."""
        return not self._over and (self.link.state is State.OPEN or self.outlives_link)

    @property
    def outlives_link(self) -> bool:
        """Whether the connection is held, or would be if its link were lost now."""
        return self.held is not None or self._may_be_held(self.link.ended)

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended without its link: that is another's, or was lost before."""
        return self._over

    @property
    def is_linked(self) -> bool:
        """Whether the connection is open, and has a link by which messages leave."""
        return self.link.state is State.OPEN and not self._over

    @property
    def crowded(self) -> bool:
        """Whether half of what may be kept for the peer waits for another link, or for its turn there."""
        return self.session is not None and self.session.crowded_with(self._held_bytes)

    @property
    def in_flight(self) -> int:
        """How many requests of the peer, and calls to it, are not answered yet."""
        return len(self.running) + len(self.calls)

    @property
    def handshake_left(self) -> float | None:
        """Seconds that the handshake may still take; None if it has no deadline. For `Endpoint.opened`."""
        return self.link.handshake_left

    def restrict(self, octets: int) -> None:
        """Accept no more than so many bytes from the peer until ``enter``."""
        self.link.allowance = octets

    def adopt(self, credential: Credential) -> None:
        """Take another credential. What is open stays as it is."""
        self.credential = credential
        self.principal = credential.principal
        account = self._accounts.of(self.principal.name)
        if account is not self.account:
            self.charge(account)

    def enter(self, endpoint: Endpoint) -> None:
        """Go on with ``endpoint`` and without an allowance, after the credential that was owed has been adopted."""
        self.endpoint = endpoint
        self.link.allowance = None
        self._log_opened()

    def settled(self) -> None:
        """Note that a request is no longer in flight. If the connection is leaving, this may be its end."""
        if self.leaving and not self.in_flight:
            self.end(errors.SHUTDOWN)

    def end(self, end: Disconnect) -> None:
        """End the connection, for the reason given. The first end wins, and later ones do nothing."""
        if self._over:
            return
        if self.link.state is not State.OPEN and self._hold(self.link.ended):
            self.finish(end)
        else:
            self.link.end(end)

    def abort(self) -> None:
        """Drop the transport at once."""
        if not self._over:
            self.link.abort()

    def leave_in(self, delay: float) -> None:
        """Drain: end with 1001 after ``delay`` seconds, or when the last request in flight is answered."""
        self.link.loop.call_later(delay, self._leave)

    def _leave(self) -> None:
        self.leaving = True
        self.settled()

    # The session

    def keep(self, session: Session, keeper: Keeper) -> None:
        """Outlive the link from now on. Called once."""
        self.session = session
        self._keeper = self.link.watcher = keeper
        self.send = self.pass_on = session.send

    def _may_be_held(self, end: Disconnect | None) -> bool:
        """Return whether the connection outlives a link that ends so; None if that is not known yet."""
        if self.session is None or self._keeper is None or self._over or self._released:
            return False
        return self.session.holds(end or errors.TRANSPORT_LOST) and self._keeper.may_hold()

    def _hold(self, end: Disconnect | None) -> bool:
        """Hold the connection if it outlives a link that ends so. Returns whether it is held."""
        if self.held is not None:
            return True
        if self.session is None or self._keeper is None or not self._may_be_held(end):
            return False
        self.held = end or errors.TRANSPORT_LOST
        self.session.detach()
        self.relieve()
        fields = self.known() | {"cause": self.held.cause}
        self._lines.log(logger, HELD, self.origin, "connection held: %s", self.held.cause, fields=fields)
        self._keeper.hold(self, self.session.hold)
        return self.held is not None  # hold() may have ended it

    def lose_link(self) -> bool:
        """Lose the link, if there still is one: the peer comes by another. Returns whether the connection is held."""
        return self._hold(errors.TRANSPORT_LOST)

    @property
    def is_fresh(self) -> bool:
        """Whether the message that is being handled is the peer's first, apart from those that brought a credential."""
        return self.session is None and self.messages_in - self.introductions == 1

    def take(self, newcomer: Connection, held_for: float) -> None:
        """Go on by the link of a new connection, which ends by that. It has lost its own ``held_for`` seconds ago."""
        session, link, old = self.session, newcomer.link, self.link
        if session is None or self.held is None:
            return
        before = Traffic()
        before.add(self)
        fields = {"link": newcomer.conn_id, "remote": newcomer.remote, "cause": self.held.cause, "heldFor": held_for}
        newcomer.finish(errors.RESUMED)
        before.subtract(link)
        old.owner = NO_OWNER
        self._before = before
        self.remote = newcomer.remote
        self.held = None
        self.attach(link)
        self.send = self.pass_on = session.send
        session.attach(link)
        if self.bucket is not None:
            self.bucket.grant(link.loop.time() - old.last_read)
        for _ in range(self._waits):
            link.wait()
        old.abort()
        fields = {"connId": self.conn_id} | fields
        self._lines.log(logger, RESUMED, self.origin, "connection resumed", fields=fields)

    def rewrite(self) -> None:
        """Send again what the peer has not had: some now, the rest in later event-loop iterations, as it reads."""
        session = self.session
        if session is None or session.caught_up or not self.is_linked:
            return
        if session.rewrite():
            self.link.loop.call_soon(self.rewrite)
        elif session.caught_up:
            self._let_reports_go()
            self.tell_of_streams()

    def _let_reports_go(self) -> None:
        for request in list(self.running.values()):
            request.drained()
        self.let_streams_go_on()

    def finish(self, end: Disconnect) -> None:
        """End the connection now, whatever its link does: it is held, or its link is another's. Called once."""
        self._over = True
        self.held = None
        self._close(end)

    # From the link

    def on_open(self, link: Link) -> None:
        """Log the opening, unless a credential is owed, then let the endpoint say welcome."""
        self.opened_at = time.time()
        self._opened = link.loop.time()
        if self.principal is not NOBODY:
            self._log_opened()
        self.endpoint.opened(self)

    def _log_opened(self) -> None:
        fields = self.known() | {"principal": self.principal.name, "role": self.principal.role}
        self._lines.log(logger, OPENED, self.origin, "connection opened", fields=fields)

    def on_defect(self, error: BaseException) -> None:
        """Log a defect of ours with its traceback. Nothing of it goes out on the wire."""
        message = "a message could not be handled"
        self._lines.log(logger, DEFECT, self.origin, message, fields=self.known(), exc_info=error)

    def on_blocked(self, link: Link) -> None:
        """Let events wait in the outbox, or drop them if the end has begun."""
        if link is not self.link:
            return
        if self.session is not None:
            self.session.adapt()
        else:
            self.pass_on = link.pass_on
        if self.subscriber is not None:
            self.subscriber.review()

    def on_drained(self, link: Link) -> None:
        """Let go on what has waited, because the peer has read what was sent to it."""
        if link is not self.link:
            return
        if self.session is not None:
            self.session.adapt()
        elif not link.blocked:
            self.pass_on = link.send_text
        self.relieve()
        self.rewrite()
        self._let_reports_go()
        if self.subscriber is not None:
            self.subscriber.drained()
        # Not in the next event-loop iteration: before the outbox fills again the peer has a turn to be read.
        link.loop.call_soon(link.loop.call_soon, self._admit_others, link)

    def _admit_others(self, link: Link) -> None:
        link.unbar()
        if self.crowded:
            link.barred = True
        self.tell_of_streams()
        if self.subscriber is not None:
            self.subscriber.review()
            self.feed()

    def on_ending(self, link: Link) -> None:
        """Hold the connection or release it, if its own link is no longer open."""
        if link is self.link and not self._over and not self._hold(link.ended):
            self._release(link.ended)

    def on_closed(self, link: Link, end: Disconnect) -> None:
        """Hold the connection, unless this is its end."""
        if link is self.link and not self._over and not self._hold(end):
            self._close(end)

    def _close(self, end: Disconnect) -> None:
        """Release the connection, tell the endpoint, and log. Each step is done even if the one before raises."""
        try:
            self._release(end)
        finally:
            closed = self.summary(end)
            try:
                self.endpoint.closed(self, closed)
            finally:
                if not self.quiet:
                    self._log_closed(closed)

    def _release(self, end: Disconnect | None) -> None:
        if self._released:
            return
        self._released = True
        self.relieve()
        if self.session is not None:
            self.send = self.pass_on = _nothing
        try:
            self.endpoint.release(self)
            if self.session is not None and self._keeper is not None:
                self._keeper.ended(self, self.session, end)
                self.session.clear()
        except BaseException:  # a defect: what it has left undone is tried again when the connection is closed
            self._released = False
            raise

    def _log_closed(self, closed: Closed) -> None:
        message, end = "connection closed: %s", closed.end
        fields = {
            "connId": closed.conn_id,
            "remote": closed.remote,
            "principal": closed.principal.name,
            "duration": closed.duration,
            "code": end.code,
            "reason": end.reason,
            "cause": end.cause,
            "messagesIn": closed.messages_in,
            "messagesOut": closed.messages_out,
            "bytesIn": closed.bytes_in,
            "bytesOut": closed.bytes_out,
        }
        if end.cause == errors.SHUTDOWN.cause:  # once a connection, at the end of the process: all of them are logged
            logger.info(message, end.cause, extra={"event": "connection.closed", **fields})
        else:
            self._lines.log(logger, CLOSED, closed.origin, message, end.cause, fields=fields)


def _nothing(payload: bytes) -> None:
    """Send nothing, because the connection is over."""
