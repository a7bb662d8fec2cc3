"""A node that is connected to another gateway of the cluster.

In the registry it is a node like all others: calls to it are entered in the same tables, and end in the same ways. Only
what is sent to it goes to its own gateway, as mail.
"""

from __future__ import annotations

from typing import Final

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.nodes.distant import NOTE, REQUEST, UNBOUNDED, Distant, cut
from gateway.nodes.registry import Node
from gateway.nodes.routed import RoutedCall
from gateway.rpc.calls import Call, Calls
from gateway.rpc.streams import Pool

_STREAM: Final = b',"stream":{"credit":'
_BYTES: Final = b',"bytes":'


class RemoteLink:
    """The link of a node that is connected to another gateway: a `calls.Link`."""

    __slots__ = ("_conn_id", "_distant")

    def __init__(self, distant: Distant, conn_id: str) -> None:
        self._distant = distant
        self._conn_id = conn_id

    @property
    def pressed(self) -> bool:
        """Whether so much is on its way to its gateway that those who send have to wait."""
        return self._distant.link.pressed

    @property
    def barred(self) -> bool:
        """Whether others may send nothing more. Whether the node itself reads is looked at by its gateway."""
        return self._distant.link.pressed

    def wait(self) -> None:
        """Have its gateway read no more from the node until `go_on`. Once for each caller that does not read."""
        self._distant.pause(self._conn_id)

    def go_on(self) -> None:
        """End one `wait`."""
        self._distant.resume(self._conn_id)

    def flush(self) -> None:
        """Do nothing: mail leaves at the end of the event-loop iteration."""


class RemotePeer:
    """The connection of a node at another gateway: a `registry.NodePeer`.

    ``number`` tells it from all others. ``held`` is how it has lost its link there, if it has none.
    """

    __slots__ = (
        "__weakref__",
        "_calls",
        "_distant",
        "_suffix",
        "calls",
        "conn_id",
        "held",
        "leaving",
        "link",
        "node",
        "number",
        "pool",
        "principal",
        "remote",
    )

    flowing: Final = True
    room: Final = UNBOUNDED

    def __init__(
        self, distant: Distant, number: int, calls: Calls, *, conn_id: str, remote: str, principal: Principal
    ) -> None:
        self._distant = distant
        self._calls = calls
        self.number: Final = b"%d" % number
        self._suffix = b"-" + self.number
        self.conn_id = conn_id
        self.remote = remote
        self.principal = principal
        self.node: Node | None = None
        self.held: Disconnect | None = None
        self.link = RemoteLink(distant, conn_id)
        self.pool: Pool | None = None
        self.calls: dict[bytes, Call] = {}
        self.leaving = False

    @property
    def is_open(self) -> bool:
        """Whether its gateway is a member, so that it can be told something."""
        return self._distant.is_open

    def pass_on(self, payload: bytes) -> None:
        """Mail what the router has made for the node: a request, a notification about a call, or another one."""
        if payload.startswith(REQUEST):
            end = payload.index(b",", len(REQUEST))
            self._request(payload[len(REQUEST) : end], payload[end:])
        elif payload.startswith(NOTE):
            kind, call_id, said = cut(payload)
            self._distant.tell(kind, said, call_id + self._suffix)
        else:
            self._distant.tell(b"note", self._head(0.0) + b"\n" + payload)

    send = pass_on

    def _request(self, call_id: bytes, rest: bytes) -> None:
        """Mail a call, without its id: the node's gateway gives it another one."""
        call = self.calls[call_id]
        assert isinstance(call, RoutedCall)
        distant, head, token = self._distant, self._head(call.timeout), call_id + self._suffix
        if len(self.calls) == 1:
            distant.busy(self.number, self)
        if call.stream is not None:
            # The member is the last one, and the grant in it is made anew there.
            rest, _, grant = rest.rpartition(_STREAM)
            rest += b"}"
            head += b" " + grant[:-2].replace(_BYTES, b" ")
        if not distant.tell(b"call", b"%b\n%b" % (head, rest), token, distant.unheard(token)):
            self.unheard(call_id)

    def _head(self, timeout: float) -> bytes:
        """Return for which node a message is, which heartbeat of its gateway was heard, and how many ms a call has."""
        return b"%b %b %d" % (self.conn_id.encode(), self._distant.beat, int(timeout * 1000))

    def unheard(self, call_id: bytes) -> None:
        """End a call that has not reached the node's gateway. Harmless if it has ended."""
        call = self._calls.take(self, call_id)
        if call is not None:
            call.failed(errors.NODE_NOT_REACHED)
            self.settled()

    def settled(self) -> None:
        """Note that a call may no longer be in flight."""
        if not self.calls:
            self._distant.idle(self.number)

    def end(self, end: Disconnect) -> None:
        """Do nothing: its own gateway ends it."""
