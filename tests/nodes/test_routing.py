"""Routed calls over real connections: each way in which one can end, batches, progress, and payloads byte for byte.

Each end has its reply, what it says of the call, its line in the log and its metric.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY
from gateway.nodes.registry import Nodes, Served
from gateway.nodes.routing import Router
from gateway.rpc import jsonrpc
from gateway.rpc.calls import FIRST_ID, Calls
from gateway.telemetry.lines import CALL_FAILED, Lines
from tests.support import routed
from tests.support.credentials import OP, PI, Holder, TokensFile, entered
from tests.support.fleet import until
from tests.support.patience import START
from tests.support.peers import Opcode, RawPeer
from tests.support.process import ROOT, Config, GatewayProcess, StartGateway
from tests.support.routed import SNAP, Scene, Scenes, ask, cancelled, hear, lost, outcomes, quiet, register, say
from tests.support.rpc import Listing, NodeListing, accepted, connect, notification, refused, request, serve


@pytest.fixture
def scene(placed: str, request: pytest.FixtureRequest) -> Scenes:
    """Start one gateway, or two with the node at the other (tests.support.apart)."""
    if placed == "alone":
        return routed.scene
    return partial(routed.scene, server=request.getfixturevalue("nats_for_all"))


# The ends of a call that the node has got


class End(NamedTuple):
    """A way in which a call ends: what is done, what the caller and the node get for it, and what is counted."""

    act: Callable[[Scene, int], Awaitable[None]]
    reply: str | None
    outcome: str
    to_node: bool = False
    config: Config | None = None


async def _answer(it: Scene, identity: int) -> None:
    await say(it.node, f'{{"jsonrpc":"2.0","id":{identity},"result": [1 , 2.50] }}')


async def _error(it: Scene, identity: int) -> None:
    error = '{"message":"no  film", "code": 7,"data":[1e400] , "more":1}'
    await say(it.node, f'{{"error": {error} ,"id":{identity},"jsonrpc":"2.0"}}')


async def _leave(it: Scene, identity: int) -> None:
    await it.node.send_close(1000)


async def _reset(it: Scene, identity: int) -> None:
    it.node.rst()


async def _operator(it: Scene, identity: int) -> None:
    """The node does not answer the close frame, and nobody waits for that."""
    with await RawPeer.open(it.where) as operator:
        await operator.welcome()
        reply = await ask(operator, request("connection.close", {"connId": it.node_id}))
        assert reply == accepted('{"closed":true}')


async def _replace(it: Scene, identity: int) -> None:
    with await RawPeer.open(it.where) as newer:
        await newer.welcome()
        await register(newer, "pi", "camera.snap")
        got = await it.node.recv_frame()
        assert (got.opcode, it.node.close_code) == (Opcode.CLOSE, 4502)


async def _cancel(it: Scene, identity: int) -> None:
    await say(it.caller, notification("rpc.cancel", {"id": 1}))


async def _vanish(it: Scene, identity: int) -> None:
    it.caller.rst()


async def _wait(it: Scene, identity: int) -> None:
    """Its deadline comes."""


ENDS: Final = {
    "the node answers": End(_answer, accepted("[1 , 2.50]"), "ok"),
    "the node answers with an error": End(
        _error,
        '{"jsonrpc":"2.0","id":1,"error":{"message":"no  film", "code": 7,"data":[1e400] , "more":1}}',
        "error",
    ),
    "the node closes": End(_leave, lost(), "node_lost"),
    "the node's transport is lost": End(_reset, lost(), "node_lost"),
    "an operator closes the node": End(_operator, lost(), "node_lost"),
    "the node is replaced": End(_replace, lost(), "node_lost"),
    "the deadline": End(
        _wait, refused(-32008, SNAP, outcome="unknown"), "timeout", True, {"limits": {"call_timeout": 0.3}}
    ),
    "the caller cancels": End(_cancel, refused(-32800, SNAP, outcome="unknown"), "cancelled", True),
    "the caller is lost": End(_vanish, None, "caller_lost", True),
}


@pytest.mark.apart
@pytest.mark.parametrize("name", ENDS)
async def test_a_call_ends(name: str, scene: Scenes) -> None:
    end = ENDS[name]
    async with scene(end.config) as it:
        identity = await it.call()
        await end.act(it, identity)
        if end.reply is not None:
            assert await hear(it.caller) == end.reply
            await quiet(it.caller)
        if end.to_node:
            assert await hear(it.node) == cancelled(identity)
            await quiet(it.node)
        if end.outcome not in ("ok", "error"):
            await it.failed(end.outcome)
        assert await it.outcomes() == {end.outcome: 1}
        await it.logged(0 if end.outcome in ("ok", "error") else 1)


GARBLED: Final = (
    '{%,"error":"text"}',
    '{%,"error":{}}',
    '{%,"error":null}',
    '{%,"error":[1,"a"]}',
    '{%,"error":{"code":"1","message":"a"}}',
    '{%,"error":{"code":1.5,"message":"a"}}',
    '{%,"error":{"code":1}}',
    '{%,"error":{"code":1,"message":null}}',
    '{%,"result":1,"error":{"code":1,"message":"a"}}',
    '{%,"result":null,"error":{"code":1,"message":"a"}}',
    '{%,"result":1,"error":0}',
    "{%}",
    '{%,"params":[]}',
    '{%,"result":1,"jsonrpc":"1.0"}',
    '{%,"result":1,"jsonrpc":2}',
)


MESSAGE: Final = 65536
"""Bytes that a message may have where a test says so."""


def overflowing(detail: str, outcome: str, id: str = "1") -> str:
    """The refusal of what the gateway's envelope would make too large; `id` is JSON."""
    data = f'{{"code":"overloaded","temporary":false,"outcome":"{outcome}"}}'
    return f'{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32009,"message":"Too large: {detail}","data":{data}}}}}'


