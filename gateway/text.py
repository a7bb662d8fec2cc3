"""Text that others have written, made fit to be shown. Pure."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""Escape what is not printable, such as ``\x1b`` and ``\n``: it must neither break the line nor drive a terminal.

    Backslashes of the text itself stay as they are, so the escaping cannot be undone.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
