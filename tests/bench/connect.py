"""`connect`: what opening and closing one connection costs a server in CPU time."""

from tests.bench.process import Server, run_load
from tests.bench.report import Column, Layout, Report, Sample, usage_values
from tests.bench.run import Plan, all_running, in_turn

WARMUP = 200
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
    """Measure each server once a round, each round with new processes. BenchError when one fails."""
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with all_running(plan) as servers:
            for server in in_turn(servers, number):
                sample = measure(plan, server, connects, at_once, number)
                samples.append(sample)
                plan.say(f"round {number + 1}, {sample.server}: {sample.values['cpuMicros']:.0f} us")
    return plan.report(LAYOUT, samples, connects=connects, atOnce=at_once)


def measure(plan: Plan, server: Server, connects: int, at_once: int, number: int) -> Sample:
    """Let the connections come and go, after a warm-up of `WARMUP`."""
    job = {"kind": "churn", "warmup": WARMUP, "connects": connects, "atOnce": at_once}
    result = run_load(server, job, plan.cores, TIMEOUT)
    values = {
        "cpuMicros": result["server"]["cpu"] / connects * 1e6,
        "rate": connects / result["seconds"],
        "peakKiB": result["peak"] / 1024,
        **usage_values(result),
    }
    return Sample(server.peer.name, f"{connects} connects, {at_once} at a time", number, values)
