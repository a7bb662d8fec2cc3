"""What gateways tell each other of their nodes: pages of JSON, which fit into messages of NATS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from gateway.auth.scopes import ANONYMOUS, EVERYTHING, Principal
from gateway.nodes.registry import MAX_METHODS, Node, Served
from gateway.rpc import jsonrpc

PAGE: Final = 32 * 1024
"""Bytes of a page. One page is read and entered in one go, so it is small."""

HEAD: Final = 1500
"""More bytes than an entry without a principal and methods has, for any name."""

_LISTS: Final = len(',"methods":[],"removed":[]')

_KEPT: Final = ("serve:", "share:", EVERYTHING)
"""What the scopes of a node begin with that matter to other gateways."""

_EXACT: Final = 1 << 53


class Method(msgspec.Struct, omit_defaults=True):
    """A method of a node, as the node describes it."""

    name: str
    summary: str = ""
    params: Raw | UnsetType = UNSET


class Card(msgspec.Struct):
    """A node's principal, with those of its scopes that matter to other gateways."""

    name: str
    role: str
    scopes: list[str]


class Entry(msgspec.Struct, omit_defaults=True, rename="camel"):
    """What is to be known of a node, or has changed about it. The name, ``conn_id`` and ``stamp`` say which node it is.

    A ``whole`` entry has all methods of the node, so far: further entries may add some. In others ``methods`` are those
    that are new, or are described in another way now. Then ``removed`` has those that it does not serve any more. The
    ``principal`` is there in whole entries, and if it may have changed. All else is always there.
    """

    name: str
    conn_id: str
    stamp: Annotated[int, Meta(ge=0, lt=_EXACT)]
    remote: str
    since: float
    context: bool = False
    streams: bool = False
    held: bool = False
    whole: bool = False
    principal: Card | None = None
    methods: Annotated[list[Method], Meta(max_length=MAX_METHODS)] = []
    removed: Annotated[list[str], Meta(max_length=MAX_METHODS)] = []


class Page(msgspec.Struct, omit_defaults=True):
    """What one message says. ``number`` is that of the sender's last change.

    If it tells of a change, the change has this number. If it belongs to a copy of all that the sender has, ``after``
    is there with the last page of each answer: what to ask for next, or null at the end. With ``cleared`` the sender
    has no nodes any more. ``gone`` names the nodes that are gone.
    """

    number: Annotated[int, Meta(ge=0, lt=_EXACT)]
    nodes: list[Entry] = []
    gone: list[str] = []
    cleared: bool = False
    after: str | UnsetType | None = UNSET


decode: Final = msgspec.json.Decoder(Page).decode
encode: Final = msgspec.json.encode


def card(principal: Principal) -> Card:
    """Return what is told of a principal."""
    scopes = [scope for scope in principal.scopes if scope.startswith(_KEPT)]
    return Card(principal.name, principal.role, scopes)


def principal(card: Card) -> Principal:
    """Return the principal that a card tells of."""
    told = Principal(card.name, card.role, tuple(card.scopes))
    return ANONYMOUS if told == ANONYMOUS else told


def served(methods: Iterable[Method]) -> dict[str, Served]:
    """Return the methods that an entry tells of, by their names."""
    return {
        one.name: Served(
            one.name,
            jsonrpc.encode(one.name),
            f"call:{one.name}",
            one.summary,
            b"" if one.params is UNSET else bytes(one.params),
        )
        for one in methods
    }


def entries(
    node: Node, methods: Iterable[str], removed: Iterable[str], room: int, *, whole: bool
) -> Iterator[tuple[Entry, int]]:
    """Yield entries of a node: with these of its methods, and those that it has no more. Each comes with its size.

    There is one at least. They have about ``room`` bytes each; all but the first have one method, however long it is.
    """
    entry = _head(node, whole=whole)
    size = len(encode(entry)) + _LISTS
    for name in removed:
        if size >= room:
            yield entry, size
            entry, size = _head(node), HEAD
        entry.removed.append(name)
        size += len(jsonrpc.encode(name)) + 1
    for name in methods:
        told = node.methods[name]
        method = Method(name, told.summary, Raw(told.params) if told.params else UNSET)
        more = len(encode(method)) + 1
        if size + more > room and (entry.whole or entry.methods or entry.removed):
            yield entry, size
            entry, size = _head(node), HEAD
        entry.methods.append(method)
        size += more
    yield entry, size


def renewed(node: Node) -> Entry:
    """Return the entry that tells all of a node but its methods."""
    entry = _head(node)
    entry.principal = card(node.peer.principal)
    return entry


def _head(node: Node, *, whole: bool = False) -> Entry:
    peer = node.peer
    return Entry(
        node.name,
        peer.conn_id,
        node.stamp,
        peer.remote,
        node.since,
        context=node.context,
        streams=node.streams,
        held=peer.held is not None,
        whole=whole,
        principal=card(peer.principal) if whole else None,
        methods=[],
        removed=[],
    )
