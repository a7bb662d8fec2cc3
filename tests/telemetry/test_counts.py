"""Tallies: each request counted once, whether it was timed or stands behind one that was. Traffic adds up."""

from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.counts import BOUNDS, OK, SAMPLE, Tally, Traffic, Wire


def at_once(tally: Tally, seconds: float) -> bool:
    """A request that is answered at once; returns whether it was timed."""
    if tally.untimed > 0:
        tally.untimed -= 1
        return False
    tally.at_once(seconds)
    return True


def numbers(tally: Tally) -> tuple[list[int], float]:
    """The counts of all buckets, and the sum."""
    buckets, total = tally.durations()
    return list(buckets), total


def test_a_new_one_has_zeros_for_what_an_alert_looks_at() -> None:
    assert Tally().outcomes() == {"ok": 0, "internal_error": 0}
    assert Tally("error").outcomes() == {"ok": 0, "internal_error": 0, "error": 0}
    assert numbers(Tally()) == ([0] * (len(BOUNDS) + 1), 0.0)


def test_one_of_so_many_that_are_answered_at_once_is_timed_the_first_of_all_too() -> None:
    tally = Tally()
    assert [at_once(tally, 0.001) for _ in range(2 * SAMPLE)] == ([True] + [False] * (SAMPLE - 1)) * 2


def test_the_others_are_taken_to_have_lasted_as_long_as_the_one_before_them() -> None:
    tally = Tally()
    at_once(tally, 0.002)
    for _ in range(SAMPLE - 1):
        at_once(tally, 99.0)
    at_once(tally, 100.0)
    buckets, total = numbers(tally)
    assert buckets == [0, 0, *[SAMPLE] * (len(BOUNDS) - 2), SAMPLE + 1]
    assert abs(total - (SAMPLE * 0.002 + 100.0)) < 1e-9


def test_a_bound_is_inclusive() -> None:
    for number, bound in enumerate(BOUNDS):
        tally = Tally()
        tally.ended(OK, bound)
        assert numbers(tally)[0] == [0] * number + [1] * (len(BOUNDS) + 1 - number)


def test_what_is_refused_has_no_duration() -> None:
    tally = Tally()
    tally.count("forbidden")
    tally.ended("timeout", 30.0)
    assert tally.outcomes() == {"ok": 0, "internal_error": 0, "forbidden": 1, "timeout": 1}
    assert numbers(tally)[0][-1] == 1


@given(st.lists(st.tuples(st.sampled_from(("at once", "ended", "count")), st.floats(0, 100))))
def test_every_number_is_that_of_the_requests_and_none_ever_falls(ends: list[tuple[str, float]]) -> None:
    tally = Tally()
    last = numbers(tally)
    for number, (how, seconds) in enumerate(ends, start=1):
        if how == "at once":
            at_once(tally, seconds)
        elif how == "ended":
            tally.ended("timeout", seconds)
        else:
            tally.count("forbidden")
        now = numbers(tally)
        assert all(new >= old for new, old in zip(now[0], last[0], strict=True))
        assert now[1] >= last[1] * (1 - 1e-9)
        assert sum(tally.outcomes().values()) == number
        assert now[0][-1] == number - tally.outcomes()["forbidden"]
        last = now


def test_traffic_adds_up() -> None:
    traffic = Traffic()
    for _ in range(2):
        traffic.add(cast(Wire, SimpleNamespace(messages_in=1, messages_out=2, bytes_in=3, bytes_out=4)))
    traffic.add(traffic)
    assert (traffic.messages_in, traffic.messages_out, traffic.bytes_in, traffic.bytes_out) == (4, 8, 12, 16)
