"""`rpc.*`: cancels calls, reports on them, and describes all methods."""

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
"""How many encoded OpenRPC documents are remembered."""


class CancelParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the request, exactly as it was sent."""

    id: Raw


class ProgressParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the call, as the node got it. ``value`` is any JSON."""

    id: Raw
    value: Raw


class RpcMethods:
    """The methods of `rpc.*`."""

    def __init__(self, dispatcher: Dispatcher, router: Router, nodes: Nodes) -> None:
        self._dispatcher = dispatcher
        self._router = router
        self._nodes = nodes
        self._documents: dict[tuple[int, tuple[str, ...]], Raw] = {}

    @method("rpc.cancel", scope=AUTHENTICATED, while_draining=True)
    def cancel(self, peer: Connection, params: CancelParams) -> bool:
        """Cancel a request of this connection that is in flight. The request ends with -32800.

        It is meant to be a notification. As a request it returns whether there was a request to cancel.
        """
        return self._dispatcher.cancel(peer, bytes(params.id))

    @method("rpc.progress", scope=AUTHENTICATED, while_draining=True)
    def progress(self, peer: Connection, params: ProgressParams) -> bool:
        """Report on a call that this node is running.

        The gateway passes the value on to the caller, under the caller's id. It is meant to be a notification.
        As a request it returns whether there is such a call.
        """
        return self._router.progress(peer, bytes(params.id), bytes(params.value))

    @method("rpc.discover", scope=AUTHENTICATED, while_draining=True)
    def discover(self, peer: Connection) -> Raw:
        """Return an OpenRPC 1.3 document of all methods that this connection may call."""
        permitted = list(self._dispatcher.permitted(peer))
        served = [entry for name, entry in self._nodes.served().items() if peer.principal.allows(f"call:{name}")]
        names = (*(entry.name for entry in permitted), *(entry.name for entry in served))
        key = self._nodes.version, names
        encoded = self._documents.get(key)
        if encoded is None:
            # Remembered, because a document takes a millisecond, and there is only one for each set of scopes.
            if len(self._documents) >= DOCUMENTS:
                self._documents.clear()
            encoded = self._documents[key] = Raw(encode(document(permitted, served)))
        return encoded
