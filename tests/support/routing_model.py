"""For tests/test_routing_model.py: what ought to happen, and an event loop and connections that are driven by hand."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, cast

from gateway.connections.connection import Connection
from gateway.rpc.calls import FIRST_ID
from gateway.websocket.reader import Reader
from tests.support.peers import Opcode, frame

MAX_LINKS: Final = 6
FULL: Final = 3 << 20
"""Bytes that wait for a peer that does not read: more than half of `limits.max_outbox_bytes`, and less than all."""
PATIENCE: Final = 5.0
"""The default of `limits.outbox_timeout`."""
MAX_IN_FLIGHT: Final = 4
MAX_NODE_IN_FLIGHT: Final = 3
CALL_TIMEOUT: Final = 30.0
DRAIN_TIMEOUT: Final = 10.0
CONFIGURATION: Final = {
    "limits": {"max_in_flight": MAX_IN_FLIGHT, "max_node_in_flight": MAX_NODE_IN_FLIGHT, "call_timeout": CALL_TIMEOUT},
    "server": {"drain_timeout": DRAIN_TIMEOUT, "close_timeout": 2.0, "receive_timeout": 90_000.0},
    "heartbeat": {"interval": 80_000.0, "timeout": 1.0},
}

NAMES: Final = ("attic", "cellar")
METHODS: Final = ("m.one", "m.two", "m.three")
IDS: Final = ("1", "2", '"x"', "-7", "null", "18446744073709551616")
MEETS: Final = {
    "t.a": ("t.a",),
    "t.*": ("t.a", "t.b"),
    ">": ("t.a", "t.b"),
    "gateway.node.>": ("gateway.node.online", "gateway.node.offline", "gateway.node.held", "gateway.node.back"),
}
ERRORS: Final = {
    -32007: "conflict",
    -32004: "not_found",
    -32008: "timeout",
    -32009: "overloaded",
    -32010: "node_lost",
    -32011: "draining",
    -32601: "method_not_found",
    -32602: "invalid_params",
    -32800: "cancelled",
}
NEVER_SEEN: Final = "not_delivered"
FULL_UP: Final = (-32009, NEVER_SEEN)


class HandLoop(asyncio.SelectorEventLoop):
    """An event loop that turns, and whose time passes, when the test says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """One pass: what is ready, and the timers that are due."""
        self.call_soon(self.stop)
        self.run_forever()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the code within believe that it is called by this loop: in the middle of a pass."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Wire:
    """One connection below the frames: the transport and aiohttp's handler of it. What is written is there at once."""

    _timeout_ceil_threshold = float("inf")
    parser: Reader

    def __init__(self, loop: HandLoop, polite: bool) -> None:
        self.transport = self
        self.lost = False
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._loop = loop
        self._polite = polite
        self._closing = False
        self._written = bytearray()

    def set_parser(self, parser: Reader) -> None:
        self.parser = parser

    def keep_alive(self, _on: bool) -> None: ...

    def set_protocol(self, protocol: object) -> None: ...

    def write(self, data: bytes) -> None:
        self._written += data

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, _high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def _drain_helper(self) -> None:
        if self.writing_paused:
            self._drained = self._loop.create_future()
            await self._drained

    def get_write_buffer_size(self) -> int:
        return FULL * self.writing_paused

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.lose)

    abort = close

    def lose(self) -> None:
        """The transport is gone, as aiohttp hears it."""
        self._closing = True
        if not self.lost:
            self.lost = True
            self.parser.feed_eof()
            self.resume_writing()

    def feed(self, payload: str | bytes, opcode: Opcode = Opcode.TEXT) -> None:
        """The peer sends a frame."""
        with self._loop.inside():
            self.parser.feed_data(frame(opcode, payload.encode() if isinstance(payload, str) else payload))

    def read(self) -> Iterator[str]:
        """What the peer gets, each frame in its `plain` form. A polite peer answers a close frame."""
        while self._written:
            if self._written.startswith(b"HTTP"):
                del self._written[: self._written.index(b"\r\n\r\n") + 4]
                continue
            opcode, length, begin = self._written[0] & 15, self._written[1], 2
            if length == 126:
                length, begin = int.from_bytes(self._written[2:4], "big"), 4
            payload = bytes(self._written[begin : begin + length])
            del self._written[: begin + length]
            if opcode == Opcode.CLOSE:
                yield f"close {int.from_bytes(payload[:2], 'big')}"
                if self._polite and not self._closing:
                    self.feed(payload[:2], Opcode.CLOSE)
            else:
                yield plain(json.loads(payload))


