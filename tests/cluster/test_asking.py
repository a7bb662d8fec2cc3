"""Questions to all members of a cluster, over a real server: who answers, and who is missing, after how long."""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.cluster.asking import MAX_OPEN, Asking
from gateway.rpc.method import Refusal
from tests.support.fleet import until
from tests.support.members import Fellow
from tests.support.nats import NatsServer

LONG = 60.0
"""Seconds for which no test waits: what ends before has not waited for them."""


class Asker(Fellow):
    """A member that asks, and answers the question `name` with its name, and `echo` with its parameters."""

    def __init__(self, url: str, name: str, **options: Any) -> None:
        super().__init__(url, name, **options)
        self.asked: list[bytes] = []
        self.asking = Asking(self.members)
        self.asking.register("name", self._name)
        self.asking.register("echo", lambda params: params)

    def _name(self, params: bytes) -> bytes:
        self.asked.append(params)
        return b'"%b"' % self.members.name.encode()

    def be_silent(self) -> None:
        """Answer nothing from now on."""
        self.members.on(b"ask", lambda *mail: None)

    async def hears(self, *names: str, **options: Any) -> tuple[list[bytes], list[str]]:
        """Ask for all names; the answers, sorted, and who is missing."""
        told = await self.asking.ask("name", b"{}", **options)
        assert [answer for _, answer in told.answers] == [b'"%b"' % name.encode() for name, _ in told.answers]
        return sorted(answer for _, answer in told.answers), told.missing


class Three(AsyncExitStack):
    """Three members, as an async context manager. They know each other."""

    def __init__(self, server: NatsServer) -> None:
        super().__init__()
        self._url = server.url

    async def __aenter__(self) -> "Three":
        self.a, self.b, self.c = [await self.enter_async_context(Asker(self._url, name)) for name in "abc"]
        await self.a.knows("b", "c")
        await self.b.knows("a", "c")
        await self.c.knows("a", "b")
        return self


async def test_all_answer() -> None:
    async with NatsServer() as server, Three(server) as three:
        assert await three.a.hears(timeout=LONG) == ([b'"a"', b'"b"', b'"c"'], [])
        assert three.b.asked == three.c.asked == [b"{}"]
        told = await three.c.asking.ask("echo", b'{"x":\n1}')
        assert {answer for _, answer in told.answers} == {b'{"x":\n1}'}, "line breaks in it are its own"
        assert sorted(name for name, _ in told.answers) == ["a", "b", "c"]


async def test_one_is_asked_by_name_or_instance() -> None:
    async with NatsServer() as server, Three(server) as three:
        assert await three.a.hears(member="b") == ([b'"b"'], [])
        assert await three.a.hears(member=three.c.members.instance) == ([b'"c"'], [])
        assert await three.a.hears(member="a") == ([b'"a"'], [])
        assert not three.b.asked[1:] and not three.c.asked[1:], "the others were not asked"
        with pytest.raises(Refusal, match="no gateway 'd' in the cluster") as refused:
            await three.a.hears(member="d")
        assert refused.value.error.name == "not_found"


async def test_one_answer_may_be_enough() -> None:
    async with NatsServer() as server, Three(server) as three:
        own = await three.a.asking.ask("name", b"", enough=lambda answer: answer == b'"a"')
        assert (own.answers, own.missing, three.b.asked) == ([("a", b'"a"')], [], []), "nobody else is asked"
        three.c.be_silent()
        told = await three.a.asking.ask("name", b"", enough=lambda answer: answer == b'"b"', timeout=LONG)
        assert (told.answers, told.missing) == ([("a", b'"a"'), ("b", b'"b"')], [])


async def test_who_does_not_answer_in_time_is_named() -> None:
    async with NatsServer() as server, Three(server) as three:
        three.b.be_silent()
        assert await three.a.hears(timeout=0.2) == ([b'"a"', b'"c"'], ["b"])
        assert await three.a.hears(member="b", timeout=0.2) == ([], ["b"])


