"""The connection of a command to a gateway: its address, its credential, and the exit status of its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from gateway.auth.credentials import MAX_CREDENTIAL
from gateway.client import CallError, Client, ConnectionLost, State, connect
from gateway.client.address import DEFAULT_URL, address, flaw
from gateway.terminal import statuses
from gateway.terminal.output import as_json, tell
from gateway.text import plain

_PAGE: Final = 200
_OPENING: Final = 12.0
"""How many seconds connecting may take; one attempt takes 10 at most."""

EPILOG: Final = (
    "The token is in GATEWAY_TOKEN or in the file of --token-file, never in an argument, because other users of"
    " the machine can see that. Exit status: 0 done, 1 the answer was an error, or the output cannot be written,"
    " 2 wrong usage, 3 no connection, 130 Ctrl-C."
)


def add_parser(commands: Any, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
    """Add a command that talks to a gateway to argparse's subparsers, with the options of all such commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, allow_abbrev=False, help=help, description=description, epilog=EPILOG
    )
    parser.add_argument("--url", metavar="URL", help=f"the gateway; GATEWAY_URL names it too ({DEFAULT_URL})")
    parser.add_argument("--token-file", metavar="FILE", help="a file with only the token; read again at each connect")
    parser.add_argument("--cafile", metavar="FILE", help="trust the authorities in this PEM file, and no others")
    parser.add_argument(
        "--proxy",
        metavar="URL",
        help="an HTTP proxy; HTTPS_PROXY (for wss), HTTP_PROXY (for ws) and NO_PROXY count too, '' is none",
    )
    parser.set_defaults(fail=parser.error, json=False)
    return parser


def add_json(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help=help)


def seconds(text: str) -> float:
    """Type of an argument: seconds, above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds above 0')
    return value


def run(given: argparse.Namespace, work: Callable[[Client], Awaitable[None]], *, reconnect: bool = False) -> int:
    """Connect, do the work, and return the exit status; standard error says what went wrong.

    ``reconnect``: connect again after a loss, go on with the connection if that is in time, and say so on standard
    error. Exits with 2 if the URL, the token, the proxy or the file of authorities is wrong.
    """
    url, token = _url(given), _token(given)
    client = _client(given, url, token, reconnect=reconnect)
    try:
        asyncio.run(_main(client, work, url if reconnect else None))
    except ConnectionLost as error:
        tell(f"{url}: {plain(_why(error))}")
        return statuses.UNREACHABLE
    except CallError as error:
        say_error(error, json=given.json)
        return statuses.FAILED
    except UnicodeEncodeError:
        given.fail("an argument is not UTF-8")
    except asyncio.CancelledError:
        return statuses.INTERRUPTED
    return 0


def _client(given: argparse.Namespace, url: str, token: str | Callable[[], str] | None, *, reconnect: bool) -> Client:
    proxy = True if given.proxy is None else given.proxy
    try:
        cafile = given.cafile or None
        client = connect(url, token, reconnect=reconnect, cafile=cafile, proxy=proxy, open_timeout=_OPENING)
    except ValueError as error:
        given.fail(plain(str(error)))
        raise
    logging.getLogger("gateway.client.connection").setLevel(logging.ERROR)  # `_tell` tells of failed attempts
    return client


async def _main(client: Client, work: Callable[[Client], Awaitable[None]], told_as: str | None) -> None:
    telling = None if told_as is None else asyncio.create_task(_tell(client, told_as))
    try:
        async with client:
            with _interruptible():
                await work(client)
    finally:
        if telling is not None:
            telling.cancel()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C cancel this task, so that the gateway hears of the end. A second one does what it would do elsewhere.

    This is no exception, unlike what Python does by default, because an exception could strike in a callback.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, elsewhere)
        loop.call_soon_threadsafe(task.cancel)

    elsewhere = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, elsewhere)


async def _tell(client: Client, url: str) -> None:
    """Say on standard error why there is no connection, once for each reason, and when it is open again."""
    told = ""
    async for state in client.states():
        if state in (State.AWAY, State.WAITING) and client.why != told:
            told = client.why
            tell(f"{url}: {plain(told)}; trying again")
        elif state is State.OPEN and told:
            told = ""
            tell(f"{url}: connected")


def _why(error: ConnectionLost) -> str:
    asked = "; whether it was run is not known" if error.outcome == "unknown" else ""
    return str(error.end) + asked


def say_error(error: CallError, *, json: bool) -> None:
    """Print an error reply on standard error: a line for people, or an object for programs."""
    if json:
        told = {"code": error.code, "name": error.name, "message": error.message, "data": error.data}
        tell(as_json(told))
        return
    known = "; whether it was run is not known" if error.outcome == "unknown" else ""
    name = f" {error.name}" if error.name else ""
    tell(f"error {error.code}{plain(name)}: {plain(error.message)}{known}")


def _url(given: argparse.Namespace) -> str:
    source, text = ("--url", given.url) if given.url else ("GATEWAY_URL", os.environ.get("GATEWAY_URL") or DEFAULT_URL)
    try:
        return address(text)
    except ValueError as error:
        given.fail(f"{source}: {plain(str(error))}")
        raise


def _token(given: argparse.Namespace) -> str | Callable[[], str] | None:
    """Return the token, or the callable that reads it at each connect. Exits with 2 if it cannot be used."""
    if given.token_file is None:
        text = os.environ.get("GATEWAY_TOKEN", "").strip()
        wrong = _what_is_wrong(text) if text else ""
        if wrong:
            given.fail(f"GATEWAY_TOKEN: this is no token: {wrong}")
        return text or None
    path, last = Path(given.token_file), ""

    def token() -> str:
        nonlocal last
        try:
            last = _read(path)
        except ValueError as error:
            if not last:
                given.fail(f"--token-file: {error}")
            tell(f"{plain(str(error))}; the last one is used")
        return last

    token()
    return token


def add_member(parser: argparse.ArgumentParser) -> None:
    """Add the option --member."""
    parser.add_argument(
        "--member",
        metavar="NAME",
        help="only what is connected to this gateway of the cluster; see the command members",
    )


def of_member(given: argparse.Namespace) -> dict[str, str]:
    """Return the parameter of a method that stands for the option --member."""
    return {} if given.member is None else {"member": given.member}


async def all_pages(gateway: Client, method: str, listed: str, params: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what a method lists as its member ``listed``, page by page: all of it, in the method's own order.

    Gateways of a cluster that have not answered are named on standard error.
    """
    found: list[dict[str, Any]] = []
    missing: set[str] = set()
    after: str | None = ""
    while after is not None:
        page = await gateway.call(method, {**params, "after": after, "limit": _PAGE})
        found += page[listed]
        missing.update(page.get("missing", ()))
        after = page["next"]
    say_missing(missing)
    return found


def say_missing(members: Collection[str]) -> None:
    """Say on standard error which gateways of a cluster have not answered, if any."""
    if members:
        tell(f"no answer of {plain(', '.join(sorted(members)))}: what they have is not listed")


def _read(path: Path) -> str:
    """Return the token in a file. Raises ValueError if there is none."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(2 * MAX_CREDENTIAL).strip()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    wrong = _what_is_wrong(text)
    if wrong:
        raise ValueError(f"{path}: must hold the token and nothing else: {wrong}")
    return text


def _what_is_wrong(text: str) -> str:
    """Say why a text cannot be a token; empty if it can."""
    if len(text) > MAX_CREDENTIAL:
        return f"it has more than {MAX_CREDENTIAL} bytes"
    return f"it {wrong}" if (wrong := flaw(text)) else ""
