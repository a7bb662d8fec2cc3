"""What the command lines of bench, conformance, soak and fuzz share: their parser, its types, and how they end."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn, get_args

from tests.support.process import EventLoopName

FAILED: Final = 1
INTERRUPTED: Final = 130
LOOPS: Final[tuple[EventLoopName, ...]] = get_args(EventLoopName)


def new_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a tool, whose texts are shown as they are written."""
    return argparse.ArgumentParser(
        prog=name, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_loop(parser: argparse.ArgumentParser) -> None:
    """Add --loop, which may be both; see `loops`."""
    parser.add_argument(
        "--loop", choices=[*LOOPS, "both"], default="both", help="the server's event loop (default %(default)s)"
    )


def loops(options: argparse.Namespace) -> tuple[EventLoopName, ...]:
    """Return the event loops that --loop stands for."""
    return LOOPS if options.loop == "both" else (options.loop,)


def add_output(parser: argparse.ArgumentParser, json: str) -> None:
    """Add --json, whose help is given, and --quiet."""
    parser.add_argument("--json", action="store_true", help=json)
    parser.add_argument("--quiet", action="store_true", help="say nothing on standard error while it runs")


class WholeNumber:
    """An argparse type: a whole number within bounds, both included."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        if not text.isdecimal() or not self._least <= int(text) <= self._most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {self._least} to {self._most}")
        return int(text)


def run(name: str, work: Callable[[], int], *failures: type[Exception]) -> int:
    """Do the work of a tool and return its exit status.

    An exception of `failures` is printed, and makes it FAILED; Ctrl-C makes it INTERRUPTED. SIGTERM raises SystemExit.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except failures as error:
        print(f"{name}: {str(error) or 'not done in time'}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # SystemExit unwinds the context managers, and they end the processes.
    sys.exit(128 + number)
