"""Calls that the gateway makes to a client: result, error, deadline, loss, cancellation, and whose id is whose."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from pytest_aiohttp import AiohttpClient

from gateway import errors
from gateway.app import CONNECTIONS, GATEWAY, STATUS
from gateway.connections.connection import Connection
from gateway.connections.registry import Connections
from gateway.errors import RpcError
from gateway.rpc import jsonrpc
from gateway.rpc.calls import FIRST_ID, Call, Callee, CallError, Calls, call
from gateway.rpc.jsonrpc import Message
from gateway.rpc.method import CALL, method
from tests.support import sample_methods
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.rpc import Caller, Listing, accepted, connect, passes, refused, request, serve

LONG = 600.0
"""Seconds that no test waits for."""


class Ends:
    """Keeps how calls have ended, and then does what the test says."""

    def __init__(self, behind: Callable[[], object] | None = None) -> None:
        self.outcomes: list[Raw | RpcError] = []
        self.behind = behind

    def __call__(self, outcome: Raw | RpcError) -> None:
        self.outcomes.append(outcome)
        if self.behind is not None:
            self.behind()


class Noted:
    """A call whose end is kept."""

    def __init__(self, callee: Callee, call_id: bytes, slot: dict[Call, None], ends: Ends) -> None:
        self.callee = callee
        self.call_id = call_id
        self.slot = slot
        self._ends = ends
        self.put_off: list[float] = []

    def left(self) -> float:
        return self.put_off.pop() if self.put_off else 0.0

    def answered(self, result: Raw) -> None:
        self._ends(result)

    def refused(self, error: Raw) -> None:
        self._ends(error)

    def failed(self, error: RpcError) -> None:
        self._ends(error)


def begin(calls: Calls, callee: Callee, ends: Ends, timeout: float) -> Noted:
    """One more call in flight."""
    entry = Noted(callee, calls.new_id(), calls.slot(timeout), ends)
    calls.enter(entry)
    return entry


def answer(call_id: bytes | int, result: object = None) -> Message:
    """A response as it is decoded."""
    return jsonrpc.decode(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (str_id(call_id), jsonrpc.encode(result)))


def str_id(call_id: bytes | int) -> bytes:
    return call_id if isinstance(call_id, bytes) else b"%d" % call_id


# The table


def test_ids_count_from_where_no_client_does() -> None:
    calls, first = Calls(), 2**40
    assert first == FIRST_ID
    assert [calls.new_id() for _ in range(20_000)] == [b"%d" % number for number in range(first, first + 20_000)]


async def test_a_call_ends_with_its_answer_once() -> None:
    calls, peer, ends = Calls(), Listing(), Ends()
    entry = begin(calls, peer, ends, LONG)
    assert (list(peer.calls), len(calls)) == ([entry.call_id], 1)
    message = answer(entry.call_id, [1])
    assert calls.answered(peer, message)
    assert not calls.answered(peer, message)
    calls.lost(peer)
    calls.drop(entry)
    assert ends.outcomes == [message.result]
    assert (peer.calls, len(calls)) == ({}, 0)


async def test_numbers_are_never_used_twice() -> None:
    calls, one, two, ends = Calls(), Listing(), Listing(), Ends()
    entries = [begin(calls, peer, ends, LONG) for peer in (one, two) * 50]
    assert len({entry.call_id for entry in entries}) == 100
    assert all(entry.call_id.isdigit() for entry in entries)
    for entry in entries:
        calls.drop(entry)
    assert begin(calls, one, ends, LONG).call_id not in {entry.call_id for entry in entries}


async def test_only_who_was_called_can_answer() -> None:
    calls, peer, other, ends = Calls(), Listing(), Listing(), Ends()
    entry = begin(calls, peer, ends, LONG)
    assert not calls.answered(other, answer(entry.call_id))
    assert not calls.answered(peer, answer(b'"%b"' % entry.call_id))
    assert not calls.answered(peer, answer(b"-%b" % entry.call_id))
    assert ends.outcomes == []
    assert calls.answered(peer, answer(entry.call_id))


async def test_a_garbled_answer_ends_the_call_of_its_id_and_no_other() -> None:
    calls, peer, other, ends = Calls(), Listing(), Listing(), Ends()
    entry, later = begin(calls, peer, ends, LONG), begin(calls, peer, Ends(), LONG)
    assert not calls.garbled(peer, b"")
    assert not calls.garbled(other, entry.call_id)
    assert calls.garbled(peer, entry.call_id)
    assert not calls.garbled(peer, entry.call_id)
    assert (ends.outcomes, list(peer.calls), len(calls)) == ([errors.INTERNAL_ERROR], [later.call_id], 1)


async def test_a_dropped_call_ends_no_more() -> None:
    calls, peer, ends = Calls(), Listing(), Ends()
    entry = begin(calls, peer, ends, 0.01)
    calls.drop(entry)
    calls.drop(entry)
    assert not calls.answered(peer, answer(entry.call_id))
    later = Ends()
    begin(calls, peer, later, 0.02)
    await until(lambda: bool(later.outcomes), "the deadline of another has not passed")
    calls.lost(peer)
    assert (ends.outcomes, peer.calls, len(calls)) == ([], {}, 0)


async def test_a_call_ends_at_its_deadline() -> None:
    calls, peer, ends, longer = Calls(), Listing(), Ends(), Ends()
    begin(calls, peer, longer, LONG)
    entry = begin(calls, peer, ends, 0.05)
    await until(lambda: bool(ends.outcomes), "it has not ended")
    assert ends.outcomes == [errors.TIMEOUT]
    assert not calls.answered(peer, answer(entry.call_id))
    assert (len(peer.calls), longer.outcomes) == (1, [])


async def test_a_deadline_that_was_put_off_comes_again() -> None:
    calls, peer, ends = Calls(), Listing(), Ends()
    entry = begin(calls, peer, ends, 0.01)
    first, entry.put_off = entry.slot, [0.02, 0.01]
    await until(lambda: bool(ends.outcomes), "it has not ended")
    assert (ends.outcomes, entry.put_off) == ([errors.TIMEOUT], [])
    assert entry.slot is not first
    assert (peer.calls, len(calls)) == ({}, 0)


async def test_a_call_whose_deadline_was_put_off_may_be_answered() -> None:
    calls, peer, ends = Calls(), Listing(), Ends()
    entry = begin(calls, peer, ends, 0.01)
    entry.put_off = [LONG]
    await until(lambda: not entry.put_off, "its deadline has not come")
    assert calls.answered(peer, answer(entry.call_id, 7))
    assert (len(ends.outcomes), len(calls)) == (1, 0)


async def test_the_loss_of_a_peer_ends_its_calls_and_no_others() -> None:
    calls, peer, other, ends, others = Calls(), Listing(), Listing(), Ends(), Ends()
    for _ in range(3):
        begin(calls, peer, ends, LONG)
    begin(calls, other, others, LONG)
    calls.lost(peer)
    calls.lost(peer)
    assert (ends.outcomes, others.outcomes) == ([errors.NODE_LOST] * 3, [])
    assert (peer.calls, len(other.calls), len(calls)) == ({}, 1, 1)


async def test_the_end_of_one_call_may_be_the_beginning_of_another() -> None:
    calls, peer, ends = Calls(), Listing(), Ends()
    first = Ends(lambda: begin(calls, peer, ends, LONG))
    begin(calls, peer, first, LONG)
    calls.lost(peer)
    assert (first.outcomes, ends.outcomes, len(calls)) == ([errors.NODE_LOST], [], 1)


# A call, awaited


async def start(peer: Listing, params: object = None, timeout: float = LONG) -> tuple[asyncio.Task[Any], Calls]:
    """A call of `m`, sent."""
    calls = Calls()
    task = asyncio.create_task(call(calls, peer, "m", params, timeout))
    await passes()
    return task, calls


async def failure(task: asyncio.Task[Any]) -> CallError:
    """The error that the call ends with, soon."""
    with pytest.raises(CallError) as caught:
        await asyncio.wait_for(task, WAIT)
    return caught.value


@pytest.mark.parametrize("params", [None, [], [1, "a"], {"a": None}])
async def test_what_is_sent(params: object) -> None:
    peer = Listing()
    task, _ = await start(peer, params)
    (sent,) = peer.take()
    wanted = {"jsonrpc": "2.0", "id": FIRST_ID, "method": "m"}
    assert json.loads(sent) == (wanted if params is None else wanted | {"params": params})
    task.cancel()


@pytest.mark.parametrize("result", [None, 0, [], "text \N{GRINNING FACE}", {"a": [1, 2.5, True]}])
async def test_a_result_is_decoded(result: object) -> None:
    peer = Listing()
    task, calls = await start(peer)
    calls.answered(peer, answer(FIRST_ID, result))
    assert await asyncio.wait_for(task, WAIT) == result


@pytest.mark.parametrize(
    ("error", "code", "message", "data"),
    [
        ('{"code":7,"message":"no"}', 7, "no", None),
        ('{"code":-32601,"message":"no","data":{"a":[1]},"more":1}', -32601, "no", {"a": [1]}),
        ('{"code":7,"message":"no","data":1e999}', 0, "the peer's error cannot be decoded", None),
    ],
)
async def test_the_peers_error_is_raised(error: str, code: int, message: str, data: object) -> None:
    peer = Listing()
    task, calls = await start(peer)
    calls.answered(peer, jsonrpc.decode(f'{{"jsonrpc":"2.0","id":{FIRST_ID},"error":{error}}}'.encode()))
    raised = await failure(task)
    assert (raised.code, raised.message, raised.data) == (code, message, data)
    assert str(raised) == f"{code}: {message}"


@pytest.mark.parametrize(
    "members",
    [
        '"error":{"code":7}',
        '"error":{"code":"7","message":"no"}',
        '"error":{"code":7.5,"message":"no"}',
        '"error":{"code":1e999,"message":"no"}',
        '"error":{"code":7,"message":null}',
        '"error":"no"',
        '"error":null',
        '"result":1,"error":{"code":7,"message":"no"}',
        '"params":[]',
    ],
)
async def test_an_answer_that_is_no_json_rpc_is_raised_as_an_internal_error(members: str) -> None:
    peer = Listing()
    task, calls = await start(peer)
    peer.take()
    assert calls.answered(peer, jsonrpc.decode(f'{{"jsonrpc":"2.0","id":{FIRST_ID},{members}}}'.encode()))
    raised = await failure(task)
    assert (raised.code, raised.message) == (-32603, "Internal error: the answer is not JSON-RPC")
    assert raised.data == {"code": "internal_error", "temporary": False, "outcome": "unknown"}
    assert (peer.take(), peer.calls, len(calls)) == ([], {}, 0)


async def test_an_error_of_null_beside_a_result_is_no_error() -> None:
    peer = Listing()
    task, calls = await start(peer)
    assert calls.answered(peer, jsonrpc.decode(b'{"jsonrpc":"2.0","id":%d,"result":[1],"error":null}' % FIRST_ID))
    assert await asyncio.wait_for(task, WAIT) == [1]


@pytest.mark.parametrize("result", ["1e999", "[" + "9" * 5000 + "]", '{"a":-1e999}'])
async def test_a_result_that_no_number_can_hold_is_the_peers_mistake(result: str) -> None:
    peer = Listing()
    task, calls = await start(peer)
    calls.answered(peer, jsonrpc.decode(f'{{"jsonrpc":"2.0","id":{FIRST_ID},"result":{result}}}'.encode()))
    await failure(task)


async def test_a_result_that_is_nested_too_deeply_is_the_peers_mistake() -> None:
    """It is decoded where the call is awaited, which may be deeper in the stack than the envelope was decoded."""

    async def call_from(depth: int, calls: Calls, peer: Listing) -> Any:
        if depth:
            return await call_from(depth - 1, calls, peer)
        return await call(calls, peer, "m", None, LONG)

    calls, peer = Calls(), Listing()
    task = asyncio.create_task(call_from(400, calls, peer))
    await passes()
    calls.answered(peer, jsonrpc.decode(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (FIRST_ID, b"[" * 800 + b"]" * 800)))
    await failure(task)


async def test_a_call_that_nobody_answers_times_out() -> None:
    peer = Listing()
    task, calls = await start(peer, timeout=0.05)
    raised = await failure(task)
    assert (raised.code, raised.data) == (-32008, {"code": "timeout", "temporary": True})
    assert (peer.calls, len(calls)) == ({}, 0)
    assert not calls.answered(peer, answer(FIRST_ID))


async def test_a_call_to_a_peer_that_is_lost_ends_at_once() -> None:
    peer = Listing()
    task, calls = await start(peer)
    calls.lost(peer)
    raised = await failure(task)
    assert (raised.code, raised.data) == (-32010, {"code": "node_lost", "temporary": True})


async def test_a_cancelled_call_is_cancelled_at_the_peer() -> None:
    peer = Listing()
    task, calls = await start(peer)
    peer.take()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert peer.take() == [f'{{"jsonrpc":"2.0","method":"rpc.cancel","params":{{"id":{FIRST_ID}}}}}']
    assert (peer.calls, len(calls)) == ({}, 0)


async def test_parameters_that_are_no_json_leave_no_call_behind() -> None:
    peer, calls = Listing(), Calls()
    with pytest.raises(TypeError):
        await call(calls, peer, "m", [object()], LONG)
    assert (peer.sent, peer.calls, len(calls)) == ([], {}, 0)


# Over a connection


class Relay(msgspec.Struct, rename="camel"):
    """Whom to call, and with what."""

    conn_id: str
    value: Any = None


class Relays:
    """Calls between connections, and of oneself."""

    def __init__(self) -> None:
        self.connections: Connections | None = None
        self.caught: list[CallError] = []

    @method("relay", scope=CALL)
    async def relay(self, peer: Connection, params: Relay) -> Any:
        """Call `answer` of another connection."""
        assert self.connections is not None
        return await self.connections[params.conn_id].call("answer", [params.value], timeout=LONG)

    @method("impatient", scope=CALL)
    async def impatient(self, peer: Connection) -> None:
        """Call `answer` of the caller, and wait for no more than a moment."""
        try:
            await peer.call("answer", timeout=0.05)
        except CallError as error:
            self.caught.append(error)

    @method("late", scope=CALL, timeout=0.05)
    async def late(self, peer: Connection) -> None:
        """Have a deadline before that of the call that is waited for."""
        await peer.call("answer", timeout=LONG)


@pytest.fixture
def relays() -> Relays:
    return Relays()


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient, relays: Relays) -> Caller:
    caller = await serve(aiohttp_client, [sample_methods, relays])
    relays.connections = caller.app[CONNECTIONS]
    return caller


async def called(caller: Caller) -> dict[str, Any]:
    """The next message, which must be a call of `answer`."""
    message: dict[str, Any] = json.loads(await caller.receive())
    assert message["method"] == "answer", message
    return message


def reply(message: dict[str, Any], **outcome: object) -> str:
    """The client's answer to a call."""
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], **outcome})


