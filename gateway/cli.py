"""The command line. `__main__` begins the process."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Container, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway import __version__
from gateway.commands import (
    call,
    check,
    completion,
    connections,
    members,
    node,
    nodes,
    openrpc,
    reload,
    serve,
    token,
    watch,
)
from gateway.terminal import output, parts, startup, statuses
from gateway.text import plain

_OPTION: Final = re.compile(r"--?[^\W\d]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, `serve` by default; returns the exit status.

    ``arguments`` are those of the process by default. Exits with 2 if they are wrong. A standard output that cannot be
    written to is told here, for all commands.
    """
    try:
        return _run(arguments)
    except output.OutputFailed as failure:
        return output.give_up(failure)


def _run(arguments: Sequence[str] | None) -> int:
    program = Path(sys.argv[0]).name
    parser = _parser(completion.SCRIPT if program == completion.SCRIPT else "python -m gateway")
    given = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = given.run
    if run not in (serve.run, check.run) and serve.given_flags(given):
        parser.error(f"{' '.join(serve.given_flags(given))}: for serve and check only")
    if run in (serve.run, check.run, token.run) and (lacking := parts.lacking()):
        parser.exit(statuses.WRONG, f"{parser.prog}: {parts.advice(lacking)}\n")
    startup.settle(serves=run is serve.run)
    return run(given)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as for a wrong configuration."""

    commands: Container[str] = ()
    """The names of the commands: what follows one is for the command."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an argument; a shell completes it by what its metavar says it is."""
        return completion.completed(super().add_argument(*args, **kwargs))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown option before argparse takes the word after it for a command."""
        args = sys.argv[1:] if args is None else list(args)
        for word in takewhile(lambda word: word != "--" and word not in self.commands, args):
            name = word.partition("=")[0]
            if _OPTION.match(name) and name not in self._option_string_actions:
                self.error(f"unrecognized arguments: {name}")
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or the version; argparse itself hides that it could not be printed."""
        (output.show if file is sys.stdout else output.tell)(message.removesuffix("\n"))

    def error(self, message: str) -> NoReturn:
        """Print the message on one line and exit with status 2."""
        self.exit(statuses.WRONG, f"{self.prog}: {plain(message)}; see --help\n")


class _CommandParser(_Parser):
    """Takes options and other words in any order; argparse alone misses an optional word after an option."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the options first, then the words that are left."""
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, allow_abbrev=False, description=serve.DESCRIPTION, epilog=serve.EPILOG)
    parser.add_argument("--version", action="version", version=f"aisopod-gateway {__version__}")
    serve.add_flags(parser)
    parser.set_defaults(run=serve.run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog=program, parser_class=_CommandParser)
    parser.commands = commands.choices
    for command in (serve, call, watch, nodes, connections, members, node, token, reload, check, openrpc):
        command.add_to(commands)
    completion.add_to(commands, _parser)
    return parser
