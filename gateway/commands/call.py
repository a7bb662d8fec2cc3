"""`python -m gateway call`: call a method and print its result."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client import CallError, Client, Missed, Stream
from gateway.rpc.jsonrpc import UNDECODABLE
from gateway.terminal import remote
from gateway.terminal.lines import lines_of, writable
from gateway.terminal.output import Line, as_json, json_text, readable, show

_QUIET: Final = 1.0
"""Seconds between two updates of the line that shows a running call."""
_BAR: Final = 20
_VALUE: Final = 200
"""How many characters of a progress report are shown at most."""
_MOST: Final = 64 * 1024 * 1024
"""How many bytes of parameters are read at most; a gateway takes 1 MiB by default."""


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "call",
        help="call a method and print its result",
        description="Call a method of the gateway or of a node, and print its result as JSON. On a terminal a result"
        " that is a text is printed as text, with control characters escaped. If standard error is a terminal, it shows"
        " the progress of a long call. Ctrl-C cancels the call, at the node too.",
    )
    parser.add_argument("method", metavar="METHOD", help="such as gateway.info or camera.snap")
    parser.add_argument(
        "params",
        nargs="?",
        metavar="PARAMS",
        help="its parameters, a JSON object or array; @FILE reads them from a file, - from standard input",
    )
    parser.add_argument(
        "--timeout",
        type=remote.seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the result (30); the gateway's own limits also hold. A stream may run longer",
    )
    parser.add_argument("--node", metavar="NODE", help="the node to call, if several serve the method")
    parser.add_argument(
        "--wait",
        type=remote.seconds,
        default=0.0,
        metavar="SECONDS",
        help="with --node: how long to wait for the node if it is not there or does not serve the method yet;"
        " --timeout begins after that",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="print each value that the node sends as it comes, and then the result, unless that is null; a node that"
        " sends too fast waits",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="as --stream, and push the lines of this file to the node, each a text, as fast as it reads them; - is"
        " standard input",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--raw", action="store_true", help="a result that is a text as it is, control characters too; others as JSON"
    )
    form.add_argument("--json", action="store_true", help="the result, or the error, as JSON in one line, texts too")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Call the method; returns the exit status."""
    if given.wait and given.node is None:
        given.fail("--wait is for --node")
    params = None if given.params is None else _params(given)
    if given.stream or given.input is not None:
        return _stream(given, params)

    async def work(gateway: Client) -> None:
        line = Line()
        where: dict[str, Any] = {"node": given.node, "wait": given.wait}
        running = gateway.start(given.method, params, timeout=given.timeout, raw=True, **where)
        shown = _Shown(given.method, line)
        ticking = asyncio.create_task(shown.tick())
        try:
            async for value in running:
                if not isinstance(value, Missed):  # the newest is enough
                    shown.report(value)
            result = await running
        finally:
            ticking.cancel()
            line.clear()
        show(_printed(result, given))

    return remote.run(given, work)


def _stream(given: argparse.Namespace, params: Raw | None) -> int:
    """Call the method as a stream; returns the exit status."""
    if given.input == "-" and given.params == "-":
        given.fail("PARAMS and --input cannot both be standard input")
    descriptor = None if given.input is None else _opened(given)

    signals: list[signal.Signals] = []

    async def work(gateway: Client) -> None:
        _leave_at_signals(signals)
        options: dict[str, Any] = {"node": given.node, "wait": given.wait, "timeout": given.timeout}
        async with gateway.stream(given.method, params, raw=True, **options) as stream:
            showing = asyncio.create_task(_show_all(stream, given))
            pushing = asyncio.create_task(_push_all(stream, descriptor))
            try:
                await asyncio.wait({showing, pushing}, return_when=asyncio.FIRST_COMPLETED)
                if pushing.done() and (wrong := pushing.exception()) is not None:
                    given.fail(f"--input: {wrong}")
                await showing  # what is not pushed by now is for nothing
            finally:
                showing.cancel()
                pushing.cancel()

    status = remote.run(given, work, reconnect=True)
    for number in signals:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return status


