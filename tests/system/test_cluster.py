"""Gateways in processes of their own that share a NATS, and clients of each: together they are one gateway."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from gateway.client import CallError, Client, Event, ServedCall, connect
from tests.support.clustered import clustered, nats_for_gateways
from tests.support.nats import NatsServer
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import Config, GatewayProcess

SHORT = {"server": {"drain_timeout": 5.0, "close_timeout": 0.5}}


class Pair:
    """Two gateways with a client each: the caller is connected to `a`, the node `pi` to `b`. As an async context."""

    def __init__(self, config: Config | None = None) -> None:
        self._keys = dict((config or {}).get("server", {}))
        self._stack = AsyncExitStack()
        self.begun = asyncio.Event()
        """Set when `pi` has begun with `wait`."""
        self.go_on = asyncio.Event()
        """`wait` returns when it is set."""

    async def __aenter__(self) -> "Pair":
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self._stack)  # if not all can be started, those that are end
            await self._start()
            stack.pop_all()
        return self

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        self.server: NatsServer = await enter(nats_for_gateways())
        gateways = [GatewayProcess(clustered(self.server, name, server_keys=self._keys)) for name in "ab"]
        self.a, self.b = await asyncio.gather(*map(enter, gateways))
        self.caller = await self.client(self.a)
        self.node = await self.client(self.b)
        self.node.method("echo")(self._echo)
        self.node.method("wait")(self._wait)
        await self.node.serve("pi")
        await self.serves(self.caller, "echo")

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    async def client(self, where: GatewayProcess) -> Client:
        """One more client."""
        return await self._stack.enter_async_context(connect(where.url("/ws", websocket=True)))

    async def _echo(self, params: Any, call: ServedCall) -> Any:
        return params

    async def _wait(self, params: Any, call: ServedCall) -> str:
        self.begun.set()
        await self.go_on.wait()
        return "done"

    @staticmethod
    async def serves(client: Client, method: str, there: bool = True) -> None:
        """Wait until a client's gateway knows a node with this method, or none."""
        async with asyncio.timeout(WAIT):
            while there is not any(
                {"name": method} in node["methods"] for node in (await client.call("node.list"))["nodes"]
            ):
                await asyncio.sleep(0.01)


async def _knows(client: Client, method: str) -> bool:
    return any({"name": method} in node["methods"] for node in (await client.call("node.list"))["nodes"])


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with Pair() as pair:
        yield pair


async def metrics(where: GatewayProcess) -> dict[str, float]:
    with await RawPeer.connect(where) as peer:
        lines = (await peer.get("/metrics")).body.decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


async def test_a_node_elsewhere_is_called_like_one_here(pair: Pair) -> None:
    params = {"text": "é\u2028", "number": 1.50, "list": [None, {}]}
    assert await pair.caller.call("echo", params) == params
    assert await pair.caller.call("node.call", {"node": "pi", "method": "echo", "params": [1]}) == [1]
    for client, gateway in ((pair.caller, pair.a), (pair.node, pair.b)):
        (node,) = (await client.call("node.list"))["nodes"]
        assert (node["name"], node["member"]) == ("pi", "b"), gateway
    assert "echo" in [method["name"] for method in (await pair.caller.call("rpc.discover"))["methods"]]
    assert [one["nodes"] for one in (await pair.caller.call("gateway.info"))["members"]] == [0, 1]
    seen = await metrics(pair.a)
    assert seen["gateway_cluster_call_seconds_count"] == 2.0
    assert seen['gateway_cluster_messages_total{direction="out",kind="call"}'] == 2.0
    assert seen['gateway_cluster_messages_total{direction="in",kind="result"}'] == 2.0
    assert seen['gateway_cluster_messages_total{direction="in",kind="beat"}'] > 0.0
    assert (await metrics(pair.b))['gateway_cluster_messages_total{direction="in",kind="call"}'] == 2.0


async def test_a_call_waits_for_a_node_that_comes_elsewhere(pair: Pair) -> None:
    calling = asyncio.create_task(pair.caller.call("late", {"x": 1}, node="latecomer", wait=WAIT))
    other = await pair.client(pair.b)
    other.method("late")(lambda params, call: params)
    await other.serve("latecomer")
    assert await calling == {"x": 1}


