"""A routed call in flight: what it refers to, and how it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.errors import RpcError
from gateway.nodes.registry import Node, Served
from gateway.rpc.calls import Call, Callee, Calls
from gateway.rpc.replies import Batch
from gateway.rpc.requests import Peer, Stream
from gateway.telemetry.counts import CALLER_LOST, NODE_ERROR, OK, Tally


class Span(Protocol):
    """The trace of one call."""

    def finish(self, outcome: str) -> None:
        """End the span. ``outcome`` is ``ok``, ``error``, ``caller_lost``, or the name of the gateway's error. Once."""


class Routing(Protocol):
    """What a call needs of its router (`routing.Router`)."""

    @property
    def calls(self) -> Calls:
        """All calls in flight."""

    @property
    def clock(self) -> Callable[[], float]:
        """Returns monotonic seconds."""

    @property
    def dropped(self) -> Counter[str]:
        """How many messages were dropped, by kind."""

    @property
    def brief(self) -> int:
        """A payload of up to so many bytes fits into a message, and goes even to a caller that does not read."""

    def overflows(self, parts: tuple[bytes | Raw, ...]) -> bool:
        """Return whether a message of these parts is larger than a message may be."""

    def unfit(self, caller: Peer, parts: tuple[bytes | Raw, ...], batch: Batch | None) -> RpcError | None:
        """Return why a reply of these parts is not sent: it is too large, or the caller does not read. None if it is.

        A reply within a batch is left to the batch.
        """

    def failed(self, call: RoutedCall, error: RpcError, reason: str) -> bytes:
        """Return the reply to a call that the node has not answered. Logs it with ``reason``, and tells the node."""


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
    router: Routing
    span: Span | None
    begun: float
    timeout: float
    """Seconds until its deadline, from its beginning on. Those of a stream count from its last value or grant."""
    report: bytes = b""
    """The latest report on it, if that waits until the caller has read."""
    held: bool = True
    """Whether it lives on while the node has no link."""

    @property
    def callee(self) -> Callee:
        """The node's connection."""
        return self.node.peer

    def answered(self, result: Raw) -> None:
        """Make the node's result the caller's reply."""
        parts = b'{"jsonrpc":"2.0","id":', self.request_id, b',"result":', result, b"}"
        if self.caller.link.pressed or len(result) > self.router.brief:
            self.reply_with_care(OK, parts)
        else:
            self.over(OK, b"".join(parts))

    def refused(self, error: Raw) -> None:
        """Make the node's error the caller's reply."""
        self.reply_with_care(NODE_ERROR, (b'{"jsonrpc":"2.0","id":', self.request_id, b',"error":', error, b"}"))

    def reply_with_care(self, outcome: str, parts: tuple[bytes | Raw, ...]) -> None:
        """Reply if that is possible, and hold the node up if the caller does not read. The reply may be large."""
        caller = self.caller
        error = self.router.unfit(caller, parts, self.batch)
        if error is not None:
            self.failed(error)
            return
        self.over(outcome, b"".join(parts))
        if caller.link.pressed and self.batch is None:
            caller.hold_up(self.node.peer.link)

    def failed(self, error: RpcError) -> None:
        """Tell the caller why there is no answer."""
        self.over(error.name, self.router.failed(self, error, error.name))

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

    @property
    def stream(self) -> Stream | None:
        """None: it is no stream."""
        return None

    def left(self) -> float:
        """Return 0.0: its deadline stands."""
        return 0.0

    def reported(self, value: bytes) -> None:
        """Pass the node's report on to the caller, under the caller's id.

        ``value`` is JSON. A report that the caller's id would make too large is dropped. If the caller does not read,
        the latest report waits and those before it are dropped.
        """
        caller, router, parts = self.caller, self.router, progress(self.request_id, value)
        if router.overflows(parts):
            router.dropped["progress"] += 1
        elif not (caller.link.pressed or self.report or caller.crowded):
            caller.pass_on(b"".join(parts))
        else:
            router.dropped["progress"] += self.keep_report(b"".join(parts))

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
        if self.caller.running.get(self.request_id) is not self:
            return  # the way to the node is gone, which has come out as it was told, and has ended the call
        self.router.calls.drop(self)  # not before the node is told: if it is leaving, this may close it
        self.over(outcome, reply)

    def over(self, outcome: str, reply: bytes) -> None:
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


def progress(request_id: bytes, value: bytes) -> tuple[bytes, ...]:
    """Return the parts of a report on the call that the caller knows by this id. Both are JSON."""
    return b'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":', request_id, b',"value":', value, b"}}"
