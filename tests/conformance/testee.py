"""The server under test, in a process of its own that ends with the run."""

import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.process import ROOT, EventLoopName, clean_environment
from tests.support.reaping import end

MODULES = {"gateway": "tests.support.echo", "aiohttp": "tests.conformance.bare"}
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0


class TesteeError(Exception):
    """The server did not start, or did not end as it should; the text is for the person at the terminal."""


class Testee:
    """A server of MODULES as a context manager, on a free port of 127.0.0.1. Use it once.

    Entering waits until it listens, leaving sends SIGTERM and waits. TesteeError is raised when it does not start,
    and, unless something else went wrong before, when it ends with another status than 0 or has said anything on
    standard error: no peer's mistake is worth a line there.
    """

    def __init__(self, server: str, loop: EventLoopName, *, compression: bool) -> None:
        self.url = ""
        self._directory = tempfile.TemporaryDirectory(prefix="gateway-conformance-")
        self._errors = Path(self._directory.name, "stderr")
        self._command = [sys.executable, "-m", MODULES[server], "--loop", loop]
        self._command += ["--compression"] * compression
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=clean_environment(),
                start_new_session=True,
            )
        try:
            self.url = f"ws://{self._address(self._process)}/ws"
        except BaseException:
            self._end(self._process)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        status, said = self._end(self._process)
        if error is None and (status or said):
            raise TesteeError(f"the server ended with status {status}, and said on standard error: {said or 'nothing'}")

    def _address(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START_TIMEOUT)[0]:
            raise TesteeError(f"the server did not say within {START_TIMEOUT:g} s where it listens")
        head, _, address = process.stdout.readline().strip().rpartition(" ")
        if head != "listening on":
            raise TesteeError(f"the server did not start: {self._said() or 'it said nothing'}")
        return address

    def _end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Return its exit status and what it has said on standard error."""
        status = end(process, STOP_TIMEOUT)
        said = self._said()
        self._directory.cleanup()
        return status, said

    def _said(self) -> str:
        return self._errors.read_text("utf-8", "replace").strip()[-4000:]
