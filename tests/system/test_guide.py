"""docs/clients.md as its reader types it: each fenced block of the page is run, or the test fails."""

import asyncio
import json
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from gateway.client import connect
from tests.support.certs import Authority
from tests.support.command import run_node
from tests.support.credentials import OP, Holder, TokensFile
from tests.support.patience import WAIT
from tests.support.process import ROOT, GatewayProcess, StartGateway, clean_environment
from tests.support.reaping import kill
from tests.support.strangers import ForwardProxy
from tests.support.units import verified

PAGE: Final = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```(\S*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
KITCHEN: Final = Holder("kitchen-pi", "node")
JS: Final = ROOT / "tests/js"
CLIENT: Final = (ROOT / "gateway/javascript/gateway-client.js").as_uri()

TYPED: Final = """
import ast, asyncio, codeop, inspect, json, sys

async def main():
    names, entered = {"__name__": "__main__"}, codeop.CommandCompiler()
    entered.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for block in json.loads(sys.stdin.read()):
        typed = []
        for line in (block + "\\n").split("\\n"):
            typed.append(line)
            code = entered("\\n".join(typed), "docs/clients.md", "single")
            if code is None:
                continue  # it goes on
            typed.clear()
            work = eval(code, names)
            if inspect.iscoroutine(work):
                await work
        print("--- ran")

asyncio.run(main())
"""
"""What `python -m asyncio` does with what is typed, line by line: what is indented ends with an empty line."""


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return [text for name, text in BLOCKS if name == language]


class There(NamedTuple):
    """What the page's addresses and files stand for: an open gateway, and one with TLS and tokens behind a proxy."""

    open: GatewayProcess
    guarded: GatewayProcess
    proxy: ForwardProxy
    tokens: TokensFile
    directory: Path
    environ: Mapping[str, str]

    def real(self, text: str) -> str:
        """Return the text with real addresses and files."""
        for shown, real in (
            ("ws://127.0.0.1:8765/ws", self.open.url("/ws", websocket=True)),
            ("wss://gateway.example/ws", self.guarded.url("/ws", websocket=True)),
            ("http://proxy.example:3128", self.proxy.url()),
            ("/etc/kitchen/", f"{self.directory}/"),
            ("/console/gateway-client.js", CLIENT),
            ("aisopod-gateway-client", CLIENT),
        ):
            text = text.replace(f'"{shown}', f'"{real}')
        return text


@pytest_asyncio.fixture
async def there(gateway: StartGateway, tmp_path: Path, certificates: Authority) -> AsyncIterator[There]:
    tokens = TokensFile(tmp_path / "tokens.toml", KITCHEN, OP)
    (tmp_path / "token").write_text(f"{tokens.of(KITCHEN)}\n")
    trusted = tmp_path / "ca.pem"
    trusted.write_text("".join(map(ssl.DER_cert_to_PEM_cert, certificates.client_context().get_ca_certs(True))))
    guarded = await gateway({"auth": tokens.auth}, tls=True)
    environ = {"SSL_CERT_FILE": trusted, "NODE_EXTRA_CA_CERTS": trusted, "CREDENTIALS_DIRECTORY": tmp_path}
    clean = clean_environment() | {name: str(path) for name, path in environ.items()}
    async with ForwardProxy(guarded.port) as proxy:
        yield There(await gateway(), guarded, proxy, tokens, tmp_path, clean)


def test_there_is_a_test_for_each_block() -> None:
    assert PAGE.count("\n```") == 2 * len(BLOCKS)
    assert {name for name, _ in BLOCKS} == {"python", "ini", "js"}


async def test_the_node_of_the_page_serves(there: There) -> None:
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", there.real(blocks("python")[0]), env=there.environ, cwd=ROOT
    )
    try:
        await there.guarded.wait_event("node.online", node=KITCHEN.name)
        url, token = there.guarded.url("/ws", websocket=True), there.tokens.of(OP)
        async with connect(url, token, ssl=there.guarded.tls) as caller:
            assert await caller.call("disk.free") > 0
    finally:
        await kill(node)


async def test_what_the_page_types_in_python_runs(there: There) -> None:
    typed = [there.real(block) for block in blocks("python")[1:]]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", TYPED),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=there.environ,
        cwd=ROOT,
    )
    try:
        printed, complaints = await asyncio.wait_for(program.communicate(json.dumps(typed).encode()), WAIT)
    finally:
        await kill(program)
    assert (program.returncode, complaints.decode()) == (0, "")
    lines = printed.decode().splitlines()
    assert lines.count("--- ran") == len(typed)
    assert {"cup 3", "sum 3", "greenhouse.door 1 {'open': True}", "kitchen-pi", "open"} <= set(lines)
    assert len(there.proxy.asked) == 1


async def test_what_the_page_types_in_javascript_runs(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [there.real(block) for block in blocks("js")]
    imports = {line for block in typed for line in re.findall(r"^import .*$", block, re.MULTILINE)}
    imports -= {f'import {{ GatewayClient }} from "{CLIENT}";'}
    bodies = [re.sub(r"^import .*\n", "", block, flags=re.MULTILINE) for block in typed]
    program = there.directory / "guide.mjs"
    heads = [*sorted(imports), "const said = []; console.log = (...more) => said.push(more.join(' '));"]
    heads.append("globalThis.WebSocket ??= WebSocket;")
    ran = [f"{body}said.push('--- ran');" for body in bodies]
    program.write_text("\n".join([*heads, *ran, "process.stdout.write(JSON.stringify(said));"]))
    (there.directory / "node_modules").symlink_to(JS / "node_modules")
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", there.environ["NODE_EXTRA_CA_CERTS"])
    said = await run_node(str(program), timeout=WAIT)
    assert said.count("--- ran") == len(typed)
    assert {"method_not_found not_delivered", "cup 2 0", "done", "kitchen-pi"} <= set(said)


def test_systemd_finds_nothing_wrong_with_the_unit_of_the_page(tmp_path: Path) -> None:
    (unit,) = blocks("ini")
    assert verified(unit, tmp_path / "kitchen-node.service") == (0, "")
