"""The command line: `python -m tests.fuzz`."""

import argparse
import asyncio
import contextlib
import io
import secrets
from collections.abc import Sequence

from tests.fuzz.run import CONFIG, GROWTH, Outcome, fuzz
from tests.support import tool
from tests.support.process import GatewayProcess

DESCRIPTION = f"""\
Send mutated JSON-RPC messages to a gateway in a process of its own: flipped bits, cuts, splices, duplicate members,
deep nesting, surrogates, huge numbers, batches, ids of all kinds, and valid messages in between. A strict reader of
JSON and of the JSON-RPC specification that knows nothing of the gateway says what must become of each. Looked for:

  - a well-formed request that is not answered exactly once, or not as it should be
  - a malformed message that is not answered as the specification says; or, where it is no UTF-8, not closed with 1007
  - any other close, a traceback in the log, words on standard error
  - more than {GROWTH >> 20} MiB of growth of the resident memory after the first tenth of the messages
"""
EPILOG = "Exit status: 0 nothing found, 1 found something, 2 wrong usage, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once and print what was seen. Returns the exit status; SystemExit 2 on wrong usage."""
    options = build_parser().parse_args(arguments)

    def work() -> int:
        print(f"seed {options.seed}", flush=True)
        outcome = asyncio.run(_run(options))
        print(report(outcome))
        return tool.FAILED if outcome.found else 0

    return tool.run("fuzz", work)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = tool.new_parser("fuzz", DESCRIPTION, EPILOG)
    count = tool.WholeNumber(1, 100_000_000)
    parser.add_argument("--messages", type=count, default=100_000, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**9), metavar="S", help="default: another one each time"
    )
    parser.add_argument("--connections", type=count, default=6, metavar="N", help="default %(default)s")
    parser.add_argument("--loop", choices=tool.LOOPS, default="uvloop", help="default %(default)s")
    return parser


async def _run(options: argparse.Namespace) -> Outcome:
    process = GatewayProcess(CONFIG, loop=options.loop, allow_tracebacks=True)
    # At its end the process shows its log: what of it matters is among the findings.
    with contextlib.redirect_stdout(io.StringIO()):
        async with process:
            outcome = await fuzz(process, options.seed, options.messages, options.connections)
    if process.stderr:
        outcome.find("standard error", process.stderr[-2000:])
    return outcome


def report(outcome: Outcome) -> str:
    """The outcome in words."""
    replies = ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.replies.items()))
    first, last = (f"{size / (1 << 20):.1f}" for size in outcome.rss)
    lines = [
        f"{outcome.messages:,} messages, {outcome.bytes / 1e6:,.1f} MB, {outcome.connections:,} connections,"
        f" {outcome.seconds:.0f} s",
        f"replies: {replies}",
        f"resident: {first} MiB when warm, {last} MiB at the end",
    ]
    if outcome.found:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in outcome.found.items())
        lines += [f"found: {counts}", *outcome.findings]
    else:
        lines.append("found: nothing")
    return "\n".join(lines)
