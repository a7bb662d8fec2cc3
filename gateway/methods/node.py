"""`node.*`: registers connections as nodes, which serve methods, and calls a method of one node."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from gateway import errors
from gateway.auth.scopes import ANY_CALL, callable_by
from gateway.connections.connection import Connection
from gateway.methods.everywhere import alone
from gateway.names import MAX_NAME, RESERVED, is_dotted_name, is_peer_name
from gateway.nodes.registry import MAX_METHODS, Node, Nodes, Served
from gateway.nodes.routing import Router
from gateway.nodes.waiting import Waiting, WaitingCall
from gateway.rpc import jsonrpc
from gateway.rpc.method import AUTHENTICATED, BadParams, Refusal, Then, method
from gateway.rpc.streams import Grant
from gateway.timestamps import rfc3339

if TYPE_CHECKING:  # a gateway alone does not load it
    from gateway.cluster.alive import Member
    from gateway.cluster.asking import Asking

PAGE_METHODS: Final = 2000
"""How many methods of nodes are looked at for one page of `node.list`. Those of the last node may be more."""

PAGE_BYTES: Final = 256 * 1024
"""How many bytes the names of methods in one page may have. Those of the last node may be more."""


Names = list[str] | UnsetType
"""Names of gateways; nothing if this gateway is alone."""

_MAY_COME: Final = (errors.NOT_FOUND, errors.METHOD_NOT_FOUND)


class MethodSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A method that a node serves. ``params`` describes its parameters in any JSON, by custom a JSON Schema."""

    name: str
    summary: Annotated[str, Meta(max_length=2000)] = ""
    params: Raw | UnsetType = UNSET


class RegisterParams(msgspec.Struct, forbid_unknown_fields=True):
    """What a node serves. If credentials are needed, ``name`` is the principal's, and may be left out.

    With ``context`` each call has a member ``context`` with the caller's name and the time that is left. With
    ``streams`` calls may be streams, and have a member ``stream`` then.
    """

    methods: Annotated[list[MethodSpec], Meta(min_length=1, max_length=MAX_METHODS)]
    name: str | None = None
    context: bool = False
    streams: bool = False


class UnregisterParams(msgspec.Struct, forbid_unknown_fields=True):
    """Names the methods to serve no more. Without ``methods`` it is all of them."""

    methods: Annotated[list[str], Meta(max_length=MAX_METHODS)] | None = None


class Registration(msgspec.Struct):
    """What a connection serves now, and under which name."""

    name: str | None
    methods: list[str]


class NodeParams(msgspec.Struct, forbid_unknown_fields=True):
    """Names one node. With ``member`` it has to be connected to that gateway of a cluster."""

    name: str
    member: str | None = None


class NodeMethod(msgspec.Struct, omit_defaults=True):
    """A method of a node, as the node describes it."""

    name: str
    summary: str = ""
    params: Raw | UnsetType = UNSET


class MethodName(msgspec.Struct):
    """A method of a node, by its name alone."""

    name: str


class NodeEntry(msgspec.Struct, rename="camel", omit_defaults=True):
    """One node in a list. ``since`` is RFC 3339 in UTC. ``inFlight`` is how many calls it has not answered.

    One that has lost its link is ``held``, one that knows streams has ``streams``; otherwise these are left out. In a
    cluster ``member`` is the gateway that it is connected to, and ``inFlight`` counts the calls of the one that is
    asked.
    """

    name: str
    conn_id: str
    remote: str
    since: str
    in_flight: int
    methods: list[MethodName]
    held: bool = False
    streams: bool = False
    member: str | UnsetType = UNSET


class NodeInfo(msgspec.Struct, rename="camel", omit_defaults=True):
    """One node, with what it says of its methods. The other members are those of a list."""

    name: str
    conn_id: str
    remote: str
    since: str
    in_flight: int
    methods: list[NodeMethod]
    held: bool = False
    streams: bool = False
    member: str | UnsetType = UNSET


class NodeListParams(msgspec.Struct, forbid_unknown_fields=True):
    """``after`` is the ``next`` of the previous page.

    With ``member`` only nodes of that gateway of a cluster are listed: its name, or the id of its instance.
    """

    limit: Annotated[int, Meta(ge=1, le=200)] = 100
    after: str = ""
    member: str | None = None


class NodePage(msgspec.Struct):
    """One page of nodes, in the order of their names. ``next`` is null on the last page.

    In a cluster ``missing`` names the gateways of whose nodes not all are known.
    """

    nodes: list[NodeEntry]
    next: str | None
    missing: Names = UNSET


