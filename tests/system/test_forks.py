"""A forked process is as good as one of a new interpreter: status, signals, environment, descriptors and its end."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.fork_server import Program
from tests.support.forks import Forked, Forks, Shared
from tests.support.patience import START, WAIT
from tests.support.process import clean_environment

# What a process does that the test has written.
TALKER = """
import os, resource, sys
print(sys.argv[1:], sorted(os.environ), sorted(map(int, os.listdir("/proc/self/fd")))[:-1], sys.stdin.read())
print(resource.getrlimit(resource.RLIMIT_NOFILE), __name__, os.getcwd() in sys.path, file=sys.stderr)
sys.exit(7)
"""
WAITER = """
import time
print("here", flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """What forks, and finds the modules of the tests."""
    folder = tmp_path_factory.mktemp("modules")
    for name, code in (("talker", TALKER), ("waiter", WAITER), ("failing", "1 / 0")):
        (folder / f"{name}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        forks = Forks()
    yield forks
    forks.end()


def talker(nofile: int | None = None) -> Program:
    return Program("talker", ["--a", "b c"], {"ONLY": "this"}, nofile)


def test_it_is_the_program_and_nothing_else(forks: Forks) -> None:
    status, output, errors = forks.run(talker(nofile=99), START)
    assert status == 7
    assert output == "['--a', 'b c'] ['ONLY'] [0, 1, 2] \n"
    assert errors == "(99, 99) __main__ True\n"


async def test_it_can_be_talked_to(forks: Forks) -> None:
    # The others' descriptors are not this one's.
    other = await started(forks)
    process = await forks.start(talker(), stdin=b"hello")
    async with asyncio.timeout(WAIT):
        assert (await process.stdout.read()).endswith(b"['ONLY'] [0, 1, 2] hello\n")
        assert process.stderr is not None
        assert (await process.stderr.read()).endswith(b"__main__ True\n")
        assert await process.wait() == process.returncode == 7
    with pytest.raises(ProcessLookupError):
        process.terminate()
    await killed(other)


async def started(forks: Forks) -> Forked:
    process = await forks.start(Program("waiter", [], clean_environment()))
    async with asyncio.timeout(WAIT):
        assert await process.stdout.readline() == b"here\n"
    return process


async def killed(process: Forked) -> None:
    process.kill()
    async with asyncio.timeout(WAIT):
        assert await process.wait() == -signal.SIGKILL


async def test_a_signal_reaches_it(forks: Forks) -> None:
    process = await started(forks)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT):
        assert await process.wait() == -signal.SIGINT
        assert process.stderr is not None
        assert b"KeyboardInterrupt" in await process.stderr.read()


def test_what_it_raises_is_told(forks: Forks) -> None:
    status, output, errors = forks.run(Program("failing", [], clean_environment()), START)
    assert (status, output) == (1, "")
    assert errors.startswith("Traceback") and errors.endswith("ZeroDivisionError: division by zero\n")


def test_a_run_that_is_late_is_killed(forks: Forks) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(Program("waiter", [], clean_environment()), 0.1)
    assert forks.run(talker(), START)[0] == 7


async def test_what_still_runs_ends_with_what_forks() -> None:
    forks = Forks()
    process = await forks.start(Program("gateway", ["--port", "0"], clean_environment()))
    # It is another's child, so its end can be waited for, but not its status.
    ends = os.pidfd_open(process.pid)
    forks.end()
    async with asyncio.timeout(WAIT):
        await readable(ends)
        with pytest.raises(AssertionError, match="has ended"):
            await process.wait()


async def readable(fd: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


@pytest.mark.parametrize("name", ["PYTHONPATH", "LC_ALL", "SSL_CERT_FILE"])
def test_what_is_read_at_the_start_needs_an_interpreter(name: str) -> None:
    shared = Shared()
    shared.allow()
    assert shared.get({"GATEWAY_URL": "", name: ""}) is None


def test_nothing_is_forked_but_for_tests() -> None:
    shared = Shared()
    assert shared.get({}) is None
    shared.allow()
    try:
        assert shared.get({"GATEWAY_URL": ""}) is shared.get(None) is not None
    finally:
        shared.end()
    assert shared.get({}) is None
