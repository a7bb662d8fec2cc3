"""`python -m gateway reload`, with programs in the place of systemctl and journalctl."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.auth import tokens
from tests.support import command
from tests.support.command import Ended
from tests.support.forks import ALONE
from tests.support.process import GatewayProcess, StartGateway
from tests.support.remote import misused, run

LOST = "; nothing was sent\n"


@pytest.fixture
def machine(tmp_path: Path) -> "Machine":
    return Machine(tmp_path)


class Machine:
    """A machine with a systemd of its own: `unit` sets what its systemctl says, `journal` what its journalctl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environ = {"PATH": f"{folder}:/usr/bin:/bin"}
        self._program("systemctl", "exit 1")
        self._program("journalctl", "exit 1")

    def unit(self, pid: int, state: str = "active") -> None:
        self._program("systemctl", f"echo ActiveState={state}; echo MainPID={pid}; echo $* > {self._folder}/asked")

    @property
    def asked(self) -> list[str]:
        return (self._folder / "asked").read_text().split()

    def journal(self, gateway: GatewayProcess, event: str, text: str | None = None) -> None:
        """Have it show the log's line of this event as it comes, and before that the line of an earlier reload."""
        reader = self._folder / "reader.py"
        reader.write_text(
            "import json, os, sys, time\n"
            "def show(message, moment):\n"
            "    print(json.dumps({'MESSAGE': message, '__REALTIME_TIMESTAMP': str(int(moment * 1e6))}))\n"
            f"show({json.dumps({'event': event, 'reason': 'earlier', 'revoked': 7})!r}, time.time() - 60)\n"
            f"if '--lines=1' not in sys.argv and '_PID={gateway.pid}' in sys.argv:\n"
            f"    show({text!r}, time.time())\n"
        )
        self._program("journalctl", f"exec {sys.executable} {reader} $*")

    def _program(self, name: str, script: str) -> None:
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


async def test_a_process_is_told_and_does_it(gateway: StartGateway, machine: Machine) -> None:
    where = await gateway(environ=ALONE)
    ended = await run(None, "reload", "--pid", str(where.pid), environ=machine.environ)
    said = "SIGHUP is sent; its log says what came of it (server.reloaded or server.reload_failed)"
    assert ended == Ended(0, f"process {where.pid}: {said}\n", "")
    await where.wait_event("server.reloaded")


async def test_the_process_of_the_unit_and_what_its_journal_says(
    gateway: StartGateway, machine: Machine, tmp_path: Path
) -> None:
    file = str(tmp_path / "tokens.toml")
    tokens.add(file, "me", "operator", None, None)
    where = await gateway({"auth": {"mode": "token", "tokens_file": file}}, environ=ALONE)
    machine.unit(where.pid)
    machine.journal(where, "server.reloaded", json.dumps({"event": "server.reloaded", "revoked": 2}))
    ended = await run(None, "reload", environ=machine.environ)
    said = "the reload is done; connections that it has closed: 2"
    assert ended == Ended(0, f"process {where.pid}: {said}\n", "")
    assert machine.asked[-1] == "gateway.service"
    await where.wait_event("server.reloaded")

    Path(file).write_text("nonsense")
    machine.journal(where, "server.reload_failed", json.dumps({"event": "server.reload_failed", "reason": "a b"}))
    ended = await run(None, "reload", "--unit", "other.service", environ=machine.environ)
    assert ended == Ended(1, "", f"process {where.pid}: a b\n")
    assert machine.asked[-1] == "other.service"
    await where.wait_event("server.reload_failed")


async def test_a_log_in_text(gateway: StartGateway, machine: Machine) -> None:
    where = await gateway(environ=ALONE)
    machine.journal(where, "server.reloaded", "10:00:00.000 INFO  server.reloaded reloaded revoked=3")
    ended = await run(None, "reload", "--pid", str(where.pid), environ=machine.environ)
    assert ended == Ended(0, f"process {where.pid}: the reload is done; connections that it has closed: 3\n", "")


async def test_no_gateway_is_found(machine: Machine) -> None:
    nothing = await run(None, "reload", environ=machine.environ)
    assert nothing == Ended(3, "", "systemd does not answer here; --pid names the process of the gateway\n")
    machine.unit(0, "inactive")
    stopped = await run(None, "reload", environ=machine.environ)
    why = "gateway.service has no process: it is inactive; --unit or --pid names another one\n"
    assert stopped == Ended(3, "", why)


async def test_another_process_gets_no_signal(machine: Machine) -> None:
    """SIGHUP would end it: also where its words have the name of the gateway, or it has a handler."""
    for words in (["sleep", "60"], ["sh", "-c", "sleep 60; exit", "gateway"]):
        process = subprocess.Popen(words)
        try:
            ended = await run(None, "reload", "--pid", str(process.pid), environ=machine.environ)
            assert ended == Ended(3, "", f"process {process.pid} is no gateway that serves{LOST}")
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
    gone = await run(None, "reload", "--pid", str(process.pid), environ=machine.environ)
    assert gone == Ended(3, "", f"there is no process {process.pid}\n")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
async def test_a_process_of_another_user(gateway: StartGateway, machine: Machine) -> None:
    where = await gateway(environ=ALONE)
    # Imported first, because the other user need not be able to read the sources.
    program = "import os, sys; from gateway.cli import main; os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    ended = await asyncio.to_thread(command.run, "reload", "--pid", str(where.pid), program=program)
    assert ended == Ended(1, "", f"process {where.pid} is another user's, and may not be signalled; as root?\n")
    assert where.events("server.reloaded") == []
    where.signal(signal.SIGHUP)
    await where.wait_event("server.reloaded")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pid", "0"], "--pid"),
        (["--pid", "-1"], "--pid"),
        (["--pid", "gateway"], "--pid"),
        (["--pid", "1", "--unit", "a"], "one too many"),
        (["now"], "now"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in misused(capsys, "reload", *arguments)
