"""The JavaScript client as an npm package: what `npm pack` makes in gateway/javascript, and its user has installed."""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import gateway
from tests.support.command import run_node
from tests.support.patience import START
from tests.support.process import ROOT

PACKAGE: Final = ROOT / "gateway" / "javascript"
JS: Final = ROOT / "tests" / "js"
NAME: Final = "aisopod-gateway-client"
OFFLINE: Final = ("--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
USES: Final = f"""
import {{ CallError, GatewayClient }} from "{NAME}";
const gateway = new GatewayClient("ws://127.0.0.1:1/ws", {{ WebSocket: class {{}} }});
const error = new CallError(7, "no cup", {{ code: "spilled" }});
console.log(JSON.stringify([gateway.state, error.name]));
"""


async def ended(*command: str | Path, where: Path) -> str:
    """Run a program to its good end; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 2 * START)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def typed(program: Path, module: str, resolution: str) -> None:
    """Check the types of a program as its author would."""
    flags = ("--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--types", "")
    compiler = JS / "node_modules" / ".bin" / "tsc"
    settings = ("--module", module, "--moduleResolution", resolution)
    assert await ended(compiler, *flags, *settings, program.name, where=program.parent) == ""


async def packed(where: Path) -> dict[str, Any]:
    """Pack the package into this folder; return what npm says of it."""
    found: list[dict[str, Any]] = json.loads(
        await ended("npm", "pack", *OFFLINE, "--json", "--pack-destination", where, where=PACKAGE)
    )
    return found[0]


async def test_the_package_works_after_it_is_packed_and_installed(tmp_path: Path) -> None:
    tarball = await packed(tmp_path)
    names = {file["path"] for file in tarball["files"]}
    assert names == {"LICENSE", "README.md", "gateway-client.d.ts", "gateway-client.js", "package.json"}
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    await ended("npm", "install", *OFFLINE, tmp_path / tarball["filename"], where=tmp_path)
    (tmp_path / "uses.mjs").write_text(USES)
    assert await run_node(str(tmp_path / "uses.mjs")) == ["closed", "spilled"]
    (tmp_path / "user.ts").write_text(
        (JS / "user.ts").read_text().replace("../../gateway/javascript/gateway-client.js", NAME)
    )
    await typed(tmp_path / "user.ts", "nodenext", "nodenext")
    await typed(tmp_path / "user.ts", "esnext", "bundler")


def test_its_version_is_the_gateways() -> None:
    described = json.loads((PACKAGE / "package.json").read_text())
    assert (described["name"], described["version"]) == (NAME, gateway.__version__)


def test_its_licence_is_the_gateways() -> None:
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
