"""The registry of nodes: which connection serves which methods, found by the node's name or by method.

A node is one connection. If a newer connection registers under the same name it takes over, and the end of the older
one does not touch the new registration. A method belongs to the node that has it; several nodes have the same method
only if all of them may share it.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.requests import Party

MAX_METHODS: Final = 1000
"""The most methods that one node may serve."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""The most bytes that all registrations may have together, `METHOD_BYTES` for each method included."""

METHOD_BYTES: Final = 256
"""What a method counts among all registrations beside its text: a short name costs memory, too."""


class Served(msgspec.Struct, frozen=True):
    """A method of a node, and what the node says of it.

    ``encoded`` is its name in JSON, ``scope`` the scope that callers need. ``params`` is any JSON, by custom a JSON
    Schema; it is empty if the node gave none.
    """

    name: str
    encoded: bytes
    scope: str
    summary: str
    params: bytes

    @property
    def octets(self) -> int:
        """How many bytes name, summary and params have as JSON."""
        return len(self.encoded) + len(jsonrpc.encode(self.summary)) + len(self.params)


class NodePeer(Party, Protocol):
    """A connection that may be a node."""

    principal: Principal
    node: Node | None
    """Its registration; None if it is not a node."""

    @property
    def conn_id(self) -> str:
        """Its id: UUID4 text."""

    remote: str
    """Its address, as the log has it."""

    held: Disconnect | None
    """How it has lost its link, if it has none."""

    def end(self, end: Disconnect) -> None:
        """End the connection, for this reason."""


class Node:
    """One registered node. ``since`` is in seconds since the epoch. ``octets`` is the sum over its ``methods``.

    ``context`` is true if the node wants to be told with each call who the caller is and how much time is left,
    ``streams`` if it knows streams.
    """

    __slots__ = ("context", "methods", "name", "octets", "peer", "since", "streams")

    def __init__(self, name: str, peer: NodePeer, since: float) -> None:
        self.name = name
        self.peer = peer
        self.since = since
        self.context = False
        self.streams = False
        self.methods: dict[str, Served] = {}
        self.octets = 0

    @property
    def cost(self) -> int:
        """What it counts among all registrations, in bytes."""
        return self.octets + METHOD_BYTES * len(self.methods)

    @property
    def in_flight(self) -> int:
        """The number of calls that it has not answered."""
        return len(self.peer.calls)


