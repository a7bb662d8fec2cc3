"""Calls within their time: waiting, sending again what is safe, and what is known when the time is over."""

import asyncio
import math
from functools import partial
from typing import Any

import aiohttp
import pytest

from gateway import errors
from gateway.client import Backoff, CallError, Client, ConnectionLost, Missed, ServedCall, connect
from gateway.client.calling import encode_params
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import StartGateway
from tests.support.scripted_gateway import Peer, scripted, serve_nothing


@pytest.mark.parametrize("params", [1, "x", True, 1.5])
def test_params_are_structured(params: Any) -> None:
    with pytest.raises(TypeError, match="an array or an object"):
        encode_params(params)


def test_params_in_json() -> None:
    assert encode_params(None) is None
    assert bytes(encode_params({"a": (1, None)}) or b"") == b'{"a":[1,null]}'
    with pytest.raises(TypeError):
        encode_params({"a": object()})


async def failing(client: Client, *, method: str = "x.y", **options: Any) -> CallError:
    with pytest.raises(CallError) as failed:
        await client.call(method, **options)
    return failed.value


async def test_a_call_without_an_answer_is_cancelled_and_its_outcome_unknown() -> None:
    messages: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        messages.append(await peer.request())
        messages.append(await peer.request())
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        error = await failing(client, timeout=0.1)
        await until(lambda: len(messages) == 2, "no rpc.cancel came")
    assert (error.name, error.outcome, error.temporary) == ("timeout", "unknown", True)
    request, cancel = messages
    assert cancel == {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": request["id"]}}


@pytest.mark.parametrize("name", ["overloaded", "rate_limited", "draining"])
async def test_what_is_safe_is_sent_again_if_asked_to(name: str) -> None:
    code = {"overloaded": -32009, "rate_limited": -32002, "draining": -32011}[name]

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.refuse(await peer.request(), code, name, retryAfterMs=20, outcome="not_delivered")
        await peer.answer(await peer.request(), "done")
        await peer.refuse(await peer.request(), code, name, retryAfterMs=20, outcome="not_delivered")
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        assert await client.call("x.y", retry=True) == "done"
        assert (await failing(client)).name == name


async def test_a_foreign_node_that_lets_the_error_of_another_call_through_is_not_called_again(
    gateway: StartGateway,
) -> None:
    """Its error looks like a refusal of the gateway's own, but for the outcome, which only the gateway tells."""
    url = (await gateway()).url("/ws", websocket=True)
    refusals = {f"outer.{one.name}": one for one in (errors.OVERLOADED, errors.RATE_LIMITED, errors.DRAINING)}
    ran: list[str] = []

    async def run(node: aiohttp.ClientWebSocketResponse) -> None:
        async for message in node:
            call = message.json()
            ran.append(call["method"])
            error = refusals[call["method"]]
            data = {"code": error.name, "temporary": True, "retryAfterMs": 1}
            refusal = {"code": error.code, "message": "refused further in", "data": data}
            await node.send_json({"jsonrpc": "2.0", "id": call["id"], "error": refusal})

    async with aiohttp.ClientSession() as session, session.ws_connect(url) as node, connect(url) as client:
        params = {"name": "foreign", "methods": [{"name": name} for name in refusals]}
        await node.send_json({"jsonrpc": "2.0", "id": 1, "method": "node.register", "params": params})
        assert "method" in await node.receive_json()  # the welcome
        assert "result" in await node.receive_json()
        foreign = asyncio.create_task(run(node))
        for method, error in refusals.items():
            failed = await failing(client, method=method, retry=True)
            assert (failed.code, failed.name, failed.outcome) == (error.code, error.name, None)
        assert ran == list(refusals)
        foreign.cancel()


async def test_what_may_have_run_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.refuse(await peer.request(), -32010, "node_lost", outcome="unknown")
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        assert (await failing(client, retry=True)).outcome == "unknown"


async def test_the_last_refusal_says_more_than_a_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.refuse(await peer.request(), -32009, "overloaded", retryAfterMs=5000)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        error = await failing(client, retry=True, timeout=0.2)
        assert (error.name, error.retry_after) == ("overloaded", 5.0)


async def test_the_deadline_goes_to_the_node_and_stays_within_what_the_gateway_bears() -> None:
    requests: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.welcome(maxCallTimeoutMs=5000)
        for _ in range(2):
            requests.append(await peer.request())
            await peer.answer(requests[-1], None)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        await client.call("x.y", {"a": 1}, node="pi", timeout=4.0)
        await client.call("x.y", node="pi", timeout=60.0)
    assert [request["method"] for request in requests] == ["node.call"] * 2
    first, second = (request["params"] for request in requests)
    assert 0 < first.pop("timeoutMs") <= 4000
    assert first == {"node": "pi", "method": "x.y", "params": {"a": 1}}
    assert second == {"node": "pi", "method": "x.y", "timeoutMs": 5000}


@pytest.mark.parametrize("times", [{"timeout": math.inf}, {"timeout": 1e306}, {"timeout": 1.0, "wait": 1e306}])
@pytest.mark.parametrize("queued", [False, True])
async def test_times_without_end_are_the_longest_that_the_gateway_bears(times: dict[str, Any], queued: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxCallTimeoutMs=5000, maxInFlight=1)
        if queued:
            first = await peer.request()
            await waiting.wait()
            await peer.answer(first, "first")
        request = await peer.request()
        await peer.answer(request, request["params"])
        await peer.stay()

    waiting = asyncio.Event()
    async with scripted(script) as gateway, connect(gateway.url) as client:
        first = client.start("x.y") if queued else None
        await asyncio.sleep(0)
        running = client.start("x.y", node="pi", **times)
        await asyncio.sleep(0)
        waiting.set()
        async with asyncio.timeout(WAIT):
            sent = await running
            assert first is None or await first == "first"
    assert sent["timeoutMs"] == 5000 if "wait" not in times else sent["waitMs"] == 5000


async def test_a_batch_has_an_end_for_each() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxBatch=2)
        one, two = await peer.request()
        replies = [{"jsonrpc": "2.0", "id": two["id"], "result": 2}, {"jsonrpc": "2.0", "id": one["id"], "result": 1}]
        await peer.ws.send_json(replies)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        assert await client.batch([]) == []
        assert await client.batch([("x.one", [1]), ("x.two", None)]) == [1, 2]
        late = await client.batch([("x.one", [1]), ("x.two", None)], timeout=0.1)
        assert [(error.name, error.outcome) for error in late] == [("timeout", "unknown")] * 2
        many = await client.batch([("x.one", None)] * 3)
        assert [error.outcome for error in many] == ["not_delivered"] * 3
        assert many[0] is not many[1]
        with pytest.raises(TypeError):
            await client.batch([("x.one", 1)])


