"""The connection of a client, for all its life: connecting, open, away, waiting to reconnect, closed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from msgspec import Raw
from yarl import URL

from gateway.client.address import credential
from gateway.client.backoff import Backoff
from gateway.client.buffer import Buffer
from gateway.client.endings import CLOSED, LOST, MAX_PAUSE, REFUSED_CREDENTIAL, SHUTDOWN, End
from gateway.client.errors import NOT_DELIVERED, CallError, ConnectionLost
from gateway.client.link import Frame, Incoming, Link, Options, Refused, open_link, open_session
from gateway.client.sending.session import Session
from gateway.errors import DRAINING
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

TokenSource = str | Callable[[], str | Awaitable[str]] | None

RECONNECT: Final = (0.5, 10.0)
"""The shortest and the longest pause, in seconds, after a gateway has shut down without saying when to come back."""

AWAY: Final = (0.25, 4.0)
"""The lowest and the highest ceiling, in seconds, of the pauses while the connection is held."""

STATES: Final = 64
"""How many changes of the state wait for a slow reader of `Connection.states`; then the oldest is dropped."""


class _Draining(msgspec.Struct, rename="camel"):
    reconnect_after_ms: float = 0.0


class State(enum.Enum):
    """The state of a client's connection. `Client.why` says why it is AWAY, WAITING or CLOSED.

    AWAY: the link is lost, but the gateway holds the connection, so that the calls of both sides go on. If another link
    is there in time it is OPEN again; otherwise it is WAITING, and everything begins anew.
    """

    CONNECTING = "connecting"
    OPEN = "open"
    AWAY = "away"
    WAITING = "waiting"
    CLOSED = "closed"


class Endpoint(Protocol):
    """Is told what happens on the connection. None of its methods may raise or block."""

    def opened(self, session: Session) -> None:
        """A connection is open: ``session.welcome`` is set, and requests may be sent."""

    def received(self, session: Session, message: Incoming) -> None:
        """A message has arrived."""

    def suspended(self) -> None:
        """The link is lost, but the session is not: what the gateway ends with a link has to be asked for again."""

    def resumed(self, session: Session) -> None:
        """The session goes on by another link."""

    def lost(self) -> None:
        """The session has ended, after `suspended` or without that."""

    def closed(self, error: ConnectionLost | None) -> None:
        """There will be no further link. ``error`` says why; None if this side has closed the connection."""


class Connection:
    """Keeps a link open: after each loss it makes another, as far as that can help.

    `run` is its life; ``token`` is asked for a credential at each attempt. ``keep``: whether the gateway is asked to
    keep the connection from one link to the next. ``session`` is what goes on by the open link, or by the next one;
    otherwise it is None. ``state`` is the current state. ``end`` says how the last link or attempt ended; it is None
    before that.
    """

    def __init__(
        self,
        options: Options,
        token: TokenSource,
        *,
        reconnect: bool,
        keep: bool,
        backoff: Backoff,
        endpoint: Endpoint,
    ) -> None:
        self._options = options
        self._token = token
        self._reconnect = reconnect
        self._keep = keep and reconnect
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
        self._phase = State.CONNECTING
        self._too_late: asyncio.TimerHandle | None = None
        self._loss = End(LOST)
        self.session: Session | None = None
        self.state = State.CONNECTING
        self.end: End | None = None

    # Waiting for it

    async def usable(self) -> Session:
        """Wait for a connection that takes requests, and return it. Raises `ConnectionLost` if there will be none.

        One that is held takes them: they leave by the next link, in their order.
        """
        while self.session is None or not self.session.usable:
            if self.is_over:
                raise ConnectionLost(self.end or CLOSED, NOT_DELIVERED)
            self._changed.clear()
            await self._changed.wait()
        return self.session

    @property
    def is_over(self) -> bool:
        """Whether there will be no connection any more."""
        return self._leaving or self.state is State.CLOSED

    async def over_within(self, delay: float) -> None:
        """Wait ``delay`` seconds, but no longer than until it `is_over`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                while not self.is_over:
                    self._changed.clear()
                    await self._changed.wait()

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

    @property
    def is_held(self) -> bool:
        """Whether the link is lost, and the gateway holds the connection."""
        return self.session is not None and self.session.link is None

    def _enter(self, phase: State) -> None:
        """Enter a state. While the connection is held waiting and connecting are one, which is told once."""
        self._phase = phase
        state = State.AWAY if self.is_held and phase in (State.WAITING, State.CONNECTING) else phase
        if state is State.AWAY and self.state is State.AWAY:
            return
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
            async with open_session() as http:
                end = await self._keep_open(http)
        except Exception:
            logger.exception("the connection to %s has a defect", self._options.url)
            end = End(LOST, "a defect of this client")
        finally:
            self.end = CLOSED if self._leaving else end
            self._enter(State.CLOSED)
            self._give_up(self.end)
            self._endpoint.closed(None if self._leaving else ConnectionLost(end, NOT_DELIVERED))

    async def _keep_open(self, http: aiohttp.ClientSession) -> End:
        while True:
            self._enter(State.CONNECTING)
            end = self.end = await self._once(http)
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

    async def _once(self, http: aiohttp.ClientSession) -> End:
        """Make one link and read it to its end; return how it, or the attempt, ended."""
        try:
            self._sent = await self.token()
            link = await open_link(http, self._sent, self._options)
        except Refused as refused:
            return self._failed(refused.end)
        try:
            await self._read(link)
        except Refused as refused:
            await link.close(refused.end)
            return refused.end
        finally:
            self._lost(link)
            await link.close()
        return link.end

    async def _read(self, link: Link) -> None:
        """Let the connection that is held go on by this link, or open another one; then take what comes."""
        early = await self._resume(link)
        session = self.session
        if session is None or session.link is not link:
            session = self._opened(link)
        for one in early:
            self._take(session, one)
        while (frame := await link.receive()) is not None:
            self._take(session, frame)

    def _take(self, session: Session, frame: Frame) -> None:
        session.heard(frame)
        for message in frame.messages:
            self._endpoint.received(session, message)

    def _lost(self, link: Link) -> None:
        """Hold the connection, or end it, if this was its link."""
        session = self.session
        if session is None or session.link is not link:
            self._backoff.lost()
            return
        self._backoff.lost(helped=session.moved)
        end = link.end
        if self._leaving or not session.outlives(end):
            self._give_up(end)
            return
        self._loss = end
        session.detach(end)
        self._too_late = asyncio.get_running_loop().call_later(session.hold, self._give_up, end)
        self._endpoint.suspended()

    def _give_up(self, end: End) -> None:
        """End the session. What comes next begins anew."""
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
        session, self.session = self.session, None
        if session is not None:
            session.end(end)
            self._endpoint.lost()
        if self.state is State.AWAY:
            self._enter(self._phase)

    # Going on with another link

    async def _resume(self, link: Link) -> list[Frame]:
        """Let the connection that is held go on by this link. Returns what has come meanwhile for an ordinary one.

        Raises `Refused` if the link is of no use.
        """
        session = self.session
        if session is None:
            return []
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                early, refused = await session.resume(link)
        except ConnectionLost as lost:
            raise Refused(lost.end) from None
        except TimeoutError:
            raise Refused(End(LOST, f"no answer to a resume within {self._options.connect_timeout:g} s")) from None
        if refused is not None:
            self._refused(refused)
            return early
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
        self._connected()
        self._endpoint.resumed(session)
        return []

    def _refused(self, error: CallError) -> None:
        """The connection does not go on. Raises `Refused` if the link is not for another one, either."""
        data = error.data if isinstance(error.data, dict) else {}
        code = data.get("closeCode")
        if isinstance(code, int) and code >= 1000:
            # The gateway has ended it meanwhile, and the close frame had nowhere to go.
            end = End(code, str(data.get("cause", "")))
            self._give_up(end)
            raise Refused(end)
        if error.temporary and error.code != DRAINING.code:
            raise Refused(End(LOST, str(error), error.retry_after))
        self._give_up(self._loss)

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

    async def refresh(self, session: Session, delay: float) -> dict[str, Any]:
        """Refresh the credential on the open link after ``delay`` seconds; return the principal, empty after a failure.

        The gateway may announce the end as soon as the link is open; a new credential would be announced at once again.
        """
        principal: dict[str, Any] = {}
        await asyncio.sleep(delay)
        try:
            params = Raw(jsonrpc.encode({"token": await self.token()}))
            async with asyncio.timeout(self._options.connect_timeout):
                principal = await session.request("gateway.authenticate", params, of_link=True)
        except (CallError, Refused, TimeoutError) as error:
            # The gateway will end this link with 4004, and the next one asks for a credential again.
            logger.warning("the credential could not be refreshed: %s", error)
        return principal

    def _opened(self, link: Link) -> Session:
        session = self.session = Session(link, self._ids)
        if self._keep:
            session.keep()
        self._connected()
        self._endpoint.opened(session)
        return session

    def _connected(self) -> None:
        self._was_open, self._was_refused, self._told = True, False, ""
        self._come_back_at = None
        self._backoff.opened()
        self._enter(State.OPEN)

    def draining(self, session: Session, notice: Raw) -> None:
        """The gateway shuts down: send nothing new on this link, and reconnect when the notice's params say.

        Never sooner than after the shortest of `RECONNECT`, whatever they say. Raises msgspec.DecodeError.
        """
        reconnect_after = msgspec.json.decode(notice, type=_Draining).reconnect_after_ms / 1000
        session.drain()
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
        if self.is_held:
            return self._backoff.pause(end.retry_after or 0.0, within=AWAY)
        return self._backoff.pause(end.retry_after or 0.0)

    async def leave(self) -> None:
        """Close the link and do not reconnect. Without a link `run` may still wait, and is to be cancelled."""
        self._leaving = True
        self._changed.set()
        if self.session is not None:
            await self.session.close()
