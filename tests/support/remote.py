"""Commands of `python -m gateway` that talk to a gateway, run against a GatewayProcess."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self

import pytest

from gateway.cli import main
from tests.support.command import Ended
from tests.support.fleet import until
from tests.support.fork_server import Program
from tests.support.forks import Forked, shared
from tests.support.patience import START
from tests.support.process import ROOT, GatewayProcess, clean_environment
from tests.support.reaping import kill


class Command:
    """`python -m gateway …` as a process that can be talked to. An async context manager; what still runs is killed.

    where: the gateway that GATEWAY_URL names. stdin: what it gets on standard input, which then ends; it stays open
    with `endless`.
    """

    def __init__(
        self,
        *arguments: str,
        where: GatewayProcess | None,
        environ: Mapping[str, str] | None = None,
        stdin: str = "",
        endless: bool = False,
    ) -> None:
        self._arguments = arguments
        self._extra = _url(where) | dict(environ or {})
        self._stdin = stdin.encode()
        self._endless = endless
        self._news = asyncio.Event()
        self.stdout = ""
        """What it has printed so far."""
        self.stderr = ""

    async def __aenter__(self) -> Self:
        self.process = process = await self._start()
        assert process.stdout is not None and process.stderr is not None
        self._reading = [
            asyncio.create_task(self._read("stdout", process.stdout)),
            asyncio.create_task(self._read("stderr", process.stderr)),
        ]
        return self

    async def _start(self) -> asyncio.subprocess.Process | Forked:
        environ = clean_environment() | self._extra
        forks = None if self._endless else shared.get(self._extra)
        if forks is not None:
            return await forks.start(Program("gateway", self._arguments, environ), self._stdin)
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "gateway", *self._arguments)
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environ, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert process.stdin is not None
        process.stdin.write(self._stdin)
        if not self._endless:
            process.stdin.close()
        return process

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await kill(self.process)
        await asyncio.gather(*self._reading)

    async def _read(self, name: str, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            setattr(self, name, getattr(self, name) + line.decode())
            self._news.set()
        self._news.set()

    async def until(self, condition: Callable[[Self], bool]) -> None:
        """Wait for what it says. AssertionError where that does not come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START):
                while not condition(self):
                    self._news.clear()
                    await self._news.wait()
        assert condition(self), f"it said: {self.stdout!r} and {self.stderr!r}"

    async def until_it_reads(self) -> None:
        """Wait until it has read its standard input so far. Only if that is endless."""
        assert isinstance(self.process, asyncio.subprocess.Process) and self.process.stdin is not None
        waiting = self.process.stdin.get_extra_info("pipe")
        await until(lambda: fcntl.ioctl(waiting, termios.FIONREAD, b"1234") == bytes(4), "it does not read")

    async def end(self, number: signal.Signals | None = None) -> Ended:
        """Send it a signal, or none, and wait for its end."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(START):
            await asyncio.gather(*self._reading)
            return Ended(await self.process.wait(), self.stdout, self.stderr)


async def on_a_terminal(where: GatewayProcess | None, *arguments: str) -> str:
    """Run a command on a terminal of 80 columns, where it has to end well; returns what stands there."""
    mine, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=ROOT,
        env=clean_environment() | _url(where) | {"TERM": "xterm", "COLUMNS": ""},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        async with asyncio.timeout(START):
            shown = await asyncio.to_thread(_read_all, mine)
            assert await process.wait() == 0, shown
    finally:
        await kill(process)
        os.close(mine)
    return shown


def _read_all(terminal: int) -> str:
    shown = b""
    with contextlib.suppress(OSError):  # that is how a terminal says that nobody has it open any more
        while part := os.read(terminal, 65_536):
            shown += part
    return shown.decode()


def _url(where: GatewayProcess | None) -> dict[str, str]:
    return {} if where is None else {"GATEWAY_URL": where.url("/ws", websocket=True)}


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Give wrong arguments, within this process; returns the one line on standard error. The status has to be 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1), printed
    return printed.err


async def run(
    where: GatewayProcess | None, *arguments: str, environ: Mapping[str, str] | None = None, stdin: str = ""
) -> Ended:
    """Run a command until it ends."""
    async with Command(*arguments, where=where, environ=environ, stdin=stdin) as command:
        return await command.end()


@contextlib.asynccontextmanager
async def serving(
    where: GatewayProcess, *served: str, name: str = "kitchen-pi", environ: Mapping[str, str] | None = None
) -> AsyncIterator[Command]:
    """Have a node that serves commands; it has registered."""
    async with Command("node", "--name", name, *served, where=where, environ=environ) as node:
        await node.until(lambda node: f"{name} serves" in node.stderr)
        yield node
