"""What becomes of a request: inline or as a task, counted, cancelled, late, refused, failed; batches; the drain."""

import asyncio
import gc
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from msgspec import Raw
from pytest_aiohttp import AiohttpClient

from gateway import errors
from gateway.app import CONNECTIONS, GATEWAY, STATUS
from gateway.auth.scopes import Principal, role_scopes
from gateway.limits import Rate
from gateway.methods.rpc import Documents, RpcMethods
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Calls
from gateway.rpc.deferred import PATIENCE
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.jsonrpc import LARGE, Message
from gateway.rpc.method import CALL, Continue, Refusal, Then, method
from gateway.rpc.replies import Batch
from gateway.rpc.requests import Peer, Route
from gateway.status import Status
from gateway.telemetry.counts import Tally
from gateway.telemetry.lines import Lines
from gateway.websocket.frames import Payload
from tests.support import sample_methods
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.peers import Opcode, RawPeer
from tests.support.process import GatewayProcess, StartFailed, StartGateway
from tests.support.rpc import Listing, accepted, connect, notification, passes, refused, request, serve

MAX_IN_FLIGHT = 4


class Name(msgspec.Struct, forbid_unknown_fields=True):
    """Which of the works."""

    name: str


class Way:
    """A `Route`, and a `Forward`, that keeps what it is asked for, or refuses."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.tally = Tally()
        self.refusal = refusal
        self.asked: list[tuple[str, bytes]] = []
        self.started: list[tuple[bytes, bool]] = []

    def call(self, caller: Peer, message: Message, params: bytes, request_id: bytes, batch: Batch | None) -> None:
        """To nobody."""
        self.asked.append((message.method, params))
        self.send(caller, request_id, message.traceparent, batch, self.tally)

    def send(self, caller: Peer, request_id: bytes, traceparent: Raw, batch: Batch | None, tally: Tally) -> None:
        """Keep it."""
        if self.refusal is not None:
            raise self.refusal
        self.started.append((request_id, batch is not None))


class Works:
    """Methods that the test lets end, and others that go wrong."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Future[Any]] = {}
        self.ran: list[str] = []
        self.ended: list[str] = []
        self.way: Way = Way()

    @method("work", scope=CALL)
    async def work(self, peer: object, params: Name) -> Any:
        """Run until the test opens the gate, and return what it says."""
        self.ran.append(params.name)
        gate = self.gates[params.name] = asyncio.get_running_loop().create_future()
        try:
            return await gate
        finally:
            self.ended.append(params.name)

    def finish(self, name: str, result: Any = None) -> None:
        """Let one of them end; its reply goes out in the loop's next passes."""
        self.gates.pop(name).set_result(result)

    @method("quick", scope=CALL)
    async def quick(self, peer: object, params: bytes) -> Raw:
        """Return the parameters, without a wait."""
        return Raw(params or b"null")

    @method("plain", scope=CALL)
    def plain(self, peer: object, params: bytes) -> Raw:
        """Return the parameters."""
        self.ran.append("plain")
        return Raw(params or b"null")

    @method("long_if_asked", scope=CALL)
    def long_if_asked(self, peer: object, params: Name) -> Any:
        """Answer at once, unless the name is another one."""
        if params.name != "short":
            raise Continue(lambda: self.work(peer, params))
        return "at once"

    @method("typed", scope=CALL)
    def typed(self, peer: object, params: Name) -> int:
        """Return how long the name is."""
        return len(params.name)

    @method("brief", scope=CALL, timeout=0.05)
    async def brief(self, peer: object) -> None:
        """Be too slow for its own deadline."""
        await asyncio.Event().wait()

    @method("stubborn", scope=CALL, timeout=0.05)
    async def stubborn(self, peer: object) -> str:
        """Not let itself be cancelled."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ran.append("stubborn")
        return "done all the same"

    @method("unscoped")
    def unscoped(self, peer: object) -> None:
        """Have no scope."""
        self.ran.append("unscoped")

    @method("admin_only", scope="admin")
    def admin_only(self, peer: object) -> None:
        """Need a scope."""
        self.ran.append("admin_only")

    @method("refuse", scope=CALL)
    def refuse(self, peer: object) -> None:
        """Refuse."""
        raise Refusal(errors.NOT_FOUND, "no such lamp", lamp="a", retryAfterMs=5)

    @method("refuse_later", scope=CALL)
    async def refuse_later(self, peer: object) -> None:
        """Refuse from the task."""
        await asyncio.sleep(0)
        raise Refusal(errors.NOT_FOUND, "no such lamp", lamp="a", retryAfterMs=5)

    @method("raise", scope=CALL)
    def fail(self, peer: object) -> None:
        """Have a defect."""
        raise ValueError("swordfish")

    @method("raise_later", scope=CALL)
    async def fail_later(self, peer: object) -> None:
        """Have a defect in the task."""
        await asyncio.sleep(0)
        raise ValueError("swordfish")

    @method("unencodable", scope=CALL)
    def unencodable(self, peer: object) -> Any:
        """Return what is no JSON."""
        return {"swordfish": object()}

    @method("unencodable_later", scope=CALL)
    async def unencodable_later(self, peer: object) -> Any:
        """Return what is no JSON, from the task."""
        return {"swordfish": object()}

    @method("endless", scope=CALL)
    def endless(self, peer: object) -> Any:
        """Return what contains itself."""
        result: list[Any] = []
        result.append(result)
        return result

    @method("refuse_wrongly", scope=CALL)
    def refuse_wrongly(self, peer: object) -> None:
        """Refuse with what is no JSON."""
        raise Refusal(errors.NOT_FOUND, "swordfish", lamp=object())

    @method("refuse_wrongly_later", scope=CALL)
    async def refuse_wrongly_later(self, peer: object) -> None:
        """Refuse with what is no JSON, from the task."""
        raise Refusal(errors.NOT_FOUND, "swordfish \ud83d")

    @method("surrogate", scope=CALL)
    def surrogate(self, peer: object) -> str:
        """Return a text that UTF-8 does not know."""
        return "swordfish \ud83d"

    @method("then", scope=CALL)
    def then(self, peer: Listing, params: bytes) -> Then[Raw]:
        """Return the parameters, and have something behind them."""
        return Then(Raw(params or b"null"), lambda: peer.send(b"behind"))

    @method("then_later", scope=CALL)
    async def then_later(self, peer: Listing, params: bytes) -> Then[Raw]:
        """The same, from the task."""
        await asyncio.sleep(0)
        return Then(Raw(params or b"null"), lambda: peer.send(b"behind"))

    @method("forward", scope=CALL, forwards=True)
    def forward(self, peer: object) -> Any:
        """Be a node's."""
        return self.way

    @method("forward_later", scope=CALL, forwards=True)
    async def forward_later(self, peer: object, params: Name) -> Any:
        """The same, as soon as the test opens the gate."""
        await self.work(peer, params)
        return self.way

    @method("loose", scope=CALL)
    def loose(self, peer: object, params: "Loose") -> None:
        """Take any JSON, decoded."""


