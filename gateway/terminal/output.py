"""What a command prints: text that is safe for a terminal, JSON, tables, and a line that is rewritten in place."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TextIO

from gateway.text import plain

_NARROWEST: Final = 6
"""How many columns a cell of a table keeps even in the narrowest window."""

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def as_json(value: object, *, indent: int | None = None) -> str:
    """Return the value as JSON, with unprintable characters escaped; in ASCII if standard output is not in Unicode."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    text = json.dumps(value, ensure_ascii=not unicode, indent=indent)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which a line can be rewritten."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return lines with aligned columns; the first row has the headings.

    On a terminal the widest columns are cut until the lines fit. Elsewhere nothing is cut.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > room and max(widths) > _NARROWEST:
            widths[widths.index(max(widths))] -= 1
    return "\n".join(
        "  ".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


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
            sys.stderr.write(f"\r{cut(plain(text), room)}\x1b[K")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Remove the line. Does nothing if none is shown."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
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