def _leave_at_signals(came: list[signal.Signals]) -> None:
    """Cancel this task at SIGTERM and SIGHUP, and note which came.

    The gateway has to hear of the end. It would hold a connection that was lost, and the node's command would run on.
    """
    task = asyncio.current_task()
    assert task is not None

    def leave(number: signal.Signals) -> None:
        came.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            asyncio.get_running_loop().add_signal_handler(number, leave, number)


async def _show_all(stream: Stream, given: argparse.Namespace) -> None:
    """Print the values, each when standard output takes it, and the result, unless it is null."""

    async def shown(value: Raw) -> None:
        with contextlib.suppress(OSError):  # no descriptor, or one that cannot be waited for
            await writable(sys.stdout.fileno())
        show(_printed(value, given, lines=False))

    async for value in stream:
        await shown(value)
    if bytes(result := await stream.result()) != b"null":
        await shown(result)


async def _push_all(stream: Stream, descriptor: int | None) -> None:
    """Push the lines that can be read there; none for None.

    Raises ValueError for a line that cannot be pushed, and OSError.
    """
    with contextlib.suppress(CallError):  # it is over, which `_show_all` tells
        if descriptor is not None:
            async for line in lines_of(descriptor):
                await stream.send(line.decode())
        await stream.end()


def _opened(given: argparse.Namespace) -> int:
    """Return the descriptor of the input. Exits with 2 if it cannot be read."""
    try:
        return sys.stdin.fileno() if given.input == "-" else os.open(given.input, os.O_RDONLY)
    except OSError as error:
        given.fail(f"--input: {given.input}: cannot be read: {error.strerror}")
        raise


def _printed(result: Raw, given: argparse.Namespace, *, lines: bool = True) -> str:
    """Return the result in the form that was asked for, or that suits a terminal or a program.

    JSON keeps what a decoder would lose, such as a last zero and keys that are there twice.
    """
    data = bytes(result)
    if data.startswith(b'"') and (given.raw or (sys.stdout.isatty() and not given.json)):
        text: str = msgspec.json.decode(data)
        return text if given.raw else readable(text)
    return json_text(data, lines=lines and not given.json)


class _Shown:
    """The line on the terminal that shows how far a call is."""

    def __init__(self, method: str, line: Line) -> None:
        self._method = method
        self._line = line
        self._begun = time.monotonic()
        self._progress = ""

    def report(self, value: object) -> None:
        """Show the progress that the node has reported: see `progress_of`."""
        self._progress = progress_of(value)
        self._draw()

    async def tick(self) -> None:
        """Show every second that the call is still running. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_QUIET)
            self._draw()

    def _draw(self) -> None:
        self._line.show(f"{self._method}  {time.monotonic() - self._begun:.0f} s  {self._progress}")


def progress_of(value: object) -> str:
    """Return a progress report for people: a bar for a number from 0 to 1, else its text or JSON."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        full = round(value * _BAR)
        return f"[{'#' * full}{'-' * (_BAR - full)}] {value:4.0%}"
    return value if isinstance(value, str) else as_json(value)[:_VALUE]


def _params(given: argparse.Namespace) -> Raw:
    """Return the parameters, which are passed on as they are. Exits with 2 if they cannot be read."""
    try:
        data = _read(given.params)
        msgspec.json.decode(data, type=dict[str, Raw] | list[Raw])
    except OSError as error:
        given.fail(f"PARAMS: {given.params.removeprefix('@')}: cannot be read: {error.strerror}")
    except (*UNDECODABLE, ValueError) as error:
        given.fail(f"PARAMS: must be a JSON object or array, such as '{{\"width\": 640}}': {error}")
    return Raw(data)


def _read(text: str) -> bytes:
    """Return what the argument stands for. Raises OSError, and ValueError if it is too much or not Unicode."""
    if text != "-" and not text.startswith("@"):
        return text.encode()
    with open(sys.stdin.fileno() if text == "-" else text[1:], "rb", closefd=text != "-") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"this has more than {_MOST} bytes")
    data.decode()
    return data
