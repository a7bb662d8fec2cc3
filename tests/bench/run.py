"""What all benchmarks share: which servers, how many rounds, on which cores; and what machine this is."""

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tests.bench.peers import Peer
from tests.bench.process import BenchError, Cores, Server
from tests.bench.report import Layout, Report, Sample

T = TypeVar("T")

# File descriptors that a process needs beside its connections.
SPARE_FILES = 200
# A round's window of `routed` and `fanout` comes in so many parts, the servers in turn in each: the machine's pace
# changes within a round, and a part is compared with that of the base beside it.
PARTS = 4
PACKAGES = ("aiohttp", "msgspec", "uvloop", "websockets", "picows", "python-socketio")


@dataclass(frozen=True, slots=True)
class Plan:
    """servers: those that this machine can start, the base of the ratios first. notes: why others are missing."""

    servers: tuple[Peer, ...]
    rounds: int
    cores: Cores
    notes: tuple[str, ...] = ()
    quiet: bool = False

    def say(self, text: str) -> None:
        """Tell the person at the terminal how far the run is, on standard error."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def report(self, layout: Layout, samples: Sequence[Sample], **settings: object) -> Report:
        """Return the report of a run."""
        cores = {"serverCore": self.cores.server, "loadCore": self.cores.load}
        settings = {"rounds": self.rounds, **cores, **settings}
        beside = {peer.name: peer.beside for peer in self.servers if peer.beside}
        return Report(layout, self.servers[0].name, tuple(samples), settings, machine(), self.notes, beside)


def make_plan(peers: Sequence[Peer], rounds: int, cores: Cores, quiet: bool) -> Plan:
    """Leave out the servers that cannot be started here, with a note. BenchError when the base, the first, is one."""
    missing = {peer.name: reason for peer in peers if (reason := peer.missing()) is not None}
    base = peers[0].name
    if base in missing:
        raise BenchError(f"{base}: {missing[base]}")
    notes = tuple(f"{name} was left out: {reason}" for name, reason in missing.items())
    return Plan(tuple(peer for peer in peers if peer.name not in missing), rounds, cores, notes, quiet)


@contextmanager
def all_running(plan: Plan) -> Iterator[list[Server]]:
    """Start all servers of the plan, one process each, and end them."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(peer, plan.cores)) for peer in plan.servers]


def in_turn(items: Sequence[T], number: int) -> Sequence[T]:
    """Return the items beginning with another one in each round, so that none is always first."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


def require_files(count: int) -> None:
    """Raise this process's soft limit of open files so that a child can have `count` connections.

    BenchError when the hard limit is below that. May be called twice.
    """
    wanted = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise BenchError(f"{count} connections need {wanted} open files, and the limit is {hard} (ulimit -n)")
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def machine() -> dict[str, str]:
    """Return what a figure depends on: processor, cores, load, kernel, interpreter and packages."""
    described = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            described[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return described


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
