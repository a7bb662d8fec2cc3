"""Gateways that share a NATS: a server for them, and their configuration."""

from typing import Any

from tests.support.nats import NatsServer
from tests.support.process import Config


def nats_for_gateways(config: str = "") -> NatsServer:
    """Return a server that gateways join: with JetStream, and a `max_payload` above their largest message."""
    return NatsServer(f"max_payload: 2MB\n{config}", jetstream=True)


def clustered(server: NatsServer, member: str = "", *, server_keys: Config | None = None, **keys: Any) -> Config:
    """Return the configuration of a gateway that joins there. `keys` are further ones of `[cluster]`."""
    return {
        "server": {"host": "127.0.0.1", "port": 0, **(server_keys or {})},
        "cluster": {"nats": [server.url], "member": member, **keys},
    }
