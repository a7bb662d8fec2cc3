"""Pauses: full jitter, ceilings that double, and a new beginning after a connection that has lasted."""

import pytest

from gateway.client.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ceiling_doubles_from_half_a_second_to_half_a_minute() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    assert [backoff.pause() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_the_jitter_is_full() -> None:
    chances = iter([0.0, 0.5, 0.25])
    backoff = Backoff(chance=lambda: next(chances))
    assert [backoff.pause() for _ in range(3)] == [0, 0.5, 0.5]


def test_by_itself_it_draws_by_chance() -> None:
    drawn = {Backoff().pause() for _ in range(20)}
    assert len(drawn) > 1
    assert all(0 <= pause <= 0.5 for pause in drawn)


def test_at_least_what_was_asked_for_and_a_little_more() -> None:
    assert Backoff(chance=lambda: 0.5).pause(5) == 5.25


def test_it_never_overflows() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    assert [backoff.pause() for _ in range(5000)][-1] == 30


def test_a_connection_that_is_held_is_gone_on_with_sooner() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    assert [backoff.pause(within=(0.25, 4.0)) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert Backoff(0.1, 1.0, chance=lambda: 1.0).pause(within=(0.25, 4.0)) == 0.1
    backoff.opened()
    backoff.lost(helped=True)
    assert backoff.pause() == 0.5


@pytest.mark.parametrize(("stayed", "pause"), [(9.9, 2.0), (10.0, 0.5)])
def test_it_begins_anew_after_a_connection_that_stayed_open(stayed: float, pause: float) -> None:
    clock = Clock()
    backoff = Backoff(chance=lambda: 1.0, clock=clock)
    backoff.pause()
    backoff.pause()
    backoff.opened()
    clock.now += stayed
    backoff.lost()
    backoff.lost()
    assert backoff.pause() == pause


def test_an_even_draw() -> None:
    assert Backoff(chance=lambda: 0.5).between(0.5, 10) == 5.25


@pytest.mark.parametrize(("first", "most"), [(0, 1), (2, 1), (-1, 1)])
def test_what_makes_no_sense_is_refused(first: float, most: float) -> None:
    with pytest.raises(ValueError, match="first must be"):
        Backoff(first, most)
