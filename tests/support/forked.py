"""Commands of `python -m gateway` on broken standard streams, many of them in one process that is forked for each.

A process that begins anew for each of them would import the gateway each time, which costs more than all the rest.
`python -m tests.support.forked` is that process; `run_all` is for tests.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.command import Ended
from tests.support.patience import START
from tests.support.process import ROOT, clean_environment
from tests.support.reaping import kill

FULL = "/dev/full"
CLOSED = "closed"
GONE = "a pipe that nobody reads"
BROKEN = (FULL, CLOSED, GONE)


async def run_all(
    commands: Sequence[Sequence[str]],
    *,
    environ: Mapping[str, str],
    broken: Mapping[int, str] | None = None,
    interrupt: Callable[[], Awaitable[None]] | None = None,
) -> list[Ended]:
    """Run commands at the same time, and return how each has ended, and what it said where that could be read.

    `broken` says for the descriptors 1 and 2 in which of the ways of BROKEN they are. When `interrupt` returns all
    commands get SIGINT.
    """
    given = json.dumps([[list(words) for words in commands], broken or {}])
    with TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.forked", folder, given),
            cwd=ROOT,
            env=clean_environment() | dict(environ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(START):
                if interrupt is not None:
                    await interrupt()
                    process.stdin.write(b"\n")
                process.stdin.close()
                statuses = json.loads(await process.stdout.read())
        finally:
            await kill(process)
        files = [[Path(folder) / f"{index}.{number}" for number in (1, 2)] for index in range(len(commands))]
        said = [[file.read_text() for file in pair] for pair in files]
    return [Ended(status, *texts) for status, texts in zip(statuses, said, strict=True)]


def _main(folder: str, given: str) -> None:
    for module in ("app", "cli", "server"):  # here, and in no test
        importlib.import_module(f"gateway.{module}")
    program = importlib.import_module("gateway.__main__")
    commands, broken = json.loads(given)
    children = []
    for index, arguments in enumerate(commands):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (1, 2):
                _redirect(number, f"{folder}/{index}.{number}", broken.get(str(number)))
            sys.argv = ["gateway", *arguments]
            sys.exit(program.main())
        children.append(child)
    if os.read(0, 1):
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(ended))


def _redirect(number: int, path: str, how: str | None) -> None:
    Path(path).touch()
    name = "stdout" if number == 1 else "stderr"
    if how == CLOSED:
        os.close(number)
        setattr(sys, name, None)  # as Python begins then
        return
    if how == GONE:
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(how or path, os.O_WRONLY)
    os.dup2(writing, number)
    os.close(writing)
    # Python looks at a descriptor when it makes its stream.
    setattr(sys, name, os.fdopen(number, "w", closefd=False))


if __name__ == "__main__":
    _main(*sys.argv[1:])
