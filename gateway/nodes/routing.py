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
from gateway.errors import NOT_DELIVERED, UNKNOWN, RpcError
from gateway.names import RESERVED
from gateway.nodes.registry import Node, Nodes, Served
from gateway.nodes.routed import RoutedCall, Span
from gateway.nodes.streams import Opening
from gateway.rpc import jsonrpc
from gateway.rpc.calls import GARBLED, Callee, Calls
from gateway.rpc.jsonrpc import ABSENT, Message
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.replies import SMALL, UNREAD, Batch
from gateway.rpc.requests import Peer
from gateway.rpc.streams import Grant
from gateway.telemetry.counts import CALLER_LOST, NODE_ERROR, OK, Tally
from gateway.telemetry.lines import CALL_FAILED, Lines

logger = logging.getLogger(__name__)

ENVELOPE: Final = 4096
"""More bytes than the gateway ever puts around a payload: an id, the names of a method and a caller, and punctuation.

A `traceparent` is not among them: it is the caller's, and may have any length.
"""

_OF_THE_NODE: Final = frozenset({errors.INTERNAL_ERROR.name, errors.TOO_LARGE.name, errors.NODE_LOST.name})
"""What ends a call because of what the node does. All else the caller can cause by itself."""


class Tracing(Protocol):
    """Traces calls (`telemetry.tracing.Tracing`)."""

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[Span, Raw]:
        """Begin a span under the caller's. Returns it with the ``traceparent`` for the node, in JSON.

        ``node`` and ``caller`` are names. The caller's ``traceparent`` is in JSON, too; it is empty if there is none.
        """


