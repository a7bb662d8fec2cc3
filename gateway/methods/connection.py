"""`connection.*`: lists open and ended connections, ends a connection, and lets one outlive its link."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway import errors
from gateway.auth.scopes import ADMIN
from gateway.connections.connection import Connection
from gateway.connections.history import HISTORY
from gateway.connections.history import Closed as Ended
from gateway.connections.registry import Connections
from gateway.connections.sessions import Sessions
from gateway.handshake.resumption import Resumption
from gateway.methods.everywhere import alone, answering, each, unanswered
from gateway.rpc import jsonrpc
from gateway.rpc.method import AUTHENTICATED, BadParams, Continue, Refusal, Then, method
from gateway.timestamps import rfc3339
from gateway.websocket.frames import cut

if TYPE_CHECKING:  # a gateway alone does not load it
    from gateway.cluster.asking import Asking

Limit = Annotated[int, Meta(ge=1, le=200)]

_LIST: Final = "connection.list"
_GET: Final = "connection.get"
_CLOSE: Final = "connection.close"
_HISTORY: Final = "connection.history"


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
    """``after`` is the ``next`` of the previous page. With ``role`` only the connections of that role are listed.

    With ``member`` only that gateway of a cluster is asked: its name, or the id of its instance.
    """

    limit: Limit = 100
    after: str = ""
    role: str | None = None
    member: str | None = None


class ConnectionParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Names one connection, and, if that is known, the ``member`` of the cluster that has it."""

    conn_id: str
    member: str | None = None


class CloseParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Names the connection to close, and, if that is known, the ``member`` of the cluster that has it.

    ``reason`` is put into the close frame, and cut to 123 bytes.
    """

    conn_id: str
    reason: str = ""
    member: str | None = None


class HistoryParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """With ``connId`` only that connection is listed. ``limit`` is how many are, at most.

    With ``member`` only that gateway of a cluster is asked: its name, or the id of its instance.
    """

    limit: Annotated[int, Meta(ge=1, le=HISTORY)] = 100
    conn_id: str | None = None
    member: str | None = None


class ConnectionInfo(msgspec.Struct, rename="camel", omit_defaults=True):
    """One open connection. Times are RFC 3339 in UTC. Bytes are those on the wire.

    One that has lost its link is ``held``, for ``holdLeftMs`` more; otherwise both are left out. In a cluster
    ``member`` is the gateway that it is connected to.
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
    member: str | UnsetType = UNSET


class Page(msgspec.Struct):
    """One page of open connections. ``next`` is null on the last page.

    In a cluster ``missing`` names the gateways that have not answered.
    """

    connections: list[ConnectionInfo]
    next: str | None
    missing: list[str] | UnsetType = UNSET


class ClosedInfo(msgspec.Struct, rename="camel"):
    """One connection that has ended. ``cause`` and ``code`` say why. ``duration`` is in seconds.

    In a cluster ``member`` is the gateway that it was connected to.
    """

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
    member: str | UnsetType = UNSET


class History(msgspec.Struct):
    """Connections that have ended, the newest first. In a cluster ``missing`` names who has not answered."""

    connections: list[ClosedInfo]
    missing: list[str] | UnsetType = UNSET


class Closed(msgspec.Struct):
    """The result of `connection.close`."""

    closed: bool = True


_CLOSED: Final = jsonrpc.encode(Closed())
Info = TypeVar("Info", ConnectionInfo, ClosedInfo)


