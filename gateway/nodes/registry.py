"""The registry of nodes: which connection serves which methods, found by the node's name or by method.

A node is one connection. If a newer connection registers under the same name it takes over, and the end of the older
one does not touch the new registration. A method belongs to the node that has it; several nodes have the same method
only if all of them may share it.

A node may be connected to another gateway of a cluster. `nodes.roster` enters those, and keeps them as that gateway
says; here they are nodes like all others.
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
from gateway.nodes.serving import Serving
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
        summary = len(jsonrpc.encode(self.summary)) if self.summary else len('""')
        return len(self.encoded) + summary + len(self.params)


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


class Elsewhere(Protocol):
    """Another gateway, which a node is connected to (`cluster.alive.Member`)."""

    @property
    def instance(self) -> str:
        """It, and no other: UUID text."""

    @property
    def name(self) -> str:
        """Its name, for people."""


class Node:
    """One registered node. ``since`` is in seconds since the epoch. ``octets`` is the sum over its ``methods``.

    Of two registrations of one name, the newer one has the higher ``stamp``. ``member`` is the gateway that the node is
    connected to; it is None if that is this one. ``context`` is true if the node wants to be told with each call who
    the caller is and how much time is left, ``streams`` if it knows streams.
    """

    __slots__ = ("context", "member", "methods", "name", "octets", "peer", "since", "stamp", "streams")

    def __init__(self, name: str, peer: NodePeer, since: float, stamp: int, member: Elsewhere | None = None) -> None:
        self.name = name
        self.peer = peer
        self.since = since
        self.stamp = stamp
        self.member = member
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
        """The number of this gateway's calls that it has not answered."""
        return len(self.peer.calls)

    def add(self, entries: Mapping[str, Served]) -> list[str]:
        """Have these methods, or describe them in another way. Returns those that it did not have."""
        added = []
        for name, served in entries.items():
            known = self.methods.get(name)
            if known is None:
                added.append(name)
            else:
                self.octets -= known.octets
            self.octets += served.octets
            self.methods[name] = served
        return added

    def remove(self, methods: Iterable[str]) -> list[str]:
        """Have these methods no more. Returns those that it had."""
        removed = []
        for name in methods:
            served = self.methods.pop(name, None)
            if served is not None:
                removed.append(name)
                self.octets -= served.octets
        return removed


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


class Mirror(Protocol):
    """What tells other gateways of the nodes that are connected to this one (`nodes.roster.Roster`)."""

    def online(self, node: Node, change: Change) -> None:
        """Tell what a node serves now."""

    def altered(self, node: Node) -> None:
        """Tell what else is to be known of a node, because something of it may have changed."""

    def offline(self, node: Node) -> None:
        """Tell that a node is gone."""


