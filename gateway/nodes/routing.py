"""Routed calls: from one connection to another and back, byte for byte.

A call is an entry in two tables, the caller's and the node's, and in one sweep for all deadlines: no task, no future
and no timer of its own. It ends in exactly one way: the node's answer, the node's loss, the deadline, or a
cancellation, by the caller or by its loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.errors import RpcError
from gateway.limits import Sampler
from gateway.names import RESERVED
from gateway.nodes.registry import Node, Nodes, Served
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Callee, Calls
from gateway.rpc.dispatcher import Peer
from gateway.rpc.jsonrpc import ABSENT, Message
from gateway.rpc.method import Refusal
from gateway.rpc.replies import Batch
from gateway.telemetry.counts import CALLER_LOST, NODE_ERROR, OK, Tally

logger = logging.getLogger(__name__)

NOT_DELIVERED: Final = "not_delivered"
"""The ``outcome`` of a call that the node has not seen: it is safe to send it again."""

UNKNOWN: Final = "unknown"
"""The ``outcome`` of a call that the node may have run."""

FAILURES: Final = (20, 10.0)
"""How many failed calls of one connection are logged in how many seconds; the rest is counted."""


class Span(Protocol):
    """One call, as it is traced."""

    def finish(self, outcome: str) -> None:
        """The call is over: ``ok``, ``error``, or the name of the gateway's error. Once."""


class Tracing(Protocol):
    """Traces calls; see `gateway.telemetry.tracing`."""

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[Span, Raw]:
        """A span under the caller's, and the ``traceparent`` for the node, in JSON."""


class RoutedCall(msgspec.Struct, eq=False, gc=False):
    """One routed call in flight. In the caller's table it stands where a task of the gateway's own would.

    ``request_id`` is the id that the caller has given it, ``call_id`` the one under which the node has it, both in
    JSON. A struct costs half as much as an object. It is harmless that the garbage collector does not see it, because
    the tables that hold it, and that it refers to, let go of it at its end.
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

    @property
    def callee(self) -> Callee:
        """The node's connection."""
        return self.node.peer

    def answered(self, message: Message) -> None:
        """The node's answer: the caller's reply."""
        if message.error is ABSENT:
            end, parts = OK, (b'{"jsonrpc":"2.0","id":', self.request_id, b',"result":', message.result, b"}")
        else:
            end, parts = NODE_ERROR, (b'{"jsonrpc":"2.0","id":', self.request_id, b',"error":', message.error, b"}")
        self._over(end, b"".join(parts))

    def failed(self, error: RpcError) -> None:
        """There is no answer."""
        self._over(error.name, self.router.failed(self, error, error.name))

    def cancel(self, verdict: RpcError) -> None:
        """The caller does not want it any more."""
        self._end(verdict, verdict.name)

    def abandon(self) -> None:
        """The caller is gone."""
        self._end(errors.CANCELLED, CALLER_LOST)

    def _end(self, verdict: RpcError, end: str) -> None:
        reply = self.router.failed(self, verdict, end)
        self.router.calls.drop(self)  # not before the node is told: one that is leaving may be closed by it
        self._over(end, reply)

    def _over(self, end: str, reply: bytes) -> None:
        """Count how it ended, and hand the caller its reply, on its own or within its batch."""
        clock = self.router.clock  # read first, as in Router.send
        self.tally.ended(end, clock() - self.begun)
        if self.span is not None:
            self.span.finish(end)
        caller = self.caller
        del caller.running[self.request_id]
        if self.batch is None:
            send = caller.send
            send(reply)
        else:
            self.batch.done(reply)
        if caller.leaving:
            caller.settled()


