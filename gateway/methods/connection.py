"""`connection.*`: lists open and ended connections, ends a connection, and lets one outlive its link."""

from __future__ import annotations

import asyncio
import heapq
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.auth.scopes import ADMIN
from gateway.connections.connection import Connection
from gateway.connections.history import HISTORY
from gateway.connections.registry import Connections
from gateway.connections.sessions import Sessions
from gateway.handshake.resumption import Resumption
from gateway.rpc.method import AUTHENTICATED, BadParams, Refusal, Then, method
from gateway.timestamps import rfc3339
from gateway.websocket.frames import cut

Limit = Annotated[int, Meta(ge=1, le=200)]


class KeepParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """``holdMs`` is for how long the connection is held after a loss; by default for as long as may be."""

    hold_ms: Annotated[int, Meta(ge=0)] | None = None


class Kept(msgspec.Struct, rename="camel"):
    """``session`` is a secret. ``maxBytes`` is how much may be kept for the connection."""

    session: str
    hold_ms: int
    max_bytes: int


class ResumeParams(msgspec.Struct, forbid_unknown_fields=True):
    """``received`` is how many messages have come by the links before. ``attempt`` grows with each try."""

    session: str
    received: Annotated[int, Meta(ge=0)]
    attempt: Annotated[int, Meta(ge=0)]


class Resumed(msgspec.Struct, rename="camel"):
    """The connection that goes on. ``received`` is how many of the client's messages have come."""

    conn_id: str
    received: int


class AckParams(msgspec.Struct, forbid_unknown_fields=True):
    """``received`` is how many messages have come."""

    received: Annotated[int, Meta(ge=0)]


class ListParams(msgspec.Struct, forbid_unknown_fields=True):
    """``after`` is the ``next`` of the previous page. With ``role`` only the connections of that role are listed."""

    limit: Limit = 100
    after: str = ""
    role: str | None = None


class ConnectionParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Names one connection."""

    conn_id: str


class CloseParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Names the connection to close. ``reason`` is put into the close frame, and cut to 123 bytes."""

    conn_id: str
    reason: str = ""


class HistoryParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """With ``connId`` only that connection is listed. ``limit`` is how many are, at most."""

    limit: Annotated[int, Meta(ge=1, le=HISTORY)] = 100
    conn_id: str | None = None


class ConnectionInfo(msgspec.Struct, rename="camel", omit_defaults=True):
    """One open connection. Times are RFC 3339 in UTC. Bytes are those on the wire.

    One that has lost its link is ``held``, for ``holdLeftMs`` more; otherwise both are left out.
    """

    conn_id: str
    name: str
    role: str
    remote: str
    opened_at: str
    last_seen_at: str
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    in_flight: int
    outbox_bytes: int
    held: bool = False
    hold_left_ms: int | None = None


class Page(msgspec.Struct):
    """One page of open connections. ``next`` is null on the last page."""

    connections: list[ConnectionInfo]
    next: str | None


class ClosedInfo(msgspec.Struct, rename="camel"):
    """One connection that has ended. ``cause`` and ``code`` say why. ``duration`` is in seconds."""

    conn_id: str
    name: str
    role: str
    remote: str
    opened_at: str
    closed_at: str
    duration: float
    cause: str
    code: int
    reason: str
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int


class History(msgspec.Struct):
    """Connections that have ended, the newest first."""

    connections: list[ClosedInfo]


class Closed(msgspec.Struct):
    """The result of `connection.close`."""

    closed: bool = True


