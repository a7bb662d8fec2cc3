"""The client as a whole: what it takes, its credential kept fresh, and its end."""

import asyncio
import json
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.client import CallError, Client, State, connect
from tests.support.certs import Authority
from tests.support.credentials import OP, Holder, TokensFile, key, signed
from tests.support.fleet import until
from tests.support.patience import SLACK, WAIT
from tests.support.process import StartGateway
from tests.support.scripted_gateway import Peer, scripted, serve_nothing


def test_what_it_is_given_is_looked_at_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the URL of a gateway"):
        connect("ftp://x/ws")
    with pytest.raises(ValueError, match="the token is empty"):
        connect(token="")
    with pytest.raises(ValueError, match="proxy: not the URL of an HTTP proxy"):
        connect(proxy="socks5://x:1")
    with pytest.raises(ValueError, match="cafile: "):
        connect(cafile=tmp_path)
    with pytest.raises(ValueError, match="cafile: ssl says already"):
        connect(ssl=False, cafile=tmp_path)


@pytest.mark.parametrize("token", ["secret\nb", "secret\r\nX: y", "secret\0", "secret\x7f", "secret\udcff"])
async def test_a_token_that_no_header_holds_is_refused_in_words(token: str) -> None:
    with pytest.raises(ValueError, match="the token has a line break inside") as refused:
        connect(token=token)
    assert "secret" not in str(refused.value)
    with pytest.raises(CallError, match="no token: the token has a line break inside") as told:
        async with connect(token=lambda: token):
            pass
    assert "secret" not in str(told.value)


async def test_the_path_may_be_left_out_and_a_name_have_white_space_around_it(gateway: StartGateway) -> None:
    where = await gateway()
    async with connect(f"{where.url()}\n") as client:
        client.method("x.y")(lambda params, call: params)
        assert (await client.serve("kitchen\n"))["name"] == "kitchen"
        for name in ("a\nb", "a\x1b[2J", " "):
            with pytest.raises(ValueError, match="the node's name"):
                await client.serve(name)


async def test_a_refresh_that_gives_no_token_is_told_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    tokens = iter(["first", "secret\nb"])

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.notify("gateway.expiring", leftMs=1)
        await peer.answer(await peer.request(), "fine")
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url, lambda: next(tokens)) as client:
        await until(lambda: bool(caplog.records), "it was not told")
        assert await client.call("x.y") == "fine"
    (record,) = caplog.records
    assert "no token: the token has a line break inside" in record.getMessage()
    assert "secret" not in caplog.text


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


async def test_tls(gateway: StartGateway, tmp_path: Path, certificates: Authority) -> None:
    process = await gateway(tls=True)
    async with connect(process.url("/ws", websocket=True), ssl=process.tls) as client:
        assert await client.call("gateway.ping", [1]) == [1]
    trusted = tmp_path / "ca.pem"
    trusted.write_text("".join(map(ssl.DER_cert_to_PEM_cert, certificates.client_context().get_ca_certs(True))))
    async with connect(process.url("/ws", websocket=True), cafile=trusted) as client:
        assert await client.call("gateway.ping", [1]) == [1]
    with pytest.raises(CallError, match="certificate is not trusted"):
        async with connect(process.url("/ws", websocket=True), open_timeout=None):
            pass
    with pytest.raises(CallError, match="if it speaks TLS, the URL has to begin with wss://"):
        async with connect(process.url("/ws", websocket=True).replace("wss:", "ws:"), reconnect=False):
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


async def test_a_method_that_is_served_may_close_the_client() -> None:
    ended: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.answer(await peer.request(), {"name": "pi", "methods": ["x.other", "x.close"]})
        for request_id, method in enumerate(("x.other", "x.close")):
            await peer.ws.send_json({"jsonrpc": "2.0", "id": request_id, "method": method})
        await peer.stay()

    async with scripted(script) as gateway:
        client = connect(gateway.url, close_timeout=WAIT)

        @client.method("x.other")
        async def other(params: Any, call: Any) -> None:
            try:
                await asyncio.sleep(WAIT)
            finally:
                ended.append("other")

        @client.method("x.close")
        async def close(params: Any, call: Any) -> None:
            try:
                await client.close()
                await asyncio.sleep(0)
            except BaseException as error:
                ended.append(repr(error))
                raise
            ended.append("closed")

        await client.__aenter__()
        await client.serve("pi")
        await until(lambda: len(ended) == 2, "it does not close")
        await client.close()
    assert ended == ["other", "closed"]
    assert client.state is State.CLOSED
    assert client.serving_calls == 0


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
