"""`fanout`: what it costs a server in CPU time to hand one message to one of very many subscribers."""

from tests.bench.process import run_load
from tests.bench.report import Column, Layout, Report, Sample
from tests.bench.rpc import OPEN_SECONDS, figures, marks
from tests.bench.run import PARTS, Plan, all_running, in_turn, require_files

LAYOUT = Layout(
    "fanout",
    "cpuMicros",
    (
        Column("cpuMicros", "us/delivery", 2),
        Column("rate", "deliveries/s", 0),
        Column("p50Millis", "p50 ms", 2),
        Column("p99Millis", "p99 ms", 2),
        Column("serverBusy", "server busy", 2),
        Column("loadBusy", "load busy", 2),
    ),
    "CPU time of the server, user and system, for a message to one of its subscribers: all that publishing costs, over"
    " the deliveries. The next message is published when everybody has the last one; p50 and p99 are the time from"
    " the one to the other. The others send the data alone; the gateway sends it with topic, offset, epoch and time,"
    " and keeps the last hundred. disturbed: other processes had one of the two cores for more than 10% of the time.",
    marks,
)


def run(plan: Plan, subscribers: int, size: int, seconds: float, warmup: float) -> Report:
    """Measure each server in `PARTS` a round, each round with new processes. BenchError when one fails."""
    require_files(subscribers)
    expected = plan.rounds * len(plan.servers) * (seconds + PARTS * (warmup + 1.0))
    plan.say(f"{len(plan.servers)} servers, {plan.rounds} rounds: about {expected:.0f} s")
    shape = f"{size} bytes to {subscribers}"
    job = {"kind": "fanout", "subscribers": subscribers, "size": size, "seconds": seconds / PARTS, "warmup": warmup}
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with all_running(plan) as servers:
            for part in range(number * PARTS, (number + 1) * PARTS):
                for server in in_turn(servers, part):
                    result = run_load(server, job, plan.cores, OPEN_SECONDS + seconds + warmup)
                    samples.append(Sample(server.peer.name, shape, part, figures(result, saturating=False)))
        plan.say(f"round {number + 1} of {plan.rounds} is done")
    return plan.report(LAYOUT, samples, seconds=seconds, warmup=warmup)
