"""Running the programs of `python -m gateway node`: input, output, deadline, and an end whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

MAX_OUTPUT: Final = 524_288
"""How many bytes a program may print; a message of the gateway has 1 MiB by default."""

MAX_ERRORS: Final = 4096
"""How many bytes at the end of standard error are kept."""

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""

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

    The program has a process group of its own. If it prints too much, after ``timeout`` seconds, or if this is
    cancelled, the group gets SIGTERM, and SIGKILL after GRACE. Processes that it has left behind when it ends by itself
    may run on.
    """
    process = await _start(words, environ)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    feeding = asyncio.create_task(_feed(process.stdin, given))
    complaining = asyncio.create_task(_read_end(process.stderr))
    try:
        async with asyncio.timeout(timeout):
            printed = await _read(process.stdout)
            errors = await complaining
            status = await process.wait()
    except TimeoutError:
        raise ProgramFailed(TIMED_OUT, f"still running after {timeout:g} s") from None
    finally:
        feeding.cancel()
        complaining.cancel()
        if process.returncode is None:
            await _end(process)
    if status:
        raise ProgramFailed(status if status > 0 else 128 - status, _last_line(errors) or _described(status))
    return printed


async def _start(words: Sequence[str], environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ProgramFailed(NOT_FOUND, f"{words[0]}: not found") from None
    except OSError as error:
        raise ProgramFailed(NOT_EXECUTABLE, f"{words[0]}: {error.strerror}") from None


async def _read(stream: asyncio.StreamReader) -> bytes:
    printed = bytearray()
    while part := await stream.read(65_536):
        printed += part
        if len(printed) > MAX_OUTPUT:
            raise ProgramFailed(TOO_MUCH, f"printed more than {MAX_OUTPUT} bytes")
    return bytes(printed)


async def _read_end(stream: asyncio.StreamReader) -> bytes:
    end = b""
    while part := await stream.read(65_536):
        end = (end + part)[-MAX_ERRORS:]
    return end


async def _feed(stream: asyncio.StreamWriter, given: bytes) -> None:
    # A program may ignore its input.
    with contextlib.suppress(OSError):
        stream.write(given)
        await stream.drain()
        stream.close()
        await stream.wait_closed()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and its group, with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await process.wait()


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _described(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
