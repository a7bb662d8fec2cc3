"""Which nodes serve a method, whose turn it is, and whether they may serve it together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any, Generic, Protocol, TypeVar

from gateway.auth.scopes import Principal


class Link(Protocol):
    """The link of a node's connection."""

    @property
    def barred(self) -> bool:
        """Whether others may send nothing to it now."""


class Peer(Protocol):
    """The connection of a node."""

    principal: Principal

    @property
    def held(self) -> object | None:
        """Not None if it has lost its link, and may come back."""

    @property
    def link(self) -> Link:
        """Its link."""

    @property
    def calls(self) -> Sized:
        """The calls to it that are in flight."""


class Server(Protocol):
    """A node, as far as it matters here (`nodes.registry.Node`)."""

    name: str
    streams: bool

    @property
    def peer(self) -> Peer:
        """Its connection."""

    @property
    def member(self) -> object | None:
        """The gateway that it is connected to, None for this one."""


Node = TypeVar("Node", bound=Server)


class Serving(Generic[Node]):
    """The table of all methods that nodes serve.

    Several nodes have the same method if all of them may share it. Otherwise they have registered at the same time, at
    different gateways, and the method is contested until one of them gives way.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node | dict[Node, None]] = {}
        """Of several nodes, the first in the dictionary was chosen longest ago."""
        self._contested: set[str] = set()

    def methods(self) -> list[str]:
        """Return the names of all methods, in no order."""
        return list(self._nodes)

    def first(self, method: str) -> Node | None:
        """Return one of the nodes that have a method, or None."""
        found = self._nodes.get(method)
        return next(iter(found)) if isinstance(found, dict) else found

    def next(self, method: str) -> Node | None:
        """Return the node with this method that gets the next call, or None.

        It is the node with the fewest calls in flight, of those that have a link and read, and of those that are
        connected to this gateway if there are any; nodes with equally many take turns.
        """
        found = self._nodes.get(method)
        return _in_turn(found, found) if isinstance(found, dict) else found

    def streaming(self, method: str) -> Node | None:
        """Return the node that gets the next stream: one that knows streams, if there is any. Otherwise as `next`."""
        found = self._nodes.get(method)
        if isinstance(found, dict):
            return _in_turn(found, [node for node in found if node.streams] or found)
        return found

    def enter(self, node: Node, methods: Iterable[str]) -> None:
        """Let a node have these methods, which it did not have."""
        for method in methods:
            found = self._nodes.get(method)
            if found is None:
                self._nodes[method] = node
            elif isinstance(found, dict):
                found[node] = None
            else:
                self._nodes[method] = {found: None, node: None}

    def remove(self, node: Node, methods: Iterable[str]) -> None:
        """Let a node have these methods no more, which it had."""
        for method in methods:
            found = self._nodes[method]
            if not isinstance(found, dict):
                del self._nodes[method]
                continue
            del found[node]
            if method in self._contested and (len(found) == 1 or all(_may_share(other, method) for other in found)):
                self._contested.remove(method)
            if len(found) == 1:
                (self._nodes[method],) = found

    def may_keep(self, node: Node, method: str) -> bool:
        """Return whether a node may serve a method together with those that have it beside the node."""
        return not isinstance(self._nodes[method], dict) or _may_share(node, method)

    def owner(self, node: Node, method: str) -> Node | None:
        """Return the node that keeps another one from serving a method, or None. One of its own name does not."""
        found = self._nodes.get(method)
        if found is None:
            return None
        for other in found if isinstance(found, dict) else (found,):
            if other.name == node.name:
                continue
            if not (_may_share(node, method) and _may_share(other, method)):
                return other
            if method not in self._contested:
                return None  # all others may share it, too
        return None

    def conflicts(self, node: Node, methods: Iterable[str]) -> list[tuple[str, Node]]:
        """Return those of a node's methods that others have and may not share with it, with each such node."""
        found = []
        for method in methods:
            if self.owner(node, method) is None:
                self._contested.discard(method)  # all of them may share it now
            else:
                self._contested.add(method)
                nodes: Any = self._nodes[method]
                alone = not _may_share(node, method)
                found += [(method, one) for one in nodes if one is not node and (alone or not _may_share(one, method))]
        return found


def _may_share(node: Server, method: str) -> bool:
    """Return whether a node may serve a method together with others."""
    return node.peer.principal.allows(f"share:{method}")


def _in_turn(nodes: dict[Node, None], some: Iterable[Node]) -> Node:
    """Return the one of some nodes that has the least to do, and let the others have their turn before it."""
    node = min(some, key=_load)
    del nodes[node]
    nodes[node] = None
    return node


def _load(node: Server) -> tuple[bool, bool, bool, int]:
    """Return what the node with the least of it is chosen by.

    One that has no link answers later, one of another gateway costs more, and one that does not read would refuse the
    call.
    """
    peer = node.peer
    return peer.held is not None, node.member is not None, peer.link.barred, len(peer.calls)
