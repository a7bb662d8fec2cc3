"""Raw echo with picows on uvloop and default settings: `python -m tests.bench.servers.picows_server`."""

import importlib
from typing import Any

import uvloop

from tests.bench.servers import announce

# By name: picows is not among the project's dependencies.
picows: Any = importlib.import_module("picows")


def on_ws_frame(listener: Any, transport: Any, frame: Any) -> None:
    """Send a text message back as it came; answer a close."""
    if frame.msg_type == picows.WSMsgType.CLOSE:
        transport.send_close(frame.get_close_code(), frame.get_close_message())
        transport.disconnect()
    else:
        transport.send(frame.msg_type, frame.get_payload_as_bytes())


Listener: Any = type("Listener", (picows.WSListener,), {"on_ws_frame": on_ws_frame})


async def main() -> None:
    """Serve on a free port of 127.0.0.1 until the process is ended."""
    server = await picows.ws_create_server(lambda request: Listener(), "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
