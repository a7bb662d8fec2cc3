"""The phase of the process: it moves down the list, once, whatever is called when."""

import pytest

from gateway.status import Phase, Status


@pytest.fixture
def status() -> Status:
    return Status("an-instance", iter([100.0, 100.5, 163.0]).__next__)


def test_starts_then_is_ready_then_drains(status: Status) -> None:
    phases = [status.phase]
    for move in (status.ready, status.drain):
        move()
        phases.append(status.phase)
    assert phases == [Phase.STARTING, Phase.READY, Phase.DRAINING]


def test_drain_is_final(status: Status) -> None:
    status.drain()
    status.ready()
    status.drain()
    assert status.phase is Phase.DRAINING


def test_ready_twice_is_ready(status: Status) -> None:
    status.ready()
    status.ready()
    assert status.phase is Phase.READY


def test_uptime_is_the_clocks(status: Status) -> None:
    assert (status.uptime, status.uptime) == (0.5, 63.0)
    assert status.instance == "an-instance"


def test_phases_are_words_for_readiness() -> None:
    assert [str(phase) for phase in Phase] == ["starting", "ready", "draining"]
