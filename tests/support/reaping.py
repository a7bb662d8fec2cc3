"""The end of a child process: it is told to end, killed if it is late, and reaped in any case."""

import asyncio
import contextlib
import subprocess
from typing import Any

from tests.support.forks import Forked


def end(process: subprocess.Popen[Any], timeout: float) -> int:
    """End a process: SIGTERM, and SIGKILL after `timeout` seconds. Closes its pipes and returns its exit status.

    Harmless if it has ended; may be called twice.
    """
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
    finally:
        if process.poll() is None:
            process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return status


async def kill(process: asyncio.subprocess.Process | Forked) -> int:
    """Kill a process if it still runs, and return its exit status."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return await process.wait()
