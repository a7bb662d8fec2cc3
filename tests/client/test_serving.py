"""Methods that the client serves: answers, errors, progress, context, cancelling, and no more at once than agreed."""

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
from msgspec import Raw

from gateway.client import Backoff, CallError, Client, ServedCall, connect
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess, StartGateway
from tests.support.scripted_gateway import Peer, scripted

pytestmark = pytest.mark.apart


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
        assert await caller.call("work.late", node="pi", wait=WAIT, timeout=WAIT) is True
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
        assert (error.name, error.outcome, error.may_be_sent_again) == ("overloaded", None, False)
        release.set()
        assert await asyncio.gather(*waiting) == ["done"] * 2
        assert await caller.call("work.wait") == "done"


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


class Ended(BaseException):
    """What no method should raise."""


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def _cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


BAD: dict[str, Callable[[], Any]] = {
    "result: surrogate": lambda: "\ud83d",
    "result: deep": _deep,
    "result: no json": lambda: Raw(b"{"),
    "result: no text": lambda: Raw(b'"\xff"'),
    "error: surrogate": lambda: CallError(1, "\ud83d"),
    "error: deep": lambda: CallError(1, "x", _deep()),
    "error: object": lambda: CallError(1, "x", object()),
    "error: code": lambda: CallError(cast(Any, "x"), "x"),
    "error: cancelled": asyncio.CancelledError,
    "error: base": Ended,
    "error: stop": StopIteration,
}


async def test_whatever_a_method_does_its_caller_gets_an_answer_and_nothing_else_is_lost(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tracebacks quote what was wrong, and no worker of the tests can pass that on.
    monkeypatch.setattr(logging.getLogger("gateway.client"), "propagate", False)
    process = await gateway()
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def plain(params: Any, call: ServedCall) -> Any:
        done = BAD[params[0]]()
        if isinstance(done, BaseException):
            raise done
        return done

    async def late(params: Any, call: ServedCall) -> Any:
        await asyncio.sleep(0)
        done = BAD[params[0]]()
        if isinstance(done, BaseException) and not isinstance(done, StopIteration):
            raise done
        return done

    async def cancels_itself(params: Any, call: ServedCall) -> None:
        _cancels_itself()
        await asyncio.sleep(0)

    async with to(process) as node, to(process) as caller:
        node.method("work.plain")(plain)
        node.method("work.late")(late)
        node.method("work.itself")(cancels_itself)
        release = asyncio.Event()
        node.method("work.wait")(lambda params, call: release.wait())
        await node.serve("pi")
        waiting = asyncio.create_task(caller.call("work.wait", timeout=WAIT))
        for what in BAD:
            for method in ("work.plain", "work.late"):
                error = await failed(caller.call(method, [what], timeout=WAIT))
                assert (error.code, error.outcome) == (-32603, "unknown"), (what, method)
        assert (await failed(caller.call("work.itself", timeout=WAIT))).code == -32603
        release.set()
        assert await waiting is True
        await until(lambda: node.serving_calls == 0, "some are left")
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def test_what_is_too_large_is_refused_to_the_one_who_sent_it_and_nothing_else_is_lost(
    gateway: StartGateway,
) -> None:
    process = await gateway({"limits": {"max_message_bytes": 10_000, "max_outbox_bytes": 100_000}})
    large = "x" * 20_000
    async with to(process) as node, to(process) as caller:
        runs = 0
        release = asyncio.Event()

        @node.method("work.large")
        async def work(params: Any, call: ServedCall) -> Any:
            nonlocal runs
            runs += 1
            if params == ["wait"]:
                return await release.wait()
            if params == ["progress"]:
                return await call.progress(large)
            if params == ["own call"]:
                return await node.call("gateway.ping", [large])
            if params == ["result"]:
                return large
            raise CallError(1001, large if params == ["message"] else "no film", large)

        await node.serve("pi")
        before = [node.welcome["connId"], caller.welcome["connId"]]
        waiting = asyncio.create_task(caller.call("work.large", ["wait"], timeout=WAIT))
        served = ("result", "message", "data", "progress", "own call")
        for what in served:
            error = await failed(caller.call("work.large", [what], timeout=WAIT, retry=True))
            assert (error.outcome, error.may_be_sent_again) == ("unknown", False), what
        assert runs == 1 + len(served)
        (batched,) = await caller.batch([("gateway.ping", [large])])
        for sending in (
            caller.call("gateway.ping", [large]),
            caller.call("gateway.ping", [large], node="pi"),
            caller.notify("work.large", [large]),
            caller.publish("a.b", large),
        ):
            error = await failed(sending)
            assert (
                (error.name, error.outcome) == (batched.name, batched.outcome) == ("invalid_request", "not_delivered")
            )
        release.set()
        assert await waiting is True
        assert [node.welcome["connId"], caller.welcome["connId"]] == before


async def test_a_reply_that_is_ready_leaves_before_the_client_closes(gateway: StartGateway) -> None:
    process = await gateway()
    async with to(process) as caller:
        async with to(process) as node:
            begun = asyncio.Event()

            @node.method("work.do")
            def do(params: Any, call: ServedCall) -> str:
                begun.set()
                return "done"

            await node.serve("pi")
            calling = asyncio.create_task(caller.call("work.do", timeout=WAIT))
            await asyncio.wait_for(begun.wait(), WAIT)
        assert await calling == "done"
