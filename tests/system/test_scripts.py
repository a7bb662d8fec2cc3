"""The scripts explain themselves, and make the project's environment once, whole, and again when it must be.

A project with nothing to install and a Python that only writes down what it is asked stand in for the real,
but for the last test, which makes a real environment and starts the real gateway in it.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.client import connect
from tests.support.patience import START
from tests.support.process import free_port

ROOT: Final = Path(__file__).resolve().parents[2]
COMMANDS: Final = (
    "scripts/run",
    "scripts/cluster",
    "scripts/test",
    "scripts/conformance",
    "scripts/fuzz",
    "scripts/soak",
    "scripts/bench",
    "scripts/screenshots",
    "scripts/vendor",
    "scripts/lock",
    ".ci/run",
)

# Answers as an interpreter and as an environment's interpreter. `pip install` takes a moment, so that two
# installs at once would be seen as begin, begin.
STUB: Final = r"""#!/usr/bin/env bash
set -euo pipefail
case "$*" in
  -c*) exit "${STUB_UNUSABLE:-0}" ;;
  "-m venv "*)
    echo venv >>"$STUB_CALLS"
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip install "*)
    echo "begin ${*: -1}" >>"$STUB_CALLS"
    sleep 0.3
    [[ -z ${STUB_PIP_FAILS:-} ]] || exit 1
    echo "end" >>"$STUB_CALLS" ;;
  *) echo "$*" ;;
