"""The base install: the client, and the commands that call, need nothing of what serves; the others say what to do."""

import asyncio
import re
import signal
from collections.abc import Iterable
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from gateway.terminal import parts
from tests.support.command import run as run_alone
from tests.support.process import ROOT, StartGateway
from tests.support.remote import Command, run, serving

SERVING = {"serve", "check", "token"}
CALLING = {"call", "completion", "connections", "members", "node", "nodes", "openrpc", "reload", "watch"}

# As if these were not installed. Python imports it at each start.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def names(requirements: Iterable[str]) -> list[str]:
    """The names of distributions that are required without an extra."""
    found = (re.match(r"[\w.-]+", line) for line in requirements if "extra ==" not in line)
    return [re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match]


INSTALLED = {package: names(of) for package, of in packages_distributions().items()}
"""The distributions of each package that is installed here."""


def required(section: str, key: str) -> set[str]:
    """The distributions that setup.cfg names there."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(names(line for line in config[section][key].splitlines() if line and not line.startswith("#")))


def base() -> set[str]:
    """The distributions that the base install has: what it requires, and what that requires."""
    here = {name for of in INSTALLED.values() for name in of}
    found: set[str] = set()
    new = required("options", "install_requires")
    while new:
        found |= new
        new = {name for of in new for name in names(requires(of) or ()) if name in here} - found
    return found


def others() -> set[str]:
    """The packages that are installed here and that the base install does not have."""
    kept = base() | {"aisopod-gateway"}
    return {package for package, of in INSTALLED.items() if not kept & set(of)}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has the base install alone."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=others()))
    return {"PYTHONPATH": str(tmp_path)}


def test_the_base_is_small() -> None:
    assert required("options", "install_requires") == {"aiohttp", "msgspec", "shtab", "yarl"}


def test_the_packages_of_the_server_are_those_of_its_extra() -> None:
    """Apart from what the base has already."""
    assert {name for package in parts.SERVER for name in INSTALLED[package]} == required(
        "options.extras_require", "server"
    ) - base()
    assert set(parts.SERVER) <= others()


def test_nothing_is_lacking_here() -> None:
    assert parts.lacking() == []


def test_every_command_is_of_one_kind() -> None:
    commands = {path.stem for path in (ROOT / "gateway/commands").glob("*.py")} - {"__init__"}
    assert commands == SERVING | CALLING


def test_the_client_needs_the_base_alone(small: dict[str, str]) -> None:
    ended = run_alone(program="import gateway.client", environ=small)
    assert ended == (0, "", "")


@pytest.mark.parametrize("arguments", [["--port", "0"], ["serve"], ["check"], ["token", "list", "--file", "x"]])
def test_what_serves_says_what_to_install(small: dict[str, str], arguments: list[str]) -> None:
    ended = run_alone(*arguments, environ=small)
    needed = ", ".join(parts.SERVER)
    advice = f"python -m gateway: this command needs {needed}: pip install 'aisopod-gateway[server]'\n"
    assert ended == (2, "", advice)


def test_what_serves_explains_itself(small: dict[str, str]) -> None:
    ended = run_alone("token", "--help", environ=small)
    assert (ended.status, ended.stderr) == (0, "")


async def test_what_calls_needs_the_base_alone(gateway: StartGateway, small: dict[str, str]) -> None:
    where = await gateway()
    async with (
        Command("watch", "a", where=where, environ=small) as watch,
        serving(where, "text=echo hello", environ=small),
    ):
        answers = [
            run(where, *words, environ=small)
            for words in (["call", "text"], ["nodes"], ["connections"], ["openrpc"], ["completion", "bash"])
        ]
        while not watch.stdout:
            assert (await run(where, "call", "event.publish", '{"topic": "a", "data": 1}', environ=small)).status == 0
        ended = await asyncio.gather(*answers)
        assert (await watch.end(signal.SIGINT)).stderr == ""
    assert [(one.status, one.stderr) for one in ended] == [(0, "")] * len(answers)
    for one, word in zip(ended, ("hello", "kitchen-pi", "anonymous", '"text"', "connections"), strict=True):
        assert word in one.stdout
