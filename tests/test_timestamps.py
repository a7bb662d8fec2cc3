"""Moments are written as RFC 3339 has them, in UTC."""

from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.timestamps import Stamps, rfc3339, rfc3339_seconds

NOW = 1_700_000_000.0
LAST = 253_402_300_799.0
both = pytest.mark.parametrize("write", [rfc3339, rfc3339_seconds])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (NOW + 0.0625, "2023-11-14T22:13:20.062Z"),
        (NOW + 0.999_9, "2023-11-14T22:13:20.999Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
        (-62_000_000_000.0, "0005-04-19T09:46:40.000Z"),
        (LAST, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_to_the_millisecond(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1970-01-01T00:00:00Z"), (NOW + 0.9, "2023-11-14T22:13:20Z"), (LAST, "9999-12-31T23:59:59Z")],
)
def test_to_the_second(seconds: float, text: str) -> None:
    assert rfc3339_seconds(seconds) == text


@given(st.floats(-62_135_596_800.0, LAST))
def test_reads_back_as_the_same_moment(seconds: float) -> None:
    for write, unit in ((rfc3339, 0.001), (rfc3339_seconds, 1.0)):
        text = write(seconds)
        assert text.endswith("Z")
        # A float so far from the epoch is exact to some microseconds only.
        assert -1e-4 <= seconds - datetime.fromisoformat(text).timestamp() < unit + 1e-4


@given(st.lists(st.one_of(st.floats(0.0, LAST), st.floats(NOW, NOW + 3)), min_size=1))
def test_stamps_are_the_same(moments: list[float]) -> None:
    stamps = Stamps()
    assert list(map(stamps.format, moments)) == list(map(rfc3339, moments))


@pytest.mark.parametrize("fraction", [0.0, 0.0005, 0.999, 0.999_999, 0.999_999_4, 0.999_999_6])
def test_stamps_are_the_same_at_the_end_of_a_second(fraction: float) -> None:
    stamps = Stamps()
    for seconds in (NOW + fraction, NOW + 1, NOW + fraction):
        assert stamps.format(seconds) == rfc3339(seconds)


@both
@pytest.mark.parametrize("seconds", [LAST + 1, -1e12, 1e18, float("inf"), float("nan")])
def test_a_moment_outside_of_the_calendar_is_refused(write: Callable[[float], str], seconds: float) -> None:
    with pytest.raises((ValueError, OverflowError, OSError)):
        write(seconds)
