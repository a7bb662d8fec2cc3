"""A peer that floods, in a process that ends when it is killed: `python -m tests.support.flood KIND PORT`.

It sends as fast as the gateway on 127.0.0.1 takes it, and reads whatever comes, because a peer that does not read is
not read either. On standard output it says its own address once the flood runs.
"""

import select
import socket
import sys

from tests.bench.client import Target, open_websocket
from tests.support.peers import Opcode, frame

READ_SIZE = 1 << 18
BLOCK = 1 << 18
MEBIBYTE = 1 << 20


def blocks(kind: str) -> tuple[bytes, bytes, int]:
    """Return what is sent first, what is then sent again and again, and how many frames are in that."""
    match kind:
        case "tiny":
            return b"", *_repeat(frame(Opcode.TEXT, b'{"jsonrpc":"2.0","method":"gateway.ping","id":1}'))
        case "ping":
            return b"", *_repeat(frame(Opcode.PING, b"flood"))
        case "empty":
            return frame(Opcode.TEXT, b"", fin=False), *_repeat(frame(Opcode.CONTINUATION, b"", fin=False))
        case "mebibyte":
            head, tail = b'{"jsonrpc":"2.0","method":"gateway.ping","id":1,"params":["', b'"]}'
            return b"", *_repeat(frame(Opcode.TEXT, head + b"x" * (MEBIBYTE - len(head + tail)) + tail))
        case "discover":
            return b"", *_repeat(frame(Opcode.TEXT, b'{"jsonrpc":"2.0","method":"rpc.discover","id":1}'))
    raise ValueError(f"no kind {kind!r}")


KINDS = ("tiny", "ping", "empty", "mebibyte", "discover")


def _repeat(one: bytes) -> tuple[bytes, int]:
    count = max(1, BLOCK // len(one))
    return one * count, count


def flood(kind: str, port: int) -> None:
    """Flood for ever. OSError if the gateway ends the connection."""
    sock, _ = open_websocket(Target(port, 0, welcomes=True), 0)
    first, block, frames = blocks(kind)
    sock.sendall(first + block[: len(block) // frames])
    print("{}:{}".format(*sock.getsockname()), flush=True)
    sock.setblocking(False)
    sent, waste = 0, bytearray(READ_SIZE)
    while True:
        readable, writable, _ = select.select([sock], [sock], [], 0.1)
        if readable and not sock.recv_into(waste):
            raise ConnectionError("the gateway ended the flood")
        if writable:
            sent += _send(sock, block, sent % len(block))


def _send(sock: socket.socket, block: bytes, at: int) -> int:
    try:
        return sock.send(memoryview(block)[at:])
    except BlockingIOError:
        return 0


if __name__ == "__main__":
    flood(sys.argv[1], int(sys.argv[2]))
