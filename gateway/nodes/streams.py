"""Streams: calls whose values flow in both directions, no faster than the receiver of each direction takes them.

A stream is a routed call with a `Flow` each way. Down, from the node to the caller, the caller grants by `rpc.credit`
and the node sends by `rpc.progress`. Up, the node grants by `rpc.demand` and the caller sends by `rpc.push`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from msgspec.structs import astuple

from gateway import errors
from gateway.nodes.routed import RoutedCall, progress
from gateway.rpc.calls import Callee
from gateway.rpc.requests import Party, Peer
from gateway.rpc.streams import Flow, Grant, Pool

LEAST: Final = 256
"""The bytes that each direction of a stream may always have are the most that it may have, divided by this.

A node has about so many calls in flight. So what they may always have is together no more than one of them may have.
"""


def pool_of(peer: Party) -> Pool:
    """Return what the streams of a peer have in common."""
    if peer.pool is None:
        peer.pool = Pool()
    return peer.pool


RENEWALS: Final = 64
"""How often another gateway is told within a deadline that a stream lives, if it is told nothing else of a grant."""


class Direction(Flow):
    """A flow between two peers. The sender is told of what the receiver has granted, by the notification ``method``.

    ``stream_id`` is the id under which the sender knows the stream, in JSON.
    """

    __slots__ = ("_head", "_receiver", "_renewed", "_sender", "_senders")

    def __init__(self, sender: Party, receiver: Party, most: int) -> None:
        super().__init__(pool_of(receiver), most, max(1, most // LEAST))
        self._sender = sender
        self._receiver = receiver
        self._senders = pool_of(sender)
        self._head = b""
        self._renewed = False

    def identify(self, method: bytes, stream_id: bytes) -> None:
        """Say how the sender is told. Once, before anything else."""
        self._head = b'{"jsonrpc":"2.0","method":"%b","params":{"id":%b' % (method, stream_id)

    def first(self) -> tuple[int, int]:
        """Return the credit and the bytes of which the sender may be told now."""
        return self.offer(self._receiver.room, self._receiver.flowing)

    @property
    def from_elsewhere(self) -> bool:
        """Whether its sender is at another gateway."""
        return self._sender.elsewhere

    def granted(self, credit: int, octets: int, renews: bool) -> None:
        """Take a grant of the receiver's, and tell the sender: if it ``renews``, even if nothing of it can be told."""
        self._renewed |= renews
        if self.grant(credit, octets) or renews:
            self.tell()

    def tell(self) -> bool:
        """Tell the sender as much as may be told now. Returns whether it was told of more bytes.

        If it does not read it is told later, of all together. What the receiver has no room for waits for its turn.
        """
        self.pool.wanting.pop(self, None)
        if self._sender.link.barred:
            self._senders.unread[self] = None
            return False
        self._senders.unread.pop(self, None)
        credit, octets = self.first()
        if credit or octets or self._renewed:
            self._renewed = False
            self.told(credit, octets)
            self._sender.pass_on(b'%b,"credit":%d,"bytes":%d}}' % (self._head, credit, octets))
        self.want()
        return octets > 0

    def want(self) -> None:
        """Wait for a turn if there are bytes of which the sender has not been told."""
        if self.more_octets:
            self.pool.wanting[self] = None

    def go_on(self) -> None:
        """Tell of more after a value, which has made room, perhaps: first of this flow, then of others."""
        if self in self.pool.wanting:
            self.tell()
        self.pool.share()

    def close(self) -> None:
        """Let nothing more be sent, nor told. Others have the room."""
        super().close()
        self.pool.wanting.pop(self, None)
        self._senders.unread.pop(self, None)
        if self.pool.wanting and self._receiver.is_open:
            self.pool.share()


