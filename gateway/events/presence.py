"""Tells of connections and nodes that come and go: on the gateway's own topics, and for nodes in the log as well."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from gateway.auth.scopes import Principal, origin
from gateway.errors import Disconnect
from gateway.events.hub import Events
from gateway.telemetry.lines import OFFLINE, ONLINE, Line, Lines

logger = logging.getLogger(__name__)

MAX_NAMED: Final = 100
"""How many methods one `gateway.node.online` names. If more have changed, it is ``truncated``."""


class Peer(Protocol):
    """A connection, as far as others are told of it."""

    principal: Principal

    @property
    def conn_id(self) -> str:
        """Its id: UUID4 text."""

    @property
    def remote(self) -> str:
        """Its address, as the log has it."""


class Node(Protocol):
    """A node, as far as others are told of it (`nodes.registry.Node`)."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def methods(self) -> Collection[str]:
        """The names of the methods that it serves."""

    @property
    def peer(self) -> Peer:
        """Its connection."""


class Change(Protocol):
    """What is new about a node (`nodes.registry.Change`)."""

    @property
    def added(self) -> list[str]:
        """The names of the methods that it serves now, and did not before."""

    @property
    def removed(self) -> list[str]:
        """The names of the methods that it serves no more."""

    @property
    def changed(self) -> list[str]:
        """The names of the methods that it describes in another way."""

    @property
    def replaced(self) -> Node | None:
        """The older node whose name it has taken over, if any."""


class Presence:
    """Publishes which connections and nodes come and go.

    A node that is replaced stays online; only its ``connId`` changes.
    """

    def __init__(self, events: Events[Any], lines: Lines) -> None:
        self._events = events
        self._lines = lines

    def opened(self, peer: Peer) -> None:
        """Tell that a connection is open."""
        if self._events.wanted("gateway.connection.opened"):
            self._events.own("gateway.connection.opened", _fields_of_peer(peer), peer.principal.name)

    def closed(self, peer: Peer, end: Disconnect, duration: float) -> None:
        """Tell that a connection is over, how it ended, and that it has lasted ``duration`` seconds."""
        if self._events.wanted("gateway.connection.closed"):
            how = {"cause": end.cause, "code": end.code, "reason": end.reason, "duration": duration}
            self._events.own("gateway.connection.closed", _fields_of_peer(peer) | how, peer.principal.name)

    def online(self, node: Node, change: Change) -> None:
        """Tell that a node is there, serves other methods now, or has taken over the name of an older one.

        The event names the methods that have changed, `MAX_NAMED` at most, and not all that the node serves: who
        registers one method more causes no message about a thousand.
        """
        fields = _fields_of_node(node) | {"serves": len(node.methods)}
        if change.replaced is not None:
            fields["replaced"] = change.replaced.peer.conn_id
        self._log(ONLINE, node, "node %s online", fields)
        if self._events.wanted("gateway.node.online"):
            self._events.own("gateway.node.online", fields | _named(change), node.peer.principal.name)

    def offline(self, node: Node) -> None:
        """Tell that a node is gone."""
        fields = _fields_of_node(node)
        self._log(OFFLINE, node, "node %s offline", fields)
        self._events.own("gateway.node.offline", fields, node.peer.principal.name)

    def held(self, node: Node, cause: str) -> None:
        """Tell that a node has lost its link, and may come back."""
        self._events.own("gateway.node.held", _fields_of_node(node) | {"cause": cause}, node.peer.principal.name)

    def back(self, node: Node) -> None:
        """Tell that a node that was held is back."""
        self._events.own("gateway.node.back", _fields_of_node(node), node.peer.principal.name)

    def _log(self, line: Line, node: Node, message: str, fields: Mapping[str, object]) -> None:
        key, remote = origin(node.peer.principal, node.peer.remote), node.peer.remote
        self._lines.log(logger, line, key, message, node.name, fields={"remote": remote, **fields})

    def draining(self, drain_timeout: float) -> None:
        """Tell that the gateway shuts down, within ``drain_timeout`` seconds."""
        self._events.own("gateway.draining", {"deadlineMs": int(drain_timeout * 1000)})


def _fields_of_peer(peer: Peer) -> dict[str, Any]:
    principal = peer.principal
    return {"connId": peer.conn_id, "name": principal.name, "role": principal.role, "remote": peer.remote}


def _fields_of_node(node: Node) -> dict[str, Any]:
    return {"connId": node.peer.conn_id, "node": node.name}


def _named(change: Change) -> dict[str, Any]:
    """Return the names of the methods that have changed, or as many of them as an event may have."""
    left, named = MAX_NAMED, dict[str, Any]()
    kinds = {"added": change.added, "removed": change.removed, "changed": change.changed}
    for kind, names in kinds.items():
        named[kind] = names[:left]
        left -= len(named[kind])
    if sum(map(len, kinds.values())) > MAX_NAMED:
        named["truncated"] = True
    return named
