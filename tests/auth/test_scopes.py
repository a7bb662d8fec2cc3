"""Scopes, their patterns, what each role may do of its own, and a matrix of who may do what: sections 3 and 6."""

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import GATEWAY, create_app
from gateway.auth.scopes import (
    ADMIN,
    ANONYMOUS,
    ANY_CALL,
    EVERYTHING,
    NOBODY,
    ROLES,
    Grant,
    Principal,
    callable_by,
    is_scope,
    origin,
    role_scopes,
)
from gateway.config import parse
from gateway.names import RESERVED, matches
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.method import method
from tests.support.rpc import Listing, accepted, refused, request


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (EVERYTHING, ADMIN),
        (EVERYTHING, "call:a.b"),
        (EVERYTHING, "serve:a"),
        (ADMIN, ADMIN),
        ("call:a.b", "call:a.b"),
        ("call:a.*", "call:a.b"),
        ("call:>", "call:a.b.c"),
        ("publish:a.>", "publish:a.b.c"),
        ("subscribe:a.>", "subscribe:a.*"),
        (EVERYTHING, ANY_CALL),
        ("call:>", ANY_CALL),
        ("call:a.b", ANY_CALL),
    ],
)
def test_a_scope_covers(held: str, wanted: str) -> None:
    assert Grant([held]).covers(wanted)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (ADMIN, "call:a"),
        ("call:>", ADMIN),
        ("call:admin", ADMIN),
        (">", ADMIN),
        (">", "call:a"),
        ("*:>", "call:a"),
        ("call:*", "call:a.b"),
        ("call:>", "serve:a"),
        ("call", "call:a"),
        ("call:", "call:a"),
        ("call:a", "call:b"),
        ("call:a.b", "call:a.*"),
        ("subscribe:a.*", "subscribe:a.>"),
        ("subscribe:*", "subscribe:>"),
        (ADMIN, ANY_CALL),
        ("serve:>", ANY_CALL),
        ("call", ANY_CALL),
        ("", ANY_CALL),
        ("", "call:a"),
        ("", ADMIN),
    ],
)
def test_a_scope_does_not_cover(held: str, wanted: str) -> None:
    assert not Grant([held]).covers(wanted)


PARTS = st.lists(st.sampled_from("ab*"), min_size=1, max_size=4)
PATTERNS = st.builds(lambda parts, rest: ".".join(parts + rest), PARTS, st.sampled_from([[], [">"]]))


@given(st.lists(PATTERNS, max_size=12), PATTERNS)
def test_very_many_scopes_cover_what_one_of_them_does(held: list[str], wanted: str) -> None:
    covered = any(matches(pattern, wanted) for pattern in held)
    assert Grant([f"call:{pattern}" for pattern in held]).covers(f"call:{wanted}") is covered


def test_one_scope_of_many_is_enough() -> None:
    principal = Principal("kitchen", "node", ("serve:camera.*", "call:lamp.>", ADMIN))
    assert all(map(principal.allows, ("serve:camera.snapshot", "call:lamp.on", "call:lamp.a.b", "admin")))
    assert not any(map(principal.allows, ("call:camera.snapshot", "serve:camera.a.b", "subscribe:lamp", "*")))


def test_no_scopes_allow_nothing() -> None:
    nobody = Principal("nobody", "ui", ())
    assert not any(map(nobody.allows, ("call:a", "admin", "subscribe:a", "*", "")))


def test_everybody_may_do_everything_in_mode_none() -> None:
    assert (ANONYMOUS.name, ANONYMOUS.role, ANONYMOUS.scopes) == ("anonymous", "operator", ("*",))
    assert ANONYMOUS.expires_at is None
    assert all(map(ANONYMOUS.allows, ("call:a.b", "serve:a.b", "share:a.b", "publish:a", "subscribe:a", "admin")))


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("operator", {"call:a.b", "subscribe:a.b", "publish:a.b", "admin"}),
        ("node", {"serve:a.b", "publish:somebody.a.b"}),
        ("ui", {"call:a.b", "subscribe:a.b"}),
    ],
)
def test_what_a_role_may_of_its_own(role: str, may: set[str]) -> None:
    scopes = ("call:a.b", "serve:a.b", "subscribe:a.b", "publish:a.b", "admin")
    more = ("share:a.b", "publish:somebody", "publish:somebody.a.b", "publish:somebody-else.a", "subscribe:somebody.a")
    principal = Principal("somebody", role, role_scopes(role, "somebody"))
    allowed = {scope for scope in scopes + more if principal.allows(scope)}
    assert allowed == may | ({"publish:somebody", *more[2:4]} if role == "operator" else set()) | (
        {more[4]} if "subscribe:a.b" in may else set()
    )


