"""What a process does before anything else: it opens its standard descriptors, and listens to signals.

`__main__` calls `begin` before it imports anything that takes time, and `over` when the command has ended; `cli` calls
`settle` when it knows the command. In between no signal raises an exception, which would show as a traceback wherever
it happened to strike: in an import, in a callback, in a destructor.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_BY_SIGNAL: Final = 128
"""Exit status of a process that a signal has ended, as shells have it, less the signal's number."""

_asked: list[int] = []
_begun: list[bool] = []
_settled: list[bool] = []


def begin() -> None:
    """Open closed standard descriptors on /dev/null, and note SIGTERM and SIGINT until `settle`. Called once.

    The first process of a container (pid 1) would lose a signal that it has no handler for.
    """
    open_standard_descriptors()
    _begun.append(True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal has no letters for is no failure
    for number in _ENDING:
        signal.signal(number, _note)


def open_standard_descriptors() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed on /dev/null. May be called again.

    Otherwise the next file or socket would take its number, and get the log or a traceback. The streams of `sys` that
    Python left out for this are made.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it has the lowest free number, which is this one
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def settle(*, serves: bool) -> None:
    """Handle signals as the command wants it, and act on one that has come since `begin`. Without `begin` do nothing.

    A process that ``serves`` has nothing to drain yet: it ends with status 0, by SystemExit, until the server listens
    to signals itself. Every other command ends at once, without a word, even as pid 1: by SIGTERM as a process does by
    default, and by SIGINT with the exit status of Ctrl-C.
    """
    if not _begun or _settled:
        return
    _settled.append(True)
    for number in _ENDING:
        signal.signal(number, _leave if serves else _default(number))
    if _asked and serves:
        raise SystemExit(0)
    if _asked:
        os.kill(os.getpid(), _asked[0])


def over() -> None:
    """Ignore signals from now on, because the exit status is known. Without `begin` do nothing."""
    if _begun:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_BY_SIGNAL + number)


def _default(number: int) -> Callable[[int, FrameType | None], object] | signal.Handlers:
    return _end if number == signal.SIGINT or os.getpid() == 1 else signal.SIG_DFL