def filled(head: str, tail: str, length: int = MESSAGE) -> str:
    """A text of this length: head, a string of blanks, tail."""
    return f'{head}"{" " * (length - len(head) - len(tail) - 2)}"{tail}'


@pytest.mark.apart
async def test_no_envelope_makes_a_call_larger_than_a_message_may_be(scene: Scenes) -> None:
    """The node's library would close with 1009, and the call of another would be lost with it."""
    async with scene({"limits": {"max_message_bytes": MESSAGE, "call_timeout": 300.0}}) as it:
        detail = f"pi would get more than {MESSAGE} bytes"
        head = f'{{"jsonrpc":"2.0","id":{FIRST_ID},"method":"camera.snap","params":['
        await say(it.caller, filled(head, "]}"))
        assert await hear(it.node) == filled(head, "]}"), "it is as long as it was"
        shorter = head.replace(str(FIRST_ID), "0")
        for end in ("]}", '],"traceparent":"00-a"}'):
            assert await ask(it.caller, filled(shorter, end)) == overflowing(detail, "not_delivered", "0")
        await quiet(it.node)
        await say(it.caller, filled(shorter, "]}", MESSAGE - len(head) + len(shorter)))
        assert len(await hear(it.node)) == MESSAGE
        await _answer(it, FIRST_ID)
        assert await hear(it.caller) == accepted("[1 , 2.50]", str(FIRST_ID))
        assert await it.outcomes(in_flight=1) == {"overloaded": 2, "ok": 1}
        await it.logged(0)


@pytest.mark.apart
async def test_no_context_makes_a_call_larger_than_a_message_may_be(scene: Scenes) -> None:
    async with scene({"limits": {"max_message_bytes": MESSAGE}}) as it:
        await register(it.node, "pi", "camera.snap", context=True)
        head = '{"jsonrpc":"2.0","id":1,"method":"camera.snap","params":['
        refusal = overflowing(f"pi would get more than {MESSAGE} bytes", "not_delivered")
        assert await ask(it.caller, filled(head, "]}")) == refusal
        await say(it.caller, filled(head.replace('"id":1,', ""), "]}"))
        await quiet(it.caller)
        await quiet(it.node)
        assert await it.outcomes() == {"overloaded": 2}


