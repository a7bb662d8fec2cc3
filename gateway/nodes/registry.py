"""The registry of nodes: which connection serves which methods, found by the node's name or by method.

A node is one connection. If a newer connection registers under the same name it takes over, and the end of the older
one does not touch the new registration.
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
"""The most methods that one node may serve."""


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


class NodePeer(Callee, Protocol):
    """A connection that may be a node."""

    principal: Principal
    node: Node | None
    """Its registration; None if it is not a node."""

    @property
    def conn_id(self) -> str:
        """Its id: UUID4 text."""

    @property
    def remote(self) -> str:
        """Its address, as the log has it."""

    def end(self, end: Disconnect) -> None:
        """End the connection, for this reason."""


class Node:
    """One registered node. ``since`` is in seconds since the epoch.

    ``context`` is true if the node wants to be told with each call who the caller is and how much time is left.
    """

    __slots__ = ("context", "methods", "name", "peer", "since")

    def __init__(self, name: str, peer: NodePeer, since: float) -> None:
        self.name = name
        self.peer = peer
        self.since = since
        self.context = False
        self.methods: dict[str, Served] = {}

    @property
    def in_flight(self) -> int:
        """The number of calls that it has not answered."""
        return len(self.peer.calls)


class Nodes:
    """The registry.

    ``online`` is called after a node has registered methods, or has taken some of them back: with the node, and with
    the one that it has replaced, or None. ``offline`` is called after a node is gone. ``wall`` returns seconds since
    the epoch. ``version`` grows with each change of what is served.
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
        """Return the node of this name, or None."""
        return self._by_name.get(name)

    def all(self) -> Iterable[Node]:
        """Return all nodes, in the order of their names."""
        return [node for _, node in sorted(self._by_name.items())]

    def serving(self, method: str) -> Node | None:
        """Return a node with this method, or None.

        It is the node with the fewest calls in flight; nodes with equally many take turns.
        """
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
        """Return every method that is served, by name. If several nodes serve it, one of them has described it."""
        return {name: nodes[0].methods[name] for name, nodes in sorted(self._by_method.items())}

    def register(self, peer: NodePeer, name: str, methods: Iterable[Served], context: bool) -> Node | None:
        """Add methods to a connection's registration, which begins if there is none yet.

        Returns the node of the same name that it has replaced, or None. The caller sees to it that a connection which
        is a node already keeps its name.
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
        """Take methods out of a connection's registration, all of them by default. It ends with the last one.

        Harmless if the connection is not a node, or does not serve these methods.
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
        """Take these methods from a node. Returns whether it had any of them."""
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
