"""`python -m gateway members`: list the gateways of a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from gateway.client import Client
from gateway.terminal import remote
from gateway.terminal.output import SHORT, as_json, show, since, table, tell


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "members",
        help="list the gateways of the cluster",
        description="List the gateways of the cluster that this gateway belongs to, itself included: for how long each"
        " has run, and how many nodes and connections it has. INSTANCE is the beginning of its id; --json has the"
        " rest. HERE is the one that has answered. Standard error names those that have not, and says if NATS is out of"
        " reach.",
    )
    remote.add_json(parser, "an array, as gateway.info has it; empty if the gateway is alone")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """List the members; returns the exit status."""

    async def work(gateway: Client) -> None:
        info: dict[str, Any] = await gateway.call("gateway.info")
        members = info.get("members", [])
        if info.get("cluster") == "lost":
            tell("this gateway is without NATS, and so without the others")
        elif info.get("events") == "lost":
            tell("JetStream is out of reach: no events are published or heard")
        remote.say_missing(info.get("missing", []))
        if given.json:
            show(as_json(members, indent=2))
            return
        if not members:
            show("this gateway is alone")
            return
        rows = [("NAME", "INSTANCE", "VERSION", "SINCE", "NODES", "CONNECTIONS", "HERE")]
        for one in members:
            counts = str(one["nodes"]), str(one["connections"])
            here = "yes" if one["instance"] == info["server"]["instance"] else ""
            rows.append((one["member"], one["instance"][:SHORT], one["version"], since(one["since"]), *counts, here))
        show(table(rows, spare=("VERSION", "INSTANCE")))

    return remote.run(given, work)
