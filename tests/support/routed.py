"""For tests of routed calls: a gateway in its own process with a node and a caller, texts as they are, and counts."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from tests.support.apart import in_cluster
from tests.support.credentials import scrape
from tests.support.nats import NatsServer
from tests.support.patience import WAIT
from tests.support.peers import Opcode, RawPeer
from tests.support.process import Config, GatewayProcess
from tests.support.rpc import accepted, refused, request

METRIC: Final = re.compile(r'gateway_requests_total\{method="(?:routed|node\.call)",outcome="(\w+)"\}')
SNAP: Final = "pi: camera.snap"
"""What the gateway's errors say of the call."""


async def say(peer: RawPeer, text: str) -> None:
    """Send one text message as it is."""
    await peer.send_frame(Opcode.TEXT, text.encode())


async def hear(peer: RawPeer) -> str:
    """The next text message as it is."""
    got = await peer.recv_frame()
    assert (got.fin, got.opcode) == (True, Opcode.TEXT), got
    return got.payload.decode()


async def ask(peer: RawPeer, text: str) -> str:
    await say(peer, text)
    return await hear(peer)


async def quiet(peer: RawPeer) -> None:
    """Fail unless nothing has been sent to this peer before the reply to a ping."""
    assert await ask(peer, request("gateway.ping", id="quiet")) == accepted("null", '"quiet"')


async def register(peer: RawPeer, name: str, *methods: str, **more: object) -> None:
    """Become a node."""
    params = {"name": name, "methods": [{"name": method} for method in methods], **more}
    assert '"result"' in await ask(peer, request("node.register", params, "register"))


def cancelled(identity: object) -> str:
    """What a node is told of a call that nobody waits for."""
    return f'{{"jsonrpc":"2.0","method":"rpc.cancel","params":{{"id":{identity}}}}}'


def lost(id: str = "1", call: str = SNAP) -> str:
    return refused(-32010, call, id, outcome="unknown")


async def outcomes(where: GatewayProcess, in_flight: int = 0) -> dict[str, int]:
    """The ends of routed calls so far, by the metric's label; so many are in flight."""
    samples = await scrape(where)
    assert samples["gateway_calls_in_flight"] == in_flight
    ends: Counter[str] = Counter()
    for name, count in samples.items():
        if found := METRIC.fullmatch(name):
            ends[found[1]] += count
    return dict(+ends)


class Scene:
    """A gateway with one node, `pi`, that serves `camera.snap`, and one caller. The node may be at another gateway."""

    def __init__(self, places: list[GatewayProcess], node: RawPeer, caller: RawPeer) -> None:
        self.places = places
        self.where = places[0]
        self.node = node
        self.caller = caller
        self.node_id = self.caller_id = ""

    async def call(self, id: object = 1, peer: RawPeer | None = None) -> int:
        """Call `camera.snap`; returns the id under which the node has the call."""
        await say(peer or self.caller, request("camera.snap", id=id))
        return await self.delivered()

    async def delivered(self) -> int:
        """The id of the call that the node gets next."""
        message = json.loads(await hear(self.node))
        assert message["method"] == "camera.snap", message
        return int(message["id"])

    async def outcomes(self, in_flight: int = 0) -> dict[str, int]:
        """See the function of this name. So many are in flight at each gateway."""
        found = [Counter(await outcomes(place, in_flight)) for place in self.places]
        return dict(sum(found, Counter()))

    def failures(self) -> int:
        """How many lines about calls that failed there are."""
        return sum(len(place.events("call.failed")) for place in self.places)

    async def failed(self, error: str, count: int = 1) -> None:
        """Fail unless the log has this many lines about calls that failed, and each says all that is known of it."""
        for _ in range(count):
            line = await self.where.wait_event("call.failed", connId=self.caller_id)
            assert (line["level"].lower(), line["logger"]) == ("info", "gateway.nodes.routing")
            assert (line["remote"], line["method"]) == (self.caller.local, "camera.snap")
            assert (line["node"], line["nodeConnId"]) == ("pi", self.node_id)
            assert (line["error"], line["outcome"]) == (error, "unknown")
            assert 0 <= line["duration"] < 60
            assert not {"params", "result", "leftOut"} & line.keys()

    async def logged(self, count: int) -> None:
        """Fail unless the whole log has this many lines about calls that failed."""
        with await RawPeer.open(self.where) as last:
            await last.leave()
        await self.where.wait_event("connection.closed", remote=last.local)
        assert self.failures() == count


Scenes = Callable[..., AbstractAsyncContextManager[Scene]]
"""What `scene` is, or the same with some arguments."""


@asynccontextmanager
async def scene(config: Config | None = None, server: NatsServer | None = None) -> AsyncIterator[Scene]:
    """Start a gateway and have its node and its caller enter. With ``server`` the node is at another gateway."""
    async with AsyncExitStack() as stack:
        configs = [config] if server is None else in_cluster(server, dict(config or {}))
        starts = [stack.enter_async_context(GatewayProcess(each)) for each in configs]
        places = await asyncio.gather(*starts)
        with await RawPeer.open(places[-1]) as node, await RawPeer.open(places[0]) as caller:
            made = Scene(places, node, caller)
            made.node_id, made.caller_id = [(await peer.welcome())["connId"] for peer in (node, caller)]
            await register(node, "pi", "camera.snap")
            await known(caller, "pi")
            yield made


async def known(peer: RawPeer, name: str) -> None:
    """Wait until a peer's gateway knows a node."""
    async with asyncio.timeout(WAIT):
        while '"error"' in await ask(peer, request("node.get", {"name": name}, "known")):
            await asyncio.sleep(0.01)
