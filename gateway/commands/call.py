"""`python -m gateway call`: call a method and print its result."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client import Client, Missed
from gateway.rpc.jsonrpc import UNDECODABLE
from gateway.terminal import remote
from gateway.terminal.output import Line, as_json

_QUIET: Final = 1.0
"""Seconds between two updates of the line that shows a running call."""
_BAR: Final = 20
_VALUE: Final = 200
"""How many characters of a progress report are shown at most."""


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "call",
        help="call a method and print its result",
        description="Call a method of the gateway or of a node, and print its result as JSON. If standard error is a"
        " terminal, it shows the progress of a long call. Ctrl-C cancels the call, at the node too.",
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
        help="how long to wait for the result (30); the gateway's own limits also hold",
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
    remote.add_json(parser, "the result, or the error, in one line")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Call the method; returns the exit status."""
    if given.wait and given.node is None:
        given.fail("--wait is for --node")

    async def work(gateway: Client) -> None:
        line = Line()
        running = gateway.start(given.method, given.params, timeout=given.timeout, node=given.node, wait=given.wait)
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
        print(as_json(result, indent=None if given.json else 2), flush=True)

    return remote.run(given, work)


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


def _params(text: str) -> Raw:
    """Type of an argument: a JSON object or array, passed on as it is."""
    try:
        data = (sys.stdin.read() if text == "-" else text).encode()
        msgspec.json.decode(data, type=dict[str, Raw] | list[Raw])
    except (*UNDECODABLE, UnicodeError) as error:
        raise argparse.ArgumentTypeError(
            f"must be a JSON object or array, such as '{{\"width\": 640}}': {error}"
        ) from None
    return Raw(data)
