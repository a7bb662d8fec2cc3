"""The cork: what leaves together, when, and how much of it in one go."""

import asyncio
import itertools

from gateway.websocket.cork import ALONE, CORK_BYTES, CORK_FLUSHES, CORK_WRITES, Cork
from tests.support.boxes import Box

MIB = 1 << 20


async def test_frames_of_one_pass_leave_in_one_write() -> None:
    cork = Cork()
    one, two = Box(cork), Box(cork)
    for number in range(3):
        one.send_frame_bytes(b"%d" % number)
        two.send_frame_bytes(b"%d" % (number + 5))
    assert one.wire.writes == two.wire.writes == []
    assert (one.outbox_bytes, one.messages_out, one.bytes_out) == (3, 3, 0)
    await asyncio.sleep(0)
    assert (one.wire.writes, two.wire.writes) == ([b"012"], [b"567"])
    assert (one.outbox_bytes, one.messages_out, one.bytes_out) == (0, 3, 3)
    one.send_frame_bytes(b"next")
    await asyncio.sleep(0)
    assert one.wire.writes == [b"012", b"next"]


async def test_what_is_sent_while_the_cork_is_flushed_leaves_in_the_next_pass() -> None:
    cork = Cork()
    box = Box(cork)
    box.send_frame_bytes(b"1")
    asyncio.get_running_loop().call_soon(box.send_frame_bytes, b"2")
    await asyncio.sleep(0)
    assert box.wire.writes == [b"1"]
    await asyncio.sleep(0)
    assert box.wire.writes == [b"1", b"2"]


async def test_much_is_written_at_once() -> None:
    box = Box(Cork())
    box.send_frame_bytes(b"1")
    box.send_frame_bytes(bytes(CORK_BYTES))
    box.send_frame_bytes(b"2")
    assert [len(data) for data in box.wire.writes] == [CORK_BYTES + 1]
    await asyncio.sleep(0)
    assert [len(data) for data in box.wire.writes] == [CORK_BYTES + 1, 1]


async def test_replies_leave_at_the_end_of_the_read() -> None:
    box = Box(Cork())
    box.cork.reading = box
    box.send_frame_bytes(b"1")
    box.send_frame_bytes(b"2")
    await asyncio.sleep(0)
    assert box.wire.writes == []
    box.cork.reading = None
    box.flush()
    box.flush()
    assert box.wire.writes == [b"12"]


async def test_a_message_to_very_many_leaves_in_order_and_others_have_their_turn() -> None:
    """One go writes to so many sockets; what else the loop has to do is not kept waiting by the rest."""
    cork, loop = Cork(), asyncio.get_running_loop()
    boxes = [Box(cork) for _ in range(2000)]
    written: list[int] = []

    def turn() -> None:
        written.append(sum(bool(box.wire.writes) for box in boxes))
        if written[-1] < len(boxes):
            loop.call_soon(turn)

    for box in boxes:
        box.send_frame_bytes(b"1")
    for box in boxes[::-1]:
        box.send_frame_bytes(b"2")
    loop.call_soon(turn)
    await asyncio.sleep(0)
    for box in boxes:  # while most of the first still wait
        box.send_frame_bytes(b"3")
    while not written or written[-1] < len(boxes):
        await asyncio.sleep(0)
    steps = [after - before for before, after in itertools.pairwise([0, *written])]
    assert max(steps) <= CORK_FLUSHES, written
    assert len(written) <= 2000 // CORK_FLUSHES + 3, "and nobody waits for longer than that takes"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert {b"".join(box.wire.writes) for box in boxes} == {b"123"}


