"""`cluster`: what calls and events cost if they go from one gateway to others of the same cluster, and at what rate."""

import http.client
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.bench.peers import Peer, nats_for_gateways
from tests.bench.process import START_TIMEOUT, BenchError, Cores, Server, run_load
from tests.bench.report import Column, Layout, Report, Sample
from tests.bench.rpc import OPEN_SECONDS, figures, marks
from tests.bench.run import PARTS, Plan, in_turn

SIZES: Final = {"gateway": 1, "two": 2, "three": 3}
"""How many gateways there are, by how the peer's name begins."""

WHAT: Final = {"calls": (1, 2), "events": (1, 3), "shared": (1, 2, 3)}
"""What is measured, and with how many gateways."""

PAIRS: Final = 12
"""Callers, and nodes, of gateways that share a port."""

READY: Final = 40
"""Answers in a row after which all gateways that share a port are ready: a connection goes to any of them."""

ANY_PORT: Final = '"port" = 0\n'
"""What a peer's configuration has for a free port."""

LAYOUT = Layout(
    "cluster",
    "cpuMicros",
    (
        Column("cpuMicros", "us/message", 2),
        Column("besideMicros", "NATS us", 2),
        Column("rate", "messages/s", 0),
        Column("p50Millis", "p50 ms", 2),
        Column("p99Millis", "p99 ms", 2),
        Column("serverBusy", "gateways busy", 2),
        Column("loadBusy", "load busy", 2),
        Column("repliesPerRead", "replies/read", 1),
    ),
    "CPU time of the gateways, user and system, all together. calls: a call of `routed` and its answer, on one gateway"
    " that the caller and the node are connected to, and on two in a cluster with one of them each. events: a publish"
    " with a subscriber at each gateway; the next ones follow when all have the last. All gateways are on the first"
    f" core. shared: {PAIRS} callers, each with calls in flight to a node of its own, by a port that the gateways share"
    " (`server.reuse_port`), on all cores, where the load generator and NATS are too: so the rate of several is what is"
    " left for them, and grows with their number only if there are more cores than processes. The time of the cluster's"
    " nats-server is beside the gateways', and not in the ratio. disturbed: other processes had one of the two cores"
    " for more than 10% of the time.",
    marks,
)


@dataclass
class Target:
    """Servers that a load is put on. job: what the load generator is told of them, beside the first server."""

    peer: Peer
    server: Server
    job: dict[str, Any]


@contextmanager
def running(peers: Sequence[Peer], cores: Cores, *, shared: bool = False) -> Iterator[list[Target]]:
    """Start each peer, as many gateways as `SIZES` says; several of them have a NATS of their own. Ends them all."""
    with ExitStack() as stack:
        yield [_start(stack, peer, cores, shared) for peer in peers]


def _start(stack: ExitStack, peer: Peer, cores: Cores, shared: bool) -> Target:
    size, beside, gateway = SIZES[peer.name.partition("-")[0]], [], peer
    if shared:
        gateway = replace(peer, config=peer.config.replace(ANY_PORT, f"{ANY_PORT}reuse_port = true\n"))
    members = [gateway] * size
    if size > 1:
        nats = stack.enter_context(Server(nats_for_gateways(), cores))
        beside = [nats.pid]
        members = [_member(gateway, name, nats.port) for name in "abc"[:size]]
    servers: list[Server] = []
    for member in members:
        port = servers[0].port if shared and servers else 0
        config = member.config.replace(ANY_PORT, f'"port" = {port}\n')
        servers.append(stack.enter_context(Server(replace(member, config=config), cores)))
    for server in servers:
        _wait_ready(server, READY if shared else 1)
    ports, pids = [server.port for server in servers], [server.pid for server in servers]
    job: dict[str, Any] = {"ports": ports, "pids": pids, "beside": beside}
    if size > 1:
        job["nodePort"] = ports[1]
    return Target(peer, servers[0], job)


def _wait_ready(server: Server, count: int) -> None:
    """Wait until a gateway has joined its cluster: it says so that many times in a row."""
    deadline = time.monotonic() + START_TIMEOUT
    answers = 0
    while answers < count:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_TIMEOUT)
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
        connection.close()
        answers = answers + 1 if status == 200 else 0
        server.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{server.peer.name} did not join its cluster within {START_TIMEOUT:g} s")
        if not answers:
            time.sleep(0.05)


def _member(peer: Peer, name: str, port: int) -> Peer:
    """A gateway of a cluster."""
    section = f'\n[cluster]\nnats = ["nats://127.0.0.1:{port}"]\nmember = "{name}"\nstorage = "memory"\n'
    return replace(peer, config=peer.config + section)


def run(plan: Plan, what: Sequence[str], in_flight: Sequence[int], seconds: float, warmup: float) -> Report:
    """Measure with so many messages in flight, in `PARTS` a round, each round with new processes.

    BenchError when one fails.
    """
    if (reason := nats_for_gateways().missing()) is not None:
        raise BenchError(reason)
    count = len(in_flight) * sum(len(_peers(plan, kind)) for kind in what)
    expected = plan.rounds * count * (seconds + PARTS * (warmup + 0.15))
    plan.say(f"{', '.join(what)}, {plan.rounds} rounds: about {expected:.0f} s")
    samples: list[Sample] = []
    for number, kind in itertools.product(range(plan.rounds), what):
        cores = Cores(None, None) if kind == "shared" else plan.cores
        with running(_peers(plan, kind), cores, shared=kind == "shared") as targets:
            for part, most in itertools.product(range(number * PARTS, (number + 1) * PARTS), in_flight):
                job: dict[str, Any] = {"inFlight": most, "pairs": PAIRS, "seconds": seconds / PARTS, "warmup": warmup}
                job["kind"] = "routed" if kind == "calls" else kind
                for target in in_turn(targets, part):
                    limit = OPEN_SECONDS + seconds + warmup
                    result = run_load(target.server, job | target.job, cores, limit)
                    shape = f"{kind}, {most} in flight"
                    samples.append(Sample(target.peer.name, shape, part, figures(result, saturating=False)))
        plan.say(f"{kind} of round {number + 1} of {plan.rounds}: done")
    return plan.report(LAYOUT, samples, seconds=seconds, warmup=warmup)


def _peers(plan: Plan, kind: str) -> list[Peer]:
    """Those that this is measured with. Another checkout is for calls and for gateways that share a port."""
    return [peer for peer in plan.servers if SIZES[peer.name.partition("-")[0]] in WHAT[kind]]