async def test_who_does_not_know_the_question_is_named_at_once() -> None:
    async with NatsServer() as server, Three(server) as three:
        three.a.asking.register("new", lambda params: b"1")
        told = await three.a.asking.ask("new", b"", timeout=LONG)
        assert (told.answers, told.missing) == ([("a", b"1")], ["b", "c"])


async def test_a_defect_of_an_answer_is_logged_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def broken(params: bytes) -> bytes:
        raise RuntimeError("broken")

    async with NatsServer() as server, Three(server) as three:
        three.b.asking.register("name", broken)
        assert await three.a.hears(timeout=LONG) == ([b'"a"', b'"c"'], ["b"]), "it is told at once"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.__dict__["event"] == "cluster.defect"
    assert record.exc_info is not None and isinstance(record.exc_info[1], RuntimeError)


async def test_an_answer_that_nats_does_not_take_is_none() -> None:
    async with NatsServer("max_payload: 1000") as server, Three(server) as three:
        three.b.asking.register("name", lambda params: b"x" * 1001)
        assert await three.a.hears(timeout=LONG) == ([b'"a"', b'"c"'], ["b"])


async def test_a_question_that_nats_does_not_take_is_not_waited_for() -> None:
    async with NatsServer("max_payload: 1000") as server, Three(server) as three:
        told = await three.a.asking.ask("name", b"x" * 1000, timeout=LONG)
        assert (told.answers, told.missing) == ([("a", b'"a"')], ["b", "c"])


async def test_who_is_lost_meanwhile_is_named_without_waiting() -> None:
    async with NatsServer() as server, Three(server) as three:
        three.b.be_silent()
        asking = asyncio.create_task(three.a.hears(timeout=LONG))
        await until(lambda: bool(three.c.asked), "nobody was asked")
        await three.b.members.leave()
        assert await asking == ([b'"a"', b'"c"'], ["b"])


async def test_who_is_not_there_any_more_is_noticed_by_nats() -> None:
    """Long before its heartbeats are missed."""
    async with NatsServer() as server, Asker(server.url, "a", timeout=LONG) as a:
        b = Asker(server.url, "b", timeout=LONG)
        async with b:
            await a.knows("b")
            b.members.lost()  # without a word
            assert await a.hears(timeout=LONG) == ([b'"a"'], ["b"])
        assert a.told == ["+b", "-b no_responders"]


async def test_without_nats_those_who_were_there_are_missing() -> None:
    async with NatsServer() as server, Three(server) as three:
        a = three.a
        server.end()
        await until(lambda: not a.members.address, "it has not noticed")
        assert await a.hears(timeout=LONG) == ([b'"a"'], ["b", "c"])
        with pytest.raises(Refusal):
            await a.hears(member="b")
        await three.c.nats.close()
        await server.start()
        await a.knows("b")
        await until(lambda: a.members.settled, "it has not settled")
        assert await a.hears(timeout=LONG) == ([b'"a"', b'"b"'], []), "c has not come back, and is lost by now"


async def test_answers_that_were_not_asked_for_do_not_count() -> None:
    async with NatsServer() as server, Three(server) as three:
        three.b.be_silent()
        asking = asyncio.create_task(three.a.hears(timeout=0.5))
        await until(lambda: bool(three.c.asked), "nobody was asked")
        three.c.members.tell(three.c.member("a"), b"told", b'"again"', b"1")
        three.c.members.tell(three.c.member("a"), b"told", b'"never"', b"2")
        three.c.members.tell(three.c.member("a"), b"told", b'"nonsense"', b"x.y")
        assert await asking == ([b'"a"', b'"c"'], ["b"])


async def test_no_more_questions_wait_than_may() -> None:
    async with NatsServer() as server, Three(server) as three:
        three.b.be_silent()
        waiting = [asyncio.create_task(three.a.hears(member="b", timeout=LONG)) for _ in range(MAX_OPEN)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="too many questions") as refused:
            await three.a.hears(member="c")
        assert refused.value.data == {"retryAfterMs": 100, "outcome": "not_delivered"}
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert await three.a.hears(member="c") == ([b'"c"'], []), "who asks no more takes no place"
