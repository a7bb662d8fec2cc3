"""One connection of the client: its welcome, what it takes and gives up, and why it ended."""

import asyncio
import itertools
from typing import Any

import aiohttp
import pytest
from msgspec import Raw

from gateway.client.endings import LOST
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost
from gateway.client.link import Link, Options, Refused, open_link
from gateway.client.sending.outbox import MAX_POSTED, Outgoing
from tests.support.patience import SLACK, WAIT
from tests.support.scripted_gateway import Peer, ScriptedGateway, scripted, serve_nothing


async def opened(gateway: ScriptedGateway, session: aiohttp.ClientSession, token: str | None = None) -> Link:
    options = Options(gateway.url, True, 30.0, 1.0, 0.5, 1 << 20)
    return await open_link(session, token, options, itertools.count(1))


async def test_the_welcome_and_the_credential_in_its_header() -> None:
    seen: list[Any] = []

    async def script(peer: Peer) -> None:
        seen.append(peer.headers.get("Authorization"))
        await peer.welcome(maxBatch=3)
        await peer.stay()

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        for token in ("secret", None):
            link = await opened(gateway, session, token)
            assert (link.limit("maxBatch", 100), link.limit("maxInFlight", 64)) == (3, 64)
            assert link.usable
            await link.close()
            assert not link.usable
            assert link.end.code == 1000
    assert seen == ["Bearer secret", None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 421, 426, 429, 503])
async def test_a_refusal_has_its_status_and_when_to_come_back(status: int) -> None:
    async with (
        scripted(serve_nothing, refusals=[(status, {"Retry-After": "7"})]) as gateway,
        aiohttp.ClientSession() as session,
    ):
        with pytest.raises(Refused) as refused:
            await opened(gateway, session)
    assert (refused.value.end.code, refused.value.end.retry_after) == (status, 7.0)


async def test_nobody_is_there() -> None:
    async with scripted(serve_nothing) as gateway:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(Refused) as refused:
            await opened(gateway, session)
    assert refused.value.end.code == LOST


async def _no_welcome(peer: Peer) -> None:
    await peer.notify("something.else")
    await peer.stay()


async def _wants_a_credential(peer: Peer) -> None:
    await peer.welcome(None)
    await peer.stay()


async def _closes(peer: Peer) -> None:
    await peer.close(4001, "too late")


async def _silent(peer: Peer) -> None:
    await peer.stay()


async def _list_for_params(peer: Peer) -> None:
    await peer.ws.send_json({"jsonrpc": "2.0", "method": "gateway.welcome", "params": [1]})
    await peer.stay()


@pytest.mark.parametrize(
    ("script", "code"),
    [(_no_welcome, 1002), (_wants_a_credential, 4500), (_closes, 4001), (_silent, LOST), (_list_for_params, 1002)],
)
async def test_a_connection_without_a_welcome_comes_to_nothing(script: Any, code: int) -> None:
    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        with pytest.raises(Refused) as refused:
            await opened(gateway, session)
    assert refused.value.end.code == code


async def test_replies_in_a_batch_binary_messages_and_a_close() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.ws.send_bytes(b"\0")
        await peer.ws.send_str("[]")
        await peer.ws.send_str('[{"jsonrpc":"2.0","id":1,"result":2},{"jsonrpc":"2.0","method":"x"}]')
        await peer.close(4501, "by an operator")

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        link = await opened(gateway, session)
        assert [bytes(message.id) for message in await link.receive()] == [b"1", b""]
        assert await link.receive() == []
        assert (link.end.code, link.end.reason, link.usable) == (4501, "by an operator", False)
        with pytest.raises(ConnectionLost) as lost:
            await link.request("x", None)
        assert (lost.value.outcome, lost.value.temporary) == (NOT_DELIVERED, False)
        await link.close()


@pytest.mark.parametrize("text", ["{", '{"jsonrpc":"1.0","method":"x"}', "7", "x" * 2_000_000])
async def test_what_is_no_json_rpc_or_too_much_ends_it(text: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.ws.send_str(text)
        await peer.stay()

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        link = await opened(gateway, session)
        assert await link.receive() == []
        # What is too large is so for itself alone; a gateway that does not speak JSON-RPC will not learn it.
        assert (link.end.code, link.end.final) == ((1009, False) if len(text) > 1000 else (1002, True))
        await link.close()


async def test_what_the_gateway_would_not_take_is_not_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(maxMessageBytes=200, maxBatch=2)
        await peer.stay()

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        link = await opened(gateway, session)
        for sending in (
            link.request("x", Raw(b'["%b"]' % (b"x" * 200))),
            link.batch(Outgoing(), [("x", None)] * 3),
        ):
            with pytest.raises(CallError) as failed:
                await sending
            assert (failed.value.name, failed.value.outcome) == ("invalid_request", NOT_DELIVERED)
        assert len(link.pending) == 0
        await link.close()


async def test_one_who_does_not_read_is_given_up_and_the_close_has_its_deadline() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await asyncio.sleep(WAIT)

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        link = await opened(gateway, session)
        reading = asyncio.create_task(link.receive())
        # The transport's buffers take some of it, too.
        for _ in range(MAX_POSTED // 100_000 * 10):
            link.post(b'"%b"' % (b"x" * 100_000))
            await asyncio.sleep(0)
        async with asyncio.timeout(SLACK):
            assert await reading == []
            await link.close()
        assert link.end.reason == "the gateway does not read"


async def test_at_its_close_what_was_asked_for_leaves_and_nothing_that_was_told_not_to() -> None:
    messages: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        async for message in peer.ws:
            messages.append(message.json()["method"])

    async with scripted(script) as gateway, aiohttp.ClientSession() as session:
        link = await opened(gateway, session)
        link.post(b'{"jsonrpc":"2.0","method":"posted"}')
        waiting = [
            asyncio.create_task(link.send(b'{"jsonrpc":"2.0","method":"sent"}')),
            asyncio.create_task(link.reply(b'{"jsonrpc":"2.0","method":"replied"}')),
            asyncio.create_task(link.request("asked", None)),
        ]
        await asyncio.sleep(0)
        waiting[1].cancel()
        closing = asyncio.create_task(link.close())
        await asyncio.wait(waiting)
        await closing
    lost = waiting[2].exception()
    assert isinstance(lost, ConnectionLost)
    outcome = UNKNOWN if "asked" in messages else NOT_DELIVERED
    assert lost.outcome == outcome
    assert messages[:3] == ["posted", "sent", "replied"]
