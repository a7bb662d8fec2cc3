"""The gateway against a model: whatever peers do, in any order, each request is answered once, and as it should be.

A second time callers are at one gateway and nodes at another, and the same comes of it.

The gateway is the real one, from the frame parser to the outbox; sockets and the clock are driven by hand, so that what
happens within one pass of the event loop is tried as well. `python -m tests.nodes.test_routing_model 5000` tries more,
and with `apart` behind it two gateways.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import pytest
from aiohttp import web
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.app import CONFIG, CONNECTIONS, GATEWAY, STATUS, create_app
from gateway.config import parse
from gateway.connections.connection import Connection
from tests.support.chances import chances
from tests.support.cluster import Exchange, Parts
from tests.support.ears import at_once
from tests.support.peers import Opcode
from tests.support.routing_model import (
    CALL_TIMEOUT,
    CONFIGURATION,
    DRAIN_TIMEOUT,
    IDS,
    MAX_LINKS,
    MEETS,
    METHODS,
    NAMES,
    Ask,
    HandLoop,
    Link,
    Model,
    Replies,
    Wire,
    plain,
)

EXAMPLES: Final = 120
STEPS: Final = 60
SETTLED: Final = 8
"""Passes after which nothing is on its way any more."""

ASKS: Final = st.builds(
    Ask,
    id=st.sampled_from(IDS),
    method=st.sampled_from(METHODS[:2] * 4 + METHODS[2:]),
    node=st.sampled_from((None,) * 6 + NAMES * 3 + ("nobody",)),
    timeout=st.sampled_from((None, 250, 1000, 1000, 1000, 5000, 5000, 600_001)),
    quiet=st.just(False),
)
NOTICES: Final = st.builds(
    Ask,
    id=st.just(""),
    method=st.sampled_from(METHODS),
    node=st.sampled_from(NAMES),
    timeout=st.none(),
    quiet=st.just(True),
)
MANY_ASKS: Final = st.one_of(ASKS, ASKS, ASKS, NOTICES)
SERVES: Final = st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True)
PASSES: Final = st.sampled_from((0, 0, 1, 2, SETTLED))
PICK: Final = st.integers(0, MAX_LINKS - 1)
ANSWERS: Final = st.sampled_from(({"result": None}, {"result": {"w": [1]}}, {"error": {"code": 7, "message": "own"}}))
OPENING_HEADERS: Final = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


Rule = TypeVar("Rule", bound=Callable[..., None])


def some(links: "Callable[[Routing], list[Link]]") -> Callable[[Rule], Rule]:
    """A precondition: there is one of these."""
    return precondition(lambda self: bool(links(self)))


def present(machine: "Routing") -> list[Link]:
    """Those who can still send, and are read, heard or not."""
    return [link for link in machine.model.links if not link.wire.is_closing() and not link.full and not link.deaf]


def asking(machine: "Routing") -> list[Link]:
    """Those of these that call: at the gateway of the callers."""
    return [link for link in present(machine) if link.at == 0]


def serving(machine: "Routing") -> list[Link]:
    """Those of these that may be nodes: at the gateway of the nodes."""
    return [link for link in present(machine) if link.at == machine.last]


def calm(machine: "Routing") -> list[Link]:
    """Those of these that may stop reading: they hear no events, so what waits for them has one order.

    If some of them have called, only those. Whether a node elsewhere reads is known later than it is called, so those
    always do.
    """
    calm = [link for link in asking(machine) if link.open and not link.patterns]
    return [link for link in calm if link.requests] or calm


def full(machine: "Routing") -> list[Link]:
    return [link for link in machine.model.links if link.full]


def callers(machine: "Routing") -> list[Link]:
    return [link for link in present(machine) if link.requests]


def busy(machine: "Routing") -> list[Link]:
    return [link for link in present(machine) if link.flights]


async def _serve(connection: Connection, request: web.Request) -> None:
    """Serve a connection, in the event loop from the first moment on."""
    await connection.serve(request)


class Routing(RuleBasedStateMachine):
    """Peers that do anything at all."""

    last = 0
    """The number of the gateway of the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandLoop()
        self.loop.set_exception_handler(lambda _, context: self.mishaps.append(context))
        self.mishaps: list[Any] = []
        self.apps = [create_app(parse(cast(Any, CONFIGURATION))) for _ in range(self.last + 1)]
        self.gateways = [app[GATEWAY] for app in self.apps]
        for app, gateway in zip(self.apps, self.gateways, strict=True):
            app[STATUS].ready()
            gateway.dispatcher._clock = self.loop.time  # so that no batch takes more than one turn
            at_once(gateway.events.start())
        self.exchange = Exchange()
        self.model = Model(self.loop.time, apart=self.last > 0)

    @initialize()
    def begin(self) -> None:
        """Two nodes and a caller, for otherwise most calls would find nobody."""
        self.connect(True, list(METHODS[:2]), NAMES[0])
        self.connect(True, list(METHODS[1:]), NAMES[1])
        self.connect(True, [], None)

    # What happens

    def turn(self, passes: int) -> None:
        for _ in range(passes):
            self.loop.turn()
            self.deliver()
            self.model.turn()
            self._read()

    def send(self, link: Link, message: str | bytes | dict[str, Any], opcode: Opcode = Opcode.TEXT) -> bool:
        """A peer sends; False where nothing may come of it, for the gateway has ended the connection."""
        self.model.step += 1
        link.wire.feed(json.dumps(message) if isinstance(message, dict) else message, opcode)
        self.deliver()
        return link.open

    def deliver(self) -> None:
        """Deliver the mail between the gateways."""
        with self.loop.inside():
            self.exchange.settle()

    @precondition(lambda self: len(present(self)) < MAX_LINKS and self.model.draining is None)
    @rule(polite=st.sampled_from((True, True, False)), serves=SERVES, name=st.sampled_from((None, *NAMES)))
    def connect(self, polite: bool, serves: list[str], name: str | None) -> None:
        self.model.step += 1
        wire = Wire(self.loop, polite)
        parts = {"protocol": wire, "_protocol": wire, "_message": None, "headers": OPENING_HEADERS}
        request = SimpleNamespace(**parts, writer=SimpleNamespace(output_size=0))
        at = 0 if name is None else self.last
        gateway = self.gateways[at]
        connection = Connection(f"127.0.0.1:{len(self.model.links) + 1}", gateway, gateway._regime)
        served = self.loop.create_task(_serve(connection, cast(web.Request, request)))
        served.add_done_callback(lambda task: task.result())
        link = Link(connection, wire, at)
        self.turn(1)
        self.model.links.append(link)
        self.model.say(link, "gateway.welcome")
        if name is not None:
            self._register(link, name, serves, False)

    @some(serving)
    @rule(at=PICK, name=st.sampled_from(NAMES), methods=SERVES, context=st.booleans(), passes=PASSES)
    def register(self, at: int, name: str, methods: list[str], context: bool, passes: int) -> None:
        if self.model.draining is None:
            self._register(self._one(serving, at), name, methods, context)
            self.turn(passes)

    def _register(self, link: Link, name: str, methods: list[str], context: bool) -> None:
        params = {"name": name, "methods": [{"name": method} for method in methods], "context": context}
        if self.send(link, {"jsonrpc": "2.0", "id": 0, "method": "node.register", "params": params}):
            self.model.register(link, name, methods, context)

    @some(present)
    @rule(at=PICK, methods=st.one_of(st.none(), SERVES, SERVES, SERVES), passes=PASSES)
    def unregister(self, at: int, methods: list[str] | None, passes: int) -> None:
        link = self._one(present, at)
        if self.model.draining is not None:
            return
        params = {"methods": methods}
        if self.send(link, {"jsonrpc": "2.0", "id": 0, "method": "node.unregister", "params": params}):
            name = link.name
            self.model.unregister(link, list(link.methods) if methods is None else methods)
            result = {"name": name, "methods": list(link.methods)}
            self.model.say(link, {"jsonrpc": "2.0", "id": 0, "result": result})
        self.turn(passes)

    @some(asking)
    @rule(asks=st.lists(st.tuples(PICK, MANY_ASKS), min_size=1, max_size=6), passes=PASSES)
    def call(self, asks: list[tuple[int, Ask]], passes: int) -> None:
        for at, ask in asks:
            link = self._one(asking, at)
            self.model.tags += 1
            if self.send(link, ask.text(self.model.tags)):
                self.model.ask(link, ask, self.model.tags, None)
                self.model.refuse()
        self.turn(passes)

    @some(asking)
    @rule(at=PICK, asks=st.lists(MANY_ASKS, min_size=1, max_size=5), passes=PASSES)
    def batch(self, at: int, asks: list[Ask], passes: int) -> None:
        link = self._one(asking, at)
        first = self.model.tags + 1
        self.model.tags += len(asks)
        if self.send(link, f"[{','.join(ask.text(first + number) for number, ask in enumerate(asks))}]"):
            replies = Replies()
            for number, ask in enumerate(asks):
                self.model.ask(link, ask, first + number, replies)
            self.model.done(link, replies, None)
            self.model.refuse()
        self.turn(passes)

    @some(busy)
    @rule(at=PICK, which=st.integers(0, 2), answer=ANSWERS, passes=PASSES)
    def answer(self, at: int, which: int, answer: dict[str, Any], passes: int) -> None:
        node = self._one(busy, at)
        self._answer(node, self._flight(node, which), answer)
        self.turn(passes)

    @some(present)
    @rule(at=PICK, back=st.integers(-2, 6), answer=ANSWERS, passes=PASSES)
    def answer_what_may_be_over_or_another_s(self, at: int, back: int, answer: dict[str, Any], passes: int) -> None:
        self._answer(self._one(present, at), max(0, self.model.issued - back), answer)
        self.turn(passes)

    def _answer(self, link: Link, identity: int, answer: dict[str, Any]) -> None:
        if self.send(link, {"jsonrpc": "2.0", "id": identity, **answer}):
            self.model.answered(link, identity, answer)

    @some(busy)
    @rule(at=PICK, which=st.integers(0, 2), of_another=st.booleans(), passes=PASSES)
    def progress(self, at: int, which: int, of_another: bool, passes: int) -> None:
        node = self._one(busy, at)
        identity = self._flight(node, which)
        flight = node.flights[identity]
        sender = self._one(present, at + 1) if of_another else node
        params: dict[str, Any] = {"id": identity, "value": self.model.step}
        if self.send(sender, {"jsonrpc": "2.0", "method": "rpc.progress", "params": params}) and sender is node:
            params = {"id": json.loads(flight.request), "value": params["value"]}
            report = plain({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})
            self.model.reported(flight, report)
        self.turn(passes)

    @some(callers)
    @rule(at=PICK, identity=st.sampled_from((None, None, None, *IDS)), passes=PASSES)
    def cancel(self, at: int, identity: str | None, passes: int) -> None:
        caller = self._one(callers, at)
        identity = next(iter(caller.requests)) if identity is None else identity
        flight = caller.requests.get(identity)
        text = f'{{"jsonrpc":"2.0","method":"rpc.cancel","params":{{"id":{identity}}}}}'
        if self.send(caller, text) and flight is not None:
            self.model.fail(flight, -32800)
        self.turn(passes)

    @some(present)
    @rule(at=PICK, how=st.sampled_from((None, None, None, "close", "fin", "reset")), passes=PASSES)
    def lose(self, at: int, how: str | None, passes: int) -> None:
        if how is None:  # not as often as the others
            return
        link = self._one(present, at)
        self._lose(link, how)
        self.turn(passes)

    def _lose(self, link: Link, how: str) -> None:
        if how == "close":
            self.send(link, b"\x03\xe8", Opcode.CLOSE)
            self.model.end(link, 1000)
            return
        self.model.step += 1
        link.abrupt = True
        with self.loop.inside():
            if how == "fin":
                link.wire.parser.eof_received()
                link.wire.close()
            else:
                link.wire.lose()
        self.deliver()
        self.model.end(link, None)
        if how == "reset":
            self.model.release(link)

    @some(present)
    @rule(at=PICK, by=PICK, seldom=st.integers(0, 3), passes=PASSES)
    def close_by_an_operator(self, at: int, by: int, seldom: int, passes: int) -> None:
        link = self._one(present, at)
        operator = self._one(lambda machine: [other for other in present(machine) if other.at == link.at], by)
        params = {"connId": link.connection.conn_id}
        message = {"jsonrpc": "2.0", "id": 0, "method": "connection.close", "params": params}
        if self.model.draining is None and seldom == 3:
            if self.send(operator, message):
                self.model.say(operator, {"jsonrpc": "2.0", "id": 0, "result": {"closed": True}})
                self.model.soon.append((link.at, lambda: self.model.end(link, 4501)))
            self.turn(passes)

    @some(present)
    @rule(at=PICK, pattern=st.sampled_from(tuple(MEETS)), publish=st.booleans(), passes=PASSES)
    def subscribe_or_publish(self, at: int, pattern: str, publish: bool, passes: int) -> None:
        link = self._one(present, at)
        if self.model.draining is not None:
            return
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": 0}
        if not publish:
            if self.send(link, {**message, "method": "event.subscribe", "params": {"topics": [pattern]}}):
                self.model.subscribe(link, pattern)
        else:
            params = {"topic": "t.b", "data": self.model.step}
            if self.send(link, {**message, "method": "event.publish", "params": params}):
                offset = self.model.publish(link.at, "t.b", params["data"])
                self.model.say(link, {**message, "result": {"offset": offset}})
        self.turn(passes)

    @some(calm)
    @precondition(lambda self: self.model.draining is None)
    @rule(at=PICK, seldom=st.integers(0, 2))
    def stop_reading(self, at: int, seldom: int) -> None:
        """Much waits for it from now on. What it is sent comes when it reads on."""
        link = self._one(calm, at)
        if seldom or len(present(self)) < 3:
            return
        self.turn(SETTLED)
        if link not in calm(self):
            return
        self.model.step += 1
        link.full = True
        with self.loop.inside():
            link.wire.parser.pause_writing()

    @some(full)
    @rule(at=PICK)
    def read_on(self, at: int) -> None:
        self._read_on(self._one(full, at))

    def _read_on(self, link: Link) -> None:
        self.turn(1)  # what is due is due before it reads
        self.model.step += 1
        with self.loop.inside():
            link.wire.parser.resume_writing()
        self.turn(SETTLED)
        self.model.step += 1
        self.model.reads_on(link)
        self.turn(SETTLED)

    @rule(quarters=st.sampled_from((1, 1, 1, 4, 4, 20, 8, 125)), passes=PASSES)
    def wait(self, quarters: int, passes: int) -> None:
        """Quarters of a second: a deadline is a multiple of them, so it has passed for certain, or not at all."""
        self.model.step += 1
        self.loop.now += quarters / 4
        self.turn(passes if self.model.draining is None else SETTLED)
        if self.model.draining is not None and self.loop.now >= self.model.draining + DRAIN_TIMEOUT:
            for link in self.model.links:
                self.model.end(link, 1001)
            self.turn(SETTLED)

    @precondition(lambda self: self.model.draining is None)
    @rule(now=st.sampled_from((False,) * 12 + (True,)))
    def drain(self, now: bool) -> None:
        """Nobody is told of nodes that go offline then: who goes first is left to chance."""
        if not now:
            return
        for link in full(self):
            self._read_on(link)
        self.turn(SETTLED)
        for link in present(self):
            params = {"topics": list(link.patterns)}
            message = {"jsonrpc": "2.0", "id": 0, "method": "event.unsubscribe", "params": params}
            if params["topics"] and self.send(link, message):
                link.patterns.clear()
                self.model.say(link, {"jsonrpc": "2.0", "id": 0, "result": {"topics": []}})
        self.turn(SETTLED)
        self.model.step += 1
        self.model.draining = self.loop.now
        for link in self.model.links:
            self.model.say(link, "gateway.draining")
        for app, gateway in zip(self.apps, self.gateways, strict=True):
            app[STATUS].drain()
            draining = self.loop.create_task(gateway.drain(app[CONFIG].server))
            draining.add_done_callback(lambda task: task.result())
        self.turn(SETTLED)
        self.model.step += 1
        self.loop.now += 1.25
        for link in self.model.links:
            link.leaving = True
        self.turn(SETTLED)
        for link in self.model.links:
            self.model.idle(link)
        self.turn(SETTLED)

    # What must be true

    def _one(self, among: Callable[["Routing"], list[Link]], at: int) -> Link:
        links = among(self)
        return links[at % len(links)]

    def _flight(self, node: Link, which: int) -> int:
        return list(node.flights)[which % len(node.flights)]

    def _read(self) -> None:
        for link in self.model.links:
            link.got += link.wire.read()

    @invariant()
    def everybody_gets_what_the_model_says(self) -> None:
        self._read()
        assert self.mishaps == []
        for link in self.model.links:
            self._compare(link, complete=False)

    def _compare(self, link: Link, *, complete: bool) -> None:
        while link.expected:
            group = link.expected[0][1]
            got = link.got[: len(group)]
            if len(got) < len(group) or (not complete and link.expected[0][0] == self.model.step):
                assert not Counter(got) - Counter(group), (link.connection.remote, got, group)
                assert not complete or link.abrupt, (link.connection.remote, got, group)
                return
            assert Counter(got) == Counter(group), (link.connection.remote, got, group)
            del link.got[: len(group)], link.expected[0]
        assert link.got == [], (link.connection.remote, link.got)

    @invariant()
    def the_tables_are_those_of_the_model(self) -> None:
        model = self.model
        flights = sum(len(link.flights) for link in model.links)
        assert [len(gateway.calls) for gateway in self.gateways] == [flights] * len(self.gateways)
        assert {node.name: node.peer for node in self.gateways[-1].nodes.after("")} == {
            name: link.connection for name, link in model.nodes.items()
        }
        assert {node.name for node in self.gateways[0].nodes.after("")} == model.nodes.keys()
        for link in model.links:
            connection = link.connection
            assert [bytes(cast(bytes, key)).decode() for key in connection.running] == list(link.requests)
            assert [int(key) for key in connection.calls] == list(link.flights)
        for at, app in enumerate(self.apps):
            there = {link.connection.conn_id for link in model.links if link.at == at and not link.wire.lost}
            assert app[CONNECTIONS].keys() == there
        assert sum(gateway.dispatcher.late_replies for gateway in self.gateways) == model.late
        tallies = dict(self.gateways[0].dispatcher.tallies())
        assert +(tallies["routed"].outcomes() + tallies["node.call"].outcomes()) == +model.outcomes
        assert sum((gateway.router.dropped for gateway in self.gateways), Counter()) == +model.dropped
        assert [link.connection.link.waits for link in model.links] == [*map(model.waits, model.links)]

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._finish()
        finally:
            self._let_go()

    def _finish(self) -> None:
        """The gateway drains, or everybody is lost; then nothing is left of anything."""
        for link in full(self):
            self._read_on(link)
        assert [link for link in self.model.links if link.held_by] == []
        if self.model.issued % 2 and self.model.draining is None:
            self.drain(True)
            self.everybody_gets_what_the_model_says()
        if self.model.draining is not None:
            self.wait(50, SETTLED)
        for link in present(self):
            if self.model.draining is None:
                self._lose(link, "reset")
        self.turn(SETTLED)
        for _ in range(2):
            self.wait(int(4 * CALL_TIMEOUT) + 1, SETTLED)
        for link in self.model.links:
            self._compare(link, complete=True)
        self.the_tables_are_those_of_the_model()
        for app, gateway in zip(self.apps, self.gateways, strict=True):
            assert (len(app[CONNECTIONS]), len(gateway.calls), len(gateway.nodes)) == (0, 0, 0)
            assert (gateway.nodes._by_name, gateway.nodes.methods()) == ({}, [])
            assert gateway.dispatcher._sweep._due == {}
            for wheel in (gateway.calls._wheel, gateway.dispatcher._sweep._wheel):
                assert (wheel._ticks, wheel._order, wheel._timer) == ({}, [], None)
            topics = gateway.events._topics
            assert [topic.name for topic in topics._topics.values() if topic.subscribers] == []
            assert (topics._wild, topics._named) == ({}, {})
        assert not asyncio.all_tasks(self.loop)

    def _let_go(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.turn()
        self.loop.turn()
        self.loop.close()


class Apart(Routing):
    """The same, with callers at one gateway and nodes at another. Their mail arrives at once."""

    last = 1

    def __init__(self) -> None:
        super().__init__()
        with self.loop.inside():
            self.parts = [
                Parts(self.exchange, str(number), app, self.loop.time) for number, app in enumerate(self.apps)
            ]
            for parts in self.parts:
                parts.join()
                self.exchange.settle()

    def _finish(self) -> None:
        super()._finish()
        for distant in [distant for parts in self.parts for distant in parts.relay._distants.values()]:
            assert not (distant.running or distant.peers or distant.queues or distant.paused or distant.held_bytes)
            assert distant.member.open == 0


@pytest.mark.parametrize("machine", [Routing, Apart])
def test_whatever_peers_do_each_request_is_answered_once_and_as_the_model_says(machine: type[Routing]) -> None:
    run_state_machine_as_test(machine, settings=chances(STEPS, EXAMPLES, same=True))


@pytest.mark.parametrize("machine", [Routing, Apart])
@pytest.mark.parametrize("late", [False, True])
def test_a_caller_that_does_not_read_gets_its_results_and_the_latest_report_when_it_reads_on(
    machine: type[Routing], late: bool
) -> None:
    state = machine()
    state.begin()
    state.call([(2, Ask(identity, METHODS[0], NAMES[0], None, False)) for identity in ("1", "2", '"x"')], SETTLED)
    state.stop_reading(0, 0)
    for which in (0, 1, 1, 1):
        state.progress(0, which, False, SETTLED)
        state.the_tables_are_those_of_the_model()
    state.answer(0, 0, {"result": None}, SETTLED)
    state.the_tables_are_those_of_the_model()
    node = state.model.links[0]
    assert state.model.waits(node) == 1, "its node is held up"
    state.wait(20 if late else 4, SETTLED)
    state.the_tables_are_those_of_the_model()
    assert state.model.waits(node) == (not late)
    if late:
        state.answer(0, 0, {"result": None}, SETTLED)
        assert state.model.waits(node) == 0, "once, until it has read"
    state.read_on(0)
    state.everybody_gets_what_the_model_says()
    state.the_tables_are_those_of_the_model()
    assert state.model.dropped["progress"] == 3 + late
    state.teardown()


@pytest.mark.parametrize("machine", [Routing, Apart])
def test_a_call_that_is_cancelled_during_the_drain_is_told_to_its_node_before_the_close_frame(
    machine: type[Routing],
) -> None:
    state = machine()
    state.begin()
    state.call([(2, Ask("1", METHODS[0], NAMES[0], None, False))], SETTLED)
    state.drain(True)
    state.cancel(0, "1", SETTLED)
    state.everybody_gets_what_the_model_says()
    state.teardown()


if __name__ == "__main__":
    chosen = Apart if "apart" in sys.argv else Routing
    run_state_machine_as_test(chosen, settings=chances(STEPS, int(sys.argv[1]), same=False))
