"""One connection to NATS: what a server must offer before it is used, what it is told, and how it ends."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from gateway.cluster.natslink import LinkError, Options, RefusedError
from tests.support.certs import Authority, authority
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.nats import INFO, NatsServer, Script, scripted
from tests.support.nats_peer import NatsPeer
from tests.support.nkeys import Nkey, credentials, trust
from tests.support.serving import run_on

SOON: Final = 0.3
"""Seconds: a deadline that a test waits out."""


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Any:
    """What a server does wrong is no defect of ours."""
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def says(*texts: bytes) -> Script:
    """A server that says one thing after each line that it is sent, the first one at once; then it is silent."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for text in texts:
            writer.write(text)
            await reader.readline()

    return script


async def failure(*urls: str, **options: Any) -> str:
    """Return why the first attempt came to nothing; it must be one that the configuration is to blame for."""
    async with NatsPeer(*urls, join=False, **options) as peer:
        error = await peer.first_failure()
        assert type(error) is RefusedError, error
        assert peer.joined == []
        return str(error).partition(": ")[2]


async def no_link(*urls: str, **options: Any) -> str:
    """Return the same, of one that may be better the next time."""
    async with NatsPeer(*urls, join=False, **options) as peer:
        error = await peer.first_failure()
        assert type(error) is LinkError, error
        assert peer.joined == []
        return str(error).partition(": ")[2]


# TLS

NOT_OFFERED = "the server does not offer TLS, and plaintext is refused"


async def test_tls_that_is_asked_for_and_not_offered_is_refused() -> None:
    said: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        data = b""
        with suppress(OSError):
            data = await reader.read(1000)
        said.append(data)

    async with scripted(plain) as where:
        assert await failure(f"tls://{where}", user="me", password="secret") == NOT_OFFERED
        assert await failure(f"nats://{where}", tls=authority().client_context(), token="secret") == NOT_OFFERED
        await until(lambda: len(said) > 1, "the links were not cut")
    assert set(said) == {b""}, "nothing was said in plaintext"


async def test_a_real_server_without_tls_is_refused() -> None:
    async with NatsServer() as server:
        assert await failure(f"tls://127.0.0.1:{server.port}") == NOT_OFFERED


@pytest.mark.parametrize("url", ["tls", "nats"])
async def test_tls(url: str, certificates: Authority) -> None:
    async with NatsServer(tls=True) as server:
        where = server.url.replace("tls", url)
        async with NatsPeer(where, tls=certificates.client_context()) as peer:
            assert peer.joined[0].tls_required
            await talk(peer)


async def test_a_server_that_says_under_tls_nothing_of_itself_again(certificates: Authority, tmp_path: Path) -> None:
    """Servers before 2.12 do not: what they have said in plaintext counts, such as how large a message may be."""
    files = certificates.issue(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO.replace(b"}", b',"tls_required":true}'))
        await writer.drain()
        await writer.start_tls(context)
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
            elif line.startswith(b"SUB a.b "):
                writer.write(b"MSG a.b %b 5\r\nhello\r\n" % line.split()[-1])

    async with scripted(old) as where, NatsPeer(f"tls://{where}", tls=certificates.client_context()) as peer:
        await peer.hear(b"a.b")
        await until(lambda: peer.payloads() == [b"hello"], "nothing came")


async def talk(peer: NatsPeer) -> None:
    """Say something, and hear it."""
    await peer.hear(b"a.b")
    peer.nats.publish(b"a.b", b"x" * 100_000)
    await until(lambda: peer.payloads() == [b"x" * 100_000], "nothing came")


@pytest.mark.parametrize("url", ["tls", "nats"])
async def test_a_certificate_of_another_authority_is_refused(url: str) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trustme.CA().configure_trust(stranger)
    async with NatsServer(tls=True) as server:
        where = server.url.replace("tls", url)
        for context in (stranger, None):  # that the server requires TLS is enough
            said = await failure(where, tls=context)
            assert said.startswith("the server's certificate is refused: "), said


