"""Methods that the client serves: answers, errors, progress, context, cancelling, and no more at once than agreed."""

import asyncio
import logging
from typing import Any

import pytest

from gateway.client import Backoff, CallError, Client, ServedCall, connect
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess, StartGateway
from tests.support.scripted_gateway import Peer, scripted


def to(process: GatewayProcess, **options: Any) -> Client:
    """A client of this gateway, without a proxy."""
    return connect(process.url("/ws", websocket=True), backoff=Backoff(0.001, 0.01), **options)


async def failed(work: Any) -> CallError:
    with pytest.raises(CallError) as error:
        await work
    return error.value


async def test_plain_and_async_methods_their_params_and_their_description(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as node, to(process) as caller:

        @node.method("work.plain", summary="Do it", params={"type": "object"})
        def plain(params: Any, call: ServedCall) -> Any:
            return {"params": params, "caller": call.caller, "method": call.method}

        with pytest.raises(ValueError, match="no method"):
            await caller.serve("nothing")
        assert await node.serve("pi") == {"name": "pi", "methods": ["work.plain"]}

        @node.method("work.late")
        async def late(params: Any, call: ServedCall) -> Any:
            await asyncio.sleep(0)
            left = call.time_left
            return left is not None and 0 < left <= WAIT

        expected = {"params": {"a": [1, None]}, "caller": "anonymous", "method": "work.plain"}
        assert await caller.call("work.plain", {"a": [1, None]}) == expected
        assert (await caller.call("work.plain"))["params"] is None
        await until(lambda: bool(process.events("node.online", serves=2)), "the late method was not registered")
        assert await caller.call("work.late", node="pi", timeout=WAIT) is True
        known = await caller.call("node.get", {"name": "pi"})
        assert known["methods"][0] == {"name": "work.plain", "summary": "Do it", "params": {"type": "object"}}


async def test_errors_of_its_own_and_defects(gateway: StartGateway, caplog: pytest.LogCaptureFixture) -> None:
    process = await gateway()
    async with to(process) as node, to(process) as caller:

        @node.method("work.fail")
        async def fail(params: Any, call: ServedCall) -> Any:
            if params == ["film"]:
                raise CallError(1001, "no film", {"left": 0})
            if params == ["data"]:
                raise CallError(1001, "no film", object())
            if params == ["cancelled"]:
                raise asyncio.CancelledError
            return object() if params == ["object"] else dict[str, int]()["secret"]

        await node.serve("pi")
        own = await failed(caller.call("work.fail", ["film"]))
        assert (own.code, own.message, own.data) == (1001, "no film", {"left": 0})
        with caplog.at_level(logging.ERROR, "gateway.client"):
            for what in ("data", "cancelled", "object", "key"):
                error = await failed(caller.call("work.fail", [what]))
                assert (error.name, error.temporary) == ("internal_error", False)
                assert "secret" not in error.message
        assert len(caplog.records) == 4


async def test_what_it_cannot_do_is_refused(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"max_message_bytes": 10_000, "max_outbox_bytes": 100_000}})
    async with to(process, max_calls=2) as node, to(process) as caller:
        release = asyncio.Event()
        progress: list[str] = []

        @node.method("work.wait")
        async def wait(params: Any, call: ServedCall) -> str:
            await release.wait()
            return "done"

        @node.method("work.large")
        async def large(params: Any, call: ServedCall) -> str:
            try:
                await call.progress("x" * 20_000)
            except ValueError as error:
                progress.append(str(error))
            return "x" * 20_000

        await node.serve("pi")
        assert (await failed(caller.call("work.large"))).name == "internal_error"
        assert "more than the gateway takes" in progress[0]
        waiting = [asyncio.create_task(caller.call("work.wait")) for _ in range(2)]
        await until(lambda: node.serving_calls == 2, "they did not begin")
        error = await failed(caller.call("work.wait"))
        assert (error.name, error.outcome, error.retry_after) == ("overloaded", None, None), (
            "the gateway did not say it"
        )
        assert {"nodeOutcome": "not_delivered", "nodeRetryAfterMs": 100}.items() <= error.data.items()
        again = asyncio.create_task(caller.call("work.wait", retry=True))
        await asyncio.sleep(0.05)
        release.set()
        assert await asyncio.gather(*waiting, again) == ["done"] * 3


async def test_the_deadline_of_the_caller_cancels_at_the_node(gateway: StartGateway) -> None:
    process = await gateway()
    cancelled = asyncio.Event()
    async with to(process) as node, to(process) as caller:

        @node.method("work.long")
        async def long(params: Any, call: ServedCall) -> None:
            try:
                await asyncio.sleep(30)
            finally:
                cancelled.set()

        await node.serve("pi")
        assert (await failed(caller.call("work.long", timeout=0.1))).name == "timeout"
        await asyncio.wait_for(cancelled.wait(), WAIT)


async def test_a_notification_is_served_and_not_answered(gateway: StartGateway) -> None:
    process = await gateway()
    got: asyncio.Queue[Any] = asyncio.Queue()
    async with to(process) as node, to(process) as caller:

        @node.method("work.note")
        async def note(params: Any, call: ServedCall) -> None:
            await call.progress("for nobody")
            got.put_nowait(params)

        await node.serve("pi")
        await caller.notify("work.note", [1])
        assert await asyncio.wait_for(got.get(), WAIT) == [1]
        await caller.notify("work.unknown")
        assert await caller.call("gateway.ping", [2]) == [2]


async def test_the_gateway_itself_may_call() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        ready = await peer.request()
        for method in ("operator.confirm", "operator.unknown"):
            await peer.ws.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"question": "?"}})
            answers.append(await peer.request())
        await peer.answer(ready, None)
        await peer.stay()

    answers: list[dict[str, Any]] = []
    async with scripted(script) as gateway, connect(gateway.url) as client:
        client.method("operator.confirm")(lambda params, call: (params, call.caller, call.time_left))
        await client.call("ready")
    assert answers[0]["result"] == [{"question": "?"}, "", None]
    assert answers[1]["error"]["code"] == -32601


async def test_a_refused_registration_is_raised(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as node:
        node.method("gateway.mine")(lambda params, call: None)
        assert (await failed(node.serve("pi"))).name == "invalid_params"
