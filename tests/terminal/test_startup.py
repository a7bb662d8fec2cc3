"""What a process does before anything else, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.patience import START, WAIT
from tests.support.process import ROOT, clean_environment

GATEWAY = (sys.executable, "-m", "gateway")
# Runs `python -m gateway`, and gets a signal in the moment in which it imports a module.
SIGNALLED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), getattr(signal, number))

_, wanted, number, *arguments = sys.argv
sys.argv = ["gateway", *arguments]
sys.meta_path.insert(0, Finder())
runpy.run_module("gateway", run_name="__main__")
"""
AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child")


def signalled(at: str, number: str, *arguments: str, before: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the exit status and the output of a process that gets a signal when it imports ``at``."""
    ended = subprocess.run(
        [*before, sys.executable, "-c", SIGNALLED, at, number, *arguments],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("at", ["gateway.cli", "msgspec", "gateway.server", "uvloop"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_start_ends_a_gateway_with_0(at: str, number: str) -> None:
    assert signalled(at, number, "--port", "0") == (0, "")


@pytest.mark.parametrize("at", ["gateway.cli", "uvloop"])
def test_a_signal_during_the_start_is_not_lost_as_pid_1(at: str) -> None:
    """The kernel drops a signal of the first process of a container that has no handler for it."""
    assert signalled(at, "SIGTERM", "--port", "0", before=AS_PID_1) == (0, "")


def test_another_command_ends_by_the_signal() -> None:
    assert signalled("gateway.cli", "SIGTERM", "nodes") == (-signal.SIGTERM, "")
    assert signalled("gateway.cli", "SIGTERM", "nodes", before=AS_PID_1) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize(
    "at", ["gateway.terminal", "gateway.terminal.statuses", "gateway.cli", "aiohttp", "gateway.app"]
)
def test_ctrl_c_during_the_start_ends_a_command_without_a_word(at: str) -> None:
    assert signalled(at, "SIGINT", "check") == (128 + signal.SIGINT, "")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_closed_standard_descriptors_are_opened_on_dev_null(closed: tuple[int, ...], loop: str, tmp_path: Path) -> None:
    """Nothing else gets their numbers, the log of an open one is whole, and the process ends well."""
    path = tmp_path / "gateway.sock"
    environ = {"GATEWAY_SERVER__UNIX_SOCKET": str(path), "GATEWAY_SERVER__EVENT_LOOP": loop}
    files = [(tmp_path / str(number)).open("w+") for number in range(3)]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {" ".join(f"{number}>&-" for number in closed)}', "sh", *GATEWAY],
        cwd=ROOT,
        env=clean_environment() | environ,
        stdin=files[0],
        stdout=files[1],
        stderr=files[2],
    )
    try:
        deadline = time.monotonic() + START
        while not path.is_socket():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in range(3):
            there = os.readlink(f"/proc/{process.pid}/fd/{number}")
            assert there == ("/dev/null" if number in closed else files[number].name)
        process.terminate()
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
    log = Path(files[1].name).read_text()
    events = ("server.started", "server.ready", "server.draining", "server.stopped")
    assert [event in log for event in events] == [1 not in closed] * 4
    assert Path(files[2].name).read_text() == ""
    for file in files:
        file.close()
