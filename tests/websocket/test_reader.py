"""The way in: messages whole and in order however the bytes are cut, and no peer in the way of another.

Row P8 of the fault table, and of P6 and P7 what is not about rates: while one peer floods, others are answered.
"""

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.http_websocket import WebSocketError

from gateway.connections.connection import Connection
from gateway.websocket.frames import BINARY, TEXT, State
from gateway.websocket.opening import RequestProtocol
from gateway.websocket.reader import PROGRESS, SLICE
from tests.support.fleet import Gateways, Other, in_process, started, until
from tests.support.forks import start_python
from tests.support.patience import START
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess
from tests.support.serving import Script, echo, serving
from tests.support.sinks import LIMIT, Pausable, Sink, reader_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWERS = 30
"""How many answers another peer gets during a flood."""


# The parser's other half, without a socket


ONE_OF_EACH = (
    (frame(Opcode.TEXT, b""), (TEXT, b"")),
    (frame(Opcode.TEXT, "grüß".encode()), (TEXT, "grüß".encode())),
    (frame(Opcode.PING, b"p"), ("ping", b"p")),
    (frame(Opcode.TEXT, b"a", fin=False), None),
    (frame(Opcode.PING), ("ping", b"")),
    (frame(Opcode.CONTINUATION, b"b", fin=False), None),
    (frame(Opcode.CONTINUATION, b"c"), (TEXT, b"abc")),
    (frame(Opcode.PONG, b"unasked"), None),
    (frame(Opcode.BINARY, bytes(200)), (BINARY, bytes(200))),
    (frame(Opcode.TEXT, fin=False), None),
    (frame(Opcode.CONTINUATION), (TEXT, b"")),
    (frame(Opcode.CLOSE, struct.pack("!H", 1000) + b"bye"), ("close", 1000, "bye")),
    (frame(Opcode.TEXT, b"behind the close frame"), None),
)
STREAM = b"".join(data for data, _ in ONE_OF_EACH)
SEEN = [seen for _, seen in ONE_OF_EACH if seen is not None]


async def test_stream_cut_at_every_byte() -> None:
    for at in range(len(STREAM) + 1):
        sink = Sink()
        reader = reader_of(sink)
        reader.feed_data(STREAM[:at])
        reader.feed_data(STREAM[at:])
        assert (sink.seen, sink.failure) == (SEEN, None), at
        assert sink.bytes_in == len(STREAM)


async def test_stream_of_single_bytes() -> None:
    sink = Sink()
    reader = reader_of(sink)
    for byte in STREAM:
        reader.feed_data(bytes([byte]))
    assert (sink.seen, sink.failure) == (SEEN, None)


@pytest.mark.parametrize("size", [125, 126, 127, 65535, 65536, 3 * SLICE + 1, LIMIT])
async def test_message_of_every_kind_of_length(size: int) -> None:
    sink = Sink()
    reader = reader_of(sink)
    payload = random.randbytes(size)
    reader.feed_data(frame(Opcode.BINARY, payload) + frame(Opcode.TEXT, b"next"))
    await until(lambda: len(sink.seen) == 2, "not read")
    assert sink.seen == [(BINARY, payload), (TEXT, b"next")]
    assert type(sink.seen[0][1]) is bytes


async def test_16_kib_of_an_unfinished_message_are_progress() -> None:
    """In pieces of a frame as in fragments, and again with each 16 KiB; a byte less is none."""
    whole = frame(Opcode.BINARY, bytes(4 * PROGRESS))
    fragments = frame(Opcode.BINARY, fin=False) + 4 * frame(Opcode.CONTINUATION, bytes(PROGRESS), fin=False)
    for stream in (whole, fragments):
        sink = Sink()
        reader = reader_of(sink)
        moments = 0
        for begin in range(0, 4 * PROGRESS - 1000, 1000):
            sink.last_message = 0.0
            reader.feed_data(stream[begin : begin + 1000])
            moments += sink.last_message == sink.last_read
        assert 2 <= moments <= 3
        assert not sink.seen


