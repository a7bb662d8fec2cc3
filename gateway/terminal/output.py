"""What a command prints: text that is safe for a terminal, JSON, tables, and a line that is rewritten in place.

All output goes through `show`, `tell` and `Line`, so that a full disk, or a reader that has gone, is handled in one
place. A linter refuses `print` in the commands.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from gateway.terminal import statuses
from gateway.text import plain

SHORT: Final = 8
"""How many characters of an id a table shows: enough to tell connections, or gateways, apart."""

_NARROWEST: Final = 6
"""How many columns a cell of a table keeps even in the narrowest window."""

_ENOUGH: Final = 24
"""How much of a cell has to be seen before other columns are left out for it."""

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


class OutputFailed(Exception):
    """Standard output cannot be written to. ``error`` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.error = error


def show(text: str) -> None:
    """Print a text and a line break on standard output, at once. Raises OutputFailed."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from None


def tell(text: str) -> None:
    """Print a text and a line break on standard error, at once. If it cannot be written to, the text is lost."""
    _put(f"{text}\n")


def give_up(failure: OutputFailed) -> int:
    """Discard what standard output could not take; returns the exit status, and says why unless the reader has gone."""
    _discard(sys.stdout)
    if failure.error.errno == errno.EPIPE:
        return statuses.PIPE
    tell(str(failure))
    return statuses.FAILED


def _put(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let what is still in the stream go to /dev/null. Otherwise Python tries again at its end, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def as_json(value: object, *, indent: int | None = None) -> str:
    """Return the value as JSON, with unprintable characters escaped; in ASCII if standard output is not in Unicode."""
    return _escaped(json.dumps(value, ensure_ascii=False, indent=indent))


def json_text(data: bytes, *, lines: bool) -> str:
    """Return JSON in one line, or in ``lines`` if it has several values; escaped as by `as_json`.

    Nothing but blanks, and unprintable characters, is written differently from how it came.
    """
    if lines or any(blank in data for blank in b"\t\r\n"):
        with contextlib.suppress(RecursionError):  # what is nested so deeply stays as it is
            data = msgspec.json.format(data, indent=2 if lines else 0)
    return _escaped(data.decode())


def _escaped(text: str) -> str:
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    return "".join(
        c if c == "\n" or (c.isprintable() and (unicode or c.isascii())) else json.dumps(c)[1:-1] for c in text
    )


def readable(text: str) -> str:
    """Return a text of several lines without its last line break, and with all else escaped that is not printable."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.removesuffix("\n").split("\n"))


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which a line can be rewritten."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def table(rows: Iterable[Sequence[str]], *, spare: Sequence[str] = (), wraps: bool = False) -> str:
    """Return lines with aligned columns; the first row has the headings.

    On a terminal the columns with the headings in ``spare`` are left out, one after the other, and then the widest ones
    are cut, until the lines fit. With ``wraps`` the last column is not cut: its words go on in further lines. Elsewhere
    nothing is left out, cut or wrapped.
    """
    columns = [[plain(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(_width, column)) for column in columns]
    if sys.stdout.isatty():
        window = shutil.get_terminal_size().columns
        for heading in spare:
            if _line([min(width, _ENOUGH) for width in widths]) > window:
                index = next(index for index, column in enumerate(columns) if column[0] == heading)
                del columns[index], widths[index]
        while _line(widths) > window and max(widths) > _NARROWEST:
            widths[widths.index(max(widths))] -= 1
    lines = [line for row in zip(*columns, strict=True) for line in (_wrapped(row, widths[-1]) if wraps else [row])]
    return "\n".join(
        "  ".join(_padded(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _wrapped(row: Sequence[str], width: int) -> Iterator[Sequence[str]]:
    """Yield the row, with as many words of its last cell as there is room for, and rows with the other words alone."""
    *others, last = row
    for part in textwrap.wrap(last, width, break_long_words=False, break_on_hyphens=False) or [""]:
        yield (*others, part)
        others = [""] * len(others)


def _line(widths: list[int]) -> int:
    """Return how many columns of the terminal a line takes."""
    return sum(widths) + 2 * (len(widths) - 1)


def since(moment: str, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was, in the two largest units: ``3d 4h``."""
    return span(((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds())


def span(seconds: float) -> str:
    """Return seconds in their two largest units: ``3d 4h``, ``7s``."""
    left = max(0, int(seconds))
    parts: list[tuple[int, str]] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count}{unit}" for count, unit in parts[:2] if count) or "0s"


class Line:
    """A line on standard error that is rewritten in place. Shows nothing if that is not a terminal."""

    def __init__(self) -> None:
        self._shows = is_terminal(sys.stderr)
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the text of the line, cut at the edge of the window."""
        if self._shows:
            room = shutil.get_terminal_size().columns - 1
            _put(f"\r{cut(plain(text), room)}\x1b[K")
            self._shown = True

    def clear(self) -> None:
        """Remove the line. Does nothing if none is shown."""
        if self._shown:
            _put("\r\x1b[K")
            self._shown = False


def cut(text: str, room: int) -> str:
    """Return the text in at most ``room`` columns; a longer one ends in an ellipsis."""
    if _width(text) <= room:
        return text
    kept, used = "", 1
    for character in text:
        used += _width(character)
        if used > room:
            break
        kept += character
    return f"{kept}…"


def _padded(cell: str, width: int) -> str:
    shown = cut(cell, width)
    return shown + " " * (width - _width(shown))


def _width(text: str) -> int:
    """Return the columns that a text takes: two for a wide character (UAX 11), none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
