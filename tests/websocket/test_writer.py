"""aiohttp's own calls: they lead to the outbox, in order, and wait while the peer does not read."""

import asyncio

import pytest
from aiohttp import ClientConnectionResetError

from gateway.errors import SHUTDOWN
from gateway.websocket.link import Link
from gateway.websocket.writer import SPENT
from tests.support.fleet import in_process, until
from tests.support.patience import WAIT
from tests.support.peers import Opcode, RawPeer
from tests.support.serving import Script, serving

SMALL = 32 * 1024
"""Bytes of a socket's buffers, so that little is enough to fill them."""


async def test_frames_leave_in_order_with_what_is_sent_by_the_link() -> None:
    async def scenario(tls: bool) -> None:
        script = Script()
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                link = script.connections[0].link
                await link.send_str("1")
                link.send_text(b"2")
                await link.ping(b"3")
                await link.send_bytes(b"4")
                await link.pong(b"5")
                got = [await peer.recv_frame() for _ in range(5)]
                assert link.messages_out == 3, "pings and pongs are no messages"
        opcodes = (Opcode.TEXT, Opcode.TEXT, Opcode.PING, Opcode.BINARY, Opcode.PONG)
        assert [(frame.opcode, frame.payload) for frame in got] == list(
            zip(opcodes, (b"1", b"2", b"3", b"4", b"5"), strict=True)
        )

    await in_process(scenario)


async def send_much(link: Link) -> None:
    """Send 2 MiB in messages of 64 KiB: TLS would hide how much of a larger one waits."""
    for _ in range(32):
        await link.send_bytes(bytes(2 * SMALL))


async def test_a_message_waits_for_a_peer_that_does_not_read_and_a_ping_does_not() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                link = script.connections[0].link
                waiting = asyncio.create_task(send_much(link))
                await until(lambda: link.flow.writing_paused, "it is not too much")
                await link.ping()
                await asyncio.sleep(0.05)
                assert not waiting.done()
                got = [(await peer.recv_frame()).opcode for _ in range(33)]
                assert sorted(got) == [Opcode.BINARY] * 32 + [Opcode.PING]
                await waiting

    await in_process(scenario)


async def test_a_message_that_waits_ends_with_the_link() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL):
                link = script.connections[0].link
                waiting = asyncio.create_task(send_much(link))
                await until(lambda: link.flow.writing_paused, "it is not too much")
                assert not waiting.done()
                link.abort()
                with pytest.raises(ConnectionError):
                    await asyncio.wait_for(waiting, WAIT)

    await in_process(scenario)


async def test_nothing_is_sent_when_the_link_is_over() -> None:
    async def scenario(tls: bool) -> None:
        script = Script()
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                link = script.connections[0].link
                link.end(SHUTDOWN)
                for call in (link.send_str("late"), link.ping()):
                    with pytest.raises(ConnectionError):
                        await call
                await peer.recv_frame()
                await peer.leave()
                await until(lambda: bool(script.ends), "never closed")
                with pytest.raises(ConnectionError):
                    await link.send_bytes(b"late")

    await in_process(scenario)


async def test_the_writer_of_a_link_that_is_over_has_no_transport() -> None:
    assert SPENT.transport is None
    with pytest.raises(ClientConnectionResetError):
        await SPENT.send_frame(b"", Opcode.PING)
