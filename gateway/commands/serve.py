"""`python -m gateway serve`: serve the gateway. It is also the default, without a command."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from gateway.config import Config, ConfigError, load, source_of
from gateway.terminal import statuses
from gateway.terminal.output import tell

FLAGS: Final = {
    "server.host": "address to listen on, or several with commas",
    "server.port": "port to listen on; 0 takes a free one",
    "log.level": "debug, info, warning or error",
    "log.format": "json, or text for a terminal",
}
"""The keys of the configuration that have a flag, with its help."""

DESCRIPTION: Final = "Serve the gateway until SIGTERM or SIGINT. SIGHUP reloads certificate, tokens and keys."
EPILOG: Final = "Every setting is in conf/gateway.toml; the environment sets them as GATEWAY_SERVER__PORT=9000."


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve", allow_abbrev=False, help="serve the gateway, the default", description=DESCRIPTION, epilog=EPILOG
    )
    # A flag before the command holds unless it is given again after the command.
    add_flags(parser, default=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def add_flags(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add --config and the flags of FLAGS. ``default`` is what they are without a value: None or argparse.SUPPRESS."""
    parser.add_argument("--config", metavar="FILE", default=default, help="TOML file; GATEWAY_CONFIG names it too")
    for key, meaning in FLAGS.items():
        option = _option(key)
        metavar = option.rpartition("-")[2].upper()
        parser.add_argument(option, dest=key, metavar=metavar, default=default, help=meaning)


def given_flags(given: argparse.Namespace) -> list[str]:
    """Return the flags of `add_flags` that were given, such as ``--log-level``."""
    return [_option(key) for key in ("config", *FLAGS) if getattr(given, key) is not None]


def settings(given: argparse.Namespace) -> Config:
    """Return the configuration, read from file, environment and flags. Raises ConfigError."""
    return load(given.config, os.environ, _flags(given))


def run(given: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    # Not imported above, because it takes a quarter of a second that the other commands need not wait.
    from gateway.server import serve
    from gateway.telemetry import log

    environ = dict(os.environ)
    try:
        config = settings(given)
        writer = log.configure(config.log)
        return serve(config, lambda key: source_of(key, given.config, environ, _flags(given)), environ, writer)
    except ConfigError as error:
        tell(str(error))
        return statuses.WRONG


def _option(key: str) -> str:
    return "--" + key.removeprefix("server.").replace(".", "-")


def _flags(given: argparse.Namespace) -> dict[str, object]:
    return {key: getattr(given, key) for key in FLAGS}
