"""Streams of the client, both ways: in order, whole, and no faster than the other side takes them."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.client import Backoff, CallError, Client, ServedCall, State, connect
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess, StartGateway
from tests.support.scripted_gateway import Peer, scripted, serve_nothing

pytestmark = pytest.mark.apart


def to(process: GatewayProcess, **options: Any) -> Client:
    """A client of this gateway, without a proxy."""
    return connect(process.url("/ws", websocket=True), backoff=Backoff(0.001, 0.01), **options)


@asynccontextmanager
async def both(gateway: StartGateway) -> AsyncIterator[tuple[Client, Client]]:
    """A node, which has yet to serve, and a caller."""
    process = await gateway()
    async with to(process) as node, to(process) as caller:
        yield node, caller


async def failed(work: Any) -> CallError:
    with pytest.raises(CallError) as error:
        await asyncio.wait_for(work, WAIT)
    return error.value


async def values(source: Any) -> list[Any]:
    """All that comes until the end."""
    async with asyncio.timeout(WAIT):
        return [value async for value in source]


class Counter:
    """A method that sends numbers, and notes how many the client took of it."""

    def __init__(self) -> None:
        self.sent = 0
        self.over: BaseException | None = None

    async def __call__(self, params: Any, call: ServedCall) -> Any:
        try:
            for number in itertools.count() if params is None else range(*params):
                await call.progress(number)
                self.sent += 1
        except BaseException as error:
            self.over = error
            raise
        return {"sent": self.sent}


async def test_a_slow_reader_gets_all_in_order_and_holds_the_node_back(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        count = Counter()
        node.method("count")(count)
        await node.serve("pi")
        async with caller.stream("count", [200], credit=8) as stream:
            seen = []
            async for value in stream:
                seen.append(value)
                assert count.sent <= len(seen) + 8, "more were sent than read and granted"
                await caller.call("gateway.ping", timeout=WAIT)
                assert count.sent <= len(seen) + 8
            assert seen == list(range(200))
            assert await stream.result() == {"sent": 200}


async def test_bytes_hold_the_node_back_too_and_a_value_may_be_longer(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        sent = list[int]()

        @node.method("long")
        async def long(params: Any, call: ServedCall) -> None:
            for number in range(20):
                await call.progress(f"{number}{'x' * 5000}")
                sent.append(number)

        await node.serve("pi")
        async with caller.stream("long", credit=1024, nbytes=4000, node="pi", timeout=WAIT) as stream:
            for number in range(20):
                assert (await anext(stream)).startswith(f"{number}x")
                assert len(sent) <= number + 2
            assert await stream.result() is None


async def test_a_slow_node_holds_the_caller_back(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        pushed, read = 0, list[int]()

        @node.method("sum")
        async def add(params: Any, call: ServedCall) -> Any:
            assert call.is_stream
            async for value in call:
                read.append(value)
                await node.call("gateway.ping", timeout=WAIT)
                assert pushed <= len(read) + 16
            return sum(read)

        await node.serve("pi")
        async with caller.stream("sum") as stream:
            for number in range(100):
                await stream.send(number)
                pushed += 1
            await stream.end()
            await stream.end()
            assert (await failed(stream.send(1))).outcome == "not_delivered"
            assert await stream.result() == sum(range(100))
        assert read == list(range(100))
        assert (await failed(stream.send(1))).outcome == "not_delivered"


async def test_nothing_is_pushed_before_the_node_reads(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        reads = asyncio.Event()

        @node.method("later")
        async def later(params: Any, call: ServedCall) -> Any:
            await reads.wait()
            assert call.time_left is not None
            first = await anext(aiter(call))  # the loop may be left, and read on later
            return [first, *await values(call)]

        await node.serve("pi")
        async with caller.stream("later") as stream:
            sending = asyncio.create_task(stream.send("a"))
            await caller.call("gateway.ping", timeout=WAIT)
            assert not sending.done()
            reads.set()
            await sending
            await stream.send("b")
            await stream.end()
            assert await stream.result() == ["a", "b"]


async def test_a_value_whose_sender_gives_up_is_not_sent_and_costs_nothing(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        reads = asyncio.Event()

        @node.method("later")
        async def later(params: Any, call: ServedCall) -> Any:
            await reads.wait()
            return await values(call)

        await node.serve("pi")
        async with caller.stream("later") as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stream.send("given up")
            reads.set()
            with pytest.raises(ValueError, match="more than the gateway takes"):
                await stream.send("x" * (2 << 20))
            with pytest.raises(TypeError):
                await stream.send(object())
            for number in range(40):
                await stream.send(number)
            await stream.end()
            assert await stream.result() == list(range(40))


async def test_leaving_the_block_cancels_the_call_at_the_node(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        count = Counter()
        node.method("count")(count)
        await node.serve("pi")
        async with caller.stream("count") as stream:
            assert await anext(stream) == 0
        await until(lambda: node.serving_calls == 0, "the method still runs")
        assert isinstance(count.over, asyncio.CancelledError)
        assert (await failed(anext(stream))).name == "cancelled"
        assert (await failed(stream.result())).name == "cancelled"
        assert (await failed(stream.send(1))).name == "cancelled"
        with pytest.raises(RuntimeError, match="used once"):
            await stream.__aenter__()


async def test_both_loops_of_a_node_end_with_the_reason_when_the_caller_has_gone(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        reasons = list[Any]()

        @node.method("apart")
        async def apart(params: Any, call: ServedCall) -> None:
            async def reading() -> None:
                await values(call)

            async def sending() -> None:
                for number in itertools.count():
                    await call.progress(number)

            tasks = [asyncio.create_task(reading()), asyncio.create_task(sending())]
            try:
                await asyncio.Event().wait()
            finally:
                reasons.extend(await asyncio.gather(*tasks, return_exceptions=True))

        await node.serve("pi")
        async with caller.stream("apart") as stream:
            await anext(stream)
        await until(lambda: len(reasons) == 2, "the loops go on")
        assert [reason.name for reason in reasons] == ["cancelled", "cancelled"]


async def test_an_error_of_the_method_comes_after_its_values(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):

        @node.method("fail")
        async def fail(params: Any, call: ServedCall) -> None:
            for number in range(3):
                await call.progress(number)
            raise CallError(1001, "no film")

        await node.serve("pi")
        async with caller.stream("fail") as stream:
            seen = [await anext(stream) for _ in range(3)]
            assert seen == [0, 1, 2]
            for work in (anext(stream), stream.result(), stream.send(1)):
                assert (await failed(work)).message == "no film"
            await stream.end()


async def test_a_call_that_is_no_stream_has_no_loop_and_its_progress_does_not_wait(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):

        @node.method("plain")
        async def plain(params: Any, call: ServedCall) -> Any:
            for number in range(300):
                await call.progress(number)
            with pytest.raises(TypeError, match="no stream"):
                aiter(call)
            return call.is_stream

        await node.serve("pi")
        assert await caller.call("plain", timeout=WAIT) is False


async def test_a_node_that_knows_no_streams_is_told_of(gateway: StartGateway) -> None:
    async with both(gateway) as (node, caller):
        await node.call("node.register", {"name": "old", "methods": [{"name": "x.y"}]})
        async with caller.stream("x.y", node="old", wait=WAIT) as stream:
            error = await failed(anext(stream))
        assert (error.name, error.outcome) == ("invalid_params", "not_delivered")


async def test_a_stream_through_cuts_loses_nothing(gateway: StartGateway) -> None:
    process = await gateway()
    async with FaultyProxy(process.host, process.port) as near, FaultyProxy(process.host, process.port) as far:
        node = connect(near.url(), backoff=Backoff(0.001, 0.005))
        async with node, connect(far.url(), backoff=Backoff(0.001, 0.005)) as caller:

            @node.method("echo")
            async def echo(params: Any, call: ServedCall) -> Any:
                count = 0
                async for value in call:
                    await call.progress(value)
                    count += 1
                return count

            await node.serve("pi")
            async with asyncio.timeout(WAIT), caller.stream("echo", node="pi", timeout=WAIT) as stream:
                pushing = asyncio.create_task(push(stream, 300))
                seen = list[int]()
                async for value in stream:
                    seen.append(value)
                    if len(seen) % 30 == 0:
                        (near if len(seen) % 60 else far).cut("reset" if len(seen) % 90 else "fin")
                assert seen == list(range(300))
                assert await stream.result() == 300
                await pushing
        assert near.cuts + far.cuts >= 8


async def push(stream: Any, count: int) -> None:
    """Push so many numbers, and end."""
    for number in range(count):
        await stream.send(number)
    await stream.end()


# Against a gateway that is written down


async def test_what_is_asked_and_granted_in_halves_and_renewed() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxOutboxBytes=2000, callTimeoutMs=300)
        asked.append(await peer.request())
        for number in range(4):
            await peer.notify("rpc.progress", id=asked[0]["id"], value=number)
        while (grant := await peer.message())["method"] == "rpc.credit":
            assert grant["params"].pop("id") == asked[0]["id"]
            granted.append(grant["params"])
        await peer.stay()

    asked, granted = list[Any](), list[Any]()
    async with (
        scripted(script) as gateway,
        connect(gateway.url) as client,
        client.stream("x.y", {"a": 1}, credit=4) as one,
    ):
        assert [await anext(one) for _ in range(4)] == [0, 1, 2, 3]
        await until(lambda: len(granted) >= 4, "nothing was renewed")
    assert {**asked[0], "id": 1} == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "x.y",
        "params": {"a": 1},
        "stream": {"credit": 4, "bytes": 1000},
    }
    assert granted[:4] == [{"credit": 2, "bytes": 2}] * 2 + [{"credit": 0, "bytes": 0}] * 2


async def test_more_than_was_granted_ends_the_stream_and_nothing_grows() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.request()
        for number in range(50):
            await peer.notify("rpc.progress", id=asked["id"], value=number)
        told.append(await peer.message())
        await peer.stay()

    told = list[Any]()
    async with scripted(script) as gateway, connect(gateway.url) as client:
        async with client.stream("x.y", credit=3) as stream:
            assert (await failed(stream.result())).name == "overloaded"
            assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            assert (await failed(anext(stream))).name == "overloaded"
        await until(lambda: bool(told), "it was not cancelled")
    assert told[0]["method"] == "rpc.cancel"


async def test_a_node_takes_no_more_than_it_has_granted_and_nothing_of_other_calls() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxOutboxBytes=1000)
        registered = await peer.request()
        assert registered["params"]["streams"] is True
        await peer.answer(registered, {"name": "pi", "methods": ["x.y"]})
        for call_id, stream in ((1, {"credit": 2, "bytes": 9}), (2, {"credit": "many"})):
            await peer.ws.send_json({"jsonrpc": "2.0", "id": call_id, "method": "x.y", "stream": stream})
        said.extend([await peer.message() for _ in range(2)])
        for number in range(17):
            await peer.notify("rpc.push", id=1, value=number)
        for call_id in (3, 7):  # one that is no stream, and none
            await peer.ws.send_json({"jsonrpc": "2.0", "id": 3, "method": "x.y", "stream": None})
            await peer.notify("rpc.push", id=call_id, value="lost")
            await peer.notify("rpc.credit", id=call_id, credit=1, bytes=1)
        said.extend([await peer.message() for _ in range(4)])
        ended.set()
        await peer.stay()

    said, reasons = list[Any](), list[str]()
    pushed, ended = asyncio.Event(), asyncio.Event()
    async with scripted(script) as gateway, connect(gateway.url) as client:

        @client.method("x.y")
        async def served(params: Any, call: ServedCall) -> Any:
            if not call.is_stream:
                pushed.set()
                return "no stream"
            values = aiter(call)
            await pushed.wait()
            reasons.append((await failed(anext(values))).name)
            await call.progress("goes on")
            return "stream"

        await client.serve("pi")
        await asyncio.wait_for(ended.wait(), WAIT)
    assert reasons == ["overloaded"]
    assert {"jsonrpc": "2.0", "method": "rpc.demand", "params": {"id": 1, "credit": 16, "bytes": 500}} in said
    assert [one["error"]["code"] for one in said if "error" in one] == [-32602]
    assert [one["result"] for one in said if one.get("id") == 3] == ["no stream"] * 2
    told = [one for one in said[2:] if one.get("id") != 3]
    assert told == [
        {"jsonrpc": "2.0", "method": "rpc.progress", "params": {"id": 1, "value": "goes on"}},
        {"jsonrpc": "2.0", "id": 1, "result": "stream"},
    ]


async def test_a_value_that_cannot_be_decoded_ends_the_stream_at_both_sides() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.request()
        await peer.notify("rpc.progress", id=asked["id"], value=1)
        await peer.ws.send_str(
            f'{{"jsonrpc":"2.0","method":"rpc.progress","params":{{"id":{asked["id"]},"value":1e999}}}}'
        )
        told.append(await peer.message())
        await peer.stay()

    told = list[Any]()
    async with scripted(script) as gateway, connect(gateway.url) as client:
        async with client.stream("x.y") as stream:
            assert await anext(stream) == 1
            assert "cannot be decoded" in (await failed(anext(stream))).message
        await until(lambda: bool(told), "it was not cancelled")
    assert told[0]["method"] == "rpc.cancel"


async def test_a_lost_connection_ends_both_loops_of_the_caller() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.request()
        await peer.cut()

    async with scripted(script) as gateway, connect(gateway.url, reconnect=False) as client:
        async with client.stream("x.y") as stream:
            for work in (anext(stream), stream.send(1), stream.result()):
                error = await failed(work)
                assert (error.name, error.outcome) == ("connection_lost", "unknown")
        assert client.state in (State.CLOSED, State.WAITING)


async def test_a_stream_that_is_not_sent_in_time_is_told_so_and_one_that_was_goes_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxInFlight=1)
        asked = await peer.request()
        await ended.wait()
        await peer.notify("rpc.progress", id=asked["id"], value="late")
        await peer.answer(asked, "done")
        await peer.stay()

    ended = asyncio.Event()
    async with (
        scripted(script) as gateway,
        connect(gateway.url, keep=False) as client,
        client.stream("x.y", timeout=0.05) as first,
    ):
        async with client.stream("x.y", timeout=0.1) as second:
            error = await failed(second.result())
        ended.set()
        assert await values(first) == ["late"]
        assert await first.result() == "done"
    assert (error.name, error.outcome) == ("timeout", "not_delivered")


@pytest.mark.parametrize("options", [{"credit": 0}, {"credit": 1025}, {"nbytes": 0}, {"wait": 1}])
async def test_what_a_stream_cannot_have(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"credit|nbytes|wait"):
        connect("ws://127.0.0.1:1/ws").stream("x.y", **options)


async def test_a_stream_of_what_cannot_be_sent_says_so_to_its_reader() -> None:
    async with (
        scripted(serve_nothing) as gateway,
        connect(gateway.url) as client,
        client.stream("a\udcff") as stream,
    ):
        with pytest.raises(UnicodeEncodeError):
            async for _ in stream:
                pass
        with pytest.raises(UnicodeEncodeError):
            await stream.result()
        with pytest.raises(CallError):
            await stream.send(1)
