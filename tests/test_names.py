"""Names: what is well formed, and what a pattern matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.names import MAX_NAME, is_dotted_name, is_pattern, is_peer_name, matches

# Dotted names and patterns


@pytest.mark.parametrize("text", ["a", "a.b", "A-1._x", "küche.licht", "a/b", "gateway", "gateway.node.online", "1.2"])
def test_what_a_method_or_a_topic_may_be_called(text: str) -> None:
    assert is_dotted_name(text)
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "a.b\n", "a:b", "a\x00", "a\u200bb", "a\u2028b", "a>b", "a*.b"]
)
def test_what_it_may_not(text: str) -> None:
    assert not is_dotted_name(text)
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["*", ">", "a.*", "*.a", "a.*.b", "a.>", "*.>", "gateway.*", "gateway.>"])
def test_what_is_a_pattern_and_no_name(text: str) -> None:
    assert is_pattern(text)
    assert not is_dotted_name(text)


@pytest.mark.parametrize("text", [">.a", "a.>.b", "**", ">>", "a.*b", "*.", ".>", "*\n", ">\n"])
def test_what_is_no_pattern_either(text: str) -> None:
    assert not is_pattern(text)


def test_names_and_patterns_have_a_length() -> None:
    for name in ("a" * MAX_NAME, "a." * (MAX_NAME // 2 - 1) + "bb"):
        assert len(name) == MAX_NAME
        assert is_dotted_name(name) and is_pattern(name)
        assert not is_dotted_name(name + "x") and not is_pattern(name + "x")
    assert is_pattern("a" * (MAX_NAME - 2) + ".>")
    assert not is_pattern("a" * (MAX_NAME - 1) + ".>")


# Names for people


@pytest.mark.parametrize(
    "name",
    ["kitchen-pi", "a", "Küche 2", "ops@example.org", "台所", "a.b:c/d", '"', "<b>", "'; --", "x" * MAX_NAME],
)
def test_a_peer_may_have_this_name(name: str) -> None:
    assert is_peer_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " a",
        "a ",
        "\ta",
        "a\n",
        "a\nb",
        "a\rb",
        "a\tb",
        "a\0b",
        "a\x1b[31mb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",  # a line of its own for some readers of a log
        "a\u202eb",  # turns the text around
        "a\u200bb",  # looks like "ab"
        "\ufeffa",
        "\ud800",
        "a\u00a0",
        "x" * (MAX_NAME + 1),
    ],
)
def test_a_peer_may_not_have_this_name(name: str) -> None:
    assert not is_peer_name(name)


# What a pattern matches


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
        # The name is a pattern too: all that it matches is matched.
        ("*", "*"),
        ("a.*", "a.*"),
        ("*.b", "*.b"),
        (">", ">"),
        (">", "*"),
        (">", "*.a"),
        (">", "a.>"),
        (">", "*.>"),
        ("a.>", "a.>"),
        ("a.>", "a.*"),
        ("a.>", "a.b.>"),
        ("a.>", "a.*.>"),
        ("*.>", "a.>"),
        ("*.>", "*.>"),
        ("*.*", "a.*"),
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
        # The name is a pattern that matches more.
        ("a", "*"),
        ("a", ">"),
        ("*", ">"),
        ("a.b", "a.*"),
        ("a.*", "*.b"),
        ("a.*", "a.>"),
        ("*.*", "*.>"),
        ("*.*", "a.>"),
        ("a.>", ">"),
        ("a.>", "*.>"),
        ("a.>", "*.a"),
        ("*.>", ">"),
        ("a.*.>", "a.>"),
        ("a.b.>", "a.>"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, name: str) -> None:
    assert not matches(pattern, name)


@given(st.text("ab*>.: ", max_size=6), st.text("ab.", min_size=1, max_size=6).filter(is_dotted_name))
def test_what_matches_a_name_is_a_pattern(pattern: str, name: str) -> None:
    assert is_pattern(pattern) or not matches(pattern, name)