async def test_empty_fragments_are_no_progress() -> None:
    sink = Sink()
    reader = reader_of(sink)
    reader.feed_data(frame(Opcode.TEXT, fin=False))
    for _ in range(2 * PROGRESS // 600):
        reader.feed_data(100 * frame(Opcode.CONTINUATION, fin=False))
    assert sink.last_message == 0.0


async def test_large_read_is_parsed_in_slices() -> None:
    """Others have their turn between two slices; the socket is not read meanwhile."""
    sink = Sink()
    reader = reader_of(sink)
    message = frame(Opcode.TEXT, bytes(1000))
    reader.feed_data(200 * message)
    turns = 0
    while len(sink.seen) < 200:
        assert isinstance(sink.transport, Pausable)
        assert not sink.transport.reading
        before = len(sink.seen)
        assert before <= (turns + 1) * SLICE // len(message)
        await asyncio.sleep(0)
        turns += 1
        assert len(sink.seen) > before
    await asyncio.sleep(0)
    assert isinstance(sink.transport, Pausable)
    assert sink.transport.reading


async def test_bytes_that_come_though_reading_is_paused_wait_their_turn() -> None:
    """TLS delivers what it has decrypted already."""
    sink = Sink()
    reader = reader_of(sink)
    messages = [b"%06d" % number * 500 for number in range(60)]
    stream = b"".join(frame(Opcode.TEXT, message) for message in messages)
    for begin in range(0, len(stream), 50_000):
        reader.feed_data(stream[begin : begin + 50_000])
    await until(lambda: len(sink.seen) == len(messages), "not read")
    assert sink.seen == [(TEXT, message) for message in messages]


async def test_nothing_is_parsed_while_the_peer_does_not_read() -> None:
    sink = Sink()
    reader = reader_of(sink)
    reader.feed_data(frame(Opcode.TEXT, b"1"))
    sink.stalled = True
    reader.pause()
    for _ in range(3):
        reader.feed_data(frame(Opcode.TEXT, bytes(SLICE)))
        await asyncio.sleep(0)
    assert sink.seen == [(TEXT, b"1")]
    sink.stalled = False
    reader.go_on()
    await until(lambda: len(sink.seen) == 4, "not read")
    assert isinstance(sink.transport, Pausable)
    assert sink.transport.reading


@pytest.mark.parametrize(
    "data",
    [
        frame(Opcode.TEXT, b"1"),
        frame(Opcode.TEXT, b"1", fin=False) + frame(Opcode.CONTINUATION, b"2"),
        frame(Opcode.BINARY, b"1"),
        frame(Opcode.PING, b"1"),
        frame(Opcode.CLOSE),
    ],
    ids=["text", "fragments", "binary", "ping", "close"],
)
async def test_what_a_handler_raises_is_not_swallowed(data: bytes) -> None:
    """Aiohttp's parser is compiled, and some of its functions cannot raise."""
    sink = Sink()
    sink.raises = RuntimeError("a defect")
    reader = reader_of(sink)
    reader.feed_data(data + frame(Opcode.TEXT, b"behind"))
    assert sink.failure is sink.raises
    assert len(sink.seen) == 1
    assert sink.cork.reading is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65536, 300_000])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY, Opcode.PING])
