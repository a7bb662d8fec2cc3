"""`routed`: what a call from one connection to another, and the answer's way back, cost a server in CPU time."""

import itertools
from collections.abc import Sequence

from tests.bench.process import run_load
from tests.bench.report import Column, Layout, Report, Sample
from tests.bench.rpc import OPEN_SECONDS, figures, marks
from tests.bench.run import PARTS, Plan, all_running, in_turn

IN_FLIGHT = (64, 1)
# The gateway's own default, `limits.max_in_flight`.
MOST_IN_FLIGHT = 64

LAYOUT = Layout(
    "routed",
    "cpuMicros",
    (
        Column("cpuMicros", "us/call", 2),
        Column("rate", "calls/s", 0),
        Column("p50Millis", "p50 ms", 2),
        Column("p99Millis", "p99 ms", 2),
        Column("serverBusy", "server busy", 2),
        Column("loadBusy", "load busy", 2),
        Column("repliesPerRead", "replies/read", 1),
    ),
    "CPU time of the server, user and system, for a call of 62 bytes of JSON from a caller to a node, under an id of"
    " the server's own (nats-server: under the caller's), and for the answer on its way back. Caller and node are one"
    " connection each, in one load generator; each answers with one send what one read has brought it. Before each"
    " sample one call is looked at in full. disturbed: other processes had one of the two cores for more than 10% of"
    " the time.",
    marks,
)


def run(plan: Plan, in_flight: Sequence[int], seconds: float, warmup: float) -> Report:
    """Measure each server with so many calls in flight, in `PARTS` a round, each round with new processes.

    BenchError when one fails.
    """
    expected = plan.rounds * len(in_flight) * len(plan.servers) * (seconds + PARTS * (warmup + 0.15))
    plan.say(f"{len(in_flight)} shapes, {len(plan.servers)} servers, {plan.rounds} rounds: about {expected:.0f} s")
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with all_running(plan) as servers:
            for part, count in itertools.product(range(number * PARTS, (number + 1) * PARTS), in_flight):
                job = {"kind": "routed", "inFlight": count, "seconds": seconds / PARTS, "warmup": warmup}
                for server in in_turn(servers, part):
                    result = run_load(server, job, plan.cores, OPEN_SECONDS + seconds + warmup)
                    shape = f"{count} in flight"
                    samples.append(Sample(server.peer.name, shape, part, figures(result, saturating=False)))
        plan.say(f"round {number + 1} of {plan.rounds} is done")
    return plan.report(LAYOUT, samples, seconds=seconds, warmup=warmup)
