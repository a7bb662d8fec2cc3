"""The ways in which a connection ends, each as a peer would do it, with what the gateway has to say of it.

Each way is a function that connects, checks what it sees, and is through: its socket is closed when it returns.
"""

import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.support.peers import Opcode, RawPeer, Reachable, frame

MAX_MESSAGE_BYTES = 16_384
HANDSHAKE_TIMEOUT = 2.0
CLOSE_TIMEOUT = 0.5
PATIENCE = 60.0
"""Seconds that a peer waits for the gateway, at most: the machine may be busy."""

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
"""The beginning of a TLS ClientHello (RFC 8446 section 4.1.2)."""

Act = Callable[[Reachable], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Ending:
    """One way to end.

    cause, code: what `connection.closed` says, None where the connection is never open. always: False where a
    connection may be over before it was open. stage: what `handshake.timeout` says, None where it is in time.
    share: how often it is, beside the others. tls: whether it is a way over TLS only.
    """

    name: str
    act: Act
    cause: str | None = None
    code: int | None = None
    always: bool = True
    stage: str | None = None
    share: int = 10
    tls: bool = False


async def _open(where: Reachable) -> RawPeer:
    peer = await RawPeer.open(where, timeout=PATIENCE)
    try:
        await peer.welcome(PATIENCE)
    except BaseException:
        peer.close()
        raise
    return peer


async def _refused(where: Reachable, data: bytes, code: int) -> None:
    """Send what no peer may send; the gateway says why it ends, and ends."""
    with await _open(where) as peer:
        await peer.send_raw(data)
        end = await peer.recv_until_closed(PATIENCE)
        assert (peer.close_code, end.how) == (code, "eof"), (peer.close_code, end)


# The peer ends it


async def close(where: Reachable) -> None:
    """Close as RFC 6455 section 7 has it."""
    with await _open(where) as peer:
        await peer.leave(1000, PATIENCE)
        assert peer.close_code == 1000


async def close_without_code(where: Reachable) -> None:
    """Close without a code, as a browser does whose page calls `close()`."""
    with await _open(where) as peer:
        await peer.send_close(None)
        await peer.recv_until_closed(PATIENCE)
        assert peer.close_code == 1005


async def data_behind_close(where: Reachable) -> None:
    """Send requests behind the close frame: none is answered."""
    with await _open(where) as peer:
        request = frame(Opcode.TEXT, b'{"jsonrpc":"2.0","id":1,"method":"gateway.ping"}')
        await peer.send_raw(frame(Opcode.CLOSE, struct.pack("!H", 1000)) + request * 3)
        end = await peer.recv_until_closed(PATIENCE)
        assert [got.opcode for got in end.frames] == [Opcode.CLOSE], end


async def close_at_once(where: Reachable) -> None:
    """Send the upgrade and the close frame in one packet."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.send_raw(peer.upgrade_head() + frame(Opcode.CLOSE, struct.pack("!H", 1000)))
        response = await peer.read_response(PATIENCE)
        assert response.status == 101, response
        await peer.recv_until_closed(PATIENCE)
        assert peer.close_code == 1000


# The peer is lost


async def fin(where: Reachable) -> None:
    """Shut the connection without a close frame."""
    with await _open(where) as peer:
        peer.fin()
        await peer.wait_closed(PATIENCE)


async def rst(where: Reachable) -> None:
    """Drop the connection."""
    with await _open(where) as peer:
        peer.rst()


async def half_a_frame(where: Reachable) -> None:
    """Shut the connection in the middle of a frame."""
    with await _open(where) as peer:
        await peer.send_raw(frame(Opcode.TEXT, bytes(500))[:250])
        peer.fin()
        await peer.wait_closed(PATIENCE)


async def half_a_message(where: Reachable) -> None:
    """Drop the connection between two fragments."""
    with await _open(where) as peer:
        await peer.send_frame(Opcode.TEXT, b'{"jsonrpc":', fin=False)
        peer.rst()


async def busy(where: Reachable) -> None:
    """Ask much, and be gone before the answers are read."""
    with await _open(where) as peer:
        request = frame(Opcode.TEXT, b'{"jsonrpc":"2.0","id":1,"method":"no.such.method"}')
        await peer.send_raw(request * 50)
        await peer.recv_frame(PATIENCE)


# The gateway ends it


async def unknown_opcode(where: Reachable) -> None:
    """Send a frame that no version of the protocol knows."""
    await _refused(where, frame(3, b"?"), 1002)


async def unmasked(where: Reachable) -> None:
    """Send a frame without a mask."""
    await _refused(where, frame(Opcode.TEXT, b"{}", mask=False), 1002)


async def bad_close_code(where: Reachable) -> None:
    """Close with a code that must not be on the wire."""
    await _refused(where, frame(Opcode.CLOSE, struct.pack("!H", 1006)), 1002)


async def oversize(where: Reachable) -> None:
    """Announce a message that is too long, and send a piece of it."""
    await _refused(where, frame(Opcode.TEXT, bytes(MAX_MESSAGE_BYTES + 1))[:4096], 1009)


async def bad_utf8(where: Reachable) -> None:
    """Send text that is none."""
    await _refused(where, frame(Opcode.TEXT, b'"\xff"'), 1007)


async def binary(where: Reachable) -> None:
    """Send what the gateway does not take, and answer its close frame."""
    with await _open(where) as peer:
        await peer.send_frame(Opcode.BINARY, b"\0")
        got = await peer.recv_frame(PATIENCE)
        assert (got.opcode, peer.close_code) == (Opcode.CLOSE, 1003), got
        await peer.send_close(1003)
        await peer.wait_closed(PATIENCE)


async def close_unanswered(where: Reachable) -> None:
    """Send what the gateway does not take, and never answer its close frame."""
    with await _open(where) as peer:
        await peer.send_frame(Opcode.BINARY, b"\0")
        end = await peer.recv_until_closed(PATIENCE)
        assert peer.close_code == 1003, end


# It never opens


async def vanish_at_the_upgrade(where: Reachable) -> None:
    """Drop the connection while the gateway answers the upgrade."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.send_raw(peer.upgrade_head())
        peer.rst()


async def half_a_head(where: Reachable) -> None:
    """Close in the middle of the request's head."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.send_raw(peer.upgrade_head()[:60])


async def bad_request(where: Reachable) -> None:
    """Ask for another version of the protocol."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.send_raw(peer.upgrade_head(headers={"Sec-WebSocket-Version": "8"}))
        response = await peer.read_response(PATIENCE)
        assert response.status == 426, response
        await peer.wait_closed(PATIENCE)


async def no_http(where: Reachable) -> None:
    """Send what is no request at all."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.send_raw(b"\0\1\2\3 no request\r\n\r\n")
        response = await peer.read_response(PATIENCE)
        assert response.status == 400, response
        await peer.wait_closed(PATIENCE)


async def plain_http(where: Reachable) -> None:
    """Ask for the health, and leave the connection that would have been kept."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        response = await peer.get("/healthz", timeout=PATIENCE)
        assert response.status == 200, response


async def silence(where: Reachable) -> None:
    """Connect, and say nothing until the gateway has enough of it."""
    with await RawPeer.connect(where, timeout=PATIENCE) as peer:
        await peer.wait_closed(PATIENCE)


async def half_a_tls_handshake(where: Reachable) -> None:
    """Close in the middle of TLS."""
    with await RawPeer.connect(where, tls=False, timeout=PATIENCE) as peer:
        await peer.send_raw(HALF_A_HELLO)


async def silence_in_tls(where: Reachable) -> None:
    """Say half of a TLS handshake, and nothing more."""
    with await RawPeer.connect(where, tls=False, timeout=PATIENCE) as peer:
        await peer.send_raw(HALF_A_HELLO)
        await peer.wait_closed(PATIENCE)


async def no_tls(where: Reachable) -> None:
    """Speak plain HTTP where TLS is spoken."""
    with await RawPeer.connect(where, tls=False, timeout=PATIENCE) as peer:
        await peer.send_raw(peer.upgrade_head())
        await peer.wait_closed(PATIENCE)


SLOW = 1
"""The share of those that wait for a deadline of the gateway."""

ENDINGS = (
    Ending("close", close, "client_close", 1000),
    Ending("close without a code", close_without_code, "client_close", 1005),
    Ending("data behind the close", data_behind_close, "client_close", 1000),
    Ending("close at once", close_at_once, "client_close", 1000),
    Ending("FIN", fin, "transport_lost", 1006),
    Ending("RST", rst, "transport_lost", 1006),
    Ending("half a frame", half_a_frame, "transport_lost", 1006),
    Ending("half a message", half_a_message, "transport_lost", 1006),
    Ending("replies not read", busy, "transport_lost", 1006),
    Ending("unknown opcode", unknown_opcode, "protocol_error", 1002),
    Ending("unmasked", unmasked, "protocol_error", 1002),
    Ending("bad close code", bad_close_code, "protocol_error", 1002),
    Ending("oversize", oversize, "message_too_big", 1009),
    Ending("bad UTF-8", bad_utf8, "invalid_utf8", 1007),
    Ending("binary", binary, "unsupported_data", 1003),
    Ending("close unanswered", close_unanswered, "unsupported_data", 1003, share=SLOW),
    Ending("RST at the upgrade", vanish_at_the_upgrade, "transport_lost", 1006, always=False),
    Ending("half a head", half_a_head),
    Ending("bad request", bad_request),
    Ending("no HTTP", no_http),
    Ending("plain HTTP", plain_http),
    Ending("silence", silence, stage="request", share=SLOW),
    Ending("half a TLS handshake", half_a_tls_handshake, tls=True),
    Ending("no TLS", no_tls, tls=True),
    Ending("silence in TLS", silence_in_tls, stage="tls", share=SLOW, tls=True),
)


def endings(*, tls: bool) -> list[Ending]:
    """Return the ways that there are over TCP, or over TLS."""
    return [ending for ending in ENDINGS if tls or not ending.tls]
