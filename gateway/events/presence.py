"""Who comes and goes, told on the gateway's own topics, and for nodes in the log."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Protocol

from gateway.auth.scopes import Principal
from gateway.errors import Disconnect
from gateway.events.hub import Events

logger = logging.getLogger(__name__)


class Someone(Protocol):
    """A connection, as far as others are told of it."""

    principal: Principal

    @property
    def conn_id(self) -> str:
        """UUID4 text."""

    @property
    def remote(self) -> str:
        """Where it is, as the log has it."""


class Node(Protocol):
    """A node, as far as others are told of it (`nodes.Node`)."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def methods(self) -> Collection[str]:
        """The names of what it serves."""

    @property
    def peer(self) -> Someone:
        """Its connection."""


class Presence:
    """Tells those who have subscribed. A node that is replaced stays online: only its ``connId`` changes."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def opened(self, someone: Someone) -> None:
        """A connection is open."""
        if self._events.wanted("gateway.connection.opened"):
            self._events.own("gateway.connection.opened", _who(someone))

    def closed(self, someone: Someone, end: Disconnect, duration: float) -> None:
        """A connection is over, after so many seconds."""
        if self._events.wanted("gateway.connection.closed"):
            how = {"cause": end.cause, "code": end.code, "reason": end.reason, "duration": duration}
            self._events.own("gateway.connection.closed", _who(someone) | how)

    def online(self, node: Node, replaced: Node | None) -> None:
        """A node is there, serves other methods now, or has taken over from an older connection."""
        fields = _node(node) | {"serves": len(node.methods)}
        if replaced is not None:
            fields["replaced"] = replaced.peer.conn_id
        logger.info("node %s online", node.name, extra={"event": "node.online", "remote": node.peer.remote, **fields})
        self._events.own("gateway.node.online", {**fields, "methods": list(node.methods)})

    def offline(self, node: Node) -> None:
        """A node is gone."""
        fields = _node(node)
        logger.info("node %s offline", node.name, extra={"event": "node.offline", "remote": node.peer.remote, **fields})
        self._events.own("gateway.node.offline", fields)

    def draining(self, drain_timeout: float) -> None:
        """The gateway is going."""
        self._events.own("gateway.draining", {"deadlineMs": int(drain_timeout * 1000)})


def _who(someone: Someone) -> dict[str, Any]:
    principal = someone.principal
    return {"connId": someone.conn_id, "name": principal.name, "role": principal.role, "remote": someone.remote}


def _node(node: Node) -> dict[str, Any]:
    return {"connId": node.peer.conn_id, "node": node.name}
