"""What a soak must leave as it was, and its report."""

from collections import Counter
from typing import Any

from tests.soak.run import MISHAPS_TOLD, TIMEOUTS_LOGGED, End, Reading, Result

SETTLED_AFTER = 5_000
"""Connections after which the resident memory must be flat; half of the run where that is less."""
RSS_ALLOWED = {False: 0.05, True: 0.10}
"""By how much of it the resident memory may still grow from there to the end, over TCP and over TLS.

The allocator keeps what is freed, in pieces, and TLS has the larger ones; `heap` says that they are free.
"""
OBJECTS_ALLOWED = 500
"""Live objects more than before, of all types together, that a run of any length may leave: the standard library's
loop keeps up to a hundred cancelled timers."""
BLOCKS_ALLOWED = 1_000
"""The same for everything that Python allocates."""
HEAP_ALLOWED = 256 << 10
"""The same for what is allocated by others, in bytes."""
GARBAGE_ALLOWED = {"uvloop": 1.0, "asyncio": 8.0}
"""Objects a connection may leave to the garbage collector; between its runs they look like a leak.

A transport of the standard library's loop is in a cycle with its own bound method: seven objects.
"""
TYPES_TOLD = 8


def problems(result: Result) -> list[str]:
    """Return a line for each thing that is not as it must be; none where all is well."""
    found = [*_left_behind(result), *_log(result)]
    if (garbage := garbage_each(result)) > (allowed := GARBAGE_ALLOWED[result.plan.loop]):
        found.append(f"each connection leaves {garbage:.1f} objects in cycles, {allowed:g} allowed")
    if growth(result) > RSS_ALLOWED[result.plan.tls] * settled(result).rss:
        found.append(f"memory grew by {growth(result) >> 10} KiB after {settled(result).cycles} connections")
    if result.mishaps:
        told = "; ".join(result.mishaps[:MISHAPS_TOLD])
        found.append(f"{len(result.mishaps)} peers saw what they should not have: {told}")
    return found


def garbage_each(result: Result) -> float:
    """Return how many objects a connection leaves to the garbage collector, on average."""
    return (result.after.garbage - result.before.garbage) / result.plan.count


def settled(result: Result) -> Reading:
    """Return the reading from which on the memory must be flat."""
    enough = min(SETTLED_AFTER, result.plan.count / 2)
    return next(reading for reading in result.readings if reading.cycles >= enough)


def growth(result: Result) -> int:
    """Return by how many bytes the resident memory grew from there to the last reading."""
    return result.readings[-1].rss - settled(result).rss


def expected(result: Result) -> dict[End, tuple[int, int]]:
    """Return how often each end must be in the log, at least and at most."""
    least: Counter[End] = Counter()
    most: Counter[End] = Counter()
    for ending, times in result.dealt.items():
        if ending.cause is not None and ending.code is not None:
            end = End(ending.cause, ending.code)
            most[end] += times
            least[end] += times if ending.always else 0
    return {end: (least[end], most[end]) for end in most}


def _left_behind(result: Result) -> list[str]:
    before, after = result.before, result.after
    found = [
        f"{name}: {now} left, {then} before"
        for name, then, now in (
            ("file descriptors", before.descriptors, after.descriptors),
            ("connections in the registry", before.connections, after.connections),
            ("tasks", before.tasks, after.tasks),
        )
        if now > then
    ]
    found += [
        f"{name}: {now} left, {then} before, {allowed} more allowed"
        for name, then, now, allowed in (
            ("allocated blocks", before.blocks, after.blocks, BLOCKS_ALLOWED),
            ("bytes on the heap", before.heap, after.heap, HEAP_ALLOWED),
        )
        if now > then + allowed
    ]
    more = Counter(after.objects)
    more.subtract(before.objects)
    if more.total() > OBJECTS_ALLOWED:
        kinds = ", ".join(f"{number} {kind}" for kind, number in more.most_common(TYPES_TOLD))
        found.append(f"{more.total()} objects more than before: {kinds}")
    return found


def _log(result: Result) -> list[str]:
    found = []
    if result.opened != result.closed or set(result.opened.values()) - {1}:
        found.append(f"{result.opened.total()} opened and {result.closed.total()} closed do not match by connId")
    bounds = expected(result)
    for end in bounds.keys() | result.ends.keys():
        least, most = bounds.get(end, (0, 0))
        if not least <= result.ends[end] <= most:
            found.append(f"{end.cause} {end.code}: {result.ends[end]} in the log, {least} to {most} expected")
    late = Counter[str]()
    for ending, times in result.dealt.items():
        late.update({ending.stage: times} if ending.stage else {})
    for stage in late | result.late:
        if not min(late[stage], TIMEOUTS_LOGGED) <= result.late[stage] <= late[stage]:
            found.append(f"{result.late[stage]} late in stage {stage}, {late[stage]} expected")
    return found


def to_text(result: Result) -> str:
    """Return the report for a person."""
    plan, before, after = result.plan, result.before, result.after
    base = settled(result)
    rows = [f"  {r.cycles:>7}  {r.rss / 1024:>9.0f}  {r.seconds:>7.1f}" for r in result.readings]
    ends = ", ".join(f"{number} {end.cause} {end.code}" for end, number in result.ends.most_common())
    lines = [
        f"{'TLS' if plan.tls else 'TCP'} on {plan.loop}: {plan.count} connections, {plan.at_once} at a time, "
        f"ended in {len(result.dealt)} ways",
        "   cycles    RSS KiB  seconds",
        *rows,
        f"RSS from {base.cycles} to the end: {growth(result) / 1024:+.0f} KiB",
        f"file descriptors {before.descriptors} → {after.descriptors}, "
        f"registry {before.connections} → {after.connections}, tasks {before.tasks} → {after.tasks}, "
        f"objects {sum(before.objects.values())} → {sum(after.objects.values())}, "
        f"blocks {before.blocks} → {after.blocks}, heap {before.heap >> 10} → {after.heap >> 10} KiB",
        f"left to the garbage collector: {garbage_each(result):.1f} objects a connection",
        f"opened {result.opened.total()}, closed {result.closed.total()}: {ends}",
        f"late in their handshake: {result.late.total()}",
        *(f"PROBLEM: {problem}" for problem in problems(result)),
    ]
    return "\n".join(lines) + "\n"


def to_json(result: Result) -> dict[str, Any]:
    """Return the report for a program."""
    plan, before, after = result.plan, result.before, result.after
    return {
        "loop": plan.loop,
        "tls": plan.tls,
        "count": plan.count,
        "ways": {ending.name: times for ending, times in result.dealt.items()},
        "readings": [reading._asdict() for reading in result.readings],
        "rssGrowth": growth(result),
        "descriptors": [before.descriptors, after.descriptors],
        "connections": [before.connections, after.connections],
        "tasks": [before.tasks, after.tasks],
        "objects": [sum(before.objects.values()), sum(after.objects.values())],
        "blocks": [before.blocks, after.blocks],
        "heap": [before.heap, after.heap],
        "garbageEach": round(garbage_each(result), 2),
        "opened": result.opened.total(),
        "closed": result.closed.total(),
        "late": dict(result.late),
        "ends": {f"{end.cause} {end.code}": number for end, number in result.ends.most_common()},
        "problems": problems(result),
    }