def plain(message: Any) -> str:
    """A message without what no model can know, as a text to compare."""
    if isinstance(message, list):
        return json.dumps(sorted(map(plain, message)))
    if message.get("method") in ("gateway.welcome", "gateway.draining"):
        return cast(str, message["method"])
    error = message.get("error")
    if error is not None and "data" in error:
        known = {"code": error["code"], "name": error["data"]["code"], "outcome": error["data"].get("outcome")}
        message = {**message, "error": known}
    return json.dumps(_timeless(message), sort_keys=True)


def _timeless(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _timeless(member) for key, member in value.items() if key not in ("epoch", "time")}


class Ask(NamedTuple):
    """A request that is to be routed: by method, or to a node; quiet: as a notification."""

    id: str
    method: str
    node: str | None
    timeout: int | None
    quiet: bool

    def text(self, tag: int) -> str:
        params: dict[str, Any] = {"w": tag}
        method = self.method
        if self.node is not None:
            method, params = "node.call", {"node": self.node, "method": method, "params": params}
            if self.timeout is not None:
                params["timeoutMs"] = self.timeout
        identity = "" if self.quiet else f'"id":{self.id},'
        return f'{{"jsonrpc":"2.0",{identity}"method":"{method}","params":{json.dumps(params)}}}'


@dataclass(eq=False)
class Link:
    """What the model knows of one connection."""

    connection: Connection
    wire: Wire
    at: int = 0
    """The number of its gateway."""
    open: bool = True
    released: bool = False
    abrupt: bool = False
    """It was cut by the peer: what was on its way may be lost."""
    leaving: bool = False
    name: str | None = None
    context: bool = False
    methods: dict[str, None] = field(default_factory=dict)
    requests: dict[str, "Flight | None"] = field(default_factory=dict)
    """None stands for one whose reply waits within its batch."""
    flights: dict[int, "Flight"] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    expected: list[tuple[int, list[str]]] = field(default_factory=list)
    """By step: within one the order is free."""
    got: list[str] = field(default_factory=list)
    closed: bool = False
    full: bool = False
    """It does not read, and much waits for it."""
    held_up: dict["Link", None] = field(default_factory=dict)
    """Those that it holds up."""
    held_by: dict["Link", None] = field(default_factory=dict)
    """Those that hold it up."""
    patience: float | None = None
    """Until when it may hold others up; later ones go on, until it has read."""
    deaf: int = 0
    """How many have held it up, until it is read again, a pass later."""
    reports: dict["Flight", str] = field(default_factory=dict)
    """The latest report on each of its calls, if that waits until it reads."""


@dataclass(eq=False)
class Replies:
    """The replies to one batch."""

    left: int = 1
    answered: list[str] = field(default_factory=list)
    there: list[dict[str, Any]] = field(default_factory=list)


class Flight(NamedTuple):
    """A routed call that is not answered yet."""

    identity: int
    caller: Link
    request: str
    node: Link
    due: float
    batch: Replies | None


def reply(identity: str, code: int, outcome: str | None = None) -> dict[str, Any]:
    data = {"code": ERRORS[code]} | ({} if outcome is None else {"outcome": outcome})
    return {"jsonrpc": "2.0", "id": json.loads(identity), "error": {"code": code, "data": data}}


