"""Routed calls: from one connection to another and back, byte for byte.

A call is an entry in two tables, the caller's and the node's, and in one sweep for all deadlines: no task, no future
and no timer of its own. It ends in exactly one way: the node's answer, the node's loss, the deadline, or a
cancellation, by the caller or by its loss.
"""

from __future__ import annotations

import logging
import time
from typing import Final, Protocol

from msgspec import Raw

from gateway import errors, jsonrpc
from gateway.calls import Call, Calls
from gateway.counts import CALLER_LOST, NODE_ERROR, OK, Tally
from gateway.dispatcher import RETRY_AFTER_MS, Batch, Peer
from gateway.errors import RpcError
from gateway.jsonrpc import Message
from gateway.limits import Sampler
from gateway.method import Refusal
from gateway.nodes import Forward, Nodes
from gateway.scopes import RESERVED

logger = logging.getLogger("gateway.routing")

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
    """Traces calls; see `gateway.tracing`."""

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[Span, Raw]:
        """A span under the caller's, and the ``traceparent`` for the node, in JSON."""


class RoutedCall(Call):
    """One routed call in flight. In the caller's table it stands where a task of the gateway's own would.

    ``request`` is the caller's id, in JSON.
    """

    __slots__ = ("_router", "batch", "begun", "caller", "method", "node", "request", "span", "tally")

    def __init__(
        self, router: Router, caller: Peer, forward: Forward, request: bytes, batch: Batch | None, *, tally: Tally
    ) -> None:
        # Not by the base class's constructor, nor as a tuple: this is done for each call.
        self.callee = forward.node.peer
        self.identity = router.calls.new_id()
        self._router = router
        self.caller = caller
        self.node = forward.node
        self.method = forward.served.name
        self.request = request
        self.batch = batch
        self.tally = tally
        self.span: Span | None = None
        self.begun = time.monotonic()

    def ending(self, outcome: Message | RpcError) -> None:
        """It is over: answer the caller."""
        if isinstance(outcome, Message):
            self.answer(self._router.answered(self, outcome))
        else:
            self.answer(self._router.failed(self, outcome, outcome.name))

    def cancel(self, verdict: RpcError) -> None:
        """The caller does not want it any more."""
        self._end(verdict, verdict.name)

    def abandon(self) -> None:
        """The caller is gone."""
        self._end(errors.CANCELLED, CALLER_LOST)

    def _end(self, verdict: RpcError, end: str) -> None:
        reply = self._router.failed(self, verdict, end)
        self._router.calls.drop(self)  # not before the node is told: one that is leaving may be closed by it
        self.answer(reply)

    def over(self, end: str) -> None:
        """Count how it ended."""
        self.tally.ended(end, time.monotonic() - self.begun)
        if self.span is not None:
            self.span.finish(end)

    def answer(self, reply: bytes) -> None:
        """Hand the caller its reply, on its own or within its batch."""
        caller = self.caller
        del caller.running[self.request]
        if self.batch is None:
            caller.send(reply)
        else:
            self.batch.done(reply)
        caller.settled()


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
    ) -> None:
        self.calls: Final = calls
        self._nodes = nodes
        self._call_timeout = call_timeout
        self._max_in_flight = max_in_flight
        self._max_node_in_flight = max_node_in_flight
        self._tracing = tracing
        self._failures = Sampler(time.monotonic, *FAILURES)

    # Where to

    def by_method(self, caller: Peer, method: str, params: bytes) -> Forward:
        """To a node with this method. Raises Refusal where the caller may not, or nobody serves it."""
        if method.startswith(RESERVED):
            raise Refusal(errors.METHOD_NOT_FOUND, method[: jsonrpc.MAX_DETAIL])
        node = self._nodes.serving(method)
        if node is None:
            raise self.refused(errors.METHOD_NOT_FOUND, method[: jsonrpc.MAX_DETAIL])
        self._permit(caller, method)
        return Forward(node, node.methods[method], params, self._call_timeout)

    def by_node(self, caller: Peer, name: str, method: str, params: bytes, timeout: float | None) -> Forward:
        """To this node. Raises Refusal where the caller may not, or it is not there, or does not serve the method."""
        self._permit(caller, method)
        node = self._nodes.named(name)
        if node is None:
            raise self.refused(errors.NOT_FOUND, f"no node {name[: jsonrpc.MAX_DETAIL]!r}")
        served = node.methods.get(method)
        if served is None:
            raise self.refused(errors.METHOD_NOT_FOUND, f"{node.name} has no {method[: jsonrpc.MAX_DETAIL]!r}")
        return Forward(node, served, params, self._call_timeout if timeout is None else timeout)

    def _permit(self, caller: Peer, method: str) -> None:
        scope = f"call:{method}"
        if not caller.principal.allows(scope):
            raise self.refused(errors.FORBIDDEN, scope[: jsonrpc.MAX_DETAIL])

    def refused(self, error: RpcError, detail: str = "", **data: object) -> Refusal:
        """The refusal of a call that no node gets."""
        return Refusal(error, detail, **data, outcome=NOT_DELIVERED)

    # The way there and back

    def start(self, caller: Peer, forward: Forward, request: bytes, batch: Batch | None, tally: Tally) -> None:
        """Send it on; without an id, as a notification. Its end goes into ``tally``.

        Raises Refusal where the node has too much to do.
        """
        if len(caller.running) >= self._max_in_flight:
            detail = f"{self._max_in_flight} requests are in flight"
            raise self.refused(errors.OVERLOADED, detail, retryAfterMs=RETRY_AFTER_MS)
        node, timeout = forward.node, forward.timeout
        callee = node.peer
        if request and len(callee.calls) >= self._max_node_in_flight:
            detail = f"{node.name} has {self._max_node_in_flight} calls in flight"
            raise self.refused(errors.OVERLOADED, detail, retryAfterMs=RETRY_AFTER_MS)
        span, traceparent = None, forward.traceparent
        if self._tracing is not None and request:
            names = forward.served.name, node.name, caller.principal.name
            span, traceparent = self._tracing.begin(*names, bytes(traceparent))
        parts = [forward.served.encoded]
        if forward.params:
            parts += (b',"params":', forward.params)
        if node.context:
            context = {"caller": caller.principal.name, "timeLeftMs": int(timeout * 1000)}
            parts += (b',"context":', jsonrpc.encode(context))
        if traceparent is not jsonrpc.ABSENT:
            parts += (b',"traceparent":', traceparent)
        parts.append(b"}")
        if not request:
            callee.send(b"".join((b'{"jsonrpc":"2.0","method":', *parts)))
            tally.count(OK)
            return
        call = RoutedCall(self, caller, forward, request, batch, tally=tally)
        call.span = span
        self.calls.enter(call, timeout)
        caller.running[request] = call
        if batch is not None:
            batch.expect()
        callee.send(b"".join((b'{"jsonrpc":"2.0","id":', call.identity, b',"method":', *parts)))

    def progress(self, callee: Peer, identity: bytes, value: bytes) -> bool:
        """The node reports on a call that is running; False where there is none."""
        call = callee.calls.get(identity)
        if not isinstance(call, RoutedCall):
            return False
        call.caller.send(
            b'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":%b,"value":%b}}' % (call.request, value)
        )
        return True

    def answered(self, call: RoutedCall, message: Message) -> bytes:
        """The node's answer as the caller's reply."""
        error = message.error is not jsonrpc.ABSENT
        call.over(NODE_ERROR if error else OK)
        if error:
            return b"".join((b'{"jsonrpc":"2.0","id":', call.request, b',"error":', message.error, b"}"))
        return b"".join((b'{"jsonrpc":"2.0","id":', call.request, b',"result":', message.result, b"}"))

    def failed(self, call: RoutedCall, error: RpcError, end: str) -> bytes:
        """The reply to a call that the node has not answered; where the node is still there it is told."""
        call.over(end)
        if error is not errors.NODE_LOST:
            call.callee.send(b'{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":%b}}' % call.identity)
        self._log(call, end)
        return jsonrpc.error_reply(call.request, error, f"{call.node.name}: {call.method}", outcome=UNKNOWN)

    def _log(self, call: RoutedCall, end: str) -> None:
        caller = call.caller
        left_out = self._failures.admit(caller.conn_id)
        if left_out is None:
            return
        fields: dict[str, object] = {
            "event": "call.failed",
            "connId": caller.conn_id,
            "remote": caller.remote,
            "method": call.method,
            "node": call.node.name,
            "nodeConnId": call.node.peer.conn_id,
            "error": end,
            "outcome": UNKNOWN,
            "duration": round(time.monotonic() - call.begun, 3),
        }
        if left_out:
            fields["leftOut"] = left_out
        logger.info("call of %s failed: %s", call.method, end, extra=fields)
