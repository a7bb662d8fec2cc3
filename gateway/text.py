"""Makes text from outside fit to be shown. Pure."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""Escape characters that are not printable, such as ``\x1b`` and ``\n``.

    The text can then neither break a line nor control a terminal. Its own backslashes stay as they are, so the escaping
    cannot be undone.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
