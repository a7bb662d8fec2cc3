"""The command line: `python -m tests.soak`."""

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from tests.soak import streams, verdict
from tests.soak.endings import endings
from tests.soak.run import Plan, Result, soak
from tests.support import tool
from tests.support.process import EventLoopName
from tests.support.tool import WholeNumber

Seen = TypeVar("Seen")

LEAST, MOST = 100, 100_000

TORTURES = (
    "tests/system/test_client_faults.py::test_a_kept_connection_loses_and_repeats_nothing",
    "tests/system/test_javascript_keeping.py::test_whatever_the_links_do_each_call_is_run_and_answered_once",
    "tests/system/test_javascript_streams.py::test_a_stream_loses_nothing_through_cuts",
)
"""The tests of connections that outlive their links, which `--cuts` runs in full size."""

RSS = f"{verdict.RSS_ALLOWED[False]:.0%}, over TLS {verdict.RSS_ALLOWED[True]:.0%}"
DESCRIPTION = f"""\
Open connections to a gateway in a process of its own and end them in {len(endings(tls=False))} different ways:
clean, FIN, RST, bad frames, oversize, in the middle of the handshake and so on. Then look at what is left of
them: file descriptors, tasks, the registry, live objects, memory in use, what only the garbage collector frees,
resident memory, and whether each end is in the log, once and with its cause.

Resident memory is read between turns, while no connection is open. It is flat where from {verdict.SETTLED_AFTER}
connections on, or half of them, to the end it grows by no more than {RSS}.
"""
STREAM = (
    f"instead: stream --megabytes in values of {streams.SIZE >> 10} KiB from a node through the gateway to a caller "
    f"that waits {streams.PAUSE * 1000:g} ms after each. After a {streams.STEPS}th of it the memory of gateway, node "
    f"and caller may grow by {streams.ALLOWED >> 20} MiB each. Of a JavaScript client it is what it holds after a "
    f"garbage collection, by {streams.ALLOWED_TO_JAVASCRIPT >> 20} MiB. --count, --at-once, --turns, --tls do nothing"
)
EPILOG = "Exit status: 0 all is as before, 1 something is not, 2 wrong usage, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak, print its report, and return the exit status; SystemExit 2 on wrong usage."""
    options = build_parser().parse_args(arguments)
    if options.cuts:
        return int(pytest.main(["-q", "-s", "--full", *TORTURES]))
    work = _stream if options.stream else _run
    return tool.run("soak", lambda: work(options), AssertionError, TimeoutError)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = tool.new_parser("soak", DESCRIPTION, EPILOG)
    for option, kind, default, meaning in (
        ("--count", WholeNumber(LEAST, MOST), 20_000, "connections in all"),
        ("--at-once", WholeNumber(1, 500), 50, "connections at a time"),
        ("--turns", WholeNumber(4, 100), 20, "readings"),
    ):
        parser.add_argument(option, type=kind, default=default, metavar="N", help=f"{meaning} (default %(default)s)")
    tool.add_loop(parser)
    parser.add_argument("--tls", action="store_true", help="over TLS")
    parser.add_argument(
        "--cuts",
        action="store_true",
        help="instead: cut the links of kept connections hundreds of times, in both clients; no call may be lost, run "
        "twice or answered twice. All other options are ignored",
    )
    parser.add_argument("--stream", action="store_true", help=STREAM)
    parser.add_argument(
        "--megabytes",
        type=WholeNumber(10, 100_000),
        default=210,
        metavar="N",
        help="how much --stream streams (default %(default)s)",
    )
    parser.add_argument(
        "--clients",
        choices=[*streams.LANGUAGES, "both"],
        default="both",
        help="the clients of --stream (default %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=WholeNumber(10, 7200),
        default=600,
        metavar="S",
        help="seconds after which a run is given up (default %(default)s)",
    )
    tool.add_output(parser, "print a JSON array with an object for each loop")
    return parser


def _run(options: argparse.Namespace) -> int:
    told: list[dict[str, object]] = []
    status = 0
    for loop in tool.loops(options):
        result = _run_on(loop, options)
        status = tool.FAILED if verdict.problems(result) else status
        told.append(verdict.to_json(result))
        if not options.json:
            print(verdict.to_text(result), flush=True)
    if options.json:
        print(json.dumps(told, indent=1))
    return status


def _stream(options: argparse.Namespace) -> int:
    told: list[dict[str, object]] = []
    status = 0
    languages = streams.LANGUAGES if options.clients == "both" else (options.clients,)
    for loop, language in itertools.product(tool.loops(options), languages):
        plan = streams.Streaming(options.megabytes, language, loop, options.limit)
        result = _quietly(streams.stream(plan, _say(options, f"{loop}, {language}")))
        status = tool.FAILED if streams.problems(result) else status
        told.append(streams.to_json(result))
        if not options.json:
            print(streams.to_text(result), flush=True)
    if options.json:
        print(json.dumps(told, indent=1))
    return status


def _run_on(loop: EventLoopName, options: argparse.Namespace) -> Result:
    plan = Plan(options.count, options.turns, options.at_once, loop, options.tls, options.limit)
    return _quietly(soak(plan, _say(options, loop)))


def _say(options: argparse.Namespace, prefix: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not options.quiet:
            print(f"{prefix}: {text}", file=sys.stderr)

    return say


def _quietly(work: Coroutine[Any, Any, Seen]) -> Seen:
    """Run it, without the end of its log that the gateway's process prints for tests that fail."""
    with contextlib.redirect_stdout(io.StringIO()):
        return asyncio.run(work)