@pytest.mark.apart
@pytest.mark.parametrize("member", ["result", "error"])
async def test_no_envelope_makes_a_reply_larger_than_a_message_may_be(member: str, scene: Scenes) -> None:
    async with scene({"limits": {"max_message_bytes": MESSAGE}}) as it:
        long = f'"{"x" * 1022}"'
        value = ('"result":[', "]}") if member == "result" else ('"error":{"code":1,"message":', "}}")
        for fits in (False, True):
            await say(it.caller, f'{{"jsonrpc":"2.0","id":{long},"method":"camera.snap"}}')
            identity = await it.delivered()
            more = len(long) - len(str(identity))
            head = f'{{"jsonrpc":"2.0","id":{identity},{value[0]}'
            await say(it.node, filled(head, value[1], MESSAGE - more * fits))
            got = await hear(it.caller)
            detail = f"{SNAP}: the reply would have more than {MESSAGE} bytes"
            assert (len(got) == MESSAGE) if fits else (got == overflowing(detail, "unknown", long))
        await quiet(it.node)
        await it.failed("overloaded")
        assert await it.outcomes() == {"overloaded": 1, "ok" if member == "result" else "error": 1}


@pytest.mark.apart
async def test_progress_that_its_envelope_makes_too_large_is_dropped_and_the_call_goes_on(scene: Scenes) -> None:
    async with scene({"limits": {"max_message_bytes": MESSAGE}}) as it:
        long = f'"{"x" * 1022}"'
        await say(it.caller, f'{{"jsonrpc":"2.0","id":{long},"method":"camera.snap"}}')
        identity = await it.delivered()
        head = f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"id":{identity},"value":['
        await say(it.node, filled(head, "]}}"))
        await quiet(it.node)
        await quiet(it.caller)
        await say(it.node, filled(head, "]}}", MESSAGE - len(long) + len(str(identity))))
        assert len(await hear(it.caller)) == MESSAGE
        await _answer(it, identity)
        assert await hear(it.caller) == accepted("[1 , 2.50]", long)
        assert await it.outcomes() == {"ok": 1}


@pytest.mark.apart
@pytest.mark.parametrize("batch", [False, True])
async def test_e9_an_answer_that_is_no_json_rpc_ends_its_call_at_once_and_is_not_answered(
    batch: bool, scene: Scenes
) -> None:
    """The deadline is far away, and the id belongs to the gateway's numbers: the node may have a call of the same."""
    async with scene({"limits": {"call_timeout": 300.0}}) as it:
        for text in GARBLED:
            answer = text.replace("%", f'"jsonrpc":"2.0","id":{await it.call()}')
            await say(it.node, f"[{answer}]" if batch else answer)
            detail = f"{SNAP}: the answer is not JSON-RPC"
            assert await hear(it.caller) == refused(-32603, detail, outcome="unknown"), text
            await quiet(it.node)
        without = f'{{"id":{await it.call()},"result":1}}'
        await say(it.node, f"[{without}]" if batch else without)
        assert json.loads(await hear(it.caller))["error"]["data"]["outcome"] == "unknown"
        await quiet(it.node)
        await it.failed("internal_error", len(GARBLED) + 1)
        assert await it.outcomes() == {"internal_error": len(GARBLED) + 1}


@pytest.mark.apart
async def test_an_error_of_null_beside_a_result_is_no_error(scene: Scenes) -> None:
    async with scene() as it:
        for value in ("1", "null"):
            await say(it.node, f'{{"jsonrpc":"2.0","id":{await it.call()},"result":{value},"error":null}}')
            assert await hear(it.caller) == accepted(value)
        await quiet(it.node)
        assert await it.outcomes() == {"ok": 2}


@pytest.mark.apart
async def test_a_garbled_answer_that_is_late_is_refused_under_no_id_of_the_nodes(scene: Scenes) -> None:
    async with scene() as it:
        for text in ('{"jsonrpc":"2.0","id":7,"result":1,"error":{}}', '{"id":7,"result":1}', '{"id":7,"error":null}'):
            reply = json.loads(await ask(it.node, text))
            assert (reply["id"], reply["error"]["code"]) == (None, -32600), text
        await quiet(it.node)


PROGRAM: Final = """
import asyncio, sys
from tests.support.peers import RawPeer, Target

async def main():
    peer = await RawPeer.open(Target(int(sys.argv[1])))
    params = {"name": sys.argv[2], "methods": [{"name": sys.argv[3]}]}
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "node.register", "params": params})
    while True:
        message = await peer.recv_json(60.0)
        print(message.get("method", "registered"), flush=True)

asyncio.run(main())
"""


class Machine:
    """A node in a process of its own, which takes calls and never answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def printed(self, word: str) -> None:
        """Wait until it has got this."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START):
            while (line := await self.process.stdout.readline()).decode().strip() != word:
                assert line, "the node has ended"


@asynccontextmanager
async def machine(where: GatewayProcess, name: str, method: str) -> AsyncIterator[Machine]:
    """Start a node's process and wait until it is registered."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(where.port), name, method),
        cwd=ROOT,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        node = Machine(process)
        await node.printed("registered")
        yield node
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_when_the_process_of_a_node_is_killed_all_its_callers_are_answered_at_once(gateway: StartGateway) -> None:
    """They wait for no deadline, neither of the calls nor of the heartbeat, which would be named as the cause."""
    beat = {"heartbeat": {"interval": 200.0, "timeout": 60.0}, "server": {"receive_timeout": 300.0}}
    where = await gateway({**beat, "limits": {"call_timeout": 300.0}})
    with await RawPeer.open(where) as one, await RawPeer.open(where) as two:
        for peer in (one, two):
            await peer.welcome()
        async with machine(where, "pi", "snap") as node:
            for peer in (one, two):
                batch = f"[{request('snap', id=2)},{request('snap', id=3)}]"
                await say(peer, request("snap", id=1))
                await say(peer, batch)
            for _ in range(6):
                await node.printed("snap")
            node.process.kill()
            for peer in (one, two):
                first, second, third = (lost(id, "pi: snap") for id in "123")
                assert await hear(peer) == first
                assert await hear(peer) == f"[{second},{third}]"
            offline = await where.wait_event("node.offline", node="pi")
        for _ in range(6):
            await where.wait_event("call.failed", error="node_lost", outcome="unknown")
        assert (await outcomes(where))["node_lost"] == 6
        closed = await where.wait_event("connection.closed", connId=offline["connId"])
        assert closed["cause"] == "transport_lost"


# The ends of a call that no node has got


@pytest.mark.apart
async def test_a_call_to_nobody_is_answered_at_once(scene: Scenes) -> None:
    cases = {
        request("camera.off"): refused(-32601, "camera.off", outcome="not_delivered"),
        request("node.call", ["nix", "camera.snap"]): refused(-32004, "no node 'nix'", outcome="not_delivered"),
        request("node.call", ["pi", "camera.off"]): refused(-32601, "pi has no 'camera.off'", outcome="not_delivered"),
        request("node.call", ["pi", "gateway.ping"]): refused(
            -32601, "pi has no 'gateway.ping'", outcome="not_delivered"
        ),
    }
    async with scene() as it:
        for asked, reply in cases.items():
            assert await ask(it.caller, asked) == reply
        # Not a call: what is under the gateway's names is no node's.
        assert await ask(it.caller, request("node.nope")) == refused(-32601, "node.nope")
        await quiet(it.node)
        assert await it.outcomes() == {"method_not_found": 4, "not_found": 1}
        await it.logged(0)


@pytest.mark.apart
async def test_a_node_with_too_many_calls_in_flight_gets_no_more(scene: Scenes) -> None:
    async with scene({"limits": {"max_node_in_flight": 2}}) as it:
        with await RawPeer.open(it.where) as second:
            await second.welcome()
            first = await it.call(1)
            await it.call(2, second)
            detail = "pi has 2 calls in flight"
            for asked in (request("camera.snap", id=3), request("node.call", ["pi", "camera.snap"], 3)):
                reply = refused(-32009, detail, "3", retryAfterMs=100, outcome="not_delivered")
                assert await ask(it.caller, asked) == reply
            await quiet(it.node)
            await it.logged(0)
            await _answer(it, first)
            assert await hear(it.caller) == accepted("[1 , 2.50]")
            await it.call(4)
            assert await it.outcomes(in_flight=2) == {"ok": 1, "overloaded": 2}
            await register(second, "lamp", "camera.snap")
            await say(it.caller, request("camera.snap", id=5))
            assert json.loads(await hear(second))["method"] == "camera.snap", "there is another now"


@pytest.mark.apart
async def test_a_caller_has_so_many_calls_in_flight(scene: Scenes) -> None:
    async with scene({"limits": {"max_in_flight": 2}}) as it:
        identities = [await it.call(number) for number in (1, 2)]
        for asked in (request("camera.snap", id=3), request("node.call", ["pi", "camera.snap"], 3)):
            reply = refused(-32009, "2 requests are in flight", "3", retryAfterMs=100, outcome="not_delivered")
            assert await ask(it.caller, asked) == reply
        await quiet(it.node)
        for number, identity in enumerate(identities, 1):
            await _answer(it, identity)
            assert await hear(it.caller) == accepted("[1 , 2.50]", str(number))
        assert await it.outcomes() == {"ok": 2, "overloaded": 2}
        await it.logged(0)


async def test_what_is_in_flight_may_end_while_draining_and_nothing_new_begins(scene: Scenes) -> None:
    async with scene() as it:
        identity = await it.call()
        it.where.terminate()
        for peer in (it.caller, it.node):
            assert json.loads(await hear(peer))["method"] == "gateway.draining"
        for asked in (request("camera.snap", id=2), request("node.call", ["pi", "camera.snap"], 2)):
            assert await ask(it.caller, asked) == refused(-32011, id="2", outcome="not_delivered")
        assert await it.outcomes(in_flight=1) == {"draining": 2}
        await say(it.node, f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"id":{identity},"value":50}}}}')
        assert json.loads(await hear(it.caller))["params"] == {"id": 1, "value": 50}
        await asyncio.sleep(1.1)  # by then who has nothing in flight is gone
        await _answer(it, identity)
        assert await hear(it.caller) == accepted("[1 , 2.50]")
        for peer in (it.caller, it.node):
            assert (await peer.recv_frame()).opcode == Opcode.CLOSE
            assert peer.close_code == 1001
            await peer.send_close(1001)
        assert await it.where.wait() == 0


async def test_who_may_not_call_is_refused(gateway: StartGateway, tmp_path: Path) -> None:
    page = Holder("page", "ui", ("call:lamp.*",))
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI, page)
    where = await gateway({"auth": tokens.auth})
    with (
        await entered(where, tokens.of(PI)) as node,
        await entered(where, tokens.of(page)) as caller,
        await entered(where, tokens.of(OP)) as operator,
    ):
        await register(node, "pi", "camera.snap", "lamp.on", context=True)
        reply = refused(-32003, "call:camera.snap", outcome="not_delivered")
        for asked in (
            request("camera.snap"),
            request("node.call", ["pi", "camera.snap"]),
            request("node.call", ["nix", "camera.snap"]),  # nor does it learn which nodes there are
        ):
            assert await ask(caller, asked) == reply
        await say(caller, notification("camera.snap"))
        await quiet(caller)
        await quiet(node)
        for peer, name, method in ((caller, "page", "lamp.on"), (operator, "op", "camera.snap")):
            await say(peer, request("node.call", {"node": "pi", "method": method, "params": [1], "timeoutMs": 7000}))
            got = await hear(node)
            identity = json.loads(got)["id"]
            head = f'{{"jsonrpc":"2.0","id":{identity},"method":"{method}","params":[1]'
            assert got == f'{head},"context":{{"caller":"{name}","timeLeftMs":7000}}}}'
            await say(node, f'{{"jsonrpc":"2.0","id":{identity},"result":0}}')
            assert await hear(peer) == accepted("0")
        assert (await outcomes(where))["forbidden"] == 4


@pytest.mark.apart
async def test_an_id_that_is_in_flight_is_refused(scene: Scenes) -> None:
    async with scene() as it:
        identity = await it.call("a")
        for asked in (request("camera.snap", id="a"), request("node.call", ["pi", "camera.snap"], "a")):
            assert json.loads(await ask(it.caller, asked))["error"]["code"] == -32007
        batch = await ask(it.caller, f"[{request('camera.snap', id='a')}]")
        assert [reply["error"]["code"] for reply in json.loads(batch)] == [-32007]
        await quiet(it.node)
        await _answer(it, identity)
        assert await hear(it.caller) == accepted("[1 , 2.50]", '"a"')
        await it.call("a")


async def test_a_late_reply_is_dropped_and_counted(aiohttp_client: AiohttpClient) -> None:
    caller = await serve(aiohttp_client, limits={"call_timeout": 0.1})
    node, other = await connect(caller.client), await connect(caller.client)
    for peer, name in ((node, "pi"), (other, "lamp")):
        await peer.result("node.register", {"name": name, "methods": [{"name": f"{name}.on"}]})
    await caller.send(request("pi.on"))
    identity = json.loads(await node.receive())["id"]
    stolen = json.dumps({"jsonrpc": "2.0", "id": identity, "result": "another's"})
    assert await other.answers(stolen) == []
    assert await caller.receive() == refused(-32008, "pi: pi.on", outcome="unknown")
    assert await node.receive() == cancelled(identity)
    assert await node.answers(stolen) == []
    assert await node.answers(json.dumps({"jsonrpc": "2.0", "id": identity, "error": {"code": 1, "message": ""}})) == []
    assert await caller.answers(notification("rpc.cancel", {"id": 1})) == []
    assert caller.app[GATEWAY].dispatcher.late_replies == 3
    assert len(caller.app[GATEWAY].calls) == 0


# Many calls


@pytest.mark.apart
async def test_calls_inside_a_batch_are_answered_in_one_array(scene: Scenes) -> None:
    async with scene() as it:
        parts = [
            request("camera.snap", [1], 1),
            request("gateway.ping", [0], 2),
            notification("camera.snap", [2]),
            request("node.call", ["pi", "camera.snap", [3]], "c"),
            request("camera.off", id=4),
            request("camera.snap", [5], 5),
        ]
        await say(it.caller, f"[{','.join(parts)}]")
        got = [json.loads(await hear(it.node)) for _ in range(4)]
        assert [message["params"] for message in got] == [[1], [2], [3], [5]]
        assert ["id" in message for message in got] == [True, False, True, True]
        await say(it.node, f'[{{"jsonrpc":"2.0","id":{got[2]["id"]},"result":"C"}}]')
        await say(it.caller, notification("rpc.cancel", {"id": 5}))
        assert await hear(it.node) == cancelled(got[3]["id"])
        await quiet(it.caller)
        await _answer(it, got[0]["id"])
        wanted = [
            accepted("[0]", "2"),
            refused(-32601, "camera.off", "4", outcome="not_delivered"),
            accepted('"C"', '"c"'),
            refused(-32800, SNAP, "5", outcome="unknown"),
            accepted("[1 , 2.50]"),
        ]
        assert await hear(it.caller) == f"[{','.join(wanted)}]"
        assert await it.outcomes() == {"ok": 3, "cancelled": 1, "method_not_found": 1}


@pytest.mark.apart
async def test_of_many_calls_that_fail_the_first_are_logged(scene: Scenes) -> None:
    count = 25
    async with scene() as it:
        await say(it.caller, f"[{','.join(request('camera.snap', id=number) for number in range(count))}]")
        for _ in range(count):
            await it.delivered()
        it.node.rst()
        assert await hear(it.caller) == f"[{','.join(lost(str(number)) for number in range(count))}]"
        await it.failed("node_lost", 20)
        await it.logged(20)
        assert await it.outcomes() == {"node_lost": count}


@pytest.mark.apart
async def test_progress_comes_in_order_and_before_the_result(scene: Scenes) -> None:
    async with scene() as it:
        identities = {"a": await it.call("a"), "b": await it.call("b")}
        for number in range(200):
            for identity in identities.values():
                params = {"id": identity, "value": [identity, number]}
                await say(it.node, notification("rpc.progress", params))
        for identity in identities.values():
            await _answer(it, identity)
        heard: dict[str, list[Any]] = {"a": [], "b": []}
        for _ in range(400):
            message = json.loads(await hear(it.caller))
            assert message["method"] == "rpc.progress"
            heard[message["params"]["id"]].append(message["params"]["value"])
        assert heard == {id: [[identity, n] for n in range(200)] for id, identity in identities.items()}
        assert [await hear(it.caller) for _ in "ab"] == [accepted("[1 , 2.50]", f'"{id}"') for id in "ab"]
        await quiet(it.caller)


@pytest.mark.apart
async def test_nodes_may_call_nodes_and_themselves(scene: Scenes) -> None:
    async with scene() as it:
        with await RawPeer.open(it.where) as lamp:
            await lamp.welcome()
            await register(lamp, "lamp", "lamp.on")
            outer = await it.call("outer")
            # Ids of the two directions may be the same: they are never mixed up.
            await say(it.node, request("lamp.on", id=outer))
            inner = json.loads(await hear(lamp))["id"]
            await _answer(it, await it.call("own", it.node))
            assert await hear(it.node) == accepted("[1 , 2.50]", '"own"')
            await say(lamp, f'{{"jsonrpc":"2.0","id":{inner},"result":"on"}}')
            assert await hear(it.node) == accepted('"on"', str(outer))
            await _answer(it, outer)
            assert await hear(it.caller) == accepted("[1 , 2.50]", '"outer"')
            # A node that is lost is a caller that is lost too, also of its own call.
            await say(it.node, request("lamp.on", id=1))
            inner = json.loads(await hear(lamp))["id"]
            await it.call("own", it.node)
            it.node.rst()
            assert await hear(lamp) == cancelled(inner)
            await until(lambda: it.failures() == 2, "each is told of once")
        assert await it.outcomes() == {"ok": 3, "caller_lost": 2}


@pytest.mark.apart
async def test_notifications_reach_a_node_and_are_never_answered(scene: Scenes) -> None:
    async with scene({"limits": {"max_node_in_flight": 1}}) as it:
        await it.call()
        for params in (None, [1], {"a": 1}):
            await say(it.caller, notification("camera.snap", params))
            message = json.loads(await hear(it.node))
            assert "id" not in message
            assert message.get("params") == params
        await say(it.caller, notification("node.call", ["pi", "camera.snap", [2]]))
        assert await hear(it.node) == '{"jsonrpc":"2.0","method":"camera.snap","params":[2]}'
        for text in (notification("camera.off"), notification("node.call", ["nix", "camera.snap"])):
            await say(it.caller, text)
        await quiet(it.caller)
        await quiet(it.node)


# Byte for byte

PAYLOADS: Final = {
    "spacing": '[ 1 ,\t{ "a" :\n[ ] } ]',
    "escapes": r'{"\u0061\/":"\u00e9\ud83d\ude00\u0000\b\"\\"}',
    "plain": '["é \N{GRINNING FACE} \u2028 \u007f"]',
    "big integers": "[123456789012345678901234567890, -9223372036854775809, 18446744073709551616]",
    "numbers": "[1e400, -1E+400, -0.0, 0.10, 1E2, 1e-999, 3.141592653589793238462643383279]",
    "a name twice": '{"a":1,"a":2, "id":3,"jsonrpc":"9","method":"x","result":0}',
    "nesting": "[" * 500 + "]" * 500,
    "900 KB": f'["{"x" * 450_000}", "{"é" * 225_000}"]',
}
"""What is decoded and encoded anew would come out otherwise."""
SCALARS: Final = ("null", "0", "1e400", "true", r'"\u0041 \/"', "123456789012345678901234567890", "{}", "[ ]")
IDS: Final = ("0", "-5", "123456789012345678901234567890", r'"\u0061\/"', '""', '" é "', "null")


@pytest.mark.apart
async def test_payloads_pass_byte_for_byte(scene: Scenes) -> None:
    async with scene() as it:
        for name, payload in PAYLOADS.items():
            direct = f'{{"params" : {payload} ,"id":"a", "method":"camera.snap","jsonrpc":"2.0" }}'
            named = f'{{"timeoutMs":9000,"params":  {payload}\n, "node":"pi","method":"camera.snap"}}'
            for text in (direct, f'{{"jsonrpc":"2.0","id":"a","method":"node.call","params":{named}}}'):
                await say(it.caller, text)
                got = await hear(it.node)
                identity = json.loads(got[: got.index(',"method"')] + "}")["id"]
                assert got == (f'{{"jsonrpc":"2.0","id":{identity},"method":"camera.snap","params":{payload}}}'), name
                await say(it.node, f'{{ "result" : {payload} ,"jsonrpc":"2.0","id": {identity} }}')
                assert await hear(it.caller) == accepted(payload, '"a"'), name


@pytest.mark.apart
async def test_results_errors_and_ids_pass_byte_for_byte(scene: Scenes) -> None:
    async with scene() as it:
        errors = ('{"code":1 , "message":"\\u0041"}', '{"data":1e400,"message":"","code":-12345678901234567890}')
        for member, values in (("result", (*SCALARS, *errors)), ("error", errors)):
            for value in values:
                identity = await it.call()
                await say(it.node, f'{{"jsonrpc":"2.0","{member}":\t{value}\n,"id":{identity}}}')
                assert await hear(it.caller) == f'{{"jsonrpc":"2.0","id":1,"{member}":{value}}}'
        for id in IDS:
            await say(it.caller, f'{{"jsonrpc":"2.0","id": {id} ,"method":"camera.snap"}}')
            await _answer(it, await it.delivered())
            assert await hear(it.caller) == accepted("[1 , 2.50]", id)


async def test_of_very_many_failed_calls_the_first_are_logged_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway.nodes.routing")
    now = [1000.0]
    nodes, calls, caller = Nodes(lambda node, change: None, lambda node: None), Calls(), Listing()
    burst, window = CALL_FAILED.burst, CALL_FAILED.window
    router = Router(
        nodes,
        calls,
        call_timeout=9.0,
        max_in_flight=100,
        max_node_in_flight=100,
        max_message_bytes=MESSAGE,
        max_credit_bytes=MESSAGE,
        lines=Lines(lambda: now[0]),
        clock=lambda: now[0],
    )

    def fail(count: int) -> list[dict[str, Any]]:
        """So many calls are lost with their node, after a second and a half; the lines that this leaves."""
        machine = NodeListing()
        nodes.register(machine, "pi", [Served("snap", b'"snap"', "call:snap", "", b"")], False)
        for number in range(count):
            router.call(caller, jsonrpc.Message("2.0", method="snap"), b"", b"%d" % number, None)
        now[0] += 1.5
        caplog.clear()
        calls.lost(machine)
        return [vars(record) for record in caplog.records]

    first = fail(burst + 7)
    now[0] += window
    (later,) = fail(1)
    assert len(first) == burst
    assert all("leftOut" not in line for line in first)
    assert (later["event"], later["leftOut"], later["error"]) == ("call.failed", 7, "node_lost")
    assert {line["duration"] for line in (*first, later)} == {1.5}
