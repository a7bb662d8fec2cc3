"""How a connection that has lost its link goes on by that of a new connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from gateway import errors
from gateway.connections.connection import Connection
from gateway.connections.sessions import Sessions
from gateway.handshake.admission import Admission
from gateway.rpc.method import Refusal


class Resumption:
    """Checks who comes back, and puts the new link in its place. ``back`` is called with each connection after that."""

    def __init__(self, sessions: Sessions, admission: Admission, back: Callable[[Connection], None]) -> None:
        self._sessions: Final = sessions
        self._admission: Final = admission
        self._back: Final = back

    def check(
        self, newcomer: Connection, secret: str, received: int, attempt: int
    ) -> tuple[Connection, Callable[[], None]]:
        """Return the connection that goes on, and what makes it do so: call that once the reply has been sent.

        ``received`` is the number of the last message that the client has had; ``attempt`` grows with each try. Raises
        Refusal, and then the new connection is an ordinary one, unless its credential is gone.
        """
        if not newcomer.is_fresh:
            self._sessions.resumes["conflict"] += 1
            right = "it must be the first message of a link, or the first after gateway.authenticate"
            raise Refusal(errors.CONFLICT, right)
        if not self._admission.renewed(newcomer):
            raise Refusal(errors.UNAUTHENTICATED, "the credential was revoked")
        connection = self._sessions.find(secret, newcomer.principal, received, attempt)
        return connection, partial(self._go_on, connection, newcomer)

    def _go_on(self, connection: Connection, newcomer: Connection) -> None:
        session = connection.session
        if session is None or not newcomer.is_linked or not connection.lose_link():
            return
        waited = session.hold - (self._sessions.left(connection) or 0.0)
        remote, credential = connection.remote, newcomer.credential
        connection.take(newcomer, round(waited, 3))
        self._sessions.back(connection)
        self._admission.places.move(connection, remote)
        self._admission.adopted(connection, credential)
        connection.rewrite()
        self._back(connection)
