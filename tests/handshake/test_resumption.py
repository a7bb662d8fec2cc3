"""Who may come back, how often, and with which credential."""

import asyncio
from pathlib import Path
from typing import Final

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import CONNECTIONS, GATEWAY
from gateway.auth.authenticators import load
from gateway.config import parse
from tests.support.credentials import OP, PAGE, PI, TokensFile
from tests.support.kept import Client, Kept, code_of, gateway_for, held, until

RESUME: Final = {"session": "x" * 43, "received": 0, "attempt": 1}


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await gateway_for(aiohttp_client)


@pytest.fixture
async def kept(client: Client) -> Kept:
    return await Kept.open(client)


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE)


async def test_a_resume_that_was_cut_before_its_reply_is_made_again(kept: Kept) -> None:
    await kept.result("gateway.ping", {"n": 0})
    await kept.cut()
    for _ in range(2):  # with the same numbers
        await kept.link()
        assert (await kept.resume(received=0, attempt=1))["result"]["received"] == 1
        await kept.cut()
    await kept.link()
    assert (await kept.resume(received=0, attempt=2))["result"]["received"] == 1
    assert (await kept.next())["result"] == {"n": 0}


async def test_over_a_link_that_still_seems_to_live(kept: Kept, client: Client) -> None:
    await kept.result("gateway.ping", {"n": 0})
    old, link = kept.ws, kept.connection.link
    await kept.back()
    await old.receive()
    assert old.closed
    assert kept.connection.link is not link
    assert await kept.result("gateway.ping", {"n": 1}) == {"n": 1}
    assert len(client.app[CONNECTIONS]) == 1


async def test_over_a_link_that_still_seems_to_live_and_has_not_brought_the_first_acknowledgement(
    client: Client,
) -> None:
    kept = Kept(client)
    await kept.link()
    await kept.keep()
    link = kept.connection.link
    await kept.back()  # whoever names the session knows of it
    assert kept.connection.link is not link
    assert await kept.result("gateway.ping", {"n": 1}) == {"n": 1}
    await kept.cut()
    assert held(client) == 1


async def test_one_that_is_not_to_be_held_is_gone_for_a_newcomer(client: Client) -> None:
    kept = await Kept.open(client, holdMs=0)
    await refused_as_gone(kept)


async def test_one_of_which_too_much_was_dropped_is_gone_for_a_newcomer(aiohttp_client: AiohttpClient) -> None:
    limits = {"max_held_bytes": 100_000, "max_outbox_bytes": 100_000, "max_message_bytes": 50_000}
    kept = await Kept.open(await gateway_for(aiohttp_client, limits=limits))
    for number in range(4):
        await kept.result("gateway.ping", {"x": "x" * 40_000, "n": number})
    await refused_as_gone(kept, received=0)


async def refused_as_gone(kept: Kept, received: int | None = None) -> None:
    """Come by a new link while the old one is open: that stays as it is, and the new one is an ordinary connection."""
    connection, link = kept.connection, kept.connection.link
    await kept.link()
    assert code_of(await kept.resume(received)) == -32004
    assert connection.is_linked and connection.link is link
    assert "result" in await kept.raw("connection.keep", {})
    assert len(kept.client.app[CONNECTIONS]) == 2
    resumes = kept.client.app[GATEWAY].sessions.resumes
    assert (resumes["resumed"], resumes["unknown"]) == (0, 1)


async def test_a_late_attempt_of_an_older_link_is_a_conflict(kept: Kept) -> None:
    await kept.cut()
    await kept.link()
    assert "result" in await kept.resume(attempt=5)
    late = Kept(kept.client)
    late.session = kept.session
    await late.link()
    assert code_of(await late.resume(attempt=4)) == -32007
    assert await kept.result("gateway.ping", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize("received", [3, 1, 10**12])
async def test_numbers_that_cannot_be_are_refused_and_the_session_stays(kept: Kept, received: int) -> None:
    for number in range(2):
        await kept.result("gateway.ping", {"n": number})
    await kept.ack(2)
    session = kept.connection.session
    await until(lambda: session is not None and session.acked == 2)
    await kept.cut()
    await kept.link()
    assert code_of(await kept.resume(received=received)) == -32602
    assert "result" in await kept.raw("gateway.ping", {})  # it is an ordinary connection
    await kept.back()
    assert await kept.result("gateway.ping", {"n": 2}) == {"n": 2}


async def test_not_first_or_in_a_batch(kept: Kept) -> None:
    await kept.cut()
    await kept.link()
    await kept.raw("gateway.ping", {})
    assert code_of(await kept.resume()) == -32007
    await kept.link()
    params = {"session": kept.session, "received": 0, "attempt": 2}
    await kept.ws.send_json([{"jsonrpc": "2.0", "id": 1, "method": "connection.resume", "params": params}])
    assert code_of((await kept.ws.receive_json())[0]) == -32600
    await kept.back()


async def test_its_id_may_be_one_that_is_in_flight(kept: Kept, client: Client) -> None:
    node = await Kept.open(client)
    await node.result("node.register", {"name": "pi", "methods": [{"name": "m.one"}]})
    await kept.request("m.one", id="raw")
    call = await node.next()
    await kept.cut()
    await kept.back()  # its id is "raw", too
    await node.answer(call, "one")
    assert await kept.next() == {"jsonrpc": "2.0", "id": "raw", "result": "one"}


async def test_a_session_that_there_never_was(client: Client) -> None:
    kept = Kept(client)
    for session in ("", "x" * 43, "é" * 43, "x" * 10_000):
        kept.session = session
        await kept.link()
        assert code_of(await kept.resume()) == -32004
        assert "result" in await kept.raw("gateway.ping", {})


async def test_another_principal_learns_nothing(aiohttp_client: AiohttpClient, tokens: TokensFile) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth)
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    thief = Kept(client, tokens.of(PAGE))
    thief.session = kept.session
    await thief.link()
    reply = await thief.resume()
    thief.session = "x" * 43
    await thief.link()
    assert reply == await thief.resume()
    await kept.back()


