"""What a principal may do: scopes, and the scopes that each role has by default. Pure.

A scope is ``admin``, or a verb and a pattern of names, such as ``call:camera.*``; see `gateway.names`. ``*`` alone
stands for every scope. Whatever no scope allows is refused. ``serve:`` lets a node serve methods that no other node
has; ``share:`` lets it serve them together with others that may share them, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from gateway.limits import address_key
from gateway.names import OWN, PATTERN, RESERVED, is_part, matches

ADMIN: Final = "admin"
EVERYTHING: Final = "*"
"""The scope that covers all others. Only mode none gives it."""

ANY_CALL: Final = "call:"
"""The scope of a caller that may call at least one method. Every ``call:`` scope covers it."""

_ROLE_SCOPES: Final[dict[str, tuple[str, ...]]] = {
    "operator": ("admin", "call:>", "subscribe:>", "publish:>"),
    "node": ("serve:>",),
    "ui": ("call:>", "subscribe:>"),
}

ROLES: Final = tuple(_ROLE_SCOPES)


def role_scopes(role: str, name: str) -> tuple[str, ...]:
    """Return the scopes of a principal whose credential does not name its scopes.

    A node may publish topics that begin with its own name. A node whose name is more than one part may not: topics
    that begin with ``a.b`` begin with ``a`` as well, and so would belong to a node ``a``, too.
    """
    scopes = _ROLE_SCOPES[role]
    return (*scopes, f"publish:{name}.>") if role == "node" and is_part(name) else scopes


_SCOPE: Final = re.compile(f"(?:call|serve|share|subscribe|publish):{PATTERN}")


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a connection. ``expires_at`` is in seconds since the epoch, None for never."""

    name: str
    role: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    _known: dict[str, bool] = field(init=False, repr=False, compare=False)
    """Remembered answers of `allows`, shared by all principals with the same scopes. Each routed call asks for one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", _known_of(self.scopes))

    def allows(self, scope: str) -> bool:
        """Whether the principal has a scope that covers ``scope``, such as ``call:camera.snapshot`` or ``admin``.

        The gateway's own names are an exception: no principal may serve or publish them, and its topics need the scope
        ``admin``.
        """
        known = self._known.get(scope)
        return self._find_out(scope) if known is None else known

    def _find_out(self, scope: str) -> bool:
        allowed = _allow(self.scopes, scope)
        # Callers may ask for any text. What is asked at a registration only is not worth the room.
        if len(scope) <= _LONGEST and len(self._known) < _MOST and not scope.startswith(("serve:", "share:")):
            self._known[scope] = allowed
        return allowed


def origin(principal: Principal, remote: str) -> str:
    """Return the key under which the gateway accounts for what a connection causes, such as lines of the log.

    It is the principal's name. For a peer that has named no principal, because it owes its credential or none is asked
    for, it is the address (`limits.address_key`). The two never have the same key.
    """
    if principal is ANONYMOUS or principal is NOBODY:
        return f"@{address_key(remote)}"
    return f"={principal.name}"


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
"""The greatest length of a scope whose answer is remembered, in characters."""

_MOST: Final = 200
"""How many answers are remembered for one set of scopes. Every node may have a set of its own."""

NOBODY: Final = Principal("", "", ())
"""The principal of a connection that has not authenticated."""

ANONYMOUS: Final = Principal("anonymous", "operator", (EVERYTHING,))
"""The principal of every connection in mode none."""


@lru_cache(64)
def callable_by(scopes: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what tells whether these scopes allow a call of the method of a node, given its name.

    `Principal.allows` says the same, but would take long for very many names.
    """
    if any(covers(held, "call:>") for held in scopes):
        return lambda name: True
    held = [scope.removeprefix(ANY_CALL) for scope in scopes if scope.startswith(ANY_CALL)]
    names = frozenset(held)
    patterns = "|".join(_expression(pattern) for pattern in held if "*" in pattern or ">" in pattern)
    if not patterns:
        return names.__contains__
    matched = re.compile(patterns).fullmatch
    return lambda name: name in names or matched(name) is not None


def _expression(pattern: str) -> str:
    """Return the regular expression for a pattern: ``*`` is one part, a final ``>`` all that is left."""
    parts = {"*": r"[^.]+", ">": ".+"}
    return r"\.".join(parts.get(part) or re.escape(part) for part in pattern.split("."))


def is_scope(text: str) -> bool:
    """Whether a credential may have this scope: ``admin``, or a verb and a pattern."""
    return text == ADMIN or (text.isprintable() and _SCOPE.fullmatch(text) is not None)


def covers(held: str, wanted: str) -> bool:
    """Whether the scope ``held`` covers the scope ``wanted``.

    Both may have a pattern. ``wanted`` may also be a verb without a name, such as `ANY_CALL`.
    """
    if held in (EVERYTHING, wanted):
        return True
    verb, colon, pattern = held.partition(":")
    wanted_verb, wanted_colon, name = wanted.partition(":")
    return bool(colon and wanted_colon) and verb == wanted_verb and (not name or matches(pattern, name))
