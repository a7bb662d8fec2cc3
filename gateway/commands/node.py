"""`python -m gateway node`: serve shell commands as methods."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from gateway.client import CallError, Client, ServedCall
from gateway.client.address import line
from gateway.rpc import jsonrpc
from gateway.rpc.jsonrpc import UNDECODABLE
from gateway.terminal import programs, remote
from gateway.terminal.output import tell
from gateway.terminal.programs import ProgramFailed
from gateway.text import plain

_JOBS: Final = 8
_TIMEOUT: Final = 600.0
_FINISHING: Final = 10.0
"""How many seconds running commands have to finish after SIGTERM."""

_SHELL: Final = ("/bin/sh", "-c")


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "node",
        help="serve commands of this machine as methods",
        description="Serve commands as methods until SIGTERM or Ctrl-C. A command gets the parameters as JSON on its"
        " standard input, as they came (null if there are none). What it prints is the result: a text, without its last"
        " line break, whatever it looks like. With METHOD:json=COMMAND it is JSON, which is passed on as it is"
        " printed. That is said here, and not guessed from the output, because the text 3.10 or null would be guessed"
        " wrong on some day. Output that is not UTF-8, or not the JSON that it should be, is an error. An exit"
        " status other than 0 is an error with that code and the last line of standard error. When a command has ended,"
        " what it has left running is ended too, unless it was started with setsid. If the call is a stream, its"
        " command gets what the caller pushes on standard input, a line each, after the parameters if there are any;"
        " each line that it prints is sent at once, and it runs until it ends or its caller has gone.",
    )
    parser.add_argument(
        "--name", type=_name, metavar="NAME", help="the node's name; with a token, the name of that token"
    )
    parser.add_argument(
        "served",
        nargs="+",
        type=_served,
        metavar="METHOD=COMMAND",
        help="such as disk.free='df -h /', or link.state:json='ip -j link'; it is split into words as by a shell, but"
        " no shell runs it",
    )
    parser.add_argument("--shell", action="store_true", help="let /bin/sh run the commands: pipes, variables, globs")
    parser.add_argument(
        "--timeout",
        type=remote.seconds,
        default=_TIMEOUT,
        metavar="SECONDS",
        help=f"a command that runs longer is ended ({_TIMEOUT:.0f}), unless it is for a stream; if its caller has gone,"
        " at once",
    )
    parser.add_argument(
        "--jobs", type=_jobs, default=_JOBS, metavar="N", help=f"how many commands run at a time ({_JOBS}); others wait"
    )
    parser.set_defaults(run=run)


class _Command(NamedTuple):
    """What runs for a method, and what becomes of its output; ``result_of`` raises ProgramFailed."""

    words: Sequence[str]
    result_of: Callable[[bytes], object]


def run(given: argparse.Namespace) -> int:
    """Serve the commands; returns the exit status."""
    commands = _commands(given)

    async def work(gateway: Client) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        jobs = asyncio.Semaphore(given.jobs)
        for method, command in commands.items():
            gateway.method(method)(_answering(command, jobs, given.timeout))
        registered = await gateway.serve(given.name)
        tell(plain(f"{registered['name']} serves {', '.join(registered['methods'])}"))
        await _until(stop, gateway)
        await _finish(gateway, jobs, given.jobs)

    return remote.run(given, work, reconnect=True)


async def _until(stop: asyncio.Event, gateway: Client) -> None:
    """Wait for ``stop``. Raises ConnectionLost if the connection ends for good before that."""
    stopping = asyncio.create_task(stop.wait())
    closing = asyncio.create_task(_closed(gateway))
    try:
        await asyncio.wait({stopping, closing}, return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            await gateway.call("gateway.ping")  # raises, and says why
    finally:
        stopping.cancel()
        closing.cancel()


async def _closed(gateway: Client) -> None:
    async for _ in gateway.states():
        pass


async def _finish(gateway: Client, jobs: asyncio.Semaphore, count: int) -> None:
    """Take no more calls, and let those that run finish. Those that take too long end with the connection."""
    try:
        async with asyncio.timeout(_FINISHING):
            await gateway.call("node.unregister")
            for _ in range(count):
                await jobs.acquire()
    except (TimeoutError, CallError) as error:
        tell(f"commands are ended: {plain(str(error)) or 'they take too long'}")


def _commands(given: argparse.Namespace) -> dict[str, _Command]:
    """Return the command of each method. Exits with 2 if one cannot be run."""
    commands: dict[str, _Command] = {}
    for method, form, command in given.served:
        if method in commands:
            given.fail(f"{method} is there twice")
        try:
            words = [*_SHELL, command] if given.shell else shlex.split(command)
        except ValueError as error:
            given.fail(f"{method}: {error}: {command}")
        if not words or shutil.which(words[0]) is None:
            given.fail(f"{method}: no such program: {words[0] if words else command}")
        commands[method] = _Command(words, _FORMS[form])
    return commands


def _answering(
    command: _Command, jobs: asyncio.Semaphore, timeout: float
) -> Callable[[Any, ServedCall], Awaitable[object]]:
    # The token is for the node, and not for its commands.
    environ = {name: value for name, value in os.environ.items() if name != "GATEWAY_TOKEN"}

    async def answer(params: Any, call: ServedCall) -> object:
        try:
            async with jobs:
                if call.is_stream:
                    await _converse(command, call, environ)
                    return None
                printed = await programs.run(command.words, (call.raw_params or b"null") + b"\n", environ, timeout)
            return command.result_of(printed)
        except ProgramFailed as error:
            data = {"code": "command_failed", "temporary": False, "status": error.status}
            raise CallError(error.status, str(error), data) from None

    return answer


async def _converse(command: _Command, call: ServedCall, environ: Mapping[str, str]) -> None:
    """Run the command of a stream. Raises ProgramFailed, and `CallError` if the stream is over."""

    async def given() -> AsyncIterator[bytes]:
        if call.raw_params:
            yield call.raw_params + b"\n"
        async for value in call:
            yield (value.encode() if isinstance(value, str) else jsonrpc.encode(value)) + b"\n"

    async def take(line: bytes) -> None:
        await call.progress(command.result_of(line))

    await programs.converse(command.words, given(), environ, take)


def text_of(printed: bytes) -> str:
    """Return what a command has printed, without the last line break. Raises ProgramFailed if it is not UTF-8."""
    try:
        return printed.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ProgramFailed(
            programs.WRONG_OUTPUT,
            f"its output is not UTF-8: byte {error.start} is {printed[error.start]:#04x}; base64 would make it a text",
        ) from None


def json_of(printed: bytes) -> Raw:
    """Return the JSON that a command has printed, byte for byte. Raises ProgramFailed if it is not JSON."""
    text_of(printed)
    try:
        return msgspec.json.decode(printed.strip(), type=Raw)
    except UNDECODABLE as error:
        raise ProgramFailed(programs.WRONG_OUTPUT, f"its output is not JSON: {error}") from None


_FORMS: Final[dict[str, Callable[[bytes], object]]] = {"": text_of, "json": json_of}
"""What may follow a method's name after a colon, which no name has, and what then becomes of the output."""


def _served(text: str) -> tuple[str, str, str]:
    """Type of an argument: a method, the form of its output, and its command."""
    named, _, command = text.partition("=")
    method, colon, form = named.partition(":")
    if not method.strip() or not command.strip():
        raise argparse.ArgumentTypeError(f'"{text}" is not METHOD=COMMAND')
    if form not in _FORMS or bool(colon) != bool(form):
        raise argparse.ArgumentTypeError(f'"{named}": only :json may follow the name of a method')
    return method, form, command


def _name(text: str) -> str:
    """Type of an argument: a name in one line."""
    try:
        return line(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _jobs(text: str) -> int:
    """Type of an argument: a number from 1 to 256."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:4]) <= 256:
        raise argparse.ArgumentTypeError(f'"{text}" is no number from 1 to 256')
    return int(text)
