"""Pages: a node fits into entries of any size, and what comes out is what went in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.nodes import pages
from gateway.nodes.pages import HEAD, Entry, Page
from gateway.nodes.registry import Node, Served
from gateway.rpc import jsonrpc
from tests.support.rpc import NodeListing

CAMERA = Principal("camera", "node", ("call:x.>", "serve:cam.>", "share:cam.snap", "publish:camera.>"), expires_at=9.0)


def served(name: str, summary: str = "", params: bytes = b"") -> Served:
    return Served(name, jsonrpc.encode(name), f"call:{name}", summary, params)


def node(*methods: Served, principal: Principal = CAMERA) -> Node:
    made = Node("pi", NodeListing(principal), 1000.25, 1000250)
    made.add({method.name: method for method in methods})
    return made


def sent(entry: Entry) -> Entry:
    """The entry as it arrives."""
    (arrived,) = pages.decode(pages.encode(Page(1, [entry]))).nodes
    return arrived


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
PARAMS = st.sampled_from([b"", b"null", b'{"type":"object"}', b'""', b"[ 1.50 ]", b'"' + b"x" * 3000 + b'"'])
METHODS = st.builds(served, NAMES, st.text(max_size=50), PARAMS)


@given(st.lists(METHODS, max_size=8), st.lists(NAMES, max_size=8), st.integers(0, 5000), st.booleans())
def test_entries_of_any_size_have_all_methods(
    methods: list[Served], removed: list[str], room: int, whole: bool
) -> None:
    one = node(*methods)
    found = list(pages.entries(one, one.methods, removed, room, whole=whole))
    told: dict[str, Served] = {}
    for entry, size in found:
        assert len(pages.encode(entry)) <= size + 2
        again = sent(entry)
        assert (again.name, again.conn_id, again.stamp, again.remote) == (
            "pi",
            one.peer.conn_id,
            1000250,
            "127.0.0.1:1",
        )
        told |= pages.served(again.methods)
    assert told == one.methods
    assert [name for entry, _ in found for name in entry.removed] == removed
    assert [entry.whole for entry, _ in found] == [whole, *[False] * (len(found) - 1)]
    assert [entry.principal is not None for entry, _ in found] == [entry.whole for entry, _ in found]
    longest = max((len(jsonrpc.encode(name)) for name in removed), default=0)
    longest = max([longest, *(method.octets for method in methods)])
    assert all(size <= max(room, HEAD) + longest + 40 for _, size in found)


def test_an_entry_tells_all_that_is_to_be_known() -> None:
    one = node(served("cam.snap", "Shoot.", b'{"a":1.50}'), served("cam.zoom"))
    one.context, one.streams, one.peer.held = True, True, errors.TRANSPORT_LOST
    ((entry, _),) = pages.entries(one, one.methods, (), 60_000, whole=True)
    again = sent(entry)
    assert (again.context, again.streams, again.held, again.since) == (True, True, True, 1000.25)
    assert pages.served(again.methods) == one.methods
    assert again.principal is not None
    principal = pages.principal(again.principal)
    assert (principal.name, principal.role, principal.scopes) == ("camera", "node", ("serve:cam.>", "share:cam.snap"))


def test_what_is_renewed_has_no_methods() -> None:
    one = node(served("cam.snap"))
    again = sent(pages.renewed(one))
    assert (again.methods, again.removed, again.whole) == ([], [], False)
    assert again.principal == pages.card(CAMERA)
    assert len(pages.encode(again)) < HEAD


def test_whoever_needs_no_credential_is_the_same_everywhere() -> None:
    assert pages.principal(pages.card(ANONYMOUS)) is ANONYMOUS


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"number":-1}',
        b'{"number":9007199254740992}',
        b'{"number":1,"nodes":[{}]}',
        b'{"number":1,"gone":[1]}',
        b'{"number":1,"nodes":[{"name":"pi","connId":"c","stamp":1e300,"remote":"","since":0}]}',
    ],
)
def test_what_is_no_page_is_found_out(text: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        pages.decode(text)
