"""Attacks on a gateway, and what another peer notices meanwhile.

An attack is a storm of connections from a process of its own: each one sends what its kind says, as fast as the gateway
takes it, and reads until the gateway ends it. By hand, against a gateway of its own and on a machine of its own, it
tells the figures, and whether another peer has noticed:

    python -m tests.support.attacks upgrades --count 100000

Attacks by peers that have a credential are in `tests.support.insiders`, and run in the same way.
"""

import argparse
import asyncio
import json
import re
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tests.bench.client import HOST, IP_BIND_ADDRESS_NO_PORT, Target, open_websocket
from tests.bench.frames import CLOSE, HEAD_END, FrameReader, upgrade_request
from tests.support.credentials import OP, PI, TokensFile, authenticate, bearer, entered, gains, scrape
from tests.support.fair import Fair
from tests.support.fleet import ended, forget_peak, peak, sockets_back
from tests.support.flood import blocks
from tests.support.forks import start_python
from tests.support.insiders import INSIDERS
from tests.support.patience import WAIT
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess
from tests.support.reaping import kill
from tests.support.siegers import GROWTH, PRESSURE, growth, pressure

KIB: Final = 1024
MIB: Final = 1 << 20
READ: Final = 1 << 18
"""Seconds in which something must happen."""
GUESS: Final = "guess-hqNlVQk1gkK9cmaYJ0rZp0gDOyNRLh3y"
"""A credential that nobody has; it must not be in a log."""
FOREIGN_CODES: Final = (1004, 1005, 1006, 1015, 2999, 5000)
"""Codes that no close frame may have (RFC 6455 section 7.4)."""
HOLD: Final = 8
UPGRADES: Final = {"limits": {"max_connections_per_address": HOLD}}
"""The configuration for `upgrades`, whose address holds all its connections before it begins."""
FOLLOW: Final = 30.0
"""Seconds after an attack by hand that memory has to go back to the system."""
KEPT_ALIVE: Final = {"server": {"keepalive_timeout": 5.0}}
"""The configuration for `kept-alive`: the last ones go by themselves, before the storm is taken for stuck."""


class Script(NamedTuple):
    """What one connection sends: at once, and when its upgrade was granted; `again`: the latter for ever.

    reads False: it reads nothing, and is over when the gateway resets it.
    """

    first: bytes
    then: bytes = b""
    again: bool = False
    reads: bool = True


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]


def _fields(count: int, size: int) -> str:
    return "\r\n".join(f"X-{number}: {'x' * size}" for number in range(count))


def _text(message: object) -> bytes:
    return frame(Opcode.TEXT, json.dumps(message).encode())


def _head(line: str, host: str = HOST) -> Callable[[int], Script]:
    """An upgrade with one header line more, or with a header that is no line."""
    return lambda port: Script(upgrade_request(host, port, line))


def _inside(then: bytes, line: str = "", again: bool = False) -> Callable[[int], Script]:
    """Something that an upgrade is good for."""
    return lambda port: Script(upgrade_request(HOST, port, line), then, again)


def _get(path: str, times: int = 1, reads: bool = True) -> Callable[[int], Script]:
    """Plain requests, which leave the connection open."""
    return lambda port: Script(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode() * times, reads=reads)


def _block(kind: str, again: bool = False) -> Callable[[int], Script]:
    first, block, _ = blocks(kind)
    return _inside(first + block, again=again)