async def test_the_first_after_gateway_authenticate(aiohttp_client: AiohttpClient, tokens: TokensFile) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth)
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    kept.token = ""
    await kept.link()
    assert "result" in await kept.raw("gateway.authenticate", {"token": tokens.of(PI)})
    assert "result" in await kept.resume()
    await kept.result("gateway.ping", {})


async def test_a_narrower_credential_takes_away_what_it_does_not_allow(
    aiohttp_client: AiohttpClient, tokens: TokensFile
) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth)
    kept = await Kept.open(client, tokens.of(PI))
    await kept.result("node.register", {"methods": [{"name": "m.one"}, {"name": "m.two"}]})
    await kept.cut()
    tokens.put(PI._replace(scopes=("serve:m.one",)))
    app = client.app
    app[GATEWAY].admission._authenticator = load(parse({"auth": tokens.auth}).auth)  # as a reload, which comes later
    await kept.back()
    node = kept.connection.node
    assert node is not None
    await until(lambda: list(node.methods) == ["m.one"])
    assert not kept.connection.principal.allows("serve:m.two")


@pytest.mark.parametrize("change", ["narrowed", "revoked"])
async def test_a_resume_during_a_reload_that_has_not_come_to_the_newcomer_yet(
    aiohttp_client: AiohttpClient, tokens: TokensFile, change: str
) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth)
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    await kept.link()
    if change == "narrowed":
        tokens.put(PI._replace(scopes=("serve:m.one",)))
    else:
        tokens.drop(PI)
    authenticator = load(parse({"auth": tokens.auth}).auth)
    await client.app[GATEWAY].admission.renew(authenticator, [kept.connection])  # as if very many came in between
    if change == "narrowed":
        assert "result" in await kept.resume()
        assert kept.connection.principal.scopes == ("serve:m.one",)
        assert kept.connection.is_linked
        return
    await kept.ws.send_json({"jsonrpc": "2.0", "id": 1, "method": "connection.resume", "params": RESUME})
    await kept.ws.receive()
    assert kept.ws.close_code == 4503


@pytest.mark.parametrize("cause", ["credential_revoked", "credential_expired"])
async def test_a_credential_ends_while_it_is_held(
    aiohttp_client: AiohttpClient, tokens: TokensFile, cause: str
) -> None:
    client = await gateway_for(aiohttp_client, auth=tokens.auth)
    gateway = client.app[GATEWAY]
    kept = await Kept.open(client, tokens.of(PI))
    await kept.cut()
    if cause == "credential_revoked":
        tokens.drop(PI)
    else:
        tokens.put(PI._replace(lives=0.5))
    await gateway.renew(load(parse({"auth": tokens.auth}).auth))
    await until(lambda: not client.app[CONNECTIONS])
    assert client.app[CONNECTIONS].disconnects[cause] == 1
    assert held(client) == 0


async def test_what_was_sent_before_counts_against_no_rate(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"rate": 50, "burst": 3})
    kept = await Kept.open(client)
    await kept.result("gateway.ping", {"n": 0})
    await kept.cut()
    await asyncio.sleep(0.5)  # in which it might have sent 25
    await kept.back()
    for number in range(20):
        await kept.request("gateway.ping", {"n": number}, number)
    for number in range(20):
        assert (await kept.next()).get("result") == {"n": number}


async def test_a_gateway_that_was_started_again_knows_nothing(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    await kept.cut()
    kept.client = await gateway_for(aiohttp_client)
    await kept.link()
    assert code_of(await kept.resume()) == -32004
