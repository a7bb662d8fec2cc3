"""`gateway.*`: the gateway itself, and the welcome of each connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway import __version__
from gateway.auth.credentials import PrincipalInfo, described
from gateway.auth.scopes import NOBODY, Principal
from gateway.config import Config
from gateway.connections.connection import Connection
from gateway.connections.registry import Connections
from gateway.handshake.admission import Admission
from gateway.handshake.preauth import AuthenticateParams
from gateway.limits import Rate
from gateway.methods.everywhere import Shared, alone, answering, each, unanswered
from gateway.rpc import jsonrpc
from gateway.rpc.method import AUTHENTICATED, Continue, Refusal, method
from gateway.rpc.steps import Steps
from gateway.rpc.work import at_once
from gateway.status import Status
from gateway.timestamps import rfc3339
from gateway.websocket import frames

if TYPE_CHECKING:  # a gateway alone does not load it
    from gateway.cluster.asking import Asking

PROTOCOL: Final = 1
"""The version of the protocol, as it is in `gateway.welcome`."""

_INFO: Final = "gateway.info"


class ServerInfo(msgspec.Struct, rename="camel"):
    """Which gateway this is. ``instance`` is different after every start."""

    name: str
    version: str
    instance: str


class Heartbeat(msgspec.Struct, rename="camel"):
    """Two durations in seconds, as in the section `heartbeat` of the configuration."""

    interval: float
    timeout: float


@lru_cache(maxsize=1024)
def _encoded(principal: Principal) -> bytes:
    """Encode a principal for the welcome. Remembered, because most peers have been connected before."""
    return jsonrpc.encode(None if principal is NOBODY else described(principal))


class Limits(msgspec.Struct, rename="camel"):
    """What one connection may use. Times are in milliseconds.

    ``rate`` is in requests a second, and ``burst`` requests may come at once. If both are 0, there is no limit.
    """

    max_message_bytes: int
    max_in_flight: int
    max_batch: int
    max_outbox_bytes: int
    call_timeout_ms: int
    max_call_timeout_ms: int
    rate: float
    burst: int


class Counts(msgspec.Struct, rename="camel"):
    """How many connections there are now, and how many there have been since the start.

    In a cluster ``nodes`` is how many nodes are connected to this gateway.
    """

    connections: int
    connections_total: int
    nodes: int | UnsetType = UNSET


class MemberInfo(msgspec.Struct, rename="camel"):
    """A gateway of a cluster: its name, and how long it has run, ``since`` when (RFC 3339 in UTC).

    ``nodes`` and ``connections`` are those that it has now.
    """

    member: str
    instance: str
    version: str
    since: str
    nodes: int
    connections: int


class InfoParams(msgspec.Struct, forbid_unknown_fields=True):
    """With ``member`` that gateway of a cluster tells of itself: its name, or the id of its instance."""

    member: str | None = None


class Info(msgspec.Struct, rename="camel"):
    """The result of `gateway.info`. ``uptime`` is in seconds.

    In a cluster ``member`` is the gateway's own name, ``members`` are all gateways, this one included, and ``missing``
    names those that have not answered. ``cluster`` is "joined", or "lost" while this gateway is without NATS, and
    ``events`` is "lost" if only events are out of reach.
    """

    server: ServerInfo
    protocol: int
    uptime: float
    heartbeat: Heartbeat
    limits: Limits
    counts: Counts
    member: str | UnsetType = UNSET
    members: list[MemberInfo] | UnsetType = UNSET
    missing: list[str] | UnsetType = UNSET
    cluster: str | UnsetType = UNSET
    events: str | UnsetType = UNSET


Fleet = tuple[list[MemberInfo], list[str]]
"""All gateways of a cluster, and the names of those that have not answered."""

Answers = tuple[list[tuple[str, Info]], list[str]]
"""What gateways have said of themselves, with their names, and the names of those that have not answered."""


class GatewayMethods:
    """The methods of `gateway.*`, and the welcome, which has much of the same content.

    With ``asking`` `gateway.info` tells of all gateways of the cluster. ``nodes`` returns how many nodes are here,
    ``state`` the members ``cluster`` and ``events`` of `gateway.info`.
    """

    def __init__(
        self,
        config: Config,
        status: Status,
        connections: Connections,
        admission: Admission,
        steps: Steps,
        *,
        asking: Asking | None,
        nodes: Callable[[], int],
        state: Callable[[], Mapping[str, str]],
    ) -> None:
        self._admission = admission
        self._steps = steps
        self._status = status
        self._connections = connections
        self._server = ServerInfo("aisopod-gateway", __version__, status.instance)
        self._heartbeat = Heartbeat(config.heartbeat.interval, config.heartbeat.timeout)
        limits = config.limits
        self._limits = Limits(
            limits.max_message_bytes,
            limits.max_in_flight,
            limits.max_batch,
            limits.max_outbox_bytes,
            int(limits.call_timeout * 1000),
            int(limits.max_call_timeout * 1000),
            limits.rate,
            int(Rate(limits.rate, limits.burst).burst) if limits.rate else 0,
        )
        self._welcome = self._welcome_around("\0 connId", "\0 principal")
        self._asking = asking
        self._nodes = nodes
        self._state = state
        self._fleet: Shared[Fleet] = Shared()
        self._told: Shared[Answers] = Shared()
        if asking is not None:
            asking.register(_INFO, answering(InfoParams, lambda params: self._own()))

    @method("gateway.authenticate", scope=AUTHENTICATED)
    def authenticate(self, peer: Connection, params: AuthenticateParams) -> PrincipalInfo:
        """Take a new credential of the same principal, at any time, and return the principal.

        Calls and subscriptions stay. If the connection has not brought a credential yet, this is its first message. A
        wrong credential leaves an open connection as it was.
        """
        peer.introductions += 1
        if not self._admission.refreshes_at_once(peer):
            raise Continue(lambda: self._begin_to_authenticate(peer, params.token))
        at_once(self._admission.refresh(peer, params.token))
        return described(peer.principal)

    def _begin_to_authenticate(self, peer: Connection, token: str) -> Coroutine[Any, Any, PrincipalInfo]:
        """Take the credential now, so that what follows has its scopes. The rest is done even if it is cancelled."""
        try:
            return _authenticated(peer, self._steps.begin(self._admission.refresh(peer, token)))
        except Refusal as refusal:
            return _refused(refusal)

    @method("gateway.ping", scope=AUTHENTICATED, while_draining=True)
    def ping(self, peer: Connection, params: bytes) -> Raw:
        """Return the parameters unchanged, or null if there are none."""
        return Raw(params or b"null")

    @method(_INFO, scope=AUTHENTICATED)
    def info(self, peer: Connection, params: InfoParams) -> Info:
        """Return version, instance, uptime, counts and limits of the gateway."""
        asking = self._asking
        if asking is not None:
            raise Continue(lambda: self._of_all(asking, params.member))
        alone(params.member)
        return self._own()

    def _own(self) -> Info:
        connections, asking = self._connections, self._asking
        nodes = UNSET if asking is None else self._nodes()
        counts = Counts(len(connections), connections.opened_total, nodes)
        uptime = round(self._status.uptime, 3)
        member = UNSET if asking is None else asking.name
        info = Info(self._server, PROTOCOL, uptime, self._heartbeat, self._limits, counts, member)
        state = self._state()
        info.cluster, info.events = state.get("cluster", UNSET), state.get("events", UNSET)
        return info

    async def _of_all(self, asking: Asking, member: str | None) -> Info:
        if member is None:
            members, missing = await self._fleet.of(None, lambda: _members(asking))
            info = self._own()
            info.members, info.missing = members, missing
            return info
        here, others = asking.meant(member)
        if here:
            return self._own()
        # By the members, not by what they are called here: so there are no more questions than members.
        found, missing = await self._told.of(tuple(others), lambda: _answers(asking, member))
        for _, info in found:
            return info
        raise unanswered(missing)

    def welcome(self, connection: Connection) -> bytes:
        """Return the first frame that a connection is sent."""
        head, middle, tail = self._welcome
        principal = _encoded(connection.principal)
        return frames.text_frame(head + connection.conn_id.encode() + middle + principal + tail)

    def _welcome_around(self, conn_id: str, principal: str) -> tuple[bytes, bytes, bytes]:
        """Return the parts of the welcome before, between and after ``conn_id`` and ``principal``.

        Only these two differ from connection to connection.
        """
        text = jsonrpc.notification(
            "gateway.welcome",
            {
                "connId": conn_id,
                "protocol": PROTOCOL,
                "server": self._server,
                "heartbeat": self._heartbeat,
                "limits": self._limits,
                "principal": principal,
            },
        )
        head, _, rest = text.partition(jsonrpc.encode(conn_id)[1:-1])
        middle, _, tail = rest.partition(jsonrpc.encode(principal))
        return head, middle, tail


async def _answers(asking: Asking, member: str | None = None) -> Answers:
    return each(await asking.ask(_INFO, b"{}", member=member), Info)


async def _members(asking: Asking) -> Fleet:
    found, missing = await _answers(asking)
    now = time.time()
    members = [
        MemberInfo(
            member=name,
            instance=info.server.instance,
            version=info.server.version,
            since=rfc3339(now - info.uptime),
            nodes=info.counts.nodes or 0,
            connections=info.counts.connections,
        )
        for name, info in found
    ]
    return sorted(members, key=lambda one: (one.member, one.instance)), sorted(missing)


async def _authenticated(peer: Connection, done: asyncio.Future[None]) -> PrincipalInfo:
    await asyncio.shield(done)
    return described(peer.principal)


async def _refused(refusal: Refusal) -> PrincipalInfo:
    raise refusal
