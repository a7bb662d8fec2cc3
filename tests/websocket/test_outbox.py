"""The way out: rows S1 to S3 of the fault table, and what a peer costs that does not read its replies.

Rows that need a process of their own ask one gateway of each kind at the same time: TCP and TLS on both event loops.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway import errors
from gateway.connections.connection import Connection
from gateway.websocket.cork import CORK_BYTES, Cork
from gateway.websocket.frames import NOTHING_WRITTEN, State, Written
from gateway.websocket.outbox import REPLIES
from tests.support.boxes import Box
from tests.support.fleet import (
    FLOOD_SERVER,
    Gateways,
    Other,
    ended,
    forget_peak,
    in_process,
    on_each,
    peak,
    request,
    sockets_back,
    started,
    until,
)
from tests.support.patience import SLACK, TICK, WAIT
from tests.support.peers import Opcode, RawPeer, frame
from tests.support.process import GatewayProcess
from tests.support.serving import Script, echo, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB, MIB = 1 << 10, 1 << 20
OUTBOX = 4 * MIB
"""The default of `limits.max_outbox_bytes`."""
PATIENCE = 1.0
"""`limits.outbox_timeout` where a test waits for it, in seconds."""
SMALL = 32 * KIB
"""Of a socket's buffers, so that little is enough to fill them."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops, with default limits and a method that sends much."""
    async with started({}, module=FLOOD_SERVER) as gateways:
        yield gateways


# Peers that do not read


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        pytest.param(0, 0.0, id="s1-uvloop-at-once"),
        pytest.param(0, 0.01, id="s1-uvloop-paced"),
        pytest.param(1, 0.0, id="s3-uvloop-tls-at-once"),
        pytest.param(1, 0.01, id="s3-uvloop-tls-paced"),
        pytest.param(2, 0.0, id="s1-asyncio-at-once"),
        pytest.param(3, 0.0, id="s3-asyncio-tls-at-once"),
    ],
)
async def test_s1_s3_never_reads_while_64_mb_are_sent(gateways: Gateways, kind: int, every: float) -> None:
    """It is cut in its time and has cost little, and another peer is answered all the while."""
    where = gateways[kind]
    sockets = where.sockets()
    with await RawPeer.open(where) as beside, await RawPeer.open(where) as warm:
        await beside.welcome()
        await request(warm, "test.send", count=4, size=MIB)
        for _ in range(5):
            await warm.recv_frame()
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            await peer.welcome()
            other = Other(beside)
            await other.answered(1)
            before = forget_peak(where)
            await request(peer, "test.send", count=64, size=MIB, every=every)
            peer.stop_reading()
            line = await ended(where, peer, "slow_consumer", 4002)
            await sockets_back(where, sockets + 2)
            await other.answered(1)
            await other.stop()
            grown = peak(where) - before
        assert line["bytesOut"] > 2 * OUTBOX, "cut before its time"
        assert grown < 4 * OUTBOX, f"{grown:,} bytes of 64 MiB were kept"


async def test_s1_three_parallel_messages_to_peers_that_read(gateways: Gateways) -> None:
    async def reads(peer: RawPeer) -> None:
        await peer.welcome()
        await request(peer, "test.parallel", count=3, size=900_000)
        for _ in range(3):
            assert len((await peer.recv_frame()).payload) == 900_000
        assert await peer.alive()

    async def scenario(where: GatewayProcess) -> None:
        peers = [await RawPeer.open(where) for _ in range(5)]
        await asyncio.gather(*map(reads, peers))
        for peer in peers:
            assert not where.events("connection.closed", remote=peer.local)
            peer.close()

    await on_each(gateways, scenario)