class Loose(msgspec.Struct):
    """Any value."""

    value: Any


DEFECTS = [
    "raise",
    "raise_later",
    "unencodable",
    "unencodable_later",
    "endless",
    "surrogate",
    "refuse_wrongly",
    "refuse_wrongly_later",
]


class Bench:
    """A dispatcher with works, and a peer."""

    def __init__(
        self, *, call_timeout: float = 30.0, principal: Principal | None = None, route: Route | None = None
    ) -> None:
        self.status = Status("instance", lambda: 0.0)
        self.status.ready()
        self.calls = Calls()
        nodes = Nodes(lambda node, change: None, lambda node: None)
        self.router = Router(
            nodes,
            self.calls,
            call_timeout=call_timeout,
            max_in_flight=MAX_IN_FLIGHT,
            max_node_in_flight=2,
            max_message_bytes=1_048_576,
            max_credit_bytes=2_097_152,
            lines=Lines(),
        )
        self.dispatcher = Dispatcher(
            self.status,
            self.calls,
            route or self.router,
            max_in_flight=MAX_IN_FLIGHT,
            max_batch=10,
            call_timeout=call_timeout,
            lines=Lines(),
            clock=lambda: self.now,
            spent=lambda: self.now,
        )
        self.text: Callable[[Listing, Payload], None]
        self.dispatcher.attach(self)
        self.now = 0.0
        self.works = Works()
        self.dispatcher.add(self.works)
        documents = Documents(self.dispatcher, nodes, 65536)
        self.dispatcher.add(RpcMethods(self.dispatcher, self.router, documents), own=True)
        self.peer = Listing(principal) if principal else Listing()

    def tell(self, *messages: str, peer: Listing | None = None) -> list[str]:
        """Dispatch messages and return what is sent before the loop turns."""
        peer = peer or self.peer
        for message in messages:
            self.text(peer, message.encode())
        return peer.take()

    async def replies(self, count: int = 1, timeout: float = WAIT) -> list[str]:
        """Wait for that many messages to the peer."""
        async with asyncio.timeout(timeout):
            while len(self.peer.sent) < count:
                await asyncio.sleep(0.001)
        return self.peer.take()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def work(name: str, id: object = 1) -> str:
    return request("work", {"name": name}, id)


def cancel(id: object) -> str:
    return notification("rpc.cancel", {"id": id})


