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


def json_plain(text: str) -> str:
    r"""Escape what is not printable in a JSON text that has no blank space outside of its strings, such as ``\u2028``.

    Decoding gives the same value as before. Lone surrogates, which a decoder may refuse, are escaped too.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
