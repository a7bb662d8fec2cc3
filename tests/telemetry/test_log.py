"""The log: its two formats, and a writer that loses nothing unseen and never blocks."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import config
from gateway.telemetry import log
from tests.support.patience import START

CONNECTION = {"event": "connection.opened", "connId": "c-1", "remote": "[::1]:50000"}
DEADLINE = START

logger = logging.getLogger("gateway.test")


def record(
    message: object = "hello",
    *args: object,
    extra: dict[str, Any] | None = None,
    level: int = logging.INFO,
    name: str = "gateway.test",
    created: float | None = None,
    exc_info: Any = None,
) -> logging.LogRecord:
    """Return a record as a logger would make it."""
    made = logging.getLogger(name).makeRecord(name, level, "x.py", 1, message, args, exc_info, extra=extra)
    if created is not None:
        made.created = created
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    """Return the record's line, decoded, and make sure that it is one line."""
    line = log.JsonFormatter().format(made)
    assert "\n" not in line
    decoded = json.loads(line)
    assert isinstance(decoded, dict)
    return decoded


def as_text(made: logging.LogRecord) -> str:
    """Return the record's text without the time."""
    return log.TextFormatter().format(made)[len("12:34:56.789 ") :]


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
    formatter = log.JsonFormatter()
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
    for formatter in (log.JsonFormatter(), log.TextFormatter()):
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
    line = log.JsonFormatter().format(made)
    assert line.isprintable()
    assert "RuntimeError: a\u2028b\x85\u202e" in json.loads(line)["traceback"]
    below = log.TextFormatter().format(made).split("\n")
    assert all(part.isprintable() for part in below)


@pytest.mark.parametrize("blank", ["\n", "\r", "\t"])
def test_blank_space_of_raw_json_does_not_get_out(blank: str) -> None:
    raw = msgspec.Raw(f'{{{blank}"a":1}}'.encode())
    line = log.JsonFormatter().format(record("m", extra={"event": "e", "raw": raw, "u": "\u2028"}))
    assert line.isprintable()
    assert isinstance(json.loads(line)["raw"], str)


# Text


def test_text_is_time_level_event_fields_message() -> None:
    created = 1_700_000_000.789
    line = log.TextFormatter().format(record("peer connected", created=created, extra=CONNECTION))
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


# The writer


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what `configure` does to the process, and close the writers."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    for name in ("raiseExceptions", "logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    yield
    logging.captureWarnings(False)
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()


