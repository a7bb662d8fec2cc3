"""A connection to NATS that is made again whenever it is lost: plain publishing, subscriptions, requests.

Between a publish and the wire there is nothing but the cork of one event-loop iteration. While there is no link nothing
is kept: `Nats.publish` raises. What was not written when a link was lost is discarded, and never sent by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import Final, TypeVarTuple

from gateway.cluster import natswire
from gateway.cluster.natslink import (
    PING,
    AwayError,
    LateError,
    Link,
    LinkError,
    NatsError,
    NoRespondersError,
    Options,
    TooLargeError,
    connect,
)
from gateway.cluster.natswire import Address, Handler, Info
from gateway.deadlines import Wheel
from gateway.telemetry.lines import CLUSTER_DEFECT, Lines

logger = logging.getLogger(__name__)

CORK: Final = 1 << 16
"""Bytes that are corked at most. More leave at once, and not at the end of the event-loop iteration."""

SILENT: Final = 2
"""Unanswered pings after which a link is lost."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
"""Seconds before another attempt to connect, at most: the bound doubles with each failure."""

SETTLED: Final = 10.0
"""Seconds after which a link that is lost was no failure."""

NO_RESPONDERS: Final = 503

Arguments = TypeVarTuple("Arguments")

Answered = Callable[[NatsError | None, bytes, bytes], None]
"""Takes the end of a request, once: what went wrong, or None and the reply's raw headers or b"", and its payload."""