@pytest.mark.parametrize("piece", [1 << 20, 4096, 3])
async def test_frame_without_a_mask_is_refused_however_it_comes(opcode: int, size: int, piece: int) -> None:
    """Aiohttp's parser takes both kinds; what it hands on must tell them apart, and the masked one is right.

    Up to a thousand reads a frame: beyond that aiohttp hands on both kinds alike (docs/design.md, known limits).
    """
    if opcode == Opcode.PING and size > 125:
        size = 125
    payload = random.randbytes(size)
    for mask in (True, False):
        sink = Sink()
        reader = reader_of(sink, limit=LIMIT)
        data = frame(opcode, payload, mask=mask)
        piece = max(piece, len(data) // 1000)
        for begin in range(0, len(data), piece):
            reader.feed_data(data[begin : begin + piece])
        while not (sink.seen or sink.failure):  # a large read takes some passes of the loop
            await asyncio.sleep(0)
        if mask:
            assert sink.seen == [("ping" if opcode == Opcode.PING else opcode, payload)]
        else:
            assert sink.seen == []
            assert isinstance(sink.failure, WebSocketError)
            assert sink.failure.code == 1002


async def test_last_message_is_moved_by_messages_and_control_frames_alone() -> None:
    for data, moves in (
        (frame(Opcode.TEXT, b"1"), True),
        (frame(Opcode.BINARY, b"1"), True),
        (frame(Opcode.PING), True),
        (frame(Opcode.PONG), True),
        (frame(Opcode.TEXT, b"1", fin=False), False),
        (frame(Opcode.TEXT, fin=False) + 50 * frame(Opcode.CONTINUATION, fin=False), False),
        (frame(Opcode.TEXT, b"1", fin=False) + frame(Opcode.CONTINUATION), True),
        (frame(Opcode.TEXT, b"12345")[:-1], False),
    ):
        sink = Sink()
        reader_of(sink).feed_data(data)
        assert sink.last_read > 0
        assert (sink.last_message == sink.last_read) is moves, data


# Through sockets


async def test_messages_of_one_read_come_in_order() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                messages = [b"%d" % number for number in range(2000)]
                await peer.send_raw(b"".join(frame(Opcode.TEXT, message) for message in messages))
                assert [(await peer.recv_frame()).payload for _ in messages] == messages
                assert script.messages == messages

    await in_process(scenario)


async def test_stream_cut_at_every_byte_over_sockets() -> None:
    async def scenario(tls: bool) -> None:
        script = Script()
        async with serving(script, tls=tls) as target:
            for at in range(0, len(STREAM) + 1, 5):
                with await RawPeer.open(target) as peer:
                    await peer.send_raw(STREAM[:at])
                    await asyncio.sleep(0.001)
                    with contextlib.suppress(OSError):
                        await peer.send_raw(STREAM[at:])
                    answers = [got.opcode for got in (await peer.recv_until_closed()).frames]
                assert answers == [Opcode.PONG, Opcode.PONG, Opcode.CLOSE], at
                assert script.messages == [seen[1] for seen in SEEN if seen[0] in (TEXT, BINARY)]
                script.messages.clear()

    await in_process(scenario)


async def test_messages_right_behind_the_upgrade_are_answered() -> None:
    """A client may send before it has the 101, in the same packet and more than a slice of it."""

    async def scenario(tls: bool) -> None:
        async with serving(Script(echo), tls=tls) as target:
            for count in (1, 2000):
                with await RawPeer.connect(target) as peer:
                    messages = [b"%d" % number * 10 for number in range(count)]
                    early = b"".join(frame(Opcode.TEXT, message) for message in messages)
                    await peer.send_raw(peer.upgrade_head() + early)
                    assert (await peer.read_response()).status == 101
                    assert [(await peer.recv_frame()).payload for _ in messages] == messages

    await in_process(scenario)


# Floods


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops."""
    # No flood ends before the others are answered, however long that takes.
    async with started({"limits": {"control_rate": 0}}) as gateways:
        yield gateways


@contextlib.asynccontextmanager
async def flood(where: GatewayProcess, kind: str) -> AsyncIterator[str]:
    """Flood a gateway from another process; gives that peer's address."""
    arguments = [str(where.port), kind, *(["--tls"] if where.tls else [])]
    process = await start_python("tests.support.flooder", *arguments)
    assert process.stdout is not None
    try:
        word, address = (await asyncio.wait_for(process.stdout.readline(), START)).decode().split()
        assert word == "flooding"
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", ["notifications", "requests", "large", "batches", "pings", "empty-fragments"])
async def test_p6_p7_p8_others_are_answered_while_one_floods(gateways: Gateways, kind: str) -> None:
    # What TLS delivers, and when, is another matter for many small frames and for large ones.
    for where in gateways if kind in ("notifications", "large") else gateways[::2]:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            other = Other(peer)
            async with flood(where, kind) as flooder:
                await other.answered(ANSWERS)
                assert where.events("connection.closed", remote=flooder) == [], "the flood has ended"
            await other.stop()


async def test_a_flood_has_its_turn_and_then_the_others() -> None:
    """What one peer has sent is handled a slice at a time: another that speaks meanwhile waits for few of them."""
    message = frame(Opcode.TEXT, b"f" * 1000)
    many = 2 * LIMIT // len(message)

    async def scenario(tls: bool) -> None:
        async def speak() -> None:
            await other.send_frame(Opcode.TEXT, b"other")

        def heard(connection: Connection, data: bytes) -> None:
            if len(script.messages) == 1:
                speaking.append(asyncio.create_task(speak()))

        script, speaking = Script(heard), list[asyncio.Task[None]]()
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as flooder, await RawPeer.open(target) as other:
                await flooder.send_raw(many * message)
                await until(lambda: len(script.messages) == many + 1, "not all has come")
        ahead = script.messages.index(b"other")
        assert ahead * len(message) <= 4 * SLICE, "one slice in each of a few passes of the loop"

    await in_process(scenario)


async def test_the_reader_takes_the_place_of_aiohttps_protocol_and_passes_on_what_that_has_to_know() -> None:
    """A paused transport says so within the write; what came with the request is read first."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        """Never called."""
        raise NotImplementedError

    protocol = RequestProtocol(web.Server(handler), loop=asyncio.get_running_loop())
    transport = Pausable()
    protocol.connection_made(transport)
    protocol._upgraded, protocol._message_tail = True, frame(Opcode.TEXT, b"early")
    sink = Sink()
    reader = reader_of(sink)
    reader.take_over(protocol)
    assert transport.protocol is reader
    reader.data_received(frame(Opcode.TEXT, b"later"))
    assert sink.seen == [(TEXT, b"early"), (TEXT, b"later")]
    reader.pause_writing()
    assert sink.seen[2:] == [("full",)]
    assert protocol.writing_paused
    reader.resume_writing()
    assert not protocol.writing_paused
    reader.eof_received()
    reader.connection_lost(None)
    assert (sink.seen[3:], sink.state, protocol.transport) == ([("eof",)], State.CLOSED, None)
