"""Many deadlines on one timer, by a clock that the test turns."""

import asyncio
import heapq
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest

from gateway.deadlines import FAR, LOOK, STILL, TICK, Deadlines, Standstill, Sweep
from tests.support.patience import WAIT


class Timer:
    """What `Clock.call_at` gives."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The event loop's time, and its timers. A timer is never early, and the clock stands while it runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        return self.call_at(self.now + delay, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    @property
    def timers(self) -> int:
        """How many wait."""
        return sum(not timer.cancelled for timer in self._timers)

    def turn(self, seconds: float, *, blocked: bool = False) -> None:
        """Let time pass. blocked: the loop is busy meanwhile, and its timers are late."""
        end = self.now + seconds
        if blocked:
            self.now = end
        while self._timers and self._timers[0].when <= end:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, timer.when)
                timer.callback()
        self.now = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


# Deadlines: all of one length


def test_who_is_not_done_in_time_expires(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    deadlines.begin("a")
    clock.turn(1.0)
    deadlines.begin("b")
    clock.turn(0.99)
    assert late == []
    clock.turn(0.01)
    assert late == ["a"]
    clock.turn(0.99)
    assert late == ["a"]
    clock.turn(0.01)
    assert late == ["a", "b"]
    clock.turn(10.0)
    assert late == ["a", "b"]
    assert (len(deadlines), clock.timers) == (0, 0)


def test_after_a_standstill_nobody_expires_until_its_grace_is_over(clock: Clock) -> None:
    late: list[str] = []
    standstill = Standstill(10.0)
    standstill.start(clock)
    deadlines = Deadlines(5.0, late.append, standstill)
    deadlines.begin("quick")
    deadlines.begin("silent")
    clock.turn(45.0, blocked=True)
    assert late == []
    deadlines.done("quick")
    clock.turn(9.0)
    assert late == []
    clock.turn(1.1)
    assert late == ["silent"]


def test_who_is_done_does_not_expire(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    for name in "abc":
        deadlines.begin(name)
    clock.turn(1.0)
    deadlines.done("a")
    deadlines.done("c")
    deadlines.done("c")
    deadlines.done("nobody")
    assert len(deadlines) == 1
    clock.turn(10.0)
    assert late == ["b"]


def test_a_second_beginning_does_not_move_the_first(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    deadlines.begin("a")
    clock.turn(1.5)
    deadlines.begin("a")
    clock.turn(0.5)
    assert late == ["a"]
    clock.turn(10.0)
    assert late == ["a"]


def test_done_and_begun_anew_has_all_of_its_time(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    deadlines.begin("a")
    clock.turn(1.5)
    deadlines.done("a")
    deadlines.begin("a")
    clock.turn(1.9)
    assert late == []
    clock.turn(0.1)
    assert late == ["a"]


def test_thousands_wait_on_one_timer(clock: Clock) -> None:
    late: list[int] = []
    deadlines = Deadlines(2.0, late.append)
    for number in range(5000):
        deadlines.begin(number)
        clock.turn(0.0001)
    assert clock.timers == 1
    clock.turn(2.0)
    assert late == list(range(5000))


def test_a_loop_that_was_busy_lets_all_expire_who_are_late(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    for name in "abcd":
        deadlines.begin(name)
        clock.turn(0.5)
    clock.turn(1.2, blocked=True)
    assert late == ["a", "b", "c"]
    assert (len(deadlines), clock.timers) == (1, 1)


def test_the_time_of_everybody_can_be_stopped(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, late.append)
    for name in "abc":
        deadlines.begin(name)
    deadlines.done("b")
    assert deadlines.take_all() == ["a", "c"]
    assert (deadlines.take_all(), len(deadlines)) == ([], 0)
    deadlines.begin("a")
    clock.turn(10.0)
    assert late == ["a"]


def test_who_expires_may_begin_again_and_let_others_be_done(clock: Clock) -> None:
    late: list[tuple[str, float]] = []

    def expired(who: str) -> None:
        late.append((who, clock.now))
        deadlines.done("b")
        if len(late) < 3:
            deadlines.begin(who)

    deadlines = Deadlines(2.0, expired)
    deadlines.begin("a")
    deadlines.begin("b")
    clock.turn(100.0)
    assert late == [("a", 1002.0), ("a", 1004.0), ("a", 1006.0)]
    assert clock.timers == 0


def test_what_is_left_shrinks_with_the_time(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(2.0, lambda who: None)
    assert deadlines.left("a") == 2.0, "nobody has begun yet"
    deadlines.begin("a")
    assert (deadlines.left("a"), deadlines.left("b")) == (2.0, 2.0)
    clock.turn(1.5)
    deadlines.begin("b")
    assert (deadlines.left("a"), deadlines.left("b")) == (0.5, 2.0)
    deadlines.done("a")
    assert deadlines.left("a") == 2.0, "it would begin anew"


def test_who_is_late_on_a_busy_loop_has_nothing_left(clock: Clock) -> None:
    left: list[float] = []

    def expired(who: str) -> None:
        left.append(deadlines.left("b"))

    deadlines = Deadlines(2.0, expired)
    deadlines.begin("a")
    deadlines.begin("b")
    clock.turn(7.0, blocked=True)
    assert left == [0.0, 2.0]


def test_the_oldest_is_who_began_first_and_is_not_done(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(2.0, lambda who: None)
    with pytest.raises(StopIteration):
        deadlines.oldest()
    for name in "abc":
        deadlines.begin(name)
        clock.turn(0.5)
    assert deadlines.oldest() == "a"
    deadlines.begin("a")
    assert deadlines.oldest() == "a", "it runs already"
    deadlines.done("a")
    deadlines.begin("a")
    assert deadlines.oldest() == "b"
    clock.turn(1.2)
    assert deadlines.oldest() == "c", "the time of b is over"
    clock.turn(0.5)
    assert deadlines.oldest() == "a"
    clock.turn(2.0)
    with pytest.raises(StopIteration):
        deadlines.oldest()


def fails_on(name: str, late: list[str]) -> Callable[[str], None]:
    """What notes who is late, and then fails for one of them."""

    def expired(who: str) -> None:
        late.append(who)
        if who == name:
            raise RuntimeError(who)

    return expired


def test_one_that_fails_does_not_stop_the_time_of_the_others(clock: Clock) -> None:
    late: list[str] = []
    deadlines = Deadlines(2.0, fails_on("a", late))
    for name in "abc":
        deadlines.begin(name)
    with pytest.raises(RuntimeError):
        clock.turn(2.0)
    clock.turn(1.0)
    assert (late, clock.timers) == (["a", "b", "c"], 0)


# Sweep: of any length, to a tenth of a second


def test_deadlines_of_different_lengths_come_in_order(clock: Clock) -> None:
    late: list[str] = []
    sweep = Sweep(late.append)
    sweep.begin("long", 30.0)
    sweep.begin("short", 1.0)
    sweep.begin("middle", 5.0)
    assert (len(sweep), clock.timers) == (3, 1)
    clock.turn(0.99)
    assert late == []
    clock.turn(0.01 + TICK)
    assert late == ["short"]
    clock.turn(4.0)
    assert late == ["short", "middle"]
    clock.turn(24.8)
    assert late == ["short", "middle"]
    clock.turn(0.2)
    assert late == ["short", "middle", "long"]
    assert (len(sweep), clock.timers) == (0, 0)


def test_nobody_expires_early_nor_more_than_a_tick_late(clock: Clock) -> None:
    numbers = random.Random(7)
    due: dict[int, float] = {}
    late: dict[int, float] = {}

    def expired(who: int) -> None:
        assert who not in late
        late[who] = clock.now

    sweep = Sweep(expired)
    for number in range(3000):
        clock.turn(numbers.choice([0.0, 0.001, 0.05, 0.1, numbers.random()]))
        timeout = numbers.choice([0.0, 0.1, 0.3, 1.0, 30.0, numbers.uniform(0.0, 60.0)])
        due[number] = clock.now + timeout
        sweep.begin(number, timeout)
        assert clock.timers == 1
    clock.turn(60.0 + TICK)
    assert late.keys() == due.keys()
    assert all(-1e-6 <= late[number] - due[number] <= TICK + 1e-6 for number in due)


def test_who_waits_for_very_long_is_looked_at_in_between_and_expires_on_time(clock: Clock) -> None:
    late: dict[float, float] = {}

    def expired(end: float) -> None:
        assert end not in late
        late[end] = clock.now

    sweep = Sweep(expired)
    ends = {clock.now + seconds for seconds in (FAR - 1, FAR, FAR + 0.05, 2 * FAR, 86_400.0, 3e6)}
    for end in ends:
        sweep.begin(end, end - clock.now)
    sweep.begin(0.0, 90_000.0)
    clock.turn(2.5 * FAR)
    sweep.done(0.0)
    clock.turn(3e6)
    assert late.keys() == ends
    assert all(-1e-6 <= at - end <= 2 * TICK for end, at in late.items())
    assert (len(sweep), clock.timers) == (0, 0)


def test_deadlines_that_are_years_away_and_different_leave_nothing_behind(clock: Clock) -> None:
    """As those of JWTs of which each lives for long, and is used for a moment."""
    sweep = Sweep(print)
    tracemalloc.start()
    try:
        for number in range(20_000):
            sweep.begin(number, 1e6 + number * 977)
            sweep.done(number)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_who_is_done_is_forgotten(clock: Clock) -> None:
    late: list[str] = []
    sweep = Sweep(late.append)
    for name in "abc":
        sweep.begin(name, 1.0)
    sweep.done("b")
    sweep.done("b")
    sweep.done("nobody")
    assert len(sweep) == 2
    clock.turn(1.0 + TICK)
    assert late == ["a", "c"]
    sweep.done("a")
    assert len(sweep) == 0


def test_done_and_begun_again_counts_from_the_second_time(clock: Clock) -> None:
    late: list[str] = []
    sweep = Sweep(late.append)
    sweep.begin("a", 1.0)
    clock.turn(0.5)
    sweep.done("a")
    sweep.begin("a", 1.0)
    clock.turn(0.99)
    assert late == []
    clock.turn(0.01 + TICK)
    assert late == ["a"]


def test_a_shorter_deadline_takes_the_timer_over(clock: Clock) -> None:
    late: list[str] = []
    sweep = Sweep(late.append)
    sweep.begin("long", 600.0)
    for round in range(20):
        sweep.begin(f"short {round}", 1.0)
        assert clock.timers == 1
        clock.turn(1.0 + TICK)
        assert late.pop() == f"short {round}"
    assert late == []
    clock.turn(600.0)
    assert late == ["long"]


def test_one_that_expires_may_let_others_be_done(clock: Clock) -> None:
    late: list[str] = []

    def expired(who: str) -> None:
        late.append(who)
        for other in "abc":
            sweep.done(other)

    sweep = Sweep(expired)
    for name in "abc":
        sweep.begin(name, 1.0)
    clock.turn(10.0)
    assert late == ["a"]
    assert len(sweep) == 0


def test_one_that_expires_may_begin_again(clock: Clock) -> None:
    late: list[float] = []

    def expired(who: str) -> None:
        late.append(clock.now)
        if len(late) < 4:
            sweep.begin(who, 0.5)
            sweep.begin(f"{who}'", 300.0)
            sweep.done(f"{who}'")

    sweep = Sweep(expired)
    sweep.begin("a", 0.5)
    clock.turn(400.0)
    assert len(late) == 4
    assert all(0.5 <= after - before <= 0.5 + 2 * TICK for before, after in pairwise(late))
    assert clock.timers == 0


def test_a_loop_that_was_busy_sweeps_all_that_is_late(clock: Clock) -> None:
    late: list[int] = []
    sweep = Sweep(late.append)
    for number in range(50):
        sweep.begin(number, number / 5)
    clock.turn(5.0, blocked=True)
    assert late == list(range(len(late)))
    assert 24 <= len(late) <= 26
    clock.turn(10.0)
    assert late == list(range(50))


def test_one_that_fails_does_not_stop_the_sweep(clock: Clock) -> None:
    late: list[str] = []
    sweep = Sweep(fails_on("a", late))
    for name, timeout in {"a": 1.0, "b": 1.0, "c": 1.5}.items():
        sweep.begin(name, timeout)
    with pytest.raises(RuntimeError):
        clock.turn(1.0 + TICK)
    clock.turn(1.0)
    assert late == ["a", "b", "c"]
    sweep.begin("d", 1.0)
    clock.turn(1.0 + TICK)
    assert (late, len(sweep), clock.timers) == (["a", "b", "c", "d"], 0, 0)


def test_the_timers_of_a_real_loop_do_the_same() -> None:
    async def wait() -> list[str]:
        late: list[str] = []
        over = asyncio.Event()

        def expired(who: str) -> None:
            late.append(who)
            if who == "last":
                over.set()

        sweep = Sweep(expired)
        deadlines = Deadlines(0.1, expired)
        sweep.begin("last", 0.4)
        deadlines.begin("first")
        sweep.begin("never", 0.2)
        sweep.done("never")
        await asyncio.wait_for(over.wait(), WAIT)
        return late

    assert asyncio.run(wait()) == ["first", "last"]


# Standstill


GRACE = 10.0


class Held:
    """An event loop that can be held up, and its one timer. Implements `gateway.deadlines.Loop`, and its Timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timer: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        """Return the test's time."""
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> "Held":
        """Note it."""
        self.timer = self.now + delay, callback
        return self

    def cancel(self) -> None:
        """Forget it."""
        self.timer = None

    def run(self, seconds: float) -> None:
        """Let time pass, with the timer in time."""
        end = self.now + seconds
        while self.timer is not None and self.timer[0] <= end:
            when, callback = self.timer
            self.now = max(self.now, when)
            callback()
        self.now = end

    def stand(self, seconds: float) -> None:
        """Let time pass in which no timer runs."""
        self.now += seconds