@pytest.mark.parametrize("name", ["a.b", "*", ">", "a.*", "a.>", "*.a", "a b", "a:b", "a.", ".a", "."])
def test_a_node_whose_name_is_no_part_of_a_topic_publishes_nothing_of_its_own(name: str) -> None:
    """`a` has the topics under `a.`, those under `a.b.` among them: they are no other node's. A wildcard is no name."""
    assert role_scopes("node", name) == ("serve:>",)
    node = Principal("a", "node", role_scopes("node", "a"))
    assert all(map(node.allows, ("publish:a.b", "publish:a.b.c")))
    assert not any(map(node.allows, ("publish:a", "publish:ab.c", "publish:a-b.c", "publish:b.a")))


def test_there_are_no_other_roles() -> None:
    assert set(ROLES) == {"operator", "node", "ui"}


@pytest.mark.parametrize(
    "text",
    [
        "admin",
        "call:a",
        "call:camera.snapshot",
        "call:>",
        "call:*",
        "call:a.*",
        "call:*.b",
        "call:*.*.>",
        "call:a.>",
        "serve:a-b.c_d.E9",
        "share:disk.>",
        "subscribe:gateway.connection.opened",
        "subscribe:küche.licht",
        "publish:a.b.c.d.e.f.g",
    ],
)
def test_a_credential_may_have_this_scope(text: str) -> None:
    assert is_scope(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",  # everything is mode none's alone
        ">",
        "call",
        "call:",
        ":a",
        "a",
        "a.b",
        "admin:",
        "admin:>",
        "Admin",
        "ADMIN",
        " admin",
        "admin\n",
        "Call:a",
        "CALL:a",
        "read:a",
        "*:a",
        "call:a:b",
        "call:.a",
        "call:a.",
        "call:a..b",
        "call:.",
        "call:a*",
        "call:*a",
        "call:a>",
        "call:>.a",
        "call:a.>.b",
        "call:**",
        "call:>>",
        "call: a",
        "call:a b",
        "call:a ",
        "call:a\n",
        "call:a,call:b",
        "call:a call:b",
    ],
)
def test_this_is_no_scope(text: str) -> None:
    assert not is_scope(text)


def test_every_scope_of_a_role_is_one_that_a_credential_may_have() -> None:
    assert all(is_scope(scope) for role in ROLES for scope in role_scopes(role, "küche-1"))


# The matrix: who may do what

WHO: Final = {
    "operator": Principal("o", "operator", role_scopes("operator", "o")),
    "node": Principal("n", "node", role_scopes("node", "n")),
    "ui": Principal("u", "ui", role_scopes("ui", "u")),
    "custom": Principal(
        "c", "node", ("serve:camera.*", "call:lamp.>", "publish:camera.>", "subscribe:gateway.>", "share:lamp.*")
    ),
    "watcher": Principal("w", "ui", ("admin", "subscribe:lamp")),
    "nothing": Principal("x", "operator", ()),
}
"""A principal for each column; the last three have scopes of their own, in place of their role's."""

ALL: Final = frozenset(WHO)
ADMINS: Final = frozenset({"operator", "watcher"})
CALLERS: Final = frozenset({"operator", "ui", "custom"})
NOBODY_AT_ALL: Final[frozenset[str]] = frozenset()

METHODS: Final = {
    "gateway.authenticate": ALL,
    "gateway.ping": ALL,
    "gateway.info": ALL,
    "rpc.discover": ALL,
    "rpc.cancel": ALL,
    "rpc.progress": ALL,
    "rpc.credit": ALL,
    "rpc.demand": ALL,
    "rpc.push": ALL,
    "connection.keep": ALL,
    "connection.resume": ALL,
    "connection.ack": ALL,
    # Each looks for a scope of its own: `serve:`, `call:`, `subscribe:`, `publish:`, whose rows are below.
    "node.register": ALL,
    "node.unregister": ALL,
    "node.call": ALL,
    "event.subscribe": ALL,
    "event.unsubscribe": ALL,
    "event.publish": ALL,
    "node.list": CALLERS,
    "node.get": CALLERS,
    "connection.list": ADMINS,
    "connection.get": ADMINS,
    "connection.history": ADMINS,
    "connection.close": ADMINS,
}
"""The gateway's own methods, and who may call them: section 3 of the contract."""

