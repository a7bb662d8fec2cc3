"""How many gateways a load needs, what they say to each other, and where that ends: `python -m tests.support.scale`.

    traffic     counts the messages between so many gateways, by their real code over a NATS of the test
    costs       measures what a gateway pays for them; it takes a minute or two
    plan        computes plans for so many connections from both, and says what does not fit

docs/scale.md has what they print. Tables are Markdown.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gateway.cluster import alive
from gateway.cluster.alive import MAX_MEMBERS, period
from gateway.nodes.registry import MAX_BYTES
from tests.support import scale_traffic as traffic
from tests.support.scale_costs import MEASUREMENTS, measured
from tests.support.scale_traffic import MEMBER_TIMEOUT, Traffic

MEMBERS: Final = (3, 10, 30, 100)
METHODS: Final = 5
CALLS: Final = 100
CALL_BYTES: Final = 200
BEATS: Final = 3 / MEMBER_TIMEOUT
"""Heartbeats of a gateway each second."""
PROBES: Final = 1 / (alive.PROBES * period(MEMBER_TIMEOUT))
"""Probes each second of a gateway that is waited for."""
MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured on 2026-11-26, see docs/scale.md: µs of processor time, and bytes.

    ``call`` and ``call_across`` are those of one call in flight, of all gateways together. A ``publish`` is what the
    stream needs, and half a call for the request.
    """

    base: int = 60 * MIB
    connection: int = 9_832 + 559
    opening: float = 135.0
    ping: float = 34.0
    call: float = 55.0
    call_across: float = 140.0
    delivery: float = 8.4
    publish: float = 14.0 + 27.5
    follow: float = 5.0
    kept: int = 670
    kept_text: int = 245
    beat: float = 1.4
    probe: float = 1.0
    sent: float = 0.3
    node: int = 3_920
    node_cost: int = 1_645
    node_comes: float = 22.0
    node_goes: float = 9.0
    stream: float = 10_000.0
    """Events a second that one stream took at least."""
    nats_event: float = 11.0
    nats_delivery: float = 0.7
    nats_call: float = 59.5


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients do. Rates are those of one connection, in a second; ``life`` is in seconds.

    ``nodes`` is the share of the connections that are nodes. ``heard`` is how many connections hear an event.
    """

    connections: int
    nodes: float = 0.3
    calls: float = 0.02
    events: float = 0.01
    heard: float = 3.0
    life: float = 3600.0
    ping_interval: float = 30.0

    @property
    def openings(self) -> float:
        """Connections that open each second, and as many that close."""
        return self.connections / self.life

    @property
    def all_events(self) -> float:
        """Events each second: those of clients, and the gateway's own of each connection and node."""
        return self.connections * self.events + self.openings * 2 * (1 + self.nodes)

    @property
    def all_nodes(self) -> int:
        """How many nodes there are."""
        return int(self.connections * self.nodes)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a gateway is to have at most. ``busy`` is a share of its core, ``history`` is `events.history_bytes`."""

    connections: int = 10_000
    busy: float = 0.5
    history: int = 64 * MIB
    age: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What so many ``gateways`` have to do for a load, each of them, and NATS."""

    load: Load
    gateways: int
    own: float
    """The share of a core for its own clients."""
    common: float
    """The share of a core for what all gateways do: it does not fall if there are more of them."""
    memory: float
    nats_in: float
    nats_out: float
    nats_busy: float
    lost: float
    """Seconds of processor time that it takes each of the others if one of them is lost, and its clients come back."""

    @property
    def busy(self) -> float:
        """The share of its core that a gateway is busy."""
        return self.own + self.common

    def objections(self) -> list[str]:
        """Return what does not fit."""
        found = []
        cost = self.load.all_nodes * COSTS.node_cost
        if cost > MAX_BYTES:
            found.append(f"registrations have {cost / MIB:.0f} MiB, and all gateways together may have 64")
        if self.gateways > MAX_MEMBERS:
            found.append(f"{self.gateways} gateways, and a cluster has {MAX_MEMBERS} at most")
        if self.load.all_events > COSTS.stream:
            found.append(f"{self.load.all_events:,.0f} events/s by one stream; {COSTS.stream:,.0f} were measured")
        if self.common > BOUNDS.busy:
            found.append(f"what each gateway does for all takes {self.common:.0%} of its core")
        return found


COSTS: Final = Costs()
BOUNDS: Final = Bounds()


def with_gateways(load: Load, count: int, costs: Costs = COSTS, bounds: Bounds = BOUNDS) -> Plan:
    """Return what so many gateways have to do. Callers and nodes are anywhere, so most calls go across."""
    across = 1 - 1 / count
    calls = load.connections * load.calls
    each = load.ping_interval**-1 * costs.ping + costs.opening / load.life
    each += load.calls * (costs.call + across * (costs.call_across - costs.call))
    each += load.events * (costs.publish + load.heard * costs.delivery)
    others = count - 1
    common = load.all_events * costs.follow + load.openings * load.nodes * (costs.node_comes + costs.node_goes)
    common += others * (BEATS * costs.beat + PROBES * (costs.probe + costs.sent))
    kept = min(load.all_events * bounds.age, bounds.history / costs.kept_text) * costs.kept
    memory = costs.base + load.connections / count * costs.connection + load.all_nodes * costs.node + kept
    probes, beats, nodes = count * others * PROBES, count * BEATS, 2 * load.openings * load.nodes
    to_all = beats + nodes + load.all_events
    one_to_one = probes + 2 * calls * across
    nats = load.all_events * (costs.nats_event + count * costs.nats_delivery) + calls * across * costs.nats_call
    nats += (count * (beats + nodes) + probes) * costs.nats_delivery
    moved = load.connections / count
    lost = moved / max(1, others) * costs.opening + moved * (1 + load.nodes) * costs.follow
    lost += moved * load.nodes * (costs.node_comes + costs.node_goes)
    return Plan(
        load=load,
        gateways=count,
        own=load.connections / count * each / 1e6,
        common=common / 1e6,
        memory=memory,
        nats_in=to_all + one_to_one,
        nats_out=count * to_all + one_to_one + load.all_events,
        nats_busy=nats / 1e6,
        lost=lost / 1e6,
    )


