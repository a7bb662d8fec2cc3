"""`cluster`: what a call to a node costs if the node is connected to another gateway of the same cluster."""

import http.client
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.bench.peers import Peer, nats_for_gateways
from tests.bench.process import START_TIMEOUT, BenchError, Cores, Server, run_load
from tests.bench.report import Column, Layout, Report, Sample
from tests.bench.rpc import OPEN_SECONDS, figures, marks
from tests.bench.run import PARTS, Plan, in_turn

LAYOUT = Layout(
    "cluster",
    "cpuMicros",
    (
        Column("cpuMicros", "us/call", 2),
        Column("besideMicros", "NATS us/call", 2),
        Column("rate", "calls/s", 0),
        Column("p50Millis", "p50 ms", 2),
        Column("p99Millis", "p99 ms", 2),
        Column("serverBusy", "gateways busy", 2),
        Column("loadBusy", "load busy", 2),
        Column("repliesPerRead", "replies/read", 1),
    ),
    "CPU time of the gateways, user and system, for the call of `routed` and its answer: of one gateway that the caller"
    " and the node are connected to, and of two in a cluster with one of them each, both together. The time of the"
    " cluster's nats-server is beside it, and not in the ratio. All servers share the first core. disturbed: other"
    " processes had one of the two cores for more than 10% of the time.",
    marks,
)


@dataclass
class Target:
    """Servers that a load is put on. job: what the load generator is told of them, beside the first server."""

    peer: Peer
    server: Server
    job: dict[str, Any] = field(default_factory=dict)


@contextmanager
def running(peers: Sequence[Peer], cores: Cores) -> Iterator[list[Target]]:
    """Start the first peer alone, and each other one as two gateways with a NATS of their own. Ends them all."""
    with ExitStack() as stack:
        alone, *pairs = peers
        targets = [Target(alone, stack.enter_context(Server(alone, cores)))]
        for peer in pairs:
            nats = stack.enter_context(Server(nats_for_gateways(), cores))
            a, b = (stack.enter_context(Server(_member(peer, name, nats.port), cores)) for name in "ab")
            for server in (a, b):
                _wait_ready(server)
            job = {"nodePort": b.port, "pids": [a.pid, b.pid], "beside": [nats.pid]}
            targets.append(Target(peer, a, job))
        yield targets


def _wait_ready(server: Server) -> None:
    """Wait until a gateway has joined its cluster."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_TIMEOUT)
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            return
        server.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{server.peer.name} did not join its cluster within {START_TIMEOUT:g} s")
        time.sleep(0.05)


def _member(peer: Peer, name: str, port: int) -> Peer:
    """A gateway of a cluster."""
    section = f'\n[cluster]\nnats = ["nats://127.0.0.1:{port}"]\nmember = "{name}"\nstorage = "memory"\n'
    return replace(peer, config=peer.config + section)


def run(plan: Plan, in_flight: Sequence[int], seconds: float, warmup: float) -> Report:
    """Measure with so many calls in flight, in `PARTS` a round, each round with new processes.

    BenchError when one fails.
    """
    if (reason := nats_for_gateways().missing()) is not None:
        raise BenchError(reason)
    expected = plan.rounds * len(in_flight) * len(plan.servers) * (seconds + PARTS * (warmup + 0.15))
    plan.say(f"{len(in_flight)} shapes, {len(plan.servers)} servers, {plan.rounds} rounds: about {expected:.0f} s")
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with running(plan.servers, plan.cores) as targets:
            for part, count in itertools.product(range(number * PARTS, (number + 1) * PARTS), in_flight):
                job = {"kind": "routed", "inFlight": count, "seconds": seconds / PARTS, "warmup": warmup}
                for target in in_turn(targets, part):
                    limit = OPEN_SECONDS + seconds + warmup
                    result = run_load(target.server, job | target.job, plan.cores, limit)
                    shape = f"{count} in flight"
                    samples.append(Sample(target.peer.name, shape, part, figures(result, saturating=False)))
        plan.say(f"round {number + 1} of {plan.rounds} is done")
    return plan.report(LAYOUT, samples, seconds=seconds, warmup=warmup)
