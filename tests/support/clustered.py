"""Gateways that share a NATS: a server for them, and their configuration."""

import asyncio
from functools import partial
from typing import Any

from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY, create_app
from gateway.assembly.cluster import Cluster
from gateway.config import parse
from tests.support.fleet import until
from tests.support.nats import NatsServer
from tests.support.patience import WAIT
from tests.support.process import Config
from tests.support.rpc import Caller, connect


def nats_for_gateways(config: str = "") -> NatsServer:
    """Return a server that gateways join: with JetStream, and a `max_payload` above their largest message."""
    return NatsServer(f"max_payload: 2MB\n{config}", jetstream=True)


def clustered(server: NatsServer, member: str = "", *, server_keys: Config | None = None, **keys: Any) -> Config:
    """Return the configuration of a gateway that joins there. `keys` are further ones of `[cluster]`."""
    return {
        "server": {"host": "127.0.0.1", "port": 0, **(server_keys or {})},
        "cluster": {"nats": [server.url], "member": member, **keys},
    }


def cluster_of(caller: Caller) -> Cluster:
    """Return what makes the gateway of a caller one of several."""
    cluster = caller.app[GATEWAY].cluster
    assert cluster is not None
    return cluster


def _knows(caller: Caller, others: int) -> bool:
    return len(cluster_of(caller).members.others) == others


async def callers(aiohttp_client: AiohttpClient, server: NatsServer, *names: str, **sections: Any) -> list[Caller]:
    """Start gateways with these names in this process, and return a caller of each. All know each other."""
    configs = [parse({**clustered(server, name), **sections}) for name in names]
    clients = [await aiohttp_client(create_app(config)) for config in configs]
    async with asyncio.timeout(WAIT):
        await asyncio.gather(*(joining for client in clients if (joining := client.app[GATEWAY].joining)))
    found = [await connect(client) for client in clients]
    for caller in found:
        await until(partial(_knows, caller, len(names) - 1), "they do not know each other")
    return found