async def test_a_client_is_called_and_answers(caller: Caller) -> None:
    task = asyncio.create_task(caller.connection.call("answer", {"a": 1}, timeout=LONG))
    message = await called(caller)
    assert message["params"] == {"a": 1}
    assert caller.connection.in_flight == 1
    await caller.send(reply(message, result={"b": [2]}))
    assert await asyncio.wait_for(task, WAIT) == {"b": [2]}
    assert caller.connection.in_flight == 0
    assert await caller.answers(request("get_data")) == [accepted('["hello",5]')]


async def test_a_client_answers_with_an_error(caller: Caller) -> None:
    task = asyncio.create_task(caller.connection.call("answer", timeout=LONG))
    error = {"code": 42, "message": "no", "data": [1]}
    await caller.send(reply(await called(caller), error=error))
    raised = await failure(task)
    assert (raised.code, raised.message, raised.data) == (42, "no", [1])


async def test_answers_can_come_in_a_batch(caller: Caller) -> None:
    tasks = [asyncio.create_task(caller.connection.call("answer", [n], timeout=LONG)) for n in range(3)]
    messages = [await called(caller) for _ in tasks]
    replies = [reply(message, result=message["params"]) for message in messages]
    assert await caller.answers(f"[{','.join(replies)}]") == []
    assert await asyncio.gather(*tasks) == [[0], [1], [2]]


