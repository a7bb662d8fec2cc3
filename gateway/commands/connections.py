"""`python -m gateway connections`: list the connections, open or ended, and close one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from gateway.client import CallError, Client
from gateway.errors import NOT_FOUND
from gateway.terminal import remote
from gateway.terminal.output import SHORT, as_json, show, since, span, table

_WHOLE: Final = 36

Row = tuple[str, ...]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = remote.add_parser(
        commands,
        "connections",
        help="list connections, say why others ended, close one",
        description="List the open connections. One that has lost its link may be held for its client: SEEN says so."
        " With --history, list those that have ended, and why, the latest first. Or close one. Needs the scope admin."
        " On a terminal that is too narrow for all columns some are left out; --json tells everything.",
    )
    parser.add_argument("action", nargs="?", choices=("list", "close"), default="list", help="list by default")
    parser.add_argument(
        "conn_id", nargs="?", metavar="CONNID", help="the connection to close: its connId, or the beginning of it"
    )
    parser.add_argument("--reason", metavar="TEXT", help="close: the reason that its client gets")
    parser.add_argument("--history", action="store_true", help="list: the last 1,000 that have ended, and why")
    remote.add_member(parser)
    remote.add_json(parser, "an array, with everything that is known of each")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """List the connections or close one; returns the exit status."""
    if given.action == "close":
        if not given.conn_id:
            given.fail("close needs the CONNID")
        if given.history:
            given.fail("--history is for list")
        return remote.run(given, lambda gateway: _close(gateway, given))
    if given.conn_id is not None or given.reason is not None:
        given.fail("CONNID and --reason are for close")
    return remote.run(given, lambda gateway: _list(gateway, given))


async def _close(gateway: Client, given: argparse.Namespace) -> None:
    member = remote.of_member(given)
    conn_id = await _complete(gateway, given.conn_id, member)
    await gateway.call("connection.close", {"connId": conn_id, "reason": given.reason or "", **member})
    show(as_json({"closed": conn_id}) if given.json else f"closed {conn_id}")


async def _complete(gateway: Client, beginning: str, member: Mapping[str, str]) -> str:
    """Return the connId that begins like this. Raises CallError if there is none, or more than one."""
    if len(beginning) >= _WHOLE:
        return beginning
    # A page begins after `after`. In their order, the first after a text are those that begin with it.
    page = await gateway.call("connection.list", {"after": beginning, "limit": 2, **member})
    found = [one["connId"] for one in page["connections"] if one["connId"].startswith(beginning)]
    if len(found) != 1:
        many = "more than one open connection begins" if found else "no open connection begins"
        raise CallError(NOT_FOUND.code, f"{many} with {beginning!r}", {"code": NOT_FOUND.name, "temporary": False})
    return str(found[0])


async def _list(gateway: Client, given: argparse.Namespace) -> None:
    member = remote.of_member(given)
    found = await (_history(gateway, member) if given.history else _open(gateway, member))
    if given.json:
        show(as_json(found, indent=2))
        return
    headings, row, spare = (_ENDED, _ended, _ENDED_SPARE) if given.history else (_LIVE, _live, _LIVE_SPARE)
    rows = [headings, *map(row, found)]
    if any("member" in one for one in found):  # of a cluster
        rows = [
            (*cells, member) for cells, member in zip(rows, ("MEMBER", *(one["member"] for one in found)), strict=True)
        ]
    show(table(rows, spare=spare))


async def _open(gateway: Client, member: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all open connections, page by page, the oldest first."""
    found = await remote.all_pages(gateway, "connection.list", "connections", member)
    return sorted(found, key=lambda one: str(one["openedAt"]))


async def _history(gateway: Client, member: Mapping[str, str]) -> list[dict[str, Any]]:
    history = await gateway.call("connection.history", {"limit": 1000, **member})
    remote.say_missing(history.get("missing", ()))
    ended: list[dict[str, Any]] = history["connections"]
    return ended


_LIVE: Final = ("CONNID", "NAME", "ROLE", "REMOTE", "OPEN", "SEEN", "IN", "OUT", "CALLS", "OUTBOX")
_LIVE_SPARE: Final = ("OUTBOX", "OUT", "IN", "ROLE", "SEEN")
_ENDED: Final = ("CONNID", "NAME", "REMOTE", "ENDED", "OPEN", "CODE", "CAUSE", "REASON")
_ENDED_SPARE: Final = ("OPEN", "REMOTE")


def _live(one: dict[str, Any]) -> Row:
    return (
        one["connId"][:SHORT],
        one["name"],
        one["role"],
        one["remote"],
        since(one["openedAt"]),
        "held" if one.get("held") else since(one["lastSeenAt"]),
        str(one["messagesIn"]),
        str(one["messagesOut"]),
        str(one["inFlight"]),
        str(one["outboxBytes"]),
    )


def _ended(one: dict[str, Any]) -> Row:
    return (
        one["connId"][:SHORT],
        one["name"],
        one["remote"],
        f"{since(one['closedAt'])} ago",
        span(one["duration"]),
        str(one["code"]),
        one["cause"],
        one["reason"],
    )
