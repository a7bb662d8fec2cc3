"""Calls within their time: waiting, sending again what is safe, and what is known when the time is over."""

import asyncio
from typing import Any

import pytest

from gateway.client import CallError, Client, connect
from gateway.client.calling import encode_params
from tests.support.fleet import until
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


async def failing(client: Client, **options: Any) -> CallError:
    with pytest.raises(CallError) as failed:
        await client.call("x.y", **options)
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
        await peer.refuse(await peer.request(), code, name, retryAfterMs=20)
        await peer.answer(await peer.request(), "done")
        await peer.refuse(await peer.request(), code, name, retryAfterMs=20)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url) as client:
        assert await client.call("x.y", retry=True) == "done"
        assert (await failing(client)).name == name


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
