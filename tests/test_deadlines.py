"""Many deadlines of one length on one timer, by an event loop's clock that the tests move."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.deadlines import Deadlines
from tests.serving import MovableLoop, run_on

TIMEOUT = 100.0


class Rig:
    """Deadlines for names, and who was late, in order."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.late: list[str] = []
        self.deadlines: Deadlines[str] = Deadlines(timeout, self.late.append)

    async def begin(self, *names: str, after: float = 0.0) -> None:
        """Start the time of these, each so long after the one before."""
        for name in names:
            await pass_time(after)
            self.deadlines.begin(name)


async def pass_time(seconds: float) -> None:
    """Move the clock; what is due then is done."""
    if seconds:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        loop.ahead += seconds
    for _ in range(3):
        await asyncio.sleep(0)


def moved(scenario: Callable[[Rig], Coroutine[Any, Any, None]], timeout: float = TIMEOUT) -> None:
    """Run a scenario on a loop whose clock can be moved."""
    run_on("movable", scenario(Rig(timeout)))


def test_who_is_not_done_in_time_is_late() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("a")
        await pass_time(TIMEOUT - 1)
        assert rig.late == []
        await pass_time(1.1)
        assert rig.late == ["a"]
        await pass_time(10 * TIMEOUT)
        assert rig.late == ["a"], "late twice"

    moved(scenario)


def test_who_is_done_is_never_late() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("a", "b")
        rig.deadlines.done("a")
        assert len(rig.deadlines) == 1
        await pass_time(TIMEOUT + 1)
        assert rig.late == ["b"]

    moved(scenario)


def test_each_has_the_whole_time() -> None:
    """The timer runs for the first; the second's time ends later, also if the first is done before."""

    async def scenario(rig: Rig) -> None:
        await rig.begin("a", "b", "c", after=30.0)
        rig.deadlines.done("a")
        await pass_time(TIMEOUT - 30 - 1)
        assert rig.late == []
        await pass_time(1.1)
        assert rig.late == ["b"]
        await pass_time(30)
        assert rig.late == ["b", "c"]

    moved(scenario)


def test_the_oldest_is_late_first() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("c", "a", "b", after=1.0)
        await pass_time(2 * TIMEOUT)
        assert rig.late == ["c", "a", "b"]

    moved(scenario)


def test_beginning_again_does_not_prolong() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("a")
        await rig.begin("a", after=TIMEOUT / 2)
        await pass_time(TIMEOUT / 2 + 0.1)
        assert rig.late == ["a"]

    moved(scenario)


def test_after_done_a_fresh_time_begins() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("a", "b")
        rig.deadlines.done("a")
        await rig.begin("a", after=TIMEOUT / 2)
        await pass_time(TIMEOUT / 2 + 0.1)
        assert rig.late == ["b"]
        await pass_time(TIMEOUT / 2)
        assert rig.late == ["b", "a"]

    moved(scenario)


def test_it_works_on_after_a_time_without_anybody() -> None:
    async def scenario(rig: Rig) -> None:
        for name in ("a", "b"):
            await rig.begin(name)
            await pass_time(TIMEOUT + 1)
            await pass_time(TIMEOUT + 1)
        assert rig.late == ["a", "b"]

    moved(scenario)


def test_done_of_who_is_not_there_is_harmless() -> None:
    async def scenario(rig: Rig) -> None:
        rig.deadlines.done("a")
        await rig.begin("a")
        await pass_time(TIMEOUT + 1)
        rig.deadlines.done("a")
        assert rig.late == ["a"]
        assert len(rig.deadlines) == 0

    moved(scenario)


def test_who_is_late_may_make_others_begin_or_be_done() -> None:
    """What `expired` does falls into the middle of a sweep."""

    async def scenario(_: Rig) -> None:
        late: list[str] = []

        def expired(name: str) -> None:
            late.append(name)
            deadlines.done("b")
            if name == "a":
                deadlines.begin("a")

        deadlines = Deadlines(TIMEOUT, expired)
        for name in "abc":
            deadlines.begin(name)
        await pass_time(TIMEOUT + 1)
        assert late == ["a", "c"]
        assert len(deadlines) == 1
        await pass_time(TIMEOUT + 1)
        assert late == ["a", "c", "a"]

    moved(scenario)


def test_take_all_stops_the_time_of_all_and_tells_who_they_were() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.begin("a", "b", "c")
        rig.deadlines.done("b")
        assert rig.deadlines.take_all() == ["a", "c"]
        assert len(rig.deadlines) == 0
        await pass_time(TIMEOUT + 1)
        assert rig.late == []
        assert rig.deadlines.take_all() == []
        await rig.begin("d")
        await pass_time(TIMEOUT + 1)
        assert rig.late == ["d"], "it goes on with who comes later"

    moved(scenario)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_thousands_at_once(loop: str) -> None:
    """On a real clock: nobody is early, and all are late together."""

    async def scenario() -> None:
        running = asyncio.get_running_loop()
        early: list[float] = []
        done = asyncio.Event()

        def expired(number: int) -> None:
            if running.time() < begun + 0.1:
                early.append(number)
            if number == 9999:
                done.set()

        deadlines: Deadlines[int] = Deadlines(0.1, expired)
        begun = running.time()
        for number in range(10_000):
            deadlines.begin(number)
        for number in range(5000):
            deadlines.done(number)
        async with asyncio.timeout(5.0):
            await done.wait()
        assert early == []
        assert len(deadlines) == 0

    run_on(loop, scenario())
