"""picows on uvloop and default settings: `python -m tests.bench.servers.picows_server echo|relay|fanout`.

Echo is raw; the other two decode with msgspec, and pass params and results on as they are.
"""

import importlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from tests.bench.servers import announce

# By name: picows is not among the project's dependencies.
picows: Any = importlib.import_module("picows")
TEXT: Any = picows.WSMsgType.TEXT


class Message(msgspec.Struct, omit_defaults=True, gc=False):
    """A request, or the answer to one."""

    jsonrpc: str
    id: msgspec.Raw
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


decode = msgspec.json.Decoder(Message).decode
encode = msgspec.json.Encoder().encode
_nodes: dict[str, Any] = {}
_waiting: dict[bytes, tuple[Any, msgspec.Raw]] = {}
_numbers = itertools.count(1)
_subscribers: dict[Any, None] = {}


def echo(transport: Any, payload: bytes) -> None:
    """Send a text message back as it came."""
    transport.send(TEXT, payload)


def relay(transport: Any, payload: bytes) -> None:
    """Register nodes, send calls on to them under ids of its own, and the answers back."""
    message = decode(payload)
    method = message.method
    if method is msgspec.UNSET:
        caller, message.id = _waiting.pop(bytes(message.id))
        caller.send(TEXT, encode(message))
    elif method == "node.register":
        for served in _params(message)["methods"]:
            _nodes[served["name"]] = transport
        _done(transport, message)
    else:
        number = b"%d" % next(_numbers)
        _waiting[number] = (transport, message.id)
        message.id = msgspec.Raw(number)
        _nodes[str(method)].send(TEXT, encode(message))


def fanout(transport: Any, payload: bytes) -> None:
    """Take subscribers, and send them what is published."""
    message = decode(payload)
    if message.method == "event.subscribe":
        _subscribers[transport] = None
    else:
        data = encode(_params(message)["data"])
        for subscriber in _subscribers:
            subscriber.send(TEXT, data)
    _done(transport, message)


def _params(message: Message) -> Any:
    return msgspec.json.decode(bytes(message.params or b""))


def _done(transport: Any, message: Message) -> None:
    transport.send(TEXT, encode({"jsonrpc": "2.0", "id": message.id, "result": {}}))


HANDLERS: dict[str, Callable[[Any, bytes], None]] = {"echo": echo, "relay": relay, "fanout": fanout}


def listener(handle: Callable[[Any, bytes], None]) -> Any:
    """Return a picows listener that has text messages handled, and answers a close."""

    def on_ws_frame(self: Any, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            _subscribers.pop(transport, None)
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            handle(transport, frame.get_payload_as_bytes())

    return type("Listener", (picows.WSListener,), {"on_ws_frame": on_ws_frame})()


async def main(kind: str) -> None:
    """Serve on a free port of 127.0.0.1 until the process is ended."""
    server = await picows.ws_create_server(lambda request: listener(HANDLERS[kind]), "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
