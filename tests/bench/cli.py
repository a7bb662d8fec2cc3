"""The command line: `python -m tests.bench memory|connect|rpc|routed|fanout|cluster`."""

import argparse
import json
from collections.abc import Callable, Sequence

from tests.bench import cluster, connect, fanout, memory, routed, rpc
from tests.bench.peers import (
    BASE,
    BEFORE,
    CONNECTED,
    FANOUT_BASE,
    FANOUTS,
    GATEWAY,
    IDLE,
    KEPT,
    LOOPS,
    MOST_CONNECTIONS,
    OPEN,
    RELAY_BASE,
    RELAYS,
    TOKEN,
    Field,
    LoopName,
    alone_and_clustered,
)
from tests.bench.process import BenchError, choose_cores
from tests.bench.report import Report
from tests.bench.run import PARTS, Plan, make_plan
from tests.support import tool
from tests.support.tool import WholeNumber

RPC_SERVERS = (GATEWAY, BASE, "aiohttp-json", "websockets", "picows", "node-ws")
RELAY_SERVERS = tuple(name for name in RELAYS.names if name not in (BEFORE, TOKEN, f"{RELAY_BASE}-uvloop"))
FANOUT_SERVERS = tuple(name for name in FANOUTS.names if name not in (BEFORE, f"{FANOUT_BASE}-uvloop"))
FIELDS = {"memory": IDLE, "connect": CONNECTED, "rpc": OPEN, "routed": RELAYS, "fanout": FANOUTS}

DESCRIPTION = f"""\
Measure the gateway beside other servers on this machine, in one run. Each server is a process of its own
on a free port of 127.0.0.1. The servers take turns in every round. A figure is the median of the rounds. A
ratio is the median of the rounds' own ratios to the base, a bare aiohttp handler: {BASE} for memory,
connect and rpc, {RELAY_BASE} for routed, {FANOUT_BASE} for fanout. gateway-kept and gateway-before have
another ratio beside it, to the gateway in the same run. The base of cluster is a gateway alone.

Where there are two cores, the servers run on the first and the load generator on the second.

servers of memory, connect and rpc:
  gateway              python -m gateway with heartbeat 30/10, receive_timeout 60, JSON log, no credentials;
                       called gateway-uvloop or gateway-asyncio in the tables (see --loop)
  gateway-before       the same, of another checkout: the folder that BENCH_BEFORE names
  gateway-kept         memory: the gateway with connections that outlive their link (connection.keep)
  gateway-token        the same in mode token, each connect with a token in its Authorization header
  gateway-jwt          in mode jwt (HS256), with a hundred tokens, which it remembers
  gateway-new-jwt      in mode jwt (HS256), with 8,192 tokens, more than it remembers: each is verified
  gateway-refusing     without credentials, each upgrade with a foreign Origin: 403
  {BASE}         async for message: await send_str(message.data); stdlib event loop; always measured
  {BASE}-uvloop  the same on uvloop
  aiohttp-json         bare aiohttp handler that answers JSON-RPC with the stdlib's json
  aiohttp-json-uvloop  the same on uvloop
  websockets           JSON-RPC with websockets and the stdlib's json
  picows               raw echo with picows on uvloop, where it is installed
  node-ws              JSON-RPC with Node's ws, where node finds the package (see NODE_PATH)

servers of routed and fanout:
  gateway, gateway-before   as above
  gateway-kept         routed: caller and node outlive their link, and acknowledge every 64 messages
  gateway-token        routed: in mode token, the caller an operator, the other a node
  {RELAY_BASE}        routed: forwards with a rewritten id, async for message, json, await send_str; always measured
  {FANOUT_BASE}       fanout: await send_str(text) for each subscriber; always measured
  {RELAY_BASE}-uvloop, {FANOUT_BASE}-uvloop   the same on uvloop
  websockets           the same relay; broadcast() to the subscribers
  picows               the same on uvloop with msgspec, where it is installed
  python-socketio      routed: the same relay, a call is an event, where it is installed
  node-ws              the same with Node's ws, where node finds the package
  aiohttp-write, aiohttp-write-uvloop   fanout: one frame, straight into each transport
  nats-server          NATS by its WebSocket listener, where it is installed; routed: by subjects, ids as they came
"""
EPILOG = "Exit status: 0 measured, 1 a server or a load generator failed, 2 wrong usage, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its report. Returns the exit status; SystemExit 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(arguments)

    def work() -> int:
        report = _run(options)
        print(json.dumps(report.to_json(), indent=1) if options.json else report.to_text())
        return 0

    return tool.run("bench", work, BenchError)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = tool.new_parser("bench", DESCRIPTION, EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="memory|connect|rpc|routed|fanout|cluster")
    _add_memory(commands.add_parser)
    _add_connect(commands.add_parser)
    _add_rpc(commands.add_parser)
    _add_routed(commands.add_parser)
    _add_fanout(commands.add_parser)
    _add_cluster(commands.add_parser)
    return parser


def _run(options: argparse.Namespace) -> Report:
    if options.command == "cluster":
        plan = make_plan(alone_and_clustered(options.loop), options.rounds, choose_cores(options.pin), options.quiet)
        return cluster.run(plan, options.what, options.in_flight, options.seconds, options.warmup)
    plan = _plan(options)
    if options.command == "memory":
        return memory.run(plan, options.connections)
    if options.command == "connect":
        return connect.run(plan, options.connects, options.at_once)
    if options.command == "routed":
        return routed.run(plan, options.in_flight, options.seconds, options.warmup)
    if options.command == "fanout":
        return fanout.run(plan, options.subscribers, options.size, options.seconds, options.warmup)
    return rpc.run(plan, options.shapes, options.seconds, options.warmup)


