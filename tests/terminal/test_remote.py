"""What the commands that talk to a gateway share: address, credential, exit status."""

import asyncio
import os
import ssl
import sys
from pathlib import Path

import pytest

from gateway.auth import tokens
from tests.support.command import Ended
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import START
from tests.support.process import ROOT, GatewayProcess, StartGateway, clean_environment
from tests.support.remote import Command, misused, run
from tests.support.strangers import ForwardProxy, stranger

EACH = [["call", "gateway.info"], ["nodes"], ["connections"], ["openrpc"], ["watch", "a"], ["node", "a=true"]]
NOWHERE = {"GATEWAY_URL": "ws://127.0.0.1:1/ws"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "tokens.toml")


async def with_tokens(gateway: StartGateway, file: str) -> GatewayProcess:
    return await gateway({"auth": {"mode": "token", "tokens_file": file}})


async def test_the_token_comes_from_the_environment_or_a_file(gateway: StartGateway, file: str, tmp_path: Path) -> None:
    token = tokens.add(file, "me", "operator", None, None)
    kept = tmp_path / "token"
    kept.write_text(f"{token}\n")
    where = await with_tokens(gateway, file)
    assert (await run(where, "nodes", "--json", environ={"GATEWAY_TOKEN": token})) == Ended(0, "[]\n", "")
    assert (await run(where, "nodes", "--json", "--token-file", str(kept))) == Ended(0, "[]\n", "")
    both = await run(where, "nodes", "--json", "--token-file", str(kept), environ={"GATEWAY_TOKEN": "wrong"})
    assert both == Ended(0, "[]\n", "")


@pytest.mark.parametrize("arguments", EACH, ids=lambda arguments: str(arguments[0]))
async def test_a_credential_that_is_refused(arguments: list[str], gateway: StartGateway, file: str) -> None:
    tokens.add(file, "me", "operator", None, None)
    where = await with_tokens(gateway, file)
    url = where.url("/ws", websocket=True)
    wrong = await run(where, *arguments, environ={"GATEWAY_TOKEN": "wrong"})
    assert (wrong.status, wrong.stdout, wrong.stderr.count("\n")) == (3, "", 1)
    assert wrong.stderr.startswith(f"{url}: HTTP 401 the credential was refused: ")
    assert await run(where, *arguments) == Ended(3, "", f"{url}: 4500 the gateway wants a credential\n")


async def test_a_scope_that_is_missing(gateway: StartGateway, file: str) -> None:
    environ = {"GATEWAY_TOKEN": tokens.add(file, "tv", "ui", None, None)}
    where = await with_tokens(gateway, file)
    refused = "error -32003 forbidden: A scope is missing: "
    assert await run(where, "connections", environ=environ) == Ended(1, "", f"{refused}admin\n")
    assert await run(where, "node", "a=true", environ=environ) == Ended(1, "", f"{refused}serve:a\n")


async def test_nobody_is_there() -> None:
    async def unreachable(arguments: list[str]) -> None:
        ended = await run(None, *arguments, environ=NOWHERE)
        assert (ended.status, ended.stdout) == (3, ""), ended
        said = "ws://127.0.0.1:1/ws: cannot connect to 127.0.0.1:1: Connection refused"
        again = [f"{said}; trying again"] if arguments[0] in ("watch", "node") else []
        assert ended.stderr.splitlines() == [*again, said], "told once, however often it was tried"

    await asyncio.gather(*map(unreachable, EACH))


async def test_no_gateway_at_that_path(gateway: StartGateway) -> None:
    where = await gateway()
    ended = await run(where, "nodes", "--url", where.url("/wx", websocket=True))
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (3, "", 1)
    assert "404" in ended.stderr


async def test_something_else_is_there() -> None:
    """A command that reconnects says so too, and does not try again."""
    async with stranger(greeting=b"SSH-2.0-OpenSSH_9.2\r\n") as there:
        said = f"{there.url()}: what answers there speaks no HTTP: perhaps the port is another service's\n"
        commands = (["nodes"], ["watch", "a"])
        ended = await asyncio.gather(*(run(None, *command, "--url", there.url()) for command in commands))
        assert ended == [Ended(3, "", said)] * 2
        assert there.connections == 2


async def test_through_a_proxy() -> None:
    async with ForwardProxy(1, status=502) as proxy:
        url = ["--url", "ws://gateway.example"]
        environ = {"HTTP_PROXY": proxy.url(), "NO_PROXY": ""}
        said = "ws://gateway.example/ws: HTTP 502 the gateway cannot be reached from there\n"
        assert await run(None, "nodes", *url, environ=environ) == Ended(3, "", said)
        assert await run(None, "nodes", *url, "--proxy", proxy.url()) == Ended(3, "", said)
        assert proxy.asked == ["GET http://gateway.example/ws"] * 2
        directly = await run(None, "nodes", *url, "--proxy", "", environ=environ)
        assert "gateway.example does not resolve" in directly.stderr
        assert len(proxy.asked) == 2


