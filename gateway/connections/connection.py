"""One connection: its connId and its principal, its link, its counts, and its two lines in the log.

A connection also has everything that is in flight. Its link, one WebSocket, may change. What a link says counts only
while it is the connection's own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiohttp import web

from gateway import errors
from gateway.auth.credentials import ANYBODY, Credential
from gateway.auth.scopes import NOBODY, origin
from gateway.connections.history import Closed
from gateway.connections.regime import Regime
from gateway.errors import Disconnect
from gateway.events.delivery import Subscriber
from gateway.limits import Bucket
from gateway.nodes.registry import Node
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Calls, call, failed
from gateway.rpc.calls import Link as Sender
from gateway.rpc.requests import Request
from gateway.telemetry.lines import CLOSED, DEFECT, OPENED
from gateway.websocket.frames import NOTHING_WRITTEN, State, Written
from gateway.websocket.link import Link
from gateway.websocket.owner import Receiver

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


class Connection:
    """One peer. ``serve(request)`` lives as long as the connection's first link. All else but ``call`` is plain.

    ``conn_id`` is the text of a UUID4. ``remote`` is ``addr:port``, ``[addr]:port`` or ``unix``. ``opened_at`` is in
    seconds since the epoch. ``running`` has the peer's requests in flight, by ``request_id``; a notification has a key
    of its own. ``calls`` has the calls to the peer, by ``call_id``. ``node`` is its registration, ``subscriber`` its
    subscriptions, and ``bucket`` its share of `limits.rate`. The end of a ``quiet`` connection is not logged, because
    very many end at once.
    """

    __slots__ = (
        "_accounts",
        "_held_bytes",
        "_held_up",
        "_lines",
        "_opened",
        "_patience",
        "_released",
        "account",
        "bucket",
        "calls",
        "conn_id",
        "credential",
        "endpoint",
        "leaving",
        "link",
        "node",
        "opened_at",
        "pass_on",
        "principal",
        "quiet",
        "remote",
        "running",
        "send",
        "subscriber",
    )

    def __init__(self, remote: str, endpoint: Endpoint, regime: Regime, credential: Credential = ANYBODY) -> None:
        self.conn_id: Final = new_id()
        self.remote: Final = remote
        self.credential = credential
        self.principal = credential.principal
        self.bucket: Bucket | None = None
        self.quiet = False
        self.node: Node | None = None
        self.subscriber: Subscriber | None = None
        self.running: dict[object, Request] = {}
        self.calls: dict[bytes, Call] = {}
        self._accounts = regime.accounts
        self.account = regime.accounts.of(self.principal.name)
        self._held_bytes = 0
        self._held_up: dict[Sender, None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self.opened_at = 0.0
        self._opened = 0.0
        self.leaving = False
        self._released = False
        self.endpoint = endpoint
        self._lines = regime.lines
        self.attach(Link(self, regime.cork, regime, regime.closings))

    def attach(self, link: Link) -> None:
        """Make ``link`` the connection's own: what is sent leaves by it, and only what it says counts."""
        link.owner = self
        link.charge_to(self.account)
        self.link = link
        self.send = link.send_text  # on the hot path: no call in between
        """Sends one JSON text. It does nothing unless the connection is open."""
        self.pass_on = link.pass_on
        """Sends one JSON text that comes from another connection. What `send` sends goes before it."""

    async def serve(self, request: web.Request) -> Link:
        """Upgrade ``request``, and return when the connection's first link is over. Called once.

        Returns that link, even if the connection has another one by then: aiohttp closes what it is given.
        """
        link = self.link
        try:
            await link.prepare(request)
        except ConnectionResetError:  # the peer left before the 101; aiohttp would take that for a defect
            return link
        await link.run()
        return link

    @property
    def send_frame(self) -> Callable[[bytes], None]:
        """Sends one frame made by `websocket.frames.text_frame`, as `pass_on` does. It can go to many connections."""
        return self.link.pass_frame_on

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past the outbox, in which nothing may wait.

        The subscriber counts what is written so in its ``past``, and tells `count` when it goes.
        """
        return self.link.transport.write

    def count(self, messages: int, octets: int) -> None:
        """Count what was written past the outbox, when the subscriber no longer does."""
        self.link.count(messages, octets)

    def notify(self, method: str, params: object) -> None:
        """Send a notification."""
        self.send(jsonrpc.notification(method, params))

    async def call(self, method: str, params: object = None, timeout: float = 30.0) -> Any:
        """Call a method of the client, and return its decoded result. ``timeout`` is in seconds.

        Raises `rpc.calls.CallError` with the client's error, `timeout` or `node_lost`. Cancelling it cancels the call.
        """
        if not self.is_open:
            raise failed(errors.NODE_LOST)
        return await call(self.endpoint.calls, self, method, params, timeout)

    # Pressure

    @property
    def stalled(self) -> bool:
        """Whether the peer does not read now."""
        return self.link.blocked

    @property
    def pressed(self) -> bool:
        """Whether so much waits for the peer that nothing more may be sent to it of others' own accord."""
        return self.link.barred

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for the peer, beside its outbox, until `let_go`. Returns False if there is no room.

        There is room for `limits.max_outbox_bytes`, together with what is in the outbox.
        """
        link, account = self.link, self.account
        if link.outbox_bytes + self._held_bytes + octets > link.outbox_bound or account.held + octets > account.bound:
            return False
        self._held_bytes += octets
        account.held += octets
        return True

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""
        self._held_bytes -= octets
        self.account.held -= octets

    def hold_up(self, sender: Sender) -> None:
        """Read no more from ``sender``, by which calls of the peer are answered, until the peer has read all.

        It is held up for `limits.outbox_timeout` at most. May be called again.
        """
        if self.unheeding or sender is self.link:
            return
        if self._held_up is None:
            self._held_up = {}
            self._patience = self.link.loop.call_later(self.link.outbox_timeout, self._lose_patience)
        if sender not in self._held_up:
            self._held_up[sender] = None
            sender.wait()

    @property
    def unheeding(self) -> bool:
        """Whether the peer has held others up for as long as it may, and has not read everything since."""
        return self._patience is not None and self._held_up is None

    def _lose_patience(self) -> None:
        """Let those go on that were held up. From now on what is too much is refused, until the peer has read."""
        held_up, self._held_up = self._held_up, None
        for link in held_up or ():
            link.go_on()

    def _relieve(self) -> None:
        """Let those go on that were held up, because the peer has read what waited for it, or is gone."""
        if self._patience is not None:
            self._patience.cancel()
            self._lose_patience()
            self._patience = None

    def feed(self) -> None:
        """Send the subscriber what it is behind with: some now, the rest in later event-loop iterations."""
        subscriber = self.subscriber
        if subscriber is not None and not subscriber.feeding:
            self._feed(subscriber)

    def _feed(self, subscriber: Subscriber) -> None:
        subscriber.feeding = subscriber.feed()
        if subscriber.feeding:
            self.link.loop.call_soon(self._feed, subscriber)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, and not on its way out."""
        return self.link.state is State.OPEN

    @property
    def in_flight(self) -> int:
        """How many requests of the peer, and calls to it, are not answered yet."""
        return len(self.running) + len(self.calls)

    @property
    def messages_in(self) -> int:
        """How many messages have come."""
        return self.link.messages_in

    @property
    def messages_out(self) -> int:
        """How many messages were sent."""
        return self.link.messages_out

    @property
    def bytes_in(self) -> int:
        """How many bytes have come."""
        return self.link.bytes_in

    @property
    def bytes_out(self) -> int:
        """How many bytes were sent, as frames."""
        return self.link.bytes_out

    @property
    def outbox_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken yet."""
        return self.link.outbox_bytes

    @property
    def handshake_left(self) -> float | None:
        """Seconds that the handshake may still take; None if it has no deadline. For `Endpoint.opened`."""
        return self.link.handshake_left

    def restrict(self, octets: int) -> None:
        """Accept no more than so many bytes from the peer until ``enter``."""
        self.link.allowance = octets

    @property
    def last_seen_at(self) -> float:
        """When the last byte came, in seconds since the epoch."""
        return self.opened_at + (self.link.last_read - self._opened)

    @property
    def duration(self) -> float:
        """Seconds since the opening, to the millisecond."""
        return round(self.link.loop.time() - self._opened, 3)

    def adopt(self, credential: Credential) -> None:
        """Take another credential. What is open stays as it is."""
        self.credential = credential
        self.principal = credential.principal
        account = self._accounts.of(self.principal.name)
        if account is not self.account:
            self.account.held -= self._held_bytes
            account.held += self._held_bytes
            self.account = account
            self.link.charge_to(account)

    def enter(self, endpoint: Endpoint) -> None:
        """Go on with ``endpoint`` and without an allowance, after the credential that was owed has been adopted."""
        self.endpoint = endpoint
        self.link.allowance = None
        self._log_opened()

    def settled(self) -> None:
        """Note that a request is no longer in flight. If the connection is leaving, this may be its end."""
        if self.leaving and not self.in_flight:
            self.link.end(errors.SHUTDOWN)

    def end(self, end: Disconnect) -> None:
        """End the connection, for the reason given. The first end wins, and later ones do nothing."""
        self.link.end(end)

    def abort(self) -> None:
        """Drop the transport at once."""
        self.link.abort()

    def leave_in(self, delay: float) -> None:
        """Drain: end with 1001 after ``delay`` seconds, or when the last request in flight is answered."""
        self.link.loop.call_later(delay, self._leave)

    def _leave(self) -> None:
        self.leaving = True
        self.settled()

    # From the link

    def on_open(self, link: Link) -> None:
        """Log the opening, unless a credential is owed, then let the endpoint say welcome."""
        self.opened_at = time.time()
        self._opened = link.loop.time()
        if self.principal is not NOBODY:
            self._log_opened()
        self.endpoint.opened(self)

    def _log_opened(self) -> None:
        fields = self._known() | {"principal": self.principal.name, "role": self.principal.role}
        self._lines.log(logger, OPENED, self._origin, "connection opened", fields=fields)

    @property
    def _origin(self) -> str:
        return origin(self.principal, self.remote)

    def _known(self) -> dict[str, object]:
        """Return the fields that every line about the connection has."""
        return {"connId": self.conn_id, "remote": self.remote}

    def on_defect(self, error: BaseException) -> None:
        """Log a defect of ours with its traceback. Nothing of it goes out on the wire."""
        message = "a message could not be handled"
        self._lines.log(logger, DEFECT, self._origin, message, fields=self._known(), exc_info=error)

    @property
    def past(self) -> Written:
        """What was written past the outbox for the subscriber."""
        return NOTHING_WRITTEN if self.subscriber is None else self.subscriber.past

    def on_blocked(self, link: Link) -> None:
        """Let events wait in the outbox, or drop them if the end has begun."""
        if link is self.link and self.subscriber is not None:
            self.subscriber.review()

    def on_drained(self, link: Link) -> None:
        """Let go on what has waited, because the peer has read what was sent to it."""
        if link is not self.link:
            return
        self._relieve()
        for request in self.running.values():
            request.drained()
        if self.subscriber is not None:
            self.subscriber.drained()
        # Not in the next event-loop iteration: before the outbox fills again the peer has a turn to be read.
        link.loop.call_soon(link.loop.call_soon, self._admit_others, link)

    def _admit_others(self, link: Link) -> None:
        link.unbar()
        if self.subscriber is not None:
            self.subscriber.review()
            self.feed()

    def on_ending(self, link: Link) -> None:
        """Release the connection, if its own link is no longer open."""
        if link is self.link:
            self._release()

    def on_closed(self, link: Link, end: Disconnect) -> None:
        """Release the connection, tell the endpoint, and log. Each step is done even if the one before raises."""
        if link is not self.link:
            return
        try:
            self._release()
        finally:
            closed = self.summary(end)
            try:
                self.endpoint.closed(self, closed)
            finally:
                if not self.quiet:
                    self._log_closed(closed)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._relieve()
        try:
            self.endpoint.release(self)
        except BaseException:  # a defect: what it has left undone is tried again when the connection is closed
            self._released = False
            raise

    def summary(self, end: Disconnect) -> Closed:
        """Return what is kept of the connection if this is its end, with the counts of this moment."""
        link = self.link
        return Closed(
            self.conn_id,
            self.principal,
            self.remote,
            time.time(),
            self.duration,
            end,
            link.messages_in,
            link.messages_out,
            link.bytes_in,
            link.bytes_out,
            self._origin,
        )

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


_entropy = bytearray()


def new_id() -> str:
    """Return a UUID of version 4 (RFC 9562 section 5.4) as text. The kernel is asked once for 256 of them."""
    if not _entropy:
        _entropy.extend(os.urandom(16 * 256))
    digits = _entropy[-16:].hex()
    del _entropy[-16:]
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
