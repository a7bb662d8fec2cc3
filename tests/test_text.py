"""What others have written is shown as one line that drives no terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text import plain


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
