"""The connection of a client, which outlives its links: connecting, open, waiting to reconnect, closed."""

from __future__ import annotations

import asyncio
import enum
import inspect
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import aiohttp
from yarl import URL

from gateway.client.address import credential
from gateway.client.backoff import Backoff
from gateway.client.buffer import Buffer
from gateway.client.endings import CLOSED, LOST, MAX_PAUSE, REFUSED_CREDENTIAL, SHUTDOWN, End
from gateway.client.errors import NOT_DELIVERED, ConnectionLost
from gateway.client.link import Incoming, Link, Options, Refused, open_link, open_session

logger = logging.getLogger(__name__)

TokenSource = str | Callable[[], str | Awaitable[str]] | None

RECONNECT: Final = (0.5, 10.0)
"""The shortest and the longest pause, in seconds, after a gateway has shut down without saying when to come back."""

STATES: Final = 64
"""How many changes of the state wait for a slow reader of `Connection.states`; then the oldest is dropped."""


class State(enum.Enum):
    """The state of a client's connection. `Client.why` says why it is WAITING or CLOSED."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class Endpoint(Protocol):
    """Is told what happens on the connection. None of its methods may raise or block."""

    def opened(self, link: Link) -> None:
        """A link is open: ``link.welcome`` is set, and requests may be sent."""

    def received(self, link: Link, message: Incoming) -> None:
        """A message has arrived."""

    def lost(self, link: Link) -> None:
        """The link is lost; ``link.end`` says why."""

    def closed(self, error: ConnectionLost | None) -> None:
        """There will be no further link. ``error`` says why; None if this side has closed the connection."""


class Connection:
    """Keeps a link open: after each loss it makes another, as far as that can help.

    `run` is its life; ``token`` is asked for a credential at each attempt. ``link`` is the open link, or None, and
    ``state`` the current state. ``end`` says how the last link or attempt ended; it is None before that.
    """

    def __init__(
        self, options: Options, token: TokenSource, *, reconnect: bool, backoff: Backoff, endpoint: Endpoint
    ) -> None:
        self._options = options
        self._token = token
        self._reconnect = reconnect
        self._backoff = backoff
        self._endpoint = endpoint
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()
        self._watchers: set[Buffer[State]] = set()
        self._leaving = False
        self._come_back_at: float | None = None
        self._was_open = False
        self._sent: str | None = None
        self._was_refused = False
        self._told = ""
        self.link: Link | None = None
        self.state = State.CONNECTING
        self.end: End | None = None

    # Waiting for it

    async def usable(self) -> Link:
        """Wait for a link that takes requests, and return it. Raises `ConnectionLost` if there will be none."""
        while self.link is None or not self.link.usable:
            if self._leaving or self.state is State.CLOSED:
                raise ConnectionLost(self.end or CLOSED, NOT_DELIVERED)
            self._changed.clear()
            await self._changed.wait()
        return self.link

    async def states(self) -> AsyncIterator[State]:
        """Yield the state now, and then each new one; ends after CLOSED."""
        watcher: Buffer[State] = Buffer(STATES)
        watcher.put(self.state)
        if self.state is State.CLOSED:
            watcher.close()
        self._watchers.add(watcher)
        try:
            async for state in watcher:
                yield state
        finally:
            self._watchers.discard(watcher)

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed.set()
        for watcher in self._watchers:
            watcher.put(state)
            if state is State.CLOSED:
                watcher.close()

    # Its life

    async def run(self) -> None:
        """Connect, and reconnect after each loss, until `leave` is called or another attempt cannot help."""
        end = CLOSED
        try:
            async with open_session() as session:
                end = await self._keep_open(session)
        except Exception:
            logger.exception("the connection to %s has a defect", self._options.url)
            end = End(LOST, "a defect of this client")
        finally:
            self.end = CLOSED if self._leaving else end
            self._enter(State.CLOSED)
            self._endpoint.closed(None if self._leaving else ConnectionLost(end, NOT_DELIVERED))

    async def _keep_open(self, session: aiohttp.ClientSession) -> End:
        while True:
            self._enter(State.CONNECTING)
            end = self.end = await self._once(session)
            if self._leaving or not self._reconnect or not await self._another_may_help(end):
                return end
            self._enter(State.WAITING)
            await asyncio.sleep(self.pause(end))

    async def _another_may_help(self, end: End) -> bool:
        """Return whether another attempt may end in another way: it must not be final, or have another credential.

        A callable has one chance to give another credential than the one that was refused.
        """
        if not end.final:
            return True
        if end.code not in REFUSED_CREDENTIAL or not callable(self._token) or self._was_refused:
            return False
        self._was_refused = True
        try:
            return await self.token() != self._sent
        except Refused as refused:
            return not refused.end.final

    async def _once(self, session: aiohttp.ClientSession) -> End:
        """Make one link and read it to its end; return how it, or the attempt, ended."""
        try:
            self._sent = await self.token()
            link = await open_link(session, self._sent, self._options, self._ids)
        except Refused as refused:
            return self._failed(refused.end)
        try:
            self._opened(link)
            while messages := await link.receive():
                for message in messages:
                    self._endpoint.received(link, message)
        finally:
            self.link = None
            self._backoff.lost()
            await link.close()
            self._endpoint.lost(link)
        return link.end

    def _failed(self, end: End) -> End:
        """Return the end of an attempt that gave no link, and log it if it is news and there will be another one."""
        if self._was_open:
            # It was right before. Certificates are renewed, and names come back.
            end = end._replace(mistaken=False)
        if self._reconnect and not end.final and end.reason != self._told:
            self._told = end.reason
            logger.warning("no connection to %s: %s; trying again", URL(self._options.url).authority, end)
        return end

    async def token(self) -> str | None:
        """Return the credential, a fresh one from a callable.

        Raises `Refused` if the callable fails, takes too long, or returns what is no `credential`.
        """
        if self._token is None or isinstance(self._token, str):
            return self._token
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                given = self._token()
                token = await given if inspect.isawaitable(given) else given
        except Exception as error:
            logger.warning("the callable for the token has failed", exc_info=True)
            raise Refused(End(LOST, f"no token: {type(error).__name__}")) from None
        try:
            return credential(token)
        except (ValueError, AttributeError) as error:
            why = str(error) if isinstance(error, ValueError) else f"the callable returned {type(token).__name__}"
            raise Refused(End(LOST, f"no token: {why}", mistaken=True)) from None

    def _opened(self, link: Link) -> None:
        self.link = link
        self._was_open, self._was_refused, self._told = True, False, ""
        self._come_back_at = None
        self._backoff.opened()
        self._enter(State.OPEN)
        self._endpoint.opened(link)

    def draining(self, link: Link, reconnect_after: float) -> None:
        """The gateway shuts down: send nothing new on this link, and reconnect in ``reconnect_after`` seconds.

        Never sooner than after the shortest of `RECONNECT`, whatever the gateway says.
        """
        link.draining = True
        self._come_back_at = time.monotonic() + min(max(RECONNECT[0], reconnect_after), MAX_PAUSE)

    def pause(self, end: End) -> float:
        """Return how many seconds to wait before the next attempt. Forgets what `draining` has said."""
        come_back_at, self._come_back_at = self._come_back_at, None
        if come_back_at is not None:
            # By itself the link may last longer than that. Then nothing else would hold back one attempt after another.
            return max(come_back_at - time.monotonic(), self._backoff.pause())
        if end.code == SHUTDOWN:
            # All other clients have lost their links at the same moment.
            return self._backoff.between(*RECONNECT)
        return self._backoff.pause(end.retry_after or 0.0)

    async def leave(self) -> None:
        """Close the link and do not reconnect. Without a link `run` may still wait, and is to be cancelled."""
        self._leaving = True
        self._changed.set()
        if self.link is not None:
            await self.link.close()
