"""The index of names and patterns: what it finds, how little it looks at, and that it keeps nothing."""

import itertools
import random

import pytest

from gateway.events.index import MAX_PARTS, Names, Patterns, fits, is_wild
from gateway.events.topics import meets


@pytest.mark.parametrize(
    ("pattern", "wild"), [("a", False), ("a.b", False), ("*", True), (">", True), ("a.*.b", True), ("a.>", True)]
)
def test_which_patterns_have_wildcards(pattern: str, wild: bool) -> None:
    assert is_wild(pattern) == wild


def test_a_pattern_with_wildcards_has_so_many_parts_at_most() -> None:
    parts = ["a"] * MAX_PARTS
    assert fits(".".join([*parts, *parts]))
    assert fits(".".join([*parts[1:], "*"]))
    assert not fits(".".join([*parts, "*"]))
    assert not fits(".".join([*parts, ">"]))


def random_name(chance: random.Random, alphabet: str) -> str:
    """Mostly short, sometimes about as long as patterns may be."""
    length = chance.choice((1, 2, 2, 3, 3, MAX_PARTS - 1, MAX_PARTS, MAX_PARTS + 1))
    head = chance.choice(("gateway", "a", "b"))
    return ".".join([head, *(chance.choice(alphabet) for _ in range(length - 1))])


def random_pattern(chance: random.Random) -> str:
    parts = random_name(chance, "ab*").split(".")[:MAX_PARTS]
    parts[0] = chance.choice((parts[0], "*"))
    parts[-1] = chance.choice((parts[-1], ">", "*"))
    return ".".join(parts)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_meets_and_keeps_nothing(seed: int) -> None:
    chance = random.Random(seed)
    names: Names[str] = Names()
    patterns: Patterns[str] = Patterns()
    fresh = len(repr_of(names)), len(repr_of(patterns))
    there: set[str] = set()
    asked: set[str] = set()
    for _ in range(2000):
        name, pattern = random_name(chance, "ab"), random_pattern(chance)
        if name in there:
            there.remove(name)
            del names[name]
        else:
            there.add(name)
            names[name] = name
        if is_wild(pattern):
            if pattern in asked:
                asked.remove(pattern)
                del patterns[pattern]
            else:
                asked.add(pattern)
                patterns[pattern] = pattern
            assert sorted(names.met_by(pattern)) == sorted(name for name in there if meets(pattern, name))
        assert sorted(patterns.met_by(name)) == sorted(pattern for pattern in asked if meets(pattern, name))
    for name in there:
        del names[name]
    for pattern in asked:
        del patterns[pattern]
    assert (len(repr_of(names)), len(repr_of(patterns))) == fresh


def repr_of(tree: Names[str] | Patterns[str]) -> list[str]:
    """The parts of all nodes."""
    nodes = [tree.root("a"), tree.root("gateway.a")]
    found: list[str] = []
    while nodes:
        below = nodes.pop().below
        found += below
        nodes += below.values()
    return found


def test_whatever_patterns_there_are_a_topic_visits_so_many_nodes_at_most() -> None:
    """All patterns of twelve parts that meet it, and all that are longer than they look."""
    patterns: Patterns[str] = Patterns()
    for parts in itertools.product("a*", repeat=MAX_PARTS):
        patterns[".".join(parts)] = "".join(parts)
    assert len(patterns.met_by(".".join("a" * 100))) == 0
    assert len(patterns.met_by(".".join("a" * MAX_PARTS))) == 2**MAX_PARTS
    assert patterns.visits <= 2 * 2 ** (MAX_PARTS + 1)
