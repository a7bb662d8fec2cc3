"""Names: which are well formed, which the gateway reserves for itself, and which a pattern matches. Pure.

Methods and topics have dotted names. A pattern is a dotted name in which ``*`` stands for one part, and a final ``>``
for one or more parts. Principals and nodes have names for people, which may be any text on one line.
"""

from __future__ import annotations

import re
from typing import Final

OWN: Final = "gateway."
"""What the names of the gateway's own topics begin with."""

RESERVED: Final = (OWN, "rpc.", "connection.", "node.", "event.")
"""What the names of the gateway's own methods and topics begin with. No peer may serve or publish such a name."""

MAX_NAME: Final = 200
"""The greatest length of a name or a pattern, in characters."""

_PART: Final = r"[^\s.*>:]+"
PATTERN: Final = rf"(?:(?:{_PART}|\*)\.)*(?:{_PART}|\*|>)"
"""The grammar of a pattern, as a regular expression. It does not limit the length."""

_DOTTED: Final = re.compile(rf"{_PART}(?:\.{_PART})*")
_PATTERN: Final = re.compile(PATTERN)


def is_dotted_name(text: str) -> bool:
    """Whether a method or a topic may have this name. It has no wildcards, and at most `MAX_NAME` characters."""
    return len(text) <= MAX_NAME and text.isprintable() and _DOTTED.fullmatch(text) is not None


def is_part(text: str) -> bool:
    """Whether the text is a dotted name without a dot."""
    return is_dotted_name(text) and "." not in text


def is_pattern(text: str) -> bool:
    """Whether the text is a dotted name, or a pattern of dotted names, of at most `MAX_NAME` characters."""
    return len(text) <= MAX_NAME and text.isprintable() and _PATTERN.fullmatch(text) is not None


def is_peer_name(text: str) -> bool:
    """Whether a principal or a node may have this name.

    It has 1 to `MAX_NAME` printable characters, and no whitespace at either end.
    """
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name.

    The name may itself be a pattern. The result is then whether ``pattern`` matches every name that ``name`` matches.
    """
    parts = name.split(".")
    wanted = pattern.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(
        want == part or (want == "*" and part != ">") for want, part in zip(wanted, parts, strict=True)
    )
