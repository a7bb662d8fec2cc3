"""`python -m gateway nodes`: list the nodes and what they serve."""

from __future__ import annotations

import argparse
from typing import Any

from gateway.client import Client
from gateway.terminal import remote
from gateway.terminal.output import as_json, show, since, table


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "nodes",
        help="list the nodes and what they serve",
        description="List the nodes: how long they have served, how many calls they have yet to answer, their methods."
        " A node that has lost its link may be held, until it comes back: SINCE says so.",
    )
    remote.add_member(parser)
    remote.add_json(parser, "an array, as node.list gives it page by page")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """List the nodes; returns the exit status."""

    async def work(gateway: Client) -> None:
        nodes = await remote.all_pages(gateway, "node.list", "nodes", remote.of_member(given))
        if given.json:
            show(as_json(nodes, indent=2))
            return
        cluster = any("member" in node for node in nodes)
        rows: list[tuple[str, ...]] = [
            ("NAME", "SINCE", "CALLS", "REMOTE", *(["MEMBER"] if cluster else ()), "METHODS")
        ]
        for node in nodes:
            methods = " ".join(method["name"] for method in node["methods"])
            served = "held" if node.get("held") else since(node["since"])
            where = [node["member"]] if cluster else []
            rows.append((node["name"], served, str(node["inFlight"]), node["remote"], *where, methods))
        show(table(rows, spare=("REMOTE",), wraps=True))

    return remote.run(given, work)
