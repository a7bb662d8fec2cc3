"""Attacks by peers with a credential on the gateway's memory, and on peers that read slowly.

`python -m tests.support.attacks KIND --count SECONDS` runs one by hand. Each returns what came of it, and the tests say
what that has to be. The victims are in `tests.support.victims`.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.credentials import Holder, TokensFile, bearer
from tests.support.fleet import forget_peak, peak, until
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import ROOT, Config, GatewayProcess
from tests.support.reaping import kill
from tests.support.victims import VICTIM, request, until_lost

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PAD: Final = "x" * (MIB - 4096)
EVIL: Final = Holder("evil", "operator", ("call:>", "serve:>", "subscribe:>", "publish:>"))


@dataclass
class Found:
    """What came of an attack.

    ended: causes of the ends of the victim's connections. waits: of its pings, in seconds. codes: the errors that the
    attacker was answered with. grown, at_end, left: resident memory beyond that before the attack, in bytes: at its
    peak, when all its connections have ended, and a while after that.
    """

    ended: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    grown: int = 0
    at_end: int = 0
    left: int = 0

    def __str__(self) -> str:
        waits = sorted(self.waits) or [0.0]
        p99 = waits[int(len(waits) * 0.99)] * 1000
        return (
            f"{len(self.waits)} pings, p99 {p99:.0f} ms; victims ended: {self.ended or 'none'}; "
            f"refused: {dict(self.codes)}; grown {self.grown / MIB:.1f} MiB, "
            f"{self.at_end / MIB:.1f} MiB at the end, {self.left / MIB:.1f} MiB after"
        )


class Stage:
    """A gateway, with peers of the victim's and of the attacker's."""

    def __init__(self, where: GatewayProcess, tokens: TokensFile, stack: AsyncExitStack) -> None:
        self.where = where
        self.found = Found()
        self._tokens = tokens
        self._stack = stack
        self._tasks: list[asyncio.Task[Any]] = []

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let this go on until the end."""
        self._tasks.append(asyncio.create_task(until_lost(work)))

    async def enter(self, holder: Holder, **options: Any) -> RawPeer:
        """Open a connection of this principal."""
        peer = await RawPeer.open(self.where, headers=bearer(self._tokens.of(holder)), **options)
        self._stack.enter_context(peer)
        await peer.welcome()
        return peer

    @asynccontextmanager
    async def victim(self, does: str) -> AsyncIterator[None]:
        """Let a victim do this, one of VICTIMS, meanwhile. In the end it says for how long it has waited."""
        where, pipe = self.where, asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "tests.support.victims", does, str(where.port), str(where.pid))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=MIB)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(self._tokens.of(VICTIM).encode() + b"\n")
            assert await process.stdout.readline() == b"{}\n"
            yield
            self.found.ended = ended_of(where, VICTIM)
            process.stdin.close()
            self.found.waits = json.loads(await process.stdout.readline())
        finally:
            await kill(process)

    async def evil(self) -> RawPeer:
        """Open a connection of the attacker's, which counts the errors that it gets."""
        peer = await self.enter(EVIL)
        self.begin(self._count(peer))
        return peer

    async def _count(self, peer: RawPeer) -> None:
        while True:
            got = await peer.recv_frame(3600.0)
            if got.opcode == Opcode.PING:
                await peer.send_frame(Opcode.PONG, got.payload)
            elif b'"error":{"code":' in got.payload[:100]:
                self.found.codes[json.loads(got.payload)["error"]["code"]] += 1

    async def stop(self) -> None:
        """End all that was begun, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


async def send_on(peer: RawPeer, *messages: object) -> None:
    """Send these messages again and again, as fast as they are taken."""
    frames = [frame(Opcode.TEXT, json.dumps(message).encode()) for message in messages]
    while True:
        for begin in range(0, len(frames), 100):
            await peer.send_raw(b"".join(frames[begin : begin + 100]), 3600.0)
            await asyncio.sleep(0)


# Pressure on a victim that reads slowly


async def _calls(stage: Stage) -> None:
    for _ in range(3):
        stage.begin(send_on(await stage.evil(), *[request("victim.does", [PAD], number) for number in range(64)]))


async def _notifications(stage: Stage) -> None:
    for pad in (PAD, "", "x" * 1000):
        message = {"jsonrpc": "2.0", "method": "victim.does", "params": [pad]}
        stage.begin(send_on(await stage.evil(), *[message] * (1 if len(pad) > 1000 else 200)))


async def _cancels(stage: Stage) -> None:
    cancel = {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": 1}}
    for _ in range(3):
        stage.begin(send_on(await stage.evil(), *[request("victim.does", []), cancel] * 100))


async def _evil_node(stage: Stage, answer: Callable[[RawPeer, Any], Awaitable[None]]) -> None:
    """Let the attacker be a node."""
    node = await stage.enter(EVIL)
    await node.send_json(request("node.register", {"methods": [{"name": "evil.does"}]}))
    await node.recv_json()

    async def serve() -> None:
        while True:
            got = await node.recv_frame(3600.0)
            message = json.loads(got.payload) if got.opcode == Opcode.TEXT else {}
            if message.get("method") == "evil.does":
                await answer(node, message["id"])

    stage.begin(serve())


async def _results(stage: Stage) -> None:
    async def answer(node: RawPeer, identity: Any) -> None:
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": PAD})

    await _evil_node(stage, answer)


async def _reports(stage: Stage) -> None:
    async def answer(node: RawPeer, identity: Any) -> None:
        params = {"id": identity, "value": "x" * 100_000}
        for _ in range(200):
            await node.send_json({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": None})

    await _evil_node(stage, answer)


async def _events(stage: Stage) -> None:
    for number in range(3):
        stage.begin(send_on(await stage.evil(), request("event.publish", {"topic": f"e.{number}", "data": PAD})))


async def _registrations(stage: Stage) -> None:
    methods = [{"name": f"evil.{'x' * 150}.{number}"} for number in range(1000)]
    messages = [request("node.register", {"methods": methods}), request("node.unregister", {})]
    stage.begin(send_on(await stage.evil(), *messages))


# Growth: what one principal can make the gateway hold


async def _replies(stage: Stage) -> None:
    for _ in range(100):
        deaf = await stage.enter(EVIL, rcvbuf=4 * KIB)
        stage.begin(send_on(deaf, request("gateway.ping", [PAD])))


async def _batches(stage: Stage) -> None:
    """Replies of a megabyte together, held by an element that is never answered."""
    node = await stage.enter(EVIL)
    await node.send_json(request("node.register", {"methods": [{"name": "evil.never", "summary": "x" * 200_000}]}))
    await node.recv_json()
    stage.begin(_read_on(node))
    for _ in range(20):
        batch = [request("rpc.discover", {}, number) for number in range(60)] + [request("evil.never", [], "never")]
        peer = await stage.enter(EVIL)
        stage.begin(send_on(peer, [{**each, "params": []} for each in batch]))
        stage.begin(_read_on(peer))


async def _read_on(peer: RawPeer) -> None:
    while True:
        got = await peer.recv_frame(3600.0)
        if got.opcode == Opcode.PING:
            await peer.send_frame(Opcode.PONG, got.payload)


async def _latest(stage: Stage) -> None:
    """Values of conflated topics that nobody reads."""
    for _ in range(50):
        deaf = await stage.enter(EVIL, rcvbuf=4 * KIB)
        await deaf.send_json(request("event.subscribe", {"topics": ["pos.>"]}))
        await deaf.recv_json()
    messages = [request("event.publish", {"topic": f"pos.{number}", "data": "x" * 100_000}) for number in range(300)]
    stage.begin(send_on(await stage.evil(), *messages))


async def _unfinished(stage: Stage) -> None:
    async def begin() -> None:
        peer = await stage.enter(EVIL)
        await peer.send_frame(Opcode.TEXT, PAD.encode(), fin=False)
        while True:
            await peer.send_frame(Opcode.PING)
            await peer.recv_frame(3600.0)
            await asyncio.sleep(1.0)

    for _ in range(500):
        stage.begin(begin())
        await asyncio.sleep(0.005)


async def _ids(stage: Stage) -> None:
    node = await stage.enter(EVIL)
    await node.send_json(request("node.register", {"methods": [{"name": "evil.never"}]}))
    await node.recv_json()
    stage.begin(_read_on(node))
    for _ in range(50):
        peer = await stage.evil()
        stage.begin(send_on(peer, *[request("evil.never", [], f"{number:01000}") for number in range(64)]))


class Pressure(NamedTuple):
    """What the victim does, one of VICTIMS, and the attack."""

    victim: str
    attack: Callable[[Stage], Awaitable[None]]


PRESSURE: Final[Mapping[str, Pressure]] = {
    "calls": Pressure("serve", _calls),
    "notifications": Pressure("serve", _notifications),
    "cancels": Pressure("serve", _cancels),
    "results": Pressure("call", _results),
    "reports": Pressure("call", _reports),
    "events": Pressure("hear", _events),
    "registrations": Pressure("watch", _registrations),
}
GROWTH: Final[Mapping[str, Callable[[Stage], Coroutine[Any, Any, None]]]] = {
    "replies": _replies,
    "batches": _batches,
    "latest": _latest,
    "unfinished": _unfinished,
    "ids": _ids,
}


@asynccontextmanager
async def _staged(config: Config) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-test-"))
        tokens = TokensFile(Path(directory) / "tokens.toml", EVIL, VICTIM)
        usual: Config = {"events": {"conflate": ["pos.>"]}, "server": {"handshake_timeout": 60.0}}
        where = await stack.enter_async_context(GatewayProcess({"auth": tokens.auth, **usual, **config}))
        async with AsyncExitStack() as peers:
            yield Stage(where, tokens, peers)


async def pressure(kind: str, seconds: float, config: Config | None = None) -> Found:
    """Let the attacker press upon a victim for so long."""
    siege = PRESSURE[kind]
    async with _staged(config or {}) as stage:
        async with stage.victim(siege.victim):
            await siege.attack(stage)
            await asyncio.sleep(seconds)
        await stage.stop()
        return stage.found


async def growth(kind: str, seconds: float, config: Config | None = None, *, follow: float = 0.0) -> Found:
    """Let the attacker make the gateway hold what it can for so long. Another peer is answered meanwhile.

    follow: seconds after the end until what is left is measured.
    """
    async with _staged(config or {}) as stage:
        found = stage.found
        async with stage.victim("idle"):
            before = forget_peak(stage.where)
            await GROWTH[kind](stage)
            await asyncio.sleep(seconds)
            found.grown = peak(stage.where) - before
        await stage.stop()
        await until(lambda: not _open(stage.where), "a connection is left")
        found.at_end = stage.where.rss() - before
        await asyncio.sleep(follow)
        found.left = stage.where.rss() - before
        return found


def _open(where: GatewayProcess) -> int:
    return len(where.events("connection.opened")) - len(where.events("connection.closed"))


def ended_of(where: GatewayProcess, holder: Holder) -> list[str]:
    """The causes of all ends of this principal's connections."""
    return [line["cause"] for line in where.events("connection.closed") if line["principal"] == holder.name]
