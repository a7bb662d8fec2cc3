"""Commands that a node runs: what goes in, what comes out, and that nothing stays behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.terminal import programs
from gateway.terminal.programs import MAX_OUTPUT, ProgramFailed
from tests.support.fleet import until
from tests.support.patience import WAIT


async def run(program: str, given: bytes = b"", timeout: float = 10.0) -> bytes:
    """Run a Python program."""
    return await programs.run([sys.executable, "-c", program], given, os.environ, timeout)


async def failed(program: str, timeout: float = 10.0) -> tuple[int, str]:
    with pytest.raises(ProgramFailed) as failure:
        await run(program, timeout=timeout)
    return failure.value.status, str(failure.value)


def gone(pid: int) -> bool:
    """Whether the process is no more, or a zombie that init has not fetched yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def until_gone(pid: int) -> None:
    await until(lambda: gone(pid), "it still runs")


async def pid_in(file: Path) -> int:
    while not file.exists() or not file.read_text().endswith("\n"):
        await asyncio.sleep(0.01)
    return int(file.read_text())


def sleeper(file: Path, prelude: str = "pass") -> str:
    """A program that has a shell sleep for a minute, and tells that one's process id."""
    shell = f"echo $$ > {file}; exec sleep 60"
    return f"import signal, subprocess; {prelude}; subprocess.run(['/bin/sh', '-c', {shell!r}])"


async def test_input_and_output() -> None:
    big = b"x" * MAX_OUTPUT
    assert await run("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())", big) == big


async def test_input_that_nobody_reads() -> None:
    assert await run("print(1)", b"x" * 1_000_000) == b"1\n"


async def test_the_environment_is_the_given_one() -> None:
    printed = await programs.run(["/usr/bin/env"], b"", {"A": "b"}, 10.0)
    assert printed == b"A=b\n"


@pytest.mark.parametrize(
    ("program", "status", "why"),
    [
        ("import sys; print('first\\n the last \\n', file=sys.stderr); sys.exit(3)", 3, "the last"),
        ("import sys; sys.stderr.write('x' * 100_000 + '\\nlast'); sys.exit(255)", 255, "last"),
        ("raise SystemExit(1)", 1, "exit status 1"),
        ("import os; os.kill(os.getpid(), 9)", 137, "ended by SIGKILL"),
    ],
)
async def test_a_status_other_than_0(program: str, status: int, why: str) -> None:
    assert await failed(program) == (status, why)


async def test_what_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="/nowhere: not found") as failure:
        await programs.run(["/nowhere"], b"", {}, 1.0)
    assert failure.value.status == 127
    with pytest.raises(ProgramFailed, match="Permission denied") as failure:
        await programs.run([str(tmp_path)], b"", {}, 1.0)
    assert failure.value.status == 126


async def test_too_much_output_ends_it() -> None:
    status, why = await failed("while True: print('x' * 1000)")
    assert (status, why) == (125, f"printed more than {MAX_OUTPUT} bytes")


async def test_the_deadline_ends_it_and_what_it_has_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert await failed(sleeper(file), timeout=4.0) == (124, "still running after 4 s")
    await until_gone(await pid_in(file))


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "GRACE", 0.2)
    file = tmp_path / "pid"
    ignoring = f"signal.signal(signal.{signal.SIGTERM.name}, signal.SIG_IGN)"
    assert (await failed(sleeper(file, ignoring), timeout=4.0))[0] == 124
    await until_gone(await pid_in(file))


async def test_cancelling_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    running = asyncio.create_task(run(sleeper(file)))
    async with asyncio.timeout(WAIT):
        pid = await pid_in(file)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await until_gone(pid)


def holder(file: Path, prelude: str = "") -> str:
    """A program that ends, and leaves a process behind that holds all that it has open; it tells that one's id."""
    shell = f"echo $$ > {file}; exec sleep 60"
    return f"""
import os, pathlib, subprocess, time
subprocess.Popen(['/bin/sh', '-c', {shell!r}]{prelude})
while not os.path.exists({str(file)!r}) or not pathlib.Path({str(file)!r}).read_text().endswith('\\n'):
    time.sleep(0.01)
print('done')
"""