def defects(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged from warnings on."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def by_id(batch: str) -> list[Any]:
    """The replies of a batch in the order of their ids, all numbers: theirs is the order of being ready."""
    return sorted(json.loads(batch), key=lambda reply: int(reply["id"]))


CANCELLED = refused(-32800)
OVERLOADED = f"{MAX_IN_FLIGHT} requests are in flight"

# Inline, or as a task


async def test_a_plain_function_runs_inline_and_is_not_counted(bench: Bench) -> None:
    assert bench.tell(request("plain", [1])) == [accepted("[1]")]
    assert bench.peer.running == {}
    assert bench.peer.settlements == 0


async def test_an_async_function_runs_as_a_task_and_is_counted(bench: Bench) -> None:
    assert bench.tell(work("a")) == []
    assert bench.works.ran == []
    assert list(bench.peer.running) == [b"1"]
    await passes()
    assert bench.works.ran == ["a"]
    bench.works.finish("a", [1, None])
    await passes()
    assert bench.peer.take() == [accepted("[1,null]")]
    assert bench.peer.running == {}
    assert bench.peer.settlements == 1


async def test_a_plain_function_may_go_on_as_a_task(bench: Bench) -> None:
    assert bench.tell(request("long_if_asked", ["short"])) == [accepted('"at once"')]
    assert bench.tell(request("long_if_asked", ["a"], id=7)) == []
    assert list(bench.peer.running) == [b"7"]
    await passes()
    bench.works.finish("a", "later")
    await passes()
    assert bench.peer.take() == [accepted('"later"', "7")]
    assert (bench.peer.running, bench.peer.settlements) == ({}, 1)
    tally = bench.dispatcher.methods["long_if_asked"].tally
    assert {name: count for name, count in tally.outcomes().items() if count} == {"ok": 2}


async def test_going_on_as_a_task_counts_as_in_flight_and_may_be_in_a_batch(bench: Bench) -> None:
    bench.tell(*(notification("long_if_asked", [str(number)]) for number in range(MAX_IN_FLIGHT - 1)))
    parts = ",".join(request("long_if_asked", [name], id=name) for name in "ab")
    assert bench.tell(f"[{parts}]") == []
    await passes()
    assert bench.works.ran == ["0", "1", "2", "a"]
    bench.works.finish("a")
    await passes()
    done = accepted("null", '"a"')
    refusal = refused(-32009, OVERLOADED, '"b"', retryAfterMs=errors.RETRY_BUSY_MS, outcome="not_delivered")
    assert bench.peer.take() == [f"[{refusal},{done}]"]


async def test_replies_go_out_as_they_are_ready(bench: Bench) -> None:
    assert bench.tell(work("a", 1), work("b", 2), request("plain", id=3)) == [accepted("null", "3")]
    await passes()
    bench.works.finish("b", "B")
    await passes()
    bench.works.finish("a", "A")
    await passes()
    assert bench.peer.take() == [accepted('"B"', "2"), accepted('"A"', "1")]


async def test_notifications_run_and_are_not_answered(bench: Bench) -> None:
    assert bench.tell(notification("plain"), notification("work", ["a"]), notification("work", ["b"])) == []
    assert bench.works.ran == ["plain"]
    assert len(bench.peer.running) == 2
    await passes()
    bench.works.finish("a")
    bench.works.finish("b")
    await passes()
    assert bench.peer.take() == []
    assert (bench.peer.running, bench.peer.settlements) == ({}, 2)


async def test_raw_results_and_encoded_ones(bench: Bench) -> None:
    assert bench.tell(request("plain", {"a": 1})) == [accepted('{"a": 1}')]
    assert bench.tell(request("quick", [1, 2])) == []
    assert await bench.replies() == [accepted("[1, 2]")]


# In flight


async def test_no_more_than_max_in_flight_run(bench: Bench) -> None:
    refusal = refused(-32009, OVERLOADED, "9", retryAfterMs=errors.RETRY_BUSY_MS, outcome="not_delivered")
    for number in range(MAX_IN_FLIGHT):
        assert bench.tell(work(str(number), number)) == []
    assert bench.tell(work("9", 9)) == [refusal]
    assert bench.tell(request("plain", id="p")) == [accepted("null", '"p"')]
    await passes()
    assert bench.tell(work("9", 9)) == [refusal]
    bench.works.finish("2")
    await passes()
    assert bench.peer.take() == [accepted("null", "2")]
    assert bench.tell(work("9", 9)) == []
    assert len(bench.peer.running) == MAX_IN_FLIGHT
    other = Listing()
    assert bench.tell(work("0", 0), peer=other) == []
    assert len(other.running) == 1


async def test_notifications_and_elements_of_a_batch_count_too(bench: Bench) -> None:
    bench.tell(*(notification("work", [str(number)]) for number in range(MAX_IN_FLIGHT - 1)))
    assert bench.tell(f"[{work('8', 8)},{work('9', 9)},{notification('work', ['x'])}]") == []
    await passes()
    assert bench.works.ran == ["0", "1", "2", "8"]
    bench.works.finish("8")
    await passes()
    refusal = refused(-32009, OVERLOADED, "9", retryAfterMs=errors.RETRY_BUSY_MS, outcome="not_delivered")
    assert bench.peer.take() == [f"[{refusal},{accepted('null', '8')}]"]


async def test_of_a_thousand_slow_calls_none_is_lost(bench: Bench) -> None:
    numbers = range(1000)
    bench.tell(*(work(str(number), number) for number in numbers))
    await passes()
    assert len(bench.works.ran) == MAX_IN_FLIGHT
    for name in list(bench.works.gates):
        bench.works.finish(name)
    await passes()
    bench.peer.sent.clear()
    replies = bench.tell(*(work(str(number), number) for number in numbers))
    await passes()
    for name in list(bench.works.gates):
        bench.works.finish(name)
    await passes()
    replies += bench.peer.take()
    assert sorted(json.loads(reply)["id"] for reply in replies) == list(numbers)
    assert sum("result" in json.loads(reply) for reply in replies) == MAX_IN_FLIGHT


async def test_an_id_that_is_in_flight_is_refused(bench: Bench) -> None:
    conflict = "this id is still in flight"
    assert bench.tell(work("a", 1), work("n", None), work("s", "1")) == []
    assert bench.tell(work("b", 1)) == [refused(-32007, conflict)]
    assert bench.tell(request("plain", id=1)) == [refused(-32007, conflict)]
    assert bench.tell(request("plain", id=None)) == [refused(-32007, conflict, "null")]
    assert bench.tell(request("plain", id="1")) == [refused(-32007, conflict, '"1"')]
    assert bench.tell(request("plain", id=2), notification("plain")) == [accepted("null", "2")]
    assert bench.tell(work("a", 1), peer=(other := Listing())) == []
    await passes()
    bench.works.finish("n")
    await passes()
    assert bench.peer.take() == [accepted("null", "null")]
    assert bench.tell(request("plain", id=None)) == [accepted("null", "null")]
    assert list(other.running) == [b"1"]


async def test_an_id_in_flight_twice_in_one_batch_is_refused_once(bench: Bench) -> None:
    assert bench.tell(f"[{work('a')},{work('b')}]") == []
    await passes()
    bench.works.finish("a", 7)
    await passes()
    conflict = refused(-32007, "this id is still in flight")
    assert bench.peer.take() == [f"[{conflict},{accepted('7')}]"]


# Cancelled


async def test_cancelled_by_a_notification(bench: Bench) -> None:
    bench.tell(work("a"), work("b", 2))
    await passes()
    assert bench.tell(cancel(1)) == []
    await passes()
    assert bench.peer.take() == [CANCELLED]
    assert bench.works.ended == ["a"]
    assert list(bench.peer.running) == [b"2"]
    assert bench.peer.settlements == 1


async def test_cancelled_by_a_request_that_says_whether_there_was_one(bench: Bench) -> None:
    bench.tell(work("a"))
    await passes()
    assert bench.tell(request("rpc.cancel", {"id": 1}, 2)) == [accepted("true", "2")]
    await passes()
    assert bench.peer.take() == [CANCELLED]
    assert bench.tell(request("rpc.cancel", [1], 2)) == [accepted("false", "2")]


async def test_cancelled_before_its_first_step(bench: Bench) -> None:
    assert bench.tell(work("a"), cancel(1)) == []
    await passes()
    assert bench.peer.take() == [CANCELLED]
    assert bench.works.ran == []
    assert (bench.peer.running, bench.peer.settlements) == ({}, 1)


async def test_cancelled_twice_ends_once(bench: Bench) -> None:
    bench.tell(work("a"))
    await passes()
    bench.tell(cancel(1), cancel(1), cancel(1))
    await passes()
    assert bench.peer.take() == [CANCELLED]


async def test_cancelled_inside_of_a_batch(bench: Bench) -> None:
    assert bench.tell(f"[{work('a')},{cancel(1)},{work('b', 2)}]") == []
    await passes()
    assert bench.peer.take() == []
    bench.works.finish("b")
    await passes()
    assert bench.peer.take() == [f"[{CANCELLED},{accepted('null', '2')}]"]


@pytest.mark.parametrize("id", ["1", 2, None, "\u0061", -1])
async def test_only_the_very_same_id_is_cancelled(bench: Bench, id: object) -> None:
    bench.tell(work("a", 1), r'{"jsonrpc":"2.0","id":"\u0061","method":"work","params":["b"]}')
    await passes()
    assert bench.tell(request("rpc.cancel", {"id": id}, "c")) == [accepted("false", '"c"')]
    await passes()
    assert len(bench.peer.running) == 2


async def test_nobody_cancels_for_another(bench: Bench) -> None:
    other = Listing()
    bench.tell(work("a"))
    assert bench.tell(request("rpc.cancel", {"id": 1}), peer=other) == [accepted("false")]
    await passes()
    assert bench.works.ran == ["a"]
    assert bench.peer.take() == []


async def test_a_notification_that_runs_is_cancelled_by_no_id(bench: Bench) -> None:
    bench.tell(notification("work", ["a"]))
    await passes()
    for id in ("", None, 0):
        assert bench.tell(request("rpc.cancel", {"id": id})) == [accepted("false")]


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (None, "Object missing required field `id`"),
        ({}, "Object missing required field `id`"),
        ({"id": 1, "why": 2}, "Object contains unknown field `why`"),
        ([1, 2], "more than 1 parameters by position"),
    ],
)
async def test_what_to_cancel_must_be_said(bench: Bench, params: object, why: str) -> None:
    assert bench.tell(request("rpc.cancel", params)) == [refused(-32602, why)]