class ConnectionMethods:
    """The methods of `connection.*` for admins, for one registry of connections.

    With ``asking`` they tell of all gateways of the cluster.
    """

    def __init__(self, connections: Connections, sessions: Sessions, asking: Asking | None = None) -> None:
        self._connections = connections
        self._sessions = sessions
        self._asking = asking
        if asking is not None:
            asking.register(_LIST, answering(ListParams, self._page))
            asking.register(_GET, answering(ConnectionParams, self._look))
            asking.register(_CLOSE, answering(CloseParams, self._close))
            asking.register(_HISTORY, answering(HistoryParams, self._ended))

    @method(_LIST, scope=ADMIN)
    def list(self, peer: Connection, params: ListParams) -> Page:
        """List the open connections, a page at a time, in the order of their connIds.

        If a connection opens or ends between two pages, each other connection is still listed once.
        """
        asking = self._asking
        if asking is not None:
            raise Continue(lambda: _page_of_all(asking, params))
        alone(params.member)
        return self._page(params)

    def _page(self, params: ListParams) -> Page:
        after, role = params.after, params.role
        ids = [conn_id for conn_id in self._connections if conn_id > after]
        if role is not None:
            ids = [conn_id for conn_id in ids if self._connections[conn_id].principal.role == role]
        page = heapq.nsmallest(params.limit + 1, ids)
        rest = len(page) > params.limit
        page = page[: params.limit]
        return Page([self._info(self._connections[conn_id]) for conn_id in page], page[-1] if rest else None)

    @method(_GET, scope=ADMIN)
    def get(self, peer: Connection, params: ConnectionParams) -> ConnectionInfo:
        """Return one open connection."""
        asking = self._asking
        if asking is not None:
            raise Continue(lambda: _one_of_all(asking, params))
        alone(params.member)
        for info in self._look(params):
            return info
        raise _not_found(params.conn_id)

    def _look(self, params: ConnectionParams) -> Sequence[ConnectionInfo]:
        """Return the connection if it is here."""
        connection = self._connections.get(params.conn_id)
        return [] if connection is None else [self._info(connection)]

    @method(_CLOSE, scope=ADMIN)
    def close(self, peer: Connection, params: CloseParams) -> Closed:
        """Close a connection with 4501, after which its client does not reconnect by itself."""
        asking = self._asking
        if params.conn_id not in self._connections and asking is not None:
            raise Continue(lambda: _close_elsewhere(asking, params))
        if asking is None:
            alone(params.member)
        closed = self._close(params)
        if not closed.closed:
            raise _not_found(params.conn_id)
        return closed

    def _close(self, params: CloseParams) -> Closed:
        connection = self._connections.get(params.conn_id)
        if connection is None:
            return Closed(False)
        end = errors.CLOSED_BY_OPERATOR
        ending = partial(connection.end, end._replace(reason=cut(params.reason) or end.reason))
        asyncio.get_running_loop().call_soon(ending)  # after this reply, if the connection is the caller's own
        return Closed()

    @method(_HISTORY, scope=ADMIN)
    def history(self, peer: Connection, params: HistoryParams) -> History:
        """List the connections that have ended, and why. A thousand are kept; the newest come first.

        If there are more, the oldest of the principal that has the most is dropped, or of the address if it named none.
        """
        asking = self._asking
        if asking is not None:
            raise Continue(lambda: _history_of_all(asking, params))
        alone(params.member)
        return self._ended(params)

    def _ended(self, params: HistoryParams) -> History:
        wanted = params.conn_id
        of = (one for one in reversed(self._connections.history) if wanted is None or one.conn_id == wanted)
        return History([_past(one) for one in islice(of, params.limit)])

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


def _past(closed: Ended) -> ClosedInfo:
    return ClosedInfo(
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


async def _page_of_all(asking: Asking, params: ListParams) -> Page:
    """Return a page of the connections of all members. Each gives a page as long: what may be in it is in theirs."""
    pages, missing = each(await asking.ask(_LIST, jsonrpc.encode(params), member=params.member), Page)
    found = [_at(name, one) for name, page in pages for one in page.connections]
    page = heapq.nsmallest(params.limit, found, key=attrgetter("conn_id"))
    rest = len(found) > params.limit or any(page.next is not None for _, page in pages)
    return Page(page, page[-1].conn_id if rest else None, sorted(missing))


async def _one_of_all(asking: Asking, params: ConnectionParams) -> ConnectionInfo:
    told = await asking.ask(_GET, jsonrpc.encode(params), member=params.member, enough=_is_there)
    found, missing = each(told, list[ConnectionInfo])
    for name, infos in found:
        for info in infos:
            return _at(name, info)
    raise _not_found(params.conn_id, **({"missing": missing} if missing else {}))


async def _close_elsewhere(asking: Asking, params: CloseParams) -> Closed:
    told = await asking.ask(_CLOSE, jsonrpc.encode(params), member=params.member, enough=_has_closed)
    answers, missing = each(told, Closed)
    if any(answer.closed for _, answer in answers):
        return Closed()
    raise unanswered(missing) if missing else _not_found(params.conn_id)


async def _history_of_all(asking: Asking, params: HistoryParams) -> History:
    histories, missing = each(await asking.ask(_HISTORY, jsonrpc.encode(params), member=params.member), History)
    found = [_at(name, one) for name, history in histories for one in history.connections]
    return History(heapq.nlargest(params.limit, found, key=attrgetter("closed_at")), sorted(missing))


def _at(member: str, info: Info) -> Info:
    info.member = member
    return info


def _is_there(answer: bytes) -> bool:
    return answer != b"[]"


def _has_closed(answer: bytes) -> bool:
    return answer == _CLOSED


def _not_found(conn_id: str, **data: object) -> Refusal:
    return Refusal(errors.NOT_FOUND, f"no open connection {conn_id[:36]!r}; see connection.history", **data)


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
