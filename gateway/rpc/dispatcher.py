"""Finds out what each message is, and runs the method that a request is for: the one table of methods.

A message is a request, a notification, a batch of these, or the answer to a call of the gateway's. A plain method is
answered at once, an ``async def`` runs as a task, and what the gateway does not have itself goes to the `Route`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from gateway import errors
from gateway.auth.scopes import origin
from gateway.deadlines import Sweep
from gateway.limits import Bucket, Rate
from gateway.names import RESERVED
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Calls
from gateway.rpc.deferred import Deferred
from gateway.rpc.jsonrpc import LARGE, MAX_ID, NO_METHOD, STRUCTURED, Invalid, Message, decode
from gateway.rpc.method import AUTHENTICATED, Continue, Method, Refusal, Then, collect, not_run
from gateway.rpc.replies import ANSWERED, SMALL, Batch, failure, fitting, outcome_of, send_then, success
from gateway.rpc.requests import Peer, Route, Running
from gateway.status import Phase, Status
from gateway.telemetry.counts import CALLER_LOST, OK, ROUTED, Tally
from gateway.telemetry.lines import DEFECT, Lines
from gateway.websocket.frames import Payload

logger = logging.getLogger(__name__)

NO_ROOM: Final = "the connection has no room for so much at once"
"""What is added to `OVERLOADED`'s own sentence if what is kept of requests is too much."""

SHORT: Final = 256
"""The most bytes of a message that is looked at for whether it may overtake others."""

_CALL: Final = re.compile(rb'\{"jsonrpc":"2\.0","id":([0-9]+),"method":')
"""What each call of the gateway's begins with: as the gateway has made it, nothing else has to be decoded."""

_NULL: Final = b"null"
_DRAINING: Final = Phase.DRAINING


