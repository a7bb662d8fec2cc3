"""`python -m gateway reload`: let a running gateway read its certificate, tokens and keys again."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from gateway.terminal import statuses
from gateway.terminal.output import show, tell
from gateway.text import plain

_UNIT: Final = "gateway.service"
_ASKING: Final = 10.0
"""Seconds that systemctl and journalctl may take."""
_WAIT: Final = 10.0
"""Seconds in which the log should say what came of it."""
_PAUSE: Final = 0.2
_RELOADED: Final = "server.reloaded"
_FAILED: Final = "server.reload_failed"
_CAUGHT: Final = "SigCgt:"
"""In /proc/PID/status (proc(5)): the signals that a process has handlers for, as a mask in hexadecimal digits."""


class _Failed(Exception):
    """It cannot be done. ``status`` is the exit status; ``str()`` says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reload",
        allow_abbrev=False,
        help="let a running gateway read its tokens, keys and certificate again",
        description="Send SIGHUP to a running gateway, which then reads its certificate, and the tokens or keys of"
        " [auth], again. Connections whose credential is gone are closed; if one of the files is wrong, all stays as"
        " it was. The process is that of a systemd unit, or of --pid. If its log is in the journal, and may be read,"
        " this says what came of it.",
        epilog="Exit status: 0 the signal is sent, and nothing is known to have failed; 1 the reload failed, or the"
        " process may not be signalled; 2 wrong usage; 3 no such gateway.",
    )
    parser.add_argument("--unit", metavar="UNIT", help=f"the unit of systemd ({_UNIT})")
    parser.add_argument("--pid", type=_pid, metavar="PID", help="the process, in place of a unit")
    parser.set_defaults(run=run, fail=parser.error)


def run(given: argparse.Namespace) -> int:
    """Send the signal, and say what came of it as far as that can be known; returns the exit status."""
    if given.pid is not None and given.unit is not None:
        given.fail("--pid and --unit are one too many")
    try:
        pid = given.pid or _main_process(given.unit or _UNIT)
        readable = bool(_logged(pid, 0.0, newest=True))
        sent = time.time()
        _signal(pid)
        show(f"process {pid}: {_outcome(pid, sent) if readable else _unknown('its log')}")
    except _Failed as failure:
        tell(plain(str(failure)))
        return failure.status
    return 0


def _main_process(unit: str) -> int:
    """Return the process of a unit of systemd. Raises _Failed if there is none."""
    asked = _output_of("systemctl", "show", "--property=ActiveState,MainPID", "--", unit)
    if asked is None:
        raise _Failed(statuses.UNREACHABLE, "systemd does not answer here; --pid names the process of the gateway")
    told = dict(line.split("=", 1) for line in asked.splitlines() if "=" in line)
    pid = told.get("MainPID", "0")
    if not pid.isdigit() or int(pid) == 0:
        state = told.get("ActiveState", "unknown")
        raise _Failed(statuses.UNREACHABLE, f"{unit} has no process: it is {state}; --unit or --pid names another one")
    return int(pid)


def _signal(pid: int) -> None:
    """Send SIGHUP. Raises _Failed if that is no gateway which listens to it, because others would end by it."""
    try:
        process = os.pidfd_open(pid)  # from here on the number means this process
    except (OSError, OverflowError):
        raise _Failed(statuses.UNREACHABLE, f"there is no process {pid}") from None
    try:
        if not _listens(pid):
            raise _Failed(statuses.UNREACHABLE, f"process {pid} is no gateway that serves; nothing was sent")
        signal.pidfd_send_signal(process, signal.SIGHUP)
    except ProcessLookupError:
        raise _Failed(statuses.UNREACHABLE, f"process {pid} has ended") from None
    except PermissionError:
        raise _Failed(statuses.FAILED, f"process {pid} is another user's, and may not be signalled; as root?") from None
    finally:
        os.close(process)


def _listens(pid: int) -> bool:
    """Whether the process looks like a gateway, and has a handler for SIGHUP."""
    try:
        of_gateway = b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in state.splitlines() if line.startswith(_CAUGHT)), "0")
    return of_gateway and bool(int(caught, 16) & 1 << signal.SIGHUP - 1)


def _outcome(pid: int, sent: float) -> str:
    """Return what the log says of the reload, or that it says nothing. Raises _Failed if the reload failed."""
    until = time.monotonic() + _WAIT
    while time.monotonic() < until:
        for line in _logged(pid, sent):
            if _FAILED in line:
                raise _Failed(statuses.FAILED, f"process {pid}: {_field(line, 'reason', 'the reload failed')}")
            if _RELOADED in line:
                return f"the reload is done; connections that it has closed: {_field(line, 'revoked', '?')}"
        time.sleep(_PAUSE)
    return _unknown("its log, which has said nothing so far,")


def _unknown(log: str) -> str:
    return f"SIGHUP is sent; {log} says what came of it ({_RELOADED} or {_FAILED})"


def _logged(pid: int, since: float, *, newest: bool = False) -> list[str]:
    """Return the lines of the process that journald has taken since a time; with ``newest`` the last one alone."""
    few = ["--lines=1"] if newest else []
    printed = _output_of("journalctl", "--quiet", "--output=json", f"--since=@{int(since)}", *few, f"_PID={pid}")
    lines = map(_decoded, (printed or "").splitlines())
    return [str(line.get("MESSAGE")) for line in lines if int(line.get("__REALTIME_TIMESTAMP", 0)) >= since * 1e6]


def _field(line: str, name: str, otherwise: str) -> str:
    """Return a field of a line of the log, which is JSON, or a text of ``name=value`` if ``log.format`` says so."""
    found = re.search(rf"\b{name}=(.*)", line)
    return found[1] if found else str(_decoded(line).get(name, otherwise))


def _decoded(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _output_of(*words: str) -> str | None:
    """Run a program; returns what it prints, or None if it cannot be run, fails, or takes too long."""
    try:
        ended = subprocess.run(words, capture_output=True, timeout=_ASKING, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.decode(errors="replace")


def _pid(text: str) -> int:
    """Type of an argument: the number of a process."""
    if not text.isascii() or not text.isdigit() or int(text[:10]) == 0:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of a process')
    return int(text[:10])
