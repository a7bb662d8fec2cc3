"""Finds the patterns that meet a topic, and the topics that a pattern meets, by the parts of their names. Pure.

Neither looks at what begins with other parts, so ten thousand topics and patterns of others cost a lookup nothing. What
is visited is counted in ``visits``, for tests.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from gateway.names import OWN

MAX_PARTS: Final = 12
"""The most parts of a pattern with wildcards. It bounds how many different patterns can meet one topic."""

_ANY: Final = "*"
_REST: Final = ">"

Value = TypeVar("Value")


def is_wild(pattern: str) -> bool:
    """Return whether a pattern has wildcards, rather than being the name of one topic."""
    return _ANY in pattern or pattern.endswith(_REST)


def fits(pattern: str) -> bool:
    """Return whether a pattern has few enough parts: any number without wildcards, otherwise `MAX_PARTS`."""
    return pattern.count(".") < MAX_PARTS or not is_wild(pattern)


class _Node(Generic[Value]):
    """What begins with the same parts. ``values`` are those of the names that end here."""

    __slots__ = ("below", "values")

    def __init__(self) -> None:
        self.below: dict[str, _Node[Value]] = {}
        self.values: dict[str, Value] = {}


class _Tree(Generic[Value]):
    """Values by name, under the parts of the name. The gateway's own names have a root of their own.

    No lookup looks at more than `MAX_PARTS` parts, so longer names end there, side by side.
    """

    def __init__(self) -> None:
        self._roots: tuple[_Node[Value], _Node[Value]] = (_Node(), _Node())
        self.visits = 0

    def root(self, name: str) -> _Node[Value]:
        """Return where a name begins."""
        return self._roots[name.startswith(OWN)]

    def __setitem__(self, name: str, value: Value) -> None:
        node = self.root(name)
        for part in name.split(".")[:MAX_PARTS]:
            below = node.below.get(part)
            if below is None:
                below = node.below[part] = _Node()
            node = below
        node.values[name] = value

    def __delitem__(self, name: str) -> None:
        """Remove a name, with all nodes that nothing needs any more. Raises KeyError if it is not there."""
        path = [self.root(name)]
        parts = name.split(".")[:MAX_PARTS]
        for part in parts:
            path.append(path[-1].below[part])
        del path[-1].values[name]
        for part in reversed(parts):
            node = path.pop()
            if node.below or node.values:
                break
            del path[-1].below[part]


class Patterns(_Tree[Value]):
    """Values by pattern, all of which `fits`."""

    def met_by(self, topic: str) -> list[Value]:
        """Return the values of all patterns that meet a topic."""
        found: list[Value] = []
        parts = topic.split(".")
        level = [self.root(topic)]
        for part in parts[:MAX_PARTS]:
            below = []
            for node in level:
                get = node.below.get
                if (rest := get(_REST)) is not None:
                    found += rest.values.values()
                if (same := get(part)) is not None:
                    below.append(same)
                if (some := get(_ANY)) is not None:
                    below.append(some)
            level = below
            self.visits += len(level)
        if len(parts) <= MAX_PARTS:
            for node in level:
                found += node.values.values()
        return found


class Names(_Tree[Value]):
    """Values by the name of a topic."""

    def met_by(self, pattern: str) -> list[Value]:
        """Return the values of all topics that a pattern with wildcards meets; the pattern `fits`."""
        parts = pattern.split(".")
        rest = parts[-1] == _REST
        if rest:
            parts.pop()
        level = [self.root(pattern)]
        for part in parts:
            if part == _ANY:
                level = [below for node in level for below in node.below.values()]
            else:
                level = [below for node in level if (below := node.below.get(part)) is not None]
            self.visits += len(level)
        if rest:
            return self._under(level)
        return [value for node in level for name, value in node.values.items() if name.count(".") < MAX_PARTS]

    def _under(self, level: list[_Node[Value]]) -> list[Value]:
        found: list[Value] = []
        while level:
            level = [below for node in level for below in node.below.values()]
            self.visits += len(level)
            for node in level:
                if node.values:
                    found += node.values.values()
        return found