class Nodes:
    """The registry.

    ``online`` is called after a node has registered methods, or has taken some of them back: with the node, and with
    what has changed. If nothing has, it is not called. ``offline`` is called after a node is gone. Both are called only
    for nodes that are connected to this gateway. ``wall`` returns seconds since the epoch. ``version`` grows with each
    change of what is served. ``max_bytes`` bounds the ``octets`` of one node; ``cost`` is that of all nodes, which
    `MAX_BYTES` bounds. ``mirror`` is told before ``online`` and ``offline``.
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
        self.max_bytes: Final = max_bytes
        self.mirror: Mirror | None = None
        self._stamp = 0
        self._by_name: dict[str, Node] = {}
        self._names: list[str] = []  # sorted
        self._serving: Serving[Node] = Serving()
        # On the hot path: no call in between.
        self.serving: Final[Callable[[str], Node | None]] = self._serving.next
        """Returns the node that gets the next call of a method, or None."""
        self.streaming: Final[Callable[[str], Node | None]] = self._serving.streaming
        """Returns the same for a stream: a node that knows streams, if there is any."""
        self.version = 0
        self.cost = 0
        self.here = 0
        """How many nodes are connected to this gateway."""

    def __len__(self) -> int:
        return len(self._by_name)

    def named(self, name: str) -> Node | None:
        """Return the node of this name, or None."""
        return self._by_name.get(name)

    def after(self, name: str) -> Iterator[Node]:
        """Yield the nodes whose names come after this text, in the order of their names."""
        for number in range(bisect_right(self._names, name), len(self._names)):
            yield self._by_name[self._names[number]]

    def methods(self) -> list[str]:
        """Return the names of all methods that are served, in no order."""
        return self._serving.methods()

    def described(self, method: str) -> Served | None:
        """Return what one of its nodes says of a method, or None if no node serves it."""
        node = self._serving.first(method)
        return None if node is None else node.methods[method]

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
            node = Node(name, peer, self._wall(), self._next_stamp())
        self._check_owners(node, entries)
        self._check(node, entries, 0 if replaced is None else replaced.cost)
        change = _change(node.methods if replaced is None else replaced.methods, entries, replaced)
        if peer.node is None:
            self._seat(node)
        altered = (node.context, node.streams) != (context, streams)
        node.context, node.streams = context, streams
        if any(change):
            self._add(node, entries)
            self._changed(node, change)
        elif altered and self.mirror is not None:
            self.mirror.altered(node)
        return replaced

    def _next_stamp(self) -> int:
        """Return a stamp for a registration: the time in milliseconds, but always more than every stamp before."""
        self._stamp = max(self._stamp + 1, int(self._wall() * 1000))
        return self._stamp

    def _seat(self, node: Node) -> Node | None:
        """Let a node have its name. Returns the node that had it, which has no methods here any more."""
        replaced = self._by_name.get(node.name)
        if replaced is None:
            insort(self._names, node.name)
        else:
            self._serving.remove(replaced, replaced.methods)
            self.cost -= replaced.cost
            self.here -= replaced.member is None
            _release(replaced)
        self.here += node.member is None
        node.peer.node = self._by_name[node.name] = node
        return replaced

    def _changed(self, node: Node, change: Change) -> None:
        self.version += 1
        if self.mirror is not None:
            self.mirror.online(node, change)
        self._online(node, change)

    def _check_owners(self, node: Node, methods: Iterable[str]) -> None:
        """Raise Refusal if another node has some of these methods, and they are not shared."""
        found: dict[str, list[str]] = {}
        for method in methods:
            owner = self._serving.owner(node, method)
            if owner is not None:
                found.setdefault(owner.name, []).append(method)
        if found:
            name, taken = next(iter(found.items()))
            some = ", ".join(taken)[: jsonrpc.MAX_DETAIL]
            detail = f"the node {name} has {some}; both need the scope share: to serve a method together"
            raise Refusal(errors.CONFLICT, detail, node=name, methods=taken)

    def _check(self, node: Node, entries: dict[str, Served], freed: int) -> None:
        """Raise Refusal if a node has no room for these methods, after so many bytes of another have been freed."""
        known = node.methods
        more = sum(served.octets - (known[name].octets if name in known else 0) for name, served in entries.items())
        if more > 0 and node.octets + more > self.max_bytes:
            detail = f"a registration of more than {self.max_bytes} bytes; see limits.max_registration_bytes"
            raise Refusal(errors.TOO_LARGE, detail)
        more += METHOD_BYTES * len(entries.keys() - known.keys()) - freed
        if more > 0 and self.cost + more > MAX_BYTES:
            detail = f"the registrations of all nodes have {MAX_BYTES} bytes"
            raise not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_FULL_MS)

    def _add(self, node: Node, entries: Mapping[str, Served]) -> None:
        before = node.cost
        self._serving.enter(node, node.add(entries))
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
            self._changed(node, Change([], removed, []))
            return
        self._leave(node)
        self.version += 1
        if self.mirror is not None:
            self.mirror.offline(node)
        self._offline(node)

    def _leave(self, node: Node) -> None:
        """Let the name of a node be nobody's."""
        del self._by_name[node.name], self._names[bisect_left(self._names, node.name)]
        self.here -= node.member is None
        _release(node)

    def rescoped(self, peer: NodePeer) -> None:
        """Take those methods from a node that its connection's new credential does not let it serve, or share.

        Harmless if the connection is not a node.
        """
        node = peer.node
        if node is None:
            return
        if self.mirror is not None:
            self.mirror.altered(node)
            self.conflicts(node, node.methods)  # what was contested may be so no longer
        self.unregister(peer, [name for name in node.methods if not self._may_keep(node, name)])

    def _may_keep(self, node: Node, method: str) -> bool:
        return node.peer.principal.allows(f"serve:{method}") and self._serving.may_keep(node, method)

    def _withdraw(self, node: Node, methods: Iterable[str]) -> list[str]:
        """Take these methods from a node. Returns those that it had."""
        cost = node.cost
        removed = node.remove(methods)
        self._serving.remove(node, removed)
        self.cost += node.cost - cost
        return removed

    # Nodes that are connected to other gateways

    def heed(self, stamp: int) -> None:
        """Let all later registrations here be newer than one with this stamp."""
        self._stamp = max(self._stamp, stamp)

    def bring(self, node: Node) -> Node | None:
        """Let a node of another gateway have its name, with all its methods. Returns the node that had the name.

        Whether methods may be shared is not looked at: see `conflicts`.
        """
        replaced = self._seat(node)
        self._serving.enter(node, node.methods)
        self.cost += node.cost
        self.version += 1
        return replaced

    def change(self, node: Node, entries: Mapping[str, Served], removed: Iterable[str]) -> None:
        """Change the methods of a node of another gateway, which has its name."""
        self._withdraw(node, removed)
        self._add(node, entries)
        self.version += 1

    def take_away(self, node: Node) -> None:
        """Remove a node of another gateway, which has its name. It keeps its methods, in case it is brought again."""
        self._serving.remove(node, node.methods)
        self.cost -= node.cost
        self.version += 1
        self._leave(node)

    def conflicts(self, node: Node, methods: Iterable[str]) -> list[tuple[str, Node]]:
        """Return those of a node's methods that others have and may not share with it, with each such node.

        There are none unless several nodes have registered at the same time, at different gateways.
        """
        return self._serving.conflicts(node, methods)


def _release(node: Node) -> None:
    """Let its connection be no node any more, unless that is another node by now."""
    if node.peer.node is node:
        node.peer.node = None


def _change(before: Mapping[str, Served], entries: Mapping[str, Served], replaced: Node | None) -> Change:
    """Say what changes if a node that serves ``before``, or takes over from one that does, registers ``entries``."""
    return Change(
        added=[name for name in entries if name not in before],
        removed=[] if replaced is None else [name for name in before if name not in entries],
        changed=[name for name, served in entries.items() if before.get(name, served) != served],
        replaced=replaced,
    )
