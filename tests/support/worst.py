"""How long the worst legal messages hold the event loop: `python -m tests.support.worst [--full] [WORDS…]`.

A gateway in a process of its own has its population of connections, topics, nodes and patterns. Each message of
`worst_cases.WORST` is sent to it alone, as a notification, and as a batch of as many as may be. For each the table says
the longest time that the loop was held, and the p99 of another peer's `gateway.ping` meanwhile, both in milliseconds.
The exit status is 1 if one of them was over its bound three times in a row.
"""

import argparse
import asyncio
import json
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from tests.bench.client import Target, ask, open_websocket
from tests.support.credentials import Holder, KeySet, bearer, signed
from tests.support.fair import OTHERS, Fair
from tests.support.patience import WAIT
from tests.support.peers import Opcode, PeerClosed, RawPeer
from tests.support.process import ROOT, GatewayProcess
from tests.support.worst_cases import ALONE, DEEP, EVERYONE, SCOPES, WORST, Maker, Message, deep_patterns, encoded

HELD: Final = 0.010
"""Seconds that one message may hold the event loop, at a time."""
TRIES: Final = 3
BATCH: Final = 100
SERVING: Final = ("serve:>", "share:>", "subscribe:>")
"""The scopes of the nodes, which all serve the same."""
FORMS: Final = ("request", "notification", "batch")
CALL_TIMEOUT: Final = 8.0
"""Seconds that a call of a batch may take whose node never answers."""
MESSAGE_BYTES: Final = 1 << 20
EVERY: Final = 0.001
"""Seconds between two pings of the other peer."""
TOO_LATE: Final = -32008
"""The error that may answer everything that goes in steps, on a machine with other work."""
PATIENCE: Final = 20
"""How often something that is only prepared may be late."""
BUSY: Final = (-32007, TOO_LATE, -32009)
"""The errors that may answer an element of a batch: another one has taken the name, it is late, or too many wait."""
LATE: Final = 300.0
"""Seconds in which everything of a batch has come: each of its elements may take `limits.call_timeout`."""


class Population(NamedTuple):
    """What there is while the messages are measured. Each of ``listeners`` has a thousand patterns."""

    connections: int
    topics: int
    nodes: int
    methods: int
    listeners: int
    old: int
    """How many messages become too old at once."""
    age: float
    """Seconds that messages are kept."""


FULL: Final = Population(10_000, 10_000, 1_000, 20, 30, 200_000, 5.0)
SMALL: Final = Population(60, 50, 10, 4, 2, 500, 2.0)


class Reading(NamedTuple):
    """What one message cost: how long it held the loop, and the p99 of another peer's ping meanwhile, in seconds."""

    held: float
    p99: float

    @property
    def over(self) -> bool:
        """Whether one of the two is over its bound."""
        return self.held > HELD or self.p99 > OTHERS


async def _nothing() -> None:
    """Do nothing."""


