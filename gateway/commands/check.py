"""`python -m gateway check`: check the configuration without serving."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gateway.commands.serve import add_flags, settings
from gateway.config import Config, ConfigError
from gateway.terminal import statuses
from gateway.terminal.output import show, tell
from gateway.text import plain


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="check the configuration as serve would",
        description="Check the configuration as serve would: the file, the environment, the flags, and the files that"
        " they name (certificate, tokens, keys, modules with methods). It checks neither whether the port is free, nor"
        " what NATS says.",
        epilog="Exit status: 0 all is well, 2 something is wrong. Standard error says what, and what would be right.",
    )
    add_flags(parser, default=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Check the configuration; returns the exit status."""
    from gateway.app import create_app

    try:
        config = settings(given)
        create_app(config)
    except ConfigError as error:
        tell(str(error))
        return statuses.WRONG
    source = given.config or os.environ.get("GATEWAY_CONFIG") or "no file, the defaults"
    cluster = f", in the cluster {config.cluster.name}" if config.cluster.nats else ""
    where = f"serve would listen on {_address(config)}{cluster}, auth.mode is {config.auth.mode}"
    show(f"{plain(source)}: all is well; {where}")
    return 0


def _address(config: Config) -> str:
    server = config.server
    if server.unix_socket:
        return f"unix:{plain(server.unix_socket)}"
    hosts = (f"[{host}]" if ":" in host else host for host in server.hosts)
    addresses = " and ".join(f"{host}:{server.port}" for host in hosts)
    return f"{addresses}{' with TLS' if server.tls_cert else ''}"
