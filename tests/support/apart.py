"""Tests that run a second time, with peers that are connected to different gateways of one cluster.

A test, or all of a module, is marked with `pytest.mark.apart`. It gets its gateways by the fixture `aiohttp_client` and
a helper such as `tests.support.kept.gateway_for`, or by the fixtures `gateway` and `scene`. In the second run there are
two gateways in place of one: the first connection is to the first, the next one to the second, and so on in turn. What
one of them is told of nodes and events the other knows before the test goes on.

Not marked are tests of one connection, for which there is nobody who could be elsewhere; tests that look at the insides
of a gateway, its lines or its counts, as only one gateway has them; tests of a scripted gateway, or of none; and those
of what is different with several gateways, which `docs/protocol.md` lists and tests/system/test_cluster.py shows.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, cast

from aiohttp import ClientWebSocketResponse, WSMessage
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY, STATUS, create_app
from gateway.assembly.cluster import Cluster
from gateway.client import Client as PythonClient
from gateway.config import parse
from tests.support.nats import NatsServer
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, Line

Client = TestClient[Request, Application]
Serve = Callable[..., Awaitable[dict[str, Any]]]

HISTORY: Final = 1 << 20
"""What NATS reserves for the events of each test, in bytes."""

ROUNDS: Final = 3
"""How often mail may cause other mail until all is quiet."""

_clusters = itertools.count()


class Synced(ClientWebSocketResponse):
    """A client's end of a connection. What it hears is known to both gateways by then."""

    twins: "Twins"

    async def receive(self, *args: Any, **keys: Any) -> WSMessage:
        """The next message."""
        message = await super().receive(*args, **keys)
        await self.twins.agree()
        return message


class Twins:
    """Two gateways in this process that are one to a test."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients: Final = clients
        self._turns = itertools.cycle(clients)
        for client in clients:
            vars(client)["twins"] = self

    def next(self) -> Client:
        """The gateway for the next connection."""
        return next(self._turns)

    @property
    def app(self) -> Application:
        """Fail: which one is meant?"""
        raise AssertionError("there are two gateways: see tests.support.apart")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.next(), name)

    @property
    def _clusters(self) -> list[Cluster]:
        return [cluster for client in self.clients if (cluster := client.app[GATEWAY].cluster) is not None]

    async def agree(self) -> None:
        """Wait until each knows the nodes and the events of the other."""
        first, second = self._clusters
        async with asyncio.timeout(WAIT):
            while not (_knows(first, second) and _knows(second, first)):
                await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until all mail has arrived, and the mail that it has caused."""
        for _ in range(ROUNDS):
            for cluster in self._clusters:
                await cluster.nats.flush(WAIT)


def _knows(one: Cluster, other: Cluster) -> bool:
    member = one.members.others.get(other.members.address)
    copy = None if member is None else one.roster._copies[member]
    there, here = other.stream._replica, one.stream._replica
    return (
        copy is not None
        and copy.is_whole
        and copy.number == other.roster.number
        and one.stream.available
        and (here.epoch, here.head) == (there.epoch, there.head)
    )


def in_cluster(server: NatsServer, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configurations of two gateways of a cluster of their own, which are otherwise as this one."""
    name = f"apart{next(_clusters)}"
    joined = {"nats": [server.url], "name": name, "storage": "memory"}
    events = {"history_bytes": HISTORY, **config.get("events", {})}
    return [{**config, "events": events, "cluster": {**joined, "member": member}} for member in "ab"]


class Apart:
    """What the fixture `aiohttp_client` is in the second run."""

    def __init__(self, start: AiohttpClient, server: NatsServer) -> None:
        self._start = start
        self._server = server

    async def __call__(self, *args: Any, **keys: Any) -> Client:
        """Fail: it has no cluster."""
        raise AssertionError("this gateway is not made by `started`")

    async def twins(self, methods: Iterable[object], config: dict[str, Any]) -> Twins:
        """Start both, with these methods, and wait until they know each other."""
        synced: Any = type("Synced", (Synced,), {})
        configs = in_cluster(self._server, config)
        starts = [self._start(create_app(parse(each), methods), ws_response_class=synced) for each in configs]
        twins = Twins(list(await asyncio.gather(*starts)))
        synced.twins = twins
        await twins.agree()
        for client in twins.clients:
            client.app[STATUS].ready()  # it would wait for others, longer than most tests take
        return twins


async def started(aiohttp_client: AiohttpClient, methods: Iterable[object], config: dict[str, Any]) -> Client:
    """Start a gateway with these methods and sections of the configuration, or two that are one."""
    if isinstance(aiohttp_client, Apart):
        return cast(Client, await aiohttp_client.twins(methods, config))
    return await aiohttp_client(create_app(parse(config), methods))


def place(client: Client) -> Client:
    """Return the gateway to which the next connection is made."""
    twins: Twins | None = client if isinstance(client, Twins) else vars(client).get("twins")
    return client if twins is None else twins.next()


def each(client: Client) -> list[Client]:
    """Return the gateways that are one."""
    return client.clients if isinstance(client, Twins) else [client]


async def settled(ws: ClientWebSocketResponse) -> None:
    """Wait until all that was said before this moment has arrived where it was meant to."""
    if isinstance(ws, Synced):
        await ws.twins.settle()


class TwinProcesses:
    """Two gateways in processes of their own that are one to a test. Each of `url` and `port` is that of the next."""

    host = "127.0.0.1"
    tls = unix = None

    def __init__(self, places: list[GatewayProcess]) -> None:
        self._places = places
        self._turns = itertools.cycle(places)

    def url(self, path: str = "/", *, websocket: bool = False) -> str:
        """See `GatewayProcess`."""
        return next(self._turns).url(path, websocket=websocket)

    @property
    def port(self) -> int:
        """See `GatewayProcess`."""
        return next(self._turns).port

    def events(self, event: str, **fields: Any) -> list[Line]:
        """See `GatewayProcess`. Those of both."""
        return [line for place in self._places for line in place.events(event, **fields)]

    async def know(self, name: str, methods: Iterable[str]) -> None:
        """Wait until both know a node that serves these methods."""
        for place in self._places:
            with await RawPeer.open(place) as peer:
                await peer.welcome()
                async with asyncio.timeout(WAIT):
                    while not set(methods) <= await _methods_of(peer, name):
                        await asyncio.sleep(0.01)


async def _methods_of(peer: RawPeer, name: str) -> set[str]:
    await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "node.get", "params": {"name": name}})
    return {method["name"] for method in (await peer.recv_json()).get("result", {}).get("methods", ())}


def patient(twins: TwinProcesses, serve: Serve) -> Serve:
    """Return a `Client.serve` that waits until both gateways know the node."""

    async def wrapped(client: PythonClient, name: str | None = None, **keys: Any) -> dict[str, Any]:
        registered = await serve(client, name, **keys)
        await twins.know(registered["name"], registered["methods"])
        return registered

    return wrapped