class Stage:
    """A gateway with its population, and the peers of the message that is measured now."""

    def __init__(self, where: GatewayProcess, control: RawPeer) -> None:
        self.where = where
        self._control = control
        self._peers: list[tuple[RawPeer, str]] = []
        self._crowd: list[Any] = []
        self._sources = 0

    async def fill(self, population: Population) -> None:
        """Let everything be there. Once."""
        self.population = population
        await asyncio.to_thread(self._connect, population)
        await self.refill()
        await self.leave()

    def _connect(self, population: Population) -> None:
        crowd = signed(Holder("crowd", "ui"))
        kinds = [Holder(f"node{number}", "node", SERVING) for number in range(population.nodes)]
        tokens = [*map(signed, kinds), *[crowd] * (population.connections - population.nodes)]
        target = Target(self.where.port, self.where.pid, True, tuple(f"Authorization: Bearer {t}" for t in tokens))
        methods = [{"name": f"m{number:03}"} for number in range(population.methods)]
        every = {"topics": [EVERYONE]}
        for number in range(population.connections):
            sock, _ = open_websocket(target, number)
            self._crowd.append(sock)
            _result(ask(sock, _request("event.subscribe", every)))
            if number < population.nodes:
                _result(ask(sock, _request("node.register", {"methods": methods})))
            elif number < population.nodes + population.listeners:
                _result(ask(sock, _request("event.subscribe", {"topics": _patterns(number - population.nodes)})))

    async def _publish(self, peer: RawPeer, topics: Iterable[str], data: object = None) -> list[Any]:
        """Publish a message of each of these topics, in one batch, and return the replies."""
        messages = [
            {"jsonrpc": "2.0", "id": topic, "method": "event.publish", "params": {"topic": topic, "data": data}}
            for topic in topics
        ]
        await peer.send_json(messages)
        replies: list[Any] = await peer.recv_json()
        for reply in replies:
            assert "result" in reply, reply
        return replies

    def disperse(self) -> None:
        """Close the sockets of the population."""
        for sock in self._crowd:
            sock.close()

    # For the makers

    async def enter(self, name: str = "actor", scopes: Iterable[str] = SCOPES) -> RawPeer:
        """Open a connection, which is closed after the message."""
        self._sources += 1  # wrong credentials make an address wait
        source = f"127.1.{self._sources // 250 % 250}.{self._sources % 250 + 1}"
        peer = await RawPeer.open(self.where, source=source)
        self._peers.append((peer, (await peer.welcome())["connId"]))
        await self.ask(peer, "gateway.authenticate", {"token": signed(Holder(name, "operator", tuple(scopes)))})
        return peer

    async def ask(self, peer: RawPeer, method: str, params: object = None) -> Any:
        """Call a method that must succeed, and return its result. On a machine with other work it may be late first."""
        for _ in range(PATIENCE):
            await peer.send_frame(Opcode.TEXT, _request(method, params))
            reply = (await peer.recv_frame()).payload
            if json.loads(reply).get("error", {}).get("code") != TOO_LATE:
                break
        return _result(reply)

    def conn_id(self, peer: RawPeer) -> str:
        """Return a peer's connId."""
        return next(conn_id for known, conn_id in self._peers if known is peer)

    async def kept(self) -> dict[str, str]:
        """Publish as many messages as are kept of the topics under ``kept``, and return their epochs."""
        peer = await self.enter("publisher")
        topics = [f"kept.{number}" for number in range(min(100, self.population.topics))]
        for _ in range(100):
            replies = await self._publish(peer, topics)
        return {reply["id"]: reply["result"]["epoch"] for reply in replies}

    async def grown_old(self) -> None:
        """Publish very many messages, and let them become too old."""
        peer = await self.enter("publisher")
        topics = [f"{DEEP}.t{number}" for number in range(min(self.population.topics, 2000))]
        begun = time.monotonic()
        for number in range(self.population.old // BATCH):
            at = number * BATCH % len(topics)
            await self._publish(peer, topics[at : at + BATCH])
        age = self.population.age
        await asyncio.sleep(max(0.0, age - time.monotonic() + begun) + age)

    async def refill(self) -> None:
        """Publish on each of the topics again, so that another topic is the first to make room."""
        peer = await self.enter("publisher")
        topics = [f"{DEEP}.t{number}" for number in range(self.population.topics)]
        for begin in range(0, len(topics), BATCH):
            await self._publish(peer, topics[begin : begin + BATCH])

    # The measuring

    async def run(self, make: Maker, form: str, begin: Callable[[], Awaitable[object]] = _nothing) -> float:
        """Prepare one message, send it, check what answers it, and return for how long it held the loop, at most.

        ``begin`` is called when it is prepared.
        """
        try:
            message = await make(self)
            await begin()
            await self.ask(self._control, "watched.start")
            if message.replies is None:
                conn_id = self.conn_id(message.peer)
                message.peer.rst()
                await self._gone(conn_id)
            else:
                data, replies = _formed(message, form)
                await (message.sender or message.peer).send_frame(Opcode.TEXT, data, timeout=WAIT)
                try:
                    for _ in range(replies):
                        await _checked(message, form)
                    await self._settled(message)
                except PeerClosed:  # the reply to a batch may be more than an outbox holds
                    assert form == "batch"
            held: float = await self.ask(self._control, "watched.longest")
            return held
        finally:
            await self.leave()

    async def _gone(self, conn_id: str) -> None:
        while True:
            request = _request("connection.get", {"connId": conn_id})
            await self._control.send_frame(Opcode.TEXT, request)
            if "error" in await self._control.recv_json():
                return
            await asyncio.sleep(0.01)

    async def _settled(self, message: Message) -> None:
        """Wait until nothing of the message is in flight any more. Whatever else comes for it is no reply."""
        for peer in [message.peer] if message.sender is None else [message.peer, message.sender]:
            await peer.send_frame(Opcode.TEXT, _request("watched.settled", ident="settled"))
            while decoded((await peer.recv_frame(LATE)).payload).get("id") != "settled":
                pass

    async def leave(self) -> None:
        """Close the peers of the last message, and wait until they are gone."""
        peers, self._peers = self._peers, []
        for peer, conn_id in peers:
            peer.close()
            await self._gone(conn_id)


def decoded(payload: bytes) -> Any:
    """Decode JSON, with numbers of any length."""
    return json.loads(payload, parse_int=lambda digits: int(digits[:100]))


def _request(method: str, params: object = None, ident: object = 1) -> bytes:
    message: dict[str, object] = {"jsonrpc": "2.0", "id": ident, "method": method}
    return encoded(message if params is None else message | {"params": params})


def _result(payload: bytes) -> Any:
    reply = decoded(payload)
    assert "result" in reply, reply
    return reply["result"]


def _patterns(listener: int) -> list[str]:
    """Return the patterns of one listener; the first hundred meet every topic, each in its own way."""
    return deep_patterns(999, last=("*", "new")[listener % 2])


def _formed(message: Message, form: str) -> tuple[bytes, int]:
    """Return what is sent in this form, and how many texts answer it."""
    if message.raw:
        return message.raw, message.replies or 0
    head = b'{"jsonrpc":"2.0","method":"%b"' % message.method.encode()
    tail = (b',"params":%b}' % message.params) if message.params else b"}"
    if form == "notification":
        return head + tail, 0
    if form == "request":
        return head + b',"id":1' + tail, 1
    count = max(1, min(BATCH, (MESSAGE_BYTES - 2) // (len(head + tail) + 12)))
    return b"[%b]" % b",".join(head + b',"id":%d' % number + tail for number in range(count)), 1


async def _checked(message: Message, form: str) -> None:
    """Read one answer, or a batch of them, and check that they are legal, and as they should be."""
    got = await message.peer.recv_frame(LATE)
    assert (got.fin, got.opcode) == (True, Opcode.TEXT), got
    answer = decoded(got.payload)
    while answer_of_event(answer):
        answer = decoded((await message.peer.recv_frame(LATE)).payload)
    codes = (*message.codes, *BUSY) if form == "batch" else (*message.codes, TOO_LATE)
    for reply in answer if isinstance(answer, list) else [answer]:
        assert reply["jsonrpc"] == "2.0", reply
        assert "id" in reply or "method" in reply, reply
        if "error" in reply:
            assert reply["error"]["code"] in codes, (message.method, str(reply)[:500])
            assert "result" not in reply
            assert isinstance(reply["error"]["message"], str)


def answer_of_event(answer: Any) -> bool:
    """Whether this is an event, and so no answer."""
    return isinstance(answer, dict) and answer.get("method") == "event.message"


@asynccontextmanager
async def staged(population: Population) -> AsyncIterator[Stage]:
    """Start a gateway with this population."""
    with TemporaryDirectory(prefix="gateway-test-") as directory:
        auth = KeySet(Path(directory) / "keys.json", "ed").auth
        config = {
            "auth": auth,
            "heartbeat": {"interval": 1800.0},
            "server": {"receive_timeout": 3600.0},
            "limits": {
                "max_connections": population.connections + 100,
                "max_connections_per_principal": 0,
                "max_batch": BATCH,
                "call_timeout": CALL_TIMEOUT,
            },
            "events": {"max_topics": population.topics, "history_age": population.age},
            "methods": {"modules": ["tests.support.watched"]},
        }
        environ = {"PYTHONPATH": str(ROOT)}
        async with GatewayProcess(config, environ=environ, stop_timeout=120.0) as where:
            control = await RawPeer.open(where, headers=bearer(signed(Holder("control", "operator"))))
            with control:
                await control.welcome()
                stage = Stage(where, control)
                await stage.fill(population)
                try:
                    yield stage
                finally:
                    stage.disperse()


class Other:
    """Another peer, in a process of its own, that asks for `gateway.ping` all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, where: GatewayProcess) -> "Other":
        """Let it begin."""
        pipe = asyncio.subprocess.PIPE
        token = signed(Holder("other", "ui"))
        command = (sys.executable, "-m", "tests.support.worst", "--ping", str(where.port), str(where.pid), token)
        return cls(await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe))

    async def p99(self) -> float:
        """Return the p99 since this was last asked, in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"?")
        return float(await self._process.stdout.readline())

    async def stop(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


def ping(port: int, pid: int, token: str) -> None:
    """Be the other peer: each byte of standard input is answered with the p99 since the last one."""
    sock, _ = open_websocket(Target(port, pid, True, (f"Authorization: Bearer {token}",)), 0)
    fair = Fair(pid)
    while True:
        with fair.wait():
            ask(sock, _request("gateway.ping"))
        if select.select([sys.stdin], [], [], EVERY)[0]:
            if not os.read(sys.stdin.fileno(), 1):
                return
            print(fair.quantile(0.99), flush=True)
            fair.waits.clear()


async def measured(population: Population, words: Sequence[str]) -> bool:
    """Measure the messages whose method or description has one of these words, and print the table.

    Returns whether all is well.
    """
    well = True
    async with staged(population) as stage:
        other = await Other.start(stage.where)
        await other.p99()
        print("    held      p99 (ms)")
        for name, about, make, form in entries(words):
            readings: list[Reading] = []
            while len(readings) < TRIES and (not readings or readings[-1].over):
                held = await stage.run(make, form, other.p99)
                readings.append(Reading(held, await other.p99()))
            best, over = min(readings), readings[-1].over
            well = well and not over
            figures = f"{best.held * 1e3:8.2f} {best.p99 * 1e3:8.2f} {'OVER' if over else '    '}"
            print(figures, f"{name or 'no method'}, {form}: {about}", flush=True)
        await other.stop()
    return well


def entries(words: Sequence[str] = ()) -> Iterator[tuple[str, str, Maker, str]]:
    """Yield the method, the words about it, the maker and the form of each entry of the table."""
    for name, makers in WORST.items():
        for about, make in makers.items():
            if not words or any(word in f"{name}: {about}" for word in words):
                for form in FORMS if name and about not in ALONE else FORMS[:1]:
                    yield name, about, make, form


def main() -> int:
    """Measure, or be the other peer."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.worst", description=__doc__)
    parser.add_argument("words", nargs="*", help="only what has one of these in its method or description")
    parser.add_argument("--full", action="store_true", help="the full population (default: a small one)")
    parser.add_argument("--ping", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ping:
        ping(int(options.ping[0]), int(options.ping[1]), options.ping[2])
        return 0
    return 0 if asyncio.run(measured(FULL if options.full else SMALL, options.words)) else 1


if __name__ == "__main__":
    sys.exit(main())
