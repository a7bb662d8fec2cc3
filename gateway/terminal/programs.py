"""Running the programs of `python -m gateway node`: input, output, deadline, and an end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from io import FileIO
from typing import Final, Self

from gateway.terminal.lines import lines_of, write

MAX_OUTPUT: Final = 524_288
"""How many bytes a program may print; a message of the gateway has 1 MiB by default."""

MAX_ERRORS: Final = 4096
"""How many bytes at the end of standard error are kept."""

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

_PART: Final = 65_536
"""How many bytes are read at a time."""

WRONG_OUTPUT: Final = 65
"""Status of a program that has printed what it should not; EX_DATAERR of sysexits.h."""

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
TIMED_OUT: Final = 124
TOO_MUCH: Final = 125
"""Statuses of programs that did not end by themselves, as in shells and coreutils; by a signal, 128 and its number."""


class ProgramFailed(Exception):
    """The program has failed. ``status`` is from 1 to 255; ``str()`` is a line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def run(words: Sequence[str], given: bytes, environ: Mapping[str, str], timeout: float) -> bytes:
    """Run a program with ``given`` on its standard input; returns what it printed. Raises ProgramFailed.

    The program has a process group of its own, which ends with it: when the program has ended, all that it has left
    behind in its group gets SIGKILL. If it prints too much, after ``timeout`` seconds, or if this is cancelled, the
    group gets SIGTERM before that, and the program has GRACE seconds to end. What has left the group (`setsid`) runs
    on, and nothing waits for it.
    """
    with _Pipe(MAX_OUTPUT) as output, _Pipe(MAX_ERRORS, tail=True) as errors:
        process = await _start(words, _file(given), environ, output, errors)
        try:
            async with asyncio.timeout(timeout):
                await _ended(process, output)
        except TimeoutError:
            raise ProgramFailed(TIMED_OUT, f"still running after {timeout:g} s") from None
        finally:
            await _end(process)
        printed, complained = output.rest(), errors.rest()
    if output.filled.is_set():
        raise ProgramFailed(TOO_MUCH, f"printed more than {MAX_OUTPUT} bytes")
    _check(process, complained)
    return printed


async def converse(
    words: Sequence[str],
    given: AsyncIterator[bytes],
    environ: Mapping[str, str],
    take: Callable[[bytes], Awaitable[None]],
) -> None:
    """Run a program that gets what is ``given`` on standard input as it comes. Raises ProgramFailed.

    ``take`` gets each line that it prints, at once, and as long as it takes one the program cannot print much more. All
    else is as in `run`, but there is no deadline: it is for the caller, by cancelling, to end it.
    """
    stdin, to = os.pipe()
    with FileIO(to, "w") as pipe, _Pipe(MAX_ERRORS, tail=True) as errors, _Ends() as output:
        process = await _start(words, stdin, environ, output, errors)
        feeding = asyncio.create_task(_feed(pipe, given))
        ended = asyncio.create_task(process.wait())
        try:
            async for line in lines_of(output.reading, ended):
                await take(line)
            await ended
        except ValueError as error:
            raise ProgramFailed(TOO_MUCH, f"printed {error}") from None
        finally:
            ended.cancel()
            feeding.cancel()
            await _end(process)
        complained = errors.rest()
    _check(process, complained)


async def _feed(pipe: FileIO, given: AsyncIterator[bytes]) -> None:
    """Write to the program until there is no more, or it does not read any more, and end its standard input."""
    os.set_blocking(pipe.fileno(), False)
    try:
        async for data in given:
            await write(pipe.fileno(), data)
    except OSError:
        pass  # it has closed its standard input, or has ended
    finally:
        pipe.close()


def _check(process: asyncio.subprocess.Process, complained: bytes) -> None:
    if status := process.returncode:
        raise ProgramFailed(status if status > 0 else 128 - status, _last_line(complained) or _described(status))


class _Ends:
    """The two ends of a pipe that a program writes to.

    It does not matter when the pipe is closed: processes that outlive the program may hold it open.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self.reading)
        self.hand_over()

    def hand_over(self) -> None:
        """Leave the writing end to the program alone. May be called again."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


class _Pipe(_Ends):
    """A pipe that a program writes to, and what has come out of it so far.

    ``most`` is how many bytes are kept, of the ``tail`` or else of the beginning; ``filled`` is set when more than that
    has come.
    """

    def __init__(self, most: int, *, tail: bool = False) -> None:
        super().__init__()
        self._most = most
        self._tail = tail
        self._kept = bytearray()
        self.filled = asyncio.Event()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self.reading, self._read, _PART)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        asyncio.get_running_loop().remove_reader(self.reading)
        super().__exit__(kind, error, trace)

    def rest(self) -> bytes:
        """Return all that was kept, what is in the pipe at this moment included."""
        self._read(fcntl.fcntl(self.reading, fcntl.F_GETPIPE_SZ))
        return bytes(self._kept)

    def _read(self, most: int) -> None:
        try:
            part = os.read(self.reading, most)
        except BlockingIOError:
            return
        if not part:
            asyncio.get_running_loop().remove_reader(self.reading)
        self._kept += part
        if len(self._kept) > self._most:
            self.filled.set()
            del self._kept[slice(-self._most) if self._tail else slice(self._most, None)]


async def _start(
    words: Sequence[str], stdin: int, environ: Mapping[str, str], output: _Ends, errors: _Ends
) -> asyncio.subprocess.Process:
    """Start the program; ``stdin`` is closed here. Raises ProgramFailed."""
    # A file and pipes of our own: with a pipe of asyncio's, its `wait` waits for every process that holds it open.
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=output.writing,
            stderr=errors.writing,
            env=environ,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ProgramFailed(NOT_FOUND, f"{words[0]}: not found") from None
    except OSError as error:
        raise ProgramFailed(NOT_EXECUTABLE, f"{words[0]}: {error.strerror}") from None
    finally:
        os.close(stdin)
        output.hand_over()
        errors.hand_over()


def _file(data: bytes) -> int:
    """Return the descriptor of a file in memory, to be read from its beginning."""
    descriptor = os.memfd_create("input")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _ended(process: asyncio.subprocess.Process, output: _Pipe) -> None:
    """Wait until the program has ended, or has printed too much."""
    ways = [asyncio.create_task(process.wait()), asyncio.create_task(output.filled.wait())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the program, if it still runs, and all that it has started; at the latest after twice GRACE."""
    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            await _wait(process)
    finally:
        _signal(process, signal.SIGKILL)
    await _wait(process)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to the program's group. Does nothing if none of it is left, or all of it is another user's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def _wait(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            await process.wait()


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _described(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