class Dispatcher:
    """Answers JSON-RPC messages from one table of methods.

    ``max_in_flight`` bounds what is in flight for one connection, ``max_batch`` the elements of a batch, and ``rate``
    the messages of one connection, except for answers that a call was waiting for. ``call_timeout`` is in seconds;
    For ``clock``, ``spent`` and ``busy`` see `Deferred`.
    """

    def __init__(
        self,
        status: Status,
        calls: Calls,
        route: Route,
        *,
        max_in_flight: int,
        max_batch: int,
        call_timeout: float,
        lines: Lines,
        rate: Rate | None = None,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._status = status
        self._calls = calls
        self._route = route
        self._max_in_flight = max_in_flight
        self._max_batch = max_batch
        self._call_timeout = call_timeout
        self._lines = lines
        self._rate = rate
        self._clock = clock
        self._deferred = Deferred(self.dispatch, clock, spent, busy, failed=self._failed, overtakes=self._overtakes)
        self.attach: Final = self._deferred.attach
        self.behind: Final = self._deferred.behind
        self._methods: dict[str, Method] = {}
        self._in_turn: Message | None = None  # no parameter of _handle(): a keyword-only one would slow every call down
        self._sweep: Sweep[Running] = Sweep(_late)
        self.late_replies = 0
        """Responses for which no call was waiting."""

    @property
    def methods(self) -> Mapping[str, Method]:
        """The table: methods by name."""
        return self._methods

    def tallies(self) -> Iterable[tuple[str, Tally]]:
        """Yield what became of all requests: by name for each method of the table, under `ROUTED` for all others."""
        yield from ((name, entry.tally) for name, entry in self._methods.items())
        yield ROUTED, self._route.tally

    def add(self, source: object, *, own: bool = False) -> None:
        """Enter the methods that a module or an object declares, or a declared function itself.

        With ``own`` they are the gateway's own, which may have a reserved name. Raises ValueError for a name that is
        taken or reserved, and for a source without methods; raises TypeError for a wrong signature.
        """
        found = False
        for entry in collect(source):
            found = True
            if not own and entry.name.startswith(RESERVED):
                raise ValueError(f"method {entry.name}: names under {', '.join(RESERVED)} are the gateway's own")
            if entry.name in self._methods:
                raise ValueError(f"method {entry.name}: declared twice")
            self._methods[entry.name] = entry
        if not found:
            raise ValueError(f"{source!r} declares no method; see gateway.api")

    def permitted(self, peer: Peer) -> Iterable[Method]:
        """Return the methods that this connection may call, in the order of their names."""
        return [entry for _, entry in sorted(self._methods.items()) if _may(peer, entry)]

    def dispatch(self, peer: Peer, data: Payload) -> None:
        """Handle one text message of ``peer``, valid UTF-8. Never blocks; raises only for a defect.

        What is much work is done later. For what comes behind it in the same read see `attach`.
        """
        try:
            message = decode(data)
        except jsonrpc.UNDECODABLE as error:
            self._dispatch_other(peer, data, error.with_traceback(None))
            return
        if message.method is not NO_METHOD:
            reply = self._handle(peer, message, None)
        elif self._calls.answered(peer, message):
            return
        else:
            reply = self._response(peer, message)
        if reply is not None:
            peer.send(reply)

    def _dispatch_other(self, peer: Peer, data: Payload, error: Exception) -> None:
        if len(data) > LARGE:
            work = functools.partial(self._decode_other, peer, data, error)
            if not self._deferred.defer_large(peer, work, len(data)):
                peer.send(self._invalid(peer, Invalid(errors.OVERLOADED, NO_ROOM)))
            return
        if peer not in self._deferred.late:
            self._deferred.begin()
        self._decode_other(peer, data, error)

    def _decode_other(self, peer: Peer, data: Payload, error: Exception) -> None:
        found = jsonrpc.decode_other(data, error, self._max_batch)
        if not isinstance(found, Invalid):
            self._take(peer, found, Batch(peer))
        elif not self._calls.garbled(peer, found.call_id):
            peer.send(self._invalid(peer, found))

    def _take(self, peer: Peer, messages: Iterator[Message | Invalid | None], batch: Batch) -> None:
        """Handle elements of a batch until the turn is over. The rest has another one."""
        for message in messages:
            if isinstance(message, Invalid):
                if not self._calls.garbled(peer, message.call_id):
                    batch.add(message.id or _NULL, self._invalid(peer, message))
            elif message is not None:
                batch.add(b"" + message.id or _NULL, self._handled(peer, message, batch))
            if message is None or self._deferred.over:
                self._deferred.defer(peer, functools.partial(self._take, peer, messages, batch), batch)
                return
        batch.done(b"", None)

    def _take_large(self, peer: Peer, message: Message) -> None:
        """Handle a message that is `LARGE`, now in an event-loop iteration of its own."""
        self._in_turn = message
        reply = self._handle(peer, message, None)
        self._in_turn = None
        if reply is not None:
            peer.send(reply)

    def _failed(self, peer: Peer, error: Exception) -> None:
        """End a connection because of a defect of ours in its turn. At once, that would come back to its link."""
        known = {"connId": peer.conn_id, "remote": peer.remote}
        message, key = "a message could not be handled", origin(peer.principal, peer.remote)
        self._lines.log(logger, DEFECT, key, message, fields=known, exc_info=error)
        peer.end(errors.INTERNAL_FAILURE)

    def _invalid(self, peer: Peer, found: Invalid) -> bytes:
        try:
            self.pace(peer)
        except Refusal as refusal:
            return jsonrpc.error_reply(found.id, refusal.error, refusal.detail, **refusal.data)
        return jsonrpc.error_reply(found.id, found.error, found.detail)

    def pace(self, peer: Peer) -> None:
        """Count a message against the peer's rate. Raises Refusal if it is exceeded.

        A peer that never heeds these refusals is ended.
        """
        if self._rate is None:
            return
        now = self._clock()
        if peer.bucket is None:
            peer.bucket = Bucket(self._rate, now)
        wait = peer.bucket.take(now)
        if wait:
            if peer.bucket.ignored:
                peer.end(errors.FLOOD)
            raise not_run(errors.RATE_LIMITED, retryAfterMs=math.ceil(wait * 1000))

    def _overtakes(self, text: Payload) -> bool:
        """Return whether a message is a notification of the connection itself, which says nothing of any request.

        What it says must not come later than what has been read by then, because that is counted at once.
        """
        message = jsonrpc.decoded(bytes(text)) if len(text) <= SHORT else None
        method = None if message is None else self._methods.get(message.method)
        return method is not None and method.alone == "notification"

    def _handled(self, peer: Peer, message: Message, batch: Batch) -> bytes | None:
        """Handle an element of a batch. Returns the reply, or None if there is none, or none yet."""
        if message.method is not NO_METHOD:
            return self._handle(peer, message, batch)
        return None if self._calls.answered(peer, message) else self._response(peer, message)

    def _handle(self, peer: Peer, message: Message, batch: Batch | None) -> bytes | None:
        """Handle one request or notification. Returns the reply, or None if there is none, or none yet."""
        request_id = b"" + message.id
        name = message.method
        data = b"" + message.params
        method = self._methods.get(name)
        if (  # no call for what is usual
            (request_id and not (request_id.isdigit() and len(request_id) <= MAX_ID))
            or (data and (data[0] not in STRUCTURED or len(data) > LARGE))
            or (method is not None and method.alone is not None)
        ) and (stopped := self._stopped(peer, message, batch)) is not None:
            return stopped or None
        try:
            if self._rate is not None or self._status.phase is _DRAINING:
                self._admit(peer, method)
            if request_id in peer.running:
                raise Refusal(errors.CONFLICT, "this id is still in flight")
            if method is None:
                self._route.call(peer, message, data, request_id, batch)
                return None
            if method.scope is not AUTHENTICATED and not _may(peer, method):
                raise Refusal(errors.FORBIDDEN, method.scope or "no scope allows this method")
            params = data if method.decode is None else method.decode(data)
            if method.is_async:
                self._make_room(peer, message)
                work = method.handler(peer) if method.params is None else method.handler(peer, params)
                self._start(peer, method, work, message, batch)
                return None
            tally = method.tally
            begun = None if tally.untimed > 0 else self._clock()
            result = method.handler(peer) if method.params is None else method.handler(peer, params)
            if method.forwards:
                result.send(peer, request_id, message.traceparent, batch, tally)
                return None
            after = None
            if result.__class__ is Then:
                result, after = result.result, result.after
            reply = success(request_id, result) if request_id else None
            if begun is None:
                tally.untimed -= 1
            else:
                tally.at_once(self._clock() - begun)
            return reply if after is None else send_then(peer, reply, after, batch)
        except Continue as more:
            return self._continue(peer, method, more, message, batch) if method is not None else None
        except Exception as error:
            (self._route.tally if method is None else method.tally).count(outcome_of(error))
            return failure(peer, name, request_id, error, self._lines)

    def _stopped(self, peer: Peer, message: Message, batch: Batch | None) -> bytes | None:
        """Return the refusal of a message that is malformed, nothing for one that is put off, or None."""
        request_id, data, method = b"" + message.id, b"" + message.params, self._methods.get(message.method)
        wrong = _malformed(request_id, data, method, batch)
        if wrong is not None:
            return self._invalid(peer, wrong)
        if len(data) <= LARGE or method is None or method.decode is None or batch is not None:
            return None
        if message is self._in_turn:
            return None
        if self._deferred.defer_large(peer, functools.partial(self._take_large, peer, message), len(data)):
            return b""
        refusal = not_run(errors.OVERLOADED, NO_ROOM, retryAfterMs=errors.RETRY_BUSY_MS)
        method.tally.count(outcome_of(refusal))
        return failure(peer, method.name, request_id, refusal, self._lines) or b""

    def _admit(self, peer: Peer, method: Method | None) -> None:
        """Raise Refusal for a request that exceeds the rate, or comes while the gateway shuts down."""
        if method is not None and method.alone == "notification":
            return
        if method is None or method.paced:
            self.pace(peer)
        if self._status.phase is _DRAINING and (method is None or not method.while_draining):
            raise not_run(errors.DRAINING)

    def _response(self, peer: Peer, message: Message) -> bytes | None:
        """Count a response for which no call was waiting. Returns the refusal of a message that is not a response."""
        request_id = b"" + message.id
        if jsonrpc.is_response(message) and request_id and jsonrpc.may_be_id(request_id):
            self.late_replies += 1
            with suppress(Refusal):
                self.pace(peer)
            return None
        under = jsonrpc.answerable(request_id, jsonrpc.is_answer(message))
        return self._invalid(peer, Invalid(errors.INVALID_REQUEST, '"method" is missing', under))

    # Requests that take their time

    def _continue(
        self, peer: Peer, method: Method, more: Continue, message: Message, batch: Batch | None
    ) -> bytes | None:
        """Have a plain method's coroutine answer. Returns the reply if that is refused, otherwise None."""
        try:
            self._make_room(peer, message)
        except Refusal as refusal:
            method.tally.count(outcome_of(refusal))
            return failure(peer, method.name, b"" + message.id, refusal, self._lines)
        self._start(peer, method, more.work(), message, batch)
        return None

    def _make_room(self, peer: Peer, message: Message) -> None:
        """Have room for a request that takes its time. Raises Refusal if too much is in flight for this peer.

        What is large of it is held by the peer's account until `_finished`.
        """
        detail = ""
        if len(peer.running) >= self._max_in_flight:
            detail = f"{self._max_in_flight} requests are in flight"
        elif len(message.params) > SMALL and not peer.hold(len(message.params)):
            detail = NO_ROOM
        if detail:
            raise not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)

    def _start(
        self, peer: Peer, method: Method, work: Coroutine[Any, Any, Any], message: Message, batch: Batch | None
    ) -> None:
        running = Running(peer, method, message, batch, self._clock())
        running.task = asyncio.get_running_loop().create_task(work)
        peer.running[running.key] = running
        if batch is not None:
            batch.expect()
        self._sweep.begin(running, method.timeout or self._call_timeout)
        # A `finally` in the task itself would not do: one that is cancelled before its first step never gets there.
        running.task.add_done_callback(lambda task: self._finished(running, task))

    def _finished(self, running: Running, task: asyncio.Task[Any]) -> None:
        peer, batch = running.peer, running.batch
        peer.let_go(running.held)
        self._sweep.done(running)
        peer.running.pop(running.key, None)
        reply, outcome, after = _outcome(running, task, self._lines)
        if outcome is not None:
            running.method.tally.ended(outcome, self._clock() - running.begun)
        if batch is not None:
            if after is not None:
                batch.after.append(after)
            batch.done(running.request_id, reply if running.request_id else None)
        else:
            if running.request_id:
                reply = fitting(peer, running.request_id, reply)
                if reply is not None:
                    peer.send(reply)
            if after is not None:
                after()
        peer.settled()

    def cancel(self, peer: Peer, request_id: bytes) -> bool:
        """Cancel the peer's request with this id, in JSON. Returns False if none is in flight."""
        running = peer.running.get(request_id)
        if running is None or running is ANSWERED:
            return False
        running.cancel(errors.CANCELLED)
        return True

    def lost(self, peer: Peer, unwritten: Iterable[bytes] = ()) -> None:
        """End what is in flight for a connection that is over, and the calls that it has not answered.

        ``unwritten`` are the messages to it that were never written.
        """
        for running in list(peer.running.values()):
            running.abandon()
        self._calls.lost(peer, {found[1] for found in map(_CALL.match, unwritten) if found})


