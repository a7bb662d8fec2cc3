"""`rpc.*`: about the calls themselves."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from gateway.connection import Connection
from gateway.dispatcher import Dispatcher
from gateway.jsonrpc import encode
from gateway.method import AUTHENTICATED, method
from gateway.openrpc import document

DOCUMENTS: Final = 64
"""OpenRPC documents that are kept, encoded."""


class CancelParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id``: that of the request, exactly as it was sent."""

    id: Raw


class RpcMethods:
    """The methods."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._documents: dict[tuple[str, ...], Raw] = {}

    @method("rpc.cancel", scope=AUTHENTICATED, while_draining=True)
    def cancel(self, peer: Connection, params: CancelParams) -> bool:
        """Cancel a request of this connection that is in flight; it ends with -32800.

        Meant as a notification. As a request it returns whether there was one to cancel.
        """
        return self._dispatcher.cancel(peer, bytes(params.id))

    @method("rpc.discover", scope=AUTHENTICATED, while_draining=True)
    def discover(self, peer: Connection) -> Raw:
        """Return an OpenRPC 1.3 document of all that this connection may call."""
        permitted = self._dispatcher.permitted(peer)
        names = tuple(entry.name for entry in permitted)
        made = self._documents.get(names)
        if made is None:
            # A document takes a millisecond; there are as many as there are different sets of scopes.
            if len(self._documents) >= DOCUMENTS:
                self._documents.clear()
            made = self._documents[names] = Raw(encode(document(permitted)))
        return made