async def test_the_newer_of_two_nodes_has_the_name(pair: Pair) -> None:
    other = await pair.client(pair.a)
    other.method("echo")(lambda params, call: "newer")
    await other.serve("pi")
    line = await pair.b.wait_event("connection.closed", cause="replaced")
    assert line["code"] == 4502
    assert await pair.caller.call("echo", {}) == "newer"


async def test_who_drains_is_called_no_more_and_answers_what_is_in_flight() -> None:
    async with Pair(SHORT) as pair:
        waiting = asyncio.create_task(pair.caller.call("wait"))
        await asyncio.wait_for(pair.begun.wait(), WAIT)
        pair.b.terminate()
        await pair.b.wait_event("server.draining")
        await pair.serves(pair.caller, "echo", there=False)
        with pytest.raises(CallError) as refused:
            await pair.caller.call("echo", {})
        assert refused.value.name == "method_not_found"
        assert not pair.a.events("cluster.member_lost"), "it is there until all is answered"
        pair.go_on.set()
        assert await waiting == "done"
        assert await pair.b.wait() == 0
        assert (await pair.a.wait_event("cluster.member_lost"))["cause"] == "leaving"


async def test_who_is_killed_has_lost_its_calls_within_two_seconds(pair: Pair) -> None:
    waiting = asyncio.create_task(pair.caller.call("wait"))
    await asyncio.wait_for(pair.begun.wait(), WAIT)
    pair.b.signal(signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(CallError) as lost:
        await waiting
    assert time.monotonic() - begin < 2.0
    assert (lost.value.name, lost.value.outcome) == ("node_lost", "unknown")
    await pair.b.wait()


async def test_without_nats_a_node_elsewhere_is_gone_until_nats_is_back(pair: Pair) -> None:
    waiting = asyncio.create_task(pair.caller.call("wait"))
    await asyncio.wait_for(pair.begun.wait(), WAIT)
    pair.server.end()
    with pytest.raises(CallError) as lost:
        await waiting
    assert (lost.value.name, lost.value.outcome) == ("node_lost", "unknown")
    with pytest.raises(CallError) as unknown:
        await pair.caller.call("echo", {})
    assert unknown.value.name == "method_not_found"
    assert (await pair.caller.call("connection.list"))["missing"] == ["b"]
    assert await pair.node.call("echo", {"here": 1}) == {"here": 1}, "where it is it is called as before"
    await pair.server.start()
    await pair.serves(pair.caller, "echo")
    assert await pair.caller.call("echo", {"again": 1}) == {"again": 1}


async def test_what_is_published_at_one_gateway_is_heard_at_all(pair: Pair) -> None:
    async with pair.caller.subscribe("greenhouse.*", "gateway.node.*") as events:
        heard = aiter(events)
        offset = (await pair.node.call("event.publish", {"topic": "greenhouse.door", "data": "open"}))["offset"]
        event = await anext(heard)
        assert isinstance(event, Event)
        assert (event.topic, event.data, event.offset) == ("greenhouse.door", "open", offset)
        other = await pair.client(pair.b)
        other.method("new")(lambda params, call: None)
        await other.serve("newcomer")
        event = await anext(heard)
        assert isinstance(event, Event)
        assert (event.topic, event.data["member"], event.data["node"]) == ("gateway.node.online", "b", "newcomer")


async def test_without_nats_nothing_is_published_and_nothing_is_published_later(pair: Pair) -> None:
    async with pair.caller.subscribe("greenhouse.*") as events:
        heard = aiter(events)
        pair.server.end()
        await pair.b.wait_event("cluster.lost")
        with pytest.raises(CallError) as refused:
            await pair.node.call("event.publish", {"topic": "greenhouse.door", "data": "never"})
        assert (refused.value.name, refused.value.outcome) == ("unavailable", "not_delivered")
        await pair.server.start()
        async with asyncio.timeout(WAIT):
            while True:
                with suppress(CallError):
                    await pair.node.call("event.publish", {"topic": "greenhouse.door", "data": "shut"})
                    break
                await asyncio.sleep(0.05)
        event = await anext(heard)
        assert isinstance(event, Event)
        assert event.data == "shut"
