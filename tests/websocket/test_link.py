"""The life of an open link: pings while it is busy, the receive timeout with row P6 of the fault table, the close.

Four gateways serve the whole file, TCP and TLS on both event loops: each test asks all of them at the same time. At
its end the file looks for tracebacks in their logs.
"""

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from gateway.connections.connection import Connection
from tests.support.fleet import FLOOD_SERVER, Gateways, ended, is_late, on_each, repeat, request, started
from tests.support.patience import SLACK, TICK
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess
from tests.support.serving import MovableLoop, Script, run_on, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

INTERVAL = 1.0
RECEIVE_TIMEOUT = 3.5
CLOSE_TIMEOUT = 0.5
MIB = 1 << 20
CONFIG: Mapping[str, Mapping[str, object]] = {
    "server": {"receive_timeout": RECEIVE_TIMEOUT, "close_timeout": CLOSE_TIMEOUT, "compression": True},
    "heartbeat": {"interval": INTERVAL, "timeout": 1.5},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops, with methods that send much or answer late."""
    async with started(CONFIG, module=FLOOD_SERVER) as gateways:
        yield gateways


async def test_ping_comes_back_while_the_connection_is_busy(gateways: Gateways) -> None:
    """A call is in flight, replies are on their way, and a message is half here."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await request(peer, "test.late", seconds=60)
            await request(peer, "test.send", count=20, size=100_000, every=0.01)
            await peer.send_frame(Opcode.TEXT, b'{"jsonrpc":"2.0",', fin=False)
            for size in (0, 1, 125):
                payload = os.urandom(size)
                await peer.send_frame(Opcode.PING, payload)
                while (got := await peer.recv_frame()).opcode != Opcode.PONG:
                    assert got.opcode == Opcode.TEXT and not is_late(got), got
                assert got.payload == payload

    await on_each(gateways, scenario)


# The receive timeout


async def expect_receive_timeout(where: GatewayProcess, peer: RawPeer, last_message: float = 0.0) -> None:
    """Fail unless the connection ends in time after its last message: seconds after its opening."""
    await peer.wait_closed()
    line = await ended(where, peer, "receive_timeout", 1006)
    took = line["duration"] - last_message
    # While nothing is due the reader looks no more often than every close timeout.
    assert RECEIVE_TIMEOUT - TICK <= took <= RECEIVE_TIMEOUT + CLOSE_TIMEOUT + SLACK, line


async def test_receive_timeout(gateways: Gateways) -> None:
    """Bytes are life for the heartbeat, for as long as it likes; a message they are not."""

    async def sends_half_a_message(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            dribble = asyncio.create_task(repeat_bytes(peer, frame(Opcode.TEXT, bytes(100)), 0.1))
            await expect_receive_timeout(where, peer)
            dribble.cancel()

    async def sends_messages_then_half_a_one(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            begin = time.monotonic()
            await peer.send_frame(Opcode.TEXT, b"{}")
            await asyncio.sleep(RECEIVE_TIMEOUT / 2)
            last_message = time.monotonic() - begin
            await peer.send_raw(frame(Opcode.TEXT, b"{}") + frame(Opcode.TEXT, b"{", fin=False))
            dribble = asyncio.create_task(repeat_bytes(peer, frame(Opcode.CONTINUATION, bytes(100)), 0.1))
            await expect_receive_timeout(where, peer, last_message)
            dribble.cancel()

    async def sends_messages(where: GatewayProcess, message: bytes = frame(Opcode.TEXT, b"{}")) -> None:
        """So often that no ping is due, and no control frame ever comes."""
        with await RawPeer.open(where) as peer:
            talk = asyncio.create_task(repeat(peer, message, INTERVAL / 3))
            await asyncio.sleep(RECEIVE_TIMEOUT + CLOSE_TIMEOUT + INTERVAL)
            talk.cancel()
            await peer.alive()

    async def sends_fragments(where: GatewayProcess) -> None:
        await sends_messages(where, frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.CONTINUATION, b"}"))

    await on_each(gateways, sends_half_a_message, sends_messages_then_half_a_one, sends_messages, sends_fragments)


async def repeat_bytes(peer: RawPeer, data: bytes, every: float) -> None:
    """Send one byte after the other, until the gateway has gone."""
    with contextlib.suppress(OSError):
        for byte in data:
            await peer.send_raw(bytes([byte]))
            await asyncio.sleep(every)


async def test_p6_endless_empty_fragments(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.send_frame(Opcode.TEXT, fin=False)
            flood = asyncio.create_task(repeat(peer, 2 * frame(Opcode.CONTINUATION, fin=False), 0.02))
            await expect_receive_timeout(where, peer)
            flood.cancel()

    await on_each(gateways, scenario)


async def test_a_mebibyte_at_16_kb_a_second_is_not_cut() -> None:
    """It takes 64 s, by a clock that the test moves; the receive timeout is 60 s. Its bytes are all that comes."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script = Script()
        async with serving(script) as target:
            with await RawPeer.open(target) as peer:
                message = frame(Opcode.TEXT, bytes(MIB))
                begin = loop.time()
                for second in range(0, 68, 4):
                    await peer.send_raw(message[16_000 * second : 16_000 * (second + 4)])
                    await loop.move_to(begin + second + 4)
                assert script.messages == [bytes(MIB)]
                assert not script.ends

    await asyncio.to_thread(run_on, "movable", scenario())


async def test_less_than_16_kib_of_a_message_are_not_enough() -> None:
    """A byte a second is a sign of life, and leads nowhere."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script = Script()
        async with serving(script) as target:
            with await RawPeer.open(target) as peer:
                message = frame(Opcode.TEXT, bytes(MIB))
                begin = loop.time()
                await peer.send_raw(message[:16_000])
                for second in range(0, 60, 5):
                    assert not script.ends
                    await peer.send_raw(message[16_000 + second // 5 :][:1])
                    await loop.move_to(begin + second + 5)
                await loop.move_to(begin + 61)
                assert [end.cause for end in script.ends] == ["receive_timeout"]

    await asyncio.to_thread(run_on, "movable", scenario())


async def test_time_in_which_the_gateway_does_not_read_does_not_count() -> None:
    """A peer that takes its replies slowly is not read for 70 s, and then has the whole time to send something."""
    count, size = 40, 60_000

    def flood(connection: Connection, data: bytes) -> None:
        for _ in range(count if data == b"flood" else 0):
            connection.send(bytes(size))

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script = Script(flood, sndbuf=32768)
        async with serving(script) as target:
            with await RawPeer.open(target, rcvbuf=32768) as peer:
                begin = loop.time()
                await loop.move_to(begin + 15)
                await peer.send_frame(Opcode.TEXT, b"{}")
                await loop.move_to(begin + 16)
                await loop.move_to(begin + 62)  # the reader has looked, and looks again in 13 s
                await peer.send_frame(Opcode.TEXT, b"flood")
                got = 0
                for second in range(70, 140, 5):
                    got += (await peer.recv_frame()).opcode == Opcode.TEXT
                    await loop.move_to(begin + second)
                assert script.connections[0].stalled
                while got < count:
                    got += (await peer.recv_frame()).opcode == Opcode.TEXT
                half = frame(Opcode.TEXT, bytes(100))
                for at, second in enumerate((145, 150, 158)):  # bytes are life for the heartbeat
                    await peer.send_raw(half[at : at + 1])
                    await loop.move_to(begin + second)
                assert not script.ends
                assert not script.connections[0].stalled

    await asyncio.to_thread(run_on, "movable", scenario())


# The close


async def test_peer_that_never_answers_a_close_is_cut(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        for mistake, cause, code in (
            (frame(Opcode.BINARY, b"x"), "unsupported_data", 1003),
            (frame(Opcode.PING, rsv=1), "protocol_error", 1002),
        ):
            with await RawPeer.open(where) as peer:
                await peer.welcome()
                begin = time.monotonic()
                await peer.send_raw(mistake)
                await ended(where, peer, cause, code)
                took = time.monotonic() - begin
                assert CLOSE_TIMEOUT - TICK <= took <= CLOSE_TIMEOUT + SLACK, f"after {took:.3f} s"
                end = await peer.recv_until_closed()
                assert [got.opcode for got in end.frames] == [Opcode.CLOSE]

    await on_each(gateways, scenario)


async def test_peer_that_closes_and_does_not_read_is_cut(gateways: Gateways) -> None:
    """The answer is behind megabytes that it does not take."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            await request(peer, "test.send", count=6, size=MIB)
            await asyncio.sleep(0.1)
            await peer.send_raw(frame(Opcode.CLOSE, struct.pack("!H", 1000)))
            line = await where.wait_event("connection.closed", remote=peer.local)
            assert line["cause"] in ("client_close", "heartbeat_timeout")

    await on_each(gateways, scenario)