async def test_who_finishes_in_spite_of_it_has_its_result(bench: Bench) -> None:
    bench.tell(request("stubborn"))
    await passes()
    bench.tell(cancel(1))
    await passes()
    assert bench.peer.take() == [accepted('"done all the same"')]


# Late


async def test_the_deadline_of_a_method(bench: Bench) -> None:
    bench.tell(request("brief"), work("a", 2))
    assert await bench.replies() == [refused(-32008)]
    assert list(bench.peer.running) == [b"2"]


async def test_the_deadline_of_all_others() -> None:
    bench = Bench(call_timeout=0.05)
    bench.tell(work("a"), work("b", "b"))
    assert sorted(await bench.replies(2)) == sorted([refused(-32008), refused(-32008, id='"b"')])
    assert bench.works.ended == ["a", "b"]
    assert bench.peer.running == {}


async def test_a_deadline_that_is_not_obeyed_cancels_once(bench: Bench) -> None:
    bench.tell(request("stubborn"))
    assert await bench.replies() == [accepted('"done all the same"')]
    assert bench.works.ran == ["stubborn"]


async def test_who_is_done_in_time_hears_of_no_deadline() -> None:
    bench = Bench(call_timeout=0.05)
    bench.tell(work("a"), work("b", 2))
    await passes()
    bench.works.finish("a")
    assert await bench.replies(2) == [accepted("null"), refused(-32008, id="2")]


# Refused


@pytest.mark.parametrize("name", ["refuse", "refuse_later"])
async def test_a_refusal_of_the_methods_own(bench: Bench, caplog: pytest.LogCaptureFixture, name: str) -> None:
    bench.peer.sent = bench.tell(request(name), notification(name))
    assert await bench.replies() == [refused(-32004, "no such lamp", lamp="a", retryAfterMs=5)]
    await passes()
    assert bench.peer.take() == []
    assert defects(caplog) == []


async def test_without_a_scope_nobody_may(bench: Bench) -> None:
    refusal = refused(-32003, "no scope allows this method")
    assert bench.tell(request("unscoped"), notification("unscoped")) == [refusal]
    assert bench.works.ran == []


async def test_the_scope_that_is_missing_is_named() -> None:
    bench = Bench(principal=Principal("page", "ui", ("call:plain", "call:wor.*")))
    assert bench.tell(request("plain")) == [accepted("null")]
    assert bench.tell(request("admin_only")) == [refused(-32003, "admin")]
    assert bench.tell(work("a")) == [refused(-32003, "call:work")]
    assert bench.tell(request("rpc.cancel", {"id": 5})) == [accepted("false")]
    assert bench.works.ran == ["plain"]


async def test_who_may_not_call_is_told_nothing_about_the_parameters() -> None:
    bench = Bench(principal=Principal("page", "ui", ()))
    assert bench.tell(request("work", {"nonsense": 1})) == [refused(-32003, "call:work")]


async def test_parameters_that_do_not_fit(bench: Bench) -> None:
    assert bench.tell(request("work", {"name": 1})) == [refused(-32602, "name: Expected `str`, got `int`")]
    assert bench.tell(request("work", {"name": "a", "nick": "b"})) == [
        refused(-32602, "Object contains unknown field `nick`")
    ]
    assert bench.tell(request("work", ["a", "b"])) == [refused(-32602, "more than 1 parameters by position")]
    assert bench.tell(request("brief", [1])) == [refused(-32602, "this method has no parameters")]
    assert bench.tell(notification("work", {"name": 1}), notification("brief", [1])) == []
    assert (bench.peer.running, bench.works.ran) == ({}, [])


async def test_permitted_are_those_that_may_be_called() -> None:
    page = Listing(Principal("page", "ui", ("call:plain",)))
    operator = Listing(Principal("me", "operator", role_scopes("operator", "me")))
    bench = Bench()
    own = ["rpc.cancel", "rpc.credit", "rpc.demand", "rpc.discover", "rpc.progress", "rpc.push"]
    assert [entry.name for entry in bench.dispatcher.permitted(page)] == ["plain", *own]
    everything = [entry.name for entry in bench.dispatcher.permitted(operator)]
    assert everything == sorted(bench.dispatcher.methods.keys() - {"unscoped"})


# Failed


@pytest.mark.parametrize("name", DEFECTS)
async def test_a_defect_is_logged_once_and_told_to_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    bench.peer.sent = bench.tell(request(name))
    assert await bench.replies() == [refused(-32603)]
    (record,) = defects(caplog)
    assert (record.name, record.levelname) == ("gateway.rpc.replies", "ERROR")
    fields = vars(record)
    assert (fields["event"], fields["method"]) == ("call.failed", name)
    assert (fields["connId"], fields["remote"]) == (bench.peer.conn_id, bench.peer.remote)
    assert record.exc_info is not None
    assert record.exc_info[2] is not None
    assert bench.tell(request("plain")) == [accepted("null")]
    assert bench.peer.running == {}


