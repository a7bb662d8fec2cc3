"""The client as a whole: what it takes, its credential kept fresh, and its end."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.client import CallError, Client, State, connect
from tests.support.credentials import OP, Holder, TokensFile, key, signed
from tests.support.fleet import until
from tests.support.patience import SLACK, WAIT
from tests.support.process import StartGateway
from tests.support.scripted_gateway import Peer, scripted, serve_nothing


@pytest.mark.parametrize("url", ["", "127.0.0.1:8765", "ftp://x/ws", "ws://", "/ws"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a gateway"):
        connect(url)


def test_no_credential_in_a_url() -> None:
    with pytest.raises(ValueError, match="credential") as refused:
        connect("ws://me:secret@127.0.0.1/ws")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("token", ["secret\nb", "secret\r\nX: y", "secret\0", "secret\x7f", "secret\udcff"])
async def test_a_token_that_no_header_holds_is_refused_in_words(token: str, gateway: StartGateway) -> None:
    with pytest.raises(ValueError, match="the token has a line break inside") as refused:
        connect(token=token)
    assert "secret" not in str(refused.value)
    where = await gateway()
    with pytest.raises(CallError, match="no token: the token has a line break inside") as told:
        async with connect(where.url("/ws", websocket=True), lambda: token, reconnect=False):
            pass
    assert "secret" not in str(told.value)


async def test_the_credential_and_who_it_is(gateway: StartGateway, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP)
    process = await gateway({"auth": tokens.auth})
    url = process.url("/ws", websocket=True)
    for token in (tokens.of(OP), lambda: tokens.of(OP), f" {tokens.of(OP)}\r\n", lambda: f"{tokens.of(OP)}\n"):
        async with connect(url, token) as client:
            assert (client.principal["name"], client.principal["role"]) == ("op", "operator")
            assert client.welcome["protocol"] == 1
    for wrong, text in (("wrong", "HTTP 401"), (None, "4500")):
        with pytest.raises(CallError, match=text):
            async with connect(url, wrong):
                pass


async def test_tls(gateway: StartGateway) -> None:
    process = await gateway(tls=True)
    async with connect(process.url("/ws", websocket=True), ssl=process.tls) as client:
        assert await client.call("gateway.ping", [1]) == [1]
    with pytest.raises(CallError, match="certificate"):
        async with connect(process.url("/ws", websocket=True), reconnect=False):
            pass


async def test_a_credential_that_expires_is_replaced_in_place(gateway: StartGateway, tmp_path: Path) -> None:
    keyfile = tmp_path / "keys.json"
    keyfile.write_text(jwks())
    process = await gateway({"auth": {"mode": "jwt", "jwt": {"algorithms": ["EdDSA"], "jwks_file": str(keyfile)}}})
    lives = iter([4.0, 600.0])

    async def token() -> str:
        return signed(Holder("op", "operator", lives=next(lives)))

    async with connect(process.url("/ws", websocket=True), token) as client:
        before = client.principal["expiresAt"]
        await until(lambda: client.principal["expiresAt"] != before, "it was not refreshed")
        conn_id = client.welcome["connId"]
        await asyncio.sleep(1.2)  # the first one has expired by now
        assert await client.call("gateway.ping", [1]) == [1]
        assert client.welcome["connId"] == conn_id
        assert client.why == ""


def jwks() -> str:
    """The public half of the key that signs."""
    return json.dumps({"keys": [key("ed").public]})


async def test_what_cannot_be_read_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        for method in ("event.message", "rpc.progress", "rpc.cancel", "gateway.draining", "gateway.expiring"):
            await peer.ws.send_json({"jsonrpc": "2.0", "method": method, "params": [1]})
        await peer.notify("gateway.novel", a=1)
        await peer.ws.send_json({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "?"}})
        await peer.answer({"id": 77}, "late")
        await peer.answer(await peer.request(), "fine")
        await peer.stay()

    with caplog.at_level(logging.WARNING, "gateway.client"):
        async with scripted(script) as gateway, connect(gateway.url) as client:
            assert await client.call("x.y") == "fine"
    assert len(caplog.records) == 6


async def test_it_is_closed_soon_whatever_goes_on(gateway: StartGateway) -> None:
    process = await gateway()
    loop = asyncio.get_running_loop()
    client = connect(process.url("/ws", websocket=True))
    await client.close()
    async with client:
        running = client.start("gateway.ping", [1])
        assert await running == [1]
        begun = loop.time()
    assert client.state is State.CLOSED
    assert loop.time() - begun < SLACK
    await client.close()
    with pytest.raises(RuntimeError, match="once"):
        await client.__aenter__()
    line = await process.wait_event("connection.closed")
    assert (line["code"], line["cause"]) == (1000, "client_close")


async def test_a_gateway_that_does_not_answer_the_close_is_left() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await asyncio.sleep(WAIT)

    async with scripted(script) as gateway:
        loop = asyncio.get_running_loop()
        async with connect(gateway.url, close_timeout=0.2):
            begun = loop.time()
        assert loop.time() - begun < SLACK


async def test_closing_while_it_waits_to_come_back() -> None:
    async with scripted(serve_nothing) as gateway:
        client = connect(gateway.url)
        await client.__aenter__()
    await until(lambda: client.state in (State.WAITING, State.CONNECTING), "the loss was not noticed")
    waiting = client.start("x.y")
    await asyncio.sleep(0)
    async with asyncio.timeout(WAIT):
        await client.close()
        with pytest.raises(CallError) as failed:
            await waiting
    assert failed.value.outcome == "not_delivered"


async def test_cancelling_who_enters_leaves_nothing() -> None:
    async def silent(peer: Peer) -> None:
        await peer.stay()

    async def enter(client: Client) -> Any:
        async with client:
            raise AssertionError

    async with scripted(silent) as gateway:
        client = connect(gateway.url)
        entering = asyncio.create_task(enter(client))
        await until(lambda: gateway.connections == 1, "it did not connect")
        entering.cancel()
        await asyncio.wait([entering], timeout=WAIT)
        assert entering.cancelled()
        assert client.state is State.CLOSED
