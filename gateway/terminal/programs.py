"""Running the programs of `python -m gateway node`: input, output, deadline, and an end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, Self

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
        process = await _start(words, given, environ, output, errors)
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
    if status := process.returncode:
        raise ProgramFailed(status if status > 0 else 128 - status, _last_line(complained) or _described(status))
    return printed


class _Pipe:
    """The end of a pipe that a program writes to, and what has come out of it so far.

    It does not matter when the pipe is closed: processes that outlive the program may hold it open. ``most`` is how
    many bytes are kept, of the ``tail`` or else of the beginning; ``filled`` is set when more than that has come.
    """

    def __init__(self, most: int, *, tail: bool = False) -> None:
        self._most = most
        self._tail = tail
        self._kept = bytearray()
        self.filled = asyncio.Event()
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._reading, self._read, _PART)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)
        self.hand_over()

    def hand_over(self) -> None:
        """Leave the writing end to the program alone. May be called again."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def rest(self) -> bytes:
        """Return all that was kept, what is in the pipe at this moment included."""
        self._read(fcntl.fcntl(self._reading, fcntl.F_GETPIPE_SZ))
        return bytes(self._kept)

    def _read(self, most: int) -> None:
        try:
            part = os.read(self._reading, most)
        except BlockingIOError:
            return
        if not part:
            asyncio.get_running_loop().remove_reader(self._reading)
        self._kept += part
        if len(self._kept) > self._most:
            self.filled.set()
            del self._kept[slice(-self._most) if self._tail else slice(self._most, None)]


async def _start(
    words: Sequence[str], given: bytes, environ: Mapping[str, str], output: _Pipe, errors: _Pipe
) -> asyncio.subprocess.Process:
    # A file and pipes of our own: with a pipe of asyncio's, its `wait` waits for every process that holds it open.
    data = _file(given)
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=data,
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
        os.close(data)
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
