"""Requests that wait for their place or their answer, and the handle of a call that runs in the background."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client.buffer import Buffer
from gateway.client.endings import End
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost, received
from gateway.client.sending.flows import Flows, Grant
from gateway.client.sending.outbox import Outbox, Outgoing
from gateway.rpc.jsonrpc import UNDECODABLE

Progress = Callable[[Any], None]
OnReply = Callable[[Any], None]

PROGRESS: Final = 256
"""How many values of a call's progress wait for their reader; then the oldest is dropped."""

GIVEN_UP: Final = 10.0
"""How many seconds a request that was cancelled keeps its place if the gateway does not answer it."""


class Pending:
    """One request that waits for its response; ``answer`` is the future for it.

    ``on_reply`` is called with the decoded result at once, before any message that follows it is looked at;
    ``progress`` with each value that the node reports. ``of_link``: it asks for what lasts as long as the link.
    ``raw``: the answer is the result's JSON as it came, a Raw. ``flows``: it is a stream, with these.
    """

    __slots__ = ("answer", "flows", "of_link", "on_reply", "progress", "raw")

    def __init__(
        self,
        on_reply: OnReply | None = None,
        progress: Progress | None = None,
        *,
        of_link: bool = False,
        raw: bool = False,
        flows: Flows | None = None,
    ) -> None:
        self.flows = flows
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.of_link = of_link
        self.on_reply = on_reply
        self.progress = progress
        self.raw = raw

    def succeed(self, result: Raw) -> None:
        """Set the answer to the decoded result, or to an error if it cannot be decoded."""
        if self.answer.done():
            return
        if self.raw:
            self.answer.set_result(result.copy())  # it is a view of the whole message
            return
        try:
            value = msgspec.json.decode(result)
            if self.on_reply is not None:
                self.on_reply(value)
        except UNDECODABLE as error:  # too large a number, nested too deeply, or not what `on_reply` expects
            self.fail(CallError(0, f"The result cannot be decoded: {error}"))
            return
        self.answer.set_result(value)

    def fail(self, error: Exception) -> None:
        """Set the answer to the error. Does nothing if there is an answer already."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def forget(self) -> None:
        """Take no answer any more, and take back an error that no caller will see: asyncio would complain of it."""
        self.progress = self.flows = None
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()


class Exchange:
    """A message with one or more requests, by their ids. ``encode`` makes it once it is to be sent."""

    __slots__ = ("encode", "message", "requests")

    def __init__(self, requests: dict[bytes, Pending], message: Outgoing, encode: Callable[[], bytes]) -> None:
        self.requests = requests
        self.message = message
        self.encode = encode

    def fail(self, error: CallError) -> None:
        """Fail all its requests, each with an error of its own."""
        for pending in self.requests.values():
            pending.fail(copy.copy(error))


class PendingTable:
    """The requests of one connection: those that wait for a place, in their order, and those that wait for an answer.

    ``most`` is how many the gateway takes at a time. A request that is given up keeps its place until the gateway has
    answered it, because the gateway counts it until then.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._queue: OrderedDict[Exchange, None] = OrderedDict()
        self._sent: dict[bytes, tuple[Pending, Outgoing]] = {}
        self._given_up: dict[bytes, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._end: End | None = None
        self._draining: End | None = None
        self.most: int | None = None

    def __len__(self) -> int:
        """Return how many requests were sent and are not answered."""
        return len(self._sent)

    def send(self, exchange: Exchange) -> None:
        """Send requests at once, whether there is a place for them or not. They fail if that is not possible."""
        try:
            if self._end is not None:
                raise ConnectionLost(self._end, NOT_DELIVERED)
            exchange.message.data = exchange.encode()
            self._outbox.put(exchange.message)
        except CallError as error:
            exchange.fail(error)
        except Exception as error:
            # It is for the caller, even if this runs because another request has been answered.
            for pending in exchange.requests.values():
                pending.fail(error)
        else:
            for request_id, pending in exchange.requests.items():
                self._sent[request_id] = pending, exchange.message

    def queue(self, exchange: Exchange) -> None:
        """Send requests as soon as there is a place for them. They fail if the connection ends before, or drains."""
        if self._draining is not None:
            exchange.fail(ConnectionLost(self._draining, NOT_DELIVERED))
        else:
            self._queue[exchange] = None
            self._next()

    def _next(self) -> None:
        """Send what has a place. A message with more requests than the gateway takes at a time waits for all places."""
        while self._queue:
            exchange = next(iter(self._queue))
            if self._sent and self.most is not None and len(self._sent) + len(exchange.requests) > self.most:
                return
            del self._queue[exchange]
            self.send(exchange)

    def give_up(self, exchange: Exchange) -> list[bytes]:
        """Take no answers to these requests. Returns the ids of those that the gateway has to cancel."""
        self._queue.pop(exchange, None)
        self._outbox.withdraw(exchange.message)
        for pending in exchange.requests.values():
            pending.forget()
        unanswered = [request_id for request_id in exchange.requests if request_id in self._sent]
        if not exchange.message.left:
            for request_id in unanswered:
                del self._sent[request_id]
            unanswered = []
        self._keep_places(unanswered)
        self._next()
        return unanswered

    def _keep_places(self, unanswered: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self._given_up |= dict.fromkeys(unanswered, loop.time() + GIVEN_UP)
        if self._given_up and self._timer is None:
            self._timer = loop.call_later(GIVEN_UP, self._give_back)

    def _give_back(self) -> None:
        """Give back the places of requests that the gateway should have answered long ago."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for request_id in [one for one, until in self._given_up.items() if until <= now]:
            del self._given_up[request_id]
            self._sent.pop(request_id, None)
        left = self._given_up.values()
        self._timer = loop.call_later(min(left) - now, self._give_back) if left else None
        self._next()

    def answered(self, request_id: bytes, result: Raw, error: Raw) -> bool:
        """Give a response to its request. False if there is no such request."""
        pending, _ = self._sent.pop(request_id, (None, None))
        if pending is None:
            return False
        if self._given_up:
            self._given_up.pop(request_id, None)
        if bytes(error):
            pending.fail(received(error))
        else:
            pending.succeed(result)
        if self._queue:
            self._next()
        return True

    def progress(self, request_id: bytes, value: Raw) -> None:
        """Give a value that a node reports to its request. Does nothing if there is none, or it wants no progress.

        Raises what decoding raises. A stream whose node sends more than was granted, or what cannot be decoded, fails.
        """
        pending, _ = self._sent.get(request_id, (None, None))
        if pending is None:
            return
        if pending.flows is not None:
            if (overrun := pending.flows.put(value)) is not None:
                pending.fail(overrun)
        elif pending.progress is not None:
            pending.progress(msgspec.json.decode(value))

    def granted(self, grant: Grant) -> None:
        """Give a node's grant to its request. Does nothing if there is none, or it is no stream."""
        pending, _ = self._sent.get(bytes(grant.id), (None, None))
        if pending is not None and pending.flows is not None:
            pending.flows.granted(grant)

    def drain(self, end: End) -> None:
        """Queue no more requests, and fail those that wait for a place. ``end`` says why."""
        self._draining = end
        queue, self._queue = self._queue, OrderedDict()
        for exchange in queue:
            exchange.fail(ConnectionLost(end, NOT_DELIVERED))

    def lose_link(self, end: End) -> None:
        """Fail those requests that ask for what the next link does not have."""
        for pending, message in self._sent.values():
            if pending.of_link:
                pending.fail(ConnectionLost(end, UNKNOWN if message.left else NOT_DELIVERED))

    def fail_all(self, end: End) -> None:
        """Fail all requests because the connection has ended. Those that have not left were not delivered."""
        self.drain(end)
        self._end = end
        sent, self._sent = self._sent, {}
        for pending, message in sent.values():
            self._outbox.withdraw(message)
            pending.fail(ConnectionLost(end, UNKNOWN if message.left else NOT_DELIVERED))
        self._given_up.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Missed(msgspec.Struct, frozen=True):
    """Values of a call's progress that came faster than they were read, and are gone; ``count`` says how many."""

    count: int


class Reports:
    """The progress of a call: the latest 256 values, and before them a `Missed` for those that were dropped.

    An async iterator for one reader.
    """

    def __init__(self) -> None:
        self._values: Buffer[Any] = Buffer(PROGRESS, self._dropped)
        self._missed = 0
        self._held: list[Any] = []

    def put(self, value: Any) -> None:
        """Take a value that the node reports."""
        self._values.put(value)

    def close(self) -> None:
        """Take no more values. What is there can still be read."""
        self._values.close()

    def _dropped(self, value: Any) -> None:
        self._missed += 1

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> Any:
        if self._held:
            return self._held.pop()
        value = await anext(self._values)
        if not self._missed:
            return value
        # The value waits until the gap before it has been told. What is dropped meanwhile comes after it.
        self._held.append(value)
        missed, self._missed = Missed(self._missed), 0
        return missed


class Running:
    """A call that runs: await it for its result; ``async for`` yields the progress that the node reports.

    It may be awaited more than once. Cancelling a task that waits for the result or for progress cancels the call. Of
    the progress that is not read, the latest 256 values are kept; a `Missed` comes in the place of those before them.
    """

    def __init__(self, task: asyncio.Task[Any], reports: Reports) -> None:
        self._task = task
        self._reports = reports
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._reports.close()
        if not task.cancelled():
            task.exception()  # asyncio is not to complain if the caller never awaits it

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._reports)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the call, at the node too; awaiting it then raises CancelledError. Does nothing if it has ended."""
        self._task.cancel()