class NodeForward(msgspec.Struct, gc=False):
    """A `requests.Forward` to one node.

    It says which of the node's methods is called, with which parameters, in JSON, and how many seconds the call has.
    Unless it may be ``held`` it does not wait for a node that has no link. With ``stream`` the call is a stream.
    """

    router: Router
    node: Node
    served: Served
    params: bytes
    timeout: float
    held: bool
    stream: Grant | None

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Send the request on. Raises Refusal if too many are in flight."""
        if not self.held and self.node.peer.held is not None:
            raise not_run(errors.NODE_LOST, self.node.name)
        opening = None
        if self.stream is not None and request_id:
            opening = self.router.opening(caller, self.node, self.stream)
        where = self.node, self.served, self.params, self.timeout
        self.router.send(caller, *where, traceparent, request_id, batch, tally, opening)
        if not self.held:
            call = caller.running.get(request_id)
            if isinstance(call, RoutedCall):
                call.held = False


class Router:
    """Sends requests on to nodes, and their answers back.

    ``call_timeout`` is in seconds; ``clock`` returns monotonic seconds. ``max_in_flight`` bounds what is in flight for
    one caller, ``max_node_in_flight`` the calls that one node has not answered, and ``max_message_bytes`` each message
    that the gateway makes of a payload. A payload of up to ``roomy`` bytes fits whatever is put around it, and one of
    up to ``brief`` bytes needs no other look either. The bytes of a stream that may be sent without another grant are
    at most ``max_credit_bytes``.
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
        max_credit_bytes: int,
        lines: Lines,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: Final = calls
        self._new_id, self._slot = calls.new_id, calls.slot
        self._nodes = nodes
        self._serving = nodes.serving
        self._call_timeout = call_timeout
        self._max_in_flight = max_in_flight
        self.max_node_in_flight: Final = max_node_in_flight
        self._max_message_bytes = max_message_bytes
        self.max_credit_bytes: Final = max_credit_bytes
        self.roomy: Final = max_message_bytes - ENVELOPE
        self.brief: Final = min(self.roomy, SMALL)
        self.tally: Final = Tally(NODE_ERROR, CALLER_LOST, errors.TIMEOUT.name, errors.NODE_LOST.name)
        """What became of the requests whose method the gateway does not have itself."""
        self.dropped: Final = Counter(dict.fromkeys(("notification", "progress", "credit", "demand", "push"), 0))
        """How many messages were dropped, by kind: so much waits for their receiver, or their stream is over."""
        self._tracing = tracing
        self._lines = lines
        self.clock: Final = clock

    # The way there

    def call(self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None) -> None:
        """Send a request on to a node that serves its method; without a ``request_id``, as a notification.

        A request with ``stream`` becomes a stream. Raises Refusal if no node serves the method, the caller may not call
        it, or too many requests are in flight, and what `opening` raises.
        """
        method = message.method
        if message.stream is not ABSENT and request_id:
            self._call_stream(caller, message, params, request_id, batch)
            return
        serving = self._serving  # read before it is called, as in `send`
        node = serving(method)
        if node is None:
            raise _unserved(method)
        served = node.methods[method]
        if not caller.principal.allows(served.scope):
            raise not_run(errors.FORBIDDEN, served.scope[: jsonrpc.MAX_DETAIL])
        # In one go, because this is the hot path.
        self.send(
            caller, node, served, params, self._call_timeout, message.traceparent, request_id, batch, self.tally, None
        )

    def _call_stream(
        self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None
    ) -> None:
        """Do the same for a request with ``stream``. It goes to a node that knows streams, if there is any."""
        method, timeout = message.method, self._call_timeout
        node = self._nodes.streaming(method)
        if node is None:
            raise _unserved(method)
        self.check_scope(caller, method)
        grant = self._grant(message.stream)
        opening = None if grant is None else self.opening(caller, node, grant)
        where = node, node.methods[method], params, timeout
        self.send(caller, *where, message.traceparent, request_id, batch, self.tally, opening)

    def _grant(self, member: Raw) -> Grant | None:
        """Return what the member ``stream`` of a request says; None if it is null."""
        try:
            grant: Grant | None = _decode_grant(member)
        except jsonrpc.UNDECODABLE as error:
            raise not_run(errors.INVALID_PARAMS, f"stream: {error}"[: jsonrpc.MAX_DETAIL]) from None
        return grant

    def by_node(
        self,
        caller: Peer,
        name: str,
        method: str,
        params: bytes,
        *,
        timeout: float | None,
        held: bool,
        stream: Grant | None = None,
    ) -> NodeForward:
        """Return the `NodeForward` of a call to the node with this name.

        ``timeout`` is in seconds; None stands for the default. Unless it may be ``held``, the call ends if the node has
        no link. With ``stream`` it is a stream. Raises Refusal if the caller may not call the method, there is no such
        node, or it does not serve the method.
        """
        self.check_scope(caller, method)
        node = self._nodes.named(name)
        if node is None:
            raise not_run(errors.NOT_FOUND, f"no node {name[: jsonrpc.MAX_DETAIL]!r}")
        served = node.methods.get(method)
        if served is None:
            raise not_run(errors.METHOD_NOT_FOUND, f"{node.name} has no {method[: jsonrpc.MAX_DETAIL]!r}")
        seconds = self._call_timeout if timeout is None else timeout
        return NodeForward(self, node, served, params, seconds, held, stream)

    def check_scope(self, caller: Peer, method: str) -> None:
        """Raise Refusal if the caller may not call a method."""
        scope = f"call:{method}"
        if not caller.principal.allows(scope):
            raise not_run(errors.FORBIDDEN, scope[: jsonrpc.MAX_DETAIL])

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
        return not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)

    def busy(self, node: Node) -> Refusal:
        """Return the refusal of a call to a node that has as many in flight as it may have."""
        return self.overloaded(f"{node.name} has {self.max_node_in_flight} calls in flight")

    def unread(self, node: Node) -> Refusal:
        """Return the refusal of a call to a node that does not read."""
        return self.overloaded(f"{node.name} has not read what was sent to it before")

    def too_large(self, node: Node) -> Refusal:
        """Return the refusal of a call that would be too large a message for its node."""
        return not_run(errors.TOO_LARGE, f"{node.name} would get more than {self._max_message_bytes} bytes")

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
        opening: Opening | None,
    ) -> None:
        """Send a request on to a node, and enter it into both tables. Its outcome goes into ``tally``.

        A notification, which has an empty ``request_id``, enters no table, and is dropped if the node does not read.
        With an ``opening`` a request becomes a stream. Raises Refusal if the node does not read, if too much is in
        flight for the caller or the node, and if the gateway's envelope would make the message too large.
        """
        if len(caller.running) >= self._max_in_flight:
            raise self.overloaded(f"{self._max_in_flight} requests are in flight")
        if not request_id:
            tail = _tail(node, caller, timeout, traceparent, None)
            self._notify(node, served, params, tail, tally)
            return
        callee = node.peer
        calls = callee.calls
        if callee.link.barred:
            raise self.unread(node)
        if len(calls) >= self.max_node_in_flight:
            raise self.busy(node)
        span = None
        if self._tracing is not None:
            names = served.name, node.name, caller.principal.name
            span, traceparent = self._tracing.begin(*names, bytes(traceparent))
        tail, roomy = b"}", self.roomy
        if node.context or traceparent is not ABSENT or opening is not None:
            tail = _tail(node, caller, timeout, traceparent, opening)
            roomy -= len(tail)
        between = b',"params":' if params else b""
        # Read before they are called: CPython 3.11 is slow to call what is an attribute of an instance, not of a class.
        new_id, slot_for, clock, send = self._new_id, self._slot, self.clock, callee.pass_on
        call_id = new_id()
        whole = b'{"jsonrpc":"2.0","id":', call_id, b',"method":', served.encoded, between, params, tail
        if len(params) > roomy and self.overflows(whole):
            if span is not None:
                span.finish(errors.TOO_LARGE.name)
            raise self.too_large(node)
        slot = slot_for(timeout)
        call = RoutedCall(call_id, slot, node, served, caller, request_id, batch, tally, self, span, clock(), timeout)
        if opening is not None:
            call = opening.call(call)
        calls[call_id] = call  # as Calls.enter() does
        slot[call] = None
        caller.running[request_id] = call
        if batch is not None:
            batch.expect()
        send(b"".join(whole))

    def _notify(self, node: Node, served: Served, params: bytes, tail: bytes, tally: Tally) -> None:
        """Send a notification on to a node, or drop it if the node does not read."""
        if node.peer.link.barred:
            self.dropped["notification"] += 1
            tally.count(errors.OVERLOADED.name)
            return
        between = b',"params":' if params else b""
        parts = b'{"jsonrpc":"2.0","method":', served.encoded, between, params, tail
        if self.overflows(parts):
            raise self.too_large(node)
        node.peer.pass_on(b"".join(parts))
        tally.count(OK)

    def opening(self, caller: Peer, node: Node, stream: Grant) -> Opening:
        """Return the stream that a call to a node is to become. Raises Refusal if the node does not know streams.

        It raises Refusal, too, if the caller grants too much.
        """
        if not node.streams:
            raise not_run(errors.INVALID_PARAMS, f"stream: {node.name} does not know streams")
        if stream.octets > self.max_credit_bytes:
            right = f"stream.bytes: at most {self.max_credit_bytes}, half of limits.max_outbox_bytes"
            raise not_run(errors.INVALID_PARAMS, right)
        return Opening(caller, node.peer, stream, self.max_credit_bytes)

    # The way back

    def progress(self, callee: Callee, call_id: bytes, value: bytes) -> bool:
        """Pass a node's report on a call on to the caller. ``call_id`` and ``value`` are JSON.

        Returns False if the node has no such call of a caller's in flight.
        """
        call = callee.calls.get(call_id)
        if not isinstance(call, RoutedCall):
            return False
        call.reported(value)
        return True

    def failed(self, call: RoutedCall, error: RpcError, reason: str) -> bytes:
        """Return the reply to a call that the node has not answered. Logs it with ``reason``, and tells the node."""
        detail, outcome = self.verdict(call, error)
        self._log(call, reason, outcome)
        return jsonrpc.error_reply(call.request_id, error, detail, outcome=outcome)

    def verdict(self, call: RoutedCall, error: RpcError) -> tuple[str, str]:
        """Return the detail of a call's error, and its outcome. Tells the node that the call is not wanted any more.

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
        return detail, NOT_DELIVERED if error is errors.NODE_NOT_REACHED else UNKNOWN

    def ended_elsewhere(self, call: RoutedCall, name: str, outcome: str, error: bytes) -> bytes:
        """Return the reply to a call that the node's own gateway has ended, with this error object. Logs it."""
        self._log(call, name, outcome)
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (call.request_id, error)

    def lost_link(self, callee: Callee) -> None:
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


def _unserved(method: str) -> Refusal:
    """Return the refusal of a request whose method nobody has."""
    refusal = Refusal if method.startswith(RESERVED) else not_run
    return refusal(errors.METHOD_NOT_FOUND, method[: jsonrpc.MAX_DETAIL])


_decode_grant: Final = msgspec.json.Decoder(Grant | None).decode


def _tail(node: Node, caller: Peer, timeout: float, traceparent: Raw, opening: Opening | None) -> bytes:
    """Return the end of a call that has members which JSON-RPC does not know."""
    context = b""
    if node.context:
        known = {"caller": caller.principal.name, "timeLeftMs": int(timeout * 1000)}
        context = b',"context":' + jsonrpc.encode(known)
    if traceparent is not ABSENT:
        context += b',"traceparent":' + traceparent
    if opening is not None:
        context += opening.member
    return context + b"}"
