"""`rpc.*`: about the calls themselves."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from gateway.connections.connection import Connection
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.jsonrpc import encode
from gateway.rpc.method import AUTHENTICATED, method
from gateway.rpc.openrpc import document

DOCUMENTS: Final = 64
"""OpenRPC documents that are kept, encoded."""


class CancelParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id``: that of the request, exactly as it was sent."""

    id: Raw


class ProgressParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id``: that of the call, as the node got it. ``value`` is any JSON."""

    id: Raw
    value: Raw


class RpcMethods:
    """The methods."""

    def __init__(self, dispatcher: Dispatcher, router: Router, nodes: Nodes) -> None:
        self._dispatcher = dispatcher
        self._router = router
        self._nodes = nodes
        self._documents: dict[tuple[int, tuple[str, ...]], Raw] = {}

    @method("rpc.cancel", scope=AUTHENTICATED, while_draining=True)
    def cancel(self, peer: Connection, params: CancelParams) -> bool:
        """Cancel a request of this connection that is in flight; it ends with -32800.

        Meant as a notification. As a request it returns whether there was one to cancel.
        """
        return self._dispatcher.cancel(peer, bytes(params.id))

    @method("rpc.progress", scope=AUTHENTICATED, while_draining=True)
    def progress(self, peer: Connection, params: ProgressParams) -> bool:
        """Report on a call that this node is running; the gateway passes it on to the caller, under the caller's id.

        Meant as a notification. As a request it returns whether there is such a call.
        """
        return self._router.progress(peer, bytes(params.id), bytes(params.value))

    @method("rpc.discover", scope=AUTHENTICATED, while_draining=True)
    def discover(self, peer: Connection) -> Raw:
        """Return an OpenRPC 1.3 document of all that this connection may call."""
        permitted = list(self._dispatcher.permitted(peer))
        served = [one for name, one in self._nodes.served().items() if peer.principal.allows(f"call:{name}")]
        names = (*(entry.name for entry in permitted), *(one.name for one in served))
        known = self._nodes.version, names
        made = self._documents.get(known)
        if made is None:
            # A document takes a millisecond; there are as many as there are different sets of scopes.
            if len(self._documents) >= DOCUMENTS:
                self._documents.clear()
            made = self._documents[known] = Raw(encode(document(permitted, served)))
        return made