esac
"""


class Project:
    """A folder with the scripts and nothing to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a project"
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        (self.folder / "setup.cfg").write_text("[metadata]\n")
        (self.folder / "requirements").mkdir()
        (self.folder / "requirements/server.txt").touch()
        stub = folder / "stub"
        stub.write_text(STUB)
        stub.chmod(0o755)
        self._calls = folder / "calls"
        self.environ = os.environ | {"PYTHON": str(stub), "STUB_CALLS": str(self._calls), "NEWEST": ""}

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Start a script in a folder that is not the project's."""
        return subprocess.Popen(
            [self.folder / command[0], *command[1:]],
            cwd=self.folder.parent,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, status: int = 0, **environ: str) -> tuple[str, str]:
        """Return what a script said on standard output and on standard error."""
        with self.start(*command, **environ) as process:
            output, errors = process.communicate(timeout=START)
        assert process.returncode == status, errors
        return output, errors

    def calls(self) -> list[str]:
        """Return what was made since this was last asked."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return calls

    def made(self, extra: str = "server") -> list[str]:
        """Return the calls of one whole install: what is locked, and then the project itself."""
        return [f"begin {self.folder}/requirements/{extra}.txt", "end", f"begin {self.folder}", "end"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("path", [*COMMANDS, "scripts/venv.sh"])
def test_is_proper_bash(path: str) -> None:
    checked = subprocess.run(["bash", "-n", ROOT / path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "set -euo pipefail" in (ROOT / path).read_text()
    assert os.access(ROOT / path, os.X_OK) == (path in COMMANDS)


@pytest.mark.parametrize("name", ["run", "cluster", "test"])
def test_explains_itself_without_making_anything(project: Project, name: str) -> None:
    output, errors = project.run(f"scripts/{name}", "--help")
    assert output.startswith(f"usage: scripts/{name}")
    assert (errors, project.calls()) == ("", [])


@pytest.mark.parametrize("name", ["conformance", "fuzz", "soak", "bench"])
def test_hands_its_help_to_the_tool(project: Project, name: str) -> None:
    output, _ = project.run(f"scripts/{name}", "--help")
    assert output == f"-m tests.{name} --help\n"
    assert project.calls() == ["venv", *project.made("test")]


@pytest.mark.parametrize("name", ["conformance", "fuzz", "soak", "bench"])
def test_the_tool_explains_itself(name: str) -> None:
    script = ROOT / "scripts" / name
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=START)
    assert shown.stdout.startswith("usage: ")


def test_help_shows_the_flags_of_the_gateway_once_there_is_one(project: Project) -> None:
    project.run("scripts/run")
    output, _ = project.run("scripts/run", "--help")
    assert output.startswith("usage: scripts/run")
    assert output.endswith("-P -m gateway --help\n")


def test_an_environment_is_made_once(project: Project) -> None:
    output, errors = project.run("scripts/run", "--port", "0")
    assert output == "-P -m gateway --port 0\n"
    assert errors != ""
    assert project.calls() == ["venv", *project.made()]

    assert project.run("scripts/run", "--port", "0") == ("-P -m gateway --port 0\n", "")
    assert project.calls() == []


def test_the_tests_complete_the_environment_of_the_gateway(project: Project) -> None:
    project.run("scripts/run")
    project.calls()

    output, _ = project.run("scripts/test", "-k", "two words")
    assert output == "-m pytest -k two words\n"
    assert project.calls() == project.made("test")

    project.run("scripts/run")
    assert project.calls() == []


def test_a_change_of_what_is_needed_is_followed(project: Project) -> None:
    project.run("scripts/run")
    project.calls()
    for name in ("setup.cfg", "requirements/server.txt"):
        (project.folder / name).write_text("[metadata]\nname = other\n")
        project.run("scripts/run")
        assert project.calls() == project.made()


def test_the_newest_have_an_environment_of_their_own(project: Project) -> None:
    project.run("scripts/run")
    project.calls()
    for _ in range(2):
        project.run("scripts/test", NEWEST="yes")
    assert project.calls() == ["venv", f"begin {project.folder}[test]", "end"]
    project.run("scripts/run")
    assert project.calls() == []


def test_a_moved_project_is_installed_again(project: Project) -> None:
    project.run("scripts/run")
    project.calls()
    project.folder = project.folder.rename(project.folder.with_name("elsewhere"))
    project.run("scripts/run")
    assert project.calls() == project.made()


def test_an_environment_made_by_hand_is_kept(project: Project) -> None:
    subprocess.run([project.environ["PYTHON"], "-m", "venv", project.folder / ".venv"], env=project.environ, check=True)
    kept = project.folder / ".venv/kept"
    kept.touch()
    project.calls()
    project.run("scripts/run")
    assert project.calls() == project.made()
    assert kept.exists()


def test_a_half_made_environment_is_made_again(project: Project) -> None:
    output, errors = project.run("scripts/run", status=1, STUB_PIP_FAILS="yes")
    assert output == ""
    assert "pip could not install" in errors
    half = project.folder / ".venv/half"
    half.touch()
    project.calls()

    project.run("scripts/run")
    assert project.calls() == ["venv", *project.made()]
    assert not half.exists()


def test_a_killed_start_leaves_nothing_that_is_believed(project: Project) -> None:
    with project.start("scripts/run") as process:
        while not (project.folder / ".venv/.stamp").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    project.run("scripts/run")
    assert project.calls()[-4:] == project.made()


def test_an_environment_whose_python_is_gone_is_made_again(project: Project) -> None:
    project.run("scripts/run")
    project.calls()
    (project.folder / ".venv/bin/python").unlink()
    project.run("scripts/run")
    assert project.calls() == ["venv", *project.made()]


def test_two_that_start_at_once_make_one_environment(project: Project) -> None:
    both = [project.start("scripts/run", "--port", "0") for _ in range(2)]
    outputs = [process.communicate(timeout=START)[0] for process in both]
    assert outputs == ["-P -m gateway --port 0\n"] * 2
    assert project.calls() == ["venv", *project.made()]


def test_without_a_usable_python_it_says_what_is_needed(project: Project) -> None:
    output, errors = project.run("scripts/run", status=1, STUB_UNUSABLE="1")
    assert output == ""
    assert errors == "run: needs Python 3.11 or later with its venv module\n"


def test_without_the_tools_it_says_what_to_install(project: Project, tmp_path: Path) -> None:
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("bash", "dirname", "env", "readlink"):
        (few / name).symlink_to(f"/usr/bin/{name}")
    _, errors = project.run("scripts/test", status=1, PATH=str(few))
    missing = "systemd iproute2 openssl nodejs npm chromium fish prometheus"
    install = "apt-get install -y --no-install-recommends"
    assert errors == f"test: missing here: {missing}. As root: {install} {missing}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0"], "1 to 64 gateways, not 0"),
        (["65"], "1 to 64 gateways, not 65"),
        (["three"], "what is three? See --help"),
        (["3", "--port"], "what is --port? See --help"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_anything_is_made(
    project: Project, arguments: list[str], said: str
) -> None:
    assert project.run("scripts/cluster", *arguments, status=1) == ("", f"cluster: {said}\n")
    assert project.calls() == []


@pytest.mark.timeout(900)  # it fetches and installs what is locked, and nothing of the tests' own
async def test_a_fresh_copy_answers_and_gets_the_signals(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, fresh)
    for name in ("gateway", "requirements", "scripts"):
        shutil.copytree(ROOT / name, fresh / name)
    # To compile what is installed takes longer than all the rest.
    environ = os.environ | {"PIP_NO_COMPILE": "1"}
    process = await asyncio.create_subprocess_exec(
        fresh / "scripts/run", "--port", "0", cwd=tmp_path, env=environ, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line: dict[str, Any] = {}
        while line.get("event") != "server.ready":
            line = json.loads(await process.stdout.readline())
            if line["event"] == "server.started":
                url = f"http://{line['listeners'][0]}/healthz"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await cluster_in(fresh, environ)


async def cluster_in(fresh: Path, environ: dict[str, str]) -> None:
    """Start a cluster of two, see both, kill one gateway, then NATS, and end the rest by Ctrl-C."""
    port = free_ports(3)
    process = await asyncio.create_subprocess_exec(
        *(fresh / "scripts/cluster", "2", "--port", str(port)),
        cwd=fresh.parent,
        env=environ | {"TMPDIR": str(fresh)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    said = ""
    try:
        while "Ctrl-C" not in said:
            line = await process.stdout.readline()
            assert line, (await process.stderr.read()).decode()
            said += line.decode()
        pids = [int(number) for number in re.findall(r"process (\d+)", said)]
        assert f"ws://127.0.0.1:{port}/ws" in said and len(pids) == 3
        async with connect(f"ws://127.0.0.1:{port}/ws") as client:
            members = (await client.call("gateway.info"))["members"]
            assert [one["member"] for one in members] == ["gateway-1", "gateway-2"]
        for pid, told in ((pids[0], b"gateway-1 has ended\n"), (pids[2], b"NATS has ended: ")):
            os.kill(pid, signal.SIGKILL)
            while told not in (line := await process.stderr.readline()):
                assert line and b"Killed" not in line, "bash itself speaks of nothing"
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode == 130
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not list(fresh.glob("tmp.*")), "what they wrote is removed"
    finally:
        if process.returncode is None:
            process.terminate()  # it ends what it has started
            await process.wait()


def free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody has."""
    while True:
        first = free_port()
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