def _malformed(request_id: bytes, data: bytes, method: Method | None, batch: Batch | None) -> Invalid | None:
    """Return what to refuse a message as: by its id, its parameters or its form. None if nothing is wrong with it."""
    if request_id and not jsonrpc.may_be_id(request_id):
        right = f'"id" must be a string, an integer or null, of at most {MAX_ID} bytes'
        return Invalid(errors.INVALID_REQUEST, right)
    if method is not None and method.alone is not None and not _is_alone(method, request_id, batch):
        right = f"{method.name} must be a single {method.alone}, not in a batch"
        return Invalid(errors.INVALID_REQUEST, right, request_id or _NULL)
    if data and data[0] not in STRUCTURED:
        return Invalid(errors.INVALID_REQUEST, '"params" must be an array or an object', request_id or _NULL)
    return None


def _is_alone(method: Method, request_id: bytes, batch: Batch | None) -> bool:
    """Return whether a message has the form in which alone its method is taken."""
    return batch is None and bool(request_id) is (method.alone == "request")


def _late(running: Running) -> None:
    running.cancel(errors.TIMEOUT)


def _may(peer: Peer, method: Method) -> bool:
    return method.scope is not None and (method.scope == AUTHENTICATED or peer.principal.allows(method.scope))


_Outcome = tuple[bytes | None, str | None, Callable[[], None] | None]