@pytest.fixture
def held() -> Held:
    return Held()


def started(held: Held) -> Standstill:
    standstill = Standstill(GRACE)
    standstill.start(held)
    return standstill


def test_a_loop_that_runs_grants_nothing(held: Held) -> None:
    standstill = started(held)
    for _ in range(100):
        held.run(0.7)
        assert standstill.left() == 0.0


def test_a_short_delay_is_no_standstill(held: Held) -> None:
    standstill = started(held)
    held.stand(STILL - 0.01)
    assert standstill.left() == 0.0


def test_who_asks_before_the_timer_learns_of_it(held: Held) -> None:
    standstill = started(held)
    held.run(60.0)
    held.stand(45.0)
    assert standstill.left() == GRACE
    held.run(4.0)
    assert standstill.left() == GRACE - 4
    held.run(6.0)
    assert standstill.left() == 0.0


def test_the_timer_notices_it_if_nobody_asks(held: Held) -> None:
    standstill = started(held)
    held.stand(45.0)
    held.run(1.0)
    assert standstill.left() == GRACE - 1


def test_a_standstill_as_long_as_the_grace_begins_it_again(held: Held) -> None:
    standstill = started(held)
    held.stand(45.0)
    held.run(5.0)
    held.stand(45.0)
    assert standstill.left() == GRACE


@pytest.mark.parametrize("runs", [0.1, 0.4, 3.0])
def test_a_loop_that_is_held_up_again_and_again_has_an_end_of_its_grace(held: Held, runs: float) -> None:
    """Otherwise no dead peer would ever be ended. Time in which it stands does not count."""
    standstill = started(held)
    held.stand(2.0)
    standstill.left()
    ran, stood = 0.0, 0
    while standstill.left():
        held.run(runs)
        ran += runs
        if standstill.left():
            held.stand(2.0)
            stood += 1
        assert ran <= GRACE
    assert ran >= GRACE - stood * LOOK - runs


def test_without_a_start_and_after_a_stop_nothing_is_granted(held: Held) -> None:
    standstill = Standstill(GRACE)
    standstill.stop()
    held.stand(45.0)
    assert standstill.left() == 0.0
    standstill.start(held)
    standstill.start(held)
    assert standstill.left() == 0.0
    held.stand(45.0)
    assert standstill.left() == GRACE
    standstill.stop()
    standstill.stop()
    assert held.timer is None
    assert standstill.left() == 0.0
