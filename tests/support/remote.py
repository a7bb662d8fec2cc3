"""Commands of `python -m gateway` that talk to a gateway, run against a GatewayProcess."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self

import pytest

from gateway.cli import main
from tests.support.command import Ended
from tests.support.fork_server import Program
from tests.support.forks import Forked, shared
from tests.support.patience import START
from tests.support.process import ROOT, GatewayProcess, clean_environment
from tests.support.reaping import kill


class Command:
    """`python -m gateway …` as a process that can be talked to. An async context manager; what still runs is killed.

    where: the gateway that GATEWAY_URL names. stdin: what it gets on standard input.
    """

    def __init__(
        self, *arguments: str, where: GatewayProcess | None, environ: Mapping[str, str] | None = None, stdin: str = ""
    ) -> None:
        self._arguments = arguments
        url = {} if where is None else {"GATEWAY_URL": where.url("/ws", websocket=True)}
        self._extra = url | dict(environ or {})
        self._stdin = stdin.encode()
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
        forks = shared.get(self._extra)
        if forks is not None:
            return await forks.start(Program("gateway", self._arguments, environ), self._stdin)
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "gateway", *self._arguments)
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environ, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert process.stdin is not None
        process.stdin.write(self._stdin)
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

    async def end(self, number: signal.Signals | None = None) -> Ended:
        """Send it a signal, or none, and wait for its end."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(START):
            await asyncio.gather(*self._reading)
            return Ended(await self.process.wait(), self.stdout, self.stderr)


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
