"""Programs that are run to their end: `python -m gateway` as a command, and programs for Node."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.fork_server import Program
from tests.support.forks import shared
from tests.support.patience import START
from tests.support.process import ROOT, clean_environment
from tests.support.reaping import kill


class Ended(NamedTuple):
    """A process that has ended by itself."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: str, environ: Mapping[str, str] | None = None, program: str | None = None) -> Ended:
    """Run the command, or in place of it a Python program, with these arguments, until it ends.

    environ: extra variables. subprocess.TimeoutExpired is raised if it serves instead.
    """
    clean = clean_environment() | dict(environ or {})
    forks = shared.get(environ)
    if forks is not None and program is None:
        return Ended(*forks.run(Program("gateway", arguments, clean), START))
    what = ["-m", "gateway"] if program is None else ["-c", program]
    ended = subprocess.run(
        [sys.executable, *what, *arguments],
        cwd=ROOT,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


async def run_node(*arguments: str, timeout: float = START) -> Any:
    """Run a JavaScript program; the JSON that it prints. It must end well, and complain of nothing."""
    node = shutil.which("node")
    assert node is not None, "node is not installed: see scripts/test"
    process = await asyncio.create_subprocess_exec(
        node, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout)
    finally:
        await kill(process)
    assert (process.returncode, errors.decode()) == (0, "")
    return json.loads(output)
