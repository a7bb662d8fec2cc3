"""The gateway's listener and connections inside the test's own event loop, with an endpoint that the test writes.

For what has to be seen from within: an injected clock, a socket with a small buffer, an endpoint that fails.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from aiohttp import web
from msgspec import Raw

from gateway.config import parse
from gateway.config.certificates import tls_context
from gateway.connections.connection import Connection
from gateway.connections.history import Closed
from gateway.connections.regime import Regime
from gateway.errors import Disconnect, RpcError
from gateway.handshake.listener import Listener, handler_args, response_begins
from gateway.handshake.plain import Handshakes, PlainConnections
from gateway.handshake.rejections import Rejections
from gateway.handshake.sockets import bind
from gateway.handshake.upgrade import remote_of
from gateway.rpc.calls import Call, Callee, Calls
from gateway.websocket.frames import Payload
from tests.support.certs import authority
from tests.support.peers import Target

OnMessage = Callable[[Connection, bytes], None]


class MovableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved forward; its sockets are real."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds by which it is ahead of the monotonic clock."""
        super().__init__()

    def time(self) -> float:
        """Return monotonic seconds, moved."""
        return super().time() + self.ahead

    async def move_to(self, moment: float) -> None:
        """Let it be `moment`, unless it is later already; when this returns, what is due has been done."""
        self.ahead += max(0.0, moment - self.time())
        # What is due may set a short timer of its own, and bytes have to pass the sockets.
        await asyncio.sleep(0.1)


LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "movable": MovableLoop,
}


def run_on(loop: str, scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario to its end on a new event loop, one of LOOPS."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario)


class Script:
    """A `gateway.connections.connection.Endpoint` that notes what happens, and does what the test says.

    sndbuf: SO_SNDBUF of every connection in bytes, so that little is enough to fill it.
    """

    def __init__(
        self, on_text: OnMessage | None = None, on_binary: OnMessage | None = None, sndbuf: int | None = None
    ) -> None:
        self.calls = Calls()
        self._on_text = on_text
        self._on_binary = on_binary
        self._sndbuf = sndbuf
        self.connections: list[Connection] = []
        """Every connection that there was, oldest first."""
        self.messages: list[bytes] = []
        """Every text and binary message, in order."""
        self.released: list[Connection] = []
        """Of whom nothing comes any more, in order."""
        self.ends: list[Disconnect] = []
        """How connections ended, in order."""

    def opened(self, connection: Connection) -> None:
        """Note it; say nothing."""
        self.connections.append(connection)
        if self._sndbuf is not None:
            sock = connection.link.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._sndbuf)

    def text(self, connection: Connection, data: Payload) -> None:
        """Note it, and do what the test says."""
        self.messages.append(bytes(data))
        if self._on_text is not None:
            self._on_text(connection, bytes(data))

    def binary(self, connection: Connection, data: Payload) -> None:
        """Note it, and do what the test says."""
        self.messages.append(bytes(data))
        if self._on_binary is not None:
            self._on_binary(connection, bytes(data))

    def release(self, connection: Connection) -> None:
        """Note it."""
        self.released.append(connection)

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Note the end."""
        self.ends.append(closed.end)


def echo(connection: Connection, data: bytes) -> None:
    """Send a text message back: an `on_text` of Script."""
    connection.send(data)


@asynccontextmanager
async def serving(
    script: Script,
    config: Mapping[str, Mapping[str, object]] | None = None,
    *,
    tls: bool = False,
    most: int = 10_000,
    watched: bool = False,
) -> AsyncIterator[Target]:
    """Serve `/ws` with this endpoint on a free port; `config` as for GatewayProcess; ``most`` plain connections.

    watched: a jump of the loop's clock is a standstill, as it is for a gateway.
    """
    settings = parse(config or {})
    regime = Regime(settings)
    if watched:
        regime.standstill.start(asyncio.get_running_loop())

    async def websocket(request: web.Request) -> web.StreamResponse:
        return await Connection(remote_of(request), script, regime).serve(request)

    app = web.Application(handler_args=handler_args(settings))
    app.router.add_get("/ws", websocket)
    app.on_response_prepare.append(response_begins)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    with TemporaryDirectory(prefix="gateway-test-") as directory:
        files = authority().issue(Path(directory)) if tls else None
        context = tls_context(str(files.cert), str(files.key)) if files else None
    timeout = settings.server.handshake_timeout
    rejections = Rejections(regime.lines)
    handshakes = Handshakes(timeout, rejections, regime.standstill)
    listener = Listener(
        runner.server,
        handler_args=handler_args(settings),
        handshakes=handshakes,
        plain=PlainConnections(rejections, handshakes, most=most),
        rejections=rejections,
        lines=regime.lines,
        context=context,
    )
    sockets = bind(("127.0.0.1",), 0, "")
    listener.start(sockets)
    try:
        yield Target(sockets[0].getsockname()[1], tls=authority().client_context() if tls else None)
    finally:
        regime.standstill.stop()
        listener.stop()
        handshakes.drop_all()
        for connection in script.connections:
            connection.abort()
        await runner.cleanup()
        for sock in sockets:
            sock.close()


class Unanswered:
    """A call of which nobody wants to know the end, and that has no deadline."""

    def __init__(self, callee: Callee, call_id: bytes) -> None:
        self.callee = callee
        self.call_id = call_id
        self.slot: dict[Call, None] = {self: None}

    def left(self) -> float:
        """There is no deadline."""
        return 0.0

    def answered(self, result: Raw) -> None:
        """Nobody waits."""

    def refused(self, error: Raw) -> None:
        """Nobody waits."""

    def failed(self, error: RpcError) -> None:
        """Nobody waits."""


def keep_busy(connection: Connection) -> None:
    """Give a connection a call that it never answers."""
    connection.calls[b"0"] = Unanswered(connection, b"0")
