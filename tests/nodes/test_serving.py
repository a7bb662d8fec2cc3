"""Whose turn it is among the nodes with a method, and what happens if they may not serve it together."""

from collections import Counter

import pytest

from gateway import errors
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.errors import Disconnect
from gateway.nodes.serving import Serving

ALONE = Principal("alone", "node", ("serve:>",))


class Link:
    barred = False


class Peer:
    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.held: Disconnect | None = None
        self.link = Link()
        self.calls: list[object] = []


class Node:
    """A node without a registry; elsewhere: it is connected to another gateway."""

    def __init__(
        self, name: str, *, share: bool = True, elsewhere: bool = False, streams: bool = False, calls: int = 0
    ) -> None:
        self.name = name
        self.streams = streams
        self.peer = Peer(ANONYMOUS if share else ALONE)
        self.peer.calls = [None] * calls
        self.member = "another" if elsewhere else None

    def hold(self) -> "Node":
        self.peer.held = errors.TRANSPORT_LOST
        return self

    def bar(self) -> "Node":
        self.peer.link.barred = True
        return self

    def __repr__(self) -> str:
        return self.name


@pytest.fixture
def serving() -> Serving[Node]:
    return Serving()


def chosen(serving: Serving[Node], count: int) -> dict[str, int]:
    """How often each node is chosen."""
    nodes = [serving.next("snap") for _ in range(count)]
    return dict(Counter(str(node) for node in nodes))


def test_one_node_has_a_method_and_then_none(serving: Serving[Node]) -> None:
    one = Node("one")
    serving.enter(one, ["snap", "zoom"])
    assert (serving.next("snap"), serving.first("snap"), serving.streaming("snap")) == (one, one, one)
    assert sorted(serving.methods()) == ["snap", "zoom"]
    serving.remove(one, ["snap"])
    assert (serving.next("snap"), serving.first("snap"), serving.streaming("snap")) == (None, None, None)
    assert serving.methods() == ["zoom"]


def test_several_take_turns_and_the_last_one_has_it_alone(serving: Serving[Node]) -> None:
    nodes = [Node(name) for name in "abc"]
    for node in nodes:
        serving.enter(node, ["snap"])
    assert chosen(serving, 9) == {"a": 3, "b": 3, "c": 3}
    for node in nodes[:2]:
        serving.remove(node, ["snap"])
    assert chosen(serving, 3) == {"c": 3}
    serving.remove(nodes[2], ["snap"])
    assert serving.methods() == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Node("first", calls=1), Node("second", calls=2)),
        (Node("first", calls=9), Node("second", elsewhere=True)),
        (Node("first").bar(), Node("second", elsewhere=True)),
        (Node("first", elsewhere=True, calls=9), Node("second").hold()),
        (Node("first", elsewhere=True, calls=9), Node("second", elsewhere=True).hold()),
        (Node("first", elsewhere=True, calls=9), Node("second", elsewhere=True).bar()),
        (Node("first").hold(), Node("second", elsewhere=True).hold()),
    ],
)
def test_an_open_node_goes_before_a_held_one_then_one_here_before_one_elsewhere(
    serving: Serving[Node], first: Node, second: Node
) -> None:
    serving.enter(second, ["snap"])
    serving.enter(first, ["snap"])
    assert chosen(serving, 4) == {"first": 4}


def test_a_stream_goes_to_a_node_that_knows_streams_wherever_it_is(serving: Serving[Node]) -> None:
    plain, elsewhere = Node("plain"), Node("elsewhere", elsewhere=True, streams=True)
    serving.enter(plain, ["snap"])
    serving.enter(elsewhere, ["snap"])
    assert serving.streaming("snap") is elsewhere
    assert serving.next("snap") is plain
    serving.remove(elsewhere, ["snap"])
    serving.enter(Node("other"), ["snap"])
    assert {str(serving.streaming("snap")) for _ in range(2)} == {"plain", "other"}


def test_a_node_that_may_not_share_has_the_method_alone(serving: Serving[Node]) -> None:
    one, other, same = Node("one", share=False), Node("other"), Node("one")
    assert serving.owner(one, "snap") is None
    serving.enter(one, ["snap"])
    assert serving.owner(other, "snap") is one
    assert serving.owner(same, "snap") is None, "it is the same node, by its name"
    assert serving.may_keep(one, "snap")
    serving.enter(other, ["zoom"])
    assert serving.owner(Node("third", share=False), "zoom") is other
    assert serving.owner(Node("third"), "zoom") is None


def test_there_is_no_conflict_between_those_that_may_share(serving: Serving[Node]) -> None:
    nodes = [Node(name) for name in "abc"]
    for node in nodes:
        serving.enter(node, ["snap", f"of.{node}"])
        assert serving.conflicts(node, ["snap", f"of.{node}"]) == []


def test_a_method_is_contested_until_one_gives_way(serving: Serving[Node]) -> None:
    one, two, alone, late = Node("one"), Node("two"), Node("alone", share=False), Node("late")
    serving.enter(one, ["snap"])
    serving.enter(two, ["snap"])
    serving.enter(alone, ["snap"])
    assert serving.conflicts(alone, ["snap"]) == [("snap", one), ("snap", two)]
    assert serving.conflicts(one, ["snap"]) == [("snap", alone)], "whoever stands in between"
    assert serving.owner(late, "snap") is alone
    serving.remove(alone, ["snap"])
    assert serving.owner(late, "snap") is None
    assert serving.conflicts(one, ["snap"]) == []


def test_who_is_left_alone_contests_nothing(serving: Serving[Node]) -> None:
    one, alone = Node("one"), Node("alone", share=False)
    serving.enter(one, ["snap"])
    serving.enter(alone, ["snap"])
    assert serving.conflicts(one, ["snap"]) == [("snap", alone)]
    assert not serving.may_keep(alone, "snap")
    serving.remove(one, ["snap"])
    assert serving.may_keep(alone, "snap")
    assert serving._contested == set()
