"""Scopes, their patterns, and what each role may do of its own: section 6 of the contract."""

import pytest

from gateway.scopes import ADMIN, ANONYMOUS, EVERYTHING, ROLE_SCOPES, Principal, covers, matches


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a", "a"),
        ("a.b", "a.b"),
        ("a.*", "a.b"),
        ("*", "a"),
        ("*.b", "a.b"),
        ("a.*.c", "a.b.c"),
        ("*.*", "a.b"),
        (">", "a"),
        (">", "a.b.c"),
        ("a.>", "a.b"),
        ("a.>", "a.b.c"),
        ("a.*.>", "a.b.c.d"),
        ("*.>", "a.b"),
    ],
)
def test_a_pattern_matches(pattern: str, name: str) -> None:
    assert matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a", "b"),
        ("a", "A"),
        ("a", "a.b"),
        ("a.b", "a"),
        ("a.b", "ab"),
        ("*", "a.b"),
        ("a.*", "a"),
        ("a.*", "a.b.c"),
        ("a.*", "ab"),
        ("*.b", "b"),
        ("a.>", "a"),
        ("a.>", "ab"),
        ("a.>", "b.c"),
        ("a.*.>", "a.b"),
        ("*.>", "a"),
        ("a.>.c", "a.b.c"),
        ("a*", "ab"),
        ("a>", "ab"),
        ("", "a"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, name: str) -> None:
    assert not matches(pattern, name)


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
    ],
)
def test_a_scope_covers(held: str, wanted: str) -> None:
    assert covers(held, wanted)


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
        ("", "call:a"),
        ("", ADMIN),
    ],
)
def test_a_scope_does_not_cover(held: str, wanted: str) -> None:
    assert not covers(held, wanted)


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
    assert all(map(ANONYMOUS.allows, ("call:a.b", "serve:a.b", "publish:a", "subscribe:a", "admin")))


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("operator", {"call:a.b", "subscribe:a.b", "publish:a.b", "admin"}),
        ("node", {"serve:a.b", "subscribe:a.b", "publish:a.b"}),
        ("ui", {"call:a.b", "subscribe:a.b"}),
    ],
)
def test_what_a_role_may_of_its_own(role: str, may: set[str]) -> None:
    scopes = ("call:a.b", "serve:a.b", "subscribe:a.b", "publish:a.b", "admin")
    principal = Principal("somebody", role, ROLE_SCOPES[role])
    assert {scope for scope in scopes if principal.allows(scope)} == may


def test_there_are_no_other_roles() -> None:
    assert ROLE_SCOPES.keys() == {"operator", "node", "ui"}
