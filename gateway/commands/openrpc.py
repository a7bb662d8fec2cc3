"""`python -m gateway openrpc`: print what may be called, as an OpenRPC document."""

from __future__ import annotations

import argparse
from typing import Any

from gateway.client import Client
from gateway.terminal import remote
from gateway.terminal.output import as_json, show


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "openrpc",
        help="print what may be called, as an OpenRPC document",
        description="Print all methods that this token may call, those of nodes included, as an OpenRPC 1.3 document,"
        " which is the answer of rpc.discover.",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the document; returns the exit status."""

    async def work(gateway: Client) -> None:
        show(as_json(await gateway.call("rpc.discover"), indent=2))

    return remote.run(given, work)
