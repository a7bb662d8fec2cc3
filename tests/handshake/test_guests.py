"""Connections for which there is no room, but whose principal has some that are held."""

import time
from pathlib import Path

import pytest
from aiohttp import WSServerHandshakeError
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS, GATEWAY
from gateway.auth.authenticators import load
from gateway.config import parse
from tests.support.credentials import OP, PAGE, PI, TokensFile
from tests.support.kept import Client, Kept, code_of, gateway_for, held, until


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE)


@pytest.fixture(params=["max_connections", "max_connections_per_address", "max_connections_per_principal"])
async def full(request: pytest.FixtureRequest, aiohttp_client: AiohttpClient, tokens: TokensFile) -> Client:
    """A gateway with room for two, by one of the bounds."""
    limits = {request.param: 2} | ({"reserved_for_admin": 0} if request.param == "max_connections" else {})
    return await gateway_for(aiohttp_client, auth=tokens.auth, limits=limits)


@pytest.fixture
async def pair(full: Client, tokens: TokensFile) -> list[Kept]:
    """Two connections of one principal, which take all places."""
    return [await Kept.open(full, tokens.of(PI)) for _ in range(2)]


async def status(kept: Kept) -> int:
    """The status of an upgrade that is refused."""
    with pytest.raises(WSServerHandshakeError) as refusal:
        await kept.link()
    return refusal.value.status


@pytest.mark.parametrize("by", ["header", "message"])
async def test_a_link_above_the_bound_may_resume(full: Client, pair: list[Kept], by: str, tokens: TokensFile) -> None:
    for kept in pair:
        await kept.cut()
    for kept in pair:
        if by == "message":
            kept.token = ""
            await kept.link()
            assert "result" in await kept.raw("gateway.authenticate", {"token": tokens.of(PI)})
            assert "result" in await kept.resume()
        else:
            await kept.back()
        assert await kept.result("gateway.ping", {"n": 1}) == {"n": 1}
    assert (held(full), len(full.app[CONNECTIONS])) == (0, 2)
    assert not full.app[CONNECTIONS].owing
    assert await status(Kept(full, tokens.of(PI))) in (429, 503)


async def test_it_may_do_nothing_else_unless_a_held_one_goes_for_it(
    full: Client, pair: list[Kept], tokens: TokensFile
) -> None:
    await pair[0].cut()
    guest = Kept(full, tokens.of(PI))
    await guest.link()
    reply = await guest.raw("gateway.ping", {"n": 1})
    if full.app[CONNECTIONS].disconnects["transport_lost"]:  # the bound on all: the one that was held has gone for it
        assert reply["result"] == {"n": 1}
        assert (held(full), len(full.app[CONNECTIONS])) == (0, 2)
        return
    assert code_of(reply) == -32009
    await guest.ws.receive()
    assert guest.ws.close_code == 4003
    await pair[0].back()


async def one_held_and_a_guest(aiohttp_client: AiohttpClient, tokens: TokensFile, timeout: float) -> tuple[Kept, Kept]:
    """A connection that is held, and a guest of its principal, which has so many seconds."""
    limits = {"max_connections_per_principal": 1}
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits=limits, server={"handshake_timeout": timeout})
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    guest = Kept(client, tokens.of(PI))
    await guest.link()
    return kept, guest


def stand_still(seconds: float) -> None:
    """Block the gateway, which is in this process."""
    time.sleep(seconds)


async def test_one_that_says_nothing_has_the_time_of_a_handshake(
    aiohttp_client: AiohttpClient, tokens: TokensFile
) -> None:
    kept, guest = await one_held_and_a_guest(aiohttp_client, tokens, 2.0)
    await guest.ws.receive()
    assert guest.ws.close_code == 4001
    await kept.back()


async def test_a_gateway_that_stood_still_ends_no_guest_for_that(
    aiohttp_client: AiohttpClient, tokens: TokensFile
) -> None:
    kept, guest = await one_held_and_a_guest(aiohttp_client, tokens, 1.0)
    stand_still(1.5)
    assert code_of(await guest.raw("gateway.ping", {"n": 1})) == -32009
    await kept.back()


