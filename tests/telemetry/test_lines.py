"""How lines are bounded: no call of a logger without an entry in the table, and what a flood comes to."""

import ast
import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from gateway.telemetry import lines as table
from gateway.telemetry.lines import CLOSED, DEFECT, MAX_KEYS, MAX_TOLD, ONLINE, RARE, REJECTED, SAMPLED, Line, Lines
from tests.support.process import ROOT

LOGGING: Final = {"debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "handle"}
LINES: Final = "gateway.telemetry.lines"
OUTSIDE: Final = ("gateway.client",)
"""What runs in the process of somebody else: a library, whose user decides on the log."""

logger = logging.getLogger("gateway.test")


# The table, and the sources


class LogCall:
    """One call of a logger in the sources."""

    def __init__(self, module: str, node: ast.Call) -> None:
        self.where = f"{module}:{node.lineno}"
        self.event = _event(node)


def _event(node: ast.Call) -> str:
    """The event that a call names in its `extra`, "" if that cannot be read."""
    for keyword in node.keywords:
        if keyword.arg == "extra":
            for inner in ast.walk(keyword.value):
                if isinstance(inner, ast.Dict):
                    for key, value in zip(inner.keys, inner.values, strict=True):
                        if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant):
                            return str(value.value)
    return ""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.startswith(OUTSIDE):
            yield name, ast.parse(path.read_text())


def log_calls() -> list[LogCall]:
    """All calls of loggers, but for those by which lines of the table are written."""
    return [
        LogCall(name, node)
        for name, module in modules()
        for node in ast.walk(module)
        if name != LINES
        and isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOGGING
        and isinstance(node.func.value, ast.Name)
        and "log" in node.func.value.id
    ]


def test_a_line_that_is_not_sampled_is_one_that_no_peer_can_cause() -> None:
    """A new line either goes by `Lines.log`, with an entry in SAMPLED, or has a reason in RARE."""
    calls = log_calls()
    assert [call.where for call in calls if call.event not in RARE] == []
    # The writer makes the first of these itself, and `Lines` the second.
    unused = RARE.keys() - {call.event for call in calls}
    assert unused <= {"log.lost", "log.sampled"}


def test_the_one_event_of_both_kinds_is_the_end_of_a_connection_in_a_drain() -> None:
    assert RARE.keys() & {line.event for line in SAMPLED} == {"connection.closed"}
    assert [call.where.partition(":")[0] for call in log_calls() if call.event == "connection.closed"] == [
        "gateway.connections.connection"
    ]


def test_no_other_way_leads_to_the_log() -> None:
    """No print to standard output, and no logger of the root or by another name, in what serves."""
    for name, module in modules():
        if name.startswith(("gateway.commands", "gateway.terminal")):
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGGING:
                value = node.func.value
                assert not (isinstance(value, ast.Name) and value.id == "logging"), f"{name}:{node.lineno}"


def test_every_kind_is_in_the_table_and_is_bounded() -> None:
    kinds = [value for value in vars(table).values() if isinstance(value, Line)]
    assert Counter(map(id, kinds)) == Counter(map(id, SAMPLED))
    assert all(line.burst > 0 and line.window > 0 for line in SAMPLED)
    used = {
        node.id
        for name, module in modules()
        if name != LINES
        for node in ast.walk(module)
        if isinstance(node, ast.Name) and isinstance(getattr(table, node.id, None), Line)
    }
    assert used == {name for name, value in vars(table).items() if isinstance(value, Line)}


