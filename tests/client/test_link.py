"""One connection of the client: its welcome, what it takes and gives up, and why it ended."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from gateway.client.endings import LOST, End
from gateway.client.errors import ConnectionLost
from gateway.client.link import Frame, Link, Options, Refused, open_link, open_session
from tests.support.certs import Authority
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.scripted_gateway import Peer, ScriptedGateway, scripted, serve_nothing
from tests.support.strangers import ForwardProxy, connections_to, stranger


async def opened(gateway: ScriptedGateway, session: aiohttp.ClientSession, token: str | None = None) -> Link:
    options = Options(gateway.url, True, 30.0, 1.0, 0.5, 1 << 20)
    return await open_link(session, token, options)


async def test_the_welcome_and_the_credential_in_its_header() -> None:
    seen: list[Any] = []

    async def script(peer: Peer) -> None:
        seen.append(peer.headers.get("Authorization"))
        await peer.welcome(maxBatch=3)
        await peer.stay()

    async with scripted(script) as gateway, open_session() as session:
        for token in ("secret", None):
            link = await opened(gateway, session, token)
            assert link.welcome["limits"] == {"maxBatch": 3}
            assert link.alive
            await link.close()
            assert not link.alive
            assert link.end.code == 1000
    assert seen == ["Bearer secret", None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 421, 426, 429, 503])
async def test_a_refusal_has_its_status_and_when_to_come_back(status: int) -> None:
    async with (
        scripted(serve_nothing, refusals=[(status, {"Retry-After": "7"})]) as gateway,
        open_session() as session,
    ):
        with pytest.raises(Refused) as refused:
            await opened(gateway, session)
    assert (refused.value.end.code, refused.value.end.retry_after) == (status, 7.0)


async def attempt(url: str, *, tls: ssl.SSLContext | bool = True, proxy: str | None = None) -> End:
    """The end of an attempt that gives no link."""
    options = Options(url, tls, 30.0, WAIT, 0.5, 1 << 20, proxy)
    async with open_session() as session:
        with pytest.raises(Refused) as refused:
            await open_link(session, None, options)
    return refused.value.end


async def test_nobody_is_there() -> None:
    async with scripted(serve_nothing) as gateway:
        pass
    end = await attempt(gateway.url)
    assert (end.code, end.final) == (LOST, False)
    assert re.fullmatch(r"cannot connect to 127.0.0.1:\d+: Connection refused", end.reason)


@pytest.mark.parametrize(
    ("greeting", "answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "no HTTP"),
        (b"220 mail.example ESMTP\r\n", b"", "no HTTP"),
        (b"J\0\0\0\n8.0.36\0", b"", "no HTTP"),
        (b"", b"-ERR unknown command 'GET'\r\n", "no HTTP"),
        (b"", b"\x15\x03\x01\0\2\2\x16", "TLS: the URL has to begin with wss://"),
        (b"", b"HTTP/1.1 101 Switching Protocols\r\nno header\r\n\r\n", "no HTTP"),
        (b"", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "no WebSocket: Invalid upgrade header"),
        (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "a web server answers there"),
    ],
)
async def test_another_service_is_named_at_once(greeting: bytes, answer: bytes, words: str) -> None:
    async with stranger(answer, greeting=greeting) as there:
        end = await attempt(there.url())
        assert words in end.reason
        assert end.final
        assert there.connections == 1
        end = await attempt(there.url("wss"))
        assert end.final
        assert "TLS" in end.reason


async def test_what_hangs_up_may_be_a_gateway_that_starts_and_is_asked_once() -> None:
    async with stranger() as there:
        end = await attempt(there.url())
        assert (end.code, end.final) == (LOST, False)
        assert (
            end.reason
            == "the connection was closed without an answer; if it speaks TLS, the URL has to begin with wss://"
        )
        end = await attempt(there.url("wss"))
        assert (end.code, end.final) == (LOST, False)
        assert there.connections == 2


async def test_a_name_that_does_not_resolve() -> None:
    end = await attempt("ws://nowhere.invalid/ws")
    assert end.reason.startswith("the name nowhere.invalid does not resolve: ")


async def test_a_certificate_that_does_not_fit(tmp_path: Path, certificates: Authority) -> None:
    files = certificates.issue(tmp_path, "other.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with stranger(tls=context) as there:
        end = await attempt(there.url("wss"))
        assert "certificate is not trusted: unable to get local issuer certificate; a private" in end.reason
        assert end.final
        end = await attempt(there.url("wss"), tls=certificates.client_context())
        assert "certificate is not valid for '127.0.0.1'" in end.reason
        assert end.final


async def test_a_redirect_is_told_and_not_followed() -> None:
    async with stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as elsewhere:
        answer = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url()}\r\nContent-Length: 0\r\n\r\n"
        async with stranger(answer.encode()) as there:
            end = await attempt(there.url())
        assert (end.code, elsewhere.url() in end.reason, end.final) == (302, True, True)
        assert elsewhere.connections == 0


async def test_a_refusal_is_told_in_the_gateways_own_words() -> None:
    text = b"too many connections from this address\n"
    head = b"HTTP/1.1 429 No\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for body in (text, b""):  # the second time nothing of it comes
        async with stranger(head % len(text) + body) as there:
            end = await attempt(there.url())
        assert end.reason.startswith("too many connections or attempts")
        assert ("from this address" in end.reason) is (body == text)


async def test_through_a_proxy() -> None:
    async with scripted(serve_nothing) as gateway, ForwardProxy(port_of(gateway), credential="me:secret") as proxy:
        url = "ws://gateway.example/ws"
        options = Options(url, True, 30.0, WAIT, 0.5, 1 << 20, proxy.url("me:secret"))
        async with open_session() as session:
            link = await open_link(session, "token", options)
            await link.close()
        assert proxy.asked == ["GET http://gateway.example/ws"]
        assert (await attempt(url, proxy=proxy.url())).code == 407


async def test_through_a_tunnel(tmp_path: Path, certificates: Authority) -> None:
    files = certificates.issue(tmp_path, "gateway.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with (
        scripted(serve_nothing, tls=context) as gateway,
        ForwardProxy(port_of(gateway), credential="me:secret") as proxy,
    ):
        url, trusted = "wss://gateway.example/ws", certificates.client_context()
        options = Options(url, trusted, 30.0, WAIT, 0.5, 1 << 20, proxy.url("me:secret"))
        async with open_session() as session:
            link = await open_link(session, "token", options)
            await link.close()
        assert proxy.asked == ["CONNECT gateway.example:443"]
        assert (
            str(await attempt(url, proxy=proxy.url())) == "HTTP 407 the proxy wants a credential (the proxy's answer)"
        )
        assert "certificate is not trusted" in (await attempt(url, proxy=proxy.url("me:secret"))).reason


@pytest.mark.parametrize(("status", "final"), [(403, True), (502, False), (503, False), (504, False)])
async def test_a_proxy_that_refuses(status: int, final: bool) -> None:
    async with ForwardProxy(1, status=status) as proxy:
        for scheme in ("ws", "wss"):
            end = await attempt(f"{scheme}://gateway.example/ws", proxy=proxy.url())
            assert (end.code, end.final) == (status, final)
        assert len(proxy.asked) == 2
        gone = proxy.url()
    end = await attempt("ws://gateway.example/ws", proxy=gone)
    assert end.reason == "the proxy cannot be reached: Connection refused"


def port_of(gateway: ScriptedGateway) -> int:
    return URL(gateway.url).port or 0


async def test_a_gateway_that_hangs_holds_no_connection_beside_the_next() -> None:
    """What it never reads is given up with the link: closing by itself would wait for it."""
    async with scripted(hang) as gateway, open_session() as session:
        link = await opened(gateway, session)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while True:
                    await link.write(b" " * (1 << 20))
        await link.close()
        await until(lambda: not connections_to(port_of(gateway)), "the connection is still there")


async def hang(peer: Peer) -> None:
    """Welcome it, and then neither read nor answer."""
    await peer.welcome()
    peer.stop_reading()
    await asyncio.sleep(WAIT)


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
    async with scripted(script) as gateway, open_session() as session:
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

    async with scripted(script) as gateway, open_session() as session:
        link = await opened(gateway, session)
        frames = [frame async for frame in frames_of(link)]
        assert [(frame.octets, frame.batch) for frame in frames] == [(2, True), (68, True)]
        assert [[bytes(message.id) for message in frame.messages] for frame in frames] == [[], [b"1", b""]]
        assert (link.end.code, link.end.reason, link.alive) == (4501, "by an operator", False)
        with pytest.raises(ConnectionLost):
            await link.write(b"{}")
        await link.close()


async def frames_of(link: Link) -> AsyncIterator[Frame]:
    """All that comes, to its end."""
    while (frame := await link.receive()) is not None:
        yield frame


@pytest.mark.parametrize("text", ["{", '{"jsonrpc":"1.0","method":"x"}', "7", "x" * 2_000_000])
async def test_what_is_no_json_rpc_or_too_much_ends_it(text: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.ws.send_str(text)
        await peer.stay()

    async with scripted(script) as gateway, open_session() as session:
        link = await opened(gateway, session)
        assert await link.receive() is None
        # What is too large is so for itself alone; a gateway that does not speak JSON-RPC will not learn it.
        assert (link.end.code, link.end.final) == ((1009, False) if len(text) > 1000 else (1002, True))
        await link.close()
