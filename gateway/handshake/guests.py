"""Connections for which there is no room, unless the first thing that they do is to go on with one that is held."""

from __future__ import annotations

from collections.abc import Callable

from gateway import errors
from gateway.connections.connection import Connection, Endpoint
from gateway.connections.history import Closed
from gateway.connections.registry import Connections
from gateway.deadlines import Standstill, Sweep
from gateway.handshake.admission import Admission
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Calls
from gateway.rpc.method import Refusal
from gateway.websocket.frames import Payload, cut

RESUME = "connection.resume"
"""The method of the one message that a guest may send."""


class Guests:
    """The `connections.connection.Endpoint` of guests: they have no place, and one message.

    ``inside`` is the endpoint of a connection that has a place, and ``entered`` is called with each guest that gets
    one after all. ``timeout`` is the time for the first message in seconds, and ``welcome`` makes the first frame.
    """

    def __init__(
        self,
        inside: Endpoint,
        connections: Connections,
        admission: Admission,
        timeout: float,
        *,
        standstill: Standstill,
        welcome: Callable[[Connection], bytes],
        entered: Callable[[Connection], None],
    ) -> None:
        self.calls = Calls()
        self._inside = inside
        self._connections = connections
        self._admission = admission
        self._timeout = timeout
        self._standstill = standstill
        self._welcome = welcome
        self._entered = entered
        self._waiting: Sweep[Connection] = Sweep(self._late)
        self._present: set[Connection] = set()

    def opened(self, connection: Connection) -> None:
        """Welcome a guest."""
        self.invite(connection)
        connection.send_frame(self._welcome(connection))

    def invite(self, connection: Connection) -> None:
        """Count a guest. Its time begins."""
        self._admission.invited(connection)
        self._present.add(connection)
        self._connections.owe(connection)
        self._waiting.begin(connection, self._timeout)

    def _leave(self, connection: Connection) -> None:
        self._waiting.done(connection)
        if connection in self._present:
            self._present.discard(connection)
            self._admission.leaves(connection)
            self._connections.owe_no_more(connection)

    def text(self, connection: Connection, data: Payload) -> None:
        """Take the one message. If it resumes nothing, the connection gets a place or ends."""
        message = jsonrpc.decoded(bytes(data))
        resumes = message is not None and message.method == RESUME
        self._leave(connection)
        if not self._admission.renewed(connection):
            return
        if resumes:
            self._inside.text(connection, data)
            if connection.is_over:
                return
        try:
            self._admission.check_room(connection.credential, connection.remote)
        except Refusal as refusal:
            request_id = b"" if message is None else bytes(message.id)
            if not resumes and request_id and jsonrpc.may_be_id(request_id):
                connection.send(jsonrpc.error_reply(request_id, refusal.error, refusal.detail, **refusal.data))
            connection.end(errors.FLOOD._replace(reason=cut(refusal.detail)))
            return
        connection.endpoint = self._inside
        self._entered(connection)
        if not resumes:
            self._inside.text(connection, data)

    def binary(self, connection: Connection, data: Payload) -> None:
        """End the connection, because only text frames are taken."""
        connection.end(errors.UNSUPPORTED_DATA)

    def release(self, connection: Connection) -> None:
        """Stop the time of a guest that is on its way out."""
        self._waiting.done(connection)

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Forget a guest."""
        self._leave(connection)
        self._connections.remember(connection, closed)

    def _late(self, connection: Connection) -> None:
        grace = self._standstill.left()
        if grace > 0:
            self._waiting.begin(connection, grace)
        else:
            connection.end(errors.HANDSHAKE_TIMEOUT)
