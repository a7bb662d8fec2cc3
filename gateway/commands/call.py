"""`python -m gateway call`: call a method and print its result."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client import Client
from gateway.rpc.jsonrpc import UNDECODABLE
from gateway.terminal import remote
from gateway.terminal.output import Line, as_json

_QUIET: Final = 1.0
"""Seconds after which a call counts as a long one, and is shown to be running."""
_BAR: Final = 20
_VALUE: Final = 200
"""Characters of a progress report that are shown at most."""


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "call",
        help="call a method and print its result",
        description="Call a method, the gateway's or a node's, and print its result as JSON. While a long call runs"
        " its progress is shown on standard error, where that is a terminal. Ctrl-C cancels the call at the node too.",
    )
    parser.add_argument("method", metavar="METHOD", help="such as gateway.info or camera.snap")
    parser.add_argument(
        "params",
        nargs="?",
        type=_params,
        metavar="PARAMS",
        help="its parameters, a JSON object or array; - reads them from standard input",
    )
    parser.add_argument(
        "--timeout",
        type=remote.seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the result (30); the gateway's own limits hold besides",
    )
    parser.add_argument("--node", metavar="NODE", help="which node is to do it, where several serve the method")
    remote.add_json(parser, "the result, or the error, in one line")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Call it; returns the exit status."""

    async def work(gateway: Client) -> None:
        line = Line()
        running = gateway.start(given.method, given.params, timeout=given.timeout, node=given.node)
        shown = _Shown(given.method, line)
        ticking = asyncio.create_task(shown.tick())
        try:
            async for value in running:
                shown.report(value)
            result = await running
        finally:
            ticking.cancel()
            line.clear()
        print(as_json(result, indent=None if given.json else 2), flush=True)

    return remote.run(given, work)


class _Shown:
    """The line that tells how far a call is."""

    def __init__(self, method: str, line: Line) -> None:
        self._method = method
        self._line = line
        self._begun = time.monotonic()
        self._progress = ""

    def report(self, value: object) -> None:
        """The node has told how far it is: a part of 1 is drawn as a bar, other JSON shown as it is."""
        self._progress = progress_of(value)
        self._draw()

    async def tick(self) -> None:
        """Show each second that the call is still running, until cancelled."""
        while True:
            await asyncio.sleep(_QUIET)
            self._draw()

    def _draw(self) -> None:
        self._line.show(f"{self._method}  {time.monotonic() - self._begun:.0f} s  {self._progress}")


def progress_of(value: object) -> str:
    """A progress report as a person sees it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        full = round(value * _BAR)
        return f"[{'#' * full}{'-' * (_BAR - full)}] {value:4.0%}"
    return value if isinstance(value, str) else as_json(value)[:_VALUE]


def _params(text: str) -> Raw:
    """An argument's type: a JSON object or array, handed on as it is."""
    try:
        data = (sys.stdin.read() if text == "-" else text).encode()
        msgspec.json.decode(data, type=dict[str, Raw] | list[Raw])
    except (*UNDECODABLE, UnicodeError) as error:
        raise argparse.ArgumentTypeError(
            f"must be a JSON object or array, such as '{{\"width\": 640}}': {error}"
        ) from None
    return Raw(data)
