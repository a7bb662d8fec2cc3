"""`python -m tests.support.echo --port N`: a WebSocket server at `/ws` that sends every message back.

It is made of the gateway's own listener, websocket and connection code, and has no welcome and no JSON-RPC: what
Autobahn and other clients that know nothing of the gateway can be run against. Says `listening on ADDRESS:PORT` on
standard output once it does. Ends at SIGTERM or SIGINT.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop
from aiohttp import web

from gateway import errors
from gateway.app import handler_args
from gateway.config import Config, parse
from gateway.connections.connection import Connection
from gateway.connections.history import Closed
from gateway.connections.regime import Regime
from gateway.handshake.listener import Listener, response_begins
from gateway.handshake.plain import Handshakes, PlainConnections
from gateway.handshake.rejections import Rejections
from gateway.handshake.sockets import address_of, bind
from gateway.handshake.upgrade import remote_of
from gateway.rpc.calls import Calls
from gateway.websocket.frames import BINARY, Payload, frame

MAX_MESSAGE_BYTES = 32 << 20
# One echo of the largest message may be on its way while the next one is read.
MAX_OUTBOX_BYTES = 2 * MAX_MESSAGE_BYTES
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class Echo:
    """What stands behind every connection. Implements `gateway.connections.connection.Endpoint`."""

    def __init__(self, config: Config) -> None:
        self.calls = Calls()
        self._regime = Regime(config)
        self.lines = self._regime.lines
        self._open: set[Connection] = set()

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """`GET /ws`."""
        return await Connection(remote_of(request), self, self._regime).serve(request)

    def opened(self, connection: Connection) -> None:
        """Say nothing: the client begins."""
        self._open.add(connection)

    def text(self, connection: Connection, data: Payload) -> None:
        """Send it back, compressed where that was negotiated."""
        connection.send(bytes(data))

    def binary(self, connection: Connection, data: Payload) -> None:
        """Send it back."""
        connection.send_frame(frame(BINARY, data))

    def release(self, connection: Connection) -> None:
        """It owes nobody anything."""

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Forget it."""
        self._open.discard(connection)

    def leave(self) -> None:
        """End all connections."""
        for connection in list(self._open):
            connection.end(errors.SHUTDOWN)


def make_config(*, compression: bool) -> Config:
    """Return the gateway's defaults, but for compression and for what Autobahn's largest messages need."""
    return parse(
        {
            "server": {"compression": compression},
            "limits": {"max_message_bytes": MAX_MESSAGE_BYTES, "max_outbox_bytes": MAX_OUTBOX_BYTES},
        }
    )


async def serve(host: str, port: int, config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError where it cannot listen."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    echo = Echo(config)
    arguments = handler_args(config)
    app = web.Application(handler_args=arguments)
    app.router.add_get("/ws", echo.websocket, allow_head=False)
    app.on_response_prepare.append(response_begins)
    runner = web.AppRunner(app, shutdown_timeout=config.server.close_timeout)
    await runner.setup()
    assert runner.server is not None
    timeout = config.server.handshake_timeout
    rejections = Rejections(echo.lines)
    handshakes = Handshakes(timeout, rejections)
    listener = Listener(
        runner.server,
        handler_args=arguments,
        handshakes=handshakes,
        plain=PlainConnections(rejections, handshakes, most=config.limits.max_http_connections),
        rejections=rejections,
        lines=echo.lines,
        context=None,
    )
    sockets = bind((host,), port, "")
    listener.start(sockets)
    print("listening on", address_of(sockets[0]), flush=True)
    await stop.wait()
    listener.stop()
    echo.leave()
    await runner.cleanup()
    for sock in sockets:
        sock.close()


def make_parser(prog: str, text: str) -> argparse.ArgumentParser:
    """Return the parser of the flags that an echo server has; `text` begins with what it is."""
    parser = argparse.ArgumentParser(prog=prog, description=text.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0, the default, takes a free one")
    parser.add_argument("--loop", choices=list(LOOPS), default="uvloop", help="event loop (default %(default)s)")
    parser.add_argument("--compression", action="store_true", help="offer permessage-deflate")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal, and return the exit status. Warnings and errors are logged on standard error."""
    options = make_parser("python -m tests.support.echo", __doc__).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    with asyncio.Runner(loop_factory=LOOPS[options.loop]) as runner:
        runner.run(serve(options.host, options.port, make_config(compression=options.compression)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
