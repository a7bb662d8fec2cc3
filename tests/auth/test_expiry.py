"""Credentials that expire: announced, then the end, by clocks that the test turns."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway import errors
from gateway.auth.expiry import Expiries
from gateway.auth.scopes import Principal, role_scopes
from gateway.deadlines import TICK
from gateway.errors import Disconnect
from tests.test_deadlines import Clock

NOW = 1_799_999_000.0
"""The wall clock when a test begins: 2027-01-15T07:43:20Z."""


class Both(Clock):
    """The loop's time with its timers, and the wall clock, which may jump."""

    def __init__(self) -> None:
        super().__init__()
        self._wall = NOW - self.now

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self.now + self._wall

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._wall += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Both:
    clock = Both()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


class Somebody:
    """An open connection: when it was told what, and when it was ended; seconds since the test began."""

    def __init__(self, clock: Both, expires_in: float | None) -> None:
        self._clock = clock
        self._began = clock.now
        self.told: list[tuple[float, str, Any]] = []
        self.ends: list[tuple[float, Disconnect]] = []
        self.adopt(expires_in)

    def adopt(self, expires_in: float | None) -> None:
        """Have a credential that expires so many seconds from now."""
        expires_at = None if expires_in is None else self._clock.wall() + expires_in
        self.principal = Principal("somebody", "ui", role_scopes("ui", "somebody"), expires_at)

    def notify(self, method: str, params: object) -> None:
        """Note it."""
        self.told.append((self._clock.now - self._began, method, params))

    def end(self, end: Disconnect) -> None:
        """Note it."""
        self.ends.append((self._clock.now - self._began, end))


Open = Callable[[float | None], Somebody]


@pytest.fixture
def expiries(clock: Both) -> Expiries:
    return Expiries(60.0, clock.wall)


@pytest.fixture
def connect(clock: Both, expiries: Expiries) -> Open:
    """Open a connection, and watch it."""

    def connect(expires_in: float | None) -> Somebody:
        somebody = Somebody(clock, expires_in)
        expiries.watch(somebody)
        return somebody

    return connect


def soon_after(moment: float) -> Any:
    """What is not before this moment, and at most a tick after it."""
    return pytest.approx(moment + TICK / 2, abs=TICK / 2 + 1e-6)


def test_an_expiry_is_announced_and_then_ends_the_connection(clock: Both, connect: Open) -> None:
    somebody = connect(1000.0)
    clock.turn(939.9)
    assert somebody.told == []
    clock.turn(0.1 + TICK)
    ((moment, method, params),) = somebody.told
    assert (moment, method) == (soon_after(940.0), "gateway.expiring")
    assert params["expiresAt"] == "2027-01-15T08:00:00Z"
    assert 60_000 - TICK * 1000 <= params["leftMs"] <= 60_000
    assert params.keys() == {"expiresAt", "leftMs"}
    clock.turn(59.7)
    assert somebody.ends == []
    clock.turn(0.2 + TICK)
    assert somebody.ends == [(soon_after(1000.0), errors.CREDENTIAL_EXPIRED)]
    assert errors.CREDENTIAL_EXPIRED.code == 4004
    clock.turn(5000.0)
    assert (len(somebody.told), len(somebody.ends), clock.timers) == (1, 1, 0)


def test_each_has_a_time_of_its_own(clock: Both, connect: Open) -> None:
    everybody = {seconds: connect(seconds) for seconds in (300.0, 70.0, 4000.0, 61.0)}
    clock.turn(5000.0)
    for seconds, somebody in everybody.items():
        assert [moment for moment, *_ in somebody.told] == [soon_after(seconds - 60.0)]
        assert somebody.ends == [(soon_after(seconds), errors.CREDENTIAL_EXPIRED)]


def test_one_that_never_expires_has_no_timer(clock: Both, connect: Open) -> None:
    somebody = connect(None)
    assert clock.timers == 0
    clock.turn(10 * 365 * 86_400.0)
    assert (somebody.told, somebody.ends) == ([], [])


