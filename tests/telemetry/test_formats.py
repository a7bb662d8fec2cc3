"""How an event looks in the log: each of the two formats, and that an event is one line in it."""

import json
import logging
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.formats import JsonFormatter, TextFormatter
from tests.support.records import record

CONNECTION = {"event": "connection.opened", "connId": "c-1", "remote": "[::1]:50000"}


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    """Return the record's line, decoded, and make sure that it is one line."""
    line = JsonFormatter().format(made)
    assert "\n" not in line
    decoded = json.loads(line)
    assert isinstance(decoded, dict)
    return decoded


def as_text(made: logging.LogRecord) -> str:
    """Return the record's text without the time."""
    return TextFormatter().format(made)[len("12:34:56.789 ") :]


def raised(error: Exception) -> Any:
    """Return the exc_info of an error that was raised."""
    try:
        raise error
    except Exception:
        return sys.exc_info()


class Unprintable:
    """A value that cannot be turned into text."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


# JSON


def test_a_line_has_the_five_fields_first_and_then_the_events_own_in_their_order() -> None:
    line = as_json(
        record("opened %d", 7, extra={**CONNECTION, "zeta": 1, "alpha": None, "flag": True, "list": [1, "x"]})
    )
    assert list(line)[:5] == ["time", "level", "logger", "event", "message"]
    assert list(line)[5:] == ["connId", "remote", "zeta", "alpha", "flag", "list"]
    assert line["level"] == "info"
    assert line["logger"] == "gateway.test"
    assert line["event"] == "connection.opened"
    assert line["message"] == "opened 7"
    assert (line["zeta"], line["alpha"], line["flag"], line["list"]) == (1, None, True, [1, "x"])


@pytest.mark.parametrize(
    ("created", "text"),
    [
        (1_700_000_000.0, "2023-11-14T22:13:20.000Z"),
        (1_700_000_000.123, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000.9999, "2023-11-14T22:13:20.999Z"),
        (951_782_399.5, "2000-02-28T23:59:59.500Z"),
        (951_782_400.001, "2000-02-29T00:00:00.001Z"),
    ],
)
def test_time_is_rfc_3339_in_utc_with_milliseconds(created: float, text: str) -> None:
    assert as_json(record(created=created))["time"] == text


def test_time_follows_the_clock_in_both_directions() -> None:
    formatter = JsonFormatter()
    moments = [100.25, 100.25, 100.75, 101.0, 160.5, 100.25, 3.0]
    seen = [json.loads(formatter.format(record(created=moment)))["time"] for moment in moments]
    assert [datetime.fromisoformat(text).timestamp() for text in seen] == moments


def test_time_is_now() -> None:
    before = datetime.now(UTC).timestamp()
    seen = datetime.fromisoformat(as_json(record())["time"]).timestamp()
    assert before - 0.001 <= seen <= datetime.now(UTC).timestamp()


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (10, "debug"),
        (20, "info"),
        (30, "warning"),
        (40, "error"),
        (50, "critical"),
        (5, "debug"),
        (25, "info"),
    ],
)
def test_level_is_one_of_five_lower_case_names(level: int, name: str) -> None:
    assert as_json(record(level=level))["level"] == name


def test_a_record_of_another_library_has_the_event_log() -> None:
    line = as_json(record("Using selector: %s", "EpollSelector", name="asyncio"))
    assert (line["event"], line["logger"], line["message"]) == (
        "log",
        "asyncio",
        "Using selector: EpollSelector",
    )


def test_a_field_never_replaces_one_of_the_first_five() -> None:
    line = as_json(record("hello", extra={"time": 1, "level": "high", "logger": None, "connId": "c-1"}))
    assert line["message"] == "hello" and line["level"] == "info" and line["logger"] == "gateway.test"
    assert list(line)[5:] == ["time_", "level_", "logger_", "connId"]
    assert (line["time_"], line["level_"], line["logger_"]) == (1, "high", None)


def test_arguments_that_do_not_fit_the_message_are_shown() -> None:
    assert as_json(record("%d connections", "many"))["message"] == "%d connections ('many',)"


def test_a_traceback_is_one_string_on_the_one_line() -> None:
    line = as_json(record("failed", exc_info=raised(RuntimeError("two\nlines")), extra=CONNECTION))
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("RuntimeError: two\nlines")
    assert line["connId"] == "c-1"
    assert "exc_info" not in line and "exc_text" not in line


def test_values_that_are_not_json_become_text() -> None:
    identity = uuid.uuid4()
    line = as_json(record(extra={"id": identity, "path": Path("/tmp/x"), "error": ValueError("bad"), "type": 1 + 2j}))
    assert line["id"] == str(identity)
    assert (line["path"], line["error"], line["type"]) == ("/tmp/x", "bad", "(1+2j)")


def test_a_value_that_cannot_be_encoded_costs_neither_the_line_nor_the_other_fields() -> None:
    endless: list[object] = []
    endless.append(endless)
    bad = {"bad": Unprintable(), "deep": [Unprintable()], "endless": endless, "half": "\ud83d"}
    line = as_json(record("m", extra={**CONNECTION, **bad}))
    assert line["bad"] == "<unprintable Unprintable>"
    assert line["deep"] == ["<unprintable Unprintable>"]
    assert line["endless"] == "[[...]]"
    assert line["half"] == "\\ud83d"
    assert (line["event"], line["connId"], line["message"]) == ("connection.opened", "c-1", "m")


def test_a_message_that_cannot_be_encoded_is_escaped() -> None:
    assert as_json(record("caf\u00e9 \udcff"))["message"] == "caf\u00e9 \\udcff"
    assert as_json(record(Unprintable()))["message"] == "<unprintable Unprintable> ()"


def test_nothing_breaks_a_json_line() -> None:
    hostile = 'x"}\n{"event":"forged"}\r\n\x00\x1b[2J\u2028\u0085'
    line = as_json(record(hostile, extra={"field": hostile, hostile: 1, "raw": msgspec.Raw(b'{\n"a":\n1}')}))
    assert line["message"] == hostile and line["field"] == hostile and line[hostile] == 1
    assert isinstance(line["raw"], str)
    assert line["event"] == "log"


# What some viewer takes for the end of a line, what controls a terminal or turns the direction of writing, and what has
# no glyph: C0, DEL, C1 with U+0085, U+2028, U+2029, bidi controls, a byte order mark, a tag beyond the first plane.
UNSEEN = "\t\n\v\f\r\x1b\x1c\x1e\x7f\x80\x85\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\U000e0041"


@pytest.mark.parametrize("character", UNSEEN, ids=lambda each: f"{ord(each):04x}")
def test_one_event_is_one_line_in_every_viewer(character: str) -> None:
    hostile = f"a{character}b"
    made = record(hostile, extra={"event": hostile, "field": hostile, hostile: [hostile, {hostile: hostile}]})
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(made)
        assert line.isprintable(), formatter
        assert len(line.splitlines()) == 1
    found = as_json(made)
    assert (found["message"], found["event"], found["field"]) == (hostile, hostile, hostile)
    assert found[hostile] == [hostile, {hostile: hostile}]


def test_lone_surrogates_and_tracebacks_are_escaped_too() -> None:
    made = record(
        "\udc80", extra={"event": "e", "field": ["\ud83d"]}, exc_info=raised(RuntimeError("a\u2028b\x85\u202e"))
    )
    line = JsonFormatter().format(made)
    assert line.isprintable()
    assert "RuntimeError: a\u2028b\x85\u202e" in json.loads(line)["traceback"]
    below = TextFormatter().format(made).split("\n")
    assert all(part.isprintable() for part in below)


@pytest.mark.parametrize("blank", ["\n", "\r", "\t"])
def test_blank_space_of_raw_json_does_not_get_out(blank: str) -> None:
    raw = msgspec.Raw(f'{{{blank}"a":1}}'.encode())
    line = JsonFormatter().format(record("m", extra={"event": "e", "raw": raw, "u": "\u2028"}))
    assert line.isprintable()
    assert isinstance(json.loads(line)["raw"], str)


# Text


def test_text_is_time_level_event_fields_message() -> None:
    created = 1_700_000_000.789
    line = TextFormatter().format(record("peer connected", created=created, extra=CONNECTION))
    assert line[:12] == time.strftime("%H:%M:%S", time.localtime(created)) + ".789"
    assert line[12:] == " INFO  connection.opened connId=c-1 remote=[::1]:50000 peer connected"


@pytest.mark.parametrize(
    ("level", "name"), [(10, "DEBUG "), (20, "INFO  "), (30, "WARN  "), (40, "ERROR "), (50, "CRIT  ")]
)
def test_text_levels_have_one_width(level: int, name: str) -> None:
    assert as_text(record("m", level=level, extra={"event": "e"})) == f"{name}e m"


def test_text_names_the_logger_of_another_library() -> None:
    assert as_text(record("slow callback", name="asyncio")) == "INFO  log logger=asyncio slow callback"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("bye", "bye"),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        (12.5, "12.5"),
        (None, "null"),
        (True, "true"),
        ({"a": [1, "x y"]}, '{"a":[1,"x y"]}'),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202egnp", "\\u202egnp"),
        ("\u9b54\u00e9", "\u9b54\u00e9"),
        ("\ud83d", "\\ud83d"),
        (Unprintable(), '"<unprintable Unprintable>"'),
    ],
)
def test_text_values_are_quoted_and_escaped_where_needed(value: object, shown: str) -> None:
    assert as_text(record("m", extra={"event": "e", "field": value})) == f"INFO  e field={shown} m"


def test_nothing_but_a_traceback_breaks_a_text_line_or_steers_the_terminal() -> None:
    hostile = "x\n12:00:00.000 INFO  forged\r\x9b2J\x7f\u2028"
    line = as_text(record(hostile, extra={"event": hostile, hostile: hostile}))
    assert line.isprintable()


def test_a_traceback_is_below_the_text_line_and_indented() -> None:
    made = record("failed", exc_info=raised(RuntimeError("a\x1b\nb")), extra={"event": "e"})
    first, *below = as_text(made).split("\n")
    assert first == "INFO  e failed"
    assert below[0] == "    Traceback (most recent call last):"
    assert below[-2:] == ["    RuntimeError: a\\x1b", "    b"]


# Without a record


class Kind:
    """A kind of lines."""

    def __init__(self, event: str, level: int) -> None:
        self.event = event
        self.level = level


ODD = st.text() | st.sampled_from(["\u2028", "\x7f", '"', "\\", "\n", "\ud800", "%s", "é", "\u202e", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ODD | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["connId", "remote", "time", "level", "logger", "message", "event", "name", "args", ""]) | ODD


@given(
    created=st.floats(0, 4e9),
    kind=st.builds(Kind, ODD.filter(bool), st.sampled_from([10, 20, 25, 30, 40, 50, 5])),
    logger=ODD.filter(bool),
    text=ODD,
    fields=st.dictionaries(NAMES, VALUES, max_size=5),
)
def test_a_line_without_a_record_is_byte_for_byte_that_of_the_record(
    created: float, kind: Kind, logger: str, text: str, fields: dict[str, object]
) -> None:
    formatter = JsonFormatter()
    made = formatter.brief(created, kind, logger, text, fields)
    if made is not None:
        extra = {"event": kind.event, **fields}
        same = record(text, level=kind.level, name=logger, created=created, extra=extra)
        assert made == formatter.format(same).encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "fields", "brief"),
    [
        ("connection opened", {"connId": "c-1", "remote": "[::1]:5", "count": 3, "none": None}, True),
        ('a "quoted" \\ text', {"reason": 'a "quoted" \\ \t reason'}, True),
        ("text", {"list": [1, {"a": 1.5}], "bytes": b"x"}, True),
        ("text", {}, False),
        ("t\u2028xt", {"connId": "c-1"}, False),
        ("text", {"reason": "caf\u00e9"}, False),
        ("text", {"reason": "\x7f"}, False),
        ("text", {"reason": "\ud800"}, False),
        ("text", {"raw": msgspec.Raw(b"[1,\n2]")}, False),
        ("text", {"value": Unprintable()}, True),
        ("text", {"level": "mine"}, False),
        ("text", {"args": "mine"}, False),
    ],
)
def test_a_record_is_needed_only_for_what_has_to_be_escaped_or_renamed(
    text: str, fields: dict[str, object], brief: bool
) -> None:
    formatter, kind = JsonFormatter(), Kind("connection.opened", logging.INFO)
    for _ in range(2):
        made = formatter.brief(1.0, kind, "gateway.test", text, fields)
        assert (made is not None) is brief
        if made is not None:
            extra = {"event": kind.event, **fields}
            assert made == formatter.format(record(text, created=1.0, extra=extra)).encode() + b"\n"
