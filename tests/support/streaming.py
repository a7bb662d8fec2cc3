"""For tests of streams: a node that knows them, its callers, and the messages by which they grant and send."""

import json
from typing import Any

from gateway.app import GATEWAY
from tests.support.apart import each, settled
from tests.support.kept import Client, Kept
from tests.support.rpc import Caller, connect

Message = dict[str, Any]

REGISTRATION = {"name": "pi", "methods": [{"name": "log.follow"}], "streams": True}


class Peer(Caller):
    """A connection that says and hears messages as objects."""

    async def say(self, message: object) -> None:
        """Send one message."""
        await self.send(json.dumps(message))

    async def next(self) -> Any:
        """The next message."""
        return json.loads(await self.receive())

    async def quiet(self) -> None:
        """See that nothing has come, and that what was said has been handled: a ping's answer is the next."""
        await settled(self.ws)
        assert await self.call("gateway.ping", ["quiet"], "quiet") == reply("quiet", ["quiet"])


async def peer(client: Client) -> Peer:
    """One more connection."""
    made = await connect(client)
    return Peer(made.client, made.ws, made.conn_id)


async def node(client: Client, **more: object) -> Peer:
    """One more connection, which is the node `pi` and knows streams, unless `more` says otherwise."""
    made = await peer(client)
    await made.result("node.register", {**REGISTRATION, **more})
    return made


async def opened(caller: Peer, served: Peer, id: object = 1, **stream: int) -> int:
    """Open a stream. Returns the id under which the node has it."""
    await caller.say({**opening(id), "stream": stream})
    call = await served.next()
    wanted = {"credit": 0, "bytes": 0, **stream}
    assert call == {"jsonrpc": "2.0", "id": call["id"], "method": "log.follow", "params": [], "stream": wanted}
    return int(call["id"])


def opening(id: object = 1, method: str = "log.follow", **stream: int) -> Message:
    """A call that is a stream."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": [], "stream": stream}


def by_node(id: object = 1, **more: object) -> Message:
    """The same by `node.call`."""
    params = {"node": "pi", "method": "log.follow", "params": [], **more}
    return {"jsonrpc": "2.0", "id": id, "method": "node.call", "params": params}


def note(method: str, **params: object) -> Message:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def value(id: object, value: object) -> Message:
    """A value of the node's."""
    return note("rpc.progress", id=id, value=value)


def credit(id: object, credit: int = 0, octets: int = 0) -> Message:
    """A grant of the caller's."""
    return note("rpc.credit", id=id, credit=credit, bytes=octets)


def demand(id: object, credit: int = 0, octets: int = 0) -> Message:
    """A grant of the node's."""
    return note("rpc.demand", id=id, credit=credit, bytes=octets)


def push(id: object, value: object) -> Message:
    """A value of the caller's."""
    return note("rpc.push", id=id, value=value)


def end(id: object) -> Message:
    """The end of the caller's values."""
    return note("rpc.push", id=id, end=True)


def reply(id: object, result: object = None) -> Message:
    """A reply with a result."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def refused(message: Message) -> tuple[object, int, str]:
    """The id, the code and the outcome of an error reply."""
    return message["id"], message["error"]["code"], message["error"]["data"]["outcome"]


def dropped(client: Client, kind: str) -> int:
    """How many messages of a kind were dropped."""
    return sum(one.app[GATEWAY].router.dropped[kind] for one in each(client))


def promised(connection: Caller | Kept) -> int:
    """How many bytes may be sent to a peer by its streams."""
    pool = connection.connection.pool
    assert pool is not None
    return pool.promised
