"""What systemd says of a unit that a page of the documentation has."""

import os
import subprocess
from pathlib import Path

from tests.support.patience import START


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; both of its streams are in `stdout`."""
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START,
        check=False,
    )


def verified(unit: str, file: Path) -> tuple[int, str]:
    """Write a unit to a file, have systemd verify it, and return its status and what it says."""
    file.write_text(unit)
    done = analyze("verify", file)
    return done.returncode, done.stdout
