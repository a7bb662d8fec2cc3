"""Routed calls: from one connection to another and back, byte for byte.

A call is an entry in two tables, the caller's and the node's, and in the one wheel for all deadlines. It has no task,
no future and no timer of its own. It ends in exactly one way: the node answers or is lost, the deadline passes, or the
caller cancels the call or is lost. An answer that is not JSON-RPC ends it, too.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import origin
from gateway.errors import RpcError
from gateway.names import RESERVED
from gateway.nodes.registry import Node, Nodes, Served
from gateway.rpc import jsonrpc
from gateway.rpc.calls import GARBLED, UNKNOWN, Call, Callee, Calls
from gateway.rpc.jsonrpc import ABSENT, Message
from gateway.rpc.method import Refusal
from gateway.rpc.replies import SMALL, UNREAD, Batch
from gateway.rpc.requests import Peer
from gateway.telemetry.counts import CALLER_LOST, NODE_ERROR, OK, Tally
from gateway.telemetry.lines import CALL_FAILED, Lines

logger = logging.getLogger(__name__)

NOT_DELIVERED: Final = "not_delivered"
"""The ``outcome`` that the caller is told if the node has not seen the call. It is safe to send it again."""

ENVELOPE: Final = 4096
"""More bytes than the gateway ever puts around a payload: an id, the names of a method and a caller, and punctuation.

A `traceparent` is not among them: it is the caller's, and may have any length.
"""

_OF_THE_NODE: Final = frozenset({errors.INTERNAL_ERROR.name, errors.TOO_LARGE.name, errors.NODE_LOST.name})
"""What ends a call because of what the node does. All else the caller can cause by itself."""


class Span(Protocol):
    """The trace of one call."""

    def finish(self, outcome: str) -> None:
        """End the span. ``outcome`` is ``ok``, ``error``, ``caller_lost``, or the name of the gateway's error. Once."""


class Tracing(Protocol):
    """Traces calls (`telemetry.tracing.Tracing`)."""

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[Span, Raw]:
        """Begin a span under the caller's. Returns it with the ``traceparent`` for the node, in JSON.

        ``node`` and ``caller`` are names. The caller's ``traceparent`` is in JSON, too; it is empty if there is none.
        """


class RoutedCall(msgspec.Struct, eq=False, gc=False):
    """One routed call in flight: a `calls.Call`, and a `requests.Request`.

    ``request_id`` is the id that the caller has given it, ``call_id`` the id under which the node has it, both in JSON.
    A struct costs half as much as an object. It is harmless that the garbage collector does not see it, because the
    tables that hold it, and to which it refers, let go of it at its end.
    """

    call_id: bytes
    slot: dict[Call, None]
    node: Node
    served: Served
    caller: Peer
    request_id: bytes
    batch: Batch | None
    tally: Tally
    router: Router
    span: Span | None
    begun: float
    report: bytes = b""
    """The latest report on it, if that waits until the caller has read."""
    held: bool = True
    """Whether it lives on while the node has no link."""

    @property
    def callee(self) -> Callee:
        """The node's connection."""
        return self.node.peer

    def answered(self, message: Message) -> None:
        """Make the node's answer the caller's reply."""
        if message.error is ABSENT:
            value = message.result
            outcome, parts = OK, (b'{"jsonrpc":"2.0","id":', self.request_id, b',"result":', value, b"}")
        else:
            value = message.error
            outcome, parts = NODE_ERROR, (b'{"jsonrpc":"2.0","id":', self.request_id, b',"error":', value, b"}")
        if (len(value) > self.router.roomy or self.caller.link.pressed) and (
            error := self.router.unfit(self.caller, parts, self.batch)
        ):
            self.failed(error)
        else:
            self._over(outcome, b"".join(parts))
            if self.caller.link.pressed and self.batch is None:
                self.caller.hold_up(self.node.peer.link)

    def failed(self, error: RpcError) -> None:
        """Tell the caller why there is no answer."""
        self._over(error.name, self.router.failed(self, error, error.name))

    def lost_link(self) -> None:
        """End the call if it is not to live on while the node has no link, which has just been lost."""
        if not self.held:
            self._end(errors.NODE_LOST, errors.NODE_LOST.name)

    def cancel(self, verdict: RpcError) -> None:
        """End the call, because the caller does not want it any more."""
        self._end(verdict, verdict.name)

    def abandon(self) -> None:
        """End the call, because the caller is gone."""
        self._end(errors.CANCELLED, CALLER_LOST)

    def drained(self) -> None:
        """Send the report that has waited, because the caller has read."""
        if self.report and not self.caller.link.pressed and not self.caller.crowded:
            report = self._take_report()
            self.caller.pass_on(report)

    def keep_report(self, report: bytes) -> int:
        """Keep a report until the caller has read. Returns how many are lost: the one before, and this if too large."""
        lost = bool(self._take_report())
        if not self.caller.hold(len(report)):
            return lost + 1
        self.report = report
        return lost

    def _take_report(self) -> bytes:
        report, self.report = self.report, b""
        self.caller.let_go(len(report))
        return report

    def _end(self, verdict: RpcError, outcome: str) -> None:
        reply = self.router.failed(self, verdict, outcome)
        self.router.calls.drop(self)  # not before the node is told: if it is leaving, this may close it
        self._over(outcome, reply)

    def _over(self, outcome: str, reply: bytes) -> None:
        """Count how the call ended, and give the caller its reply, alone or within its batch."""
        clock = self.router.clock  # read first, as in Router.send
        self.tally.ended(outcome, clock() - self.begun)
        if self.span is not None:
            self.span.finish(outcome)
        caller = self.caller
        if self.report:
            self._take_report()
            self.router.dropped["progress"] += 1
        del caller.running[self.request_id]
        if self.batch is None:
            send = caller.pass_on
            send(reply)
        else:
            self.batch.done(self.request_id, reply)
        if caller.leaving:
            caller.settled()