class StreamCall(RoutedCall, eq=False, gc=False, kw_only=True):
    """A stream in flight: a `requests.Stream`.

    Its deadline counts from ``last``, the event loop's time of its last value or grant. ``finished`` is whether the
    caller pushes nothing more. ``told`` is when the other gateway of the stream, if it has one, was last told that it
    lives, whatever else it was told.
    """

    down: Direction
    up: Direction
    last: float
    finished: bool = False
    told: float = 0.0

    @property
    def stream(self) -> StreamCall:
        """Itself."""
        return self

    def left(self) -> float:
        """Return the seconds until its deadline."""
        return self.timeout - (self.router.calls.time() - self.last)

    def renew(self) -> None:
        """Let its deadline count from now."""
        self.last = self.router.calls.time()

    def _renews_there(self, flow: Direction) -> bool:
        """Return whether the other gateway is to be told that the stream lives, because the flow comes from there.

        Otherwise it would know nothing of a grant that is cut to nothing, or waits for room.
        """
        if not flow.from_elsewhere or self.last - self.told < self.timeout / RENEWALS:
            return False
        self.told = self.last
        return True

    def _grant(self, flow: Direction, credit: int, octets: int) -> None:
        """Take a grant for one direction. One of nothing is always told, because it renews."""
        flow.granted(credit, octets, self._renews_there(flow) or not (credit or octets))

    # Down

    def granted(self, grant: Grant) -> bool:
        """Take a grant of the caller's. Returns True."""
        self.renew()
        self._grant(self.down, grant.credit, grant.octets)
        return True

    def reported(self, value: bytes) -> None:
        """Pass a value of the node's on to the caller. One beyond the credit ends the stream."""
        parts = progress(self.request_id, value)
        if not self._may_pass(self.down, value, parts, errors.OVERRUN):
            return
        self.caller.pass_on(b"".join(parts))
        if self.down.pool.wanting:
            self.down.go_on()

    # Up

    def demanded(self, grant: Grant) -> None:
        """Take a grant of the node's."""
        self.renew()
        if not self.finished:
            self._grant(self.up, grant.credit, grant.octets)
        elif self._renews_there(self.up):
            self.up.granted(0, 0, True)

    def pushed(self, value: bytes) -> bool:
        """Pass a value of the caller's on to the node. One beyond the credit ends the stream. Returns True."""
        parts = b'{"jsonrpc":"2.0","method":"rpc.push","params":{"id":', self.call_id, b',"value":', value, b"}}"
        if self._may_pass(self.up, value, parts, errors.PUSHED_TOO_MUCH):
            self.callee.pass_on(b"".join(parts))
            if self.up.pool.wanting:
                self.up.go_on()
        return True

    def finish(self) -> bool:
        """Tell the node that the caller pushes nothing more. Returns False if it was told already."""
        if self.finished:
            return False
        self.finished = True
        self.renew()
        self.up.close()
        self.callee.pass_on(b'{"jsonrpc":"2.0","method":"rpc.push","params":{"id":%b,"end":true}}' % self.call_id)
        return True

    def _may_pass(self, flow: Direction, value: bytes, parts: tuple[bytes, ...], overrun: errors.RpcError) -> bool:
        """Count a value. Returns False if the stream ends by it: it is beyond the credit, or too large to be sent."""
        if not flow.spend(len(value)):
            self.cancel(overrun)
            return False
        if self.router.overflows(parts):
            self.cancel(errors.VALUE_TOO_LARGE)
            return False
        self.renew()
        return True

    def over(self, outcome: str, reply: bytes) -> None:
        """Do what comes with the end of every call, and let others have the room."""
        super().over(outcome, reply)
        self.down.close()
        self.up.close()


class Opening:
    """A stream that is about to begin, with what its caller has granted. ``most`` bounds the bytes of each grant."""

    def __init__(self, caller: Party, callee: Party, grant: Grant, most: int) -> None:
        self._down = Direction(callee, caller, most)
        self._up = Direction(caller, callee, most)
        self._down.grant(grant.credit, grant.octets)
        self._first = self._down.first()

    @property
    def member(self) -> bytes:
        """The member of the call that tells the node of the stream, with a comma before it."""
        return b',"stream":{"credit":%d,"bytes":%d}' % self._first

    def call(self, call: RoutedCall) -> StreamCall:
        """Return the stream that takes the place of a call which is not in flight yet. It is to be sent at once."""
        began = call.router.calls.time()
        fields = astuple(call)
        call = StreamCall(*fields, down=self._down, up=self._up, last=began)
        self._down.identify(b"rpc.credit", call.call_id)
        self._up.identify(b"rpc.demand", call.request_id)
        self._down.told(*self._first)
        self._down.want()
        return call


class Streams:
    """Takes what peers send about their streams.

    Each method returns False if there is no such stream: the call is over, or is none. That is counted in ``dropped``.
    """

    def __init__(self, dropped: Counter[str]) -> None:
        self._dropped = dropped

    def credit(self, caller: Peer, request_id: bytes, grant: Grant) -> bool:
        """Take a grant of the caller's for the node."""
        request = caller.running.get(request_id)
        stream = None if request is None else request.stream
        return (stream is not None and stream.granted(grant)) or self._drop("credit")

    def demand(self, callee: Callee, call_id: bytes, grant: Grant) -> bool:
        """Take a grant of the node's for the caller."""
        call = callee.calls.get(call_id)
        if not isinstance(call, StreamCall):
            return self._drop("demand")
        call.demanded(grant)
        return True

    def push(self, caller: Peer, request_id: bytes, value: bytes | None) -> bool:
        """Take a value of the caller's for the node; None is the end of them."""
        request = caller.running.get(request_id)
        stream = None if request is None else request.stream
        taken = stream is not None and (stream.finish() if value is None else stream.pushed(value))
        return taken or self._drop("push")

    def _drop(self, kind: str) -> bool:
        self._dropped[kind] += 1
        return False

    def is_served(self, callee: Peer, call_id: bytes) -> bool:
        """Return whether a node has a stream under this id."""
        return isinstance(callee.calls.get(call_id), StreamCall)