SCOPES: Final = {
    # Routed calls, and a user's own methods
    "call:camera.snapshot": {"operator", "ui"},
    "call:lamp.on": {"operator", "ui", "custom"},
    "call:lamp.hall.on": {"operator", "ui", "custom"},
    "call:lamp": {"operator", "ui"},
    # Registrations
    "serve:camera.snapshot": {"node", "custom"},
    "serve:camera.front.snapshot": {"node"},
    "serve:lamp.on": {"node"},
    "serve:gateways.list": {"node"},
    "share:lamp.on": {"custom"},
    "share:camera.snapshot": NOBODY_AT_ALL,
    # Topics, published
    "publish:camera.motion": {"operator", "custom"},
    "publish:camera.front.motion": {"operator", "custom"},
    "publish:lamp": {"operator"},
    "publish:gateways.on": {"operator"},
    "publish:n.motion": {"operator", "node"},
    "publish:n": {"operator"},
    # Topics, subscribed
    "subscribe:lamp": {"operator", "ui", "watcher"},
    "subscribe:camera.motion": {"operator", "ui"},
    "subscribe:nodes": {"operator", "ui"},
    # The gateway's own topics: an admin's, whatever pattern another has
    "subscribe:gateway.connection.opened": ADMINS,
    "subscribe:gateway.connection.closed": ADMINS,
    "subscribe:gateway.node.online": ADMINS,
    "subscribe:gateway.node.offline": ADMINS,
    "subscribe:gateway.draining": ADMINS,
    "subscribe:gateway.>": ADMINS,
    # Reserved names: nobody's
    "serve:gateway.ping": NOBODY_AT_ALL,
    "serve:rpc.x": NOBODY_AT_ALL,
    "serve:connection.list": NOBODY_AT_ALL,
    "serve:node.call": NOBODY_AT_ALL,
    "serve:event.publish": NOBODY_AT_ALL,
    "publish:gateway.x": NOBODY_AT_ALL,
    "publish:gateway.connection.opened": NOBODY_AT_ALL,
    "publish:rpc.x": NOBODY_AT_ALL,
    "publish:connection.x": NOBODY_AT_ALL,
    "publish:node.x": NOBODY_AT_ALL,
    "publish:event.x": NOBODY_AT_ALL,
    # The rest
    "admin": ADMINS,
    "*": NOBODY_AT_ALL,
    "call:": CALLERS,
    "call": NOBODY_AT_ALL,
    "": NOBODY_AT_ALL,
}
"""What is asked for besides, as the gateway asks it, and who may."""


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("scope", SCOPES)
def test_matrix_of_names_and_topics(scope: str, who: str) -> None:
    assert WHO[who].allows(scope) is (who in SCOPES[scope])


@pytest.fixture
def dispatcher() -> Dispatcher:
    """The gateway's own, with its own methods and one more that has no rule."""
    return create_app(parse({}), [unruled])[GATEWAY].dispatcher


@method("test.unruled")
def unruled(peer: object) -> None:
    """Say nothing of who may call it."""
    raise AssertionError("somebody could")


def test_every_method_has_its_row(dispatcher: Dispatcher) -> None:
    assert dispatcher.methods.keys() == METHODS.keys() | {"test.unruled"}


@pytest.mark.parametrize("who", WHO)
def test_matrix_of_methods(dispatcher: Dispatcher, who: str) -> None:
    """Who may call a method is told of it by `rpc.discover`; who may not is refused, with the scope that is missing."""
    allowed = {name for name, columns in METHODS.items() if who in columns}
    assert {entry.name for entry in dispatcher.permitted(Listing(WHO[who]))} == allowed
    for name in METHODS.keys() - allowed:
        missing = "admin" if METHODS[name] is ADMINS else "call:"
        assert answer(dispatcher, WHO[who], name) == refused(-32003, missing), name


def answer(dispatcher: Dispatcher, principal: Principal, name: str) -> str:
    """The reply to a request without parameters."""
    peer = Listing(principal)
    dispatcher.dispatch(peer, request(name).encode())
    (reply,) = peer.take()
    return reply


