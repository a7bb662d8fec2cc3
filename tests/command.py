"""`python -m gateway` as a command that is run to its end."""

import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from tests.process import ROOT, clean_environment


class Ended(NamedTuple):
    """A process that has ended by itself."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: str, environ: Mapping[str, str] | None = None, program: str | None = None) -> Ended:
    """Run the command, or in place of it a Python program, with these arguments, until it ends.

    environ: extra variables. subprocess.TimeoutExpired is raised if it serves instead.
    """
    what = ["-m", "gateway"] if program is None else ["-c", program]
    ended = subprocess.run(
        [sys.executable, *what, *arguments],
        cwd=ROOT,
        env=clean_environment() | dict(environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20.0,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)