def test_what_is_left_at_the_beginning_may_be_less_than_the_notice(clock: Both, connect: Open) -> None:
    somebody = connect(20.0)
    clock.turn(TICK)
    ((moment, _, params),) = somebody.told
    assert moment == soon_after(0.0)
    assert 20_000 - TICK * 1000 <= params["leftMs"] <= 20_000
    clock.turn(20.0)
    assert somebody.ends == [(soon_after(20.0), errors.CREDENTIAL_EXPIRED)]


@pytest.mark.parametrize("expires_in", [0.0, -0.5, -86_400.0])
def test_one_that_has_expired_already_is_ended_at_once(clock: Both, connect: Open, expires_in: float) -> None:
    somebody = connect(expires_in)
    assert somebody.ends == [], "not while it is still being opened"
    clock.turn(TICK)
    assert somebody.ends == [(soon_after(0.0), errors.CREDENTIAL_EXPIRED)]
    assert all(params["leftMs"] == 0 for _, _, params in somebody.told)


def test_without_a_notice_nothing_is_announced(clock: Both) -> None:
    expiries = Expiries(0.0, clock.wall)
    somebody = Somebody(clock, 100.0)
    expiries.watch(somebody)
    clock.turn(200.0)
    assert somebody.told == []
    assert somebody.ends == [(soon_after(100.0), errors.CREDENTIAL_EXPIRED)]


@pytest.mark.parametrize("after", [10.0, 70.0], ids=["before the notice", "after the notice"])
def test_a_later_credential_takes_the_place_of_the_one_before(
    clock: Both, connect: Open, expiries: Expiries, after: float
) -> None:
    somebody = connect(100.0)
    clock.turn(after)
    somebody.told.clear()
    somebody.adopt(500.0)
    expiries.watch(somebody)
    clock.turn(400.0)
    assert somebody.ends == []
    clock.turn(200.0)
    assert [moment for moment, *_ in somebody.told] == [soon_after(after + 440.0)]
    assert somebody.ends == [(soon_after(after + 500.0), errors.CREDENTIAL_EXPIRED)]


def test_an_earlier_one_too(clock: Both, connect: Open, expiries: Expiries) -> None:
    somebody = connect(5000.0)
    somebody.adopt(80.0)
    expiries.watch(somebody)
    clock.turn(10_000.0)
    assert [moment for moment, *_ in somebody.told] == [soon_after(20.0)]
    assert somebody.ends == [(soon_after(80.0), errors.CREDENTIAL_EXPIRED)]


def test_and_one_that_never_expires(clock: Both, connect: Open, expiries: Expiries) -> None:
    somebody = connect(100.0)
    somebody.adopt(None)
    expiries.watch(somebody)
    clock.turn(10_000.0)
    assert (somebody.told, somebody.ends) == ([], [])


@pytest.mark.parametrize(("after", "announced"), [(10.0, 0), (70.0, 1)])
def test_who_has_left_is_forgotten(
    clock: Both, connect: Open, expiries: Expiries, after: float, announced: int
) -> None:
    somebody, other = connect(100.0), connect(100.0)
    clock.turn(after)
    expiries.forget(somebody)
    expiries.forget(somebody)
    clock.turn(500.0)
    assert (len(somebody.told), somebody.ends) == (announced, [])
    assert other.ends == [(soon_after(100.0), errors.CREDENTIAL_EXPIRED)]


def test_who_was_never_watched_can_be_forgotten(clock: Both, expiries: Expiries) -> None:
    expiries.forget(Somebody(clock, 100.0))
    assert clock.timers == 0


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_wall_clock_that_jumps_ends_nobody_earlier_or_later(clock: Both, connect: Open, jump: float) -> None:
    somebody = connect(100.0)
    clock.turn(10.0)
    clock.jump(jump)
    clock.turn(500.0)
    ((moment, _, params),) = somebody.told
    assert moment == soon_after(40.0)
    assert params["leftMs"] >= 0
    assert somebody.ends == [(soon_after(100.0), errors.CREDENTIAL_EXPIRED)]


def test_thousands_wait_on_two_timers(clock: Both, connect: Open) -> None:
    everybody = [connect(100.0 + number / 7) for number in range(3000)]
    assert clock.timers == 2
    clock.turn(1000.0)
    assert all(len(somebody.told) == len(somebody.ends) == 1 for somebody in everybody)
    assert clock.timers == 0