@pytest.mark.parametrize("who", WHO)
def test_who_may_call_a_method_is_not_refused(dispatcher: Dispatcher, who: str) -> None:
    """By parameters that it cannot take, so that none of them does anything: it has looked at them."""
    for name, columns in METHODS.items():
        if who in columns and name != "gateway.ping":
            peer = Listing(WHO[who])
            dispatcher.dispatch(peer, request(name, {"not": "its own"}).encode())
            code = -32600 if name == "connection.ack" else -32602  # that one is a notification alone
            assert json.loads(peer.take()[0])["error"]["code"] == code, name
    assert answer(dispatcher, WHO[who], "gateway.ping") == accepted("null")


@pytest.mark.parametrize("principal", [ANONYMOUS, *WHO.values()], ids=lambda principal: principal.name)
def test_a_method_without_a_rule_is_refused(dispatcher: Dispatcher, principal: Principal) -> None:
    assert answer(dispatcher, principal, "test.unruled") == refused(-32003, "no scope allows this method")
    assert "test.unruled" not in {entry.name for entry in dispatcher.permitted(Listing(principal))}


def test_a_reserved_name_is_nobodys_in_mode_none_too() -> None:
    reserved = [f"{verb}:{prefix}x" for verb in ("serve", "publish") for prefix in RESERVED]
    assert not any(map(ANONYMOUS.allows, reserved))
    assert ANONYMOUS.allows("subscribe:gateway.connection.opened"), "it is an admin"


@pytest.mark.parametrize(
    "scopes", [("subscribe:>",), ("subscribe:gateway.>",), ("subscribe:gateway.draining",), ("call:>",)]
)
def test_no_pattern_but_admin_reaches_the_gateways_topics(scopes: tuple[str, ...]) -> None:
    topic = "subscribe:gateway.draining"
    assert not Principal("somebody", "ui", scopes).allows(topic)
    assert Principal("somebody", "ui", (*scopes, ADMIN)).allows(topic)
    assert not Principal("somebody", "ui", (*scopes, ADMIN)).allows("publish:gateway.draining")


def test_the_gateways_topics_are_no_others() -> None:
    """What only looks like them is a topic like any other."""
    somebody = Principal("somebody", "ui", ("subscribe:>", "publish:>"))
    assert all(map(somebody.allows, ("subscribe:gateways.a", "subscribe:a.gateway.b", "publish:my.event.a")))


@pytest.mark.parametrize(
    "scopes",
    [
        (),
        ("*",),
        ("admin", "serve:>", "subscribe:a.b"),
        ("call:>",),
        ("call:a.b", "call:c"),
        ("call:a.*",),
        ("call:*",),
        ("call:*.b", "call:*.*.c"),
        ("call:a.>", "admin"),
        ("call:*.b.>", "call:x+y.*", "call:a", "serve:c"),
    ],
)
def test_what_tells_many_names_apart_says_the_same_as_a_principal(scopes: tuple[str, ...]) -> None:
    may = callable_by(scopes)
    principal = Principal("page", "ui", scopes)
    for name in (
        "a",
        "b",
        "c",
        "a.b",
        "a.c",
        "a.b.c",
        "a.x.c",
        "x.b",
        "x.b.c",
        "x.b.c.d",
        "x+y.z",
        "xxy.z",
        "ab",
        "a.bc",
    ):
        assert may(name) is principal.allows(f"call:{name}"), name


def test_what_is_caused_is_the_principals_or_the_address_if_there_is_none() -> None:
    op = Principal("op", "operator", ())
    other = Principal("op", "node", ("call:>",), 1.0)
    assert origin(op, "192.0.2.7:1") == origin(other, "[2001:db8::1]:2"), "by whatever credential, from wherever"
    for nameless in (ANONYMOUS, NOBODY):
        assert origin(nameless, "192.0.2.7:1") == origin(nameless, "192.0.2.7:2") != origin(nameless, "192.0.2.8:1")
        assert origin(nameless, "[2001:db8::1]:1") == origin(nameless, "[2001:db8::2]:1")
        assert origin(nameless, "unix") == origin(nameless, "unix")
    for name in ("192.0.2.7", "@192.0.2.7", "", "anonymous"):
        assert origin(Principal(name, "node", ()), "192.0.2.7:1") != origin(NOBODY, "192.0.2.7:1")
