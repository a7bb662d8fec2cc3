"""The command line: `python -m tests.conformance`."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, get_args

from tests.conformance import cases, report
from tests.conformance.testee import MODULES, Testee, TesteeError
from tests.support.process import EventLoopName

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
LOOPS: tuple[EventLoopName, ...] = get_args(EventLoopName)

DESCRIPTION = """\
Run Autobahn's 517 cases against the gateway's links and connections, behind an echo (tests.support.echo), on each
event loop. They are run by kosoku, which needs about five minutes a loop; groups 1 to 7 and 10 take four seconds.

groups:
  1 framing  2 pings and pongs  3 reserved bits  4 opcodes  5 fragmentation  6 UTF-8  7 closing
  9 limits and performance  10 auto-fragmentation  12, 13 compression
"""
EPILOG = """\
Exit status: 0 all cases OK, NON-STRICT, INFORMATIONAL or UNIMPLEMENTED (12 and 13 with --no-compression);
1 a case is not, or the server failed; 2 wrong usage; 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the tables, and return the exit status; SystemExit 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        chosen = cases.select([name for name in options.groups.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, _terminate)
    cases.mend()
    try:
        return _run(options, chosen)
    except TesteeError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("conformance: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="conformance",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--loop", choices=[*LOOPS, "both"], default="both", help="the server's event loop (default %(default)s)"
    )
    parser.add_argument(
        "--groups", default="", metavar="A,B,...", help="such as 1,7.9,9.1.1; all where nothing is said"
    )
    parser.add_argument(
        "--server",
        choices=list(MODULES),
        default="gateway",
        help="aiohttp: a bare aiohttp echo handler, to compare with (default %(default)s)",
    )
    parser.add_argument(
        "--no-compression",
        dest="compression",
        action="store_false",
        help="the server does not offer permessage-deflate",
    )
    parser.add_argument("--jobs", type=_jobs, default=4, metavar="N", help="cases at a time (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with a member for each loop")
    parser.add_argument("--quiet", action="store_true", help="say nothing on standard error while it runs")
    return parser


def _run(options: argparse.Namespace, chosen: dict[str, list[str]]) -> int:
    told: dict[str, object] = {}
    status = 0
    for loop in LOOPS if options.loop == "both" else (options.loop,):
        groups = _run_on(loop, options, chosen)
        if not report.passed(groups):
            status = FAILED
        if options.json:
            told[loop] = report.to_json(groups)
        else:
            deflate = "on" if options.compression else "off"
            print(report.to_text(f"{options.server} on {loop}, permessage-deflate {deflate}", groups), flush=True)
    if options.json:
        print(json.dumps(told, indent=1))
    return status


def _run_on(loop: EventLoopName, options: argparse.Namespace, chosen: dict[str, list[str]]) -> list[cases.Group]:
    groups: list[cases.Group] = []
    with Testee(options.server, loop, compression=options.compression) as testee:
        for name, ids in chosen.items():
            if not options.quiet:
                print(f"{loop}: group {name}, {len(ids)} cases", file=sys.stderr)
            groups.append(asyncio.run(cases.run(testee.url, name, ids, options.jobs)))
    return groups


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # SystemExit unwinds the context manager, and that ends the server.
    sys.exit(TERMINATED)


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 64")
    return int(text)