class Model:
    """What ought to be. Every change of it is told to `say`: which peer has to get what.

    apart: callers are at one gateway, number 0, and nodes at another. Those nodes read, always.
    """

    def __init__(self, now: Callable[[], float], apart: bool = False) -> None:
        self._now = now
        self._apart = apart
        self.step = 0
        self.links: list[Link] = []
        self.nodes: dict[str, Link] = {}
        self.topics: dict[tuple[int, str], int] = {}
        """By gateway and name: each of them has events of its own."""
        self.soon: list[tuple[int, Callable[[], None]]] = []
        """What comes in the next pass, and at which gateway."""
        self.refused: list[Flight] = []
        """What the node's gateway refuses: it is in flight until the mail has gone there and back."""
        self.issued = FIRST_ID - 1
        self.tags = 0
        self.late = 0
        self.dropped: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.draining: float | None = None

    def say(self, link: Link, message: Any) -> None:
        if not link.open:
            return
        if not link.expected or link.expected[-1][0] != self.step:
            link.expected.append((self.step, []))
        link.expected[-1][1].append(message if isinstance(message, str) else plain(message))

    def turn(self) -> None:
        """One pass of the event loop: first what was put off, then the deadlines, then what other gateways say."""
        todo, self.soon = self.soon, []
        for at, act in todo:
            if at == 0:
                act()
        flights = [flight for link in self.links for flight in link.flights.values()]
        for flight in sorted(flights, key=lambda flight: flight.due):
            if flight.due < self._now():
                self.fail(flight, -32008)
        for link in self.links:
            if link.patience is not None and link.patience <= self._now():
                self.let_go_on(link)
        for at, act in todo:
            if at > 0:
                act()

    # Pressure

    def hold_up(self, caller: Link, node: Link) -> None:
        """The result of a call goes to one that does not read."""
        if not caller.full or caller is node or (caller.patience is not None and not caller.held_up):
            return
        if caller.patience is None:
            caller.patience = self._now() + PATIENCE
        if node not in caller.held_up:
            caller.held_up[node] = node.held_by[caller] = None
            node.deaf += 1

    def let_go_on(self, caller: Link) -> None:
        """Those that it holds up are read again: in the next pass."""
        held_up, caller.held_up = caller.held_up, {}
        for node in held_up:
            del node.held_by[caller]
        self.soon += [(node.at, partial(self._read_again, node)) for node in held_up]

    def waits(self, link: Link) -> int:
        """How many hold a node up: all callers at another gateway are one."""
        return min(1, len(link.held_by)) if self._apart else len(link.held_by)

    def _read_again(self, node: Link) -> None:
        node.deaf -= 1

    def reported(self, flight: "Flight", report: str) -> None:
        """A node reports on a call."""
        caller = flight.caller
        if not caller.full:
            self.say(caller, report)
            return
        self.dropped["progress"] += flight in caller.reports
        caller.reports[flight] = report

    def reads_on(self, link: Link) -> None:
        """It has read all, and gets what has waited for that."""
        link.full, link.patience = False, None
        self.let_go_on(link)
        for report in link.reports.values():
            self.say(link, report)
        link.reports.clear()

    # Calls

    def ask(self, link: Link, ask: Ask, tag: int, batch: Replies | None) -> None:
        found = self._foretell(link, ask)
        if isinstance(found, list):
            self._start(link, ask, tag, found, batch)
            return
        self.outcomes[ERRORS[found[0]]] += 1
        if ask.quiet:
            self.dropped["notification"] += found is FULL_UP
        elif batch is None:
            self.say(link, reply(ask.id, *found))
        else:
            batch.there.append(reply(ask.id, *found))

    def _foretell(self, link: Link, ask: Ask) -> tuple[int, str | None] | list[Link]:
        """The refusal, or the nodes to one of which it may go."""
        if self.draining is not None:
            return -32011, NEVER_SEEN
        if not ask.quiet and ask.id in link.requests:
            return -32007, None
        if ask.node is None:
            serving = [node for node in self.nodes.values() if ask.method in node.methods]
        elif ask.timeout is not None and ask.timeout > 600_000:
            return -32602, None
        elif ask.node not in self.nodes:
            return -32004, NEVER_SEEN
        else:
            serving = [node for node in (self.nodes[ask.node],) if ask.method in node.methods]
        if not serving:
            return -32601, NEVER_SEEN
        if len(link.requests) >= MAX_IN_FLIGHT:
            return -32009, NEVER_SEEN
        return self._choose([node for node in serving if not node.full], ask)

    def _choose(self, serving: list[Link], ask: Ask) -> tuple[int, str | None] | list[Link]:
        if not serving:
            return FULL_UP
        fewest = min(len(node.flights) for node in serving)
        if fewest >= MAX_NODE_IN_FLIGHT and not ask.quiet:
            return -32009, NEVER_SEEN
        return [node for node in serving if len(node.flights) == fewest]

    def _start(self, link: Link, ask: Ask, tag: int, nodes: list[Link], batch: Replies | None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": ask.method, "params": {"w": tag}}
        timeout = CALL_TIMEOUT if ask.timeout is None or ask.node is None else ask.timeout / 1000
        (node,) = nodes[:1]
        if ask.quiet:
            self.outcomes["ok"] += 1
            self.dropped["notification"] += self._apart and not node.open
        else:
            self.issued += 1  # ids are numbers in the order of the calls; which of the equals has it is the gateway's
            has_it = [node for node in nodes if b"%d" % self.issued in node.connection.calls]
            ending = [node for node in nodes if self._apart and not node.open]
            assert has_it or ending, f"call {self.issued} is not where the fewest are in flight"
            node = (has_it or ending)[0]
            flight = Flight(self.issued, link, ask.id, node, self._now() + timeout, batch)
            link.requests[ask.id] = node.flights[self.issued] = flight
            message["id"] = self.issued
            if not has_it:
                self.refused.append(flight)
            if batch is not None:
                batch.left += 1
        if node.context:
            message["context"] = {"caller": "anonymous", "timeLeftMs": int(timeout * 1000)}
        self.say(node, message)

    def refuse(self) -> None:
        """Calls to a node that is on its way out come back as what they are: not delivered."""
        refused, self.refused = self.refused, []
        for flight in refused:
            self.outcomes["node_lost"] += 1
            self.finish(flight, reply(flight.request, -32010, NEVER_SEEN))

    def answered(self, link: Link, identity: int, answer: dict[str, Any]) -> None:
        flight = link.flights.get(identity)
        if flight is None:
            self.late += 1
            return
        self.outcomes["ok" if "result" in answer else "error"] += 1
        self.finish(flight, {"jsonrpc": "2.0", "id": json.loads(flight.request), **answer})
        if flight.batch is None:
            self.hold_up(flight.caller, link)

    def fail(self, flight: Flight, code: int, end: str = "") -> None:
        self.outcomes[end or ERRORS[code]] += 1
        if code != -32010:
            self.say(flight.node, {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": flight.identity}})
        self.finish(flight, reply(flight.request, code, "unknown"))

    def finish(self, flight: Flight, answer: dict[str, Any]) -> None:
        del flight.caller.requests[flight.request], flight.node.flights[flight.identity]
        self.dropped["progress"] += flight.caller.reports.pop(flight, None) is not None
        if flight.batch is None:
            self.say(flight.caller, answer)
        else:
            flight.caller.requests[flight.request] = None
            flight.batch.answered.append(flight.request)
            self.done(flight.caller, flight.batch, answer)
        for link in (flight.caller, flight.node):
            self.idle(link)

    def done(self, link: Link, batch: Replies, answer: dict[str, Any] | None) -> None:
        if answer is not None:
            batch.there.append(answer)
        batch.left -= 1
        if not batch.left:
            for request in batch.answered:
                del link.requests[request]
            if batch.there:
                self.say(link, batch.there)
            self.idle(link)

    # Connections and nodes

    def idle(self, link: Link) -> None:
        if link.leaving and not link.requests and not link.flights:
            self.end(link, 1001)

    def end(self, link: Link, code: int | None) -> None:
        """It is over, with a close frame or without; what it held is released in the next pass."""
        if not link.open:
            return
        if code is not None:
            self.say(link, f"close {code}")
        link.open = False
        link.abrupt |= link.full  # if it does not read on in time, it is cut
        self.soon.append((link.at, lambda: self.release(link)))

    def release(self, link: Link) -> None:
        if link.released:
            return
        link.released = True
        link.patience = None
        self.let_go_on(link)
        self.unregister(link, list(link.methods))
        for flight in [flight for flight in link.requests.values() if flight is not None]:
            self.fail(flight, -32800, "caller_lost")
        for flight in list(link.flights.values()):
            self.fail(flight, -32010)
        link.patterns.clear()

    def register(self, link: Link, name: str, methods: list[str], context: bool) -> None:
        if link.name not in (None, name):
            self.say(link, reply("0", -32007))
            return
        older = self.nodes.get(name)
        replaced = older if older is not link else None
        before = [] if older is None else list(older.methods)
        if replaced is not None:
            replaced.name = None
            replaced.methods.clear()
        self.nodes[name] = link
        link.name, link.context = name, context
        link.methods.update(dict.fromkeys(methods))
        added = [method for method in link.methods if method not in before]
        removed = [method for method in before if method not in link.methods]
        if added or replaced is not None:
            self._online(link, replaced, added, removed)
        if replaced is not None:
            self.end(replaced, 4502)
        self.say(link, {"jsonrpc": "2.0", "id": 0, "result": {"name": name, "methods": list(link.methods)}})

    def _online(self, link: Link, replaced: Link | None, added: list[str], removed: list[str]) -> None:
        news: dict[str, Any] = {"connId": link.connection.conn_id, "node": link.name, "serves": len(link.methods)}
        news |= {"added": added, "removed": removed, "changed": []}
        if replaced is not None:
            news["replaced"] = replaced.connection.conn_id
        self.publish(link.at, "gateway.node.online", news)

    def unregister(self, link: Link, methods: list[str]) -> None:
        gone = [method for method in dict.fromkeys(methods) if method in link.methods]
        for method in gone:
            del link.methods[method]
        if not gone:
            return
        if link.methods:
            self._online(link, None, [], gone)
            return
        assert link.name is not None
        del self.nodes[link.name]
        name, link.name = link.name, None
        self.publish(link.at, "gateway.node.offline", {"connId": link.connection.conn_id, "node": name})

    # Events

    def publish(self, at: int, topic: str, data: Any) -> int:
        """Publish at a gateway. Returns the offset."""
        if topic.startswith("gateway.") and (at, topic) not in self.topics:
            return 0
        offset = self.topics[at, topic] = self.topics.get((at, topic), 0) + 1
        params = {"topic": topic, "offset": offset, "data": data}
        for link in self.links:
            if link.at == at and any(topic in MEETS[pattern] for pattern in link.patterns):
                self.say(link, {"jsonrpc": "2.0", "method": "event.message", "params": params})
        return offset

    def subscribe(self, link: Link, pattern: str) -> None:
        if pattern.startswith("gateway."):
            for topic in MEETS[pattern]:
                self.topics.setdefault((link.at, topic), 0)
        link.patterns[pattern] = None
        there = {topic: self.topics[link.at, topic] for topic in MEETS[pattern] if (link.at, topic) in self.topics} or {
            topic: 0 for topic in MEETS[pattern] if topic == pattern
        }
        met = {topic: {"offset": offset} for topic, offset in there.items()}
        self.say(link, {"jsonrpc": "2.0", "id": 0, "result": {"topics": met}})