def test_the_documented_events_are_those_of_the_table() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    log = page[page.index("\n## The log\n") : page.index("\n## Metrics\n")]
    documented = set(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", log, re.MULTILINE))
    assert documented == RARE.keys() | {line.event for line in SAMPLED}
    for line in SAMPLED:
        bound = f"{line.burst:,} in {line.window:g} s"
        assert re.search(rf"^\| `{line.event}` \|.*{bound}", log, re.MULTILINE), (line.event, bound)


# Sampling


class Log:
    """Lines with a clock of the test's own, and what was logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        self.lines = Lines(lambda: self.now)
        self._caplog = caplog

    def flood(self, line: Line, key: str, count: int) -> int:
        """Log so many, and return how many were."""
        return sum(self.lines.log(logger, line, key, "%s", key, fields={"connId": "c"}) for _ in range(count))

    def take(self) -> list[dict[str, Any]]:
        """The fields of the lines since this was last asked."""
        found = [
            {name: vars(record).get(name) for name in ("event", "of", "principal", "address", "leftOut", "connId")}
            for record in self._caplog.records
        ]
        self._caplog.clear()
        return [{name: value for name, value in line.items() if value is not None} for line in found]


@pytest.fixture
def here(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, "gateway")
    return Log(caplog)


@pytest.mark.parametrize(
    "line", SAMPLED, ids=lambda each: f"{each.event}-{each.burst}-{logging.getLevelName(each.level)}"
)
def test_a_flood_of_each_kind_is_bounded_and_counted(here: Log, line: Line) -> None:
    assert here.flood(line, "=storm", 10_000) == line.burst
    assert here.flood(line, "=other", 1) == 1, "others are logged meanwhile"
    assert len(here.take()) == line.burst + 1
    here.now += line.window
    assert here.flood(line, "=storm", 1) == 1
    assert here.take() == [{"event": line.event, "connId": "c", "leftOut": 10_000 - line.burst}]


def test_a_line_has_the_error_that_it_is_about(here: Log, caplog: pytest.LogCaptureFixture) -> None:
    error = LookupError("ours")
    here.lines.log(logger, DEFECT, "=a", "it failed: %s", "why", fields={"connId": "c"}, exc_info=error)
    (record,) = caplog.records
    assert record.exc_info == (LookupError, error, error.__traceback__)
    assert (record.getMessage(), record.levelno, record.name) == ("it failed: why", logging.ERROR, "gateway.test")
    caplog.set_level(logging.CRITICAL, "gateway")
    here.lines.log(logger, DEFECT, "=a", "it failed", fields={})
    assert caplog.records == [record], "the level of the logger holds"


@pytest.mark.parametrize("name", ["name", "args", "created", "leftOut", "event"])
def test_no_field_takes_the_place_of_what_a_record_has_itself(here: Log, name: str) -> None:
    here.flood(ONLINE, "=a", ONLINE.burst + 1)
    here.now += ONLINE.window
    with pytest.raises(KeyError, match=name):
        here.lines.log(logger, ONLINE, "=a", "online", fields={name: "other"})


def test_nothing_is_left_out_in_silence(here: Log) -> None:
    here.flood(CLOSED, "=storm", CLOSED.burst + 3)
    here.flood(REJECTED, "@192.0.2.7", REJECTED.burst + 4)
    here.flood(REJECTED, "@", REJECTED.burst + 5)
    here.take()
    here.lines.sweep()
    assert here.take() == [], "their time is not over"
    here.now += 10.0
    here.lines.sweep()
    assert here.take() == [
        {"event": "log.sampled", "of": "connection.closed", "principal": "storm", "leftOut": 3},
        {"event": "log.sampled", "of": "handshake.rejected", "address": "192.0.2.7", "leftOut": 4},
        {"event": "log.sampled", "of": "handshake.rejected", "address": "unix", "leftOut": 5},
    ]
    here.lines.sweep()
    assert here.take() == []


def test_at_the_end_all_that_was_left_out_is_told(here: Log) -> None:
    here.flood(ONLINE, "=storm", ONLINE.burst + 7)
    here.take()
    here.lines.stop()
    here.lines.stop()
    assert here.take() == [{"event": "log.sampled", "of": "node.online", "principal": "storm", "leftOut": 7}]


def test_very_many_keys_have_a_bounded_table_and_few_lines_about_them(here: Log) -> None:
    for number in range(MAX_KEYS + 1000):
        here.flood(REJECTED, f"@{number}", 1)
    assert len(here.take()) == MAX_KEYS + REJECTED.burst
    for number in range(300):
        here.flood(REJECTED, f"@{number}", REJECTED.burst)
    here.take()
    here.now += REJECTED.window
    here.lines.sweep()
    told = here.take()
    assert len(told) == MAX_TOLD + 1
    assert sum(line["leftOut"] for line in told) == 1000 - REJECTED.burst + 300
    here.flood(REJECTED, "@new", 1)
    assert here.take() == [{"event": "handshake.rejected", "connId": "c"}]


async def test_a_timer_sweeps_until_it_is_stopped(here: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SWEEP", 0.01)
    here.lines.start()
    for _ in range(2):
        here.flood(REJECTED, "=storm", REJECTED.burst + 1)
        here.take()
        here.now += REJECTED.window
        while not (told := here.take()):
            await asyncio.sleep(0.01)
        assert told == [{"event": "log.sampled", "of": "handshake.rejected", "principal": "storm", "leftOut": 1}]
    here.lines.stop()
    here.flood(REJECTED, "=storm", REJECTED.burst + 1)
    here.take()
    here.now += REJECTED.window
    await asyncio.sleep(0.05)
    assert here.take() == []


def test_the_sources_are_found() -> None:
    assert len(log_calls()) > 10
