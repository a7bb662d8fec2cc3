"""Calls that wait for a node which is not there, or does not serve their method yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from msgspec import Raw

from gateway import errors
from gateway.deadlines import Sweep
from gateway.errors import RpcError
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.replies import Batch
from gateway.rpc.requests import Peer
from gateway.rpc.streams import MAX_CREDIT, Grant
from gateway.telemetry.counts import CALLER_LOST, Tally


class WaitingCall:
    """A call that waits: a `requests.Forward`, and a `requests.Request` once it is sent on.

    ``wait`` is how long it waits and ``timeout`` how long the call may take from then on, both in seconds; None stands
    for the default. ``params`` is JSON. With ``grant`` it becomes a stream, of which it takes what the caller says
    meanwhile: it is a `requests.Stream`. ``octets`` is how many bytes are held for it. The names are not in that:
    they are no longer than names may be.
    """

    __slots__ = (
        "_finished",
        "_waiting",
        "batch",
        "begun",
        "caller",
        "grant",
        "held",
        "key",
        "method",
        "node",
        "octets",
        "params",
        "refusal",
        "request_id",
        "tally",
        "timeout",
        "traceparent",
        "wait",
    )

    def __init__(
        self,
        waiting: Waiting,
        refusal: Refusal,
        node: str,
        method: str,
        params: bytes,
        *,
        timeout: float | None,
        held: bool,
        wait: float,
        grant: Grant | None = None,
    ) -> None:
        self._waiting = waiting
        self.refusal = refusal.with_traceback(None)  # whose frames would keep the whole request
        """How it is refused if the node has not come in time."""
        self.node = node
        self.method = method
        self.params = params
        self.timeout = timeout
        self.held = held
        self.wait = wait
        self.grant = grant
        self._finished = False
        self.octets = 0
        self.begun = 0.0

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Begin to wait. Raises Refusal if there is no room."""
        self.caller = caller
        self.request_id = request_id
        self.traceparent = traceparent.copy()
        self.octets = len(self.params) + len(self.traceparent)
        self.batch = batch
        self.tally = tally
        self.key: object = request_id or object()
        self._waiting.enter(self)

    @property
    def stream(self) -> WaitingCall | None:
        """Itself, if it is to become a stream."""
        return None if self.grant is None else self

    def granted(self, grant: Grant) -> bool:
        """Add a grant to the first, as far as it keeps within the bounds. Returns True."""
        if self.grant is not None:
            credit = min(MAX_CREDIT, self.grant.credit + grant.credit)
            self.grant = Grant(credit, min(self._waiting.max_credit_bytes, self.grant.octets + grant.octets))
        return True

    def pushed(self, value: bytes) -> bool:
        """End it: no node has granted anything yet. Returns True."""
        self.cancel(errors.PUSHED_TOO_MUCH)
        return True

    def finish(self) -> bool:
        """Remember to tell the node that the caller pushes nothing. Returns False if that is remembered already."""
        finished, self._finished = self._finished, True
        return not finished

    def begin(self) -> None:
        """Tell the node what the caller has said of the stream meanwhile, because the call has just been sent on."""
        call = self.caller.running.get(self.request_id)
        stream = None if call is None or not self._finished else call.stream
        if stream is not None:
            stream.finish()

    def cancel(self, verdict: RpcError) -> None:
        """End it, because the caller does not want it any more."""
        self._waiting.refuse(self, not_run(verdict))

    def abandon(self) -> None:
        """End it, because the caller is gone."""
        self._waiting.refuse(self, Refusal(errors.CANCELLED), CALLER_LOST)

    def drained(self) -> None:
        """Do nothing: nothing waits for the caller to read."""


class Waiting:
    """All calls that wait, by the name of their node, in the order in which they came.

    At most ``max_waiting`` wait for one node; each is in flight for its caller, one of ``max_in_flight``. ``clock``
    returns monotonic seconds.
    """

    def __init__(
        self,
        nodes: Nodes,
        router: Router,
        *,
        max_waiting: int,
        max_in_flight: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._router = router
        self._max_waiting = max_waiting
        self._max_in_flight = max_in_flight
        self.max_credit_bytes: Final = router.max_credit_bytes
        self._clock: Final = clock
        self._calls: dict[str, dict[WaitingCall, None]] = {}
        self._sweep: Sweep[WaitingCall] = Sweep(self._too_late)

    def __len__(self) -> int:
        return len(self._sweep)

    def enter(self, call: WaitingCall) -> None:
        """Let a call wait. Raises Refusal if there is no room for it."""
        caller, calls = call.caller, self._calls.get(call.node, {})
        if len(caller.running) >= self._max_in_flight:
            raise self._router.overloaded(f"{self._max_in_flight} requests are in flight")
        if len(calls) >= self._max_waiting:
            raise self._router.overloaded(f"{self._max_waiting} calls wait for {call.node[: jsonrpc.MAX_DETAIL]}")
        if not caller.hold(call.octets):
            raise self._router.overloaded("there is no room for what waits")
        call.begun = self._clock()
        self._calls.setdefault(call.node, calls)[call] = None
        caller.running[call.key] = call
        if call.batch is not None:
            call.batch.expect()
        self._sweep.begin(call, call.wait)

    def wanted(self, node: str) -> bool:
        """Return whether calls wait for the node with this name."""
        return node in self._calls

    def go_on(self, name: str) -> None:
        """Send on what waits for a node, as far as it serves the methods now. Call it when its reply has left."""
        node = self._nodes.named(name)
        for call in list(self._calls.get(name, ())):
            if node is not None and call.method in node.methods:
                self._send_on(call)

    def _send_on(self, call: WaitingCall) -> None:
        self._leave(call)
        caller = call.caller
        try:
            where = call.node, call.method, call.params
            forward = self._router.by_node(caller, *where, timeout=call.timeout, held=call.held, stream=call.grant)
            forward.send(caller, call.request_id, call.traceparent, call.batch, call.tally)
        except Refusal as refusal:
            self._reply(call, refusal, refusal.error.name)
            return
        call.begin()
        if call.batch is not None:
            call.batch.done(b"", None)  # the call itself is expected now

    def refuse(self, call: WaitingCall, refusal: Refusal, outcome: str = "") -> None:
        """End the wait with a refusal. ``outcome`` is what it counts as, by default the error's name."""
        self._leave(call)
        self._reply(call, refusal, outcome or refusal.error.name)
        call.caller.settled()

    def drain(self) -> None:
        """Refuse all, because their nodes may come to other gateways only, to which the callers go as well."""
        for calls in list(self._calls.values()):
            for call in list(calls):
                self.refuse(call, not_run(errors.DRAINING))

    def _too_late(self, call: WaitingCall) -> None:
        self.refuse(call, call.refusal)

    def _leave(self, call: WaitingCall) -> None:
        self._sweep.done(call)
        calls = self._calls[call.node]
        del calls[call]
        if not calls:
            del self._calls[call.node]
        del call.caller.running[call.key]
        call.caller.let_go(call.octets)

    def _reply(self, call: WaitingCall, refusal: Refusal, outcome: str) -> None:
        call.tally.ended(outcome, self._clock() - call.begun)
        reply = None
        if call.request_id:
            reply = jsonrpc.error_reply(call.request_id, refusal.error, refusal.detail, **refusal.data)
        if call.batch is not None:
            call.batch.done(call.request_id, reply)
        elif reply is not None:
            call.caller.send(reply)
