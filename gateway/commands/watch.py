"""`python -m gateway watch`: print events as they come."""

from __future__ import annotations

import argparse
from typing import Any

from gateway.client import Client, Event, Gap
from gateway.terminal import remote
from gateway.terminal.output import as_json, show, tell
from gateway.text import plain
from gateway.timestamps import rfc3339


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "watch",
        help="print events as they come",
        description="Print the events of topics as they come, a line each, until Ctrl-C. After a lost connection it"
        " reconnects, and prints what was missed. Standard error tells of that, and of gaps.",
    )
    parser.add_argument(
        "topics",
        nargs="+",
        metavar="TOPIC",
        help="such as greenhouse.door; * stands for one part, a last > for one or more: 'greenhouse.*'",
    )
    remote.add_json(parser, "an object in each line: topic, offset, epoch, time, data")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the events; returns the exit status."""

    async def work(gateway: Client) -> None:
        async for event in gateway.subscribe(*given.topics):
            if isinstance(event, Gap):
                tell(f"gap: messages of {plain(event.topic)} are gone")
            elif given.json:
                show(as_json(_described(event)))
            else:
                show(f"{rfc3339(event.time.timestamp())}  {plain(event.topic)}  {as_json(event.data)}")

    return remote.run(given, work, reconnect=True)


def _described(event: Event) -> dict[str, Any]:
    place = {"topic": event.topic, "offset": event.offset, "epoch": event.epoch}
    return place | {"time": rfc3339(event.time.timestamp()), "data": event.data}
