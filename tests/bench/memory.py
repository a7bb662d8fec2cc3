"""`memory`: what one idle connection costs a server in resident memory."""

import time
from contextlib import ExitStack

from tests.bench.peers import Peer
from tests.bench.process import BenchError, Load, Server, job_for, run_load
from tests.bench.procfs import cpu_seconds, open_files, resident_bytes
from tests.bench.report import Column, Layout, Report, Sample
from tests.bench.run import Plan, in_turn, require_files

# Connections of one load generator: each needs a file descriptor on this side, too.
MOST_HELD = 5000
WARMUP = 200
OPEN_TIMEOUT = 120.0
SETTLE_STEP = 0.25
SETTLE_STEPS = 20
SETTLED_BYTES = 64 * 1024

LAYOUT = Layout(
    "memory",
    "bytesPerConnection",
    (
        Column("bytesPerConnection", "bytes/conn", 0),
        Column("beforeBytes", "before", 0),
        Column("afterBytes", "with all", 0),
        Column("openSeconds", "open s", 1),
        Column("openMicros", "open us/conn", 1),
    ),
    "resident memory of the server (Rss of /proc/PID/smaps_rollup) with N idle connections, less the same"
    f" after a warm-up of {WARMUP} connections that came and went, over N. Each server is a new process, and"
    " nobody collects its garbage for it. The kernel's socket buffers are not counted. open us/conn: CPU time of the"
    " server, user and system, for the opening of one of them, its log line included.",
)


def run(plan: Plan, connections: int) -> Report:
    """Measure each server once a round, each time in a new process. BenchError when one fails."""
    require_files(connections)
    samples: list[Sample] = []
    for number in range(plan.rounds):
        for peer in in_turn(plan.servers, number):
            sample = measure(plan, peer, connections, number)
            plan.say(f"round {number + 1}, {peer.name}: {sample.values['bytesPerConnection']:,.0f} bytes")
            samples.append(sample)
    return plan.report(LAYOUT, samples, connections=connections)


def measure(plan: Plan, peer: Peer, connections: int, number: int) -> Sample:
    """Start the server, warm it up, hold the connections, and end it."""
    with Server(peer, plan.cores) as server, ExitStack() as stack:
        warmup = {"kind": "churn", "first": 0, "warmup": 0, "connects": WARMUP, "atOnce": 16}
        run_load(server, warmup, plan.cores, OPEN_TIMEOUT)
        before = settled_resident(server.pid)
        started, used = time.monotonic(), cpu_seconds(server.pid)
        holders = [stack.enter_context(Load(job_for(server, job), plan.cores.load)) for job in hold_jobs(connections)]
        for holder in holders:
            holder.result(OPEN_TIMEOUT)
        opened, used = time.monotonic() - started, cpu_seconds(server.pid) - used
        after = settled_resident(server.pid)
        server.check()
        if (files := open_files(server.pid)) < connections:
            raise BenchError(f"{peer.name} holds {files} open files, fewer than {connections} connections need")
    values = {
        "bytesPerConnection": (after - before) / connections,
        "beforeBytes": float(before),
        "afterBytes": float(after),
        "openSeconds": opened,
        "openMicros": used / connections * 1e6,
    }
    return Sample(peer.name, f"{connections} idle", number, values)


def hold_jobs(connections: int) -> list[dict[str, object]]:
    """Return the jobs that hold this many connections together, none with more than `MOST_HELD`."""
    return [
        {"kind": "hold", "first": first, "connections": min(MOST_HELD, connections - first)}
        for first in range(0, connections, MOST_HELD)
    ]


def settled_resident(pid: int) -> int:
    """Return the resident memory in bytes once it stands still for half a second, waited for up to 5 s."""
    seen = [resident_bytes(pid)]
    for _ in range(SETTLE_STEPS):
        time.sleep(SETTLE_STEP)
        seen.append(resident_bytes(pid))
        if len(seen) > 2 and max(seen[-3:]) - min(seen[-3:]) <= SETTLED_BYTES:
            break
    return seen[-1]