class Pipe:
    """A pipe whose reader reads when told to."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.data = b""
        self._thread: threading.Thread | None = None

    def read(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self.reader, 65536):
            self.data += chunk

    def until(self, text: bytes) -> list[dict[str, Any]]:
        """Wait for `text`; return the lines so far."""
        wait(lambda: text in self.data and self.data.endswith(b"\n"))
        return lines(self.data)

    def close(self) -> None:
        """Close both ends. The writing one first, which ends the reading."""
        os.close(self.writer)
        if self._thread:
            self._thread.join(DEADLINE)
        os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, log.LogHandler):
            if not made._thread:
                made.read()
            handler.close()
    made.close()


def wait(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(data: bytes) -> list[dict[str, Any]]:
    """Decode JSON lines; a torn one raises."""
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data[:-1].split(b"\n")]


def test_twenty_thousand_lines_arrive_whole_and_in_order(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    for number in range(20_000):
        logger.info("line", extra={"event": "test", "n": number})
    assert writer.flush(DEADLINE)
    seen = pipe.until(b'"n":19999}')
    assert [line["n"] for line in seen] == list(range(20_000))
    assert writer.lost == 0


def test_threads_share_the_log_without_tearing_lines(pipe: Pipe) -> None:
    log.configure(config.Log(), pipe.writer)
    pipe.read()

    def talk(who: int) -> None:
        for number in range(1000):
            logger.info("x" * number, extra={"who": who, "n": number})

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(lambda: pipe.data.count(b"\n") == 4000)
    seen = lines(pipe.data)
    for who in range(4):
        assert [line["n"] for line in seen if line["who"] == who] == list(range(1000))


def test_a_stalled_pipe_loses_one_stretch_of_lines_and_says_how_many(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "QUEUE_BYTES", 100_000)
    writer = log.configure(config.Log(), pipe.writer)
    for number in range(3000):  # about 300 KB; a pipe holds 64 KiB, and a blocking write would hang here
        logger.info("line", extra={"n": number})
    assert not writer.flush(0.01)
    assert 0 < writer.lost < 3000
    pipe.read()
    seen = pipe.until(b"log.lost")
    kept = 3000 - writer.lost
    assert [line["n"] for line in seen[:kept]] == list(range(kept))
    (report,) = seen[kept:]
    assert (report["event"], report["level"], report["lines"]) == ("log.lost", "warning", writer.lost)
    assert list(report) == ["time", "level", "logger", "event", "message", "lines"]
    logger.info("after")
    assert pipe.until(b'"after"')[kept + 1 :][0]["message"] == "after"
    assert writer.lost == 3000 - kept


def test_a_line_that_is_larger_than_the_queue_is_lost_alone(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_BYTES", 1000)
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    logger.info("before")
    assert writer.flush(DEADLINE)
    logger.info("x" * 1000)
    pipe.until(b'"lines":1}')
    logger.info("after")
    seen = pipe.until(b'"after"')
    assert [line["event"] for line in seen] == ["log", "log.lost", "log"]
    assert writer.lost == 1


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    writer = log.configure(config.Log(), pipe.writer)
    for number in range(2000):
        logger.info("x" * 100, extra={"n": number})
    assert not writer.flush(0.01)
    pipe.read()
    assert [line["n"] for line in pipe.until(b'"n":1999}')] == list(range(2000))
    assert writer.lost == 0


def test_a_reader_that_comes_back_is_told_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "RETRY", 0.02)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    writer = log.configure(config.Log(), fd)
    os.close(reader)
    for _ in range(10):
        logger.info("nobody reads this")
    wait(lambda: writer.lost == 10)
    assert writer.flush(DEADLINE)
    with path.open("rb") as file:
        report = json.loads(file.readline())
        assert (report["event"], report["lines"]) == ("log.lost", 10)
        logger.info("after")
        assert json.loads(file.readline())["message"] == "after"
        assert writer.close(DEADLINE)
        os.close(fd)
        assert file.read() == b""
    assert writer.lost == 10


def test_a_pipe_that_breaks_while_it_is_full_loses_all_that_waits() -> None:
    reader, fd = os.pipe()
    writer = log.configure(config.Log(), fd)
    for _ in range(2000):
        logger.info("x" * 1000)
    assert not writer.flush(0.01)
    os.close(reader)
    assert writer.close(DEADLINE)
    os.close(fd)
    assert 2000 - 65536 / 1000 < writer.lost < 2000  # what went into the pipe was written


def test_a_record_that_cannot_be_formatted_is_counted_and_reported(pipe: Pipe) -> None:
    class Broken(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise RecursionError

    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    (handler,) = (found for found in logging.getLogger().handlers if isinstance(found, log.LogHandler))
    handler.setFormatter(Broken())
    logger.info("x")
    assert pipe.until(b"log.lost")[0]["lines"] == 1
    assert writer.lost == 1


def test_a_finalizer_may_log_while_its_thread_queues_a_line(pipe: Pipe) -> None:
    class Line(bytes):
        interrupted = False

        def __len__(self) -> int:  # called with the writer's lock held, as the collector may call a finalizer
            if not self.interrupted:
                self.interrupted = True
                logger.info("inner")
            return super().__len__()

    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    writer.write(Line(b'{"message":"outer"}\n'))
    assert [line["message"] for line in pipe.until(b'"outer"')] == ["inner", "outer"]


def test_a_line_that_is_lost_while_a_loss_is_reported_is_reported_next(pipe: Pipe) -> None:
    reports: list[int] = []

    def report(count: int) -> bytes:
        reports.append(count)
        if len(reports) == 1:
            writer.write(b"nested\n")
        return b'{"lines":%d}\n' % count

    writer = log.LogWriter(pipe.writer, report)
    pipe.read()
    writer.drop(3)
    assert writer.flush(DEADLINE)
    assert writer.close(DEADLINE)
    assert pipe.until(b'{"lines":1}') == [{"lines": 3}, {"lines": 1}]
    assert writer.lost == 4


def test_lines_of_libraries_are_sampled_and_counted_by_logger(pipe: Pipe) -> None:
    now = [1000.0]
    pipe.read()
    writer = log.LogWriter(pipe.writer, lambda lost: b"")
    handler = log.LogHandler(writer, lambda: now[0])
    handler.setFormatter(log.JsonFormatter())
    burst, window = log.LIBRARY_LINES
    for _ in range(burst + 7):
        for name in ("asyncio", "aiohttp.server", "gateway.x", "a.method.of.yours"):
            handler.handle(record("m", name=name))
    now[0] += window
    handler.handle(record("later", name="asyncio"))
    found = pipe.until(b'"later"')
    handler.close()
    assert Counter(line["logger"] for line in found) == {
        "asyncio": burst + 1,
        "aiohttp.server": burst,
        "gateway.x": burst + 7,
        "a.method.of.yours": burst + 7,
    }
    assert [line["leftOut"] for line in found if "leftOut" in line] == [7]


def test_closing_writes_what_waits_and_may_be_repeated(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    for number in range(500):
        logger.info("line", extra={"n": number})
    assert not writer.closed
    assert writer.close(DEADLINE)
    assert writer.close(DEADLINE)
    assert writer.closed
    assert len(pipe.until(b'"n":499}')) == 500
    logger.info("too late")
    assert writer.lost == 1
    assert writer.flush(DEADLINE)


def test_closing_a_stuck_writer_gives_up_in_time(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    logger.info("x" * 200_000)
    start = time.monotonic()
    assert not writer.flush(0.05)
    assert not writer.close(0.05)
    assert time.monotonic() - start < DEADLINE
    pipe.read()
    assert writer.close(DEADLINE)
    (line,) = pipe.until(b"x")
    assert len(line["message"]) == 200_000


# configure


@pytest.mark.parametrize(
    ("level", "logged"),
    [("debug", 5), ("info", 4), ("warning", 3), ("error", 2), ("critical", 1)],
)
def test_level_is_the_lowest_that_is_logged(pipe: Pipe, level: Any, logged: int) -> None:
    log.configure(config.Log(level=level), pipe.writer)
    pipe.read()
    for number in (10, 20, 30, 40, 50):
        logger.log(number, "m")
    seen = [line["level"] for line in pipe.until(b'"critical"')]
    assert seen == ["debug", "info", "warning", "error", "critical"][5 - logged :]


def test_configuring_again_changes_level_and_format_and_keeps_the_writer(pipe: Pipe) -> None:
    first = log.configure(config.Log(level="warning"), pipe.writer)
    logger.info("left out")
    logger.warning("one")
    pipe.read()
    assert first.flush(DEADLINE)
    second = log.configure(config.Log(level="debug", format="text"), pipe.writer)
    assert second is first
    second.drop(2)
    assert second.flush(DEADLINE)
    assert second.lost == 2
    logger.debug("two", extra={"event": "e"})
    assert second.flush(DEADLINE)
    wait(lambda: pipe.data.endswith(b"DEBUG e two\n"))
    one, report, two = pipe.data.decode().splitlines()
    assert json.loads(one)["message"] == "one"
    assert report[12:] == " WARN  log.lost lines=2 log lines were lost"
    assert two[12:] == " DEBUG e two"


def test_another_descriptor_takes_over_and_the_earlier_writer_is_closed(pipe: Pipe, tmp_path: Path) -> None:
    with (tmp_path / "first").open("wb") as file:
        first = log.configure(config.Log(), file.fileno())
        logger.info("one")
        second = log.configure(config.Log(), pipe.writer)
        assert first.closed and not second.closed
    logger.info("two")
    pipe.read()
    assert [line["message"] for line in pipe.until(b'"two"')] == ["two"]
    assert [line["message"] for line in lines((tmp_path / "first").read_bytes())] == ["one"]


def test_a_writer_that_was_closed_is_replaced(pipe: Pipe) -> None:
    first = log.configure(config.Log(), pipe.writer)
    first.close(DEADLINE)
    assert log.configure(config.Log(), pipe.writer) is not first
    pipe.read()
    logger.info("one")
    assert [line["message"] for line in pipe.until(b'"one"')] == ["one"]


def test_warnings_are_logged(pipe: Pipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure(config.Log(), pipe.writer)
        pipe.read()
        warnings.warn("that is old", DeprecationWarning, stacklevel=1)
        (line,) = pipe.until(b"that is old")
    assert (line["level"], line["logger"], line["event"]) == ("warning", "py.warnings", "log")


# A process of its own

PRELUDE = """
import asyncio, logging, os, resource, sys, time
from gateway import config
from gateway.telemetry import log
from tests.support.patience import START
logger = logging.getLogger("gateway.test")
writer = log.configure(config.Log())
"""


def start(program: str, stdout: int) -> subprocess.Popen[bytes]:
    """Start a process that logs to `stdout`, and says on standard error what the test wants to know."""
    command = [sys.executable, "-c", PRELUDE + program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE)


def test_the_last_lines_are_written_at_exit() -> None:
    program = """