def _plan(options: argparse.Namespace) -> Plan:
    peers = FIELDS[options.command].select(options.servers, options.loop)
    return make_plan(peers, options.rounds, choose_cores(options.pin), options.quiet)


NewParser = Callable[..., argparse.ArgumentParser]


def _add_memory(new_parser: NewParser) -> None:
    parser = _add(new_parser, "memory", "Memory of an idle connection.", memory.LAYOUT.method, (GATEWAY, KEPT))
    _add_number(parser, "--connections", WholeNumber(100, MOST_CONNECTIONS), 10_000, "idle at once")


def _add_connect(new_parser: NewParser) -> None:
    parser = _add(new_parser, "connect", "CPU time of a connect.", connect.LAYOUT.method, (GATEWAY,))
    _add_number(parser, "--connects", WholeNumber(10, 100_000), 4_000, "a sample")
    _add_number(parser, "--at-once", WholeNumber(1, 1_000), 64, "open at a time")


def _add_rpc(new_parser: NewParser) -> None:
    parser = _add(new_parser, "rpc", "Cost of a small request.", rpc.LAYOUT.method, RPC_SERVERS)
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default=",".join(map(str, rpc.SHAPES)),
        metavar="CxK,...",
        help="connections x in flight (default %(default)s)",
    )
    _add_window(parser)


def _add_routed(new_parser: NewParser) -> None:
    parser = _add(new_parser, "routed", "Cost of a call from peer to peer.", routed.LAYOUT.method, RELAY_SERVERS)
    _add_in_flight(parser)
    _add_window(parser, f"a round, in {PARTS} windows", warmup=0.2)


def _add_fanout(new_parser: NewParser) -> None:
    parser = _add(new_parser, "fanout", "Cost of a message to very many.", fanout.LAYOUT.method, FANOUT_SERVERS)
    _add_number(parser, "--subscribers", WholeNumber(1, 5000), 1000, "who have subscribed")
    _add_number(parser, "--size", WholeNumber(2, 10_000), 100, "of a message", metavar="BYTES")
    _add_window(parser, f"a round, in {PARTS} windows")


def _add_cluster(new_parser: NewParser) -> None:
    summary = "Cost of calls and events that go from one gateway to others."
    parser = new_parser(
        "cluster", help=summary, description=f"{summary} Measured: {cluster.LAYOUT.method}", epilog=EPILOG
    )
    loops: tuple[LoopName, ...] = ("uvloop", "asyncio")
    parser.add_argument("--loop", choices=loops, default="uvloop", help="the event loop (default %(default)s)")
    parser.add_argument(
        "--what",
        type=_what,
        default=",".join(cluster.WHAT),
        metavar="A,B,...",
        help=f"of {', '.join(cluster.WHAT)} (default %(default)s)",
    )
    _add_in_flight(parser)
    _add_rounds(parser)
    _add_window(parser, f"a round, in {PARTS} windows", warmup=0.2)


def _add_in_flight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--in-flight",
        type=_in_flight,
        default=",".join(map(str, routed.IN_FLIGHT)),
        metavar="K,...",
        help="calls in flight (default %(default)s)",
    )


def _add_number(
    parser: argparse.ArgumentParser, option: str, kind: WholeNumber, default: int, meaning: str, *, metavar: str = "N"
) -> None:
    parser.add_argument(option, type=kind, default=default, metavar=metavar, help=f"{meaning} (default %(default)s)")


def _add_window(parser: argparse.ArgumentParser, seconds: str = "a sample's window", warmup: float = 0.5) -> None:
    parser.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help=f"{seconds} (default %(default)s)")
    parser.add_argument(
        "--warmup", type=_seconds, default=warmup, metavar="S", help="before each window (default %(default)s)"
    )


def _add(
    new_parser: NewParser, name: str, summary: str, method: str, servers: tuple[str, ...]
) -> argparse.ArgumentParser:
    field = FIELDS[name]
    parser = new_parser(
        name,
        help=summary,
        description=f"{summary} Measured: {method}",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--servers",
        type=_Servers(field),
        default=",".join(servers),
        metavar="A,B,...",
        help=f"of {', '.join(field.names)} (default %(default)s)",
    )
    parser.add_argument(
        "--loop", choices=list(LOOPS), default="uvloop", help="the gateway's event loop (default %(default)s)"
    )
    _add_rounds(parser)
    return parser


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    _add_number(parser, "--rounds", WholeNumber(1, 100), 5, "samples of each server")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="leave all processes on all cores")
    tool.add_output(parser, "print one JSON object with every sample")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.05 to 60")
    return seconds


class _Servers:
    """An argparse type: names of servers, with commas between."""

    def __init__(self, field: Field) -> None:
        self._names = field.names

    def __call__(self, text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in self._names:
                raise argparse.ArgumentTypeError(f"no server {name!r}; there are {', '.join(self._names)}")
        return names


def _shapes(text: str) -> tuple[rpc.Shape, ...]:
    try:
        return tuple(rpc.Shape.parse(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _what(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in cluster.WHAT:
            raise argparse.ArgumentTypeError(f"no {kind!r}; there are {', '.join(cluster.WHAT)}")
    return kinds


def _in_flight(text: str) -> tuple[int, ...]:
    return tuple(map(WholeNumber(1, routed.MOST_IN_FLIGHT), text.split(",")))