class Nats:
    """A client of NATS. All calls belong to the event loop that `start` was called in.

    The callbacks are plain functions, and one that raises is logged as a defect. ``on_joined`` is called with each
    link: all subscriptions are made by then, those that it makes come in its order, and `publish` may be used in it.
    ``on_lost`` is called when that link is lost, after the requests that waited for answers have failed. ``on_failed``
    is called for each attempt that came to nothing; attempts go on until `close`. ``on_error`` takes what the server
    forbids, such as ``Permissions Violation for Publish to "a.b"``; the link lives on. ``chance`` returns numbers from
    0 to 1.

    ``options`` may be replaced, and counts from the next attempt on, all but its ``urls``, which are those of the
    beginning. Raises ValueError for a wrong url.
    """

    def __init__(
        self,
        options: Options,
        lines: Lines,
        *,
        on_joined: Callable[[Info], None],
        on_lost: Callable[[NatsError], None],
        on_failed: Callable[[NatsError], None],
        on_error: Callable[[str], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.options = options
        self.on_read: Callable[[], None] = _nothing
        """Called when the messages of a read have been handled, all of them."""
        self.info: Info | None = None
        """What the server of the link says of itself; None while there is no link."""
        self._addresses = [natswire.address(url) for url in options.urls]
        self._lines = lines
        self._on_joined = on_joined
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_error = on_error
        self._chance = chance
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._most = -1
        """The largest payload; less than any has while there is no link, so `publish` looks at one thing only."""
        self._corked: list[bytes] = []
        self.by_hand = False
        """Whether whoever publishes now calls `draw` afterwards, so that nothing else has to."""
        self._octets = 0
        self._subscriptions: dict[bytes, tuple[bytes, Handler]] = {}
        self._handles = 0
        self._inbox = b"%b.%b." % (options.inbox, secrets.token_hex(11).encode())
        self._asked = 0
        self._waiting: dict[bytes, tuple[Answered, dict[bytes, None]]] = {}
        self._deadlines: Wheel[bytes] = Wheel(self._late)
        self._answers = self.subscribe(self._inbox + b"*", self._answered)

    def start(self) -> None:
        """Connect, and connect again whenever the link is lost, until `close`. Call it once."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def close(self, timeout: float = 1.0) -> None:
        """Leave, after what was published has reached the server, but in ``timeout`` seconds.

        Requests that wait for an answer fail; ``on_lost`` is not called. May be called twice, or without `start`.
        """
        if self._task is None:
            return
        with suppress(NatsError):
            await self.flush(timeout)
        self._task.cancel()
        await asyncio.wait({self._task})

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish a message. It leaves at the end of the event-loop iteration, in order with all else.

        Raises AwayError without a link, and TooLargeError beyond the server's ``max_payload``; nothing was sent then.
        No error does not mean that the message arrives. Subjects are not empty and have no blanks; this is not looked
        at here.
        """
        size = len(payload)
        if size > self._most:
            raise self._objection(size)
        between = b" " if reply else b""
        text = b"PUB %b %b%b%d\r\n%b\r\n" % (subject, reply, between, size, payload)
        if self.by_hand:
            self._corked.append(text)
        else:
            self._send(text)

    def subscribe(self, subject: bytes, handler: Handler, queue: bytes = b"") -> bytes:
        """Call ``handler(subject, reply, headers, payload)`` for each message, until `unsubscribe`. Returns a handle.

        The messages of all subscriptions come in the order of the wire, as plain calls. May be called at any time: the
        subscription is made with each link. Raises ValueError for a subject or queue that is empty or has blanks.
        """
        if subject.split() != [subject] or queue.split() not in ([], [queue]):
            raise ValueError(f"not a subject and a queue of NATS: {subject!r}, {queue!r}")
        self._handles += 1
        handle = b"%d" % self._handles
        line = b"SUB %b %b %b\r\n" % (subject, queue, handle) if queue else b"SUB %b %b\r\n" % (subject, handle)
        self._subscriptions[handle] = line, handler
        if self._link is not None:
            self._link.reader.handlers[handle] = handler
            self._send(line)
        return handle

    def unsubscribe(self, handle: bytes) -> None:
        """End a subscription: its handler is not called any more. Harmless for one that has ended."""
        if self._subscriptions.pop(handle, None) is not None and self._link is not None:
            del self._link.reader.handlers[handle]
            self._send(b"UNSUB %b\r\n" % handle)

    def ask(self, subject: bytes, payload: bytes, answered: Answered, timeout: float) -> None:
        """Publish a request. ``answered`` is called once, later: with the first reply, or with what went wrong.

        These are NoRespondersError, LateError (after ``timeout`` seconds, rounded up to a tenth) and LinkError. Raises
        what `publish` raises, and calls nothing then. How many wait at once is for the caller to bound.
        """
        size = len(payload)
        if size > self._most:
            raise self._objection(size)
        self._asked = asked = self._asked + 1
        inbox = self._inbox + b"%d" % asked
        text = b"PUB %b %b %d\r\n%b\r\n" % (subject, inbox, size, payload)
        if self._corked and self._octets < CORK:  # as in _send(), without a call of it
            self._corked.append(text)
            self._octets += len(text)
        else:
            self._send(text)
        slot = self._deadlines.slot(timeout)
        slot[inbox] = None
        self._waiting[inbox] = answered, slot

    async def request(self, subject: bytes, payload: bytes, timeout: float) -> tuple[bytes, bytes]:
        """Do the same, and return the reply's raw headers and its payload; raise what went wrong."""
        done: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()

        def answered(error: NatsError | None, headers: bytes, payload: bytes) -> None:
            if done.done():  # the caller was cancelled
                return
            if error is None:
                done.set_result((headers, payload))
            else:
                done.set_exception(error)

        self.ask(subject, payload, answered, timeout)
        return await done

    async def flush(self, timeout: float) -> None:
        """Wait until the server has handled all that was sent. Raises AwayError, LateError or LinkError."""
        link = self._link
        if link is None:
            raise self._objection(0)
        try:
            async with asyncio.timeout(timeout):
                await link.until(self._ping(link))
        except TimeoutError:
            raise LateError(f"{link.name}: no answer to a ping within {timeout:g} s") from None

    def draw(self) -> None:
        """Write what was published now, and not at the end of the event-loop iteration. Harmless at any time."""
        self.by_hand = False
        if self._corked:
            self._write()

    # Out

    def _objection(self, size: int) -> NatsError:
        if self._link is None:
            return AwayError("there is no connection to NATS")
        return TooLargeError(f"{size} bytes are more than the {self._most} that the NATS server takes")

    def _send(self, text: bytes) -> None:
        """Cork it, and have the cork drawn at the end of the event-loop iteration."""
        if not self._corked:
            self._loop.call_soon(self._write)
        self._corked.append(text)
        self._octets += len(text)
        if self._octets > CORK:
            self._write()

    def _write(self) -> None:
        """Write what is corked; without a link discard it, long before there is another one."""
        if not self._corked:
            return
        corked, self._corked = self._corked, []
        text = corked[0] if len(corked) == 1 else b"".join(corked)
        self._octets = 0
        link = self._link
        if link is not None and (waiting := link.write(text)) > self.options.max_outbox:
            link.end(LinkError(f"{link.name}: the server does not take what is sent to it, {waiting} bytes wait"))

    def _ping(self, link: Link) -> asyncio.Future[None]:
        self._send(PING)
        return link.pong()

    # In

    def _answered(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take a reply to `ask`."""
        waiting = self._waiting.pop(subject, None)
        if waiting is None:
            return  # late, or another reply
        answered, slot = waiting
        del slot[subject]
        if headers and natswire.status(headers) == NO_RESPONDERS:
            answered(NoRespondersError("no subscriber to the subject of the request"), b"", b"")
        else:
            answered(None, headers, payload)

    def _late(self, inbox: bytes) -> None:
        answered, _ = self._waiting.pop(inbox)
        self._tell(answered, LateError("no answer to the request in time"), b"", b"")

    def _failed(self, subject: bytes, error: Exception) -> None:
        """Log what is wrong with a handler."""
        fields = {"subject": subject.decode(errors="replace")}
        self._lines.log(logger, CLUSTER_DEFECT, "", "a handler has a defect", fields=fields, exc_info=error)

    def _handled(self) -> None:
        try:
            self.on_read()
        except Exception as error:
            self._failed(b"", error)

    def _forbidden(self, text: str) -> None:
        self._tell(self._on_error, text)

    def _tell(self, callback: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            self._failed(b"", error)

    # The links, one after another

    async def _run(self) -> None:
        failures = 0
        for address in cycle(self._addresses):
            if await self._attempt(address):
                failures = 0
            await asyncio.sleep(self._chance() * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 10)))
            failures += 1

    async def _attempt(self, address: Address) -> bool:
        """Connect, and stay until the link is lost. Returns whether it lasted, so that it was no failure."""
        name = f"{address.host}:{address.port}"
        link = Link(name, self._gone, self._informed, self._forbidden, self._failed, handled=self._handled)
        try:
            await connect(link, address, self.options)
            began = self._loop.time()
            self._join(link)
            await self._watch(link)
        except NatsError as error:
            self._tell(self._on_failed, error)
            return False
        except Exception as error:
            self._failed(b"", error)
            return False
        finally:
            link.end(LinkError("the client was closed"))
            self._fail_all(link.ended.result())
        self._tell(self._on_lost, link.ended.result())
        return self._loop.time() - began >= SETTLED

    def _join(self, link: Link) -> None:
        info = link.info
        assert info is not None
        self._link, self.info, self._most = link, info, info.max_payload
        link.reader.once = self._answers
        for handle, (line, handler) in self._subscriptions.items():
            link.reader.handlers[handle] = handler
            self._send(line)
        self._tell(self._on_joined, info)

    async def _watch(self, link: Link) -> None:
        """Ping until the link is lost."""
        silent = 0
        while not (await asyncio.wait({link.ended}, timeout=self.options.ping_interval))[0]:
            silent = 0 if link.heard else silent + 1
            link.heard = False
            if silent == SILENT:
                link.end(LinkError(f"{link.name}: the server does not answer pings"))
            else:
                self._ping(link)

    def _informed(self, info: Info) -> None:
        if self._link is not None:
            self.info, self._most = info, info.max_payload

    def _gone(self) -> None:
        """Be without a link, at the moment when it ends. The callbacks are called by the task that watches it."""
        self._link, self.info, self._most = None, None, -1

    def _fail_all(self, cause: LinkError) -> None:
        for inbox in list(self._waiting):
            answered, slot = self._waiting.pop(inbox)
            del slot[inbox]
            self._tell(answered, cause, b"", b"")


def _nothing() -> None:
    """Do nothing after a read."""