async def test_a_certificate_for_another_name_is_refused(certificates: Authority) -> None:
    async with NatsServer(tls=True) as server:
        certificates.issue(server.directory, "nats.example")
        await server.restart()
        said = await failure(server.url, tls=certificates.client_context())
    assert said.startswith("the server's certificate is refused: IP address mismatch"), said


async def test_a_client_certificate(certificates: Authority) -> None:
    async with NatsServer(verify=True) as server:
        context = certificates.client_context()
        said = await failure(server.url, tls=context)
        assert said.startswith("TLS failed: "), said
        context.load_cert_chain(server.directory / "server.pem", server.directory / "server.key")
        async with NatsPeer(server.url, tls=context) as peer:
            await talk(peer)


async def test_a_server_with_tls_that_is_killed_ends_the_link(certificates: Authority) -> None:
    """The transport of uvloop's TLS has no socket any more when its end is told."""
    async with NatsServer(tls=True) as server, NatsPeer(server.url, tls=certificates.client_context()) as peer:
        server.kill()
        await peer.first_loss()


async def test_what_came_in_plaintext_is_forgotten_under_tls(certificates: Authority) -> None:
    """Somebody in between could say it."""
    async with NatsServer(tls=True) as server, FaultyProxy("127.0.0.1", server.port) as real:

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, onward = await asyncio.open_connection("127.0.0.1", real.port)
            writer.write(await there.readline() + b"PONG\r\nMSG a.b 2 5\r\nfal")
            try:
                await asyncio.gather(copy(reader, onward), copy(there, writer))
            finally:
                onward.close()

        async with scripted(between) as where, NatsPeer(f"tls://{where}", tls=certificates.client_context()) as peer:
            await talk(peer)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)


# Who we are


async def test_user_and_password() -> None:
    async with NatsServer("authorization { user: me, password: secret }") as server:
        async with NatsPeer(server.url, user="me", password="secret", name="here") as peer:
            await talk(peer)
        for wrong in ({"user": "me", "password": "other"}, {"token": "secret"}, {}):
            assert await failure(server.url, **wrong) == "Authorization Violation"


async def test_a_token() -> None:
    async with NatsServer("authorization { token: secret }") as server:
        async with NatsPeer(server.url, token="secret") as peer:
            await talk(peer)
        assert await failure(server.url, token="other") == "Authorization Violation"


async def test_a_credentials_file() -> None:
    ours, others = trust(), trust()
    async with NatsServer(ours.config) as server:
        async with NatsPeer(server.url, credentials=ours.credentials) as peer:
            await talk(peer)
        for wrong in (others.credentials, credentials(Nkey("user")), b""):
            assert await failure(server.url, credentials=wrong) == "Authorization Violation"
        said = await failure(server.url, credentials=b"nothing")
        assert said == "there is no USER NKEY SEED in the credentials"


async def test_the_key_alone() -> None:
    user = Nkey("user")
    async with NatsServer(f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}") as server:
        async with NatsPeer(server.url, credentials=credentials(user)) as peer:
            await talk(peer)
        assert await failure(server.url, credentials=credentials(Nkey("user"))) == "Authorization Violation"


def test_no_secret_is_shown() -> None:
    shown = repr(Options(urls=("nats://a",), user="me", password="pass", token="toke", credentials=b"cred"))
    assert "me" in shown and not any(secret in shown for secret in ("'pass'", "toke'", "cred'"))


async def test_servers_without_headers_are_joined() -> None:
    async with NatsServer("no_header_support: true") as server, NatsPeer(server.url) as peer:
        assert not peer.joined[0].headers
        await talk(peer)


# Deadlines


