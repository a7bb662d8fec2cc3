"""Steps of work on the event loop: one of all work in each iteration."""

import asyncio
from contextlib import suppress

import pytest

from gateway.rpc.steps import Steps
from gateway.rpc.work import Work
from tests.support.patience import WAIT


class Clock:
    """Counts event-loop iterations."""

    def __init__(self) -> None:
        self.now = 0
        self._tick()

    def _tick(self) -> None:
        self.now += 1
        asyncio.get_running_loop().call_soon(self._tick)


def work(name: str, count: int, clock: Clock, taken: list[tuple[int, str]]) -> Work[str]:
    """Take so many steps, and note when each was taken."""
    for _ in range(count):
        taken.append((clock.now, name))
        yield
    return name


async def test_all_work_together_takes_one_step_an_iteration_in_turn() -> None:
    steps, clock, taken = Steps(), Clock(), list[tuple[int, str]]()
    works = [steps.take(work(name, 4, clock, taken)) for name in "abc"]
    assert await asyncio.gather(*works) == ["a", "b", "c"]
    moments = [moment for moment, _ in taken]
    assert len(set(moments)) == len(moments) == 12, "no two in one iteration"
    assert "".join(name for _, name in taken[1:7]) == "abcabc"


async def test_work_that_is_cancelled_has_no_turn_and_holds_up_no_other() -> None:
    steps, clock, taken = Steps(), Clock(), list[tuple[int, str]]()
    tasks = [asyncio.create_task(steps.take(work(name, 4, clock, taken))) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[1]
    assert [await tasks[0], await tasks[2]] == ["a", "c"]
    assert not any(name == "b" for _, name in taken)
    assert await steps.take(work("d", 1, clock, taken)) == "d"


async def test_work_that_is_cancelled_in_its_turn_leaves_it_to_the_next() -> None:
    steps, clock, taken = Steps(), Clock(), list[tuple[int, str]]()
    tasks = [asyncio.create_task(steps.take(work(name, 2, clock, taken))) for name in "abc"]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [done[0], done[2]] == ["a", "c"]


async def test_work_that_is_cancelled_undoes_what_it_has_begun_at_once() -> None:
    steps, done = Steps(), list[str]()

    def careful(name: str) -> Work[None]:
        done.append(f"{name} begins")
        try:
            while True:
                yield
        finally:
            done.append(f"{name} ends")

    works = {name: careful(name) for name in "ab"}
    tasks = [asyncio.create_task(steps.take(work)) for work in works.values()]
    await asyncio.sleep(0)
    assert done == ["a begins"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == ["a begins", "a ends"], "and what has not begun does not end"


async def test_what_work_raises_comes_through_and_the_next_goes_on() -> None:
    steps, clock, taken = Steps(), Clock(), list[tuple[int, str]]()

    def failing() -> Work[None]:
        yield
        raise KeyError

    failed, done = await asyncio.gather(
        steps.take(failing()), steps.take(work("a", 3, clock, taken)), return_exceptions=True
    )
    assert (type(failed), done) == (KeyError, "a")
    with pytest.raises(KeyError):
        await steps.take(failing())


async def test_what_was_begun_is_done_even_if_nobody_waits() -> None:
    steps, clock, taken = Steps(), Clock(), list[tuple[int, str]]()
    begun = steps.begin(work("a", 3, clock, taken))
    assert len(taken) == 1, "the first step is taken at once"
    waiting = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(begun), WAIT))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await begun == "a"
    assert len(taken) == 3
    assert await steps.begin(work("b", 0, clock, taken)) == "b"


async def test_what_the_first_step_raises_comes_at_once() -> None:
    def failing() -> Work[None]:
        raise KeyError
        yield

    with pytest.raises(KeyError):
        Steps().begin(failing())
