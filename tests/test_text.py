"""What others have written is shown as one line that drives no terminal."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text import json_plain, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("küche 魔 \N{GRINNING FACE}", "küche 魔 \N{GRINNING FACE}"),
        ("a\\nb", "a\\nb"),
        ("küche \x1b[31m\n\x9b\u202e", "küche \\x1b[31m\\n\\x9b\\u202e"),
        ("\ud83d", "\\ud83d"),
        ("\U000e0001", "\\U000e0001"),
        ("\0\t\r\x7f\xa0\u2028", "\\x00\\t\\r\\x7f\\xa0\\u2028"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text())
def test_the_result_is_printable_and_stays_as_it_is(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)))
def test_json_is_escaped_to_the_same_value(value: object) -> None:
    shown = json_plain(msgspec.json.encode(value).decode())
    assert shown.isprintable()
    assert json.loads(shown) == value


def test_json_escapes_are_utf_16() -> None:
    assert json_plain('"\u2028\x85\U000e0001\ud83d魔"') == '"\\u2028\\u0085\\udb40\\udc01\\ud83d魔"'