async def test_the_path_may_be_left_out(gateway: StartGateway) -> None:
    where = await gateway()
    for url in (where.url("", websocket=True), f"{where.url('/')} \n"):
        assert (await run(None, "nodes", "--url", url)).status == 0


async def test_over_tls(gateway: StartGateway, tmp_path: Path) -> None:
    where = await gateway(tls=True)
    assert where.tls is not None
    trusted = tmp_path / "ca.pem"
    trusted.write_text("".join(map(ssl.DER_cert_to_PEM_cert, where.tls.get_ca_certs(binary_form=True))))
    ended = await run(where, "nodes")
    assert (ended.status, ended.stdout) == (3, "")
    assert "the gateway's certificate is not trusted: unable to get local issuer" in ended.stderr
    assert (await run(where, "nodes", "--cafile", str(trusted))).status == 0
    assert (await run(where, "nodes", environ={"SSL_CERT_FILE": str(trusted)})).status == 0


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["--url", "ftp://127.0.0.1:8765/ws"], {}, "--url: "),
        (["--url", "ws://127.0.0.1\n:8765/ws"], {}, "--url: "),
        (["--cafile", "/nowhere"], {}, "cafile: '/nowhere' cannot be read: No such file"),
        (["--cafile", "setup.cfg"], {}, "cafile: 'setup.cfg' has no certificate"),
        (["--proxy", "socks5://me:secret@h:1"], {}, "proxy: not the URL of an HTTP proxy"),
        (["--url", "127.0.0.1:8765"], {}, "--url: "),
        (["--url", "ws://"], {}, "--url: "),
        (["--url", "ws://a:b/ws"], {}, "--url: "),
        (["--url", "ws://me:secret@127.0.0.1/ws"], {}, "does not belong in a URL"),
        ([], {"GATEWAY_URL": "gateway"}, "GATEWAY_URL: "),
        ([], {"GATEWAY_TOKEN": "a b"}, "GATEWAY_TOKEN: "),
        ([], {"GATEWAY_TOKEN": "a\r\nX: y"}, "GATEWAY_TOKEN: this is no token: it has a line break inside"),
        ([], {"GATEWAY_TOKEN": "a\nb\n"}, "GATEWAY_TOKEN: this is no token: it has a line break inside"),
        ([], {"GATEWAY_TOKEN": "x" * 16_385}, "GATEWAY_TOKEN: this is no token: it has more than 16384 bytes"),
        ([], {"GATEWAY_TOKEN": "ü"}, "GATEWAY_TOKEN: "),
        (["--token-file", "/nowhere"], {}, "--token-file: /nowhere: cannot be read"),
        (["--token-file", "/"], {}, "--token-file: /: cannot be read"),
        (["--token-file", "setup.cfg"], {}, "must hold the token and nothing else: it has a line break inside"),
        (["--token-file", "/dev/null"], {}, "must hold the token and nothing else: it is empty"),
        (["--token", "secret"], {}, "--token"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    environ: dict[str, str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GATEWAY_URL", "GATEWAY_TOKEN"):
        monkeypatch.setenv(name, environ.get(name, ""))
    line = misused(capsys, "nodes", *arguments)
    assert named in line
    assert "secret" not in line


async def test_a_line_break_at_the_end_of_a_token_does_not_count(
    gateway: StartGateway, file: str, tmp_path: Path
) -> None:
    """As `echo`, editors and `$(cat …)` in quotes leave it."""
    token = tokens.add(file, "op", "operator", None, None)
    where = await with_tokens(gateway, file)
    kept = tmp_path / "token"
    for end in ("\n", "\r\n", " \n\n"):
        kept.write_bytes((token + end).encode())
        assert (await run(where, "nodes", "--token-file", str(kept))).status == 0
        assert (await run(where, "nodes", environ={"GATEWAY_TOKEN": token + end})).status == 0


async def test_each_connect_reads_the_token_anew(gateway: StartGateway, file: str, tmp_path: Path) -> None:
    kept = tmp_path / "token"
    kept.write_text(tokens.add(file, "first", "operator", None, None))
    second = tokens.add(file, "second", "operator", None, None)
    where = await with_tokens(gateway, file)
    async with FaultyProxy(where.host, where.port) as proxy:
        environ = {"GATEWAY_URL": proxy.url()}
        async with Command("watch", "a", "--token-file", str(kept), where=where, environ=environ):
            await where.wait_event("connection.opened", principal="first", timeout=START)
            kept.write_text(second)
            proxy.cut()
            await where.wait_event("connection.opened", principal="second", timeout=START)


async def test_a_reader_that_goes_away_is_no_error(gateway: StartGateway) -> None:
    """As with `python -m gateway openrpc | head -0`."""
    where = await gateway()
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "openrpc", "--url", where.url("/ws", websocket=True)),
        cwd=ROOT,
        env=clean_environment(),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    async with asyncio.timeout(START):
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (141, b"")
