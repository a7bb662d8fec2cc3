"""What waits for a peer, and whom that holds up, whatever link the peer has. See also system/test_pressure."""

import asyncio

from pytest_aiohttp import AiohttpClient

from tests.support.kept import Kept, gateway_for, until
from tests.support.rpc import Way


async def test_reading_that_waits_goes_on_waiting_with_another_link(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    kept.connection.wait()
    await kept.cut()
    await kept.link()
    assert "result" in await kept.resume()
    await kept.request("gateway.ping", {"n": 1})
    await asyncio.sleep(0.05)
    session = kept.connection.session
    assert session is not None
    assert (session.received, kept.connection.link.waits) == (0, 1)
    kept.connection.go_on()
    assert (await kept.next())["result"] == {"n": 1}


async def test_who_was_held_up_goes_on_when_the_link_is_lost(aiohttp_client: AiohttpClient) -> None:
    kept, sender = await Kept.open(await gateway_for(aiohttp_client)), Way()
    kept.connection.hold_up(sender)
    assert sender.waits == 1
    kept.connection.hold_up(sender)
    assert sender.waits == 1
    await kept.cut()
    await until(lambda: sender.waits == 0)
    assert not kept.connection.unheeding


async def test_what_is_held_moves_with_the_account(aiohttp_client: AiohttpClient) -> None:
    connection = (await Kept.open(await gateway_for(aiohttp_client))).connection
    before, after = connection.account, type(connection.account)(100.0)
    held = before.held
    assert connection.hold(10)
    connection.charge(after)
    assert (before.held, after.held) == (held, 10)
    connection.let_go(10)
    assert after.held == 0
