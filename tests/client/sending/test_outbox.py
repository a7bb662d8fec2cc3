"""The one way out of a link: the order, what is too large, what was withdrawn, and what is known at its end."""

import asyncio

import pytest

from gateway.client.endings import LOST, End
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost
from gateway.client.sending.outbox import MAX_POSTED, Outbox, Outgoing


class Transport:
    """Takes messages, unless it is told to hold or to lose them."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.lost = False

    async def write(self, data: bytes) -> None:
        """Take one message."""
        if self.lost:
            raise ConnectionLost(End(LOST, "cut"), UNKNOWN)
        self.taken.append(data)
        await self.takes.wait()


async def sending(outbox: Outbox, data: bytes) -> Outgoing:
    """What `Link.send` does."""
    message = Outgoing(data)
    outbox.put(message)
    await message.written()
    return message


async def test_all_leave_in_the_order_in_which_they_were_put() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    transport.takes.clear()
    outbox.put(Outgoing(b"1", posted=True))
    waiting = asyncio.create_task(sending(outbox, b"2"))
    await asyncio.sleep(0)
    outbox.put(Outgoing(b"3", posted=True))
    outbox.put(Outgoing(b"4"))
    assert transport.taken == [b"1"]
    transport.takes.set()
    assert (await waiting).left
    await outbox.flush()
    assert transport.taken == [b"1", b"2", b"3", b"4"]


async def test_what_is_too_large_is_told_to_its_sender_and_nothing_else_is_lost() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    outbox.max_bytes = 3
    outbox.put(Outgoing(b"one"))
    with pytest.raises(CallError, match=r"a message of 4 bytes; the gateway takes 3") as failed:
        outbox.put(Outgoing(b"four"))
    assert (failed.value.name, failed.value.outcome) == ("invalid_request", NOT_DELIVERED)
    outbox.put(Outgoing(b"two"))
    await outbox.flush()
    assert transport.taken == [b"one", b"two"]


async def test_what_was_withdrawn_in_time_does_not_leave() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    transport.takes.clear()
    first, second, third = Outgoing(b"1", posted=True), Outgoing(b"2", posted=True), Outgoing(b"3")
    for message in (first, second, third):
        outbox.put(message)
    await asyncio.sleep(0)
    for message in (first, second, second):
        outbox.withdraw(message)
    transport.takes.set()
    await outbox.flush()
    assert transport.taken == [b"1", b"3"]
    assert [message.left for message in (first, second, third)] == [True, False, True]


async def test_its_bound_counts_the_bytes_for_which_no_sender_waits() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    transport.takes.clear()
    outbox.put(Outgoing(b"begun"))
    await asyncio.sleep(0)
    half = b"x" * (MAX_POSTED // 2)
    outbox.put(Outgoing(half * 3))
    for _ in range(10_000):
        outbox.put(Outgoing(b"", posted=True))
    withdrawn = Outgoing(half, posted=True)
    outbox.put(withdrawn)
    outbox.withdraw(withdrawn)
    for _ in range(2):
        outbox.put(Outgoing(half, posted=True))
    assert not outbox.overfull
    outbox.put(Outgoing(b"x", posted=True))
    assert outbox.overfull
    transport.takes.set()
    await outbox.flush()
    assert not outbox.overfull


async def test_at_the_end_of_the_transport_it_is_known_what_may_have_left() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    transport.lost = True
    both = [asyncio.create_task(sending(outbox, b"1")), asyncio.create_task(sending(outbox, b"2"))]
    await asyncio.wait(both)
    ends = [task.exception() for task in both]
    assert [isinstance(end, ConnectionLost) and end.outcome for end in ends] == [UNKNOWN, NOT_DELIVERED]
    assert outbox.broken
    with pytest.raises(ConnectionLost, match="cut") as lost:
        outbox.put(Outgoing(b"3"))
    assert lost.value.outcome == NOT_DELIVERED
    assert transport.taken == []


async def test_closing_ends_what_is_being_written_and_what_waits() -> None:
    transport = Transport()
    outbox = Outbox(transport.write)
    transport.takes.clear()
    both = [asyncio.create_task(sending(outbox, b"1")), asyncio.create_task(sending(outbox, b"2"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await outbox.close(End(LOST, "gone"))
    await asyncio.wait(both)
    ends = [task.exception() for task in both]
    assert [isinstance(end, ConnectionLost) and end.outcome for end in ends] == [UNKNOWN, NOT_DELIVERED]
    assert transport.taken == [b"1"]
    await outbox.close(End(LOST, "again"))
