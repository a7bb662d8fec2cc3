"""A real nats-server on loopback, in a process of its own, that can be stopped, killed and started again."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.certs import authority
from tests.support.patience import START, WAIT
from tests.support.reaping import end

INFO: Final = b'INFO {"version":"2.15.1","max_payload":1000,"headers":true}\r\n'
"""What a scripted server says first."""

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ELSEWHERE: Final = "/usr/sbin"
"""Where Debian puts it, which is not on everybody's PATH."""


def program() -> str | None:
    """Return the path of nats-server: the one that is installed beside this Python, or else one of the machine."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""), ELSEWHERE)
    return shutil.which("nats-server", path=os.pathsep.join(places))


def ports(pid: int, directory: Path) -> dict[str, list[str]] | None:
    """Return the URLs that a server listens on, by kind, from its ports file; None as long as that is not written."""
    file = directory / f"nats-server_{pid}.ports"
    if not file.exists() or not (text := file.read_text(encoding="utf-8")).endswith("}"):
        return None
    found: dict[str, list[str]] = json.loads(text)
    return found


class NatsServer:
    """Use it with `async with`: it listens by then, on 127.0.0.1.

    config: lines of a server's configuration, in which `{directory}` is a folder of its own. jetstream: keep streams,
    in that folder. tls: require TLS, with a certificate of tests.support.certs; verify: of the clients, too.
    """

    def __init__(self, config: str = "", *, jetstream: bool = False, tls: bool = False, verify: bool = False) -> None:
        self._config = config
        self._jetstream = jetstream
        self._tls = tls or verify
        self._verify = verify
        self._folder = tempfile.TemporaryDirectory(prefix="nats-test-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        if self._tls:
            authority().issue(self.directory)
            authority().write(self.directory / "ca.pem")
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                self.resume()
                end(self._process, WAIT)
            if error is not None:
                print((self.directory / "log").read_text()[-4000:])
        finally:
            self._folder.cleanup()

    @property
    def directory(self) -> Path:
        """Its folder."""
        return Path(self._folder.name)

    @property
    def url(self) -> str:
        """Where it is: `tls://…` if it requires that."""
        return f"{'tls' if self._tls else 'nats'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, on the port that it had before if there was one."""
        (self.directory / "nats.conf").write_text(self._text())
        self._launch()
        deadline = time.monotonic() + START
        while (found := ports(self._running.pid, self.directory)) is None:
            ended, log = self._running.poll() is not None, (self.directory / "log").read_text()
            taken = ended and self.port and "address already in use" in log[-200:]
            assert (taken or not ended) and time.monotonic() < deadline, log
            await asyncio.sleep(0.01)
            if taken:  # the kernel has given the port to somebody else meanwhile, who lets go of it soon
                self._launch()
        self.port = int(found["nats"][0].rpartition(":")[2])

    def _launch(self) -> None:
        executable = program()
        assert executable is not None, "nats-server is not installed: the extra `test` has it"
        with (self.directory / "log").open("ab") as log:
            command = [executable, "--config", str(self.directory / "nats.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    async def restart(self, config: str | None = None) -> None:
        """End it, if it still runs, and start it again, with another configuration if there is one."""
        self.end()
        self._config = self._config if config is None else config
        await self.start()

    def end(self) -> None:
        """End it, as its service manager would."""
        self.resume()
        end(self._running, WAIT)

    def kill(self) -> None:
        """Kill it."""
        self._running.kill()
        self._running.wait()

    def pause(self) -> None:
        """Let it stand still: it neither reads nor writes, and the kernel takes what is sent to it."""
        self._running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._running.pid, os.WSTOPPED)  # until then some of its threads go on

    def resume(self) -> None:
        """Let it go on. Harmless if it does."""
        self._running.send_signal(signal.SIGCONT)

    def retire(self) -> None:
        """Begin the lame duck mode: it says so, and lets go of its clients soon."""
        self._running.send_signal(signal.SIGUSR2)

    @property
    def _running(self) -> subprocess.Popen[Any]:
        assert self._process is not None
        return self._process

    def _text(self) -> str:
        lines = [f"host: 127.0.0.1\nport: {self.port or -1}\nports_file_dir: {{directory}}", self._config]
        if self._jetstream:
            lines.append("jetstream { store_dir: {directory}/streams }")
        if self._tls:
            lines.append("tls { cert_file: {directory}/server.pem, key_file: {directory}/server.key")
            lines.append("ca_file: {directory}/ca.pem, verify: true }" if self._verify else "}")
        return "\n".join(lines).replace("{directory}", self._folder.name) + "\n"


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """Serve each connection as the script does, and read on until its end. Yields host and port, with a colon."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
            await reader.read()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
