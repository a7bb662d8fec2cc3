"""Tells of connections and nodes that come and go: on the gateway's own topics, and for nodes in the log as well."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Protocol

from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.events.hub import Events

logger = logging.getLogger(__name__)


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


class Presence:
    """Publishes which connections and nodes come and go.

    A node that is replaced stays online; only its ``connId`` changes.
    """

    def __init__(self, events: Events) -> None:
        self._events = events

    def opened(self, peer: Peer) -> None:
        """Tell that a connection is open."""
        if self._events.wanted("gateway.connection.opened"):
            self._events.own("gateway.connection.opened", _fields_of_peer(peer), peer.principal.name)

    def closed(self, peer: Peer, end: Disconnect, duration: float) -> None:
        """Tell that a connection is over, how it ended, and that it has lasted ``duration`` seconds."""
        if self._events.wanted("gateway.connection.closed"):
            how = {"cause": end.cause, "code": end.code, "reason": end.reason, "duration": duration}
            self._events.own("gateway.connection.closed", _fields_of_peer(peer) | how, peer.principal.name)

    def online(self, node: Node, replaced: Node | None) -> None:
        """Tell that a node is there or serves other methods now, and which older node it has ``replaced``, if any."""
        fields = _fields_of_node(node) | {"serves": len(node.methods)}
        if replaced is not None:
            fields["replaced"] = replaced.peer.conn_id
        logger.info("node %s online", node.name, extra={"event": "node.online", "remote": node.peer.remote, **fields})
        owner = node.peer.principal.name
        self._events.own("gateway.node.online", {**fields, "methods": list(node.methods)}, owner)

    def offline(self, node: Node) -> None:
        """Tell that a node is gone."""
        fields = _fields_of_node(node)
        logger.info("node %s offline", node.name, extra={"event": "node.offline", "remote": node.peer.remote, **fields})
        self._events.own("gateway.node.offline", fields, node.peer.principal.name)

    def draining(self, drain_timeout: float) -> None:
        """Tell that the gateway shuts down, within ``drain_timeout`` seconds."""
        self._events.own("gateway.draining", {"deadlineMs": int(drain_timeout * 1000)})


def _fields_of_peer(peer: Peer) -> dict[str, Any]:
    principal = peer.principal
    return {"connId": peer.conn_id, "name": principal.name, "role": principal.role, "remote": peer.remote}


def _fields_of_node(node: Node) -> dict[str, Any]:
    return {"connId": node.peer.conn_id, "node": node.name}