class NodeForward(msgspec.Struct, gc=False):
    """A `dispatcher.Forward` to one node: to which of its methods, with which parameters, for how many seconds."""

    router: Router
    node: Node
    served: Served
    params: bytes
    timeout: float

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Send it. Raises Refusal if too many are in flight."""
        where = self.node, self.served, self.params, self.timeout
        self.router.send(caller, *where, traceparent, request_id, batch, tally)


class Router:
    """Sends requests on to nodes, and their answers back."""

    def __init__(
        self,
        nodes: Nodes,
        calls: Calls,
        *,
        call_timeout: float,
        max_in_flight: int,
        max_node_in_flight: int,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: Final = calls
        self._new_id, self._slot = calls.new_id, calls.slot
        self._nodes = nodes
        self._call_timeout = call_timeout
        self._max_in_flight = max_in_flight
        self._max_node_in_flight = max_node_in_flight
        self.tally: Final = Tally(NODE_ERROR, CALLER_LOST, errors.TIMEOUT.name, errors.NODE_LOST.name)
        """What became of the requests whose method the gateway does not have itself."""
        self._tracing = tracing
        self._failures = Sampler(clock, *FAILURES)
        self.clock: Final = clock

    # The way there

    def call(self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None) -> None:
        """Send a request on to a node that serves its method; without an id, as a notification.

        Raises Refusal where the caller may not, nobody serves it, or there is too much to do.
        """
        method = message.method
        node = self._nodes.serving(method)
        if node is None:
            refused = Refusal if method.startswith(RESERVED) else self.refused
            raise refused(errors.METHOD_NOT_FOUND, method[: jsonrpc.MAX_DETAIL])
        served = node.methods[method]
        if not caller.principal.allows(served.scope):
            raise self.refused(errors.FORBIDDEN, served.scope[: jsonrpc.MAX_DETAIL])
        timeout, traceparent = self._call_timeout, message.traceparent
        self.send(caller, node, served, params, timeout, traceparent, request_id, batch, self.tally)

    def by_node(self, caller: Peer, name: str, method: str, params: bytes, timeout: float | None) -> NodeForward:
        """The way of a call to this node.

        Raises Refusal if the caller may not call the method, the node is not there, or it does not serve the method.
        """
        scope = f"call:{method}"
        if not caller.principal.allows(scope):
            raise self.refused(errors.FORBIDDEN, scope[: jsonrpc.MAX_DETAIL])
        node = self._nodes.named(name)
        if node is None:
            raise self.refused(errors.NOT_FOUND, f"no node {name[: jsonrpc.MAX_DETAIL]!r}")
        served = node.methods.get(method)
        if served is None:
            raise self.refused(errors.METHOD_NOT_FOUND, f"{node.name} has no {method[: jsonrpc.MAX_DETAIL]!r}")
        return NodeForward(self, node, served, params, self._call_timeout if timeout is None else timeout)

    def refused(self, error: RpcError, detail: str = "", **data: object) -> Refusal:
        """The refusal of a call that no node gets."""
        return Refusal(error, detail, **data, outcome=NOT_DELIVERED)

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
        """Send a request on to a node, and enter it into both tables; its end goes into ``tally``.

        Raises Refusal if too many requests of the caller, or calls of the node, are in flight.
        """
        if len(caller.running) >= self._max_in_flight:
            detail = f"{self._max_in_flight} requests are in flight"
            raise self.refused(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)
        callee = node.peer
        calls = callee.calls
        if request_id and len(calls) >= self._max_node_in_flight:
            detail = f"{node.name} has {self._max_node_in_flight} calls in flight"
            raise self.refused(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)
        span = None
        if self._tracing is not None and request_id:
            names = served.name, node.name, caller.principal.name
            span, traceparent = self._tracing.begin(*names, bytes(traceparent))
        tail = b"}"
        if node.context or traceparent is not ABSENT:
            tail = _tail(node, caller, timeout, traceparent)
        between = b',"params":' if params else b""
        if not request_id:
            callee.send(b"".join((b'{"jsonrpc":"2.0","method":', served.encoded, between, params, tail)))
            tally.count(OK)
            return
        # Read before they are called, for CPython 3.11 is slow to call what an instance has, and not its class.
        new_id, to, clock, send = self._new_id, self._slot, self.clock, callee.send
        call_id = new_id()
        slot = to(timeout)
        call = RoutedCall(call_id, slot, node, served, caller, request_id, batch, tally, self, span, clock())
        calls[call_id] = call  # as Calls.enter() does
        slot[call] = None
        caller.running[request_id] = call
        if batch is not None:
            batch.expect()
        parts = b'{"jsonrpc":"2.0","id":', call_id, b',"method":', served.encoded, between, params, tail
        send(b"".join(parts))

    # The way back

    def progress(self, callee: Peer, call_id: bytes, value: bytes) -> bool:
        """The node reports on a call that is running; False where there is none."""
        call = callee.calls.get(call_id)
        if not isinstance(call, RoutedCall):
            return False
        head = b'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":'
        call.caller.send(b"".join((head, call.request_id, b',"value":', value, b"}}")))
        return True

    def failed(self, call: RoutedCall, error: RpcError, end: str) -> bytes:
        """The reply to a call that the node has not answered; where the node is still there it is told."""
        if error is not errors.NODE_LOST:
            call.callee.send(b'{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":%b}}' % call.call_id)
        self._log(call, end)
        return jsonrpc.error_reply(call.request_id, error, f"{call.node.name}: {call.served.name}", outcome=UNKNOWN)

    def _log(self, call: RoutedCall, end: str) -> None:
        caller = call.caller
        left_out = self._failures.admit(caller.conn_id)
        if left_out is None:
            return
        method, node = call.served.name, call.node
        fields: dict[str, object] = {
            "event": "call.failed",
            "connId": caller.conn_id,
            "remote": caller.remote,
            "method": method,
            "node": node.name,
            "nodeConnId": node.peer.conn_id,
            "error": end,
            "outcome": UNKNOWN,
            "duration": round(self.clock() - call.begun, 3),
        }
        if left_out:
            fields["leftOut"] = left_out
        logger.info("call of %s failed: %s", method, end, extra=fields)


def _tail(node: Node, caller: Peer, timeout: float, traceparent: Raw) -> bytes:
    """The end of a call that has more than JSON-RPC knows."""
    context = b""
    if node.context:
        known = {"caller": caller.principal.name, "timeLeftMs": int(timeout * 1000)}
        context = b',"context":' + jsonrpc.encode(known)
    if traceparent is not ABSENT:
        context += b',"traceparent":' + traceparent
    return context + b"}"
