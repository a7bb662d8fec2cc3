"""`python -m gateway token`: make, list and revoke the tokens of a file."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gateway.auth import tokens
from gateway.auth.scopes import ROLES, is_scope, role_scopes
from gateway.auth.tokens import Entry
from gateway.config import ConfigError
from gateway.names import is_part
from gateway.terminal import statuses
from gateway.terminal.output import show, table, tell
from gateway.timestamps import rfc3339_seconds

_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ROLES: Final = "\n".join(f"  {role + ':':10}{' '.join(role_scopes(role, 'NAME'))}" for role in ROLES)
_EPILOG: Final = f"""\
scopes without --scope:
{_ROLES}
  All nodes that serve one method together need share: for it, beside serve:.

examples:
  token --name kitchen-pi --role node --file tokens.toml
  token add porch-pi --role node --scope 'serve:>' --scope 'share:disk.free' \\
      --expires 90d --file tokens.toml
  token list --file tokens.toml
  token revoke kitchen-pi --file tokens.toml
"""
_RELOAD: Final = "a running gateway takes it up after: aisopod-gateway reload"


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "token",
        allow_abbrev=False,
        help="make, list and revoke the tokens of auth.tokens_file",
        description="Make a token and print it, once, because the file keeps only its digest.\n"
        "Or list the tokens of the file, or revoke one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=("add", "list", "revoke"), default="add", help="add by default")
    parser.add_argument("who", nargs="?", metavar="NAME", help="the same as --name")
    parser.add_argument("--file", required=True, metavar="FILE", help="the file that auth.tokens_file names")
    parser.add_argument("--name", metavar="NAME", help="whose token it is; for a node, its name; unique in the file")
    parser.add_argument("--role", choices=ROLES, help="what it may do, unless --scope says so; see below")
    parser.add_argument(
        "--scope",
        action="append",
        type=_scope,
        metavar="SCOPE",
        help="admin, or call:, serve:, share:, subscribe: or publish: with a pattern; may be repeated. It takes"
        " the place of all that the role has by itself",
    )
    parser.add_argument(
        "--expires", type=_expiry, metavar="WHEN", help="2027-01-01, 2027-01-01T12:00:00Z, or from now: 90d, 12h, 30m"
    )
    parser.add_argument("--json", action="store_true", help="list: as JSON")
    parser.set_defaults(run=run, fail=parser.error)


def run(given: argparse.Namespace) -> int:
    """Do what is asked; returns the exit status: 1 if the file cannot be written, 2 if something else is wrong."""
    if given.who is not None:
        if given.name is not None:
            given.fail("NAME and --name are one too many")
        given.name = given.who
    action: Callable[[argparse.Namespace], None] = {"add": _add, "list": _list, "revoke": _revoke}[given.action]
    try:
        action(given)
    except ConfigError as error:
        tell(str(error))
        return statuses.WRONG
    except OSError as error:
        tell(f"{given.file}: cannot be written: {error.strerror}")
        return statuses.FAILED
    return 0


def _add(given: argparse.Namespace) -> None:
    if given.name is None or given.role is None:
        given.fail("a new token needs --name and --role")
    scopes = None if given.scope is None else tuple(given.scope)
    token = tokens.add(given.file, given.name, given.role, scopes, given.expires)
    show(token)
    tell(f"{given.name} is in {given.file}")
    may = role_scopes(given.role, given.name) if scopes is None else scopes
    tell(f"its scopes: {' '.join(may)}")
    if lacks := _lacks(given.role, given.name, scopes):
        tell(f"--scope lets it {', or '.join(lacks)}")
    tell(_RELOAD)


def _lacks(role: str, name: str, scopes: tuple[str, ...] | None) -> list[str]:
    """Return what a node may not do by itself, and the beginning of the scope for it."""
    if role != "node" or scopes is not None:
        return []
    lacks = ["serve methods that another node serves too (share:)", "subscribe (subscribe:)"]
    if not is_part(name):
        lacks.append("publish, because its name is more than one part (publish:)")
    return lacks


def _revoke(given: argparse.Namespace) -> None:
    if given.name is None:
        given.fail("revoke needs the name")
    tokens.revoke(given.file, given.name)
    tell(f"{given.name} is no longer in {given.file}")
    tell(_RELOAD)


def _list(given: argparse.Namespace) -> None:
    entries = tokens.load(given.file, "--file")
    if given.json:
        show(json.dumps([_described(entry) for entry in entries], indent=2))
        return
    rows = [("NAME", "ROLE", "EXPIRES", "SCOPES")]
    for entry in entries:
        who = entry.principal
        expires_at = who.expires_at
        expires = "never" if expires_at is None else rfc3339_seconds(expires_at)
        expired = " (expired)" if expires_at is not None and expires_at <= time.time() else ""
        rows.append((who.name, who.role, expires + expired, " ".join(who.scopes)))
    show(table(rows, wraps=True))


def _described(entry: Entry) -> dict[str, object]:
    who = entry.principal
    expires = None if who.expires_at is None else rfc3339_seconds(who.expires_at)
    return {"name": who.name, "role": who.role, "scopes": who.scopes, "expires": expires, "sha256": entry.sha256}


def _scope(text: str) -> str:
    if not is_scope(text):
        raise argparse.ArgumentTypeError(f'"{text}" is no scope: admin, or such as call:camera.* or serve:>')
    return text


def _expiry(text: str) -> datetime:
    """Type of an argument: a day, a moment, or a time from now. Returns it in UTC, to the second."""
    span = _SPAN.fullmatch(text)
    try:
        if span:
            moment = datetime.now(UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f'"{text}" is no time: 2027-01-01, 2027-01-01T12:00:00Z or 90d') from None
    if moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f'"{text}" is past')
    return moment.replace(microsecond=0)