class Change(NamedTuple):
    """What a registration, or taking back some methods, has changed about the node of a name.

    ``added``, ``removed`` and ``changed`` are names of methods; those in ``changed`` are described in another way now.
    ``replaced`` is the older node of this name, if the name has gone to another connection. The names are then those
    by which the newer node differs from it.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    replaced: Node | None = None


class Nodes:
    """The registry.

    ``online`` is called after a node has registered methods, or has taken some of them back: with the node, and with
    what has changed. If nothing has, it is not called. ``offline`` is called after a node is gone. ``wall`` returns
    seconds since the epoch. ``version`` grows with each change of what is served. ``max_bytes`` bounds the ``octets``
    of one node; ``cost`` is that of all nodes, which `MAX_BYTES` bounds.
    """

    def __init__(
        self,
        online: Callable[[Node, Change], None],
        offline: Callable[[Node], None],
        wall: Callable[[], float] = time.time,
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._online = online
        self._offline = offline
        self._wall = wall
        self._max_bytes = max_bytes
        self._by_name: dict[str, Node] = {}
        self._names: list[str] = []  # sorted
        self._by_method: dict[str, list[Node]] = {}
        self.version = 0
        self.cost = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def named(self, name: str) -> Node | None:
        """Return the node of this name, or None."""
        return self._by_name.get(name)

    def after(self, name: str) -> Iterator[Node]:
        """Yield the nodes whose names come after this text, in the order of their names."""
        for number in range(bisect_right(self._names, name), len(self._names)):
            yield self._by_name[self._names[number]]

    def serving(self, method: str) -> Node | None:
        """Return a node with this method, or None.

        It is the node with the fewest calls in flight, of those that have a link and read; nodes with equally many
        take turns.
        """
        nodes = self._by_method.get(method)
        if nodes is None:
            return None
        if len(nodes) == 1:
            return nodes[0]
        return _in_turn(nodes, nodes)

    def streaming(self, method: str) -> Node | None:
        """Return a node with this method: one that knows streams, if there is any. Otherwise as `serving`."""
        nodes = self._by_method.get(method)
        if nodes is None:
            return None
        return _in_turn(nodes, [node for node in nodes if node.streams] or nodes)

    def methods(self) -> list[str]:
        """Return the names of all methods that are served, in no order."""
        return list(self._by_method)

    def described(self, method: str) -> Served | None:
        """Return what one of its nodes says of a method, or None if no node serves it."""
        nodes = self._by_method.get(method)
        return None if nodes is None else nodes[0].methods[method]

    def register(
        self, peer: NodePeer, name: str, methods: Iterable[Served], context: bool, streams: bool = False
    ) -> Node | None:
        """Add methods to a connection's registration, which begins if there is none yet.

        Returns the node of the same name that it has replaced, or None. The caller sees to it that a connection which
        is a node already keeps its name. Raises Refusal if a node of another name has one of the methods and the two
        may not share it, or if there is no room for the registration. Then nothing has changed.
        """
        node, replaced = peer.node, None
        entries = {served.name: served for served in methods}
        if node is None:
            replaced = self._by_name.get(name)
            node = Node(name, peer, self._wall())
        self._check_owners(node, entries)
        self._check(node, entries, 0 if replaced is None else replaced.cost)
        change = _change(node.methods if replaced is None else replaced.methods, entries, replaced)
        if peer.node is None:
            if replaced is None:
                insort(self._names, name)
            else:
                self._withdraw(replaced, list(replaced.methods))
                replaced.peer.node = None
            peer.node = self._by_name[name] = node
        node.context, node.streams = context, streams
        if any(change):
            self._add(node, entries)
            self.version += 1
            self._online(node, change)
        return replaced

    def _check_owners(self, node: Node, methods: Iterable[str]) -> None:
        """Raise Refusal if another node has some of these methods, and they are not shared."""
        found: dict[str, list[str]] = {}
        for method in methods:
            owner = self._owner(node, method)
            if owner is not None:
                found.setdefault(owner.name, []).append(method)
        if found:
            name, taken = next(iter(found.items()))
            some = ", ".join(taken)[: jsonrpc.MAX_DETAIL]
            detail = f"the node {name} has {some}; both need the scope share: to serve a method together"
            raise Refusal(errors.CONFLICT, detail, node=name, methods=taken)

    def _owner(self, node: Node, method: str) -> Node | None:
        """Return the node that keeps another one from serving a method, or None.

        If several nodes have the method already, all of them may share it, so one of them is enough to look at.
        """
        for other in self._by_method.get(method, ()):
            if other.name != node.name:
                return None if _may_share(node, method) and _may_share(other, method) else other
        return None

    def _check(self, node: Node, entries: dict[str, Served], freed: int) -> None:
        """Raise Refusal if a node has no room for these methods, after so many bytes of another have been freed."""
        known = node.methods
        more = sum(served.octets - (known[name].octets if name in known else 0) for name, served in entries.items())
        if more > 0 and node.octets + more > self._max_bytes:
            detail = f"a registration of more than {self._max_bytes} bytes; see limits.max_registration_bytes"
            raise Refusal(errors.TOO_LARGE, detail)
        more += METHOD_BYTES * len(entries.keys() - known.keys()) - freed
        if more > 0 and self.cost + more > MAX_BYTES:
            detail = f"the registrations of all nodes have {MAX_BYTES} bytes"
            raise not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_FULL_MS)

    def _add(self, node: Node, entries: dict[str, Served]) -> None:
        before = node.cost
        for name, served in entries.items():
            known = node.methods.get(name)
            if known is None:
                self._by_method.setdefault(name, []).append(node)
            else:
                node.octets -= known.octets
            node.octets += served.octets
            node.methods[name] = served
        self.cost += node.cost - before

    def unregister(self, peer: NodePeer, methods: Iterable[str] | None = None) -> None:
        """Take methods out of a connection's registration, all of them by default. It ends with the last one.

        Harmless if the connection is not a node, or does not serve these methods.
        """
        node = peer.node
        removed = [] if node is None else self._withdraw(node, list(node.methods) if methods is None else methods)
        if node is None or not removed:
            return
        if node.methods:
            self._online(node, Change([], removed, []))
            return
        del self._by_name[node.name], self._names[bisect_left(self._names, node.name)]
        peer.node = None
        self._offline(node)

    def rescoped(self, peer: NodePeer) -> None:
        """Take those methods from a node that its connection's new credential does not let it serve, or share.

        Harmless if the connection is not a node.
        """
        node = peer.node
        if node is not None:
            self.unregister(peer, [name for name in node.methods if not self._may_keep(node, name)])

    def _may_keep(self, node: Node, method: str) -> bool:
        alone = len(self._by_method[method]) == 1
        return node.peer.principal.allows(f"serve:{method}") and (alone or _may_share(node, method))

    def _withdraw(self, node: Node, methods: Iterable[str]) -> list[str]:
        """Take these methods from a node. Returns those that it had."""
        removed, cost = [], node.cost
        for name in methods:
            served = node.methods.pop(name, None)
            if served is None:
                continue
            removed.append(name)
            node.octets -= served.octets
            nodes = self._by_method[name]
            nodes.remove(node)
            if not nodes:
                del self._by_method[name]
        self.cost += node.cost - cost
        self.version += bool(removed)
        return removed


def _may_share(node: Node, method: str) -> bool:
    """Return whether a node may serve a method together with others."""
    return node.peer.principal.allows(f"share:{method}")


def _in_turn(nodes: list[Node], some: list[Node]) -> Node:
    """Return the one of some nodes that has the least to do, and let the others have their turn before it."""
    node = min(some, key=_load)
    nodes.remove(node)
    nodes.append(node)
    return node


def _load(node: Node) -> tuple[bool, bool, int]:
    """Return what the node with the least of it is chosen by.

    One that has no link answers later, and one that does not read would refuse the call.
    """
    peer = node.peer
    return peer.held is not None, peer.link.barred, len(peer.calls)


def _change(before: Mapping[str, Served], entries: Mapping[str, Served], replaced: Node | None) -> Change:
    """Say what changes if a node that serves ``before``, or takes over from one that does, registers ``entries``."""
    return Change(
        added=[name for name in entries if name not in before],
        removed=[] if replaced is None else [name for name in before if name not in entries],
        changed=[name for name, served in entries.items() if before.get(name, served) != served],
        replaced=replaced,
    )
