"""A long stream through a slow caller: what gateway, node and caller hold of it meanwhile."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

import psutil

from tests.support.patience import START
from tests.support.process import ROOT, EventLoopName, GatewayProcess, clean_environment
from tests.support.reaping import kill

Language = Literal["python", "javascript"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

SIZE: Final = 64 * 1024
"""Bytes of a value."""

PAUSE: Final = 0.002
"""Seconds for which the caller waits after each value."""

STEPS: Final = 20
"""Into how many parts a run is divided. After the first it is settled: each process has had its buffers once."""

ALLOWED: Final = 4 << 20
"""Bytes by which the resident memory of the gateway and of Python clients may grow after that."""

ALLOWED_TO_JAVASCRIPT: Final = 16 << 20
"""Bytes by which what a JavaScript client holds may grow. It goes up and down by as much, however long the stream is:
V8 lets go of buffers some time after their collection."""

LOOK: Final = 0.05
"""Seconds between two looks at the memory."""

PROGRAMS: Final[dict[Language, tuple[str, ...]]] = {
    "python": (sys.executable, "-m", "tests.soak.stream_end"),
    "javascript": (shutil.which("node") or "node", "--expose-gc", str(ROOT / "tests" / "js" / "stream_end.mjs")),
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """What is to be done: so many `megabytes` (of 10^6 bytes), with clients in `language`, in `limit` seconds."""

    megabytes: int
    language: Language
    loop: EventLoopName
    limit: float

    @property
    def values(self) -> int:
        """How many values these are, a whole number for each step."""
        return -(-self.megabytes * 10**6 // (SIZE * STEPS)) * STEPS


@dataclass(slots=True)
class Memory:
    """The memory of one process, in bytes: before the stream, when it was settled, and at most after that.

    It is the resident memory, or what the process says that it holds.
    """

    before: int
    settled: int = 0
    most: int = 0

    def see(self, octets: int, settled: bool) -> None:
        """Note what it is now."""
        if settled:
            self.settled = self.settled or octets
            self.most = max(self.most, octets)

    @property
    def growth(self) -> int:
        """By how many bytes it grew after it was settled."""
        return self.most - self.settled


@dataclass(frozen=True, slots=True)
class Streamed:
    """What was seen: how many values came, and the memory of each process by its role."""

    plan: Streaming
    values: int
    memory: dict[str, Memory]


async def stream(plan: Streaming, say: Callable[[str], None]) -> Streamed:
    """Run it. Raises TimeoutError after `plan.limit` seconds, AssertionError if a process fails."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(plan.limit))
        gateway = await stack.enter_async_context(GatewayProcess(loop=plan.loop))
        url = gateway.url("/ws", websocket=True)
        node = await stack.enter_async_context(_end(plan.language, "node", url))
        caller = await stack.enter_async_context(_end(plan.language, "caller", url))
        ends = {"gateway": _Process(gateway.pid), "node": node, "caller": caller}
        memory = {role: Memory(end.memory) for role, end in ends.items()}
        caller.ask(
            values=plan.values, size=SIZE, pause=PAUSE, every=plan.values // STEPS, timeout=min(plan.limit, 3600.0)
        )
        looks = [asyncio.create_task(work) for work in (_look(memory, ends, caller), node.follow())]
        try:
            while "done" not in (said := await caller.said()):
                told = ", ".join(f"{role} {end.memory >> 10}" for role, end in ends.items())
                say(f"{said['read']} of {plan.values}: {told} KiB")
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
    return Streamed(plan, said["done"], memory)


def problems(result: Streamed) -> list[str]:
    """Return a line for each process that grew by more than it may."""
    found = list[str]()
    for role, memory in result.memory.items():
        in_javascript = role != "gateway" and result.plan.language == "javascript"
        allowed = ALLOWED_TO_JAVASCRIPT if in_javascript else ALLOWED
        if memory.growth > allowed:
            found.append(f"{role}: memory grew by {memory.growth >> 10} KiB, {allowed >> 10} allowed")
    return found


def to_text(result: Streamed) -> str:
    """Return the report as a table."""
    plan = result.plan
    lines = [
        f"{plan.language} clients, {plan.loop}: {result.values} values of {SIZE >> 10} KiB",
        f"{'KiB':8} {'before':>9} {'settled':>9} {'at most':>9} {'growth':>9}",
    ]
    for role, memory in result.memory.items():
        figures = (memory.before, memory.settled, memory.most, memory.growth)
        lines.append(f"{role:8} " + " ".join(f"{figure >> 10:9,}" for figure in figures))
    return "\n".join([*lines, *(f"PROBLEM {problem}" for problem in problems(result))])


def to_json(result: Streamed) -> dict[str, Any]:
    """Return the report as an object for json.dumps."""
    return {
        "language": result.plan.language,
        "loop": result.plan.loop,
        "values": result.values,
        "bytesOfAValue": SIZE,
        "memory": {
            role: {"before": memory.before, "settled": memory.settled, "most": memory.most, "growth": memory.growth}
            for role, memory in result.memory.items()
        },
        "problems": problems(result),
    }


class _Process:
    """A process, by its id."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.held = 0
        """How many bytes it has said that it holds, if it says so."""

    @property
    def memory(self) -> int:
        """What it takes now."""
        return self.held or int(self._process.memory_info().rss)


class _End(_Process):
    """A client in a process of its own: tests/soak/stream_end.py, or its twin in JavaScript."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        super().__init__(process.pid)
        self._stdin, self._stdout = process.stdin, process.stdout
        self.read = 0
        """How many values it has said that it has read."""

    async def said(self) -> dict[str, Any]:
        """Return the next thing that it says."""
        line = await self._stdout.readline()
        assert line, "a client ended before the stream did"
        said: dict[str, Any] = json.loads(line)
        self.read = said.get("read", self.read)
        self.held = said.get("held", self.held)
        return said

    async def ready(self) -> Self:
        """Wait until it is connected."""
        async with asyncio.timeout(START):
            await self.said()
        return self

    async def follow(self) -> None:
        """Hear all that it says."""
        while True:
            await self.said()

    def ask(self, **asked: object) -> None:
        """Write one line to it."""
        self._stdin.write(json.dumps(asked).encode() + b"\n")


@asynccontextmanager
async def _end(language: Language, role: str, url: str) -> AsyncIterator[_End]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAMS[language],
        role,
        url,
        cwd=ROOT,
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield await _End(process).ready()
    finally:
        await kill(process)


async def _look(memory: dict[str, Memory], ends: dict[str, _Process], caller: _End) -> None:
    while True:
        for role, end in ends.items():
            memory[role].see(end.memory, settled=caller.read > 0)
        await asyncio.sleep(LOOK)
