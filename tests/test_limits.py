"""Which of many like lines reach the log, by a clock that the test moves."""

import pytest

from gateway.limits import Sampler


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admitted(sampler: Sampler, key: str, times: int) -> list[int | None]:
    return [sampler.admit(key) for _ in range(times)]


def test_first_lines_of_a_window_are_admitted(clock: Clock) -> None:
    sampler = Sampler(clock, burst=3, window=10.0)
    assert admitted(sampler, "a", 5) == [0, 0, 0, None, None]


def test_what_was_left_out_is_told_once_with_the_next_line(clock: Clock) -> None:
    sampler = Sampler(clock, burst=2, window=10.0)
    admitted(sampler, "a", 7)
    clock.now += 10.0
    assert admitted(sampler, "a", 4) == [5, 0, None, None]
    clock.now += 25.0
    assert admitted(sampler, "a", 2) == [2, 0]


def test_window_begins_with_its_first_line_and_does_not_slide(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0)
    assert sampler.admit("a") == 0
    clock.now += 9.9
    assert sampler.admit("a") is None
    clock.now += 0.1
    assert sampler.admit("a") == 1


def test_keys_do_not_share(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0)
    assert [sampler.admit(key) for key in "aabbc"] == [0, None, 0, None, 0]


def test_remembers_so_many_keys_and_forgets_the_oldest(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0, max_keys=3)
    for key in "abcd":
        assert sampler.admit(key) == 0
    assert [sampler.admit(key) for key in "bcd"] == [None, None, None]
    assert sampler.admit("a") == 0, "it was forgotten"
    assert sampler.admit("b") == 0, "it was the oldest, and made room"


def test_many_keys_do_not_make_it_grow(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0, max_keys=100)
    for number in range(10_000):
        assert sampler.admit(f"198.51.100.{number}") == 0
    assert sampler.admit("198.51.100.9999") is None
    assert sampler.admit("198.51.100.9899") == 0
