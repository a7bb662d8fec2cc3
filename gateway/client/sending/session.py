"""A connection to the gateway, over one link or over several in turn: its requests, its numbers and its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client.endings import CLIENT_CLOSE, CLOSED, LOST, SHUTDOWN, End
from gateway.client.errors import NOT_DELIVERED, CallError, ConnectionLost, failure, received
from gateway.client.link import Frame, Link
from gateway.client.sending.counting import ACK_WITHIN, Kept, is_counted
from gateway.client.sending.flows import Grant
from gateway.client.sending.outbox import KeepRequest, Outbox, Outgoing
from gateway.client.sending.pending import Exchange, OnReply, Pending, PendingTable, Progress
from gateway.client.sending.streams import Opening
from gateway.errors import INVALID_REQUEST, METHOD_NOT_FOUND
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

MAX_EARLY: Final = 64
"""How many frames may come before the answer to a resume: notices of the gateway, and nothing else."""

KEEP_AGAIN: Final = 1.0
"""Seconds after which a gateway that could not keep the connection for the moment is asked again."""


class _Ack(msgspec.Struct):
    received: int


class _Report(msgspec.Struct):
    id: Raw
    value: Raw


class _Resumed(msgspec.Struct, rename="camel"):
    conn_id: str
    received: int


class Session:
    """What goes on as long as the gateway knows the connection: with one link, or with several if it is kept.

    ``ids`` gives the ids of requests; it goes on from session to session. ``link`` is the link that is open, or None
    while the connection is held. ``welcome`` is the params of `gateway.welcome`; ``pending`` has the requests that are
    not answered.
    """

    def __init__(self, link: Link, ids: itertools.count[int]) -> None:
        self._ids = ids
        self._outbox = Outbox(link.write)
        self._counting = self._outbox.counting
        self._limits: dict[str, int] = {}
        self._end: End | None = None
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._attempt = 0
        self._begun = 0
        self._stuck: tuple[int, float] | None = None
        self.link: Link | None = link
        self.pending = PendingTable(self._outbox)
        self.welcome: dict[str, Any] = {}
        self._heed(link.welcome)

    def _heed(self, welcome: dict[str, Any]) -> None:
        self.welcome = welcome
        limits = welcome.get("limits")
        self._limits = {}
        if isinstance(limits, dict):
            self._limits = {name: value for name, value in limits.items() if isinstance(value, int) and value > 0}
        self._outbox.max_bytes = self._limits.get("maxMessageBytes")
        self.pending.most = self._limits.get("maxInFlight")

    @property
    def usable(self) -> bool:
        """Whether new requests may be sent, by this link or by the next one."""
        if self._end is not None or self._draining or self._outbox.broken:
            return False
        return self._counting.whole or (self.link is not None and self.link.alive)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._end is not None

    def limit(self, name: str, default: int) -> int:
        """Return one of the limits in the welcome; ``default`` if it names no such limit."""
        return self._limits.get(name, default)

    def drain(self) -> None:
        """Send nothing new, because the gateway has announced its end. Calls that wait for a place fail."""
        self._draining = True
        self.pending.drain(End(SHUTDOWN, "the gateway shuts down"))

    # Sending

    async def request(
        self, method: str, params: Raw | None, *, on_reply: OnReply | None = None, of_link: bool = False
    ) -> Any:
        """Send a request of the client's own at once, and return its result.

        ``of_link``: it asks for what lasts as long as the link, and fails with that. Raises `CallError`. Cancelling the
        task cancels the request too.
        """
        request_id, pending = self._id(), Pending(on_reply, of_link=of_link)
        encode = partial(jsonrpc.request, request_id, method, params)
        return await self._result(Exchange({request_id: pending}, Outgoing(), encode), self.pending.send)

    async def call(
        self,
        message: Outgoing,
        make: Callable[[], tuple[str, Raw | None]],
        progress: Progress | None = None,
        *,
        raw: bool = False,
    ) -> Any:
        """Send a request as soon as the gateway takes one more, and return its result.

        ``make`` returns the method and its params; it is called when it is time. ``raw``: see `Pending`. Raises and is
        cancelled as `request`.
        """
        request_id, pending = self._id(), Pending(progress=progress, raw=raw)
        exchange = Exchange({request_id: pending}, message, lambda: jsonrpc.request(request_id, *make()))
        return await self._result(exchange, self.pending.queue)

    async def stream(
        self,
        message: Outgoing,
        opening: Opening,
        make: Callable[[], tuple[str, dict[str, Any] | Raw | None, float]],
        *,
        raw: bool = False,
    ) -> Any:
        """Send a stream's call as `call` does, and return its result.

        ``make`` returns the method, its params, and the deadline of the stream in seconds.
        """
        request_id, pending = self._id(), Pending(flows=opening.flows, raw=raw)

        def encode() -> bytes:
            method, params, deadline = make()
            opening.begin(self, request_id, deadline)
            return opening.request(self, request_id, method, params)

        return await self._result(Exchange({request_id: pending}, message, encode), self.pending.queue)

    async def batch(self, message: Outgoing, requests: list[tuple[str, Raw | None]]) -> list[Any]:
        """Send requests in one message as soon as the gateway takes so many; return for each its result or `CallError`.

        Raises `CallError` for more than the gateway takes in one message, and `ConnectionLost` if it was not sent.
        """
        most = self.limit("maxBatch", len(requests))
        if len(requests) > most:
            raise failure(INVALID_REQUEST, f"a batch of more than {most}", outcome=NOT_DELIVERED)
        pending = {self._id(): Pending() for _ in requests}
        parts = [jsonrpc.request(request_id, *request) for request_id, request in zip(pending, requests, strict=True)]
        exchange = Exchange(pending, message, lambda: jsonrpc.batch(parts))
        with self._started(exchange, self.pending.queue):
            results = await asyncio.gather(*(one.answer for one in pending.values()), return_exceptions=True)
        if isinstance(results[0], ConnectionLost) and not message.left:
            raise results[0]
        return results

    def _id(self) -> bytes:
        return b"%d" % next(self._ids)

    async def _result(self, exchange: Exchange, begin: Callable[[Exchange], None]) -> Any:
        (pending,) = exchange.requests.values()
        with self._started(exchange, begin):
            return await pending.answer

    @contextlib.contextmanager
    def _started(self, exchange: Exchange, begin: Callable[[Exchange], None]) -> Iterator[None]:
        """Begin an exchange. What is not answered at the end of the block is cancelled, at the gateway too."""
        begin(exchange)
        try:
            yield
        finally:
            for request_id in self.pending.give_up(exchange):
                self.post(jsonrpc.notification("rpc.cancel", {"id": int(request_id)}))

    async def send(self, data: bytes, message: Outgoing | None = None) -> None:
        """Send one JSON text, and wait while the gateway reads too slowly, or while there is no link.

        If this is cancelled before the text has left, it is not sent. Raises `CallError` for a text that is too large,
        and `ConnectionLost`. ``message`` is what to send it as, if the caller has to know whether it has left.
        """
        message = message or Outgoing()
        message.data = data
        self._outbox.put(message)
        try:
            await message.written()
        finally:
            self._outbox.withdraw(message)

    async def reply(self, data: bytes) -> None:
        """Send one JSON text as `send` does, but even if this is cancelled. If the connection ends, it is lost."""
        message = Outgoing(data)
        with contextlib.suppress(ConnectionLost):
            self._outbox.put(message)
            await message.written()

    def post(self, data: bytes, *, counted: bool = True) -> None:
        """Send one JSON text without waiting. If the connection ends, the text is lost.

        Raises `CallError` for a text that is too large. If too much waits already, the link is given up.
        """
        with contextlib.suppress(ConnectionLost):
            self._outbox.put(Outgoing(data, posted=True, counted=counted))
        if self._outbox.overfull:
            self.end(End(LOST, "the gateway does not read"))

    def fits(self, data: bytes) -> bool:
        """Return whether the gateway takes a message of this size."""
        return self._outbox.fits(data)

    def notified(self, method: str, params: Raw) -> bool:
        """Take a notification about what goes on here. Returns False if it is another. Raises msgspec.DecodeError."""
        match method:
            case "rpc.progress":
                report = msgspec.json.decode(params, type=_Report)
                self.pending.progress(bytes(report.id), report.value)
            case "rpc.demand":
                self.pending.granted(msgspec.json.decode(params, type=Grant))
            case "connection.ack":
                self._acknowledged(params)
            case _:
                return False
        return True

    # Kept

    def keep(self) -> None:
        """Ask the gateway to keep the connection. What leaves after that request has a number.

        A gateway that does not keep connections refuses that, and all is as without it.
        """
        if self._end is not None or self.link is None:
            return
        pending = Pending(self._kept)
        encode = partial(jsonrpc.request, request_id := self._id(), "connection.keep", Raw(b"{}"))
        self.pending.send(Exchange({request_id: pending}, KeepRequest(), encode))
        pending.answer.add_done_callback(self._not_kept)

    def _kept(self, result: Any) -> None:
        """All that comes after the reply has a number. A loss is held from the acknowledgement on."""
        self._counting.established(msgspec.convert(result, Kept))
        self._acknowledge()

    def _not_kept(self, answer: asyncio.Future[Any]) -> None:
        error = answer.exception()
        if not isinstance(error, CallError) or isinstance(error, ConnectionLost):
            return
        self._counting.stop()
        if error.temporary:
            self._later(error.retry_after or KEEP_AGAIN, self.keep)
        elif error.code != METHOD_NOT_FOUND.code:
            logger.warning("the gateway does not keep the connection: %s", error)

    def heard(self, frame: Frame) -> None:
        """Count what has come, before it is looked at."""
        if not self._counting.secret or not (frame.batch or is_counted(frame.messages[0])):
            return
        if self._counting.heard(frame.octets):
            self._acknowledge()
        elif self._timer is None:
            self._later(ACK_WITHIN, self._acknowledge)

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, act)

    def _acknowledge(self) -> None:
        self._stop_timer()
        if self.link is not None and self._counting.secret:
            self.post(jsonrpc.notification("connection.ack", {"received": self._counting.tell()}), counted=False)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _acknowledged(self, params: Raw) -> None:
        number = msgspec.json.decode(params, type=_Ack).received
        if not self._counting.counts:
            return  # it was under way when this side gave up
        if not self._counting.acknowledged(number) and self.link is not None:
            self.link.give_up(End(1002, f"message {number} was acknowledged, {self._counting.sent} were sent"))

    @property
    def hold(self) -> float:
        """For how many seconds the gateway holds the connection after a loss."""
        return self._counting.hold

    @property
    def moved(self) -> bool:
        """Whether the link, or the last one, has brought messages of either side that have numbers."""
        return self._counting.acked + self._counting.received > self._begun

    def outlives(self, end: End) -> bool:
        """Return whether a connection whose link ends so may go on by another.

        A message that ends each link by which it is sent must not do so for ever: nothing new may have been
        acknowledged for `hold` seconds at most.
        """
        if self._end is not None or self._draining or end.code != LOST or not self._counting.whole:
            return False
        now, acked = asyncio.get_running_loop().time(), self._counting.acked
        if self._counting.sent == acked or self._stuck is None or self._stuck[0] != acked:
            self._stuck = acked, now
        return now - self._stuck[1] <= self.hold

    def detach(self, end: End) -> None:
        """Write nothing more to the link, which is lost, and fail what has ended with it."""
        self.link = None
        self._stop_timer()
        self._outbox.detach()
        self.pending.lose_link(end)

    async def resume(self, link: Link) -> tuple[list[Frame], CallError | None]:
        """Ask by a new link to go on by it: the first thing that is said there, and until the answer all.

        Returns what came before the answer, which is for an ordinary connection, and the refusal; None if the
        connection goes on. Raises `ConnectionLost` if the link ends, or the answer is not to be understood.
        """
        self._attempt += 1
        request_id, early = self._id(), list[Frame]()
        params = {"session": self._counting.secret, "received": self._counting.received, "attempt": self._attempt}
        await link.write(jsonrpc.request(request_id, "connection.resume", Raw(jsonrpc.encode(params))))
        while len(early) < MAX_EARLY and (frame := await link.receive()) is not None:
            if frame.batch or bytes(frame.messages[0].id) != request_id:
                early.append(frame)
            elif bytes(frame.messages[0].error):
                return early, received(frame.messages[0].error)
            else:
                self._attach(link, frame.messages[0].result)
                return [], None
        raise ConnectionLost(link.end, NOT_DELIVERED)

    def _attach(self, link: Link, result: Raw) -> None:
        """Go on by this link. Raises `ConnectionLost` if it has ended, or what the gateway says cannot be."""
        if self._end is not None:  # given up meanwhile; the gateway has to be told so
            raise ConnectionLost(End(CLIENT_CLOSE, "the connection was away for too long"), NOT_DELIVERED)
        try:
            resumed = msgspec.json.decode(result, type=_Resumed)
        except jsonrpc.UNDECODABLE as error:
            raise ConnectionLost(End(1002, f"the answer to a resume: {error}"), NOT_DELIVERED) from None
        if resumed.received < self._counting.acked or not self._counting.acknowledged(resumed.received):
            told = f"{resumed.received} messages have come to the gateway, {self._counting.sent} were sent"
            raise ConnectionLost(End(1002, told), NOT_DELIVERED)
        self._begun = self._counting.acked + self._counting.received
        self.link = link
        self._heed(link.welcome | {"connId": resumed.conn_id})
        self._outbox.attach(link.write)

    # The end

    def end(self, end: End) -> None:
        """End the connection: all that waits fails. Only the first call has an effect."""
        if self._end is not None:
            return
        self._finish(end)
        self._outbox.stop(end)
        if self.link is not None:
            self.link.give_up(end)

    def _finish(self, end: End) -> None:
        self._end = self._end or end
        self._stop_timer()
        self.pending.fail_all(self._end)

    async def close(self) -> None:
        """Fail what is not answered, send what waits, and close the link. Takes its ``close_timeout`` at most twice."""
        link = self.link
        if self._end is None:
            self._finish(CLOSED)
            if link is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(link.close_timeout / 2):
                        await self._outbox.flush()
        await self._outbox.close(self._end or CLOSED)
        if link is not None:
            await link.close()