async def test_a_client_that_closes_ends_its_calls(caller: Caller) -> None:
    connection = caller.connection
    task = asyncio.create_task(connection.call("answer", timeout=LONG))
    await called(caller)
    await caller.ws.close()
    assert (await failure(task)).code == -32010
    assert connection.in_flight == 0


async def test_a_connection_that_is_over_is_not_called(caller: Caller) -> None:
    connection = caller.connection
    await caller.ws.close()
    async with asyncio.timeout(WAIT):
        while caller.conn_id in caller.app[CONNECTIONS]:
            await asyncio.sleep(0.001)
    assert (await failure(asyncio.create_task(connection.call("answer", timeout=LONG)))).code == -32010
    assert connection.in_flight == 0


async def test_a_connection_that_is_closing_is_not_called(caller: Caller) -> None:
    connection = caller.connection
    connection.end(errors.CLOSED_BY_OPERATOR)
    assert (await failure(asyncio.create_task(connection.call("answer", timeout=LONG)))).code == -32010


async def test_a_late_answer_is_dropped_and_counted(caller: Caller, relays: Relays) -> None:
    await caller.send(request("impatient"))
    message = await called(caller)
    assert await caller.receive() == accepted("null")
    assert [error.code for error in relays.caught] == [-32008]
    assert await caller.answers(reply(message, result=1)) == []
    assert caller.app[GATEWAY].dispatcher.late_replies == 1


