"""Handshakes that came to nothing: all of them counted, the first of each address logged, by a clock that stands."""

import json
import logging
from typing import Any

import pytest

from gateway.handshake.rejections import Rejections
from gateway.telemetry.formats import JsonFormatter
from gateway.telemetry.lines import LATE, REJECTED, Lines

LOGGED, SECONDS = REJECTED.burst, REJECTED.window
LOGGED_LATE, SECONDS_LATE = LATE.burst, LATE.window


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock, caplog: pytest.LogCaptureFixture) -> Rejections:
    caplog.set_level(logging.INFO, "gateway.handshake.rejections")
    return Rejections(Lines(clock.monotonic))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> "Written":
    return Written(caplog)


class Written:
    """The log, as the gateway writes it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self) -> list[dict[str, Any]]:
        """The lines since this was last asked."""
        formatter = JsonFormatter()
        found = [json.loads(formatter.format(record)) for record in self._caplog.records]
        self._caplog.clear()
        return found


def test_before_the_first_every_stage_has_its_zero(refusals: Rejections) -> None:
    assert refusals.failures == {"tls": 0, "request": 0, "response": 0, "idle": 0, "authenticate": 0}


def test_a_rejection_is_logged_with_its_stage_its_reason_and_what_else_is_known(
    refusals: Rejections, lines: Written
) -> None:
    assert refusals.rejected("192.0.2.7:47011", "no such host", "request", status=421)
    (line,) = lines.take()
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "gateway.handshake.rejections",
        "event": "handshake.rejected",
        "message": "handshake rejected: no such host",
        "remote": "192.0.2.7:47011",
        "stage": "request",
        "status": 421,
        "reason": "no such host",
    }


def test_a_timeout_is_logged_with_its_stage_and_the_whole_time(refusals: Rejections, lines: Written) -> None:
    assert refusals.late("unix", "authenticate", 5.0, connId="c")
    (line,) = lines.take()
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "gateway.handshake.rejections",
        "event": "handshake.timeout",
        "message": "no handshake within 5.0 s",
        "remote": "unix",
        "stage": "authenticate",
        "timeout": 5.0,
        "connId": "c",
    }


def test_each_is_counted_under_its_stage(refusals: Rejections) -> None:
    for _ in range(3):
        refusals.rejected("192.0.2.7:1", "why", "request")
    refusals.rejected("192.0.2.7:1", "why", "authenticate")
    refusals.late("192.0.2.7:1", "tls", 5.0)
    refusals.late("192.0.2.7:1", "authenticate", 5.0)
    refusals.late("192.0.2.7:1", "response", 5.0)
    assert refusals.failures == {"tls": 1, "request": 3, "response": 1, "idle": 0, "authenticate": 2}


def test_of_very_many_the_first_are_logged_and_all_are_counted(refusals: Rejections, lines: Written) -> None:
    told = [refusals.rejected(f"192.0.2.7:{port}", "why", "request") for port in range(1000)]
    assert told == [True] * LOGGED + [False] * (1000 - LOGGED)
    told = [refusals.late(f"192.0.2.7:{port}", "tls", 5.0) for port in range(1000)]
    assert told == [True] * LOGGED_LATE + [False] * (1000 - LOGGED_LATE)
    written = lines.take()
    assert [line["remote"] for line in written[:LOGGED]] == [f"192.0.2.7:{port}" for port in range(LOGGED)]
    assert len(written) == LOGGED + LOGGED_LATE
    assert not any("leftOut" in line for line in written)
    assert +refusals.failures == {"tls": 1000, "request": 1000}


def test_the_next_line_of_that_address_tells_how_many_were_left_out(
    refusals: Rejections, lines: Written, clock: Clock
) -> None:
    for _ in range(LOGGED + 7):
        refusals.rejected("192.0.2.7:1", "why", "request")
    clock.now += SECONDS - 0.1
    assert not refusals.rejected("192.0.2.7:1", "why", "request"), "the time is not over"
    assert len(lines.take()) == LOGGED
    clock.now += 0.1
    assert refusals.rejected("192.0.2.7:1", "another", "authenticate")
    assert refusals.rejected("192.0.2.7:1", "a third", "authenticate")
    second, third = lines.take()
    assert (second["leftOut"], second["reason"], second["stage"]) == (8, "another", "authenticate")
    assert "leftOut" not in third


def test_timeouts_tell_how_many_were_left_out_too(refusals: Rejections, lines: Written, clock: Clock) -> None:
    for _ in range(LOGGED_LATE + 5):
        refusals.late("192.0.2.7:1", "request", 5.0)
    lines.take()
    clock.now += SECONDS_LATE
    assert refusals.late("192.0.2.7:1", "request", 5.0)
    assert [line["leftOut"] for line in lines.take()] == [5]


def test_rejections_and_timeouts_do_not_silence_each_other(refusals: Rejections, clock: Clock) -> None:
    while refusals.rejected("192.0.2.7:1", "why", "request"):
        pass
    assert refusals.late("192.0.2.7:1", "request", 5.0)
    while refusals.late("192.0.2.7:1", "request", 5.0):
        pass
    clock.now += max(SECONDS, SECONDS_LATE)
    assert refusals.rejected("192.0.2.7:1", "why", "request")


@pytest.mark.parametrize(
    ("many", "other", "same"),
    [
        ("192.0.2.7:1", "192.0.2.7:2", True),
        ("192.0.2.7:1", "192.0.2.8:1", False),
        ("[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff::2]:2", True),
        ("[2001:db8:1:2::1]:1", "[2001:db8:1:3::1]:1", False),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:1", True),
        ("unix", "unix", True),
        ("unix", "127.0.0.1:1", False),
    ],
)
def test_who_floods_silences_their_own_address_alone(refusals: Rejections, many: str, other: str, same: bool) -> None:
    while refusals.rejected(many, "why", "request"):
        pass
    assert refusals.rejected(other, "why", "request") is not same


def test_a_gateway_that_logs_less_counts_all_the_same(refusals: Rejections, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "gateway.handshake.rejections")
    refusals.rejected("192.0.2.7:1", "why", "request")
    assert (refusals.failures["request"], caplog.records) == (1, [])
