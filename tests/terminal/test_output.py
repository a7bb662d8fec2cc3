"""What commands show: nothing that drives a terminal, and tables that fit."""

import io
import json
import sys
from datetime import UTC, datetime

import pytest

from gateway.terminal.output import Line, as_json, cut, since, span, table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 60) -> Terminal:
    """Be on a terminal; returns what standard error gets. Not a fixture: pytest would take the streams back."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.mark.parametrize(
    "value", ["\x1b[31m", "a\x9bb\x7f", "küche", "\U000e0001", {"a": [1, None, 12345678901234567890]}]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_printable_and_the_same_value(value: object, indent: int | None) -> None:
    shown = as_json(value, indent=indent)
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == value


def test_json_is_in_letters_that_standard_output_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_json("küche") == '"küche"'
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert as_json("küche") == '"k\\u00fcche"'


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be() -> None:
    shown = table([("NAME", "METHODS"), ("a" * 200, ""), ("küche\x1b", "b")]).splitlines()
    assert shown == ["NAME" + " " * 198 + "METHODS", "a" * 200, "küche\\x1b" + " " * 193 + "b"]


def test_a_table_on_a_terminal_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    rows = [("NAME", "REMOTE", "METHODS"), ("kitchen-pi", "127.0.0.1:43210", "camera.snap " * 20)]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) == 60
    assert lines[1].startswith("kitchen-pi  127.0.0.1:43210  camera.snap")
    assert lines[1].endswith("…")


def test_columns_that_can_be_spared_make_room_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("NAME", "IN", "REASON", "OUT"), ("kitchen-pi", "123456", "r" * 40, "1234567")]
    assert table(rows, spare=("OUT", "IN")).splitlines()[0].split() == ["NAME", "IN", "REASON", "OUT"]
    on_terminal(monkeypatch, 80)
    assert table(rows, spare=("OUT", "IN")).splitlines()[1] == f"kitchen-pi  123456  {'r' * 40}  1234567"
    on_terminal(monkeypatch, 50)
    assert table(rows, spare=("OUT", "IN")).splitlines()[1] == f"kitchen-pi  123456  {'r' * 29}…"
    on_terminal(monkeypatch, 40)
    assert table(rows, spare=("OUT", "IN")).splitlines()[1] == f"kitchen-pi  {'r' * 27}…"


def test_words_that_find_no_room_go_on_in_further_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("NAME", "SCOPES"), ("kitchen-pi", "call:a.b  call:c.d " + "x" * 30), ("b", "")]
    whole = f"kitchen-pi  call:a.b  call:c.d {'x' * 30}"
    assert table(rows, wraps=True).splitlines() == ["NAME        SCOPES", whole, "b"]
    on_terminal(monkeypatch, 34)
    assert table(rows, wraps=True).splitlines() == [
        "NAME        SCOPES",
        "kitchen-pi  call:a.b  call:c.d",
        f"            {'x' * 21}…",
        "b",
    ]


def test_wide_characters_keep_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert table([("A", "B"), ("廚房", "1"), ("e\u0301", "2")]).splitlines() == ["A     B", "廚房  1", "e\u0301     2"]
    on_terminal(monkeypatch, 14)
    assert table([("A", "B"), ("廚房" * 9, "1")]).splitlines() == ["A            B", "廚房廚房廚…  1"]


def test_no_window_is_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch, 1)
    assert table([("A" * 20, "B" * 20)]) == "AAAAA…  BBBBB…"


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("廚房廚", 5, "廚房…"), ("廚房廚", 4, "廚…"), ("", 3, "")],
)
def test_cut(text: str, room: int, shown: str) -> None:
    assert cut(text, room) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3_600, "1h"),
        (3_605, "1h"),
        (93_784, "1d 2h"),
    ],
)
def test_a_span_has_two_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_since() -> None:
    assert since("2026-11-23T10:00:00.500Z", datetime(2026, 11, 23, 12, 30, 1, tzinfo=UTC)) == "2h 30m"


def test_a_line_is_rewritten_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch)
    line = Line()
    line.show("a" * 100)
    line.show("b\x1b")
    line.clear()
    line.clear()
    assert shown.getvalue() == f"\r{'a' * 58}…\x1b[K\rb\\x1b\x1b[K\r\x1b[K"


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_line_needs_a_terminal_that_can_rewrite(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", term)
    Line().show("a")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    Line().show("a")
    assert (shown.getvalue(), file.getvalue()) == ("", "")