def _of_one_byte() -> bytes:
    """Nearly 64 KiB of a message without an end, a byte a fragment."""
    return frame(Opcode.TEXT, b"[", fin=False) + frame(Opcode.CONTINUATION, b" ", fin=False) * (64 * KIB // 7)


_DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate"
_GUESSED: Final = {"jsonrpc": "2.0", "id": 1, "method": "gateway.authenticate", "params": {"token": GUESS}}

_UNREGISTER: Final = {"jsonrpc": "2.0", "method": "node.unregister"}
_LEAVE: Final = frame(Opcode.CLOSE, struct.pack("!H", 1000))
SAME: Final = 500
"""How often a connection registers the same."""
FLAPS: Final = 100
"""How often a connection registers and takes it back."""


def _register() -> bytes:
    methods = [{"name": f"pi.{number}"} for number in range(3)]
    return _text({"jsonrpc": "2.0", "method": "node.register", "params": {"name": "pi", "methods": methods}})


KINDS: Final[Mapping[str, Callable[[], Callable[[int], Script]]]] = {
    # Refused before they are WebSockets.
    "mute": lambda: lambda port: Script(b""),
    "upgrades": lambda: _head(""),
    "cross-site": lambda: _head("Origin: https://evil.example"),
    "rebinding": lambda: _head("", "evil.example"),
    "two-hosts": lambda: _head(f"Host: {HOST}"),
    "body": lambda: lambda port: Script(upgrade_request(HOST, port, "Content-Length: 5") + b"hello"),
    "chunked": lambda: lambda port: Script(upgrade_request(HOST, port, "Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "two-lengths": lambda: _head("Transfer-Encoding: chunked\r\nContent-Length: 5"),
    "http-1.0": lambda: lambda port: Script(upgrade_request(HOST, port).replace(b"HTTP/1.1", b"HTTP/1.0")),
    "many-headers": lambda: _head(_fields(200, 1)),
    "large-headers": lambda: _head(_fields(110, 8000)),
    "endless-headers": lambda: lambda port: Script(upgrade_request(HOST, port, _fields(1000, 1000))[:-4]),
    "bearer": lambda: _head(f"Authorization: Bearer {GUESS}"),
    # Never WebSockets.
    "kept-alive": lambda: _get("/healthz"),
    "unread": lambda: _get("/console/gateway-client.js", times=16_000, reads=False),
    # Ended afterwards.
    "silent": lambda: _head(""),
    "guess": lambda: _inside(_text(_GUESSED)),
    "oversized": lambda: _inside(frame(Opcode.TEXT, b"x" * MIB)),
    "swollen": lambda: _inside(frame(Opcode.TEXT, b"x" * MIB)[: 64 * KIB]),
    "crumbs": lambda: _inside(_of_one_byte()),
    "bomb": lambda: _inside(frame(Opcode.TEXT, _deflated(b" " * 50_000_000), rsv=4), _DEFLATE),
    "smuggled": lambda: lambda port: Script(upgrade_request(HOST, port) * 2),
    "ping": lambda: _block("ping"),
    "pong": lambda: _inside(frame(Opcode.PONG, b"flood") * 20_000),
    "empty": lambda: _block("empty"),
    "tiny": lambda: _block("tiny"),
    "mebibyte": lambda: _block("mebibyte", again=True),
    # Which fill the log, and then leave.
    "same-node": lambda: _inside(_register() * SAME + _LEAVE),
    "flapping-node": lambda: _inside((_register() + _text(_UNREGISTER)) * FLAPS + _LEAVE),
    "visits": lambda: _inside(_LEAVE),
} | {
    f"close-{code}": (lambda code=code: _inside(frame(Opcode.CLOSE, struct.pack("!H", code)))) for code in FOREIGN_CODES
}


@dataclass(frozen=True)
class Storm:
    """So many connections, `at_once` at a time.

    kinds: names of KINDS in turn, with commas. They come from `sources` addresses, the first is 127.0.0.`source`; that
    one has `hold` connections open before the storm begins. With a `token` each upgrade brings it.
    """

    kinds: str
    count: int = 200
    at_once: int = 64
    source: int = 2
    sources: int = 1
    hold: int = 0
    token: str = ""


@dataclass
class Outcome:
    """What became of a storm.

    ends: by kind how often each end: `403`, `101 1009`, `eof`, `reset`. errors: the codes of JSON-RPC errors, and how
    often they came. retry_after: how many responses said when to come back.
    """

    ends: dict[str, Counter[str]]
    errors: Counter[str]
    retry_after: int
    seconds: float

    @property
    def count(self) -> int:
        """How many connections there were."""
        return sum(ends.total() for ends in self.ends.values())

    def all(self) -> Counter[str]:
        """The ends of all kinds."""
        return sum(self.ends.values(), Counter[str]())


# The attacker


def _as(token: str, script: Script) -> Script:
    """Return the script of a peer that brings this token, if there is one, in the place of GUESS if it has that."""
    if not token:
        return script
    if GUESS.encode() in script.first:
        return script._replace(first=script.first.replace(GUESS.encode(), token.encode()))
    head, end, rest = script.first.partition(HEAD_END)
    return script._replace(first=head + f"\r\nAuthorization: Bearer {token}".encode() + end + rest)


class Visit:
    """One connection of a storm."""

    def __init__(self, sock: socket.socket, kind: str, script: Script, outcome: Outcome) -> None:
        self.sock = sock
        self._kind = kind
        self._script = script
        self._outcome = outcome
        self._unsent = memoryview(script.first)
        self._head = b""
        self._status = ""
        self._frames = FrameReader()

    @property
    def events(self) -> int:
        """What it waits for: something to read, if it reads, and room to send what is left."""
        return (select.EPOLLIN if self._script.reads else 0) | (select.EPOLLOUT if self._unsent else 0)

    def step(self, events: int) -> bool:
        """Read and write what can be. Returns True when it is over, and counted."""
        try:
            end = self._read() if events & ~select.EPOLLOUT else ""
            if not end and events & select.EPOLLOUT and self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
                if not self._unsent and self._script.again and self._status == "101":
                    self._unsent = memoryview(self._script.then)
        except BlockingIOError:
            return False
        except ConnectionError:
            end = self._status or "reset"
        if end:
            self._outcome.ends[self._kind][end] += 1
            self.sock.close()
        return bool(end)

    def _read(self) -> str:
        """Return how it ended, "" if it has not."""
        if not self._script.reads:
            return "reset"
        data = self.sock.recv(READ)
        if not data:
            return self._status or "eof"
        if not self._status:
            self._head += data
            head, end, data = self._head.partition(HEAD_END)
            if not end:
                return ""
            self._status = head[9:12].decode()
            self._outcome.retry_after += b"\r\nRetry-After: " in head
            if self._status == "101":
                self._unsent = memoryview(self._script.then)
        if self._status != "101":
            return ""
        for got in self._frames.feed(data):
            if got.opcode == CLOSE:
                return f"101 {int.from_bytes(got.payload[:2], 'big')}"
            self._outcome.errors.update(code.decode() for code in re.findall(rb'"code":(-\d+)', got.payload[:100]))
        return ""


class Attacker:
    """Runs a storm against a port of 127.0.0.1."""

    def __init__(self, storm: Storm, port: int) -> None:
        self._storm = storm
        self._port = port
        self._names = storm.kinds.split(",")
        self._scripts = [_as(storm.token, KINDS[name]()(port)) for name in self._names]
        self._outcome = Outcome({name: Counter() for name in self._names}, Counter(), 0, 0.0)
        self._visits: dict[int, Visit] = {}
        self._poll = select.epoll()
        self._opened = 0

    def run(self) -> Outcome:
        """Say `{}` when it begins; return what came of it. TimeoutError when nothing moves."""
        held = [
            open_websocket(Target(self._port, 0, welcomes=True), self._storm.source - 2)
            for _ in range(self._storm.hold)
        ]
        print("{}", flush=True)
        begun = moved = time.monotonic()
        while self._opened < self._storm.count or self._visits:
            wanted = self._storm.count - self._opened
            for _ in range(min(self._storm.at_once - len(self._visits), 64, wanted)):
                self._open()
            more = len(self._visits) < min(self._storm.at_once, wanted)
            ready = self._poll.poll(0.0 if more else 1.0)
            now = time.monotonic()
            if ready:
                moved = now
            elif now - moved > WAIT:
                raise TimeoutError(f"{len(self._visits)} connections stand still")
            for descriptor, events in ready:
                self._step(descriptor, events)
        self._outcome.seconds = time.monotonic() - begun
        for sock, _ in held:
            sock.close()
        return self._outcome

    def _open(self) -> None:
        which = self._opened % len(self._names)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{self._storm.source + self._opened % self._storm.sources}", 0))
        sock.connect_ex((HOST, self._port))
        visit = Visit(sock, self._names[which], self._scripts[which], self._outcome)
        self._visits[sock.fileno()] = visit
        self._poll.register(sock.fileno(), visit.events)
        self._opened += 1

    def _step(self, descriptor: int, events: int) -> None:
        visit = self._visits[descriptor]
        before = visit.events
        if visit.step(events):
            del self._visits[descriptor]
        elif visit.events != before:
            self._poll.modify(descriptor, visit.events)


# The defender


@dataclass
class Siege:
    """What a gateway goes through. What it grew by and gained is known at the end.

    grown: bytes that its peak of resident memory grew by. gains: by how much each metric did.
    """

    where: GatewayProcess
    fair: Fair
    grown: int
    gains: dict[str, int]
    _begun: bool = False

    async def attack(self, storm: Storm) -> Outcome:
        """Run a storm in a process of its own; what was measured before it begins does not count."""
        arguments = ("storm", json.dumps(asdict(storm)), "--port", str(self.where.port))
        attacker = await start_python("tests.support.attacks", *arguments)
        try:
            assert attacker.stdout is not None
            assert await attacker.stdout.readline() == b"{}\n"
            if not self._begun:
                self.fair.waits.clear()
            self._begun = True
            output = await attacker.stdout.read()
        finally:
            await kill(attacker)
        fields: dict[str, Any] = json.loads(output)
        ends = {kind: Counter(counts) for kind, counts in fields.pop("ends").items()}
        outcome = Outcome(ends=ends, errors=Counter(fields.pop("errors")), **fields)
        print(storm.kinds, outcome)
        return outcome

    def failures(self) -> int:
        """Handshakes that came to nothing."""
        return sum(count for name, count in self.gains.items() if name.startswith("gateway_handshake_failures"))

    def told(self) -> str:
        """The figures, for people."""
        p50, p99 = (self.fair.quantile(share) * 1e3 for share in (0.5, 0.99))
        return f"p50 {p50:.1f} p99 {p99:.1f} ms of {len(self.fair.waits)}; growth {self.grown >> 10} KiB; {self.gains}"


@asynccontextmanager
async def siege(
    where: GatewayProcess,
    *,
    growth: int | None = None,
    headers: Mapping[str, str] | None = None,
    every: float = 0.004,
) -> AsyncIterator[Siege]:
    """While something goes on, let another peer ask; each answer has to come, and at the end all sockets be back.

    growth: bytes that the resident memory may grow by, None: not looked at. headers: for the other peer's upgrade.
    every: how often it asks.
    """
    with await RawPeer.open(where, headers=headers) as peer:
        await peer.welcome()
        metrics, sockets, low = await scrape(where), where.sockets(), forget_peak(where)
        result = Siege(where, Fair(where.pid), 0, {})
        stop = asyncio.Event()
        asking = asyncio.create_task(_ask(peer, result.fair, every, stop))
        try:
            yield result
        finally:
            stop.set()
            await asking
        result.grown = peak(where) - low
        await sockets_back(where, sockets)
        result.gains = await gains(where, metrics)
    print(result.told())
    assert growth is None or result.grown < growth, result.told()


async def _ask(peer: RawPeer, fair: Fair, every: float, stop: asyncio.Event) -> None:
    while not stop.is_set() or not fair.waits:  # some attacks are over sooner than it asks again
        with fair.wait():
            await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "gateway.ping"})
            reply = await peer.recv_json()
        assert reply == {"jsonrpc": "2.0", "id": 1, "result": None}
        await asyncio.sleep(every)


async def crowd(where: GatewayProcess, under: Siege, tokens: TokensFile, count: int) -> tuple[Outcome, int]:
    """Let PI come so often and stay, and OP meanwhile: in turn with the upgrade and by message. Then PI is revoked.

    Return what became of PI, and how often OP got in after all places but the reserved ones were taken.
    """
    attack = asyncio.create_task(under.attack(Storm("bearer", count=count, at_once=count, token=tokens.of(PI))))
    entries = 0
    try:
        await where.wait_event("handshake.rejected", status=503)
        for entries in range(1, 11):
            with await entered(where, tokens.of(OP) if entries % 2 else None) as peer:
                reply = await authenticate(peer, tokens.of(OP))
                assert reply["result"]["name"] == OP.name
                await peer.leave()
                await ended(where, peer, "client_close", 1000)
    finally:
        tokens.drop(PI)
        where.signal(signal.SIGHUP)
        outcome = await attack
    return outcome, entries


async def crowd_by_hand(count: int) -> None:
    """`crowd`, against a gateway of its own with 1,000 places."""
    with TemporaryDirectory(prefix="gateway-test-") as directory:
        tokens = TokensFile(Path(directory) / "tokens.toml", OP, PI)
        limits = {"max_connections": 1000, "max_http_connections": count + 100}
        async with GatewayProcess({"auth": tokens.auth, "limits": limits}) as where:
            async with siege(where, headers=bearer(tokens.of(OP))) as under:
                outcome, entries = await crowd(where, under, tokens, count)
            print(f"{outcome.all()}; the operator got in {entries} times")
    under.fair.check(under.told())


class ByHand(NamedTuple):
    """What the gateway of an attack by hand is like, and the storm."""

    config: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    hold: int = 0
    at_once: int = 64


BY_HAND: Final = {
    "upgrades": ByHand(UPGRADES, HOLD),
    "kept-alive": ByHand(KEPT_ALIVE, at_once=2000),
    "unread": ByHand(at_once=300),
    "same-node": ByHand(at_once=1),  # one node, not one that replaces another
    "flapping-node": ByHand(at_once=1),
}


async def by_hand(kind: str, count: int) -> None:
    """Let one address come so often, and tell the figures. NoticedError where another peer has noticed."""
    how = BY_HAND.get(kind, ByHand())
    storm = Storm(kind, count=count, at_once=how.at_once, hold=how.hold)
    async with GatewayProcess(how.config) as where:
        used = where.cpu()
        async with siege(where) as under:
            outcome = await under.attack(storm)
        used = where.cpu() - used
    # Only now, because the last lines tell what was left out.
    told = len(where.lines), sum(line.get("leftOut", 0) for line in where.lines)
    print(f"{outcome.count / outcome.seconds:.0f}/s, processor {used:.1f} s; lines {told[0]}, left out {told[1]}")
    under.fair.check(under.told())


def main() -> int:
    """Be the attacker, or run one attack by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.attacks")
    parser.add_argument(
        "kind", choices=[*KINDS, *INSIDERS, *PRESSURE, *GROWTH, "crowd", "storm"], help="storm: for the tests"
    )
    parser.add_argument("storm", nargs="?", help="a Storm as JSON")
    parser.add_argument("--port", type=int, help="where the storm goes")
    parser.add_argument("--count", type=int, default=100_000, help="how many (default: %(default)s)")
    options = parser.parse_args()
    if options.kind == "crowd":
        asyncio.run(crowd_by_hand(options.count))
    elif options.kind == "storm":
        print(json.dumps(vars(Attacker(Storm(**json.loads(options.storm)), options.port).run())))
    elif options.kind in PRESSURE:
        print(asyncio.run(pressure(options.kind, options.count)))
    elif options.kind in GROWTH:
        print(asyncio.run(growth(options.kind, options.count, follow=FOLLOW)))
    elif options.kind in INSIDERS:
        print(asyncio.run(INSIDERS[options.kind](options.count)))
    else:
        asyncio.run(by_hand(options.kind, options.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
