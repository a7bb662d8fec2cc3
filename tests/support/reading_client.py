"""`python -m tests.support.reading_client HOST PORT [--tls] [--ask TEXT]`: a client that reads and answers pings.

A process of its own, so that a test can stop it or put it into another network. `--ask` is a text message that it
sends once it is connected. On standard output: `open ADDRESS`, its own address as the gateway's log has it; then,
for every ping, `ping SECONDS` in monotonic time, once the pong is sent. Ends when the gateway ends the connection.
"""

import argparse
import asyncio
import contextlib
import ssl
import sys
import time

from tests.support.peers import Opcode, PeerClosed, RawPeer, Target

FOR_EVER = 3600.0


async def read_on(target: Target, ask: str | None) -> None:
    """Connect, ask, then read until the end."""
    with await RawPeer.open(target) as peer:
        print("open", peer.local, flush=True)
        if ask is not None:
            await peer.send_frame(Opcode.TEXT, ask.encode())
        with contextlib.suppress(PeerClosed):
            while True:
                frame = await peer.recv_frame(FOR_EVER)
                if frame.opcode == Opcode.PING:
                    moment = time.monotonic()  # no later than the gateway reads it
                    await peer.send_frame(Opcode.PONG, frame.payload)
                    print("ping", moment, flush=True)


def main() -> int:
    """Run until the gateway ends the connection."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.reading_client")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", action="store_true", help="speak TLS, and trust any certificate")
    parser.add_argument("--ask", help="a text message to send")
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    asyncio.run(read_on(Target(options.port, options.host, tls=context), options.ask))
    return 0


if __name__ == "__main__":
    sys.exit(main())