class CallParams(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """``params`` is passed on byte for byte. ``timeoutMs`` is `limits.call_timeout` if it is left out.

    With ``waitMs`` the call waits so long for a node that is not there, or does not serve the method yet. Unless
    ``held`` it does not wait for a node that has lost its link, and ends as soon as it does. With ``stream`` it is a
    stream, of which the caller can take so much.
    """

    node: str
    method: str
    params: Raw | UnsetType = UNSET
    timeout_ms: Annotated[int, Meta(ge=1)] | None = None
    wait_ms: Annotated[int, Meta(ge=0)] = 0
    held: bool = True
    stream: Grant | None = None


class NodeMethods:
    """The methods of `node.*`, for one registry of nodes. ``own`` has the names of the gateway's own methods.

    ``named`` is whether every peer has a credential; a node then has its principal's name. ``max_call_timeout`` is in
    seconds. ``untold`` returns the gateways of the cluster that have not told all of their nodes.
    """

    def __init__(
        self,
        nodes: Nodes,
        router: Router,
        waiting: Waiting,
        own: Container[str],
        *,
        named: bool,
        max_call_timeout: float,
        asking: Asking | None = None,
        untold: Callable[[], Iterable[Member]] = tuple,
    ) -> None:
        self._nodes = nodes
        self._router = router
        self._waiting = waiting
        self._own = own
        self._named = named
        self._max_call_timeout = max_call_timeout
        self._asking = asking
        self._untold = untold

    @method("node.register", scope=AUTHENTICATED)
    def register(self, peer: Connection, params: RegisterParams) -> Then[Registration]:
        """Serve methods from now on, in addition to those that this connection serves already.

        Needs the scope `serve:` for each. A method of another node is refused, unless both have the scope `share:` for
        it. If another connection is the node of this name, it is replaced and closed with 4502.
        """
        name = self._name(peer, params.name)
        served = [self._served(peer, number, spec) for number, spec in enumerate(params.methods)]
        known = peer.node.methods if peer.node is not None else {}
        if len(known.keys() | {entry.name for entry in served}) > MAX_METHODS:
            raise BadParams(f"methods: a node has {MAX_METHODS} at most")
        replaced = self._nodes.register(peer, name, served, params.context, params.streams)
        if replaced is not None:
            replaced.peer.end(errors.REPLACED)
        return Then(_registration(peer, name), partial(self._waiting.go_on, name))

    def _name(self, peer: Connection, given: str | None) -> str:
        if self._named:
            if given not in (None, peer.principal.name):
                raise Refusal(errors.FORBIDDEN, f"a node has its principal's name, {peer.principal.name}")
            return peer.principal.name
        if given is None:
            raise BadParams("name: without a credential the node has to say its name")
        if not is_peer_name(given):
            raise BadParams(f"name: must be a text of 1 to {MAX_NAME} printable characters")
        if peer.node is not None and peer.node.name != given:
            raise Refusal(errors.CONFLICT, f"this connection is the node {peer.node.name}")
        return given

    def _served(self, peer: Connection, number: int, spec: MethodSpec) -> Served:
        name = spec.name
        if not is_dotted_name(name):
            raise BadParams(f"methods[{number}].name: must be parts with dots between, without blanks, *, > and :")
        if name.startswith(RESERVED):
            raise BadParams(f"methods[{number}].name: names under {', '.join(RESERVED)} are the gateway's own")
        if not peer.principal.allows(f"serve:{name}"):
            raise Refusal(errors.FORBIDDEN, f"serve:{name}")
        if name in self._own:
            raise Refusal(errors.CONFLICT, f"the gateway serves {name} itself")
        params = b"" if spec.params is UNSET else bytes(spec.params)
        return Served(name, jsonrpc.encode(name), f"call:{name}", spec.summary, params)

    @method("node.unregister", scope=AUTHENTICATED)
    def unregister(self, peer: Connection, params: UnregisterParams) -> Registration:
        """Serve these methods no more, and return those that are left. Calls in flight may still be answered."""
        node = peer.node
        self._nodes.unregister(peer, params.methods)
        return _registration(peer, None if node is None else node.name)

    @method("node.list", scope=ANY_CALL)
    def list(self, peer: Connection, params: NodeListParams) -> NodePage:
        """List the nodes that serve a method which the caller may call, and of each only such methods.

        They come a page at a time. A page may have fewer nodes than `limit`, even none: `next` alone says whether there
        are more. `node.get` tells what a node says of its methods.
        """
        missing = self._missing(params.member)
        may = callable_by(peer.principal.scopes)
        found: list[NodeEntry] = []
        seen = octets = 0
        last = ""
        for node in self._nodes.after(params.after):
            if len(found) == params.limit or seen >= PAGE_METHODS or octets >= PAGE_BYTES:
                return NodePage(found, last, missing)
            seen += len(node.methods)
            last = node.name
            served = [served for served in node.methods.values() if may(served.name)]
            if served and self._is_at(node, params.member):
                octets += sum(len(entry.encoded) for entry in served)
                names = [MethodName(entry.name) for entry in served]
                found.append(NodeEntry(*_fields(node), names, *self._state(node)))
        return NodePage(found, None, missing)

    @method("node.get", scope=ANY_CALL)
    def get(self, peer: Connection, params: NodeParams) -> NodeInfo:
        """Return one node, with what it says of those of its methods that the caller may call."""
        missing = self._missing(params.member)
        node = self._nodes.named(params.name)
        may = callable_by(peer.principal.scopes)
        methods = [] if node is None else [_described(served) for served in node.methods.values() if may(served.name)]
        if node is None or not methods or not self._is_at(node, params.member):
            perhaps = {"missing": missing} if missing else {}
            raise Refusal(errors.NOT_FOUND, f"no node {params.name[:MAX_NAME]!r}", **perhaps)
        return NodeInfo(*_fields(node), methods, *self._state(node))

    def _missing(self, member: str | None) -> Names:
        """Return which gateways have not told all of their nodes. Raises Refusal if none is called ``member``."""
        if self._asking is None:
            alone(member)
            return UNSET
        return self._asking.missing(self._untold(), member)

    def _is_at(self, node: Node, member: str | None) -> bool:
        """Return whether a node is connected to the gateway of this name or instance, or to any."""
        if member is None or self._asking is None:
            return True
        where = node.member or self._asking.here
        return member in (where.name, where.instance)

    def _state(self, node: Node) -> tuple[bool, bool, str | UnsetType]:
        """Return whether a node is held, whether it knows streams, and in a cluster where it is connected."""
        asking = self._asking
        where = UNSET if asking is None else (node.member or asking.here).name
        return node.peer.held is not None, node.streams, where

    @method("node.call", scope=AUTHENTICATED, forwards=True)
    def call(self, peer: Connection, params: CallParams) -> Any:
        """Call a method of one node, and return its result unchanged. Needs the scope `call:` for the method."""
        data = b"" if params.params is UNSET else bytes(params.params)
        if data and data[0] not in jsonrpc.STRUCTURED:
            raise BadParams("params: must be an array or an object")
        timeout = None
        if params.timeout_ms is not None:
            timeout = self._seconds("timeoutMs", params.timeout_ms)
        wait = self._seconds("waitMs", params.wait_ms)
        where, held, stream = (params.node, params.method, data), params.held, params.stream
        try:
            return self._router.by_node(peer, *where, timeout=timeout, held=held, stream=stream)
        except Refusal as refusal:
            if not wait or refusal.error not in _MAY_COME or not _may_be(params.node, params.method):
                raise
            return WaitingCall(self._waiting, refusal, *where, timeout=timeout, held=held, wait=wait, grant=stream)

    def _seconds(self, name: str, milliseconds: int) -> float:
        seconds = milliseconds / 1000
        if seconds > self._max_call_timeout:
            raise BadParams(f"{name}: at most {int(self._max_call_timeout * 1000)}, see limits.max_call_timeout")
        return seconds


def _may_be(node: str, method: str) -> bool:
    """Return whether there may ever be a node of this name with a method of this name."""
    return is_peer_name(node) and is_dotted_name(method)


def _registration(peer: Connection, name: str | None) -> Registration:
    return Registration(name, [] if peer.node is None else list(peer.node.methods))


def _described(served: Served) -> NodeMethod:
    return NodeMethod(served.name, served.summary, Raw(served.params) if served.params else UNSET)


def _fields(node: Node) -> tuple[str, str, str, str, int]:
    """Return what is told of a node beside its methods, in the order of `NodeEntry` and `NodeInfo`."""
    peer = node.peer
    return node.name, peer.conn_id, peer.remote, rfc3339(node.since), node.in_flight
