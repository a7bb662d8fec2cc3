"""A connection that owes its credential: it has one message, 64 KiB, and what is left of the handshake's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.auth.credentials import described
from gateway.connections.connection import Connection, Endpoint
from gateway.connections.history import Closed
from gateway.connections.registry import Connections
from gateway.deadlines import Standstill, Sweep
from gateway.errors import Disconnect
from gateway.handshake.admission import Admission, GuestError
from gateway.handshake.guests import Guests
from gateway.handshake.rejections import Rejections
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Calls
from gateway.rpc.jsonrpc import Message
from gateway.rpc.method import BadParams, Method, Refusal
from gateway.websocket.frames import Payload, cut

MAX_FIRST_MESSAGE: Final = 64 * 1024
"""Bytes of the message that brings the credential, at most."""

_FRAMING: Final = 1024
"""Bytes that may come besides: the message's header, and a ping or two."""

_ENDS: Final = {
    errors.UNAUTHENTICATED: errors.CLOSED_UNAUTHENTICATED,
    errors.INVALID_PARAMS: errors.CLOSED_UNAUTHENTICATED,
    errors.RATE_LIMITED: errors.FLOOD,
    errors.OVERLOADED: errors.FLOOD,
}
"""How each refusal of a first message ends the connection."""


class AuthenticateParams(msgspec.Struct, forbid_unknown_fields=True):
    """``token``: a token, or a JSON Web Token, without the word Bearer. It has at most 16,384 bytes."""

    token: Annotated[str, Meta(max_length=MAX_FIRST_MESSAGE)]


class Preauth:
    """The `connections.connection.Endpoint` of the connections that owe their credential.

    ``inside`` is the endpoint of a connection that has brought it, and ``entered`` is called with each of them.
    ``timeout`` is the handshake's whole time in seconds. A connection has what is left of it, or all of it if its
    handshake had no deadline, and more if ``standstill`` grants it. ``authenticate`` is the method of that name, and
    ``welcome`` makes the first frame. A connection for which there is no place may go to the ``guests``.
    """

    def __init__(
        self,
        inside: Endpoint,
        connections: Connections,
        admission: Admission,
        rejections: Rejections,
        *,
        timeout: float,
        standstill: Standstill,
        authenticate: Method,
        welcome: Callable[[Connection], bytes],
        entered: Callable[[Connection], None],
        guests: Guests,
    ) -> None:
        self.calls = Calls()
        self._inside = inside
        self._connections = connections
        self._admission = admission
        self._rejections = rejections
        self._timeout = timeout
        self._standstill = standstill
        self._authenticate = authenticate
        self._welcome = welcome
        self._entered = entered
        self._guests = guests
        self._waiting: Sweep[Connection] = Sweep(self._late)
        self._told: set[Connection] = set()

    def opened(self, connection: Connection) -> None:
        """Welcome a connection, which has no principal yet. The handshake's time runs on."""
        left = connection.handshake_left
        self._admission.owes(connection)
        self._connections.owe(connection)
        connection.restrict(MAX_FIRST_MESSAGE + _FRAMING)
        self._waiting.begin(connection, self._timeout if left is None else left)
        connection.send_frame(self._welcome(connection))

    def text(self, connection: Connection, data: Payload) -> None:
        """Take the one message: if it is not a right `gateway.authenticate`, the connection ends."""
        if len(data) > MAX_FIRST_MESSAGE:
            self._refuse(connection, errors.MESSAGE_TOO_BIG, "the first message is too big")
            return
        message, request_id = _decoded(data)
        guest = False
        try:
            credential = self._admission.by_message(connection, self._token(message))
        except GuestError as found:
            credential, guest = found.credential, True
        except Refusal as refusal:
            if request_id:
                connection.send(jsonrpc.error_reply(request_id, refusal.error, refusal.detail, **refusal.data))
            self._refuse(connection, _ENDS[refusal.error]._replace(reason=cut(refusal.detail)), refusal.detail)
            return
        self._leave(connection)
        connection.introductions += 1
        connection.adopt(credential)
        if guest:
            connection.enter(self._guests)
            self._guests.invite(connection)
        else:
            connection.enter(self._inside)
            self._entered(connection)
        self._admission.authenticated(connection)
        if request_id:
            connection.send(jsonrpc.result_reply(request_id, jsonrpc.encode(described(connection.principal))))

    def _token(self, message: Message | None) -> str:
        """Return the token in the first message. Raises Refusal in words of our own, because they go into the log."""
        if message is None or message.method != self._authenticate.name:
            raise Refusal(errors.UNAUTHENTICATED, f"the first message must be {self._authenticate.name}")
        try:
            params = self._authenticate.decode(bytes(message.params)) if self._authenticate.decode else None
        except (BadParams, *jsonrpc.UNDECODABLE):
            params = None
        if not isinstance(params, AuthenticateParams):
            raise Refusal(errors.UNAUTHENTICATED, '"params" must be {"token": "…"}')
        return params.token

    def binary(self, connection: Connection, data: Payload) -> None:
        """End the connection, because only text frames are taken."""
        self._refuse(connection, errors.UNSUPPORTED_DATA, "a binary message")

    def release(self, connection: Connection) -> None:
        """Stop the time of a connection that is on its way out."""
        self._waiting.done(connection)

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection that is over and has not entered."""
        self._leave(connection)
        if connection not in self._told:
            self._tell(connection, closed.end, closed.end.cause)
        self._told.discard(connection)
        self._connections.remember(connection, closed)

    def _leave(self, connection: Connection) -> None:
        self._waiting.done(connection)
        self._admission.owes_no_more(connection)
        self._connections.owe_no_more(connection)

    def _refuse(self, connection: Connection, end: Disconnect, why: str) -> None:
        self._waiting.done(connection)
        self._tell(connection, end, why)
        connection.end(end)

    def _tell(self, connection: Connection, end: Disconnect, why: str) -> None:
        """Count the rejection, and log it or not.

        That is one verdict for three things: this line, the line of the connection's end, and its entry in the history.
        """
        self._told.add(connection)
        connection.quiet = not self._rejections.rejected(
            connection.remote, why, "authenticate", connId=connection.conn_id, code=end.code, cause=end.cause
        )

    def _late(self, connection: Connection) -> None:
        grace = self._standstill.left()
        if grace > 0:
            self._waiting.begin(connection, grace)
            return
        self._told.add(connection)
        connection.quiet = not self._rejections.late(
            connection.remote, "authenticate", self._timeout, connId=connection.conn_id
        )
        connection.end(errors.HANDSHAKE_TIMEOUT)


def _decoded(data: Payload) -> tuple[Message | None, bytes]:
    """Return a message and the ``request_id`` to answer under, which is empty for a notification.

    The message is None if it is not a single one that can be decoded.
    """
    try:
        message = jsonrpc.decode(data)
    except jsonrpc.UNDECODABLE:
        return None, b"null"
    request_id = bytes(message.id)
    if request_id and not jsonrpc.may_be_id(request_id):
        return None, b"null"
    return message, request_id
