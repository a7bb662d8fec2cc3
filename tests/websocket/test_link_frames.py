"""What a peer must not send, and what it may: rows P1 to P5 and P9 of the fault table, and the close handshake.

Four gateways serve the whole file, TCP and TLS on both event loops: each test asks all of them at the same time. At
its end the file looks for tracebacks in their logs.
"""

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.fleet import Gateways, ended, forget_peak, on_each, peak, started
from tests.support.peers import Closing, Frame, Opcode, RawPeer, frame
from tests.support.process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOSE_TIMEOUT = 0.3
MIB = 1 << 20
DEFLATE = {"Sec-WebSocket-Extensions": "permessage-deflate"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops; messages may be compressed."""
    async with started({"server": {"close_timeout": CLOSE_TIMEOUT, "compression": True}}) as gateways:
        yield gateways


async def provoke(where: GatewayProcess, data: bytes, headers: dict[str, str] | None = None) -> tuple[RawPeer, Closing]:
    """Send bytes on a new connection, answer the gateway's close frame as a client does, and return what came."""
    peer = await RawPeer.open(where, headers=headers)
    await peer.welcome()
    await peer.send_raw(data)
    frames: list[Frame] = []
    while not frames or frames[-1].opcode != Opcode.CLOSE:
        frames.append(await peer.recv_frame())
    if data[0] != 0x80 | Opcode.CLOSE:
        with contextlib.suppress(OSError):
            await peer.send_close(peer.close_code)
    rest = await peer.recv_until_closed()
    peer.close()
    return peer, Closing([*frames, *rest.frames], rest.how)


async def refuse(gateways: Gateways, code: int, cause: str, *mistakes: bytes, deflate: bool = False) -> None:
    """Fail unless each mistake, alone on a connection, is answered with this close code, and with nothing else."""
    headers = DEFLATE if deflate else None

    async def make(where: GatewayProcess, mistake: bytes) -> None:
        peer, end = await provoke(where, mistake, headers)
        shown = f"{mistake[:40]!r}: {end}"
        assert [got.opcode for got in end.frames] == [Opcode.CLOSE], shown
        assert peer.close_code == code, shown
        assert peer.close_reason.isprintable() and len(end.frames[0].payload) <= 125, shown
        line = await ended(where, peer, cause, code)
        assert line["reason"] == peer.close_reason, shown

    async def scenario(where: GatewayProcess) -> None:
        await asyncio.gather(*(make(where, mistake) for mistake in mistakes))

    await on_each(gateways, scenario)


def close_with(code: int, reason: bytes = b"") -> bytes:
    """Return a client's close frame."""
    return frame(Opcode.CLOSE, struct.pack("!H", code) + reason)


async def test_p1_close_code_that_must_not_be_on_the_wire(gateways: Gateways) -> None:
    codes = (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    await refuse(gateways, 1002, "protocol_error", *map(close_with, codes))


async def test_p1_close_frame_of_one_byte(gateways: Gateways) -> None:
    await refuse(gateways, 1002, "protocol_error", frame(Opcode.CLOSE, b"\x03"))


async def test_p4_close_reason_that_is_no_utf8(gateways: Gateways) -> None:
    await refuse(gateways, 1007, "invalid_utf8", close_with(1000, b"\xff"))


async def test_close_is_answered_with_its_own_code(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4000, 4999):
            peer, end = await provoke(where, close_with(code, b"servus"))
            assert (peer.close_code, end.frames[0].opcode, end.how) == (code, Opcode.CLOSE, "eof"), (code, end)
            line = await ended(where, peer, "client_close", code)
            assert line["reason"] == "servus"

    await on_each(gateways, scenario)


async def test_close_without_a_code_is_answered_without_one(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        _, end = await provoke(where, frame(Opcode.CLOSE))
        assert end == Closing([Frame(True, Opcode.CLOSE, b"")], "eof")

    await on_each(gateways, scenario)


def deflated(message: bytes) -> bytes:
    """Return a compressed message (RFC 7692, section 7.2.1)."""
    compressor = zlib.compressobj(9, wbits=-15)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def json_of(size: int) -> bytes:
    """Return a request of so many bytes."""
    head, tail = b'{"jsonrpc":"2.0","id":7,"method":"none","params":["', b'"]}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def test_p2_message_of_exactly_the_limit(gateways: Gateways) -> None:
    whole = json_of(MIB)
    halves = frame(Opcode.TEXT, whole[:7], fin=False) + frame(Opcode.CONTINUATION, whole[7:])

    async def scenario(where: GatewayProcess) -> None:
        for data, deflate in ((frame(Opcode.TEXT, whole), False), (halves, False), (deflated(whole), True)):
            headers = DEFLATE if deflate else None
            with await RawPeer.open(where, headers=headers) as peer:
                await peer.welcome()
                await peer.send_raw(frame(Opcode.TEXT, data, rsv=4) if deflate else data)
                assert (await peer.recv_json())["id"] == 7
                await peer.leave()

    await on_each(gateways, scenario)


async def test_p2_message_over_the_limit(gateways: Gateways) -> None:
    over = json_of(MIB + 1)
    fragments = [frame(Opcode.TEXT, over[: MIB // 2], fin=False), frame(Opcode.CONTINUATION, over[MIB // 2 :])]
    await refuse(gateways, 1009, "message_too_big", frame(Opcode.TEXT, over), b"".join(fragments))


async def test_p2_compressed_message_over_the_limit(gateways: Gateways) -> None:
    mistakes = (frame(Opcode.TEXT, deflated(json_of(MIB + extra)), rsv=4) for extra in (1, 2, 1000))
    await refuse(gateways, 1009, "message_too_big", *mistakes, deflate=True)


async def test_p2_announced_length_is_enough(gateways: Gateways) -> None:
    """Nothing is kept for a message that will be refused, however long it says it is."""
    heads = (
        struct.pack("!BBQ", 0x81, 0xFF, length) + bytes(4) for length in (MIB + 1, 1 << 31, 1 << 62, (1 << 64) - 1)
    )
    await refuse(gateways, 1009, "message_too_big", *heads)


async def test_p2_close_frame_arrives_while_the_peer_still_sends(gateways: Gateways) -> None:
    """A closed socket with unread data would be reset, and the reset would overtake the close frame."""
    message = frame(Opcode.TEXT, bytes(16 * MIB))

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            sending = asyncio.create_task(peer.send_raw(message, 20.0))
            with contextlib.suppress(OSError):
                await sending
            end = await peer.recv_until_closed()
            assert [got.opcode for got in end.frames] == [Opcode.CLOSE], end
            assert peer.close_code == 1009
            await ended(where, peer, "message_too_big", 1009)

    await on_each(gateways, scenario)


async def test_p3_deflate_bomb(gateways: Gateways) -> None:
    """Nearly 1 MiB that would be nearly 1 GiB. What is kept of it is the limit of a message, not more."""
    compressor = zlib.compressobj(9, wbits=-15)
    block = compressor.compress(bytes(16 * MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    bomb = frame(Opcode.TEXT, 60 * block, rsv=4)
    assert MIB * 0.9 < len(bomb) < MIB

    async def scenario(where: GatewayProcess) -> None:
        await provoke(where, bomb, DEFLATE)
        before = forget_peak(where)
        peer, _ = await provoke(where, bomb, DEFLATE)
        assert peer.close_code == 1009
        await ended(where, peer, "message_too_big", 1009)
        grown = peak(where) - before
        assert grown < 16 * MIB, f"{grown:,} bytes"

    await on_each(gateways, scenario)


BAD_TEXT = (b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b'{"a": "\xe2\x82"}')


async def test_p4_bad_utf8(gateways: Gateways) -> None:
    passed_on = b'{"jsonrpc":"2.0","id":1,"method":"camera.snap","params":{"where":"\xe2\x82"}}'
    await refuse(gateways, 1007, "invalid_utf8", *(frame(Opcode.TEXT, bad) for bad in (*BAD_TEXT, passed_on)))


async def test_p4_bad_utf8_in_fragments(gateways: Gateways) -> None:
    cut = [(bad[:at], bad[at:]) for bad in BAD_TEXT for at in range(len(bad) + 1)]
    mistakes = (frame(Opcode.TEXT, head, fin=False) + frame(Opcode.CONTINUATION, tail) for head, tail in cut)
    await refuse(gateways, 1007, "invalid_utf8", *mistakes)


async def test_p4_compressed_bad_utf8(gateways: Gateways) -> None:
    await refuse(gateways, 1007, "invalid_utf8", frame(Opcode.TEXT, deflated(b"\xff" * 50), rsv=4), deflate=True)


async def test_p4_character_cut_by_a_fragment_is_none_of_it(gateways: Gateways) -> None:
    text = '{"jsonrpc":"2.0","id":"€","method":"none"}'.encode()
    at = text.index("€".encode()) + 1

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            pieces = frame(Opcode.TEXT, text[:at], fin=False), frame(Opcode.CONTINUATION, text[at:])
            await peer.send_raw(b"".join(pieces))
            assert (await peer.recv_json())["id"] == "€"

    await on_each(gateways, scenario)


TEXT = frame(Opcode.TEXT, b"{}")


@pytest.mark.parametrize(
    "mistakes",
    [
        pytest.param([frame(Opcode.TEXT, b"{}", rsv=rsv) for rsv in range(1, 8)], id="rsv"),
        pytest.param([frame(Opcode.PING, b"", rsv=rsv) for rsv in range(1, 8)], id="rsv-of-a-control-frame"),
        pytest.param(
            [
                *(
                    frame(opcode, data, mask=False)
                    for opcode in (1, 2, 9, 10)
                    for data in (b"", b"{}", bytes(70_000)[: 125 if opcode > 7 else None])
                ),
                frame(Opcode.CLOSE, mask=False),
                frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.CONTINUATION, b"}", mask=False),
            ],
            id="unmasked",
        ),
        pytest.param([frame(opcode, b"") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)], id="unknown-opcode"),
        pytest.param(
            [frame(Opcode.TEXT, begun, fin=False) + TEXT for begun in (b"{", b"")]
            + [frame(Opcode.TEXT, begun, fin=False) + frame(Opcode.BINARY, b"x") for begun in (b"{", b"")]
            + [2 * frame(Opcode.TEXT, begun, fin=False) for begun in (b"{", b"")]
            + [frame(Opcode.TEXT, fin=False) + frame(Opcode.CONTINUATION, fin=False) + TEXT],
            id="new-message-inside-a-fragmented-one",
        ),
        pytest.param([frame(Opcode.CONTINUATION, b"}"), frame(Opcode.CONTINUATION, b"}", fin=False)], id="no-begin"),
        pytest.param([frame(opcode, b"", fin=False) for opcode in (8, 9, 10)], id="fragmented-control-frame"),
        pytest.param([frame(opcode, bytes(126)) for opcode in (8, 9, 10)], id="long-control-frame"),
    ],
)
async def test_p5_frame_against_the_protocol(gateways: Gateways, mistakes: list[bytes]) -> None:
    await refuse(gateways, 1002, "protocol_error", *mistakes)


async def test_p5_compressed_message_where_none_was_agreed(gateways: Gateways) -> None:
    await refuse(gateways, 1002, "protocol_error", frame(Opcode.TEXT, deflated(b"{}"), rsv=4))


async def test_binary_message(gateways: Gateways) -> None:
    whole, begun = frame(Opcode.BINARY, b"x"), frame(Opcode.BINARY, b"x", fin=False)
    await refuse(gateways, 1003, "unsupported_data", whole, begun + frame(Opcode.CONTINUATION))


async def test_p9_data_behind_a_close_frame(gateways: Gateways) -> None:
    """`refuse` fails on any reply. The data comes in the same read, and a slice and more behind it."""
    ask = frame(Opcode.TEXT, b'{"jsonrpc":"2.0","id":1,"method":"none"}')
    behind = (ask, frame(Opcode.PING, b"?"), frame(Opcode.BINARY, b"x"), b"\xff\xff", 2000 * ask)
    await refuse(gateways, 1000, "client_close", *(close_with(1000) + data for data in behind))


async def test_p9_data_behind_our_close_frame() -> None:
    """The gateway closes because of the first message, and the next ones are in the same read and in later ones.

    The peer's close frame is seen behind them: nothing else would end the connection so soon.
    """
    ask = frame(Opcode.TEXT, b'{"jsonrpc":"2.0","id":1,"method":"none"}')

    async def scenario(where: GatewayProcess) -> None:
        for mistake, code in ((frame(Opcode.BINARY, b"x"), 1003), (frame(Opcode.TEXT, b"\xff"), 1007)):
            with await RawPeer.open(where) as peer:
                await peer.welcome()
                await peer.send_raw(mistake + ask + frame(Opcode.PING))
                assert (await peer.recv_frame()).opcode == Opcode.CLOSE
                await peer.send_raw(ask + frame(Opcode.PING) + frame(Opcode.BINARY) + close_with(code))
                assert (await peer.recv_until_closed()).frames == []
                assert peer.close_code == code

    async with started({"server": {"close_timeout": 100.0}}) as patient:
        await on_each(patient, scenario)
