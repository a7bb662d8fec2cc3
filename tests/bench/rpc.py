"""`rpc`: what one small request and its reply cost a server in CPU time, how many it does, and how soon."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tests.bench.load_rpc import MOST_IN_FLIGHT
from tests.bench.process import run_load
from tests.bench.report import Column, Layout, Report, Sample, disturbed, usage_values
from tests.bench.run import Plan, all_running, in_turn, require_files

MOST_CONNECTIONS = 5000
OPEN_SECONDS = 30.0
# A server that did not want this share of its core, running or waiting for it, could have done more.
SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Shape:
    """How many connections there are, and how many requests each keeps in flight."""

    connections: int
    in_flight: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `50x8`. ValueError when it is none, or too large for one load generator."""
        connections, _, in_flight = text.partition("x")
        if not (connections.isdecimal() and in_flight.isdecimal()):
            raise ValueError(f"{text!r} is no shape such as 50x8")
        shape = cls(int(connections), int(in_flight))
        if not (1 <= shape.connections <= MOST_CONNECTIONS and 1 <= shape.in_flight <= MOST_IN_FLIGHT):
            raise ValueError(f"{text}: 1 to {MOST_CONNECTIONS} connections, 1 to {MOST_IN_FLIGHT} in flight")
        return shape

    def __str__(self) -> str:
        return f"{self.connections}x{self.in_flight}"

    @property
    def saturating(self) -> bool:
        """Whether a server must be busy all the time.

        With one connection it need not: while the client reads a reply, there may be nothing left to do.
        """
        return self.connections > 1


SHAPES = tuple(Shape.parse(text) for text in ("1x1", "50x1", "50x8", "1x64", "1000x1"))


def marks(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return what a reader must know of a row: whose limit the rate was, errors, lost replies."""
    bound = sum(sample.values["generatorBound"] > 0 for sample in samples)
    errors = sum(sample.values["errors"] for sample in samples)
    unanswered = sum(sample.values["unanswered"] for sample in samples)
    found = (
        (bound, f"generator-bound in {bound} of {len(samples)}"),
        (errors, f"{errors:,.0f} replies are errors"),
        (unanswered, f"{unanswered:,.0f} requests without a reply"),
    )
    return (*(text for count, text in found if count), *disturbed(samples))


LAYOUT = Layout(
    "rpc",
    "cpuMicros",
    (
        Column("cpuMicros", "us/message", 2),
        Column("rate", "messages/s", 0),
        Column("p50Millis", "p50 ms", 2),
        Column("p99Millis", "p99 ms", 2),
        Column("serverBusy", "server busy", 2),
        Column("loadBusy", "load busy", 2),
        Column("repliesPerRead", "replies/read", 1),
    ),
    "CPU time of the server, user and system, for a request of 64 bytes and its reply. Shapes: connections x"
    " requests in flight on each. The echo servers and picows send the same bytes back, all others answer"
    f" JSON-RPC. generator-bound: with more than one connection the server wanted less than {SATURATED:.0%}"
    " of its core, so its rate is a lower bound. disturbed: other processes had one of the two cores for more"
    " than 10% of the time.",
    marks,
)


def run(plan: Plan, shapes: Sequence[Shape], seconds: float, warmup: float) -> Report:
    """Measure each server at each shape once a round, each round with new processes.

    BenchError when one fails.
    """
    require_files(max(shape.connections for shape in shapes))
    expected = plan.rounds * len(shapes) * len(plan.servers) * (seconds + warmup + 0.5)
    plan.say(f"{len(shapes)} shapes, {len(plan.servers)} servers, {plan.rounds} rounds: about {expected:.0f} s")
    samples: list[Sample] = []
    for number in range(plan.rounds):
        with all_running(plan) as servers:
            for shape, server in itertools.product(shapes, in_turn(servers, number)):
                result = run_load(server, job(shape, seconds, warmup), plan.cores, OPEN_SECONDS + seconds + warmup)
                samples.append(Sample(server.peer.name, str(shape), number, figures(result, shape.saturating)))
        plan.say(f"round {number + 1} of {plan.rounds} is done")
    return plan.report(LAYOUT, samples, seconds=seconds, warmup=warmup)


def job(shape: Shape, seconds: float, warmup: float) -> dict[str, Any]:
    """Return what a load generator is told."""
    return {
        "kind": "rpc",
        "connections": shape.connections,
        "inFlight": shape.in_flight,
        "seconds": seconds,
        "warmup": warmup,
    }


def figures(result: dict[str, Any], saturating: bool) -> dict[str, float]:
    """Return the figures of one sample from what the load generator saw (`load_rpc.RpcResult`).

    saturating: whether the server must be busy all the time.
    """
    messages = result["messages"]
    usage = usage_values(result)
    wanted = usage["serverBusy"] + usage["serverWaited"]
    return {
        "cpuMicros": result["server"]["cpu"] / messages * 1e6,
        "besideMicros": result["beside"]["cpu"] / messages * 1e6,
        "rate": messages / result["seconds"],
        "p50Millis": result["p50"] * 1e3,
        "p99Millis": result["p99"] * 1e3,
        "repliesPerRead": messages / result["reads"],
        "errors": float(result["errors"]),
        "unanswered": float(result["unanswered"]),
        "generatorBound": float(saturating and wanted < SATURATED),
        **usage,
    }