for number in range(1000):
    logger.info("line", extra={"n": number})
sys.exit(3)
"""
    process = start(program, subprocess.PIPE)
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (3, b"")
    assert [line["n"] for line in lines(output)] == list(range(1000))


STALL = """
async def main():
    beats = 0
    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1
    beating = asyncio.create_task(beat())
    for number in range(12000):
        logger.info("x" * 1000, extra={"n": number})
        if number % 50 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    print(beats, writer.lost, file=sys.stderr, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def test_a_reader_that_stalls_does_not_block_the_event_loop() -> None:
    process = start(STALL, subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    beats, lost = process.stderr.readline().split()
    assert int(beats) > 5  # a blocked loop would not have come here at all
    assert 12_000 - log.QUEUE_BYTES / 1000 < int(lost) < 12_000
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == "log.lost":
            process.stdin.close()
    assert process.wait(DEADLINE) == 0
    assert seen.pop()["lines"] == int(lost)
    assert [line["n"] for line in seen] == list(range(12_000 - int(lost)))
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


def test_a_stuck_pipe_does_not_hold_up_the_exit() -> None:
    process = start('logger.info("x" * 1_000_000); sys.stderr.close(); sys.exit(4)', subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    assert process.stderr.read() == b""
    assert process.wait(log.CLOSE_TIMEOUT + DEADLINE) == 4
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@pytest.mark.parametrize("fault", ["broken pipe", "disk full"])
def test_e6_the_process_lives_on_without_its_log_and_counts_the_loss(fault: str) -> None:
    if fault == "broken pipe":
        reader, stdout = os.pipe()
        os.close(reader)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    program = """
for number in range(100):
    logger.info("line")
    writer.flush(10)
try:
    raise ValueError
except ValueError:
    logger.exception("defect")
print(writer.flush(10), writer.lost, file=sys.stderr)
"""
    process = start(program, stdout)
    os.close(stdout)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors.split()) == (0, [b"True", b"101"])


LIMIT = """
log.RETRY = 0.05
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for number in range(30):
    logger.info("line", extra={"n": number})
print(writer.flush(0.5), os.fstat(1).st_size, file=sys.stderr)
"""


def test_e6_a_disk_that_was_full_in_the_middle_of_a_line_has_no_torn_line_afterwards(tmp_path: Path) -> None:
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(writer.flush(10), writer.lost, file=sys.stderr)
logger.info("after")
"""
    path = tmp_path / "log"
    with path.open("wb") as file:
        process = start(LIMIT + program, file.fileno())
        _, errors = process.communicate(timeout=DEADLINE)
    full, size, flushed, lost = errors.split()
    assert (process.returncode, full, size, flushed) == (0, b"False", b"1000", b"True")
    assert path.read_bytes()[999:1000] != b"\n"  # the limit was inside of a line
    *kept, report, after = lines(path.read_bytes())
    assert [line["n"] for line in kept] == list(range(30 - int(lost)))
    assert (report["event"], report["lines"]) == ("log.lost", int(lost))
    assert after["message"] == "after"


def test_e6_a_line_that_stays_unfinished_counts_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        process = start(LIMIT + "print(writer.close(10), writer.lost, file=sys.stderr)", file.fileno())
        _, errors = process.communicate(timeout=DEADLINE)
    _, _, closed, lost = errors.split()
    assert closed == b"True"
    assert int(lost) == 30 - path.read_bytes().count(b"\n")


# Under another runner

ADOPTED = """
import logging, sys
from gateway import config
from gateway.telemetry import log

def handle(name):
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("theirs: %(message)s"))
    logging.getLogger(name).addHandler(handler)

{setup}
handler = log.adopt(config.Log())
logging.getLogger("gateway.x").info("ours", extra={{"event": "connection.opened"}})
logging.getLogger("other").info("other")
if handler is not None:
    log.release(handler)
    assert logging.getLogger("gateway").handlers == []
"""


def adopted(setup: str) -> list[str]:
    """Return the lines that a process prints which has set up `logging` like this."""
    program = ADOPTED.format(setup=setup)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_without_a_set_up_the_gateway_s_own_lines_are_written_as_json() -> None:
    (line,) = adopted("")
    said = json.loads(line)
    assert (said["logger"], said["event"], said["message"]) == ("gateway.x", "connection.opened", "ours")


@pytest.mark.parametrize("name", ["''", "'gateway'"])
def test_a_set_up_of_the_user_s_own_is_left_alone(name: str) -> None:
    assert adopted(f"handle({name}); logging.getLogger({name}).setLevel('WARNING')") == []
    lines = adopted(f"handle({name}); logging.getLogger({name}).setLevel('INFO')")
    assert lines == ["theirs: ours", *(["theirs: other"] if name == "''" else [])]
