"""A small soak in each combination of loop and transport, and a verdict that can be bad."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.soak import cli, streams, verdict
from tests.soak.endings import ENDINGS, endings
from tests.soak.run import End, Plan, Reading, Result, Stock, soak
from tests.support.patience import Sized
from tests.support.process import ROOT, EventLoopName


async def test_e5_all_is_back_after_connections_that_ended_in_many_ways(
    loop: EventLoopName, transport: str, sized: Sized
) -> None:
    count = sized(400, 1_000)
    plan = Plan(count=count, turns=2, at_once=sized(20, 50), loop=loop, tls=transport == "tls", limit=250.0)
    result = await soak(plan, print)
    print(verdict.to_text(result))
    assert verdict.problems(result) == []
    assert result.dealt.total() == count + len(endings(tls=plan.tls))
    assert result.closed.total() > count / 2


@pytest.mark.parametrize("language", streams.LANGUAGES)
async def test_a_stream_is_held_by_nobody(loop: EventLoopName, language: streams.Language, sized: Sized) -> None:
    megabytes = sized(20, 210)
    result = await streams.stream(streams.Streaming(megabytes, language, loop, limit=250.0), print)
    print(streams.to_text(result))
    assert streams.problems(result) == []
    assert result.values * streams.SIZE >= megabytes * 10**6
    assert all(0 < memory.settled <= memory.most for memory in result.memory.values())
    assert streams.to_json(result)["problems"] == []


@pytest.mark.parametrize(
    ("language", "role", "problem"),
    [
        ("python", "node", ["node: memory grew by 4097 KiB, 4096 allowed"]),
        ("javascript", "node", []),
        ("javascript", "gateway", ["gateway: memory grew by 4097 KiB, 4096 allowed"]),
    ],
)
def test_a_process_that_holds_more_and_more_of_a_stream_is_a_problem(
    language: streams.Language, role: str, problem: list[str]
) -> None:
    plan = streams.Streaming(10, language, "uvloop", 60.0)
    memory = {each: streams.Memory(40 << 20) for each in ("gateway", "node", "caller")}
    for each, one in memory.items():
        one.see(30 << 20, settled=False)
        one.see(50 << 20, settled=True)
        one.see((54 << 20) + 1024 * (each == role), settled=True)
    result = streams.Streamed(plan, plan.values, memory)
    assert streams.problems(result) == problem
    assert streams.to_text(result).count("PROBLEM") == len(problem)


def good() -> Result:
    """Return what a soak without a problem has seen."""
    objects = {"builtins.dict": 9_000}
    stock = Stock(descriptors=14, connections=0, tasks=3, objects=objects, blocks=160_000, heap=8 << 20, garbage=0)
    close, silence = ENDINGS[0], next(ending for ending in ENDINGS if ending.stage == "request")
    return Result(
        Plan(count=10_000, turns=4, at_once=50, loop="uvloop", tls=False, limit=60.0),
        before=stock,
        after=stock,
        readings=[Reading(n, n / 1000, 40 << 20) for n in (0, 2_500, 5_000, 7_500, 10_000)],
        dealt=Counter({close: 2, silence: 1}),
        opened=Counter(["a", "b"]),
        closed=Counter(["b", "a"]),
        ends=Counter({End("client_close", 1000): 2}),
        late=Counter({"request": 1}),
    )


def test_a_good_soak_has_no_problems() -> None:
    assert verdict.problems(good()) == []
    assert "PROBLEM" not in verdict.to_text(good())
    assert verdict.to_json(good())["problems"] == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"descriptors": 15}, "file descriptors: 15 left, 14 before"),
        ({"connections": 1}, "connections in the registry: 1 left, 0 before"),
        ({"tasks": 4}, "tasks: 4 left, 3 before"),
        ({"objects": {"builtins.dict": 9_000, "a.B": 501}}, "501 objects more than before: 501 a.B, 0 builtins.dict"),
        ({"blocks": 161_001}, "allocated blocks: 161001 left, 160000 before, 1000 more allowed"),
        ({"heap": 9 << 20}, "bytes on the heap: 9437184 left, 8388608 before, 262144 more allowed"),
        ({"garbage": 20_000}, "each connection leaves 2.0 objects in cycles, 1 allowed"),
    ],
)
def test_what_is_left_behind_is_a_problem(change: dict[str, Any], problem: str) -> None:
    result = good()
    result.after = result.after._replace(**change)
    assert verdict.problems(result) == [problem]


def test_memory_that_grows_is_a_problem() -> None:
    result = good()
    result.readings[-1] = result.readings[-1]._replace(rss=43 << 20)
    assert verdict.problems(result) == ["memory grew by 3072 KiB after 5000 connections"]
    # The first half of a short run may still grow.
    result = good()
    result.readings[0] = result.readings[0]._replace(rss=30 << 20)
    assert verdict.problems(result) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"closed": Counter(["a"])}, "2 opened and 1 closed do not match by connId"),
        ({"closed": Counter(["a", "a", "b"])}, "2 opened and 3 closed do not match by connId"),
        ({"ends": Counter({End("client_close", 1000): 1})}, "client_close 1000: 1 in the log, 2 to 2 expected"),
        ({"late": Counter()}, "0 late in stage request, 1 expected"),
        ({"late": Counter({"request": 2})}, "2 late in stage request, 1 expected"),
        ({"mishaps": ["FIN: TimeoutError: "]}, "1 peers saw what they should not have: FIN: TimeoutError: "),
    ],
)
def test_a_wrong_log_is_a_problem(change: dict[str, Any], problem: str) -> None:
    assert verdict.problems(replace(good(), **change)) == [problem]


def test_an_end_that_nobody_caused_is_a_problem() -> None:
    result = good()
    result.ends[End("internal_error", 1011)] += 1
    assert verdict.problems(result) == ["internal_error 1011: 1 in the log, 0 to 0 expected"]


def test_an_end_that_may_be_missing_is_none() -> None:
    result = good()
    (early,) = (ending for ending in ENDINGS if not ending.always)
    result.dealt[early] += 2
    result.ends[End("transport_lost", 1006)] += 1
    assert verdict.problems(result) == []


def test_what_cuts_links_is_there() -> None:
    for torture in cli.TORTURES:
        file, _, name = torture.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


def test_there_are_at_least_ten_ways_to_end() -> None:
    names = [ending.name for ending in ENDINGS]
    assert len(names) == len(set(names)) > 10


@pytest.mark.parametrize("flags", [["--count", "99"], ["--count", "many"], ["--turns", "3"], ["--loop", "trio"]])
def test_wrong_usage_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(flags)
    assert refused.value.code == 2
    assert f"argument {flags[0]}" in capsys.readouterr().err
