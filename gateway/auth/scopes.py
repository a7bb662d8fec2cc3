"""What a principal may do: scopes, and the scopes that each role has by default. Pure.

A scope is ``admin``, or a verb and a pattern of names, such as ``call:camera.*``; see `gateway.names`. ``*`` alone
stands for every scope. Whatever no scope allows is refused. ``serve:`` lets a node serve methods that no other node
has; ``share:`` lets it serve them together with others that may share them, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from gateway.limits import address_key
from gateway.names import OWN, PATTERN, RESERVED, is_part

ADMIN: Final = "admin"
EVERYTHING: Final = "*"
"""The scope that covers all others. Only mode none gives it."""

ANY_CALL: Final = "call:"
"""The scope of a caller that may call at least one method. Every ``call:`` scope covers it."""

MAX_SCOPES: Final = 1000
"""The most scopes that a JWT may have."""

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


_ANY: Final = "*"
_REST: Final = ">"
_SCOPE: Final = re.compile(f"(?:call|serve|share|subscribe|publish):{PATTERN}")


class _Branch:
    """The patterns of one verb that begin with the same parts. ``ends`` is whether one of them ends here."""

    __slots__ = ("below", "ends")

    def __init__(self) -> None:
        self.below: dict[str, _Branch] = {}
        self.ends = False

    def enter(self, pattern: str) -> None:
        """Add a pattern."""
        branch = self
        for part in pattern.split("."):
            below = branch.below.get(part)
            if below is None:
                below = branch.below[part] = _Branch()
            branch = below
        branch.ends = True

    def matches(self, name: str) -> bool:
        """Whether a pattern matches this name, or every name that it matches if it is a pattern (`names.matches`)."""
        level = [self]
        for part in name.split("."):
            below: list[_Branch] = []
            for branch in level:
                get = branch.below.get
                if get(_REST) is not None:
                    return True
                if (same := get(part)) is not None:
                    below.append(same)
                if part not in (_ANY, _REST) and (some := get(_ANY)) is not None:
                    below.append(some)
            level = below
        return any(branch.ends for branch in level)


class Grant:
    """What a set of scopes covers. ``known`` remembers what `Principal.allows` has found out.

    The patterns are kept by their parts, so that a question costs little even if there are very many scopes.
    """

    __slots__ = ("_everything", "_scopes", "_verbs", "known")

    def __init__(self, scopes: Iterable[str]) -> None:
        self._scopes = frozenset(scopes)
        self._everything = EVERYTHING in self._scopes
        self._verbs: dict[str, _Branch] = {}
        for scope in self._scopes:
            verb, colon, pattern = scope.partition(":")
            if colon:
                self._verbs.setdefault(verb, _Branch()).enter(pattern)
        self.known: dict[str, bool] = {}

    def covers(self, wanted: str) -> bool:
        """Whether one of the scopes covers the scope ``wanted``.

        It may have a pattern, or be a verb without a name, such as `ANY_CALL`.
        """
        if self._everything or wanted in self._scopes:
            return True
        verb, colon, name = wanted.partition(":")
        branch = self._verbs.get(verb) if colon else None
        return branch is not None and (not name or branch.matches(name))

    @property
    def callable(self) -> Callable[[str], bool]:
        """What tells whether the scopes allow a call of the method of a node, given its name.

        `Principal.allows` says the same, but would take long for very many names.
        """
        if self.covers("call:>"):
            return lambda name: True
        names = frozenset(scope.removeprefix(ANY_CALL) for scope in self._scopes if scope.startswith(ANY_CALL))
        if not any(_ANY in name or _REST in name for name in names):
            return names.__contains__
        matches = self._verbs["call"].matches
        return lambda name: name in names or matches(name)


@lru_cache(64)
def granted(scopes: tuple[str, ...]) -> Grant:
    """Return what these scopes cover."""
    return Grant(scopes)


@lru_cache(64)
def callable_by(scopes: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what tells whether these scopes allow a call of the method of a node, given its name."""
    return granted(scopes).callable


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a connection. ``expires_at`` is in seconds since the epoch, None for never."""

    name: str
    role: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    _grant: Grant = field(init=False, repr=False, compare=False)
    _known: dict[str, bool] = field(init=False, repr=False, compare=False)
    """Remembered answers of `allows`, shared by all principals with the same scopes. Each routed call asks for one."""

    def __post_init__(self) -> None:
        grant = granted(self.scopes)
        object.__setattr__(self, "_grant", grant)
        object.__setattr__(self, "_known", grant.known)

    def allows(self, scope: str) -> bool:
        """Whether the principal has a scope that covers ``scope``, such as ``call:camera.snapshot`` or ``admin``.

        The gateway's own names are an exception: no principal may serve or publish them, and its topics need the scope
        ``admin``.
        """
        known = self._known.get(scope)
        return self._find_out(scope) if known is None else known

    def _find_out(self, scope: str) -> bool:
        allowed = _allow(self._grant, scope)
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


def _allow(grant: Grant, scope: str) -> bool:
    verb, _, name = scope.partition(":")
    if name.startswith(RESERVED):
        if verb in ("serve", "publish"):
            return False
        if verb == "subscribe" and name.startswith(OWN):
            scope = ADMIN
    return grant.covers(scope)


_LONGEST: Final = 256
"""The greatest length of a scope whose answer is remembered, in characters."""

_MOST: Final = 200
"""How many answers are remembered for one set of scopes. Every node may have a set of its own."""

NOBODY: Final = Principal("", "", ())
"""The principal of a connection that has not authenticated."""

ANONYMOUS: Final = Principal("anonymous", "operator", (EVERYTHING,))
"""The principal of every connection in mode none."""


def is_scope(text: str) -> bool:
    """Whether a credential may have this scope: ``admin``, or a verb and a pattern."""
    return text == ADMIN or (text.isprintable() and _SCOPE.fullmatch(text) is not None)