async def test_a_notification_with_and_without_params() -> None:
    messages: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        messages.extend([await peer.request(), await peer.request()])
        await peer.answer(await peer.request(), None)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        await client.notify("x.y", [1])
        await client.notify("x.z")
        await client.call("x.y")
    assert messages == [
        {"jsonrpc": "2.0", "method": "x.y", "params": [1]},
        {"jsonrpc": "2.0", "method": "x.z"},
    ]


async def test_nothing_is_sent_behind_the_end() -> None:
    async with scripted(serve_nothing) as gateway, connect(gateway.url) as client:
        calling = asyncio.create_task(client.call("x.y"))
        await asyncio.sleep(0.05)
    with pytest.raises(CallError) as lost:
        await calling
    assert lost.value.outcome == "unknown"
    for work in (client.call("x.y"), client.notify("x.y")):
        with pytest.raises(CallError) as failed:
            await work
        assert (failed.value.name, failed.value.outcome) == ("connection_lost", "not_delivered")


async def test_calls_wait_for_a_place_instead_of_being_refused(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"max_in_flight": 8}})
    url = process.url("/ws", websocket=True)
    async with connect(url) as node, connect(url) as client:
        most = 0

        @node.method("work.do")
        async def work(params: Any, call: ServedCall) -> Any:
            nonlocal most
            most = max(most, node.serving_calls)
            await asyncio.sleep(0)
            return params

        await node.serve("pi")
        calls = [client.call("work.do", [number], timeout=WAIT) for number in range(100)]
        batches = [client.batch([("work.do", [1])] * 3, timeout=WAIT) for _ in range(5)]
        results = await asyncio.gather(*calls, *batches)
    assert results == [[number] for number in range(100)] + [[[1]] * 3] * 5
    assert most <= 8