STAGES = {
    "INFO": says(b""),
    "end of the TLS handshake": says(INFO.replace(b"}", b',"tls_required":true}')),
    "answer to CONNECT": says(INFO, b"+OK\r\n"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_silent_server_is_given_up(stage: str) -> None:
    async with scripted(STAGES[stage]) as where:
        assert await no_link(f"nats://{where}", timeout=SOON) == f"no {stage} within 0.3 s"


async def test_a_server_that_is_not_there() -> None:
    async with scripted(says()) as where:
        pass
    assert "onnect" in await no_link(f"nats://{where}")
    assert await no_link("nats://name.invalid")


async def test_a_machine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*arguments: object, **more: object) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    assert await no_link("nats://127.0.0.1", timeout=0.05) == "no connection within 0.05 s"


# What is not NATS


GARBAGE = {
    b"HTTP/1.1 400 Bad Request\r\n\r\n": "it is not NATS: b'HTTP/1.1 400 Bad Request'",
    b"\0" * 70_000: "a line of more than 65536 bytes",
    b"INFO {}\r\n": "an INFO that cannot be read: Object missing required field `version`",
    INFO + b"MSG a 1 99999999\r\n": "a message of 99999999 bytes, 0 of them headers, and 66536 are allowed",
    INFO + b"nonsense\r\n": "it is not NATS: b'nonsense'",
    b"-ERR 'maximum connections exceeded'\r\n": "maximum connections exceeded",
}


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_is_not_nats_is_named(text: bytes) -> None:
    async with scripted(says(text)) as where:
        assert await no_link(f"nats://{where}") == GARBAGE[text]


@pytest.mark.parametrize("text", [b"", INFO])
async def test_a_server_that_hangs_up(text: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    async with scripted(hang_up) as where:
        assert await no_link(f"nats://{where}") in {"the server ended the connection", "Connection reset by peer"}


async def test_a_link_that_is_ended_is_reset_so_that_the_kernel_discards_what_it_holds() -> None:
    ends: list[type[Exception]] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n")
        try:
            await reader.read()
        except OSError as error:
            ends.append(type(error))

    async with scripted(watch) as where:
        await no_link(f"nats://{where}")
        await until(lambda: bool(ends), "the link was not cut")
    assert set(ends) == {ConnectionResetError}


# Errors of the server


ENDS = {
    "User Authentication Expired": RefusedError,
    "Stale Connection": LinkError,
    "Maximum Payload Violation": LinkError,
}


@pytest.mark.parametrize("text", ENDS)
async def test_an_error_ends_the_link_and_is_its_cause(text: str) -> None:
    script = says(INFO, b"", b"PONG\r\n", b"-ERR '%b'\r\n" % text.encode())
    async with scripted(script) as where, NatsPeer(f"nats://{where}") as peer:
        cause = await peer.first_loss()
        assert (type(cause), str(cause)) == (ENDS[text], f"{where}: {text}")


async def test_what_is_forbidden_is_told_and_the_link_lives_on() -> None:
    config = (
        "authorization { users: [ { user: me, password: secret, permissions: "
        '{ publish: { deny: "closed.>" }, subscribe: { deny: "secret.>" } } } ] }'
    )
    async with NatsServer(config) as server, NatsPeer(server.url, user="me", password="secret") as peer:
        peer.nats.publish(b"closed.a", b"")
        await peer.nats.flush(10)
        assert peer.forbidden == ['Permissions Violation for Publish to "closed.a"']
        await peer.hear(b"secret.a")
        assert peer.forbidden[1:] == ['Permissions Violation for Subscription to "secret.a"']
        await talk(peer)
        assert peer.lost == []


# The other event loop


SCENARIOS: list[Callable[[], Coroutine[Any, Any, None]]] = [
    lambda: test_tls("tls", authority()),
    lambda: test_a_certificate_of_another_authority_is_refused("tls"),
    lambda: test_a_client_certificate(authority()),
    lambda: test_a_server_with_tls_that_is_killed_ends_the_link(authority()),
    lambda: test_what_came_in_plaintext_is_forgotten_under_tls(authority()),
    lambda: test_a_silent_server_is_given_up("end of the TLS handshake"),
    lambda: test_a_server_that_hangs_up(INFO),
    test_a_link_that_is_ended_is_reset_so_that_the_kernel_discards_what_it_holds,
    test_a_server_that_is_not_there,
]


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_the_same_on_uvloop(number: int) -> None:
    run_on("uvloop", SCENARIOS[number]())
