"""What a principal may do: scopes, their patterns, and the roles that come with some. Pure.

A scope is ``admin``, or a verb and a pattern: ``call:camera.*``. A pattern's parts are divided by dots; ``*`` stands
for one part, ``>`` for the rest, one part at least. ``*`` alone is every scope. What no scope allows is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from gateway.names import OWN, PATTERN, RESERVED, matches

ADMIN: Final = "admin"
EVERYTHING: Final = "*"
"""The scope that holds all others; only mode none gives it."""

ANY_CALL: Final = "call:"
"""The scope of who may call anything at all."""

ROLE_SCOPES: Final[dict[str, tuple[str, ...]]] = {
    "operator": ("admin", "call:>", "subscribe:>", "publish:>"),
    "node": ("serve:>", "publish:>", "subscribe:>"),
    "ui": ("call:>", "subscribe:>"),
}
"""What a role has of its own, where its credential names no scopes."""


_SCOPE: Final = re.compile(f"(?:call|serve|subscribe|publish):{PATTERN}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a connection belongs to. ``expires_at`` is seconds since the epoch, None for never."""

    name: str
    role: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    _known: dict[str, bool] = field(init=False, repr=False, compare=False)
    """What was asked already: each routed call asks, and mostly the same. Those with the same scopes share it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", _known_of(self.scopes))

    def allows(self, scope: str) -> bool:
        """Whether one of the scopes covers the concrete ``scope``, such as ``call:camera.snapshot`` or ``admin``.

        The gateway's own names are out of every pattern's reach: nobody serves or publishes there, and an admin
        alone subscribes to its topics.
        """
        known = self._known.get(scope)
        return self._find_out(scope) if known is None else known

    def _find_out(self, scope: str) -> bool:
        allowed = _allow(self.scopes, scope)
        if len(scope) <= _LONGEST and len(self._known) < _MOST:  # a caller may ask for any text
            self._known[scope] = allowed
        return allowed


def _allow(scopes: tuple[str, ...], scope: str) -> bool:
    verb, _, name = scope.partition(":")
    if name.startswith(RESERVED):
        if verb in ("serve", "publish"):
            return False
        if verb == "subscribe" and name.startswith(OWN):
            scope = ADMIN
    return any(covers(held, scope) for held in scopes)


@lru_cache(64)
def _known_of(scopes: tuple[str, ...]) -> dict[str, bool]:
    return {}


_LONGEST: Final = 256
"""Characters of a scope that is remembered."""

_MOST: Final = 1000
"""How many answers are remembered for the same scopes."""

NOBODY: Final = Principal("", "", ())
"""Who a connection belongs to that has not authenticated."""

ANONYMOUS: Final = Principal("anonymous", "operator", (EVERYTHING,))
"""Everybody, in mode none."""


def is_scope(text: str) -> bool:
    """Whether ``text`` is a scope that a credential may have: ``admin``, or a verb and a pattern."""
    return text == ADMIN or (text.isprintable() and _SCOPE.fullmatch(text) is not None)


def covers(held: str, wanted: str) -> bool:
    """Whether a held scope, which may be a pattern, covers a wanted one: concrete, a pattern too, or a verb alone."""
    if held in (EVERYTHING, wanted):
        return True
    verb, colon, pattern = held.partition(":")
    wanted_verb, wanted_colon, name = wanted.partition(":")
    return bool(colon and wanted_colon) and verb == wanted_verb and (not name or matches(pattern, name))
