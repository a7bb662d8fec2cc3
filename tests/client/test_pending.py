"""Requests that wait for their answers, and the handle of one that runs."""

import asyncio
from typing import Any

import pytest
from msgspec import Raw

from gateway.client.buffer import Buffer
from gateway.client.endings import LOST, End
from gateway.client.errors import UNKNOWN, CallError, ConnectionLost
from gateway.client.pending import Pending, PendingTable, Running
from tests.support.patience import WAIT

NOTHING = Raw(b"")


async def test_a_result_and_an_error_find_their_requests() -> None:
    table = PendingTable()
    one, two = Pending(), Pending()
    table.enter(b"1", one)
    table.enter(b"2", two)
    assert table.answered(b"2", Raw(b"[7]"), NOTHING)
    assert table.answered(b"1", NOTHING, Raw(b'{"code":7,"message":"no film"}'))
    assert await two.answer == [7]
    with pytest.raises(CallError, match="no film"):
        await one.answer
    assert len(table) == 0
    assert not table.answered(b"1", Raw(b"1"), NOTHING)


async def test_the_reply_is_seen_before_anything_else() -> None:
    seen: list[Any] = []
    pending = Pending(on_reply=seen.append)
    pending.succeed(Raw(b'{"a":1}'))
    assert seen == [{"a": 1}]
    assert not pending.answer.cancelled()


async def test_a_result_that_no_machine_holds() -> None:
    pending = Pending()
    pending.succeed(Raw(b"[" * 100_000 + b"]" * 100_000))
    with pytest.raises(CallError, match="cannot be decoded"):
        await pending.answer


async def test_who_does_not_wait_any_more_is_left_alone() -> None:
    table = PendingTable()
    pending = Pending()
    table.enter(b"1", pending)
    pending.answer.cancel()
    assert table.answered(b"1", Raw(b"1"), NOTHING)
    pending.fail(CallError(1, "late"))
    pending.forget()
    assert not table.drop(b"1")


async def test_progress_goes_to_its_request_alone() -> None:
    table, values = PendingTable(), list[Any]()
    table.enter(b"1", Pending(progress=values.append))
    table.enter(b"2", Pending())
    for request_id in (b"1", b"2", b"3", b"1"):
        table.progress(request_id, request_id)
    assert values == [b"1", b"1"]
    table.fail_all(lambda: ConnectionLost(End(LOST), UNKNOWN))


async def test_a_lost_connection_fails_all_each_with_its_own_error() -> None:
    table = PendingTable()
    both = [Pending(), Pending()]
    for number, pending in enumerate(both):
        table.enter(b"%d" % number, pending)
    table.fail_all(lambda: ConnectionLost(End(LOST), UNKNOWN))
    errors = [pending.answer.exception() for pending in both]
    assert all(isinstance(error, ConnectionLost) for error in errors)
    assert errors[0] is not errors[1]
    assert len(table) == 0


async def test_running_gives_progress_and_then_its_result_more_than_once() -> None:
    progress: Buffer[int] = Buffer(5)

    async def work() -> str:
        for value in range(3):
            progress.put(value)
            await asyncio.sleep(0)
        return "done"

    running = Running(asyncio.create_task(work()), progress)
    assert [value async for value in running] == [0, 1, 2]
    assert (await running, await running) == ("done", "done")


@pytest.mark.parametrize("waits_for", ["result", "progress"])
async def test_who_waits_for_it_cancels_it(waits_for: str) -> None:
    task = asyncio.create_task(asyncio.sleep(10))
    running = Running(task, Buffer(1))

    async def wait() -> None:
        if waits_for == "result":
            await running
        async for _ in running:
            pass

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting, task], timeout=WAIT)
    assert waiting.cancelled()
    assert task.cancelled()


async def test_a_failure_that_nobody_awaits_is_no_defect() -> None:
    async def fail() -> None:
        raise CallError(7, "no film")

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    running = Running(asyncio.create_task(fail()), Buffer(1))
    assert [value async for value in running] == []
    del running
    await asyncio.sleep(0)
    assert told == []
