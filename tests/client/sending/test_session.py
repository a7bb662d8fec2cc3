"""A connection of the client: what leaves it and in which order, and how it goes on with another link."""

import asyncio
import itertools
from typing import Any

import aiohttp
import pytest
from msgspec import Raw

from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost
from gateway.client.link import Options, open_link, open_session
from gateway.client.sending.outbox import MAX_POSTED, Outgoing
from gateway.client.sending.session import Session
from tests.support.fleet import until
from tests.support.patience import SLACK, WAIT
from tests.support.scripted_gateway import Peer, ScriptedGateway, scripted


async def opened(gateway: ScriptedGateway, http: aiohttp.ClientSession) -> Session:
    """A connection that is not kept."""
    return Session(await open_link(http, None, options(gateway)), itertools.count(1))


def options(gateway: ScriptedGateway) -> Options:
    """How it connects."""
    return Options(gateway.url, True, 30.0, 1.0, 0.5, 1 << 20)


def notification(method: str) -> bytes:
    """A message that has a number once the connection is kept."""
    return b'{"jsonrpc":"2.0","method":"%b"}' % method.encode()


async def test_the_limits_are_those_of_the_welcome() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxBatch=3)
        await peer.stay()

    async with scripted(script) as gateway, open_session() as http:
        session = await opened(gateway, http)
        assert (session.limit("maxBatch", 100), session.limit("maxInFlight", 64)) == (3, 64)
        assert session.usable
        await session.close()
        assert not session.usable
        with pytest.raises(ConnectionLost) as lost:
            await session.request("x", None)
        assert (lost.value.outcome, lost.value.temporary) == (NOT_DELIVERED, True)


async def test_an_acknowledgement_that_comes_when_nothing_is_counted_ends_nothing() -> None:
    """It may be on its way when this side stops to count: the link is about to end, but not as a violation."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.stay()

    async with scripted(script) as gateway, open_session() as http:
        session = await opened(gateway, http)
        session.notified("connection.ack", Raw(b'{"received":1}'))
        assert session.usable
        await session.close()


async def test_what_the_gateway_would_not_take_is_not_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=200, maxBatch=2)
        await peer.stay()

    async with scripted(script) as gateway, open_session() as http:
        session = await opened(gateway, http)
        for sending in (
            session.request("x", Raw(b'["%b"]' % (b"x" * 200))),
            session.batch(Outgoing(), [("x", None)] * 3),
        ):
            with pytest.raises(CallError) as failed:
                await sending
            assert (failed.value.name, failed.value.outcome) == ("invalid_request", NOT_DELIVERED)
        assert len(session.pending) == 0
        await session.close()


async def test_what_was_to_leave_before_the_request_to_keep_has_no_number() -> None:
    """The gateway counts from that request on: with a number it would be sent again after each loss."""
    again: list[str] = []

    async def first(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.message())["method"] == "before"
        asked = await peer.message()
        assert (await peer.message())["method"] == "after"
        await peer.answer(asked, {"session": "the secret", "holdMs": 30_000, "maxBytes": 1000})
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.resume(received=0)
        while "last" not in again:
            again.append((await peer.message())["method"])
        await peer.stay()

    async with scripted(first, second) as gateway, open_session() as http:
        session = await opened(gateway, http)
        assert session.link is not None
        link = session.link
        session.post(notification("before"))
        session.keep()
        session.post(notification("after"))
        while (frame := await link.receive()) is not None:
            session.heard(frame)
            for message in frame.messages:
                session.pending.answered(bytes(message.id), message.result, message.error)
        assert session.outlives(link.end)
        session.detach(link.end)
        await link.close()
        assert await session.resume(await open_link(http, None, options(gateway))) == ([], None)
        session.post(notification("last"))
        await until(lambda: "last" in again, "it does not go on")
        await session.close()
    assert again == ["after", "last"]


async def test_one_who_does_not_read_is_given_up_and_the_close_has_its_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await asyncio.sleep(WAIT)

    async with scripted(script) as gateway, open_session() as http:
        session = await opened(gateway, http)
        assert session.link is not None
        link = session.link
        reading = asyncio.create_task(link.receive())
        # The transport's buffers take some of it, too.
        for _ in range(MAX_POSTED // 100_000 * 10):
            session.post(b'"%b"' % (b"x" * 100_000))
            await asyncio.sleep(0)
        async with asyncio.timeout(SLACK):
            assert await reading is None
            await session.close()
        assert link.end.reason == "the gateway does not read"


async def test_at_its_close_what_was_asked_for_leaves_and_nothing_that_was_told_not_to() -> None:
    messages: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        async for message in peer.ws:
            messages.append(message.json()["method"])

    async with scripted(script) as gateway, open_session() as http:
        session = await opened(gateway, http)
        session.post(b'{"jsonrpc":"2.0","method":"posted"}')
        waiting = [
            asyncio.create_task(session.send(b'{"jsonrpc":"2.0","method":"sent"}')),
            asyncio.create_task(session.reply(b'{"jsonrpc":"2.0","method":"replied"}')),
            asyncio.create_task(session.request("asked", None)),
        ]
        await asyncio.sleep(0)
        waiting[1].cancel()
        closing = asyncio.create_task(session.close())
        await asyncio.wait(waiting)
        await closing
    lost = waiting[2].exception()
    assert isinstance(lost, ConnectionLost)
    outcome = UNKNOWN if "asked" in messages else NOT_DELIVERED
    assert lost.outcome == outcome
    assert messages[:3] == ["posted", "sent", "replied"]
