"""`connect`: what opening and closing one connection costs a server in CPU time."""

from collections import Counter
from itertools import pairwise
from typing import Any

from tests.bench.process import run_load
from tests.bench.report import Column, Layout, Report, Sample, usage_values
from tests.bench.run import Plan, all_running, in_turn

WARMUP = 200
# A round's connects come in so many laps, the servers in turn in each: the machine's pace changes within a round.
LAPS = 8
TIMEOUT = 120.0

LAYOUT = Layout(
    "connect",
    "cpuMicros",
    (
        Column("cpuMicros", "us/connect", 1),
        Column("rate", "connects/s", 0),
        Column("peakKiB", "peak KiB", 0),
        Column("serverBusy", "server busy", 2),
        Column("loadBusy", "load busy", 2),
    ),
    "CPU time of the server, user and system, for a TCP connect, the upgrade, the gateway's welcome, the"
    " close handshake and the end, its log lines included; for a server that refuses, for the answer and the end."
    " peak: what its highest resident memory grew by meanwhile. disturbed: other processes had one of the two"
    " cores for more than 10% of the time.",
)


def run(plan: Plan, connects: int, at_once: int) -> Report:
    """Each round has new processes, each lap a warm-up. BenchError when one fails."""
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with all_running(plan) as servers:
            results: dict[str, list[dict[str, Any]]] = {server.peer.name: [] for server in servers}
            for lap, (begin, end) in enumerate(pairwise(connects * step // LAPS for step in range(LAPS + 1))):
                first = lap * WARMUP + begin  # none has the header of one before it
                job = {"kind": "churn", "first": first, "warmup": WARMUP, "connects": end - begin, "atOnce": at_once}
                for server in in_turn(servers, number + lap):
                    results[server.peer.name].append(run_load(server, job, plan.cores, TIMEOUT))
            for name, laps in results.items():
                samples.append(to_sample(name, laps, connects, at_once, number))
                plan.say(f"round {number + 1}, {name}: {samples[-1].values['cpuMicros']:.0f} us")
    return plan.report(LAYOUT, samples, connects=connects, atOnce=at_once)


def to_sample(name: str, laps: list[dict[str, Any]], connects: int, at_once: int, number: int) -> Sample:
    """What one server did in all laps of a round."""
    whole = {"seconds": sum(lap["seconds"] for lap in laps), **{who: total(laps, who) for who in ("server", "load")}}
    values = {
        "cpuMicros": whole["server"]["cpu"] / connects * 1e6,
        "rate": connects / whole["seconds"],
        "peakKiB": max(lap["peak"] for lap in laps) / 1024,
        **usage_values(whole),
    }
    return Sample(name, f"{connects} connects, {at_once} at a time", number, values)


def total(laps: list[dict[str, Any]], who: str) -> Counter[str]:
    """The sum of a process's usage."""
    usage: Counter[str] = Counter()
    for lap in laps:
        usage.update(lap[who])
    return usage
