"""Who serves what: the registrations of nodes, found by name or by method.

A node is one connection. The newer one of a name takes over, and the end of the older never touches its registration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.rpc.calls import Callee

MAX_METHODS: Final = 1000
"""Methods of one node."""


class Served(msgspec.Struct, frozen=True):
    """A method of a node, and what the node says of it. ``encoded`` is its name in JSON, ``scope`` what callers need.

    ``params`` is any JSON, a schema by custom; empty where there is none.
    """

    name: str
    encoded: bytes
    scope: str
    summary: str
    params: bytes


class NodePeer(Callee, Protocol):
    """A connection that may be a node."""

    principal: Principal
    node: Node | None

    @property
    def conn_id(self) -> str:
        """UUID4 text."""

    @property
    def remote(self) -> str:
        """Where it is, as the log has it."""

    def end(self, end: Disconnect) -> None:
        """End the connection."""


class Node:
    """One registered node. ``since`` is seconds since the epoch; ``context``: it wants to know who calls."""

    __slots__ = ("context", "methods", "name", "peer", "since")

    def __init__(self, name: str, peer: NodePeer, since: float) -> None:
        self.name = name
        self.peer = peer
        self.since = since
        self.context = False
        self.methods: dict[str, Served] = {}

    @property
    def in_flight(self) -> int:
        """Calls that it has not answered."""
        return len(self.peer.calls)


class Nodes:
    """The registry. ``online`` and ``offline`` are told of every change, after it; ``online`` also of who was replaced.

    ``version`` grows with each change of what is served.
    """

    def __init__(
        self,
        online: Callable[[Node, Node | None], None],
        offline: Callable[[Node], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._online = online
        self._offline = offline
        self._wall = wall
        self._by_name: dict[str, Node] = {}
        self._by_method: dict[str, list[Node]] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def named(self, name: str) -> Node | None:
        """The node of this name."""
        return self._by_name.get(name)

    def all(self) -> Iterable[Node]:
        """All nodes, by name."""
        return [node for _, node in sorted(self._by_name.items())]

    def serving(self, method: str) -> Node | None:
        """A node with this method: the one with the fewest calls in flight, in turn among equals."""
        nodes = self._by_method.get(method)
        if nodes is None:
            return None
        if len(nodes) == 1:
            return nodes[0]
        node = min(nodes, key=_in_flight)
        nodes.remove(node)
        nodes.append(node)
        return node

    def served(self) -> dict[str, Served]:
        """Every method that a node serves, as one of them describes it."""
        return {name: nodes[0].methods[name] for name, nodes in sorted(self._by_method.items())}

    def register(self, peer: NodePeer, name: str, methods: Iterable[Served], context: bool) -> Node | None:
        """Add methods to a connection's registration, or begin it; returns the node that it has replaced.

        The connection has no other name yet.
        """
        node, replaced = peer.node, None
        if node is None:
            replaced = self._by_name.get(name)
            if replaced is not None:
                self._withdraw(replaced, list(replaced.methods))
                replaced.peer.node = None
            node = peer.node = self._by_name[name] = Node(name, peer, self._wall())
        node.context = context
        for served in methods:
            if served.name not in node.methods:
                self._by_method.setdefault(served.name, []).append(node)
            node.methods[served.name] = served
        self.version += 1
        self._online(node, replaced)
        return replaced

    def unregister(self, peer: NodePeer, methods: Iterable[str] | None = None) -> None:
        """Take methods, None: all, out of a connection's registration; with the last it is over.

        Harmless for a connection that is no node.
        """
        node = peer.node
        if node is None or not self._withdraw(node, list(node.methods) if methods is None else methods):
            return
        if node.methods:
            self._online(node, None)
            return
        del self._by_name[node.name]
        peer.node = None
        self._offline(node)

    def _withdraw(self, node: Node, methods: Iterable[str]) -> bool:
        """Take these methods from a node; returns whether it had any of them."""
        before = len(node.methods)
        for name in methods:
            if node.methods.pop(name, None) is None:
                continue
            nodes = self._by_method[name]
            nodes.remove(node)
            if not nodes:
                del self._by_method[name]
        self.version += 1
        return len(node.methods) < before


def _in_flight(node: Node) -> int:
    return len(node.peer.calls)
