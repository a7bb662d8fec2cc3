"""Attacks by peers with a credential on the gateway's memory, and on peers that read slowly.

`python -m tests.support.attacks KIND --count SECONDS` runs one by hand. Each returns what came of it, and the tests say
what that has to be. A victim reads 2 MB/s, and asks for `gateway.ping` all the time.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.credentials import Holder, TokensFile, bearer
from tests.support.fleet import forget_peak, peak, until
from tests.support.peers import Opcode, PeerClosed, RawPeer, frame
from tests.support.process import Config, GatewayProcess

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PACE: Final = 2_000_000
"""Bytes a second that a victim reads."""
CHUNK: Final = 32 * KIB
EVERY: Final = 0.02
"""Seconds between two pings of a victim."""
PAD: Final = "x" * (MIB - 4096)
EVIL: Final = Holder("evil", "operator", ("call:>", "serve:>", "subscribe:>", "publish:>"))
VICTIM: Final = Holder("victim", "operator", ("admin", "call:>", "serve:>", "subscribe:>", "publish:>"))


@dataclass
class Found:
    """What came of an attack.

    ended: causes of the ends of the victim's connections. waits: of its pings, in seconds. codes: the errors that the
    attacker was answered with. grown, left: resident memory beyond that before the attack, at its peak and after it.
    """

    ended: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    grown: int = 0
    left: int = 0

    def __str__(self) -> str:
        waits = sorted(self.waits) or [0.0]
        p99 = waits[int(len(waits) * 0.99)] * 1000
        return (
            f"{len(self.waits)} pings, p99 {p99:.0f} ms; victims ended: {self.ended or 'none'}; "
            f"refused: {dict(self.codes)}; grown {self.grown / MIB:.1f} MiB, {self.left / MIB:.1f} MiB after"
        )


class Slow:
    """A peer that reads at its pace, and hands each message to ``heard``. Its pings are measured."""

    def __init__(self, peer: RawPeer, found: Found, pace: int = PACE) -> None:
        self.peer = peer
        self._found = found
        self._pace = pace
        self._buffer = bytearray()
        self._asked: dict[str, float] = {}
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.heard: Callable[[Any], Awaitable[None]] = self._ignore

    async def _ignore(self, message: Any) -> None:
        """Do nothing with it."""

    async def read(self) -> None:
        """Read until the gateway ends the connection, or this is cancelled."""
        due = time.monotonic()
        while data := await self.peer.wire.recv():
            self._buffer += data
            due = max(due, time.monotonic() - 1) + len(data) / self._pace
            await self._take_messages()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _take_messages(self) -> None:
        while len(self._buffer) >= 2:
            opcode, size = self._buffer[0] & 15, self._buffer[1]
            start = {126: 4, 127: 10}.get(size, 2)
            if size > 125:
                size = int.from_bytes(self._buffer[2:start], "big")
            if len(self._buffer) < start + size:
                return
            payload = bytes(self._buffer[start : start + size])
            del self._buffer[: start + size]
            if opcode == Opcode.PING:
                await self.peer.send_frame(Opcode.PONG, payload)
            elif opcode == Opcode.TEXT:
                await self._take(json.loads(payload))

    async def _take(self, message: Any) -> None:
        asked = self._asked.pop(str(message.get("id")), None) if isinstance(message, dict) else None
        if asked is not None:
            self._found.waits.append(time.monotonic() - asked)
        elif isinstance(message, dict) and "method" not in message:
            self.replies.put_nowait(message)
        else:
            await self.heard(message)

    async def ask(self, method: str, params: object) -> Any:
        """Send a request, and return its reply. Needs `read`."""
        await self.peer.send_json({"jsonrpc": "2.0", "id": method, "method": method, "params": params})
        return await self.replies.get()

    async def ping(self) -> None:
        """Ask for `gateway.ping` again and again."""
        number = 0
        while True:
            number += 1
            self._asked[f"ping {number}"] = time.monotonic()
            await self.peer.send_json({"jsonrpc": "2.0", "id": f"ping {number}", "method": "gateway.ping"})
            await asyncio.sleep(EVERY)


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
        self._tasks.append(asyncio.create_task(_until_lost(work)))

    async def enter(self, holder: Holder, **options: Any) -> RawPeer:
        """Open a connection of this principal."""
        peer = await RawPeer.open(self.where, headers=bearer(self._tokens.of(holder)), **options)
        self._stack.enter_context(peer)
        await peer.welcome()
        return peer

    async def slow(self, holder: Holder = VICTIM) -> Slow:
        """Open one that reads at its pace; that of the victim measures its pings."""
        slow = Slow(await self.enter(holder, rcvbuf=64 * KIB), self.found if holder is VICTIM else Found())
        self.begin(slow.read())
        return slow

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


async def _until_lost(work: Coroutine[Any, Any, None]) -> None:
    with suppress(PeerClosed, OSError, TimeoutError):
        await work


async def send_on(peer: RawPeer, *messages: object) -> None:
    """Send these messages again and again, as fast as they are taken."""
    frames = [frame(Opcode.TEXT, json.dumps(message).encode()) for message in messages]
    while True:
        for begin in range(0, len(frames), 100):
            await peer.send_raw(b"".join(frames[begin : begin + 100]), 3600.0)
            await asyncio.sleep(0)


def request(method: str, params: object, identity: object = 1) -> dict[str, object]:
    """A request."""
    return {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}


# Pressure on a victim that reads slowly


async def _serve(stage: Stage) -> Slow:
    """Let the victim be a node, which answers each call."""
    victim = await stage.slow()

    async def answer(message: Any) -> None:
        if message["method"] == "victim.does" and "id" in message:
            await victim.peer.send_json({"jsonrpc": "2.0", "id": message["id"], "result": None})

    victim.heard = answer
    await victim.ask("node.register", {"methods": [{"name": "victim.does"}]})
    return victim


async def _calls(stage: Stage) -> Slow:
    victim = await _serve(stage)
    for _ in range(3):
        stage.begin(send_on(await stage.evil(), *[request("victim.does", [PAD], number) for number in range(64)]))
    return victim


async def _notifications(stage: Stage) -> Slow:
    victim = await _serve(stage)
    for pad in (PAD, "", "x" * 1000):
        message = {"jsonrpc": "2.0", "method": "victim.does", "params": [pad]}
        stage.begin(send_on(await stage.evil(), *[message] * (1 if len(pad) > 1000 else 200)))
    return victim


async def _cancels(stage: Stage) -> Slow:
    victim = await _serve(stage)
    cancel = {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": 1}}
    for _ in range(3):
        stage.begin(send_on(await stage.evil(), *[request("victim.does", []), cancel] * 100))
    return victim


async def _evil_node(stage: Stage, answer: Callable[[RawPeer, Any], Awaitable[None]]) -> Slow:
    """Let the attacker be a node, and the victim call it again and again."""
    victim, node = await stage.slow(), await stage.enter(EVIL)
    await node.send_json(request("node.register", {"methods": [{"name": "evil.does"}]}))
    await node.recv_json()

    async def serve() -> None:
        while True:
            got = await node.recv_frame(3600.0)
            message = json.loads(got.payload) if got.opcode == Opcode.TEXT else {}
            if message.get("method") == "evil.does":
                await answer(node, message["id"])

    async def call() -> None:
        while True:
            for number in range(20):
                await victim.peer.send_json(request("evil.does", [], f"call {number}"))
            for _ in range(20):
                await victim.replies.get()

    stage.begin(serve())
    stage.begin(call())
    return victim


async def _results(stage: Stage) -> Slow:
    async def answer(node: RawPeer, identity: Any) -> None:
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": PAD})

    return await _evil_node(stage, answer)


async def _reports(stage: Stage) -> Slow:
    async def answer(node: RawPeer, identity: Any) -> None:
        params = {"id": identity, "value": "x" * 100_000}
        for _ in range(200):
            await node.send_json({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})
        await node.send_json({"jsonrpc": "2.0", "id": identity, "result": None})

    return await _evil_node(stage, answer)


async def _events(stage: Stage) -> Slow:
    victim = await stage.slow()
    await victim.ask("event.subscribe", {"topics": [">"]})
    for number in range(3):
        stage.begin(send_on(await stage.evil(), request("event.publish", {"topic": f"e.{number}", "data": PAD})))
    return victim


async def _registrations(stage: Stage) -> Slow:
    victim = await stage.slow()
    await victim.ask("event.subscribe", {"topics": ["gateway.>"]})
    methods = [{"name": f"evil.{'x' * 150}.{number}"} for number in range(1000)]
    messages = [request("node.register", {"methods": methods}), request("node.unregister", {})]
    stage.begin(send_on(await stage.evil(), *messages))
    return victim


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


PRESSURE: Final[Mapping[str, Callable[[Stage], Coroutine[Any, Any, Slow]]]] = {
    "calls": _calls,
    "notifications": _notifications,
    "cancels": _cancels,
    "results": _results,
    "reports": _reports,
    "events": _events,
    "registrations": _registrations,
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
        # Attackers share this process's event loop, and so have their handshakes while it is busy.
        usual: Config = {"events": {"conflate": ["pos.>"]}, "server": {"handshake_timeout": 60.0}}
        where = await stack.enter_async_context(GatewayProcess({"auth": tokens.auth, **usual, **config}))
        async with AsyncExitStack() as peers:
            yield Stage(where, tokens, peers)


async def pressure(kind: str, seconds: float, config: Config | None = None) -> Found:
    """Let the attacker press upon a victim for so long."""
    async with _staged(config or {}) as stage:
        victim = await PRESSURE[kind](stage)
        stage.begin(victim.ping())
        await asyncio.sleep(seconds)
        await until(lambda: bool(stage.found.waits), "the victim's pings are not answered")
        stage.found.ended = ended_of(stage.where, VICTIM)
        await stage.stop()
        return stage.found


async def growth(kind: str, seconds: float, config: Config | None = None) -> Found:
    """Let the attacker make the gateway hold what it can for so long. Another peer is answered meanwhile."""
    async with _staged(config or {}) as stage:
        other = await stage.slow()
        stage.begin(other.ping())
        before = forget_peak(stage.where)
        await GROWTH[kind](stage)
        await asyncio.sleep(seconds)
        found = stage.found
        await until(lambda: bool(found.waits), "others are not answered")
        found.grown = peak(stage.where) - before
        found.ended = ended_of(stage.where, VICTIM)
        await stage.stop()
        await until(lambda: not _open(stage.where), "a connection is left")
        found.left = stage.where.rss() - before
        return found


def _open(where: GatewayProcess) -> int:
    return len(where.events("connection.opened")) - len(where.events("connection.closed"))


def ended_of(where: GatewayProcess, holder: Holder) -> list[str]:
    """The causes of all ends of this principal's connections."""
    return [line["cause"] for line in where.events("connection.closed") if line["principal"] == holder.name]
