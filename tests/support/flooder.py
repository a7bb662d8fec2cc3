"""`python -m tests.support.flooder PORT KIND [--tls]`: a client that floods with one kind of frame, for ever.

A process of its own, so that it takes no time from those who measure. What comes back is read and thrown away. Says
`flooding ADDRESS` on standard output once it is connected: its own address, as the gateway's log has it. Ends when the
gateway ends the connection.
"""

import argparse
import contextlib
import socket
import ssl
import struct
import sys
import threading

BLOCK = 1 << 18
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
HEAD = b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b\r\n%b\r\n\r\n"
VERSION = b"Sec-WebSocket-Version: 13"


def masked(first: int, payload: bytes = b"") -> bytes:
    """Return a frame; its mask is zero, so that nothing need be computed."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else struct.pack("!BQ", 0xFF, size)
    return bytes([first]) + length + bytes(4) + payload


def block_of(kind: str) -> tuple[bytes, bytes]:
    """Return what is sent first, and what is sent again and again."""
    if kind == "notifications":
        return b"", masked(0x81, b'{"jsonrpc":"2.0","method":"x"}') * (BLOCK // 36)
    if kind == "requests":
        return b"", masked(0x81, b'{"jsonrpc":"2.0","method":"x","id":1}') * (BLOCK // 43)
    if kind == "pings":
        return b"", masked(0x89) * (BLOCK // 6)
    if kind == "empty-fragments":
        return masked(0x01), masked(0x00) * (BLOCK // 6)
    if kind == "large":
        filler = b"x" * ((1 << 20) - 60)
        return b"", masked(0x81, b'{"jsonrpc":"2.0","method":"x","id":1,"params":["%b"]}' % filler)
    if kind == "batches":
        return b"", masked(0x81, b"[" + b"1," * ((1 << 19) - 2) + b"1]")
    raise ValueError(kind)


def drain(sock: socket.socket) -> None:
    """Read and throw away."""
    with contextlib.suppress(OSError):
        while sock.recv(BLOCK):
            pass


def main() -> int:
    """Run until the gateway ends the connection."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.flooder")
    parser.add_argument("port", type=int)
    parser.add_argument("kind")
    parser.add_argument("--tls", action="store_true", help="speak TLS, and trust any certificate")
    options = parser.parse_args()
    first, block = block_of(options.kind)
    sock = socket.create_connection(("127.0.0.1", options.port))
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(HEAD % (KEY, VERSION))
    sock.recv(BLOCK)
    threading.Thread(target=drain, args=(sock,), daemon=True).start()
    print("flooding", "{}:{}".format(*sock.getsockname()), flush=True)
    with contextlib.suppress(OSError):
        sock.sendall(first)
        while True:
            sock.sendall(block)
    return 0


if __name__ == "__main__":
    sys.exit(main())