class NodeForward(msgspec.Struct, gc=False):
    """A `requests.Forward` to one node.

    It says which of the node's methods is called, with which parameters, in JSON, and how many seconds the call has.
    Unless it may be ``held`` it does not wait for a node that has no link.
    """

    router: Router
    node: Node
    served: Served
    params: bytes
    timeout: float
    held: bool

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Send the request on. Raises Refusal if too many are in flight."""
        if not self.held and self.node.peer.held is not None:
            raise self.router.refused(errors.NODE_LOST, self.node.name)
        where = self.node, self.served, self.params, self.timeout
        self.router.send(caller, *where, traceparent, request_id, batch, tally)
        if not self.held:
            call = caller.running.get(request_id)
            if isinstance(call, RoutedCall):
                call.held = False


class Router:
    """Sends requests on to nodes, and their answers back.

    ``call_timeout`` is in seconds; ``clock`` returns monotonic seconds. ``max_in_flight`` bounds what is in flight for
    one caller, ``max_node_in_flight`` the calls that one node has not answered, and ``max_message_bytes`` each message
    that the gateway makes of a payload. A payload of up to ``roomy`` bytes fits whatever is put around it.
    """

    def __init__(
        self,
        nodes: Nodes,
        calls: Calls,
        *,
        call_timeout: float,
        max_in_flight: int,
        max_node_in_flight: int,
        max_message_bytes: int,
        lines: Lines,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: Final = calls
        self._new_id, self._slot = calls.new_id, calls.slot
        self._nodes = nodes
        self._call_timeout = call_timeout
        self._max_in_flight = max_in_flight
        self._max_node_in_flight = max_node_in_flight
        self._max_message_bytes = max_message_bytes
        self.roomy: Final = max_message_bytes - ENVELOPE
        self.tally: Final = Tally(NODE_ERROR, CALLER_LOST, errors.TIMEOUT.name, errors.NODE_LOST.name)
        """What became of the requests whose method the gateway does not have itself."""
        self.dropped: Final = Counter({"notification": 0, "progress": 0})
        """How many messages were dropped because so much waits for their receiver, by kind."""
        self._tracing = tracing
        self._lines = lines
        self.clock: Final = clock

    # The way there

    def call(self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None) -> None:
        """Send a request on to a node that serves its method; without a ``request_id``, as a notification.

        Raises Refusal if no node serves the method, the caller may not call it, or too many requests are in flight.
        """
        method = message.method
        node = self._nodes.serving(method)
        if node is None:
            refusal = Refusal if method.startswith(RESERVED) else self.refused
            raise refusal(errors.METHOD_NOT_FOUND, method[: jsonrpc.MAX_DETAIL])
        served = node.methods[method]
        if not caller.principal.allows(served.scope):
            raise self.refused(errors.FORBIDDEN, served.scope[: jsonrpc.MAX_DETAIL])
        timeout, traceparent = self._call_timeout, message.traceparent
        self.send(caller, node, served, params, timeout, traceparent, request_id, batch, self.tally)

    def by_node(
        self, caller: Peer, name: str, method: str, params: bytes, *, timeout: float | None, held: bool
    ) -> NodeForward:
        """Return the `NodeForward` of a call to the node with this name.

        ``timeout`` is in seconds; None stands for the default. Unless it may be ``held``, the call ends if the node has
        no link. Raises Refusal if the caller may not call the method,
        there is no such node, or it does not serve the method.
        """
        self.check_scope(caller, method)
        node = self._nodes.named(name)
        if node is None:
            raise self.refused(errors.NOT_FOUND, f"no node {name[: jsonrpc.MAX_DETAIL]!r}")
        served = node.methods.get(method)
        if served is None:
            raise self.refused(errors.METHOD_NOT_FOUND, f"{node.name} has no {method[: jsonrpc.MAX_DETAIL]!r}")
        return NodeForward(self, node, served, params, self._call_timeout if timeout is None else timeout, held)

    def check_scope(self, caller: Peer, method: str) -> None:
        """Raise Refusal if the caller may not call a method."""
        scope = f"call:{method}"
        if not caller.principal.allows(scope):
            raise self.refused(errors.FORBIDDEN, scope[: jsonrpc.MAX_DETAIL])

    def refused(self, error: RpcError, detail: str = "", **data: object) -> Refusal:
        """Return the refusal of a call that no node gets."""
        return Refusal(error, detail, **data, outcome=NOT_DELIVERED)

    def overflows(self, parts: tuple[bytes | Raw, ...]) -> bool:
        """Return whether a message of these parts is larger than a message may be."""
        return sum(map(len, parts)) > self._max_message_bytes

    def unfit(self, caller: Peer, parts: tuple[bytes | Raw, ...], batch: Batch | None) -> RpcError | None:
        """Return why a reply of these parts is not sent: it is too large, or the caller does not read. None if it is.

        A reply within a batch is left to the batch.
        """
        if self.overflows(parts):
            return errors.TOO_LARGE
        return errors.OVERLOADED if batch is None and caller.unheeding and sum(map(len, parts)) > SMALL else None

    def overloaded(self, detail: str) -> Refusal:
        """Return the refusal of a call for which there is no room now."""
        return self.refused(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)

    def send(  # noqa: PLR0917 - on the hot path: no object only to pass them
        self,
        caller: Peer,
        node: Node,
        served: Served,
        params: bytes,
        timeout: float,
        traceparent: Raw,
        request_id: bytes,
        batch: Batch | None,
        tally: Tally,
    ) -> None:
        """Send a request on to a node, and enter it into both tables. Its outcome goes into ``tally``.

        A notification, which has an empty ``request_id``, enters no table, and is dropped if the node does not read.
        Raises Refusal if it does not read, if too many requests of the caller, or calls to the node, are in flight, and
        if the gateway's envelope would make the message too large.
        """
        if len(caller.running) >= self._max_in_flight:
            raise self.overloaded(f"{self._max_in_flight} requests are in flight")
        callee = node.peer
        calls = callee.calls
        if callee.link.barred:
            if request_id:
                raise self.overloaded(f"{node.name} has not read what was sent to it before")
            self.dropped["notification"] += 1
            tally.count(errors.OVERLOADED.name)
            return
        if request_id and len(calls) >= self._max_node_in_flight:
            raise self.overloaded(f"{node.name} has {self._max_node_in_flight} calls in flight")
        span = None
        if self._tracing is not None and request_id:
            names = served.name, node.name, caller.principal.name
            span, traceparent = self._tracing.begin(*names, bytes(traceparent))
        tail, roomy = b"}", self.roomy
        if node.context or traceparent is not ABSENT:
            tail = _tail(node, caller, timeout, traceparent)
            roomy -= len(tail)
        between = b',"params":' if params else b""
        if not request_id:
            parts = b'{"jsonrpc":"2.0","method":', served.encoded, between, params, tail
            if len(params) > roomy and self.overflows(parts):
                raise self._too_large(node, span)
            callee.pass_on(b"".join(parts))
            tally.count(OK)
            return
        # Read before they are called: CPython 3.11 is slow to call what is an attribute of an instance, not of a class.
        new_id, slot_for, clock, send = self._new_id, self._slot, self.clock, callee.pass_on
        call_id = new_id()
        whole = b'{"jsonrpc":"2.0","id":', call_id, b',"method":', served.encoded, between, params, tail
        if len(params) > roomy and self.overflows(whole):
            raise self._too_large(node, span)
        slot = slot_for(timeout)
        call = RoutedCall(call_id, slot, node, served, caller, request_id, batch, tally, self, span, clock())
        calls[call_id] = call  # as Calls.enter() does
        slot[call] = None
        caller.running[request_id] = call
        if batch is not None:
            batch.expect()
        send(b"".join(whole))

    def _too_large(self, node: Node, span: Span | None) -> Refusal:
        if span is not None:
            span.finish(errors.TOO_LARGE.name)
        return self.refused(errors.TOO_LARGE, f"{node.name} would get more than {self._max_message_bytes} bytes")

    # The way back

    def progress(self, callee: Peer, call_id: bytes, value: bytes) -> bool:
        """Pass a node's report on a call on to the caller, under the caller's id.

        ``call_id`` and ``value`` are JSON. A report that the caller's id would make too large is dropped. If the caller
        does not read, the latest report waits and those before it are dropped. Returns False if the node has no such
        call of a caller's in flight.
        """
        call = callee.calls.get(call_id)
        if not isinstance(call, RoutedCall):
            return False
        head = b'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":'
        parts = head, call.request_id, b',"value":', value, b"}}"
        if self.overflows(parts):
            self.dropped["progress"] += 1
        elif not (call.caller.link.pressed or call.report or call.caller.crowded):
            call.caller.pass_on(b"".join(parts))
        else:
            self.dropped["progress"] += call.keep_report(b"".join(parts))
        return True

    def failed(self, call: RoutedCall, error: RpcError, reason: str) -> bytes:
        """Return the reply to a call that the node has not answered. Logs it with ``reason``, and tells the node.

        A node that is lost is told nothing, nor is a node that has given an answer which cannot be passed on.
        """
        detail = f"{call.node.name}: {call.served.name}"
        if error is errors.INTERNAL_ERROR:
            detail += f": {GARBLED}"
        elif error is errors.TOO_LARGE:
            detail += f": the reply would have more than {self._max_message_bytes} bytes"
        elif error is errors.OVERLOADED:
            detail += f": {UNREAD}"
        elif error is not errors.NODE_NOT_REACHED and (error is not errors.NODE_LOST or call.node.peer.is_open):
            call.callee.pass_on(b'{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":%b}}' % call.call_id)
        outcome = NOT_DELIVERED if error is errors.NODE_NOT_REACHED else UNKNOWN
        self._log(call, reason, outcome)
        return jsonrpc.error_reply(call.request_id, error, detail, outcome=outcome)

    def lost_link(self, callee: Peer) -> None:
        """End those calls to a node that do not live on while it has no link."""
        for call in list(callee.calls.values()):
            if isinstance(call, RoutedCall):
                call.lost_link()

    def _log(self, call: RoutedCall, reason: str, outcome: str) -> None:
        caller, node = call.caller, call.node
        cause = node.peer if reason in _OF_THE_NODE else caller
        self._lines.log(
            logger,
            CALL_FAILED,
            origin(cause.principal, cause.remote),
            "call of %s failed: %s",
            call.served.name,
            reason,
            fields={
                "connId": caller.conn_id,
                "remote": caller.remote,
                "method": call.served.name,
                "node": node.name,
                "nodeConnId": node.peer.conn_id,
                "error": reason,
                "outcome": outcome,
                "duration": round(self.clock() - call.begun, 3),
            },
        )


def _tail(node: Node, caller: Peer, timeout: float, traceparent: Raw) -> bytes:
    """Return the end of a call that has members which JSON-RPC does not know."""
    context = b""
    if node.context:
        known = {"caller": caller.principal.name, "timeLeftMs": int(timeout * 1000)}
        context = b',"context":' + jsonrpc.encode(known)
    if traceparent is not ABSENT:
        context += b',"traceparent":' + traceparent
    return context + b"}"
