"""`rpc.*`: cancels calls, reports on them, carries their streams, and describes all methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from gateway import errors
from gateway.auth.scopes import Principal, callable_by
from gateway.connections.connection import Connection
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.jsonrpc import encode
from gateway.rpc.method import AUTHENTICATED, BadParams, Refusal, method
from gateway.rpc.openrpc import described, document
from gateway.rpc.streams import MAX_CREDIT, Grant

DOCUMENTS_BYTES: Final = 16 * 1024 * 1024
"""How many bytes of encoded OpenRPC documents are remembered."""

SLICE: Final = 500
"""How many methods of nodes are looked at in one event-loop iteration."""

ENTRY_BYTES: Final = 100
"""Fewer bytes than any method has in a document."""


class CancelParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the request, exactly as it was sent."""

    id: Raw


class ProgressParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the call, as the node got it. ``value`` is any JSON."""

    id: Raw
    value: Raw


class CreditParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the stream: to its caller the request's, to its node the call's.

    The peer can take ``credit`` more values, as long as some of ``bytes`` more are left before each of them.
    """

    id: Raw
    credit: Annotated[int, Meta(ge=0, le=MAX_CREDIT)] = 0
    octets: Annotated[int, Meta(ge=0)] = msgspec.field(default=0, name="bytes")


class PushParams(msgspec.Struct, forbid_unknown_fields=True):
    """``id`` is that of the request, exactly as it was sent. ``value`` is any JSON; instead of it ``end`` is true."""

    id: Raw
    value: Raw | UnsetType = UNSET
    end: bool = False


class Documents:
    """The OpenRPC documents of what connections may call: one for each set of scopes, until other methods are served.

    There may be very many methods of nodes, so a document is made in slices, and one document at a time. What nodes say
    of their methods has at most ``max_bytes`` in a document. If it has more, the methods are named only; if that is
    still too much, there is no document.
    """

    def __init__(self, dispatcher: Dispatcher, nodes: Nodes, max_bytes: int) -> None:
        self._dispatcher = dispatcher
        self._nodes = nodes
        self._max_bytes = max_bytes
        self._turn = asyncio.Lock()
        self._version = -1
        self._made: dict[tuple[str, ...], Raw] = {}
        self._octets = 0

    @property
    def octets(self) -> int:
        """How many bytes of documents are remembered."""
        return self._octets

    async def of(self, peer: Connection) -> Raw:
        """Return the document of what this connection may call. Raises Refusal if it would be too large."""
        found = self._remembered(peer.principal)
        if found is not None:
            return found
        async with self._turn:
            principal = peer.principal
            found = self._remembered(principal)
            if found is not None:
                return found
            version = self._nodes.version
            whole = document(self._dispatcher.permitted(peer))
            whole["methods"] += await self._served(principal)
            found = Raw(encode(whole))
            if version == self._nodes.version:
                self._remember(principal, found)
            return found

    def _remembered(self, principal: Principal) -> Raw | None:
        if self._version != self._nodes.version:
            self._version = self._nodes.version
            self._made.clear()
            self._octets = 0
        return self._made.get(principal.scopes)

    def _remember(self, principal: Principal, found: Raw) -> None:
        self._made[principal.scopes] = found
        self._octets += len(found)
        while self._octets > DOCUMENTS_BYTES:
            self._octets -= len(self._made.pop(next(iter(self._made))))

    async def _served(self, principal: Principal) -> list[Raw]:
        """Return the method objects, in JSON, of the nodes' methods that a principal may call."""
        may = callable_by(principal.scopes)
        names: list[str] = []
        async for part in _slices(self._nodes.methods()):
            names += filter(may, part)
            if len(names) * ENTRY_BYTES > self._max_bytes:
                raise _too_large()
        names.sort()
        found = await self._described(names, brief=False)
        if found is None:
            found = await self._described(names, brief=True)
        if found is None:
            raise _too_large()
        return found

    async def _described(self, names: Sequence[str], brief: bool) -> list[Raw] | None:
        """Return the method objects of these methods, without those that are gone; None if they are too large."""
        found: list[Raw] = []
        octets = 0
        async for part in _slices(names):
            for name in part:
                served = self._nodes.described(name)
                if served is not None:
                    found.append(Raw(encode(described(served, brief))))
                    octets += len(found[-1])
                if octets > self._max_bytes:
                    return None
        return found