def _outcome(running: Running, task: asyncio.Task[Any], lines: Lines) -> _Outcome:
    """Return what a finished task has come to: the reply, the outcome's name, and what to do after the reply.

    Reply and outcome are None for a request that has been sent on: they are still to come.
    """
    peer, name, request_id = running.peer, running.method.name, running.request_id
    if task.cancelled():
        verdict = running.verdict or errors.CANCELLED
        return jsonrpc.error_reply(request_id, verdict), CALLER_LOST if running.abandoned else verdict.name, None
    error = task.exception()
    if error is None:
        try:
            return _returned(running, task.result())
        except Exception as defect:
            error = defect
    return failure(peer, name, request_id, error, lines), outcome_of(error), None


def _returned(running: Running, result: Any) -> _Outcome:
    """Return the same for a task that has returned, rather than raised.

    Raises Refusal for a request that cannot be sent on, and what `replies.success` raises.
    """
    if running.method.forwards:
        if running.verdict is not None:  # the method did not heed that its request is no longer wanted
            raise Refusal(running.verdict)
        result.send(running.peer, running.request_id, running.traceparent, running.batch, running.method.tally)
        return None, None, None
    if result.__class__ is Then:
        return success(running.request_id, result.result), OK, result.after
    return success(running.request_id, result), OK, None
