"""`event.publish` where other gateways share the topics: it is answered when NATS has acknowledged the message.

A publish in flight is an entry in the table of its caller's requests, and its message one in that of the answers which
NATS owes. It has no task, no future and no timer of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.cluster.jetstream import ACK_TIMEOUT
from gateway.cluster.natsstream import WINDOW_BYTES
from gateway.cluster.stream import Position
from gateway.connections.connection import Connection
from gateway.deadlines import Sweep
from gateway.errors import RpcError
from gateway.events.shared import SharedEvents
from gateway.methods.event import EventMethods, Published, PublishParams, forbidden, too_large
from gateway.rpc import jsonrpc
from gateway.rpc.method import AUTHENTICATED, Refusal, method
from gateway.rpc.replies import SMALL, Batch, failure
from gateway.rpc.requests import Peer
from gateway.rpc.steps import Steps
from gateway.telemetry.counts import CALLER_LOST, OK, Tally
from gateway.telemetry.lines import Lines

SHARE: Final = WINDOW_BYTES // 4
"""Bytes of one connection's messages on their way to NATS beyond which no more is read from it."""

TOPICS: Final = 1000
"""The room of how many topics is remembered."""


class SharedEventMethods(EventMethods):
    """The methods of `event.*` over topics that other gateways share.

    ``max_in_flight`` is how many requests of one connection may be in flight before it is read no more.
    ``call_timeout`` is in seconds, and ``clock`` returns them.
    """

    def __init__(
        self,
        events: SharedEvents,
        steps: Steps,
        max_message_bytes: int,
        *,
        max_in_flight: int,
        call_timeout: float,
        lines: Lines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(events, steps, max_message_bytes)
        self.send: Final = events.send
        self.max_in_flight: Final = max_in_flight
        self.lines: Final = lines
        self.clock: Final = clock
        self.timeout: Final = call_timeout
        self.sweep: Final[Sweep[Publishing] | None] = Sweep(_late) if call_timeout < ACK_TIMEOUT else None
        """The deadlines of publishes, unless NATS's own come before them."""
        self.shares: Final[dict[Peer, Share]] = {}
        """What counts of those who have such messages on their way."""
        self._rooms: dict[str, int] = {}

    @method("event.publish", scope=AUTHENTICATED, forwards=True, result=Published)
    def publish(self, peer: Connection, params: PublishParams) -> Any:
        """Publish a message. Needs the scope `publish:` for the topic."""
        topic, data = params.topic, params.data
        room = self._rooms.get(topic) or self._remember(topic)
        if not peer.principal.allows(f"publish:{topic}"):
            raise forbidden(topic)
        if len(data) > room:
            raise too_large(room)
        return Publishing(self, topic, bytes(data))

    def _remember(self, topic: str) -> int:
        """Return the room for the data of a message, and remember it. Raises BadParams for what is no topic."""
        room = self._room(topic)
        if len(self._rooms) >= TOPICS:
            self._rooms.clear()
        self._rooms[topic] = room
        return room


class Share:
    """The bytes that one connection has on their way to NATS, as far as they count.

    Those of large messages do, and a part for each message that it does not wait for any more. All others are few,
    because no more requests of one connection may be in flight. If it has more than `SHARE` it is read no more.
    """

    __slots__ = ("_caller", "_waits", "octets")

    def __init__(self, caller: Peer) -> None:
        self._caller = caller
        self._waits = False
        self.octets = 0

    def take(self, octets: int) -> None:
        """Count so many bytes more."""
        self.octets += octets
        if self.octets > SHARE and not self._waits:
            self._waits = True
            self._caller.wait()

    def give_back(self, octets: int) -> None:
        """Count so many bytes no longer."""
        self.octets -= octets
        if self.octets <= SHARE and self._waits:
            self._waits = False
            self._caller.go_on()


class Publishing(msgspec.Struct, eq=False, gc=False):
    """A message that is to be published: a `requests.Forward`, and once that is done a `requests.Request`.

    It is harmless that the garbage collector does not see it, as with `nodes.routed.RoutedCall`.
    """

    methods: SharedEventMethods
    topic: str
    data: bytes
    caller: Peer | None = None
    """The connection that waits for the acknowledgement; None if no one does, or any more."""
    request_id: bytes = b""
    batch: Batch | None = None
    tally: Tally | None = None
    begun: float = 0.0
    holds_up: bool = False
    """Whether no more is read from the caller until it is over."""
    counted: tuple[Peer, int] | None = None
    """In whose share it counts until it is acknowledged, and for how much."""

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Publish it. Raises Refusal if it is not published, and never will be.

        What is published is not refused any more. So if too many requests are in flight, the caller is read no more.
        """
        methods, data = self.methods, self.data
        send, clock = methods.send, methods.clock  # read before they are called, as in `Router.send`
        send(self.topic, data, caller.principal.name, self.done)
        self.caller, self.request_id, self.batch, self.tally = caller, request_id, batch, tally
        self.data = b""
        if len(data) > SMALL:
            self._count(caller, len(data))
        running = caller.running
        if len(running) >= methods.max_in_flight:
            self.holds_up = True
            caller.wait()
        running[request_id or self] = self
        if batch is not None:
            batch.expect()
        if methods.sweep is not None:
            methods.sweep.begin(self, methods.timeout)
        self.begun = clock()

    def done(self, result: Position | Refusal) -> None:
        """Answer the request, unless it is over: the message is published, or may not be."""
        if self.counted is not None:
            self._count_no_longer(*self.counted)
        caller = self.caller
        if caller is None:
            return
        if isinstance(result, Refusal):
            reply = failure(caller, "event.publish", self.request_id, result, self.methods.lines)
            self._over(caller, result.error.name, reply)
        else:
            epoch, offset = result
            said = b'{"jsonrpc":"2.0","id":%b,"result":{"offset":%d,"epoch":"%b"}}'
            self._over(caller, OK, said % (self.request_id, offset, epoch.encode()))

    def cancel(self, verdict: RpcError) -> None:
        """Wait for the acknowledgement no more. The message may be published nonetheless."""
        if self.caller is not None and self.counted is None:
            self._count(self.caller, max(1, SHARE // self.methods.max_in_flight))
        self._end(verdict, verdict.name)

    def abandon(self) -> None:
        """Do the same, because the caller is gone."""
        self._end(errors.CANCELLED, CALLER_LOST)

    @property
    def stream(self) -> None:
        """None: it is no stream."""

    def drained(self) -> None:
        """Do nothing: it has sent nothing yet."""

    def _count(self, caller: Peer, octets: int) -> None:
        """Count it in its caller's share."""
        shares = self.methods.shares
        self.counted = caller, octets
        shares.setdefault(caller, Share(caller)).take(octets)

    def _count_no_longer(self, caller: Peer, octets: int) -> None:
        shares = self.methods.shares
        share = shares[caller]
        share.give_back(octets)
        if not share.octets:
            del shares[caller]

    def _end(self, verdict: RpcError, outcome: str) -> None:
        if self.caller is not None:
            self._over(self.caller, outcome, jsonrpc.error_reply(self.request_id, verdict))

    def _over(self, caller: Peer, outcome: str, reply: bytes | None) -> None:
        """Count how it ended, and give the caller its reply, alone or within its batch."""
        methods, request_id = self.methods, self.request_id
        self.caller = None
        clock = methods.clock
        if self.tally is not None:
            self.tally.ended(outcome, clock() - self.begun)
        del caller.running[request_id or self]
        if methods.sweep is not None:
            methods.sweep.done(self)
        if self.holds_up:
            caller.go_on()
        if self.batch is not None:
            self.batch.done(request_id, reply if request_id else None)
        elif request_id and reply is not None:
            send = caller.send
            send(reply)
        if caller.leaving:
            caller.settled()


def _late(publishing: Publishing) -> None:
    publishing.cancel(errors.TIMEOUT)
