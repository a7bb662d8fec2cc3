"""Methods that the fuzz run loads by `methods.modules`: what the gateway's own, all plain `def`, do not show."""

import asyncio

from msgspec import Raw

from gateway.connections.connection import Connection
from gateway.rpc.method import AUTHENTICATED, method


@method("fuzz.later", scope=AUTHENTICATED)
async def later(peer: Connection, params: bytes) -> Raw:
    """Return the parameters, unchanged, two loop passes later."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return Raw(params or b"null")


@method("fuzz.barrier", scope=AUTHENTICATED)
async def barrier(peer: Connection) -> None:
    """Answer when this is the only request in flight: what comes behind the reply was not asked for before it."""
    while len(peer.running) > 1:
        await asyncio.sleep(0)
