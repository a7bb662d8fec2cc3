"""Processes of a run: servers under test and load generators. Each is ended by its id, whatever happens."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.peers import Peer
from tests.bench.procfs import pin
from tests.support.process import ROOT, clean_environment
from tests.support.reaping import end

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
READ_SIZE = 65536


class BenchError(Exception):
    """A server or a load generator failed; the text is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the server and of the load generator; None where nothing is pinned."""

    server: int | None
    load: int | None


def choose_cores(pin: bool) -> Cores:
    """Return the first two cores that this process may use, or None for both when there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return Cores(available[0], available[1]) if pin and len(available) > 1 else Cores(None, None)


class Server:
    """One server under test as a context manager, in a process of its own on a free port of 127.0.0.1.

    Its log goes through a pipe to a process that throws it away, as a service's log goes to the journal.
    Entering waits until it listens; BenchError when it does not. Use it once.
    """

    def __init__(self, peer: Peer, cores: Cores) -> None:
        self.peer = peer
        self.port = 0
        self._cores = cores
        self._directory = tempfile.TemporaryDirectory(prefix="gateway-bench-")
        self._errors = Path(self._directory.name, "stderr")
        self.headers = Path(self._directory.name, "headers")
        """A file with the peer's header lines."""
        self._process: subprocess.Popen[bytes] | None = None
        self._drain: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Raise BenchError if the process has ended."""
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            errors = self._errors.read_text("utf-8", "replace").strip()[-2000:]
            raise BenchError(f"{self.peer.name} ended with status {status}: {errors or 'it said nothing'}")

    def _start(self) -> None:
        config = Path(self._directory.name, "config.toml")
        config.write_text(self.peer.config.replace("{directory}", self._directory.name), encoding="utf-8")
        self.headers.write_text("\n".join(self.peer.headers), encoding="utf-8")  # too many for a command line
        for name, text in self.peer.files:
            config.with_name(name).write_text(text, encoding="utf-8")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [part.replace("{config}", str(config)) for part in self.peer.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self.peer.home or ROOT,
                env=clean_environment(),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.port = self._wait_port(self._process.stdout.fileno())
        self._drain = subprocess.Popen(
            ["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._process.stdout.close()
        pin(self._drain.pid, self._cores.load)
        pin(self.pid, self._cores.server)

    def _wait_port(self, descriptor: int) -> int:
        deadline = time.monotonic() + START_TIMEOUT
        text = b""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                break
            data = os.read(descriptor, READ_SIZE)
            if not data:
                self._wait_end()
                self.check()
                raise BenchError(f"{self.peer.name} closed its standard output")
            text += data
            if (port := _port_in(text)) is not None:
                return port
        raise BenchError(f"{self.peer.name} did not say within {START_TIMEOUT:g} s where it listens")

    def _wait_end(self) -> None:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)

    def _end(self) -> None:
        """End both processes. May be called twice."""
        try:
            _end(self._process)
        finally:
            _end(self._drain)
            self._directory.cleanup()


def _port_in(text: bytes) -> int | None:
    """Return the port in the first whole `server.started` line, None if there is none."""
    for line in text.split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "server.started":
            return int(event["listeners"][0].rpartition(":")[2])
    return None


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        end(process, STOP_TIMEOUT)


class Load:
    """A load generator (`python -m tests.bench.load`) as a context manager. `job` is what it shall do."""

    def __init__(self, job: dict[str, Any], core: int | None) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.load", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment(),
            start_new_session=True,
        )
        pin(self._process.pid, core)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._process)

    def result(self, timeout: float) -> dict[str, Any]:
        """Return its next line of output, a JSON object.

        BenchError when it fails or is not done within `timeout` seconds.
        """
        assert self._process.stdout is not None and self._process.stderr is not None
        deadline = time.monotonic() + timeout
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise BenchError(f"the load generator was not done within {timeout:g} s")
            data = os.read(descriptor, READ_SIZE)
            if not data:
                raise BenchError(f"the load generator failed: {_last_line(self._process.stderr.read())}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise BenchError(f"the load generator answered {line!r}")
        return answer


def run_load(server: Server, job: dict[str, Any], cores: Cores, timeout: float) -> dict[str, Any]:
    """Run one job against a server and return its result. BenchError when either fails."""
    with Load(job_for(server, job), cores.load) as load:
        try:
            return load.result(timeout)
        except BenchError as error:
            server.check()
            raise BenchError(f"{server.peer.name}: {error}") from None


def job_for(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job with where the server is and how it begins."""
    peer = server.peer
    return {
        **job,
        "port": server.port,
        "pid": server.pid,
        "welcomes": peer.welcomes,
        "headers": str(server.headers),
        "refuses": peer.refuses,
        "socketio": peer.socketio,
        "nats": peer.nats,
        "kept": peer.kept,
    }


def _last_line(text: bytes) -> str:
    lines: Sequence[str] = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
