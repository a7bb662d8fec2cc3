"""The command line: `python -m tests.conformance`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from tests.conformance import cases, report
from tests.conformance.testee import MODULES, Testee, TesteeError
from tests.support import tool
from tests.support.process import EventLoopName

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
    cases.mend()
    return tool.run("conformance", lambda: _run(options, chosen), TesteeError)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = tool.new_parser("conformance", DESCRIPTION, EPILOG)
    tool.add_loop(parser)
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
    parser.add_argument(
        "--jobs", type=tool.WholeNumber(1, 64), default=4, metavar="N", help="cases at a time (default %(default)s)"
    )
    tool.add_output(parser, "print one JSON object with a member for each loop")
    return parser


def _run(options: argparse.Namespace, chosen: dict[str, list[str]]) -> int:
    told: dict[str, object] = {}
    status = 0
    for loop in tool.loops(options):
        groups = _run_on(loop, options, chosen)
        if not report.passed(groups):
            status = tool.FAILED
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
