"""`python -m tests.conformance.bare`: a bare aiohttp handler that sends every message back, to compare with.

Takes the flags of `tests.support.echo` and says the same line when it listens.
"""

import socket
import sys
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from tests.support.echo import LOOPS, MAX_MESSAGE_BYTES, make_parser


def echo(*, compression: bool) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the handler of `/ws`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        # aiohttp takes this bound as exclusive.
        ws = web.WebSocketResponse(compress=compression, max_msg_size=MAX_MESSAGE_BYTES + 1)
        await ws.prepare(request)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws

    return handle


def main() -> int:
    """Serve until a signal, and return the exit status."""
    options = make_parser("python -m tests.conformance.bare", __doc__).parse_args()
    app = web.Application()
    app.router.add_get("/ws", echo(compression=options.compression))
    sock = socket.create_server((options.host, options.port))
    host, port = sock.getsockname()
    print(f"listening on {host}:{port}", flush=True)
    web.run_app(app, sock=sock, print=None, loop=LOOPS[options.loop]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