async def test_a_caller_that_cancels_cancels_the_call_that_it_caused(caller: Caller) -> None:
    other = await connect(caller.client)
    await caller.send(request("relay", [other.conn_id], 7))
    message = await called(other)
    await caller.send('{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":7}}')
    assert await caller.receive() == refused(-32800, id="7")
    assert json.loads(await other.receive()) == {
        "jsonrpc": "2.0",
        "method": "rpc.cancel",
        "params": {"id": message["id"]},
    }
    assert await other.answers(reply(message, result=1)) == []
    assert caller.app[GATEWAY].dispatcher.late_replies == 1


async def test_a_deadline_cancels_the_call_that_is_waited_for(caller: Caller) -> None:
    await caller.send(request("late"))
    message = await called(caller)
    assert json.loads(await caller.receive())["params"] == {"id": message["id"]}
    assert await caller.receive() == refused(-32008)


async def test_a_caller_that_is_lost_cancels_the_call_that_it_caused(caller: Caller) -> None:
    other = await connect(caller.client)
    await caller.send(request("relay", [other.conn_id]))
    message = await called(other)
    await caller.ws.close()
    assert json.loads(await other.receive())["params"] == {"id": message["id"]}


async def test_the_error_of_one_client_is_not_the_error_of_another(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever does not catch it has a defect: the caller learns nothing of what the other has said."""
    other = await connect(caller.client)
    await caller.send(request("relay", [other.conn_id]))
    await other.send(reply(await called(other), error={"code": 1, "message": "swordfish"}))
    assert await caller.receive() == refused(-32603)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


async def test_ids_of_the_two_directions_are_never_mixed_up(caller: Caller) -> None:
    numbers = range(FIRST_ID, FIRST_ID + 40)
    for number in numbers:
        await caller.send(request("ask", [f"question {number}"], number))
    messages = [await called(caller) for _ in numbers]
    assert {message["id"] for message in messages} & set(numbers)
    order = random.Random(3)
    order.shuffle(messages)
    replies: dict[int, Any] = {}
    for message in messages:
        own = caller.ask(request("gateway.ping", ["mine"], message["id"] + 1000))
        assert json.loads(await own)["result"] == ["mine"]
        got = json.loads(await caller.ask(reply(message, result=message["params"])))
        replies[got["id"]] = got["result"]
    assert replies == {number: [f"question {number}"] for number in numbers}


async def test_a_request_may_have_the_id_of_a_call(caller: Caller) -> None:
    task = asyncio.create_task(caller.connection.call("answer", timeout=LONG))
    message = await called(caller)
    call_id = str(message["id"])
    assert await caller.ask(request("echo", [1], message["id"])) == accepted("[1]", call_id)
    assert await caller.ask(request("nothing", id=message["id"])) == refused(
        -32601, "nothing", call_id, outcome="not_delivered"
    )
    assert await caller.answers(f'{{"jsonrpc":"2.0","id":"{call_id}","result":1}}') == []
    assert not task.done()
    await caller.send(reply(message, result="mine"))
    assert await asyncio.wait_for(task, WAIT) == "mine"


async def test_a_cancel_of_the_clients_does_not_reach_the_gateways_calls(caller: Caller) -> None:
    task = asyncio.create_task(caller.connection.call("answer", timeout=LONG))
    message = await called(caller)
    assert await caller.ask(request("rpc.cancel", {"id": message["id"]}, "c")) == accepted("false", '"c"')
    await caller.send(reply(message, result=1))
    assert await asyncio.wait_for(task, WAIT) == 1


async def test_who_was_called_leaves_the_drain_when_it_has_answered(caller: Caller) -> None:
    other = await connect(caller.client)
    await caller.send(request("relay", [other.conn_id, "a"]))
    message = await called(other)
    caller.app[STATUS].drain()
    drain = asyncio.create_task(caller.app[CONNECTIONS].drain(20.0, 1.0))
    for each in (caller, other):
        assert json.loads(await each.receive())["method"] == "gateway.draining"
    await asyncio.sleep(1.1)
    assert {caller.conn_id, other.conn_id} <= caller.app[CONNECTIONS].keys()
    await other.send(reply(message, result="A"))
    assert await caller.receive() == accepted('"A"')
    async with asyncio.timeout(WAIT):
        assert await caller.closed() == 1001
        assert await other.closed() == 1001
        await drain