def plan(load: Load, bounds: Bounds = BOUNDS) -> Plan:
    """Return the smallest number of gateways of which one may be lost; more than a cluster may have if that is none."""
    least = math.ceil(load.connections / bounds.connections)
    for count in range(least, 4 * MAX_MEMBERS + least):
        if with_gateways(load, count, bounds=bounds).busy <= bounds.busy:
            return with_gateways(load, count + 1, bounds=bounds)
    return with_gateways(load, least + 1, bounds=bounds)


# What is printed


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def counts(found: Traffic, per: float = 1.0, digits: int = 0) -> list[str]:
    """Return the cells of traffic."""
    messages, octets, heard, heard_octets = found.per(per)
    kib = (f"{one / 1024:,.{max(1, digits)}f}" for one in (octets, heard_octets))
    published_kib, heard_kib = kib
    return [f"{messages:,.{digits}f}", published_kib, f"{heard:,.{digits}f}", heard_kib]


TRAFFIC_HEAD: Final = ("messages to NATS", "KiB", "messages from NATS", "KiB")


def heartbeat_rows(members: Sequence[int], seconds: float = 30.0) -> Iterator[list[str]]:
    """Yield what gateways say in a second, if nothing is open between them, and if calls are."""
    for count in members:
        for busy, what in ((False, "nothing open"), (True, "calls open from each to each")):
            net = traffic.run(partial(traffic.heartbeats, count, seconds, busy=busy)).net
            heard = net.total().delivered / seconds / count
            yield [str(count), what, *counts(net.total(), seconds), f"{heard:,.0f}"]


def change_rows(members: Sequence[int]) -> Iterator[list[str]]:
    """Yield what a node costs that comes and goes, and a gateway that comes."""
    for count in members:
        for what, found in traffic.run(partial(traffic.registration, count, METHODS)).items():
            yield [str(count), f"a node {what}", *counts(found, digits=1)]
    found = traffic.run(partial(traffic.newcomer, 3, 1000, METHODS))
    yield ["3 + 1", "a gateway comes to 3,000 nodes", *counts(found)]
    found = traffic.run(partial(traffic.calls, CALLS, CALL_BYTES))
    yield ["2", f"a call across, {CALL_BYTES} bytes and {CALL_BYTES} back", *counts(found, CALLS, 1)]


def print_traffic(members: Sequence[int]) -> Iterator[str]:
    """Yield the lines of `traffic`."""
    yield from table(("gateways", "each second", *TRAFFIC_HEAD, "to each gateway"), heartbeat_rows(members))
    yield ""
    yield from table(("gateways", "what", *TRAFFIC_HEAD), change_rows(members))


def plan_row(found: Plan) -> list[str]:
    """Return the cells of a plan."""
    load = found.load
    return [
        f"{load.connections:,}",
        f"{load.all_nodes:,}",
        str(found.gateways),
        f"{found.own:.1%} + {found.common:.1%}",
        f"{found.memory / MIB:,.0f}",
        f"{load.connections * load.calls:,.0f}",
        f"{load.all_events:,.0f}",
        f"{found.nats_in:,.0f}",
        f"{found.nats_out:,.0f}",
        f"{found.nats_busy:.1f}",
        f"{found.lost:.2f}",
        "; ".join(found.objections()) or "yes",
    ]


PLAN_HEAD: Final = (
    *("connections", "nodes", "gateways", "of a core, each: own + for all", "MiB, each", "calls/s", "events/s"),
    *("messages/s to NATS", "from NATS", "cores of NATS", "one is lost: s of each other", "does it fit?"),
)


def print_plans(loads: Iterable[Load], bounds: Bounds = BOUNDS) -> Iterator[str]:
    """Yield the lines of `plan`."""
    yield from table(PLAN_HEAD, (plan_row(plan(load, bounds)) for load in loads))


def print_costs(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of `costs`, measured now."""
    for name in names or MEASUREMENTS:
        for what, found in measured(MEASUREMENTS[name]).items():
            yield f"{name:8} {what:10} {found:12,.2f}"


def numbers(text: str) -> list[int]:
    """Return whole numbers that are separated by commas."""
    return [int(one) for one in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(
        "python -m tests.support.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = found.add_subparsers(dest="command", required=True)
    commands.add_parser("traffic").add_argument("--members", type=numbers, default=list(MEMBERS))
    commands.add_parser("costs").add_argument("names", nargs="*", metavar="NAME")
    of_plan = commands.add_parser("plan")
    of_plan.add_argument("--connections", type=numbers, default=[10_000, 100_000, 1_000_000])
    for name in ("nodes", "calls", "events", "heard", "life"):
        of_plan.add_argument(f"--{name}", type=float, default=getattr(Load, name))
    of_plan.add_argument("--most", type=int, default=BOUNDS.connections, help="connections of a gateway")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the arguments ask for."""
    given: dict[str, Any] = vars(parser().parse_args(arguments))
    match given.pop("command"):
        case "traffic":
            lines = print_traffic(**given)
        case "costs":
            lines = print_costs(**given)
        case _:
            bounds = Bounds(connections=given.pop("most"))
            sizes = given.pop("connections")
            lines = print_plans((Load(connections=size, **given) for size in sizes), bounds)
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
