"""What a request in flight is, where it comes from, and where it may go."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.errors import Disconnect, RpcError
from gateway.limits import Bucket
from gateway.rpc.calls import Callee, Link
from gateway.rpc.jsonrpc import ABSENT, Message
from gateway.rpc.method import Method
from gateway.rpc.replies import SMALL, Batch, Caller
from gateway.rpc.streams import Grant, Pool
from gateway.telemetry.counts import Tally


class Party(Callee, Protocol):
    """A peer at one end of a stream."""

    pool: Pool | None
    """What its streams have in common; None as long as it has had none."""

    @property
    def elsewhere(self) -> bool:
        """Whether it is at another gateway, or is one. That gateway has deadlines of its own for the same streams."""

    @property
    def is_open(self) -> bool:
        """Whether it is open, and has not begun to end. It may be held."""

    @property
    def room(self) -> int:
        """How many bytes others may send to it by its streams, in all. Below zero if too much waits for it already."""

    @property
    def flowing(self) -> bool:
        """Whether what is sent to it leaves at once."""


class Peer(Party, Caller, Protocol):
    """The connection that a message came from."""

    principal: Principal
    bucket: Bucket | None
    running: dict[object, Request]
    """What is in flight for it: requests by their id, notifications by an object of their own."""

    @property
    def crowded(self) -> bool:
        """Whether it has lost its link, and so much is kept for it that of reports only the latest are."""

    def wait(self) -> None:
        """Read no more from it until `go_on`. Once for each reason to wait."""

    def go_on(self) -> None:
        """End one `wait`."""

    @property
    def unheeding(self) -> bool:
        """Whether it has held others up for as long as it may, and has not read everything since."""

    def hold_up(self, sender: Link) -> None:
        """Read no more from ``sender`` until the peer has read what waits for it. May be called again."""

    def end(self, end: Disconnect) -> None:
        """End the connection, for this reason."""


class Stream(Protocol):
    """A stream, as its caller has it in flight. Each method returns whether it had any effect."""

    def granted(self, grant: Grant) -> bool:
        """Take a grant for the node."""

    def pushed(self, value: bytes) -> bool:
        """Take a value for the node, in JSON."""

    def finish(self) -> bool:
        """Note that no more values come."""


class Request(Protocol):
    """A request in flight."""

    @property
    def stream(self) -> Stream | None:
        """The stream that it is; None if it is none."""

    def cancel(self, verdict: RpcError) -> None:
        """End it, for this reason."""

    def abandon(self) -> None:
        """End it, because the caller is gone."""

    def drained(self) -> None:
        """Send what has waited until the caller has read."""


class Forward(Protocol):
    """What a method with ``forwards`` returns: it sends the method's request on, to where the answer comes from."""

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Send the request on; its answer goes to the caller, and its outcome into ``tally``.

        ``request_id`` is empty for a notification. Raises Refusal if the request is not sent on.
        """


class Route(Protocol):
    """Takes the requests whose method the gateway does not have itself (`nodes.routing.Router`)."""

    @property
    def tally(self) -> Tally:
        """What became of these requests."""

    def call(self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None) -> None:
        """Send a request on, or a notification, whose ``request_id`` is empty. Raises Refusal if that cannot be."""


class Running:
    """The task of one ``async def`` method, and the request that it runs for."""

    __slots__ = (
        "abandoned",
        "batch",
        "begun",
        "held",
        "key",
        "method",
        "peer",
        "request_id",
        "task",
        "traceparent",
        "verdict",
    )

    def __init__(self, peer: Peer, method: Method, message: Message, batch: Batch | None, begun: float) -> None:
        self.peer = peer
        self.method = method
        self.request_id = b"" + message.id
        self.key: object = self.request_id or object()
        # A copy, because it would keep the whole message. Only a request that is sent on needs it.
        self.traceparent = message.traceparent.copy() if method.forwards else ABSENT
        self.batch = batch
        self.begun = begun
        # What the peer's account holds for it: see Dispatcher._make_room().
        self.held = len(message.params) if len(message.params) > SMALL else 0
        self.abandoned = False
        self.task: asyncio.Task[Any] | None = None
        self.verdict: RpcError | None = None
        """Why it is being cancelled."""

    def cancel(self, verdict: RpcError) -> None:
        """Cancel the task, for this reason. The first verdict stands; later calls do nothing."""
        if self.task is not None and self.verdict is None:
            self.verdict = verdict
            self.task.cancel()

    def abandon(self) -> None:
        """Cancel the task, because the caller is gone."""
        self.abandoned = self.verdict is None
        self.cancel(errors.CANCELLED)

    @property
    def stream(self) -> None:
        """None: it is no stream."""

    def drained(self) -> None:
        """Do nothing: it has sent nothing yet."""
