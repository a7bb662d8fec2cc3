"""Work in steps: what counts as one, and all of them in one go."""

import pytest

from gateway.rpc.work import STEPS, Pace, Work, at_once


def test_a_pace_is_over_after_so_many_steps_and_begins_again() -> None:
    pace = Pace()
    assert [pace.over(STEPS // 2) for _ in range(5)] == [False, True, False, True, False]
    assert pace.over(3 * STEPS)
    assert not pace.over(STEPS - 1)


def test_all_steps_at_once() -> None:
    taken: list[int] = []

    def work() -> Work[str]:
        for number in range(3):
            taken.append(number)
            yield
        return "done"

    assert (at_once(work()), taken) == ("done", [0, 1, 2])


def test_what_work_raises_comes_through() -> None:
    def work() -> Work[None]:
        yield
        raise KeyError

    with pytest.raises(KeyError):
        at_once(work())