@pytest.mark.parametrize("over", [False, True], ids=["under-the-bound", "over-the-bound"])
async def test_s2_never_reads(over: bool) -> None:
    """Under the bound it may stay as it is; over it, for the timeout."""
    config = {"limits": {"max_outbox_bytes": 2 * MIB, "outbox_timeout": PATIENCE}}

    async def scenario(tls: bool) -> None:
        script = Script(sndbuf=SMALL)
        async with serving(script, config, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL):
                await until(lambda: bool(script.connections), "no connection")
                connection = script.connections[0]
                begin = time.monotonic()
                for _ in range(30 if over else 20):
                    connection.send(bytes(100_000))
                if over:
                    await until(lambda: bool(script.ends), "not cut")
                    took = time.monotonic() - begin
                    assert script.ends == [errors.SLOW_CONSUMER]
                    assert PATIENCE - TICK <= took <= PATIENCE + SLACK, f"after {took:.3f} s"
                else:
                    await asyncio.sleep(2 * PATIENCE)
                    assert script.ends == []

    await in_process(scenario)


async def test_s2_reads_a_trickle() -> None:
    """Bounded, and cut when it has been over the bound for the timeout: not before, and whatever it reads."""
    bound = 2 * MIB
    config = {"limits": {"max_outbox_bytes": bound, "outbox_timeout": PATIENCE}}

    async def trickle(peer: RawPeer, taken: list[int]) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(len(await peer.wire.recv()))
                await asyncio.sleep(0.02)

    async def scenario(tls: bool) -> None:
        script, taken = Script(sndbuf=SMALL), [0]
        async with serving(script, config, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await until(lambda: bool(script.connections), "no connection")
                connection = script.connections[0]
                reading = asyncio.create_task(trickle(peer, taken))
                # Under the bound, for longer than the timeout.
                sent, begin = 0, time.monotonic()
                while time.monotonic() - begin < 1.5 * PATIENCE:
                    while sent - sum(taken) < bound - 300_000:
                        connection.send(bytes(100_000))
                        sent += 100_004
                    await asyncio.sleep(0.02)
                assert script.ends == []
                # Over it, and kept there: what it takes does not help it.
                begin = time.monotonic()
                while not script.ends and time.monotonic() - begin < PATIENCE + SLACK:
                    while sent - sum(taken) < bound * 1.5:
                        connection.send(bytes(100_000))
                        sent += 100_004
                    await asyncio.sleep(0.01)
                took = time.monotonic() - begin
                assert script.ends == [errors.SLOW_CONSUMER]
                assert PATIENCE - TICK <= took <= PATIENCE + SLACK, f"after {took:.3f} s"
                reading.cancel()

    await in_process(scenario)


async def test_s2_what_is_queued_is_known_while_it_drains() -> None:
    """Also where the transport has a buffer below its own, as TLS has: the outbox and its bound are all of it."""

    async def scenario(tls: bool) -> None:
        script = Script(sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await until(lambda: bool(script.connections), "no connection")
                connection = script.connections[0]
                for _ in range(40):
                    connection.send(bytes(100_000))
                for unread in range(40, 10, -1):
                    await asyncio.sleep(0.005)
                    queued = connection.link.outbox_bytes
                    # The rest is in the buffers of the two sockets, and of the peer.
                    assert (unread - 7) * 100_004 < queued <= unread * 100_100, (unread, queued)
                    await peer.recv_frame()

    await in_process(scenario)


async def test_drops_below_the_bound_in_time() -> None:
    """The time over the bound begins anew: it is not a sum."""
    patience = 3.0
    config = {"limits": {"max_outbox_bytes": 2 * MIB, "outbox_timeout": patience}}

    async def scenario(tls: bool) -> None:
        script = Script(sndbuf=SMALL)
        async with serving(script, config, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await until(lambda: bool(script.connections), "no connection")
                for _ in range(3):
                    for _ in range(30):
                        script.connections[0].send(bytes(100_000))
                    await asyncio.sleep(patience * 0.4)
                    for _ in range(30):
                        await peer.recv_frame()
                assert script.ends == []
                assert await peer.alive()

    await in_process(scenario)


# Peers that do not read their replies


async def test_peer_that_asks_for_7_mb_without_reading_is_not_read_either(gateways: Gateways) -> None:
    """7 MB and what the sockets hold. It gets every reply once it reads, in order."""
    count, name = 3000, "none" * 1400
    requests = [
        frame(
            Opcode.TEXT,
            json.dumps({"jsonrpc": "2.0", "id": number, "method": "gateway.ping", "params": [name]}).encode(),
        )
        for number in range(count)
    ]
    # The kernel takes some of it: 4 MB of this side, and 6 MB of the gateway's.
    assert sum(map(len, requests)) > 16_000_000

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=SMALL) as peer:
            await peer.welcome()
            before = forget_peak(where)
            sending = asyncio.create_task(peer.send_raw(b"".join(requests)))
            await asyncio.sleep(1.0)
            assert not sending.done(), "all of it was read"
            grown = peak(where) - before
            assert grown < 6 * MIB, f"{grown:,} bytes"
            for number in range(count):
                assert (await peer.recv_json())["id"] == number
            await sending
            assert await peer.alive()

    await on_each(gateways, scenario)


async def test_replies_held_back_are_none_the_worse() -> None:
    """Large replies to messages of one read: each waits until the one before has left, and then the reading goes on."""

    def grow(connection: Connection, data: bytes) -> None:
        connection.send(data.ljust(int(data), b" "))

    sizes = [300_000, 400_000, 5, 600_000, 7, 300_001, 300_002]

    async def scenario(tls: bool) -> None:
        script = Script(grow, sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await peer.send_raw(b"".join(frame(Opcode.TEXT, b"%d" % size) for size in sizes))
                await asyncio.sleep(0.1)
                await peer.send_frame(Opcode.TEXT, b"9")
                for size in [*sizes, 9]:
                    got = await peer.recv_frame()
                    assert (len(got.payload), int(got.payload)) == (max(size, len(str(size))), size)

    await in_process(scenario)


async def test_reading_goes_on_though_others_send_to_a_slow_peer() -> None:
    """Whenever its outbox has drained, what others send fills it again before the reading could go on."""

    async def scenario(tls: bool) -> None:
        script = Script(echo, sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await until(lambda: bool(script.connections), "no connection")
                connection = script.connections[0]

                async def publish() -> None:
                    begin = time.monotonic()
                    while time.monotonic() - begin < 1.0:
                        if not connection.link.outbox_bytes:
                            for _ in range(4):
                                connection.send(bytes(100_000))
                        await asyncio.sleep(0)

                publishing = asyncio.create_task(publish())
                asking = asyncio.create_task(peer.send_raw(20 * frame(Opcode.TEXT, b"echo" + bytes(20_000))))
                echoes = 0
                async with asyncio.timeout(WAIT):
                    while echoes < 20:
                        echoes += (await peer.recv_frame()).payload.startswith(b"echo")
                await publishing
                await asking

    await in_process(scenario)


async def test_order_is_kept(gateways: Gateways) -> None:
    """Replies small and large, corked and not, and pongs between them."""
    lengths = [10, 50_000, 3, 70_000, 126, 65_000, 1, 200_000, 125, 40_000, 40_000, 66_000] * 4

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            data = b""
            for number, length in enumerate(lengths):
                call = {"jsonrpc": "2.0", "id": number, "method": "n" * length}
                data += frame(Opcode.TEXT, json.dumps(call).encode()) + frame(Opcode.PING, b"%d" % number)
            asking = asyncio.create_task(peer.send_raw(data))
            for number in range(len(lengths)):
                assert (await peer.recv_json())["id"] == number
                assert (await peer.recv_frame()).payload == b"%d" % number
            await asking

    await on_each(gateways, scenario)


# The cork


@pytest.mark.parametrize("state", [state for state in State if state is not State.OPEN])
async def test_nothing_is_sent_unless_open(state: State) -> None:
    box = Box(Cork())
    box.state = state
    box.send_frame_bytes(b"1")
    await asyncio.sleep(0)
    assert (box.wire.writes, box.messages_out) == ([], 0)


async def test_nothing_is_written_to_what_is_closing_or_gone() -> None:
    closing, gone = Box(Cork()), Box(Cork())
    closing.send_frame_bytes(b"1")
    closing.wire.closing = True
    closing.flush()
    closing.discard()
    gone.send_frame_bytes(b"1")
    gone.discard()
    gone.discard()
    await asyncio.sleep(0)
    assert closing.wire.writes == gone.wire.writes == []
    assert closing.messages_out == gone.messages_out == 1, "but it was sent"


async def test_over_twice_the_bound_is_cut_at_once() -> None:
    box = Box(Cork())
    box.control.writing_paused = True
    for queued, ends in ((1900, []), (2001, [errors.SLOW_CONSUMER])):
        box.wire.queued = queued
        box.send_frame_bytes(b"1")
        await asyncio.sleep(0)
        assert box.ends == ends
        assert box.stalled
    box.discard()


async def test_what_waits_is_charged_and_beyond_half_of_the_bound_it_is_pressed() -> None:
    box = Box(Cork())
    box.control.writing_paused = True
    for size, pressed in ((499, False), (2, True)):
        box.send_frame_bytes(bytes(size))
        box.flush()
        assert box.pressed is pressed
    assert box.account.held == 501
    box.control.writing_paused = False
    assert box.pump()
    assert (box.pressed, box.account.held) == (False, 0)
    box.control.writing_paused = True
    box.send_frame_bytes(bytes(600))
    box.flush()
    box.discard()
    assert (box.pressed, box.account.held, box.ends) == (False, 0, [])


async def test_one_that_does_not_read_is_pressed_if_others_of_its_principal_hold_much() -> None:
    box = Box(Cork())
    box.account.held = 5000
    box.send_frame_bytes(b"1")
    box.flush()
    assert not box.pressed, "it reads"
    box.control.writing_paused = True
    box.send_frame_bytes(b"1")
    box.flush()
    assert (box.pressed, box.ends) == (True, [])
    box.account.held = 10_000
    box.send_frame_bytes(b"1")
    box.flush()
    assert box.ends == [errors.SLOW_CONSUMER]
    box.discard()
    assert box.account.held == 10_000 - 1, "what it had charged before"


async def test_nothing_is_written_to_one_who_is_gone_by_its_own_read() -> None:
    cork = Cork()
    box = Box(cork)
    cork.reading = box
    box.send_frame_bytes(b"1")
    box.discard()
    assert cork.make_way()
    assert box.wire.writes == []


async def test_what_is_written_past_an_outbox_is_counted_with_the_rest() -> None:
    box = Box(Cork())
    box.send_frame_bytes(b"12")
    box.written = Written(1, 3)
    assert box.messages_out == 2
    assert box.bytes_out == 3, "the first one has not left yet"
    box.flush()
    assert (box.bytes_out, box.drained) == (5, 5)
    box.written = NOTHING_WRITTEN
    box.count(1, 3)
    assert (box.messages_out, box.bytes_out) == (2, 5), "it counts the same when nobody else does any more"


async def test_a_peer_that_takes_no_more_gets_no_more() -> None:
    """The transport says so within the write, as `pause_writing` to its protocol."""
    box = Box(Cork())
    box.wire.on_write = box.full
    box.control.writing_paused = True
    box.wire.write(b"1")
    assert box.blocked
    box.send_frame_bytes(b"2")
    await asyncio.sleep(0)
    assert box.wire.writes == [b"1"]
    box.control.writing_paused = False
    assert box.pump()
    assert box.wire.writes == [b"1", b"2"]


def blocked() -> Box:
    """An outbox whose transport has just taken more than it wants."""
    box = Box(Cork())
    box.control.writing_paused = True
    box.full()
    return box


async def test_own_replies_overtake_what_others_have_sent() -> None:
    box = blocked()
    for number in range(3):
        box.pass_frame_on(b"%d" % number)
    box.send_frame_bytes(b"own")
    assert box.wire.writes == []
    box.control.writing_paused = False
    assert box.pump()
    assert box.wire.writes == [b"own", b"012"], "even if it was still corked"
    assert (box.messages_out, box.bytes_out, box.outbox_bytes, box.blocked) == (4, 6, 0, False)
    box.pass_frame_on(b"3")
    box.send_frame_bytes(b"own")
    await asyncio.sleep(0)
    assert box.wire.writes[2:] == [b"3own"], "but not where nothing waits"


async def test_nothing_overtakes_a_close_frame() -> None:
    box = blocked()
    box.pass_frame_on(b"1")
    box.send_frame_bytes(b"own")
    box.put_last(b"close")
    box.pump(everything=True)
    assert box.wire.writes == [b"own", b"1close"]
    assert box.messages_out == 2, "a close frame is no message"


async def test_a_peer_is_read_until_its_own_replies_wait() -> None:
    box = blocked()
    box.outbox_bound = 10 * REPLIES
    box.account.bound = 10 * REPLIES
    box.pass_frame_on(bytes(2 * REPLIES))
    assert (box.stalled, box.may_be_read) == (False, True), "others have sent that"
    for size, stalled in ((REPLIES, False), (1, True)):
        box.send_frame_bytes(bytes(size))
        box.flush()
        assert (box.stalled, box.may_be_read) == (stalled, not stalled)


async def test_a_peer_is_not_read_while_more_waits_than_the_bound() -> None:
    box = blocked()
    box.pass_frame_on(bytes(box.outbox_bound))
    assert not box.stalled
    box.pass_frame_on(b"1")
    assert (box.stalled, box.may_be_read) == (True, False)
    box.discard()


async def test_a_large_message_from_others_is_no_reply_even_if_its_turn_comes_too_late() -> None:
    """The transport takes no more by then: because of an event to others, or of the large message before it."""
    large = CORK_BYTES + 1

    def take_no_more() -> None:
        box.control.writing_paused = True
        box.full()

    for before in (1, 2):
        box = Box(Cork())
        box.outbox_bound = box.account.bound = MIB
        box.wire.on_write = take_no_more
        for number in range(before):
            box.pass_frame_on(b"%d" % number * large)
        if before == 1:
            take_no_more()
        box.send_frame_bytes(b"own")
        await asyncio.sleep(0)
        assert not box.stalled
        box.control.writing_paused, box.wire.on_write = False, int
        assert box.pump()
        assert [data[:1] for data in box.wire.writes[-2:]] == [b"o", b"%d" % (before - 1)]


async def test_of_large_messages_to_one_peer_one_waits() -> None:
    box = Box(Cork())
    for _ in range(3):
        box.pass_frame_on(bytes(CORK_BYTES + 1))
    assert len(box.wire.writes) == 2
    await asyncio.sleep(0)
    assert [len(data) for data in box.wire.writes] == [CORK_BYTES + 1] * 3


async def test_a_peer_that_reads_nothing_is_read_and_its_reply_overtakes_what_others_sent() -> None:
    """Megabytes from others wait for it. Its own request is answered before them."""

    def answer(connection: Connection, data: bytes) -> None:
        connection.send(b"reply to " + data)

    async def scenario(tls: bool) -> None:
        script = Script(answer, sndbuf=SMALL)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=SMALL) as peer:
                await until(lambda: bool(script.connections), "no connection")
                connection = script.connections[0]
                for number in range(30):
                    connection.pass_on(b"%d" % number + bytes(50_000))
                assert connection.stalled, "it takes no more"
                await peer.send_frame(Opcode.TEXT, b"it")
                await until(lambda: bool(script.messages), "it is not read")
                got = [(await peer.recv_frame()).payload for _ in range(31)]
                place = got.index(b"reply to it")
                assert place < 15, "it has waited for what the kernel had"
                del got[place]
                assert got == [b"%d" % number + bytes(50_000) for number in range(30)], "others keep their order"

    await in_process(scenario)
