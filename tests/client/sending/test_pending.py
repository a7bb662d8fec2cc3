"""Requests that wait for a place and for their answers, and the handle of one that runs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import Raw

from gateway.client.endings import LOST, End
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError
from gateway.client.sending import pending as module
from gateway.client.sending.outbox import Outbox, Outgoing
from gateway.client.sending.pending import PROGRESS, Exchange, Missed, Pending, PendingTable, Reports, Running
from tests.support.fleet import until
from tests.support.patience import WAIT

NOTHING = Raw(b"")
CUT = End(LOST, "cut")


class Desk:
    """A table whose messages go nowhere, and what was sent."""

    def __init__(self, most: int | None = None) -> None:
        self.sent: list[bytes] = []
        self.outbox = Outbox(self._write)
        self.table = PendingTable(self.outbox)
        self.table.most = most

    async def _write(self, data: bytes) -> None:
        self.sent.append(data)

    def exchange(self, *ids: bytes, pending: Pending | None = None) -> Exchange:
        """An exchange of these requests, whose message is their ids."""
        return Exchange({one: pending or Pending() for one in ids}, Outgoing(), lambda: b" ".join(ids))

    async def queued(self, *exchanges: Exchange) -> Sequence[Exchange]:
        """Queue them, and let what has a place leave."""
        for exchange in exchanges:
            self.table.queue(exchange)
        await self.outbox.flush()
        return exchanges

    def answer(self, request_id: bytes) -> bool:
        """The gateway answers."""
        return self.table.answered(request_id, Raw(b"1"), NOTHING)


def failure_of(exchange: Exchange) -> list[tuple[str, str | None]]:
    """How its requests have failed."""
    errors = [one.answer.exception() for one in exchange.requests.values()]
    return [(error.name, error.outcome) for error in errors if isinstance(error, CallError)]


async def test_a_result_and_an_error_find_their_requests() -> None:
    desk, one, two = Desk(), Pending(), Pending()
    await desk.queued(desk.exchange(b"1", pending=one), desk.exchange(b"2", pending=two))
    assert desk.table.answered(b"2", Raw(b"[7]"), NOTHING)
    assert desk.table.answered(b"1", NOTHING, Raw(b'{"code":7,"message":"no film"}'))
    assert await two.answer == [7]
    with pytest.raises(CallError, match="no film"):
        await one.answer
    assert len(desk.table) == 0
    assert not desk.answer(b"1")


async def test_requests_wait_for_a_place_in_their_order() -> None:
    desk = Desk(most=2)
    await desk.queued(*(desk.exchange(b"%d" % number) for number in range(5)))
    assert desk.sent == [b"0", b"1"]
    desk.table.send(desk.exchange(b"own"))  # the client's own do not wait, but count
    await desk.outbox.flush()
    for request_id, sent in ((b"1", b"own"), (b"own", b"2"), (b"0", b"3"), (b"2", b"4")):
        assert desk.answer(request_id)
        await desk.outbox.flush()
        assert desk.sent[-1] == sent
    assert len(desk.table) == 2


async def test_a_batch_waits_for_the_places_of_all_and_is_not_overtaken() -> None:
    desk = Desk(most=2)
    await desk.queued(desk.exchange(b"1"), desk.exchange(b"2", b"3"), desk.exchange(b"4"))
    assert desk.sent == [b"1"]
    desk.answer(b"1")
    await desk.outbox.flush()
    assert desk.sent == [b"1", b"2 3"]
    await desk.queued(desk.exchange(b"5", b"6", b"7"))  # more than there are: it waits for all of them
    for request_id in (b"2", b"3", b"4"):
        assert b"5 6 7" not in desk.sent
        desk.answer(request_id)
        await desk.outbox.flush()
    assert desk.sent[2:] == [b"4", b"5 6 7"]


async def test_a_request_that_is_given_up_leaves_its_place_once_it_is_answered() -> None:
    desk = Desk(most=1)
    first, second, third = await desk.queued(desk.exchange(b"1"), desk.exchange(b"2"), desk.exchange(b"3"))
    assert desk.table.give_up(second) == []
    assert desk.table.give_up(first) == [b"1"]
    assert desk.sent == [b"1"]
    assert desk.answer(b"1")
    await desk.outbox.flush()
    assert desk.sent == [b"1", b"3"]
    assert first.requests[b"1"].answer.cancelled()
    desk.answer(b"3")
    assert desk.table.give_up(third) == []


async def test_a_request_that_has_not_left_is_taken_back_without_a_trace() -> None:
    desk = Desk(most=1)
    first, second = desk.exchange(b"1"), desk.exchange(b"2")
    desk.table.queue(first)
    desk.table.queue(second)
    assert desk.table.give_up(first) == []
    await desk.outbox.flush()
    assert desk.sent == [b"2"]
    assert not desk.answer(b"1")


async def test_a_gateway_that_never_answers_what_was_given_up_does_not_keep_the_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GIVEN_UP", 0.01)
    desk = Desk(most=2)
    first, second, _ = await desk.queued(desk.exchange(b"1"), desk.exchange(b"2"), desk.exchange(b"3", b"4"))
    desk.table.give_up(first)
    await asyncio.sleep(0.001)
    desk.table.give_up(second)
    await until(lambda: desk.sent == [b"1", b"2", b"3 4"], "it still waits for a place")


async def test_what_is_too_large_fails_alone() -> None:
    desk = Desk(most=1)
    desk.outbox.max_bytes = 3
    large, small = await desk.queued(desk.exchange(b"1", b"22"), desk.exchange(b"3"))
    assert failure_of(large) == [("invalid_request", NOT_DELIVERED)] * 2
    one, two = large.requests.values()
    assert one.answer.exception() is not two.answer.exception()
    assert desk.sent == [b"3"]
    assert list(small.requests) == [b"3"]


async def test_what_cannot_be_encoded_fails_alone_even_if_that_comes_out_later() -> None:
    desk = Desk(most=1)

    def encode() -> bytes:
        raise OverflowError("too much")

    wrong = Exchange({b"2": Pending()}, Outgoing(), encode)
    await desk.queued(desk.exchange(b"1"), wrong, desk.exchange(b"3"))
    assert desk.answer(b"1")
    with pytest.raises(OverflowError, match="too much"):
        await asyncio.wait_for(wrong.requests[b"2"].answer, WAIT)
    await desk.outbox.flush()
    assert desk.sent == [b"1", b"3"]


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


async def test_a_request_that_nobody_waits_for_takes_nothing() -> None:
    seen: list[Any] = []
    desk = Desk()
    pending = Pending(seen.append, seen.append)
    (exchange,) = await desk.queued(desk.exchange(b"1", pending=pending))
    desk.table.give_up(exchange)
    desk.table.progress(b"1", Raw(b"0"))
    assert desk.answer(b"1")
    pending.fail(CallError(1, "late"))
    assert seen == []


async def test_progress_goes_to_its_request_alone() -> None:
    desk, values = Desk(), list[Any]()
    await desk.queued(desk.exchange(b"1", pending=Pending(progress=values.append)), desk.exchange(b"2"))
    for request_id in (b"1", b"2", b"3", b"1"):
        desk.table.progress(request_id, Raw(request_id))
    assert values == [1, 1]
    desk.table.fail_all(CUT)


async def test_at_the_end_of_the_link_it_is_known_what_may_have_been_run() -> None:
    desk = Desk(most=2)
    sent, waiting = await desk.queued(desk.exchange(b"1"), desk.exchange(b"2", b"3"))
    not_left = desk.exchange(b"4")
    desk.table.send(not_left)
    desk.table.fail_all(CUT)
    late = desk.exchange(b"5")
    desk.table.queue(late)
    own = desk.exchange(b"6")
    desk.table.send(own)
    assert failure_of(sent) == [("connection_lost", UNKNOWN)]
    assert failure_of(waiting) == [("connection_lost", NOT_DELIVERED)] * 2
    for exchange in (not_left, late, own):
        assert failure_of(exchange) == [("connection_lost", NOT_DELIVERED)]
    await desk.outbox.flush()
    assert desk.sent == [b"1"], "what is told not to have been delivered does not leave either"
    assert len(desk.table) == 0


async def test_while_the_gateway_drains_nothing_waits_for_a_place() -> None:
    desk = Desk(most=1)
    sent, waiting = await desk.queued(desk.exchange(b"1"), desk.exchange(b"2"))
    desk.table.drain(End(1001, "shutdown"))
    assert failure_of(waiting) == [("connection_lost", NOT_DELIVERED)]
    own = desk.exchange(b"3")
    desk.table.send(own)
    assert desk.answer(b"1")
    assert desk.answer(b"3")
    assert [await one.answer for one in (*sent.requests.values(), *own.requests.values())] == [1, 1]


async def test_running_gives_progress_and_then_its_result_more_than_once() -> None:
    reports = Reports()

    async def work() -> str:
        for value in range(3):
            reports.put(value)
            await asyncio.sleep(0)
        return "done"

    running = Running(asyncio.create_task(work()), reports)
    assert [value async for value in running] == [0, 1, 2]
    assert (await running, await running) == ("done", "done")


async def test_of_progress_nothing_is_dropped_in_silence() -> None:
    reports = Reports()
    for value in range(PROGRESS + 10):
        reports.put(value)
    assert await anext(reports) == Missed(10)
    for value in range(PROGRESS + 10, PROGRESS + 15):
        reports.put(value)
    # What was dropped meanwhile lies behind the value that the first gap was told before.
    assert [await anext(reports) for _ in range(3)] == [10, Missed(4), 15]
    reports.close()
    assert [value async for value in reports] == list(range(16, PROGRESS + 15))


async def test_a_reader_that_is_always_too_slow_gets_values_and_gaps_and_each_value_is_accounted_for() -> None:
    reports, items = Reports(), list[Any]()
    for value in range(3 * PROGRESS):
        reports.put(value)
        if value >= PROGRESS and value % 2:
            items.append(await anext(reports))
    reports.close()
    items += [item async for item in reports]
    next_value = 0
    for item in items:
        if isinstance(item, Missed):
            next_value += item.count
        else:
            assert item == next_value
            next_value += 1
    assert next_value == 3 * PROGRESS
    assert sum(isinstance(item, Missed) for item in items) <= len(items) / 2


@pytest.mark.parametrize("waits_for", ["result", "progress"])
async def test_who_waits_for_it_cancels_it(waits_for: str) -> None:
    task = asyncio.create_task(asyncio.sleep(10))
    running = Running(task, Reports())

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
    running = Running(asyncio.create_task(fail()), Reports())
    assert [value async for value in running] == []
    del running
    await asyncio.sleep(0)
    assert told == []
