"""A node that is connected to another gateway of the cluster.

In the registry it is a node like all others: calls to it are entered in the same tables, and end in the same ways. Only
what is sent to it goes to its own gateway, as mail.
"""

from __future__ import annotations

from typing import Any, Final

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.nodes.elsewhere.distant import UNBOUNDED, Distant
from gateway.nodes.elsewhere.mail import CALL, NOTE, REQUEST, SAID, cut
from gateway.nodes.registry import Node, Served
from gateway.nodes.routed import RoutedCall
from gateway.rpc.calls import Call, Calls
from gateway.rpc.streams import Pool

_STREAM: Final = b',"stream":{"credit":'
_BYTES: Final = b',"bytes":'


class RemoteLink:
    """The link of a node that is connected to another gateway: a `calls.Link`.

    ``pressed`` is whether so much is on its way to its gateway that those who send have to wait. Then they may send
    nothing more: it is ``barred``. Whether the node itself reads is looked at by its gateway.
    """

    __slots__ = ("_conn_id", "_distant", "barred", "pressed")

    def __init__(self, distant: Distant, conn_id: str) -> None:
        self._distant = distant
        self._conn_id = conn_id
        self.pressed = self.barred = distant.link.pressed

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
        "_conn_id",
        "_distant",
        "_served",
        "_suffix",
        "_timeout",
        "_where",
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

    elsewhere: Final = True
    flowing: Final = True
    room: Final = UNBOUNDED

    def __init__(
        self, distant: Distant, number: int, calls: Calls, *, conn_id: str, remote: str, principal: Principal
    ) -> None:
        self._distant = distant
        self._calls = calls
        self.number: Final = b"%d" % number
        self._suffix = b"-" + self.number
        self._served: Served | None = None
        self._timeout = 0.0
        self._where = b""
        self._conn_id = conn_id.encode()
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

    def press(self, pressed: bool) -> None:
        """Note whether its gateway takes what is sent to it."""
        self.link.pressed = self.link.barred = pressed

    def pass_on(self, payload: bytes) -> None:
        """Mail what the router has made for the node: a request, a notification about a call, or another one."""
        distant = self._distant
        if not distant.is_open:
            if payload.startswith(REQUEST):
                self.unheard(payload[len(REQUEST) : payload.index(b",", len(REQUEST))])
        elif payload.startswith(REQUEST):
            # Without its id: the node's gateway gives it another one.
            end = payload.index(b",", len(REQUEST))
            call_id = payload[len(REQUEST) : end]
            call: Any = self.calls[call_id]  # a RoutedCall, and no call of cast() for each
            if call.served is not self._served or call.timeout != self._timeout:
                self._name(call.served, call.timeout)
            if self.number not in distant.peers:
                distant.busy(self.number, self)
            if call.__class__ is RoutedCall:
                distant.put(CALL, (call_id + self._suffix, self._where, payload[end:]))
            else:
                # The member that a stream has is the last one, and the grant in it is made anew there.
                rest, _, grant = payload[end:-2].rpartition(_STREAM)
                where = self._where + b" " + grant.replace(_BYTES, b" ")
                distant.put(CALL, (call_id + self._suffix, where, rest + b"}"))
        elif payload.startswith(NOTE):
            kind, call_id, said = cut(payload)
            distant.put(SAID, (kind, call_id + self._suffix, said))
        else:
            distant.put(CALL, (b"", self._conn_id, payload))

    send = pass_on

    def _name(self, served: Served, timeout: float) -> None:
        """Say what is called, and how many milliseconds it has."""
        self._served, self._timeout = served, timeout
        self._where = b"%b %b %d" % (self._conn_id, served.encoded, int(timeout * 1000))

    def unheard(self, call_id: bytes) -> None:
        """End a call that has not reached the node's gateway. Harmless if it has ended."""
        call = self._calls.take(self, call_id)
        if call is not None:
            call.failed(errors.NODE_NOT_REACHED)

    def settled(self) -> None:
        """Do nothing: it does not leave because of a call."""

    def end(self, end: Disconnect) -> None:
        """Do nothing: its own gateway ends it."""
