"""The command line: `python -m gateway`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from gateway import __version__, log
from gateway.commands import token
from gateway.config import ConfigError, load, source_of
from gateway.server import serve

EXIT_WRONG_CONFIG: Final = 2
"""Exit status of a wrong configuration and of wrong usage."""

FLAGS: Final = {
    "server.host": "address to listen on",
    "server.port": "port to listen on; 0 takes a free one",
    "log.level": "debug, info, warning or error",
    "log.format": "json, or text for a terminal",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal, or do what a command says; returns the exit status.

    ``arguments`` are those of the process by default.
    """
    given = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = given.run
    return run(given)


def _serve(given: argparse.Namespace) -> int:
    flags: dict[str, object] = {key: getattr(given, key) for key in FLAGS}
    environ = dict(os.environ)
    try:
        config = load(given.config, environ, flags)
        writer = log.configure(config.log)
        return serve(config, lambda key: source_of(key, given.config, environ, flags), environ, writer)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_CONFIG


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as a wrong configuration does."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Name an option that there is not, before what follows it is taken for a command."""
        args = sys.argv[1:] if args is None else list(args)
        words = iter(args)
        for word in words:
            if word == "--" or not word.startswith("-"):
                if self._subparsers is not None or word == "--":
                    break  # a command's words are the command's
                continue
            name, equals, _ = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                self.error(f"unrecognized arguments: {name}")
            if not equals and action.nargs is None:
                next(words, None)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        self.exit(EXIT_WRONG_CONFIG, f"{self.prog}: {line}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gateway",
        allow_abbrev=False,
        description="Serve the gateway until SIGTERM or SIGINT. SIGHUP reloads certificate, tokens and keys.",
        epilog="Every setting is in conf/gateway.toml; the environment sets them as GATEWAY_SERVER__PORT=9000.",
    )
    parser.add_argument("--version", action="version", version=f"aisopod-gateway {__version__}")
    parser.add_argument("--config", metavar="FILE", help="TOML file; GATEWAY_CONFIG names it too")
    for key, meaning in FLAGS.items():
        name = key.removeprefix("server.").replace(".", "-")
        parser.add_argument(f"--{name}", dest=key, metavar=name.rpartition("-")[2].upper(), help=meaning)
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="python -m gateway")
    token.add_to(commands)
    return parser
