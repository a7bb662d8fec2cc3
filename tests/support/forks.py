"""Programs that start in a hundredth of a second: forked from a process that has imported the gateway.

A new interpreter spends a third of a second of processor time on imports, and the tests start thousands. A forked
process has its own pid, descriptors, environment, signals and exit status. It differs from a new interpreter in what
happens before its main module begins, and in `/proc/PID/cmdline`. The tests of that start interpreters themselves, and
so do all tests with `--full`, and the tools that measure.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.support.fork_server import LARGEST, Program
from tests.support.patience import START

FOLDER: Final = Path(__file__).resolve().parents[2]
# Variables that Python or a library reads while it is imported.
ALONE: Final = {"PYTHONFAULTHANDLER": "1"}
"""With this extra variable a program has an interpreter, and so a command line, of its own."""

EARLY: Final = ("PYTHON", "LC_", "LANG", "SSL_")
# Bytes that can be written to a pipe that has no reader yet.
PIPE_SIZE: Final = 1 << 16


class Pipe(asyncio.StreamReaderProtocol):
    """A pipe from a forked process, which is read all the time."""

    def __init__(self) -> None:
        self.stream = asyncio.StreamReader(limit=1 << 24)
        self.lost = asyncio.Event()
        """Set at its end."""
        super().__init__(self.stream)

    @classmethod
    async def make(cls) -> tuple[Self, int]:
        """Return a new pipe, and the descriptor to write to."""
        reading, writing = os.pipe()
        _, pipe = await asyncio.get_running_loop().connect_read_pipe(cls, os.fdopen(reading, "rb", 0))
        return pipe, writing

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        self.lost.set()


class Forked:
    """A forked process, with those parts of `asyncio.subprocess.Process` that the tests use."""

    def __init__(self, pid: int, reply: socket.socket, stdout: Pipe, stderr: Pipe | None) -> None:
        self.pid = pid
        self.stdout = stdout.stream
        self.stderr = None if stderr is None else stderr.stream
        self.returncode: int | None = None
        self._pipes = [pipe for pipe in (stdout, stderr) if pipe]
        self._reply = reply
        self._ended = asyncio.create_task(self._end())

    async def _end(self) -> int:
        # The pid is this process's until the socket is closed.
        with self._reply:
            self.returncode = _status(await asyncio.get_running_loop().sock_recv(self._reply, LARGEST))
        for pipe in self._pipes:
            await pipe.lost.wait()
        return self.returncode

    async def wait(self) -> int:
        """Wait for the end, of its pipes too; returns the exit status, which is negative after a signal."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send a signal. ProcessLookupError is raised if the process has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM. ProcessLookupError is raised if the process has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL. ProcessLookupError is raised if the process has ended."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """A process that forks. It starts at once, and ends with `end`."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def end(self) -> None:
        """Kill what has been forked and still runs, and wait for the end."""
        self._control.close()
        self._process.wait(START)

    async def start(self, program: Program, stdin: bytes = b"", *, piped: bool = True) -> Forked:
        """Start a program that gets `stdin`, at most 64 KiB, and nothing else.

        piped: its standard error is a pipe as its standard output, and not this process's.
        """
        assert len(stdin) <= PIPE_SIZE
        theirs, ours = os.pipe()
        os.write(ours, stdin)
        os.close(ours)
        stdout, writing_output = await Pipe.make()
        stderr, writing_errors = await Pipe.make() if piped else (None, os.dup(2))
        streams = (theirs, writing_output, writing_errors)
        try:
            pid, reply = self._fork(program, streams)
        finally:
            for fd in streams:
                os.close(fd)
        reply.setblocking(False)
        return Forked(pid, reply, stdout, stderr)

    def run(self, program: Program, timeout: float) -> tuple[int, str, str]:
        """Run a program to its end; returns its status, standard output and standard error.

        It is killed, and subprocess.TimeoutExpired raised, after `timeout` seconds.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
            _, reply = self._fork(program, (nothing.fileno(), output.fileno(), errors.fileno()))
            with reply:
                reply.settimeout(timeout)
                try:
                    status = _status(reply.recv(LARGEST))
                except TimeoutError:
                    raise subprocess.TimeoutExpired([program.module, *program.arguments], timeout) from None
            for file in (output, errors):
                file.seek(0)
            return status, output.read().decode(), errors.read().decode()

    def _fork(self, program: Program, streams: tuple[int, int, int]) -> tuple[int, socket.socket]:
        reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reply.settimeout(START)
        with theirs:
            socket.send_fds(self._control, [program.to_json()], [*streams, theirs.fileno()])
        return _status(reply.recv(LARGEST)), reply


class Shared:
    """The one process that forks for this test process. Nothing is forked before `allow`: a tool measures the truth."""

    def __init__(self) -> None:
        self._allowed = False
        self._forks: Forks | None = None

    def allow(self) -> None:
        """From now on, `get` returns something."""
        self._allowed = True

    def get(self, environ: Mapping[str, str] | None) -> Forks | None:
        """Return what forks, or None if a program with these extra variables needs an interpreter of its own."""
        if not self._allowed or any(name.startswith(EARLY) for name in environ or ()):
            return None
        if self._forks is None:
            self._forks = Forks()
        return self._forks

    def end(self) -> None:
        """End it; harmless if it has not begun."""
        if self._forks is not None:
            self._forks.end()
        self._allowed, self._forks = False, None


shared: Final = Shared()


async def start_python(module: str, *arguments: str) -> asyncio.subprocess.Process | Forked:
    """Start `python -m module arguments…` in the project's folder; its standard output is a pipe."""
    forks = shared.get(None)
    if forks is not None:
        return await forks.start(Program(module, arguments, dict(os.environ)), piped=False)
    command = (sys.executable, "-m", module, *arguments)
    return await asyncio.create_subprocess_exec(*command, cwd=FOLDER, stdout=asyncio.subprocess.PIPE)


def _status(said: bytes) -> int:
    assert said, "the process that forks has ended"
    return int(said)