async def test_one_frame_of_a_pass_may_be_written_past_the_outboxes_behind_what_is_corked() -> None:
    cork = Cork()
    one, two, reading = Box(cork), Box(cork), Box(cork)
    one.send_frame_bytes(b"1")
    cork.reading = reading
    reading.send_frame_bytes(b"1")
    assert cork.make_way()
    assert (one.wire.writes, two.wire.writes, reading.wire.writes) == ([b"1"], [], [b"1"])
    one.send_frame_bytes(b"2")
    one.send_frame_bytes(b"3")
    reading.send_frame_bytes(b"2")
    assert not cork.make_way(), "once in a pass"
    assert (one.wire.writes, reading.wire.writes) == ([b"1"], [b"1"])
    cork.reading = None
    reading.flush()
    await asyncio.sleep(0)
    assert (one.wire.writes, two.wire.writes, reading.wire.writes) == ([b"1", b"23"], [], [b"1", b"2"])
    assert cork.make_way(), "another pass"


async def test_nothing_is_written_past_very_many_that_wait() -> None:
    cork = Cork()
    boxes = [Box(cork) for _ in range(CORK_FLUSHES + 1)]
    for box in boxes:
        box.send_frame_bytes(b"1")
    assert not cork.make_way()
    assert not any(box.wire.writes for box in boxes)
    await asyncio.sleep(0)
    assert cork.make_way(), "one is left of them"
    assert all(box.wire.writes == [b"1"] for box in boxes)


def read(cork: Cork, *boxes: Box) -> None:
    """A read that sends a frame to each of these, as `gateway.websocket.reader` tells the cork of it."""
    cork.reading = Box(cork)
    cork.reads += 1
    for box in boxes:
        box.send_frame_bytes(b"1")
    cork.reading = None
    if cork.due:
        cork.end_read()


async def test_what_a_read_sends_to_others_leaves_at_its_end_where_reads_come_one_in_a_pass() -> None:
    cork = Cork()
    box, other = Box(cork), Box(cork)
    read(cork, box)
    assert box.wire.writes == [], "there may be more in this pass"
    await asyncio.sleep(0)
    assert box.wire.writes == [b"1"]
    for number in range(ALONE):
        read(cork, box, other)
        assert (len(box.wire.writes), len(other.wire.writes)) == (number + 2, number + 1)
    read(cork, box)
    assert len(box.wire.writes) == ALONE + 1, "now and then it looks again"
    read(cork, box)
    await asyncio.sleep(0)
    assert box.wire.writes[-1] == b"11", "and there were two"
    read(cork, box)
    assert len(box.wire.writes) == ALONE + 2
    await asyncio.sleep(0)
    assert len(box.wire.writes) == ALONE + 3


async def test_what_waits_for_the_end_of_the_pass_is_not_overtaken_by_the_end_of_a_read() -> None:
    cork = Cork()
    box, very_many = Box(cork), [Box(cork) for _ in range(CORK_FLUSHES)]
    read(cork, box)
    await asyncio.sleep(0)
    box.send_frame_bytes(b"0")  # by no read
    read(cork, box)
    assert len(box.wire.writes) == 1
    await asyncio.sleep(0)
    assert box.wire.writes[1:] == [b"01"]
    read(cork, box)
    await asyncio.sleep(0)
    read(cork, *very_many, box)
    assert len(box.wire.writes) == 3, "one go writes to so many sockets, also at the end of a read"
    await asyncio.sleep(0)
    assert len(box.wire.writes) == 4


async def test_a_large_message_to_many_leaves_bit_by_bit_and_others_have_their_turn() -> None:
    cork = Cork()
    boxes = [Box(cork) for _ in range(100)]
    data = bytes(MIB)
    for box in boxes:
        box.pass_frame_on(data)
    assert not any(box.wire.writes for box in boxes)
    written = [0]
    while written[-1] < len(boxes):
        await asyncio.sleep(0)
        written.append(sum(bool(box.wire.writes) for box in boxes))
        assert written[-1] > written[-2]
    most = CORK_WRITES // MIB + 1
    assert max(after - before for before, after in itertools.pairwise(written)) <= most


async def test_nothing_is_written_past_very_much_that_waits() -> None:
    cork = Cork()
    boxes = [Box(cork) for _ in range(2 * CORK_WRITES // MIB)]
    for box in boxes:
        box.pass_frame_on(bytes(MIB))
    assert not cork.make_way()
    await asyncio.sleep(0)
    assert all(box.wire.writes for box in boxes)
    assert cork.make_way()