class ConnectionMethods:
    """The methods of `connection.*` for admins, for one registry of connections."""

    def __init__(self, connections: Connections, sessions: Sessions) -> None:
        self._connections = connections
        self._sessions = sessions

    @method("connection.list", scope=ADMIN)
    def list(self, peer: Connection, params: ListParams) -> Page:
        """List the open connections, a page at a time, in the order of their connIds.

        If a connection opens or ends between two pages, each other connection is still listed once.
        """
        after, role = params.after, params.role
        ids = [conn_id for conn_id in self._connections if conn_id > after]
        if role is not None:
            ids = [conn_id for conn_id in ids if self._connections[conn_id].principal.role == role]
        page = heapq.nsmallest(params.limit + 1, ids)
        rest = len(page) > params.limit
        page = page[: params.limit]
        return Page([self._info(self._connections[conn_id]) for conn_id in page], page[-1] if rest else None)

    @method("connection.get", scope=ADMIN)
    def get(self, peer: Connection, params: ConnectionParams) -> ConnectionInfo:
        """Return one open connection."""
        return self._info(self._find(params.conn_id))

    @method("connection.close", scope=ADMIN)
    def close(self, peer: Connection, params: CloseParams) -> Closed:
        """Close a connection with 4501, after which its client does not reconnect by itself."""
        end = errors.CLOSED_BY_OPERATOR
        ending = partial(self._find(params.conn_id).end, end._replace(reason=cut(params.reason) or end.reason))
        asyncio.get_running_loop().call_soon(ending)  # after this reply, if the connection is the caller's own
        return Closed()

    @method("connection.history", scope=ADMIN)
    def history(self, peer: Connection, params: HistoryParams) -> History:
        """List the connections that have ended, and why. A thousand are kept; the newest come first.

        If there are more, the oldest of the principal that has the most is dropped, or of the address if it named none.
        """
        found: list[ClosedInfo] = []
        for closed in reversed(self._connections.history):
            if params.conn_id is None or closed.conn_id == params.conn_id:
                found.append(
                    ClosedInfo(
                        conn_id=closed.conn_id,
                        name=closed.principal.name,
                        role=closed.principal.role,
                        remote=closed.remote,
                        opened_at=rfc3339(closed.closed_at - closed.duration),
                        closed_at=rfc3339(closed.closed_at),
                        duration=closed.duration,
                        cause=closed.end.cause,
                        code=closed.end.code,
                        reason=closed.end.reason,
                        messages_in=closed.messages_in,
                        messages_out=closed.messages_out,
                        bytes_in=closed.bytes_in,
                        bytes_out=closed.bytes_out,
                    )
                )
                if len(found) == params.limit:
                    break
        return History(found)

    def _find(self, conn_id: str) -> Connection:
        connection = self._connections.get(conn_id)
        if connection is None:
            raise Refusal(errors.NOT_FOUND, f"no open connection {conn_id[:36]!r}; see connection.history")
        return connection

    def _info(self, connection: Connection) -> ConnectionInfo:
        left = self._sessions.left(connection)
        return ConnectionInfo(
            conn_id=connection.conn_id,
            name=connection.principal.name,
            role=connection.principal.role,
            remote=connection.remote,
            opened_at=rfc3339(connection.opened_at),
            last_seen_at=rfc3339(connection.last_seen_at),
            messages_in=connection.messages_in,
            messages_out=connection.messages_out,
            bytes_in=connection.bytes_in,
            bytes_out=connection.bytes_out,
            in_flight=connection.in_flight,
            outbox_bytes=connection.outbox_bytes,
            held=connection.held is not None,
            hold_left_ms=None if left is None else int(left * 1000),
        )


class SessionMethods:
    """The methods of `connection.*` by which a connection outlives its link."""

    def __init__(self, sessions: Sessions, resumption: Resumption) -> None:
        self._sessions = sessions
        self._resumption = resumption

    @method("connection.keep", scope=AUTHENTICATED, alone="request")
    def keep(self, peer: Connection, params: KeepParams) -> Then[Kept]:
        """Let this connection outlive its link, if the client comes back in time with `connection.resume`.

        From now on both sides number their messages. Acknowledge at once with `connection.ack`: only then is a loss
        held. Once a connection.
        """
        most = int(self._sessions.hold_timeout * 1000)
        hold = most if params.hold_ms is None else params.hold_ms
        if hold > most:
            raise BadParams(f"holdMs: at most {most}, see server.hold_timeout")
        if peer.session is not None:
            raise Refusal(errors.CONFLICT, "this connection is kept already")
        secret = self._sessions.secret()
        begin = partial(self._sessions.keep, peer, secret, hold / 1000)
        return Then(Kept(secret, hold, self._sessions.max_bytes), begin)

    @method("connection.resume", scope=AUTHENTICATED, alone="request")
    def resume(self, peer: Connection, params: ResumeParams) -> Then[Resumed]:
        """Go on with the connection of a session by this link. It must be the link's first message.

        After the reply comes what the client has not had. Its own messages after `received` it sends again.
        """
        connection, go_on = self._resumption.check(peer, params.session, params.received, params.attempt)
        session = connection.session
        return Then(Resumed(connection.conn_id, 0 if session is None else session.received), go_on)

    @method("connection.ack", scope=AUTHENTICATED, alone="notification")
    def ack(self, peer: Connection, params: AckParams) -> None:
        """Acknowledge the messages up to this number, which are not sent again. It does not count itself."""
        self._sessions.acknowledged(peer, params.received)
