"""The command line: `python -m gateway`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from gateway import __version__, log
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
    """Serve until a signal; returns the exit status. ``arguments`` are those of the process by default."""
    given = _parser().parse_args(arguments)
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

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(EXIT_WRONG_CONFIG, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gateway",
        allow_abbrev=False,
        description="Serve the gateway until SIGTERM or SIGINT. SIGHUP reloads the certificate.",
        epilog="Every setting is in conf/gateway.toml; the environment sets them as GATEWAY_SERVER__PORT=9000.",
    )
    parser.add_argument("--version", action="version", version=f"aisopod-gateway {__version__}")
    parser.add_argument("--config", metavar="FILE", help="TOML file; GATEWAY_CONFIG names it too")
    for key, meaning in FLAGS.items():
        name = key.removeprefix("server.").replace(".", "-")
        parser.add_argument(f"--{name}", dest=key, metavar=name.rpartition("-")[2].upper(), help=meaning)
    return parser