async def test_a_wrong_resume_leaves_it_without_a_place(aiohttp_client: AiohttpClient, tokens: TokensFile) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits={"max_connections_per_principal": 1})
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    guest = Kept(client, tokens.of(PI))
    guest.session = "x" * 43
    await guest.link()
    assert code_of(await guest.resume()) == -32004
    await guest.ws.receive()
    assert guest.ws.close_code == 4003
    await until(lambda: not client.app[CONNECTIONS].owing)
    await kept.back()


async def test_all_places_are_held_and_a_stranger_comes(aiohttp_client: AiohttpClient, tokens: TokensFile) -> None:
    limits = {"max_connections": 3, "reserved_for_admin": 0}
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits=limits)
    kept = [await Kept.open(client, tokens.of(PI)) for _ in range(3)]
    for each in kept:
        await each.cut()
    stranger = Kept(client, tokens.of(PAGE))
    await stranger.link()
    assert (held(client), len(client.app[CONNECTIONS])) == (2, 3)
    assert kept[0].conn_id not in client.app[CONNECTIONS]
    await kept[1].back()
    await kept[0].link()
    assert code_of(await kept[0].resume()) == -32004


@pytest.mark.parametrize("by", ["header", "message"])
async def test_admins_that_are_held_leave_no_reserved_place_to_others(
    aiohttp_client: AiohttpClient, tokens: TokensFile, by: str
) -> None:
    limits = {"max_connections": 4, "reserved_for_admin": 2}
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits=limits)
    admin = await Kept.open(client, tokens.of(OP))
    await admin.cut()
    others = [await Kept.open(client, tokens.of(PI)) for _ in range(2)]
    assert await turned_away(client, tokens.of(PAGE), by)
    assert admin.connection.held is not None
    await others[1].cut()
    assert not await turned_away(client, tokens.of(PAGE), by)
    assert others[1].conn_id not in client.app[CONNECTIONS]
    await admin.back()


async def test_a_full_gateway_ends_none_that_is_held_for_one_too_many_of_a_principal(
    aiohttp_client: AiohttpClient, tokens: TokensFile
) -> None:
    limits = {"max_connections": 2, "reserved_for_admin": 0, "max_connections_per_principal": 1}
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits=limits)
    held_one = await Kept.open(client, tokens.of(PAGE))
    await held_one.cut()
    await Kept.open(client, tokens.of(PI))
    for by in ("header", "message"):
        assert await turned_away(client, tokens.of(PI), by)
    await held_one.back()


async def turned_away(client: Client, token: str, by: str) -> bool:
    """Whether there is no place for a newcomer, who stays otherwise."""
    if by == "header":
        try:
            await Kept(client, token).link()
        except WSServerHandshakeError as refusal:
            return refusal.status == 503
        return False
    newcomer = Kept(client)
    await newcomer.link()
    reply = await newcomer.raw("gateway.authenticate", {"token": token})
    assert "result" in reply or code_of(reply) == -32009
    return "error" in reply


@pytest.mark.parametrize("first", ["gateway.ping", "connection.resume"])
async def test_a_credential_that_is_revoked_before_the_message_of_a_guest(
    aiohttp_client: AiohttpClient, tokens: TokensFile, first: str
) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits={"max_connections_per_principal": 1})
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    guest = Kept(client, tokens.of(PI))
    guest.session = kept.session
    await guest.link()
    tokens.drop(PI)
    await client.app[GATEWAY].renew(load(parse({"auth": tokens.auth}).auth))
    await until(lambda: not client.app[CONNECTIONS])
    await guest.ws.send_json({"jsonrpc": "2.0", "id": 1, "method": first, "params": {}})
    await guest.ws.receive()
    assert guest.ws.close_code == 4503
    assert not client.app[CONNECTIONS]
    await until(lambda: not client.app[CONNECTIONS].owing)


async def test_a_credential_that_is_narrowed_before_the_resume_of_a_guest(
    aiohttp_client: AiohttpClient, tokens: TokensFile
) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth, limits={"max_connections_per_principal": 1})
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    await kept.link()
    tokens.put(PI._replace(scopes=("serve:m.one",)))
    await client.app[GATEWAY].renew(load(parse({"auth": tokens.auth}).auth))
    assert "result" in await kept.resume()
    assert kept.connection.principal.scopes == ("serve:m.one",)