@pytest.mark.parametrize("name", ["raise", "raise_later"])
async def test_a_defect_of_a_notification_is_logged_too(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    bench.tell(notification(name))
    await passes(5)
    assert [vars(record)["method"] for record in defects(caplog)] == [name]
    assert bench.peer.take() == []


@pytest.mark.parametrize("name", DEFECTS)
async def test_a_defect_in_a_batch_costs_the_others_nothing(bench: Bench, name: str) -> None:
    bench.peer.sent = bench.tell(f"[{request(name)},{request('quick', id=2)}]")
    (reply,) = await bench.replies()
    assert by_id(reply) == [json.loads(refused(-32603)), json.loads(accepted("null", "2"))]


async def test_no_depth_of_nesting_is_a_defect(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The decoders' limit is the interpreter's stack: what the envelope just bears may be too much a call further."""
    codes = set()
    for depth in range(850, 1000):
        value = "[" * depth + "]" * depth
        (reply,) = bench.tell(f'{{"jsonrpc":"2.0","id":1,"method":"loose","params":{{"value":{value}}}}}')
        codes.add(json.loads(reply).get("error", {}).get("code"))
    assert None in codes
    assert codes - {None} <= {-32600, -32602}
    assert defects(caplog) == []


# Batches


async def test_a_batch_is_answered_when_its_last_is_ready(bench: Bench) -> None:
    parts = [work("a", 1), request("plain", id=2), notification("plain"), work("b", 3), request("nothing", id=4)]
    assert bench.tell(f"[{','.join(parts)}]") == []
    await passes()
    bench.works.finish("b", "B")
    await passes()
    assert bench.peer.take() == []
    bench.works.finish("a", "A")
    await passes()
    (reply,) = bench.peer.take()
    expected = [
        accepted('"A"'),
        accepted("null", "2"),
        accepted('"B"', "3"),
        refused(-32601, "nothing", "4", outcome="not_delivered"),
    ]
    assert by_id(reply) == [json.loads(part) for part in expected]
    assert bench.peer.settlements == 3, "each of the two that took their time, and the batch"


async def test_a_batch_that_is_much_work_has_its_turn_again_and_again(bench: Bench) -> None:
    done: list[float] = []

    @method("much", scope="call:much")
    def much(peer: Listing) -> None:
        """Take 3 ms."""
        bench.now += 0.003
        done.append(bench.now)

    bench.dispatcher.add(much)
    assert bench.tell(f"[{','.join(request('much', id=number) for number in range(5))}]") == []
    assert (len(done), bench.peer.link.waits) == (2, 1), "the turn is over, and nothing more is read"
    assert bench.peer.running, "it does not count as idle"
    await asyncio.sleep(0)
    assert len(done) == 4
    await passes()
    assert (len(done), bench.peer.link.waits, bench.peer.running) == (5, 0, {})
    (reply,) = bench.peer.take()
    assert by_id(reply) == [json.loads(accepted("null", str(number))) for number in range(5)]


async def test_a_process_that_waits_for_the_processor_lets_no_batch_wait(bench: Bench) -> None:
    """Otherwise the reply to a batch of one would come behind what follows it, whenever the machine is busy."""
    bench.dispatcher._deferred._spent = lambda: 0.0
    slow = [f'{{"jsonrpc":"2.0","id":{number},"method":"takes.long"}}' for number in range(3)]

    @method("takes.long", scope=CALL)
    def takes_long(peer: Listing) -> None:
        bench.now += 1.0

    bench.dispatcher.add(takes_long)
    bench.dispatcher.dispatch(bench.peer, f"[{','.join(slow)}]".encode())
    assert len(json.loads(bench.peer.take()[0])) == 3
    assert bench.peer.link.waits == 0


async def test_very_many_batches_have_their_turns_one_in_an_iteration(bench: Bench) -> None:
    turns: list[Listing] = []

    @method("much", scope="call:much")
    def much(peer: Listing) -> None:
        """Take 6 ms."""
        bench.now += 0.006
        turns.append(peer)

    bench.dispatcher.add(much)
    peers = [Listing() for _ in range(3)]
    for peer in peers:
        bench.tell(f"[{','.join(request('much', id=number) for number in range(3))}]", peer=peer)
    assert turns == peers, "each begins when it comes"
    for number in range(6):
        await asyncio.sleep(0)
        assert turns == [*peers, *peers, *peers][: 4 + number]
    await passes()
    assert [len(peer.take()) for peer in peers] == [1, 1, 1]


@pytest.mark.parametrize("iterations", [3, 1000])
async def test_a_batch_waits_for_work_that_is_left_behind_but_not_for_ever(bench: Bench, iterations: int) -> None:
    """A message to very many leaves work behind, and the next one to the same would have to do it all at once."""
    left, began = [0], list[int]()

    def busy() -> bool:
        left[0] -= 1
        return left[0] > 0

    @method("publishes", scope=CALL)
    def publishes(peer: Listing) -> None:
        began.append(left[0])
        left[0] = iterations

    bench.dispatcher._deferred._busy = busy
    bench.dispatcher.add(publishes)
    bench.tell(f"[{','.join(request('publishes', id=number) for number in range(3))}]")
    await passes(4 * PATIENCE)
    assert len(began) == 3
    most = 0 if iterations < PATIENCE else iterations - PATIENCE
    assert all(0 <= most - left <= 3 for left in began[1:]), began
    assert [len(json.loads(reply)) for reply in bench.peer.take()] == [3]
    assert bench.peer.link.waits == 0


async def test_what_comes_behind_a_batch_waits_for_its_end(bench: Bench) -> None:
    done: list[object] = []

    @method("much", scope=CALL)
    def much(peer: Listing, params: bytes) -> None:
        """Take 6 ms."""
        bench.now += 0.006
        done.append(json.loads(params))

    bench.dispatcher.add(much)
    batch = f"[{','.join(request('much', [number], number) for number in range(3))}]"
    behind = [request("much", [number], number) for number in range(3, 5)]
    assert bench.tell(batch, *behind, request("plain", id=5)) == []
    await passes(20)
    assert done == [[number] for number in range(5)]
    assert [json.loads(reply)["id"] for reply in bench.peer.take()[1:]] == [3, 4, 5]
    assert (bench.peer.running, bench.peer.link.waits, bench.dispatcher._deferred.late) == ({}, 0, {})


@pytest.mark.parametrize("behind", [True, False])
async def test_a_large_message_is_decoded_again_in_a_turn_of_its_own(bench: Bench, behind: bool) -> None:
    large = "x" * LARGE
    texts = [request("typed", {"name": large}, 1), f'{{"jsonrpc":"2.0","id":2,"x":"{large}"}}', request("plain", id=3)]
    replies: list[str] = []
    for text in texts:
        replies += bench.tell(text)
        if not behind:
            await passes()
            replies += bench.peer.take()
    assert len(replies) == (0 if behind else 3)
    await passes()
    found = [json.loads(reply) for reply in replies + bench.peer.take()]
    assert [(reply["id"], "result" in reply) for reply in found] == [(1, True), (2, False), (3, True)]
    assert bench.peer.link.waits == 0


async def test_what_is_large_is_held_while_its_request_takes_its_time(bench: Bench) -> None:
    bench.peer.room = 10_000
    assert bench.tell(work("a" * 9_000, 1)) == []
    assert bench.peer.room < 1_000
    (refusal,) = bench.tell(work("b" * 9_000, 2))
    assert json.loads(refusal)["error"]["data"]["outcome"] == "not_delivered"
    assert bench.tell(work("c", 3)) == [], "there is always room for what is small"
    bench.tell(cancel(1), cancel(3))
    assert len(await bench.replies(2)) == 2
    assert (bench.peer.room, bench.peer.running) == (10_000, {})


@pytest.mark.parametrize("text", [request("typed", {"name": "x" * LARGE}, 1), f'["{"x" * LARGE}"]'])
async def test_a_large_message_for_which_there_is_no_room_is_refused(bench: Bench, text: str) -> None:
    bench.peer.room = LARGE // 2
    (refusal,) = bench.tell(text)
    assert json.loads(refusal)["error"]["code"] == -32009
    assert (bench.peer.room, bench.peer.running, bench.dispatcher._deferred.late) == (LARGE // 2, {}, {})


async def test_a_notification_of_the_connection_itself_overtakes_what_waits(bench: Bench) -> None:
    told: list[int] = []

    @method("told", scope="call:told", alone="notification")
    def acknowledge(peer: object) -> None:
        """Note how many large messages have been handled."""
        told.append(len(bench.peer.sent))

    bench.dispatcher.add(acknowledge)
    large = request("typed", {"name": "x" * LARGE}, 1)
    assert bench.tell(large, notification("told"), request("plain", id=2)) == []
    assert told == [0]
    assert [json.loads(reply)["id"] for reply in await bench.replies(2)] == [1, 2]


async def test_a_defect_in_a_turn_ends_the_connection(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: object) -> NoReturn:
        raise ValueError("swordfish")

    monkeypatch.setattr(jsonrpc, "decode_other", fail)
    assert bench.tell(f'["{"x" * LARGE}"]', request("plain")) == []
    await passes()
    (record,) = defects(caplog)
    assert (record.name, vars(record)["event"], bench.peer.ended) == (
        "gateway.rpc.dispatcher",
        "connection.defect",
        errors.INTERNAL_FAILURE,
    )
    assert record.exc_info is not None
    assert (bench.peer.take(), bench.peer.running, bench.peer.link.waits) == ([], {}, 0)


async def test_a_large_message_counts_once_against_the_rate(bench: Bench) -> None:
    bench.dispatcher._rate = Rate(1.0, 1)
    bench.tell(request("typed", {"name": "x" * LARGE}, 1))
    await passes()
    (reply,) = bench.peer.take()
    assert "result" in json.loads(reply)


async def test_the_rest_of_a_batch_is_not_begun_for_a_peer_that_is_gone(bench: Bench) -> None:
    @method("much", scope="call:much")
    def much(peer: Listing) -> None:
        """Take 6 ms, and the connection with it."""
        bench.now += 0.006
        peer.is_open = False

    bench.dispatcher.add(much)
    bench.tell(f"[{','.join([request('much'), work('a', 2)])}]")
    await passes()
    assert (bench.peer.running, bench.peer.link.waits) == ({}, 0)


async def test_a_batch_of_notifications_is_not_answered(bench: Bench) -> None:
    parts = [notification("work", ["a"]), notification("plain"), notification("raise"), notification("nothing")]
    assert bench.tell(f"[{','.join(parts)}]") == []
    await passes()
    bench.works.finish("a")
    await passes()
    assert bench.peer.take() == []
    assert bench.works.ran == ["plain", "a"]


async def test_batches_do_not_wait_for_each_other(bench: Bench) -> None:
    bench.tell(f"[{work('a', 1)}]", f"[{work('b', 2)}]")
    await passes()
    bench.works.finish("b")
    await passes()
    assert bench.peer.take() == [f"[{accepted('null', '2')}]"]
    bench.works.finish("a")
    await passes()
    assert bench.peer.take() == [f"[{accepted('null')}]"]


# The table


def declared(name: str) -> object:
    @method(name, scope=CALL)
    def function(peer: object) -> None: ...

    return function


@pytest.mark.parametrize("name", ["gateway.x", "rpc.x", "connection.x", "node.x.y", "event.x"])
def test_reserved_names_are_the_gateways_own(bench: Bench, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^method {name}: names under .* are the gateway's own$"):
        bench.dispatcher.add(declared(name))
    bench.dispatcher.add(declared(name), own=True)
    assert name in bench.dispatcher.methods


@pytest.mark.parametrize("name", ["gateways.x", "rpc", "gateway", "nodes.x", "x.gateway.y", "Event.x"])
def test_other_names_are_free(bench: Bench, name: str) -> None:
    bench.dispatcher.add(declared(name))
    assert name in bench.dispatcher.methods


def test_a_name_is_declared_once(bench: Bench) -> None:
    bench.dispatcher.add(declared("a.b"))
    with pytest.raises(ValueError, match=r"^method a\.b: declared twice$"):
        bench.dispatcher.add(declared("a.b"))


def test_a_source_without_methods_is_a_mistake(bench: Bench) -> None:
    with pytest.raises(ValueError, match="declares no method"):
        bench.dispatcher.add(object())


# The table, from the configuration

HEAD = "from gateway.rpc.method import CALL, method\n\n"
GOOD = """
@method("{name}", scope=CALL)
def function(peer):
    return 7
"""
MODULES = {
    "good": HEAD + GOOD.format(name="a.good"),
    "twice": HEAD + GOOD.format(name="a.good"),
    "reserved": HEAD + GOOD.format(name="node.mine"),
    "wrong": HEAD + GOOD.format(name="a.wrong").replace("(peer)", "(peer, params: int)"),
    "unresolved": HEAD + GOOD.format(name="a.unresolved").replace("(peer)", "(peer: 'NotImported')"),
    "unknown": HEAD + GOOD.format(name="a.unknown").replace("(peer)", "(peer) -> object"),
    "empty": HEAD,
    "pack/__init__": "",
    "pack/handlers": HEAD + GOOD.format(name="pack.good"),
}


@pytest.fixture
def modules(tmp_path: Path) -> dict[str, str]:
    """The environment in which the modules above can be imported."""
    for name, source in MODULES.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return {"PYTHONPATH": str(tmp_path)}


async def test_modules_of_the_configuration_are_imported(gateway: StartGateway, modules: dict[str, str]) -> None:
    process = await gateway({"methods": {"modules": ["good", "pack.handlers"]}}, environ=modules)
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        for name in ("a.good", "pack.good"):
            await peer.send_json({"jsonrpc": "2.0", "id": name, "method": name})
            assert await peer.recv_json() == {"jsonrpc": "2.0", "id": name, "result": 7}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nowhere"], ["methods.modules", "nowhere"]),
        (["pack.nothing"], ["methods.modules", "pack.nothing"]),
        (["good", "twice"], ["methods.modules", "a.good"]),
        (["reserved"], ["methods.modules", "node.mine"]),
        (["wrong"], ["methods.modules", "a.wrong"]),
        (["unresolved"], ["methods.modules", "a.unresolved"]),
        (["empty"], ["methods.modules", "empty"]),
    ],
    ids=" ".join,
)
async def test_a_wrong_module_stops_the_start_with_one_line(
    modules: dict[str, str], names: list[str], words: list[str]
) -> None:
    with pytest.raises(StartFailed) as caught:
        async with GatewayProcess({"methods": {"modules": names}}, environ=modules):
            pass
    lines = caught.value.stderr.splitlines()
    assert caught.value.status == 2
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)


# Answers to calls that the gateway has made; test_calls.py has the calls themselves


async def test_answers_that_nobody_waits_for_are_counted(bench: Bench) -> None:
    late = '{"jsonrpc":"2.0","id":%s,"result":1}'
    assert bench.tell(late % 1, late % '"a"', f"[{late % 2},{late % 3}]") == []
    assert bench.dispatcher.late_replies == 4
    assert bench.tell('{"jsonrpc":"2.0","id":1.5,"result":1}') != []
    assert bench.dispatcher.late_replies == 4


async def test_what_comes_behind_a_reply_is_done_behind_it(bench: Bench) -> None:
    assert bench.tell(request("then", [1])) == [accepted("[1]"), "behind"]
    assert bench.tell(notification("then")) == ["behind"]


async def test_what_comes_behind_a_reply_in_a_batch_is_done_behind_the_batch(bench: Bench) -> None:
    assert bench.tell(f"[{request('then', [1])},{work('a', 2)},{notification('then')}]") == []
    await passes()
    assert bench.peer.take() == []
    bench.works.finish("a")
    await passes()
    (reply, *behind) = bench.peer.take()
    assert by_id(reply) == [json.loads(accepted("[1]")), json.loads(accepted("null", "2"))]
    assert behind == ["behind", "behind"]
    assert bench.tell(f"[{notification('then')}]") == ["behind"]


async def test_what_comes_behind_a_reply_that_took_its_time_is_done_behind_it(bench: Bench) -> None:
    bench.tell(request("then_later", [1]), notification("then_later"))
    await passes(4)
    assert bench.peer.take() == [accepted("[1]"), "behind", "behind"]
    bench.tell(f"[{request('then_later', [2])},{request('plain')}]")
    await passes(4)
    (reply, behind) = bench.peer.take()
    assert (len(json.loads(reply)), behind) == (2, "behind")


# What goes to a node


async def test_methods_of_nobodys_go_the_way_to_nodes() -> None:
    bench = Bench(route=(way := Way()))
    assert bench.tell(request("lamp.on", [1], 7), notification("lamp.off"), f"[{request('a', id='b')}]") == []
    assert way.asked == [("lamp.on", b"[1]"), ("lamp.off", b""), ("a", b"")]
    assert way.started == [(b"7", False), (b"", False), (b'"b"', True)]
    assert bench.tell(request("plain")) == [accepted("null")]


async def test_a_method_may_say_where_its_request_goes(bench: Bench) -> None:
    assert bench.tell(request("forward", id=7)) == []
    assert bench.works.way.started == [(b"7", False)]


async def test_a_method_that_takes_its_time_may_say_so_too(bench: Bench) -> None:
    way = bench.works.way
    params = {"name": "a"}
    bench.tell(
        request("forward_later", params, 7), f"[{request('forward_later', {'name': 'b'}, 8)},{request('plain')}]"
    )
    await passes()
    assert way.started == []
    bench.works.finish("a")
    bench.works.finish("b")
    await passes()
    assert way.started == [(b"7", False), (b"8", True)]
    assert bench.peer.running == {}
    assert bench.dispatcher.methods["forward_later"].tally.outcomes()["ok"] == 0  # the end of the call is still to come


async def test_a_request_is_not_sent_on_that_was_cancelled_meanwhile(bench: Bench) -> None:
    bench.tell(request("forward_later", {"name": "a"}, 7), notification("rpc.cancel", {"id": 7}))
    await passes()
    (reply,) = bench.peer.take()
    assert (json.loads(reply)["error"]["code"], bench.works.way.started) == (-32800, [])


async def test_a_method_that_takes_its_time_hears_that_its_request_cannot_go_on(bench: Bench) -> None:
    bench.works.way.refusal = Refusal(errors.OVERLOADED, "pi", outcome="not_delivered")
    bench.tell(request("forward_later", {"name": "a"}), f"[{request('forward_later', {'name': 'b'}, 8)}]")
    await passes()
    bench.works.finish("a")
    bench.works.finish("b")
    await passes()
    refusal = refused(-32009, "pi", outcome="not_delivered")
    assert bench.peer.take() == [refusal, f"[{refused(-32009, 'pi', id='8', outcome='not_delivered')}]"]


async def test_a_request_that_cannot_go_to_a_node_is_refused() -> None:
    bench = Bench(route=Way(Refusal(errors.OVERLOADED, "pi", outcome="not_delivered")))
    refusal = refused(-32009, "pi", outcome="not_delivered")
    assert bench.tell(request("lamp.on"), notification("lamp.on")) == [refusal]
    assert bench.tell(f"[{request('lamp.on')},{notification('lamp.on')}]") == [f"[{refusal}]"]


async def test_an_id_that_is_in_flight_is_refused_for_nodes_too() -> None:
    bench = Bench(route=(way := Way()))
    bench.tell(work("a", 1))
    assert bench.tell(request("lamp.on", id=1))[0].startswith('{"jsonrpc":"2.0","id":1,"error":{"code":-32007,')
    assert way.started == []


# The end of a connection


async def test_a_lost_peer_has_nothing_running(bench: Bench) -> None:
    bench.tell(work("a", 1), notification("work", ["b"]), f"[{work('c', 3)}]")
    await passes()
    other = Listing()
    bench.tell(work("d", 1), peer=other)
    bench.dispatcher.lost(bench.peer)
    await passes()
    assert sorted(bench.works.ended) == ["a", "b", "c"]
    assert (bench.peer.running, len(other.running)) == ({}, 1)
    bench.dispatcher.lost(bench.peer)


async def test_what_was_abandoned_is_counted_so_however_the_caller_has_left(aiohttp_client: AiohttpClient) -> None:
    polite = await serve(aiohttp_client, [sample_methods])
    rude = await connect(polite.client)
    tally = polite.client.app[GATEWAY].dispatcher.methods["wait"].tally
    for caller in (polite, rude):
        await caller.send(request("wait"))
        await caller.ask(request("gateway.ping", id=2))
    rude.connection.abort()
    await polite.ws.close()
    await until(lambda: not polite.client.app[CONNECTIONS], "they are still there")
    await passes()
    assert (tally.outcomes()["caller_lost"], tally.outcomes()["cancelled"]) == (2, 0)


async def test_a_lost_peer_has_nothing_running_that_has_not_begun(bench: Bench) -> None:
    bench.tell(work("a"))
    bench.dispatcher.lost(bench.peer)
    await passes()
    assert (bench.works.ran, bench.peer.running) == ([], {})


async def test_what_runs_for_a_connection_ends_with_it(aiohttp_client: AiohttpClient) -> None:
    works = Works()
    caller = await serve(aiohttp_client, [works])
    other = await connect(caller.client)
    await caller.send(work("a"))
    await other.send(work("b"))
    assert await other.ask(request("gateway.ping", id=2)) == accepted("null", "2")
    await caller.ws.close()
    async with asyncio.timeout(WAIT):
        while works.ended != ["a"]:
            await asyncio.sleep(0.001)
    works.finish("b", "B")
    assert json.loads(await other.receive())["result"] == "B"


async def test_what_has_ended_is_not_kept_until_its_deadline(bench: Bench) -> None:
    peer = Listing()
    bench.tell(work("a", 1), notification("work", ["b"]), f"[{work('c', 3)},{work('d', 4)}]", peer=peer)
    await passes()
    bench.tell(cancel(4), peer=peer)
    for name in "abc":
        bench.works.finish(name)
    await passes()
    assert len(peer.take()) == 2
    there = weakref.ref(peer)
    del peer
    gc.collect()
    assert there() is None


# The drain


@pytest.fixture
def draining(bench: Bench) -> Bench:
    bench.status.drain()
    return bench


async def test_what_is_new_is_refused_while_draining(draining: Bench) -> None:
    assert draining.tell(request("plain")) == [refused(-32011, outcome="not_delivered")]
    assert draining.tell(request("nothing")) == [refused(-32011, outcome="not_delivered")]
    assert draining.tell(f"[{request('plain')}]", notification("plain")) == [
        f"[{refused(-32011, outcome='not_delivered')}]"
    ]
    assert draining.works.ran == []


async def test_rpc_goes_on_while_draining(draining: Bench) -> None:
    assert draining.tell(request("rpc.cancel", {"id": 1})) == [accepted("false")]
    assert draining.tell(request("rpc.discover")) == []
    await passes()
    (reply,) = draining.peer.take()
    assert "result" in json.loads(reply)


async def test_what_is_in_flight_may_end_or_be_cancelled_while_draining(bench: Bench) -> None:
    bench.tell(work("a", 1), work("b", 2))
    await passes()
    bench.status.drain()
    assert bench.tell(cancel(1)) == []
    bench.works.finish("b")
    await passes()
    assert sorted(bench.peer.take()) == sorted([CANCELLED, accepted("null", "2")])


async def test_ping_and_answers_pass_while_draining(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client, [sample_methods])
    await caller.send(request("ask", [1]))
    call = json.loads(await caller.receive())
    caller.app[STATUS].drain()
    assert await caller.ask(request("gateway.ping", [2], 2)) == accepted("[2]", "2")
    assert await caller.ask(request("gateway.info", id=3)) == refused(-32011, id="3", outcome="not_delivered")
    assert await caller.ask(request("get_data", id=4)) == refused(-32011, id="4", outcome="not_delivered")
    answer = {"jsonrpc": "2.0", "id": call["id"], "result": "yes"}
    assert await caller.ask(json.dumps(answer)) == accepted('"yes"')


async def test_who_has_a_request_in_flight_leaves_when_it_is_answered(aiohttp_client: AiohttpClient) -> None:
    works = Works()
    caller = await serve(aiohttp_client, [works])
    await caller.send(work("a"))
    assert await caller.ask(request("gateway.ping", id=2)) == accepted("null", "2")
    caller.app[STATUS].drain()
    drain = asyncio.create_task(caller.app[CONNECTIONS].drain(10.0, 1.0))
    assert json.loads(await caller.receive())["method"] == "gateway.draining"
    await asyncio.sleep(1.1)
    assert caller.conn_id in caller.app[CONNECTIONS]
    works.finish("a", "A")
    assert await caller.receive() == accepted('"A"')
    assert await caller.closed() == 1001
    async with asyncio.timeout(WAIT):
        await drain


async def test_a_process_drains_in_the_same_way(gateway: StartGateway) -> None:
    process = await gateway({"methods": {"modules": ["tests.support.sample_methods"]}})
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        await peer.send_json({"jsonrpc": "2.0", "id": "q", "method": "ask", "params": [1]})
        call = await peer.recv_json()
        assert (call["method"], call["params"]) == ("answer", [1])
        process.terminate()
        assert (await peer.recv_json())["method"] == "gateway.draining"
        await peer.send_json({"jsonrpc": "2.0", "id": 2, "method": "echo"})
        assert (await peer.recv_json())["error"]["code"] == -32011
        await peer.send_json({"jsonrpc": "2.0", "id": 3, "method": "gateway.ping"})
        assert await peer.recv_json() == {"jsonrpc": "2.0", "id": 3, "result": None}
        await asyncio.sleep(1.1)
        await peer.send_json({"jsonrpc": "2.0", "id": call["id"], "result": ["yes"]})
        assert await peer.recv_json() == {"jsonrpc": "2.0", "id": "q", "result": ["yes"]}
        assert (await peer.recv_frame()).opcode == Opcode.CLOSE
        assert peer.close_code == 1001
        await peer.send_close(1001)
    assert await process.wait() == 0


async def test_a_process_logs_one_traceback_for_a_defect(gateway: StartGateway) -> None:
    process = await gateway({"methods": {"modules": ["tests.support.sample_methods"]}}, allow_tracebacks=True)
    with await RawPeer.open(process) as peer:
        conn_id = (await peer.welcome())["connId"]
        await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "fail"})
        assert await peer.recv_json() == json.loads(refused(-32603))
        await peer.send_json({"jsonrpc": "2.0", "id": 2, "method": "fail", "params": [1]})
        assert (await peer.recv_json())["error"]["code"] == -32602
        line = await process.wait_event("call.failed", method="fail", connId=conn_id, remote=peer.local)
        await peer.leave()
    assert line["level"].lower() == "error"
    text = json.dumps(process.lines)
    assert text.count("Traceback (most recent call last)") == 1
    assert text.count("ValueError: swordfish") == 1
    assert process.stderr == ""
