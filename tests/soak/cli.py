"""The command line: `python -m tests.soak`."""

import argparse
import asyncio
import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, get_args

from tests.soak import verdict
from tests.soak.endings import endings
from tests.soak.run import Plan, Result, soak
from tests.support.process import EventLoopName

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
LOOPS: tuple[EventLoopName, ...] = get_args(EventLoopName)
LEAST, MOST = 100, 100_000

RSS = f"{verdict.RSS_ALLOWED[False]:.0%}, over TLS {verdict.RSS_ALLOWED[True]:.0%}"
DESCRIPTION = f"""\
Open connections to a gateway in a process of its own and end them in {len(endings(tls=False))} different ways:
clean, FIN, RST, bad frames, oversize, in the middle of the handshake and so on. Then look at what is left of
them: file descriptors, tasks, the registry, live objects, memory in use, what only the garbage collector frees,
resident memory, and whether each end is in the log, once and with its cause.

Resident memory is read between turns, while no connection is open. It is flat where from {verdict.SETTLED_AFTER}
connections on, or half of them, to the end it grows by no more than {RSS}.
"""
EPILOG = "Exit status: 0 all is as before, 1 something is not, 2 wrong usage, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak, print its report, and return the exit status; SystemExit 2 on wrong usage."""
    options = build_parser().parse_args(arguments)
    loops = LOOPS if options.loop == "both" else (options.loop,)
    signal.signal(signal.SIGTERM, _terminate)
    told: list[dict[str, object]] = []
    status = 0
    try:
        for loop in loops:
            result = _run(options, loop)
            status = FAILED if verdict.problems(result) else status
            told.append(verdict.to_json(result))
            if not options.json:
                print(verdict.to_text(result), flush=True)
    except (AssertionError, TimeoutError) as error:
        print(f"soak: {str(error) or 'not done in time'}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        return INTERRUPTED
    if options.json:
        print(json.dumps(told, indent=1))
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="soak",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--count", type=_count, default=20_000, metavar="N", help="connections in all (default %(default)s)"
    )
    parser.add_argument(
        "--at-once", type=_at_once, default=50, metavar="N", help="connections at a time (default %(default)s)"
    )
    parser.add_argument("--turns", type=_turns, default=20, metavar="N", help="readings (default %(default)s)")
    parser.add_argument(
        "--loop", choices=[*LOOPS, "both"], default="both", help="the gateway's event loop (default %(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="over TLS")
    parser.add_argument(
        "--limit",
        type=_limit,
        default=600.0,
        metavar="S",
        help="seconds after which a run is given up (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object for each loop")
    parser.add_argument("--quiet", action="store_true", help="say nothing on standard error while it runs")
    return parser


def _run(options: argparse.Namespace, loop: EventLoopName) -> Result:
    plan = Plan(options.count, options.turns, options.at_once, loop, options.tls, options.limit)

    def say(text: str) -> None:
        if not options.quiet:
            print(f"{loop}: {text}", file=sys.stderr)

    # The gateway's process prints the end of its log, for tests that fail.
    with contextlib.redirect_stdout(io.StringIO()):
        return asyncio.run(soak(plan, say))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # SystemExit unwinds the context manager, and that ends the gateway.
    sys.exit(TERMINATED)


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, LEAST, MOST)


def _at_once(text: str) -> int:
    return _whole(text, 1, 500)


def _turns(text: str) -> int:
    return _whole(text, 4, 100)


def _limit(text: str) -> float:
    return float(_whole(text, 10, 7200))
