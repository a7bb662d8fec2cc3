"""docs/methods-howto.md and docs/example: what they show is there, and does what they say."""

import asyncio
import json
import platform
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.names import RESERVED
from tests.support.patience import START
from tests.support.peers import RawPeer
from tests.support.process import ROOT, EventLoopName, GatewayProcess, StartGateway, clean_environment

EXAMPLE = ROOT / "docs/example"
HOWTO = (ROOT / "docs/methods-howto.md").read_text(encoding="utf-8")
SOURCES = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(EXAMPLE.rglob("*"))
    if path.suffix in (".py", ".toml")
}


def shown(language: str) -> list[str]:
    """The fenced blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", HOWTO, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("language", "count"), [("python", 9), ("toml", 1)])
def test_what_the_page_shows_is_the_example(language: str, count: int) -> None:
    blocks = shown(language)
    assert len(blocks) == count
    for block in blocks:
        assert any(block in source for source in SOURCES.values()), block


def test_the_page_names_what_is_reserved() -> None:
    sentence = re.search(r"must not begin with (.*?)\.\n", HOWTO, re.DOTALL)
    assert sentence is not None
    assert tuple(re.findall(r"`(.*?)`", sentence[1])) == RESERVED


async def test_the_page_s_connection_goes_as_it_says(gateway: StartGateway, loop: EventLoopName) -> None:
    said = re.findall(r"^    (-->|<--) (.*)$", HOWTO, re.MULTILINE)
    assert len(said) == 12
    config = tomllib.loads(SOURCES["gateway.toml"])
    process = await gateway(config, loop=loop, environ={"PYTHONPATH": str(EXAMPLE)})
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        for direction, text in said:
            if direction == "-->":
                await peer.send_json(json.loads(text))
            else:
                assert await peer.recv_json() == json.loads(text)


async def test_the_example_is_in_discover_with_its_constraints(gateway: StartGateway) -> None:
    process = await gateway({"methods": {"modules": ["mypackage.handlers"]}}, environ={"PYTHONPATH": str(EXAMPLE)})
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"})
        methods: dict[str, Any] = {each["name"]: each for each in (await peer.recv_json())["result"]["methods"]}
    assert {name for name in methods if name.startswith("greenhouse.")} == {
        "greenhouse.level",
        "greenhouse.water",
        "greenhouse.drain",
    }
    assert methods["greenhouse.water"]["summary"] == "Open the valve of a bed until it has its litres."
    bed, litres = methods["greenhouse.water"]["params"]
    assert (bed["name"], bed["required"], litres["name"], litres["required"]) == ("bed", True, "litres", False)
    assert bed["schema"] == {"type": "integer", "minimum": 1, "maximum": 4}


def command(beginning: str) -> str:
    """The page's command that begins so, for the interpreter of these tests."""
    (found,) = re.findall(rf"^    ({re.escape(beginning)}.*)$", HOWTO, re.MULTILINE)
    return re.sub(r"\S*\.venv/bin/python", shlex.quote(sys.executable), found)


def test_the_page_s_tests_pass(tmp_path: Path) -> None:
    line = f"{command('cd docs/example')} -q -o cache_dir={shlex.quote(str(tmp_path))}"
    ran = subprocess.run(
        line,
        shell=True,
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=2 * START,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout


async def test_the_page_s_command_starts_the_gateway() -> None:
    line = f"exec env {command('PYTHONPATH=')} --port 0"
    process = await asyncio.create_subprocess_shell(
        line, cwd=ROOT, env=clean_environment(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START):
            event = ""
            while event != "server.ready":
                event = json.loads(await process.stdout.readline())["event"]
            process.terminate()
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_node_of_the_readme_is_called_and_its_end_is_told(gateway: StartGateway) -> None:
    process = await gateway()
    environ = clean_environment() | {"GATEWAY_URL": f"ws://{process.host}:{process.port}/ws"}

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(EXAMPLE / "node" / program), *arguments]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    with start("node.py") as node:
        await process.wait_event("node.online", node="kitchen-pi")
        with start("call.py", "machine.about") as about:
            said = (await asyncio.to_thread(about.communicate))[0]
            assert platform.platform() in said
        with start("call.py", "machine.think") as think:
            async with asyncio.timeout(START):
                while (await calls_in_flight(process)) == 0:
                    await asyncio.sleep(0.05)
            node.send_signal(signal.SIGINT)
            said = (await asyncio.to_thread(think.communicate))[0]
            assert said.startswith("node_lost, outcome unknown after ")
    with start("call.py", "machine.about") as gone:
        said = (await asyncio.to_thread(gone.communicate))[0]
        assert said.startswith("method_not_found, outcome not_delivered after ")


async def calls_in_flight(process: GatewayProcess) -> float:
    """What the metric says."""
    with await RawPeer.connect(process) as peer:
        page = (await peer.get("/metrics")).body.decode()
    return float(page.partition("\ngateway_calls_in_flight ")[2].split()[0])
