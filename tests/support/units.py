"""What systemd says of a unit that a page of the documentation has."""

import os
import subprocess
from pathlib import Path

from tests.support.patience import WAIT


def verified(unit: str, file: Path) -> tuple[int, str]:
    """Write a unit to a file, have systemd verify it, and return its status and what it says."""
    file.write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", "verify", file],
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT,
        check=False,
    )
    return done.returncode, done.stdout
