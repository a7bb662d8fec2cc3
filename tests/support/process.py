"""A gateway in a process of its own, as an administrator would start it, its log and resources in view."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from tests.support.certs import ServerFiles, authority
from tests.support.fork_server import Program
from tests.support.forks import Forked, shared
from tests.support.patience import START, WAIT

ROOT = Path(__file__).resolve().parents[2]
PAGE = resource.getpagesize()
LOG_TAIL = 40
# Variables that a shell or a service manager may have set and that would change what the child does.
PRIVATE_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
# Texts on standard error that show a defect even where nobody logged one.
DEFECTS = (
    "Traceback (most recent call last)",
    "was never awaited",
    "was destroyed but it is pending",
    "never retrieved",
)

EventLoopName = Literal["asyncio", "uvloop"]
Line = dict[str, Any]
Config = Mapping[str, Any]


class StartFailed(AssertionError):
    """The process ended, or stayed silent, before it was ready. `status` is None if it had to be killed."""

    def __init__(self, status: int | None, stderr: str) -> None:
        super().__init__(f"the gateway did not start (exit status {status}): {stderr.strip()}")
        self.status = status
        self.stderr = stderr


class StartGateway(Protocol):
    """What the `gateway` fixture gives: a way to start a GatewayProcess that ends with the test."""

    async def __call__(self, config: Config | None = None, **options: Any) -> "GatewayProcess":
        """Start one and wait until it is ready. `options` are the keywords of GatewayProcess."""


class GatewayProcess:
    """`python -m gateway --config FILE` as an async context manager.

    Entering waits for `server.ready`, or for `awaits`; StartFailed is raised if that does not come within
    `start_timeout` seconds. Leaving sends SIGTERM, waits, kills what is left, and then fails on a line with a
    traceback, and on a process that had to be killed or had ended by itself. Use it once. Within tests the process is
    forked: see tests.support.forks.

    config: sections and keys as in conf/gateway.toml; host 127.0.0.1 and port 0 where nothing is said.
    environ: extra variables. tls: serve TLS with a certificate of tests.support.certs. loop: `server.event_loop`.
    nofile: RLIMIT_NOFILE of the child, soft and hard. module: what to run in place of `gateway`.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        tls: bool = False,
        loop: EventLoopName | None = None,
        nofile: int | None = None,
        module: str = "gateway",
        arguments: Iterable[str] = (),
        awaits: str = "server.ready",
        start_timeout: float = START,
        stop_timeout: float = WAIT,
        allow_tracebacks: bool = False,
    ) -> None:
        self._given = config or {}
        self._environ = environ or {}
        self._with_tls = tls
        self._loop_name = loop
        self._nofile = nofile
        self._module = module
        self._arguments = tuple(arguments)
        self._awaits = awaits
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._allow_tracebacks = allow_tracebacks
        self._unseen: defaultdict[str, list[Line]] = defaultdict(list)
        self._news = asyncio.Event()
        self._ended = False
        self._told: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._pidfd = -1
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.config: dict[str, Any] = {}
        self.lines: list[Line] = []
        """Every JSON line of standard output so far, oldest first."""
        self.other_output: list[str] = []
        """Lines of standard output that are not JSON."""
        self.stderr = ""
        self.host = "127.0.0.1"
        self.listeners: list[str] = []
        """As in `server.started`: `127.0.0.1:43210`, `unix:/path`."""
        self.files: ServerFiles | None = None
        """With tls: the certificate and key that the gateway reads."""
        self.tls: ssl.SSLContext | None = None
        """With tls: the context with which a client connects."""

    # Start and end

    async def __aenter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="gateway-test-")
        try:
            await self._start(Path(self._directory.name))
        except BaseException as error:
            ended = self._ended
            status = await self._end()
            if isinstance(error, AssertionError):
                raise StartFailed(status if ended else None, self.stderr or self.tail()) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alone = self._ended and not self._told
        status = await self._end()
        print(self.tail())
        if error is not None:
            return
        assert not alone, f"the gateway ended by itself with status {status}"
        assert status != -signal.SIGKILL or signal.SIGKILL in self._told, "the gateway had to be killed"
        if not self._allow_tracebacks:
            self.assert_no_defects()

    async def _start(self, directory: Path) -> None:
        self.config = self._complete(directory)
        path = directory / "gateway.toml"
        path.write_text(to_toml(self.config), encoding="utf-8")
        process = await self._execute("--config", str(path), *self._arguments)
        self._process, self._pidfd = process, os.pidfd_open(process.pid)
        assert process.stdout is not None
        assert process.stderr is not None
        self._tasks = [
            asyncio.create_task(self._read_log(process.stdout)),
            asyncio.create_task(self._read_stderr(process.stderr)),
        ]
        await self.wait_event(self._awaits, timeout=self._start_timeout)
        (started,) = self.events("server.started")
        self.listeners = list(started["listeners"])

    async def _execute(self, *arguments: str) -> asyncio.subprocess.Process | Forked:
        environ = clean_environment() | dict(self._environ)
        forks = shared.get(self._environ)
        if forks is not None:
            return await forks.start(Program(self._module, arguments, environ, self._nofile))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "faulthandler", "-m", self._module, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environ,
            preexec_fn=self._limit,
            limit=1 << 24,
        )

    def _complete(self, directory: Path) -> dict[str, Any]:
        config = {name: dict(section) for name, section in self._given.items()}
        server = config.setdefault("server", {})
        server.setdefault("host", self.host)
        server.setdefault("port", 0)
        self.host = server["host"] if isinstance(server["host"], str) else server["host"][0]
        if self._loop_name is not None:
            server["event_loop"] = self._loop_name
        if self._with_tls:
            self.files = authority().issue(directory)
            server["tls_cert"], server["tls_key"] = str(self.files.cert), str(self.files.key)
            self.tls = authority().client_context()
        return config

    def _limit(self) -> None:
        if self._nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._nofile, self._nofile))

    async def _end(self) -> int | None:
        """End the process if it still runs, and release everything."""
        process, status = self._process, None
        if process is not None:
            status = await self._stop(process)
            await asyncio.gather(*self._tasks)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._directory is not None:
            self._directory.cleanup()
        return status

    async def _stop(self, process: asyncio.subprocess.Process | Forked) -> int:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._send(number)
            try:
                return await asyncio.wait_for(process.wait(), self._stop_timeout)
            except TimeoutError:
                continue
        raise AssertionError(f"process {process.pid} survives SIGKILL")

    # The log

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            self._take_line(raw.decode("utf-8", "replace").rstrip("\n"))
            self._news.set()
        self._ended = True
        self._news.set()

    def _take_line(self, text: str) -> None:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            self.lines.append(line)
            self._unseen[str(line.get("event"))].append(line)
        else:
            self.other_output.append(text)

    async def _read_stderr(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            self.stderr += raw.decode("utf-8", "replace")

    async def wait_event(
        self, event: str, *, timeout: float = WAIT, where: Callable[[Line], bool] | None = None, **fields: Any
    ) -> Line:
        """Return the first line of this event that has these fields, passes `where` and is new.

        New: not returned before. AssertionError with the end of the log when it does not come within
        `timeout` seconds or the process ends before.
        """

        def wanted(line: Line) -> bool:
            return _has(line, fields) and (where is None or where(line))

        def take() -> Line | None:
            unseen = self._unseen[event]
            for index, line in enumerate(unseen):
                if wanted(line):
                    return unseen.pop(index)
            return None

        try:
            async with asyncio.timeout(timeout):
                while (found := take()) is None and not self._ended:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            found = None
        if found is None:
            state = "the gateway has ended" if self._ended else f"nothing within {timeout} s"
            raise AssertionError(f"no {event} with {fields}: {state}\n{self.tail()}")
        return found

    def events(self, event: str, **fields: Any) -> list[Line]:
        """Return all lines of this event that have these fields, whether they were returned before or not."""
        return [line for line in self.lines if line.get("event") == event and _has(line, fields)]

    def tail(self) -> str:
        """Return the last lines of the log and standard error, to be read by a person."""
        lines = [json.dumps(line) for line in self.lines[-LOG_TAIL:]]
        errors = self.stderr[-4000:]
        return "\n".join(["--- log", *lines, *self.other_output[-LOG_TAIL:], "--- stderr", errors])

    def assert_no_defects(self) -> None:
        """Fail if a line has a traceback, or standard error shows what only a defect can cause."""
        for line in self.lines:
            told = line.get("traceback") or line.get("exc_info") or DEFECTS[0] in str(line.get("message"))
            assert not told, f"a traceback in the log: {json.dumps(line, indent=1)}"
        for text in DEFECTS:
            assert text not in self.stderr, self.stderr

    # The process

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def port(self) -> int:
        """The first TCP port that it listens on."""
        return next(int(name.rpartition(":")[2]) for name in self.listeners if not name.startswith("unix:"))

    @property
    def unix(self) -> Path | None:
        """The Unix socket that it listens on, if that is its only listener."""
        paths = [name.removeprefix("unix:") for name in self.listeners if name.startswith("unix:")]
        return Path(paths[0]) if paths and len(paths) == len(self.listeners) else None

    def url(self, path: str = "/", *, websocket: bool = False) -> str:
        """Return the address of a path over TCP: http or https, with `websocket` ws or wss."""
        scheme = "ws" if websocket else "http"
        return f"{scheme}{'s' if self.tls else ''}://{self.host}:{self.port}{path}"

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def cpu(self) -> float:
        """Return the CPU time used so far, user and system, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def fds(self) -> int:
        """Return the number of open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self) -> int:
        """Return the number of open sockets, listening ones included."""
        directory = f"/proc/{self.pid}/fd"
        return sum(_is_socket(f"{directory}/{number}") for number in os.listdir(directory))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal. After SIGTERM, SIGINT or SIGKILL an end of the process is no surprise."""
        assert self._process is not None
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            self._told.add(number)
        self._send(number)

    def _send(self, number: int) -> None:
        # Popen.send_signal would reap an ended child behind asyncio's back: its exit status would be lost.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Send SIGTERM. May be called twice: the second ends the gateway at once."""
        self.signal(signal.SIGTERM)

    async def wait(self, timeout: float = START) -> int:
        """Wait until the process has ended and its log is read to the end, and return its exit status."""
        assert self._process is not None
        self._told.add(0)
        async with asyncio.timeout(timeout):
            status = await self._process.wait()
            await asyncio.gather(*self._tasks)
        return status


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that would configure a gateway."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GATEWAY_") and name not in PRIVATE_VARIABLES
    }


def free_port() -> int:
    """Return a TCP port that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def to_toml(config: Config) -> str:
    """Write a mapping of sections as TOML. Knows tables, lists, strings, numbers and booleans."""
    lines: list[str] = []
    for name, section in config.items():
        _write_table(lines, (name,), section)
    return "\n".join(lines) + "\n"


def _write_table(lines: list[str], path: tuple[str, ...], table: Config) -> None:
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lines.append(f"[{'.'.join(json.dumps(part) for part in path)}]")
    plain = {name: value for name, value in table.items() if name not in inner}
    lines += [f"{json.dumps(name)} = {_to_value(value)}" for name, value in plain.items()]
    for name, value in inner.items():
        _write_table(lines, (*path, name), value)


def _to_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_to_value(item) for item in value)}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _has(line: Line, fields: Mapping[str, Any]) -> bool:
    return all(line.get(name) == value for name, value in fields.items())


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except FileNotFoundError:
        # Closed since the directory was read.
        return False
