"""For tests of routed calls: a gateway in its own process with a node and a caller, texts as they are, and counts."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.support.credentials import scrape
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
    """A gateway with one node, `pi`, that serves `camera.snap`, and one caller."""

    def __init__(self, where: GatewayProcess, node: RawPeer, caller: RawPeer) -> None:
        self.where = where
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
        """See the function of this name."""
        return await outcomes(self.where, in_flight)

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
        assert len(self.where.events("call.failed")) == count


@asynccontextmanager
async def scene(config: Config | None = None) -> AsyncIterator[Scene]:
    """Start a gateway and have its node and its caller enter."""
    async with GatewayProcess(config) as where:
        with await RawPeer.open(where) as node, await RawPeer.open(where) as caller:
            made = Scene(where, node, caller)
            made.node_id, made.caller_id = [(await peer.welcome())["connId"] for peer in (node, caller)]
            await register(node, "pi", "camera.snap")
            yield made
