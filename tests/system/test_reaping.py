"""No child process stays behind: neither one that ignores SIGTERM, nor one that has ended by itself."""

import asyncio
import signal
import subprocess
import sys

from tests.support.reaping import end, kill

STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def started(program: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)


def test_one_that_ignores_sigterm_is_killed() -> None:
    process = started(STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    assert end(process, 0.1) == -signal.SIGKILL
    assert process.stdout.closed


def test_one_that_has_ended_keeps_its_status_however_often_it_is_ended() -> None:
    process = started("raise SystemExit(7)")
    process.wait()
    assert [end(process, 5.0) for _ in range(2)] == [7, 7]


async def test_kill_returns_the_status_of_one_that_runs_and_of_one_that_has_ended() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STUBBORN, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    assert [await kill(process) for _ in range(2)] == [-signal.SIGKILL] * 2
