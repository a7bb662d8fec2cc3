"""The buffer: bounded, in order, and its end comes behind what it holds."""

import asyncio

import pytest

from gateway.client.buffer import Buffer


async def test_items_come_in_order_and_then_the_end() -> None:
    buffer: Buffer[int] = Buffer(5)
    for item in range(3):
        buffer.put(item)
    buffer.close()
    buffer.put(9)
    assert [item async for item in buffer] == [0, 1, 2]
    assert [item async for item in buffer] == []


async def test_one_too_many_drops_the_oldest_and_says_so() -> None:
    dropped: list[int] = []
    buffer: Buffer[int] = Buffer(2, dropped.append)
    for item in range(5):
        buffer.put(item)
    buffer.close()
    assert dropped == [0, 1, 2]
    assert [item async for item in buffer] == [3, 4]


@pytest.mark.parametrize(("at_once", "left"), [(2, [2, 3, 4]), (4, [4]), (9, [4]), (0, [1, 2, 3, 4])])
async def test_it_may_make_more_room_at_once(at_once: int, left: list[int]) -> None:
    dropped: list[int] = []
    buffer: Buffer[int] = Buffer(4, dropped.append, at_once=at_once)
    for item in range(5):
        buffer.put(item)
    buffer.close()
    assert [item async for item in buffer] == left
    assert dropped + left == list(range(5))


async def test_who_waits_is_woken_by_an_item_and_by_the_end() -> None:
    buffer: Buffer[int] = Buffer(2)
    waiting = asyncio.create_task(anext(buffer))
    await asyncio.sleep(0)
    buffer.put(1)
    assert await waiting == 1
    ending = asyncio.ensure_future(anext(buffer, 7))
    await asyncio.sleep(0)
    buffer.close()
    assert await ending == 7


async def test_an_error_comes_behind_the_items_and_the_first_close_counts() -> None:
    buffer: Buffer[int] = Buffer(2)
    buffer.put(1)
    buffer.close(OSError("gone"))
    buffer.close()
    assert await anext(buffer) == 1
    with pytest.raises(OSError, match="gone"):
        await anext(buffer)


async def test_it_holds_something() -> None:
    with pytest.raises(ValueError, match="one item"):
        Buffer(0)