async def test_what_waits_for_a_place_ends_in_time_and_was_not_sent() -> None:
    messages: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.welcome(maxInFlight=1)
        first = await peer.request()
        await release.wait()
        await peer.answer(first, "first")
        while (request := await peer.request())["params"] != ["last"]:
            messages.append(request)
        await peer.answer(request, "done")
        await peer.stay()

    release = asyncio.Event()
    async with scripted(script) as gateway, connect(gateway.url) as client:
        first = asyncio.create_task(client.call("x.y", ["first"]))
        await asyncio.sleep(0)
        cancelled = asyncio.create_task(client.call("x.y", ["cancelled"]))
        error = await failing(client, params=["late"], timeout=0.05)
        assert (error.name, error.outcome) == ("timeout", "not_delivered")
        (late,) = await client.batch([("x.y", ["late batch"])], timeout=0.05)
        assert (late.name, late.outcome) == ("timeout", "not_delivered")
        cancelled.cancel()
        await client.notify("x.y", ["does not wait"])
        release.set()
        assert (await first, await client.call("x.y", ["last"])) == ("first", "done")
    assert [message["params"] for message in messages] == [["does not wait"]]


@pytest.mark.parametrize("drains", [False, True])
async def test_what_waits_for_a_place_goes_on_over_the_next_link_with_its_limit(drains: bool) -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome(maxInFlight=1)
        request = await peer.request()
        if drains:
            await peer.notify("gateway.draining", deadlineMs=1000, reconnectAfterMs=10)
            await peer.answer(request, "first")
        await peer.close(1001 if drains else 4000)

    async def second(peer: Peer) -> None:
        await peer.welcome(maxInFlight=3)
        three = [await peer.request() for _ in range(3)]  # at once, although none is answered
        for request in three:
            await peer.answer(request, request["params"])
        await peer.answer(await peer.request(), "last")
        await peer.stay()

    async with scripted(first, second) as gateway, connect(gateway.url, backoff=Backoff(0.001, 0.01)) as client:
        calls = [asyncio.create_task(client.call("x.y", [number], timeout=WAIT)) for number in range(5)]
        lost, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert others == [[1], [2], [3], "last"]
        if drains:
            assert lost == "first"
        else:
            assert isinstance(lost, CallError)
            assert lost.outcome == "unknown"


async def test_very_many_calls_that_are_cancelled_at_once_cost_nothing_else() -> None:
    count = 1500
    cancelled: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.welcome(maxInFlight=2 * count)
        asked = [await peer.request() for _ in range(count)]
        begun.set()
        while len(cancelled) < count:
            message = await peer.request()
            assert message["method"] == "rpc.cancel"
            cancelled.append(message["params"]["id"])
        assert cancelled == [request["id"] for request in asked]
        await peer.answer(await peer.request(), "still there")
        await peer.stay()

    begun = asyncio.Event()
    async with scripted(script) as gateway, connect(gateway.url, reconnect=False) as client:
        together = asyncio.gather(*(client.call("x.y", timeout=WAIT) for _ in range(count)))
        await asyncio.wait_for(begun.wait(), WAIT)
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        assert await client.call("x.y", timeout=WAIT) == "still there"
    assert len(cancelled) == count


def _are(begun: list[ServedCall], count: int) -> bool:
    return len(begun) == count


