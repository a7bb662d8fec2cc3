"""`python -m tests.support.flood_server --config FILE`: the gateway, with methods that send much or answer late.

It is the gateway's own command line, listener and connection; only the endpoint has three methods more:

    test.send {"seconds": 1.2, "count": 64, "size": 1048576, "every": 0.01}
        after so many seconds so many messages of so many bytes, one every so many seconds; `every` 0: all at once
    test.parallel {"count": 3, "size": 900000}
        the same, each from a task of its own
    test.late {"seconds": 3}
        a reply with the same id, and the result true, after so many seconds
"""

import asyncio
import sys
from collections.abc import Coroutine
from unittest import mock

import msgspec

from gateway import cli
from gateway.app import Gateway
from gateway.config import Config
from gateway.connections.connection import Connection
from gateway.connections.registry import Connections
from gateway.status import Status
from gateway.websocket.frames import Payload
from tests.support.serving import keep_busy

HEAD = b'{"jsonrpc":"2.0","method":"test.data","params":["'
TAIL = b'"]}'


class Params(msgspec.Struct):
    """Of all three methods."""

    count: int = 1
    size: int = 100
    every: float = 0.0
    seconds: float = 0.0


class Call(msgspec.Struct):
    """A request."""

    method: str = ""
    id: int = 0
    params: Params = msgspec.field(default_factory=Params)


class FloodGateway(Gateway):
    """What stands behind every connection, with the methods of the tests."""

    def __init__(self, config: Config, status: Status, connections: Connections) -> None:
        super().__init__(config, status, connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._others = self.text
        self.text = self._text

    def _text(self, connection: Connection, data: Payload) -> None:
        """Handle the tests' own methods; all else is the gateway's."""
        if b'"test.' not in data[:100]:
            self._others(connection, data)
            return
        call = msgspec.json.decode(data, type=Call)
        params = call.params
        match call.method:
            case "test.send":
                self._start(send_many(connection, params))
            case "test.parallel":
                for _ in range(params.count):
                    self._start(send_soon(connection, params))
            case "test.late":
                self._start(reply_late(connection, call))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def message(size: int) -> bytes:
    """A notification of `size` bytes."""
    return HEAD + b"x" * (size - len(HEAD) - len(TAIL)) + TAIL


async def send_many(connection: Connection, params: Params) -> None:
    await asyncio.sleep(params.seconds)
    data = message(params.size)
    for _ in range(params.count):
        connection.send(data)
        if params.every:
            await asyncio.sleep(params.every)


async def send_soon(connection: Connection, params: Params) -> None:
    await asyncio.sleep(0)
    connection.send(message(params.size))


async def reply_late(connection: Connection, call: Call) -> None:
    keep_busy(connection)
    await asyncio.sleep(call.params.seconds)
    connection.calls.clear()
    connection.send(b'{"jsonrpc":"2.0","id":%d,"result":true}' % call.id)


if __name__ == "__main__":
    with mock.patch("gateway.app.Gateway", FloodGateway):
        sys.exit(cli.main())