def _too_large() -> Refusal:
    return Refusal(errors.TOO_LARGE, "there are too many methods for one document; see node.list and node.get")


async def _slices(names: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    """Yield the names bit by bit, one bit in an event-loop iteration."""
    for start in range(0, len(names), SLICE):
        if start:
            await asyncio.sleep(0)
        yield names[start : start + SLICE]


class RpcMethods:
    """The methods of `rpc.*`."""

    def __init__(self, dispatcher: Dispatcher, router: Router, documents: Documents) -> None:
        self._dispatcher = dispatcher
        self._router = router
        self._streams = Streams(router.dropped)
        self._documents = documents

    @method("rpc.cancel", scope=AUTHENTICATED, while_draining=True)
    def cancel(self, peer: Connection, params: CancelParams) -> bool:
        """Cancel a request of this connection that is in flight. The request ends with -32800.

        It is meant to be a notification. As a request it returns whether there was a request to cancel.
        """
        return self._dispatcher.cancel(peer, bytes(params.id))

    @method("rpc.progress", scope=AUTHENTICATED, while_draining=True, paced=False)
    def progress(self, peer: Connection, params: ProgressParams) -> bool:
        """Report on a call that this node is running.

        The gateway passes the value on to the caller, under the caller's id. It is meant to be a notification.
        As a request it returns whether there is such a call.
        """
        call_id = bytes(params.id)
        if not self._streams.is_served(peer, call_id):
            self._dispatcher.pace(peer)
        return self._router.progress(peer, call_id, bytes(params.value))

    @method("rpc.credit", scope=AUTHENTICATED, while_draining=True, paced=False)
    def credit(self, peer: Connection, params: CreditParams) -> bool:
        """Let the node of a stream send more values to its caller, which is this connection.

        A grant of 0 renews the stream's deadline. It is meant to be a notification. As a request it returns whether
        there is such a stream.
        """
        return self._of_a_stream(peer, self._streams.credit(peer, bytes(params.id), self._grant(peer, params)))

    @method("rpc.demand", scope=AUTHENTICATED, while_draining=True, paced=False)
    def demand(self, peer: Connection, params: CreditParams) -> bool:
        """Let the caller of a stream push more values to its node, which is this connection.

        A grant of 0 renews the stream's deadline. It is meant to be a notification. As a request it returns whether
        there is such a stream.
        """
        return self._of_a_stream(peer, self._streams.demand(peer, bytes(params.id), self._grant(peer, params)))

    @method("rpc.push", scope=AUTHENTICATED, while_draining=True, paced=False)
    def push(self, peer: Connection, params: PushParams) -> bool:
        """Send a value to the node of a stream, or tell it that no more values come.

        It is meant to be a notification. As a request it returns whether there is such a stream.
        """
        if (params.value is UNSET) is not params.end:
            raise BadParams("either value or end: true")
        value = None if params.value is UNSET else bytes(params.value)
        return self._of_a_stream(peer, self._streams.push(peer, bytes(params.id), value))

    def _grant(self, peer: Connection, params: CreditParams) -> Grant:
        """Return a grant. One of nothing counts against the rate: all others are bounded by what is sent for them."""
        most = self._router.max_credit_bytes
        if params.octets > most:
            raise BadParams(f"bytes: at most {most}, half of limits.max_outbox_bytes")
        if not (params.credit or params.octets):
            self._dispatcher.pace(peer)
        return Grant(params.credit, params.octets)

    def _of_a_stream(self, peer: Connection, found: bool) -> bool:
        """Return whether there was such a stream. If not, the message counts against the rate."""
        if not found:
            self._dispatcher.pace(peer)
        return found

    @method("rpc.discover", scope=AUTHENTICATED, while_draining=True)
    async def discover(self, peer: Connection) -> Raw:
        """Return an OpenRPC 1.3 document of all methods that this connection may call.

        If nodes say very much of their methods, the document has only the names of these. `node.get` has the rest.
        """
        return await self._documents.of(peer)