async def test_calls_that_are_cancelled_at_once_leave_their_places(gateway: StartGateway) -> None:
    process = await gateway()
    url = process.url("/ws", websocket=True)
    async with connect(url) as node, connect(url) as client:
        begun: list[ServedCall] = []

        @node.method("work.long")
        async def long(params: Any, call: ServedCall) -> None:
            begun.append(call)
            await asyncio.sleep(WAIT)

        await node.serve("pi")
        conn_id = client.welcome["connId"]
        for count in (64, 128):
            together = asyncio.gather(*(client.call("work.long", timeout=WAIT) for _ in range(1500)))
            await until(partial(_are, begun, count), "not as many as have a place")
            together.cancel()
            with pytest.raises(asyncio.CancelledError):
                await together
        assert await asyncio.gather(*(client.call("gateway.ping", [n]) for n in range(200))) == [
            [n] for n in range(200)
        ]
        assert client.welcome["connId"] == conn_id


async def test_the_progress_that_a_slow_reader_misses_is_told() -> None:
    count = 2000

    async def script(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.request()
        for value in range(count):
            await peer.notify("rpc.progress", id=request["id"], value=value)
        await peer.answer(request, "done")
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        running = client.start("x.y", timeout=WAIT)
        seen, missed = 0, 0
        async for item in running:
            if isinstance(item, Missed):
                missed += item.count
            else:
                assert item == seen + missed
                seen += 1
            if seen % 100 == 1:
                await asyncio.sleep(0.01)
        assert await running == "done"
    assert seen + missed == count
    assert missed > 0


async def test_a_nested_call_that_was_not_delivered_is_not_sent_again_as_the_outer_one(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"max_node_in_flight": 1}})
    url = process.url("/ws", websocket=True)
    async with connect(url) as inner, connect(url) as outer, connect(url) as client:
        runs = 0
        inner.method("inner.wait")(lambda params, call: asyncio.sleep(WAIT))

        @outer.method("outer.do")
        async def do(params: Any, call: ServedCall) -> Any:
            nonlocal runs
            runs += 1
            return await outer.call("inner.wait", timeout=WAIT)

        await inner.serve("inner")
        await outer.serve("outer")
        waiting = asyncio.create_task(client.call("inner.wait", timeout=WAIT))
        await until(lambda: inner.serving_calls == 1, "it did not begin")
        nested = await failing(outer, method="inner.wait")
        assert (nested.name, nested.outcome, nested.may_be_sent_again) == ("overloaded", "not_delivered", True)
        error = await failing(client, method="outer.do", retry=True)
        assert (error.code, error.message) == (nested.code, nested.message)
        assert (error.outcome, error.retry_after) == ("unknown", None)
        assert runs == 1
        waiting.cancel()


@pytest.mark.parametrize("outcome", ["outcome", "nodeOutcome"])
async def test_what_a_node_says_of_the_outcome_is_not_believed(outcome: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.refuse(await peer.request(), -32009, "overloaded", **{outcome: "unknown"}, nodeRetryAfterMs=1)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        error = await failing(client, retry=True)
        assert (error.name, error.outcome) == ("overloaded", "unknown")


@pytest.mark.parametrize("refused", [False, True])
async def test_nothing_is_sent_again_once_the_client_is_closed(refused: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.request()
        if refused:
            await peer.refuse(request, -32009, "overloaded", retryAfterMs=60_000, outcome="not_delivered")
        await peer.stay()

    async with scripted(script) as gateway:
        client = connect(gateway.url, close_timeout=WAIT)
        await client.__aenter__()
        answered = client.start("x.y", timeout=120.0, retry=True)
        await asyncio.sleep(0.05)
        waiting = client.start("x.y", timeout=120.0, retry=True)
        async with asyncio.timeout(WAIT):
            await client.close()
            for running in (answered, waiting):
                with pytest.raises(ConnectionLost):
                    await running


async def test_nothing_is_sent_again_if_there_will_be_no_other_link() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxInFlight=1)
        await peer.request()
        await peer.cut()

    async with scripted(script) as gateway, connect(gateway.url, reconnect=False) as client:
        first = client.start("x.y")
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT):
            lost = await failing(client, timeout=120.0, retry=True)
            assert (lost.name, lost.outcome) == ("connection_lost", "not_delivered")
            with pytest.raises(ConnectionLost):
                await first