async def test_what_a_program_leaves_behind_holds_nothing_up_and_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert await run(holder(file), b"x" * 1_000_000, timeout=60.0) == b"done\n"
    await until_gone(await pid_in(file))


async def test_what_has_left_the_group_runs_on_and_holds_nothing_up(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert await run(holder(file, ", start_new_session=True"), b"x" * 1_000_000, timeout=60.0) == b"done\n"
    pid = await pid_in(file)
    try:
        assert not gone(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_no_descriptor_stays_open() -> None:
    async def all_ways() -> None:
        await run("print(1)")
        await failed("import sys; sys.exit(1)")
        with pytest.raises(ProgramFailed):
            await programs.run(["/nowhere"], b"", {}, 1.0)

    await all_ways()  # the event loop opens some of its own at the first program
    before = set(os.listdir("/proc/self/fd"))
    await all_ways()
    assert set(os.listdir("/proc/self/fd")) == before


# Those that are talked to


async def told(*lines: str) -> AsyncIterator[bytes]:
    """These lines, one after the other."""
    for line in lines:
        yield f"{line}\n".encode()


async def nothing(line: bytes) -> None:
    """Take a line that does not come."""


async def conversation(program: str, given: AsyncIterator[bytes]) -> list[bytes]:
    """What a Python program prints, line by line."""
    heard = list[bytes]()

    async def take(line: bytes) -> None:
        heard.append(line)

    async with asyncio.timeout(WAIT):
        await programs.converse([sys.executable, "-uc", program], given, os.environ, take)
    return heard


async def test_a_conversation_is_heard_line_by_line() -> None:
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def given() -> AsyncIterator[bytes]:
        yield b"1\n"
        for _ in range(3):
            yield f"{await answers.get()}\n".encode()

    async def take(line: bytes) -> None:
        heard.append(line)
        answers.put_nowait(str(int(line) + 1))

    heard = list[bytes]()
    program = "import sys\nfor line in sys.stdin: print(2 * int(line))"
    await asyncio.wait_for(programs.converse([sys.executable, "-uc", program], given(), os.environ, take), WAIT)
    assert heard == [b"2", b"6", b"14", b"30"]


async def test_how_a_conversation_ends() -> None:
    assert await conversation("print('rest', end='')", told()) == [b"rest"]
    assert await conversation("import os; os.close(0); print(1)", told(*["x" * 60_000] * 5)) == [b"1"]
    with pytest.raises(ProgramFailed, match="the last") as failure:
        await conversation("import sys; print(1); sys.exit('the last')", told())
    assert failure.value.status == 1
    with pytest.raises(ProgramFailed, match="a line of more than") as failure:
        await conversation(f"print('x' * {MAX_OUTPUT + 1})", told())
    assert failure.value.status == programs.TOO_MUCH
    with pytest.raises(ProgramFailed) as failure:
        await programs.converse(["/no/such"], told(), os.environ, nothing)
    assert failure.value.status == programs.NOT_FOUND


async def test_a_conversation_that_is_left_ends_the_program_and_its_children(tmp_path: Path) -> None:
    pids: asyncio.Queue[int] = asyncio.Queue()

    async def take(line: bytes) -> None:
        pids.put_nowait(int(line))

    async def given() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    descriptors = len(os.listdir("/proc/self/fd"))
    words = ["/bin/sh", "-c", "sleep 60 & echo $!; echo $$; wait"]
    talking = asyncio.create_task(programs.converse(words, given(), os.environ, take))
    ids = [await asyncio.wait_for(pids.get(), WAIT) for _ in range(2)]
    talking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talking
    for pid in ids:
        await until_gone(pid)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_program_prints_no_faster_than_its_lines_are_taken() -> None:
    taken = asyncio.Semaphore(0)
    heard = list[bytes]()

    async def take(line: bytes) -> None:
        await taken.acquire()
        heard.append(line)

    program = "import sys\nfor n in range(9):\n  print('x' * 60000)\n  print(n, file=sys.stderr)\nsys.exit('done')"
    talking = asyncio.create_task(programs.converse([sys.executable, "-uc", program], told(), os.environ, take))
    await asyncio.sleep(0.1)
    assert not talking.done()
    for _ in range(9):
        taken.release()
    with pytest.raises(ProgramFailed, match="done"):
        await asyncio.wait_for(talking, WAIT)
    assert len(heard) == 9
