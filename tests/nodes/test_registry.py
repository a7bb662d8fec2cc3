"""The registry of nodes: who serves what, whose turn it is, and who is replaced, in every order of the events."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from gateway import errors
from gateway.auth.scopes import ANONYMOUS, Principal, role_scopes
from gateway.nodes.registry import MAX_BYTES, METHOD_BYTES, Change, Node, Nodes, Served
from gateway.rpc.method import Refusal
from tests.support.rpc import Listing
from tests.support.serving import Unanswered


def served(name: str, summary: str = "", params: bytes = b"") -> Served:
    return Served(name, b'"%b"' % name.encode(), f"call:{name}", summary, params)


class Peer(Listing):
    """A connection that may be a node, without a connection."""

    def __init__(self, conn_id: str = "1", principal: Principal = ANONYMOUS) -> None:
        super().__init__(principal)
        self.conn_id = conn_id
        self.node: Node | None = None

    def busy(self, count: int) -> None:
        """Have that many calls in flight."""
        self.calls = {b"%d" % number: Unanswered(self, b"%d" % number) for number in range(count)}


class Registry(Nodes):
    """A registry that keeps what it tells, with a clock of its own."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.told: list[str] = []
        self.now = 1000.0
        super().__init__(self._went_online, self._went_offline, lambda: self.now, max_bytes=max_bytes)

    def _went_online(self, node: Node, change: Change) -> None:
        assert self.named(node.name) is node, "it is told after the change"
        behind = "" if change.replaced is None else f" for {change.replaced.peer.conn_id}"
        signs = ("+", change.added), ("-", change.removed), ("~", change.changed)
        told = " ".join(f"{sign}{name}" for sign, names in signs for name in names)
        self.told.append(f"{node.name} online by {node.peer.conn_id}{behind}: {told}")

    def _went_offline(self, node: Node) -> None:
        assert self.named(node.name) is None, "it is told after the change"
        self.told.append(f"{node.name} offline by {node.peer.conn_id}")

    def served(self) -> dict[str, Served | None]:
        """Every method that is served, in the order of their names, as one of its nodes describes it."""
        return {name: self.described(name) for name in sorted(self.methods())}

    def take(self) -> list[str]:
        """What was told since this was last asked."""
        told, self.told = self.told, []
        return told

    def enter(self, peer: Peer, name: str, *methods: str, context: bool = False) -> Node | None:
        """Register methods by their names."""
        return self.register(peer, name, map(served, methods), context)


@pytest.fixture
def nodes() -> Registry:
    return Registry()


def serving(nodes: Nodes, method: str, count: int = 1) -> list[str]:
    """The connections that get the next calls of a method, "-" for none."""
    chosen = (nodes.serving(method) for _ in range(count))
    return ["-" if node is None else node.peer.conn_id for node in chosen]


# Register and unregister


def test_an_empty_registry(nodes: Registry) -> None:
    assert (len(nodes), list(nodes.after("")), nodes.served()) == (0, [], {})
    assert nodes.named("pi") is None
    assert nodes.serving("snap") is None
    nodes.unregister(Peer())
    nodes.unregister(Peer(), ["snap"])
    assert nodes.told == []


def test_a_node_is_found_by_its_name_and_by_each_of_its_methods(nodes: Registry) -> None:
    peer = Peer()
    peer.busy(3)
    assert nodes.enter(peer, "pi", "snap", "zoom") is None
    node = nodes.named("pi")
    assert node is not None
    assert peer.node is node
    assert (node.peer, node.since, node.in_flight, node.context) == (peer, 1000.0, 3, False)
    assert list(node.methods.values()) == [served("snap"), served("zoom")]
    assert nodes.serving("snap") is nodes.serving("zoom") is node
    assert nodes.serving("pi") is None
    assert nodes.take() == ["pi online by 1: +snap +zoom"]


def test_methods_are_added_and_described_anew(nodes: Registry) -> None:
    peer = Peer()
    nodes.enter(peer, "pi", "snap")
    first, nodes.now = nodes.named("pi"), 2000.0
    again = [served("snap", "Shoot.", b"{}"), served("zoom")]
    assert nodes.register(peer, "pi", again, True) is None
    node = nodes.named("pi")
    assert node is first
    assert node is not None
    assert (node.since, node.context) == (1000.0, True)
    assert nodes.served() == {"snap": again[0], "zoom": again[1]}
    assert serving(nodes, "snap", 2) == ["1", "1"]
    assert nodes.take() == ["pi online by 1: +snap", "pi online by 1: +zoom ~snap"]
    nodes.unregister(peer, ["snap"])
    assert serving(nodes, "snap") == ["-"], "it was entered twice"


def test_a_registration_that_changes_nothing_is_not_told_and_costs_no_document(nodes: Registry) -> None:
    peer = Peer()
    described = [served("snap", "Shoot.", b"{}"), served("zoom")]
    nodes.register(peer, "pi", described, False)
    nodes.take()
    version, cost = nodes.version, nodes.cost
    for again in (described, described[::-1], described[:1], described * 2, []):
        assert nodes.register(peer, "pi", again, False) is None
    nodes.unregister(peer, ["never there"])
    assert (nodes.take(), nodes.version, nodes.cost) == ([], version, cost)
    nodes.register(peer, "pi", described, True)
    assert (nodes.take(), nodes.version) == ([], version), "how it is called is nothing that others see"
    assert peer.node is not None and peer.node.context
    nodes.register(peer, "pi", [served("snap", "Shoot!", b"{}"), served("zoom"), served("off")], True)
    assert (nodes.take(), nodes.version) == (["pi online by 1: +off ~snap"], version + 1)


def test_a_name_that_goes_to_another_connection_is_told_even_if_it_serves_the_same(nodes: Registry) -> None:
    old, new = Peer("old"), Peer("new")
    nodes.enter(old, "pi", "snap")
    nodes.enter(new, "pi", "snap")
    assert nodes.take() == ["pi online by old: +snap", "pi online by new for old: "]
    assert serving(nodes, "snap") == ["new"]


def test_some_methods_are_taken_back_and_then_the_rest(nodes: Registry) -> None:
    peer = Peer()
    nodes.enter(peer, "pi", "snap", "zoom", "off")
    nodes.take()
    nodes.unregister(peer, ["zoom", "never there", "zoom"])
    assert list(nodes.served()) == ["off", "snap"]
    assert nodes.take() == ["pi online by 1: -zoom"]
    nodes.unregister(peer, ["never there"])
    assert nodes.take() == [], "nothing has changed"
    assert peer.node is nodes.named("pi")
    nodes.unregister(peer, ["snap", "off"])
    assert (peer.node, len(nodes), nodes.served()) == (None, 0, {})
    nodes.unregister(peer)
    assert nodes.take() == ["pi offline by 1"]


def test_all_methods_are_taken_back_at_once_and_the_name_is_free(nodes: Registry) -> None:
    peer, other = Peer("1"), Peer("2")
    nodes.enter(peer, "pi", "snap", "zoom")
    nodes.unregister(peer)
    nodes.unregister(peer)
    assert (peer.node, len(nodes), nodes.served()) == (None, 0, {})
    assert nodes.enter(other, "pi", "snap") is None
    assert nodes.enter(peer, "lamp", "on") is None
    assert nodes.take() == [
        "pi online by 1: +snap +zoom",
        "pi offline by 1",
        "pi online by 2: +snap",
        "lamp online by 1: +on",
    ]


def test_nodes_and_methods_are_listed_by_name(nodes: Registry) -> None:
    for number, name in enumerate(("pi", "attic", "Zoo", "lamp")):
        nodes.enter(Peer(str(number)), name, f"of.{name}", "both")
    assert [node.name for node in nodes.after("")] == ["Zoo", "attic", "lamp", "pi"]
    assert list(nodes.served()) == ["both", "of.Zoo", "of.attic", "of.lamp", "of.pi"]
    assert len(nodes) == 4


def test_the_version_grows_with_each_change_of_what_is_served(nodes: Registry) -> None:
    one, two = Peer("1"), Peer("2")
    changes: tuple[Callable[[], object], ...] = (
        lambda: nodes.enter(one, "pi", "snap"),
        lambda: nodes.enter(one, "pi", "zoom"),
        lambda: nodes.register(one, "pi", [served("zoom", "Come closer.")], False),
        lambda: nodes.enter(two, "pi", "snap"),
        lambda: nodes.unregister(two, ["snap"]),
        lambda: nodes.enter(two, "pi", "snap"),
        lambda: nodes.unregister(two),
    )
    seen = [nodes.version]
    for change in changes:
        change()
        seen.append(nodes.version)
    assert seen == sorted(set(seen))
    nodes.unregister(one)
    nodes.serving("snap")
    assert nodes.version == seen[-1], "nothing has changed"


# Whose turn it is


def test_equals_have_their_turns(nodes: Registry) -> None:
    for number in "123":
        nodes.enter(Peer(number), f"n{number}", "snap")
    assert serving(nodes, "snap", 7) == ["1", "2", "3", "1", "2", "3", "1"]


def test_the_one_with_the_fewest_calls_in_flight_is_chosen(nodes: Registry) -> None:
    peers = {number: Peer(number) for number in "123"}
    for number, peer in peers.items():
        nodes.enter(peer, f"n{number}", "snap")
    for counts, wanted in (
        ({"1": 2, "2": 1, "3": 3}, "2222"),
        ({"1": 0, "2": 9, "3": 0}, "1313"),
        ({"1": 5, "2": 5, "3": 5}, "213213"),
    ):
        for number, count in counts.items():
            peers[number].busy(count)
        assert "".join(serving(nodes, "snap", len(wanted))) == wanted


def test_streams_go_to_nodes_that_know_them_if_there_are_any(nodes: Registry) -> None:
    peers = {number: Peer(number) for number in "1234"}
    for number, peer in peers.items():
        nodes.register(peer, f"n{number}", [served("snap")], False, number in "24")
    assert nodes.streaming("none") is None
    found = [nodes.streaming("snap") for _ in range(4)]
    assert [node.peer.conn_id for node in found if node] == ["2", "4", "2", "4"]
    peers["2"].busy(1)
    assert nodes.streaming("snap") is nodes.streaming("snap") is nodes.named("n4")
    assert sorted(serving(nodes, "snap", 3)) == ["1", "3", "4"], "calls go to any of them"
    for number in "24":
        nodes.register(peers[number], f"n{number}", [served("snap")], False)
    assert nodes.streaming("snap") is not None, "so that the caller is told why"


def test_calls_in_flight_are_shared_out_evenly(nodes: Registry) -> None:
    peers = [Peer(number) for number in "1234"]
    for peer, count in zip(peers, (7, 0, 3, 1), strict=True):
        nodes.enter(peer, f"n{peer.conn_id}", "snap")
        peer.busy(count)
    for _ in range(17):
        node = nodes.serving("snap")
        assert node is not None
        node.peer.calls[f"new {node.in_flight}".encode()] = Unanswered(node.peer, b"")
    assert [len(peer.calls) for peer in peers] == [7, 7, 7, 7]


def test_turns_of_one_method_are_not_those_of_another(nodes: Registry) -> None:
    for number in "12":
        nodes.enter(Peer(number), f"n{number}", "snap", "zoom")
    assert serving(nodes, "snap") == ["1"]
    assert serving(nodes, "zoom", 2) == ["1", "2"]
    assert serving(nodes, "snap", 2) == ["2", "1"]


def test_who_serves_a_method_no_more_is_not_chosen(nodes: Registry) -> None:
    one, two = Peer("1"), Peer("2")
    nodes.enter(one, "a", "snap", "zoom")
    nodes.enter(two, "b", "snap", "zoom")
    nodes.unregister(one, ["snap"])
    assert serving(nodes, "snap", 3) == ["2", "2", "2"]
    assert serving(nodes, "zoom", 2) == ["1", "2"]
    nodes.unregister(two)
    assert (serving(nodes, "snap"), serving(nodes, "zoom")) == (["-"], ["1"])


# What a registration may cost


def cost(nodes: Nodes) -> int:
    """What all registrations cost, counted anew."""
    return sum(entry.octets + METHOD_BYTES for node in nodes.after("") for entry in node.methods.values())


def fill(nodes: Nodes, methods: list[Served]) -> tuple[int, Refusal]:
    """Register up to 900 nodes with these methods. Returns how many there were room for, and the first refusal."""
    for number in range(900):
        try:
            nodes.register(Peer(str(number)), f"n{number}", methods, False)
        except Refusal as refusal:
            return number, refusal
    raise AssertionError("there is room for all")


def test_a_node_says_no_more_than_its_bound_and_a_refusal_changes_nothing() -> None:
    nodes, peer = Registry(max_bytes=100), Peer()
    first = served("a", params=b" " * 60)
    assert first.octets == len('"a"') + len('""') + 60
    nodes.register(peer, "pi", [first], True)
    nodes.take()
    version = nodes.version
    for more in (
        [served("b", "x" * 31)],
        [served("a", params=b" " * 96)],
        [served("b"), served("c", params=b" " * 26)],
    ):
        with pytest.raises(Refusal) as caught:
            nodes.register(peer, "pi", more, False)
        assert (caught.value.error.code, caught.value.error.temporary) == (-32009, False)
        node = nodes.named("pi")
        assert node is not None
        assert (node.methods, node.context, node.octets) == ({"a": first}, True, 65)
    assert (nodes.take(), nodes.version, nodes.cost) == ([], version, cost(nodes))
    nodes.register(peer, "pi", [served("b", "x" * 30)], False)
    nodes.register(peer, "pi", [served("a")], False)
    nodes.register(peer, "pi", [served("c", params=b" " * 55)], False)
    assert nodes.cost == cost(nodes) == 100 + 3 * METHOD_BYTES


def test_a_node_that_is_refused_takes_nobodys_name() -> None:
    nodes, old, new = Registry(max_bytes=100), Peer("old"), Peer("new")
    nodes.enter(old, "pi", "snap")
    with pytest.raises(Refusal):
        nodes.register(new, "pi", [served("zoom", params=b" " * 100)], False)
    with pytest.raises(Refusal):
        nodes.register(new, "lamp", [served("zoom", params=b" " * 100)], False)
    assert ([node.peer.conn_id for node in nodes.after("")], new.node) == (["old"], None)
    assert serving(nodes, "snap") == ["old"]


def test_all_registrations_together_have_a_bound_and_what_is_gone_makes_room() -> None:
    nodes = Registry()
    big = 1 << 20
    count, refusal = fill(nodes, [served("snap", params=b" " * big)])
    assert (refusal.error.code, refusal.error.temporary) == (-32009, True)
    assert (count, len(nodes)) == (63, 63)
    assert MAX_BYTES - big - 1000 < nodes.cost == cost(nodes) <= MAX_BYTES
    newer = Peer("newer")
    assert nodes.register(newer, "n0", [served("snap", params=b" " * big)], False) is not None, "it takes a place over"
    nodes.unregister(newer)
    nodes.register(Peer(), "late", [served("snap", params=b" " * big)], False)
    assert nodes.cost == cost(nodes)
    for node in list(nodes.after("")):
        nodes.unregister(node.peer)
    assert (nodes.cost, len(nodes), nodes.methods()) == (0, 0, [])


def test_very_many_small_methods_cost_more_than_their_names() -> None:
    nodes = Registry()
    names = [served(f"m{number}") for number in range(1000)]
    count, _ = fill(nodes, names)
    assert count == MAX_BYTES // sum(entry.octets + METHOD_BYTES for entry in names)


def test_nodes_come_in_the_order_of_their_names_whatever_comes_and_goes(nodes: Registry) -> None:
    peers = {name: Peer(name) for name in ("b", "a", "d", "c", "ä", "B")}
    for name, peer in peers.items():
        nodes.enter(peer, name, "snap")
    nodes.unregister(peers["c"])
    nodes.enter(Peer("again"), "a", "zoom")
    assert [node.name for node in nodes.after("")] == ["B", "a", "b", "d", "ä"]
    assert [node.name for node in nodes.after("b")] == ["d", "ä"]
    assert [node.name for node in nodes.after("c")] == ["d", "ä"]
    assert list(nodes.after("ä")) == []


# Takeover


def test_the_newer_connection_of_a_name_takes_over(nodes: Registry) -> None:
    old, new = Peer("old"), Peer("new")
    nodes.enter(old, "pi", "snap", "zoom", context=True)
    older, nodes.now = nodes.named("pi"), 2000.0
    assert nodes.enter(new, "pi", "snap", "off") is older
    node = nodes.named("pi")
    assert node is not None
    assert (node.peer, node.since, node.context) == (new, 2000.0, False)
    assert (old.node, new.node) == (None, node)
    assert list(nodes.served()) == ["off", "snap"], "what only the older has served is gone"
    assert serving(nodes, "snap", 2) == ["new", "new"]
    assert nodes.take() == ["pi online by old: +snap +zoom", "pi online by new for old: +off -zoom"]


ORDERS = sorted(
    order
    for order in set(itertools.permutations(("register old", "register new", "close old", "close old")))
    if order.index("register old") < order.index("register new")
)
"""Every order of the ends of the older connection, which may be noticed twice, and of the registrations."""


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
@pytest.mark.parametrize("late", [False, True], ids=["", "the older registers again"])
def test_the_end_of_the_older_never_touches_the_newer(nodes: Registry, order: Iterable[str], late: bool) -> None:
    old, new, other = Peer("old"), Peer("new"), Peer("other")
    nodes.enter(other, "lamp", "snap")
    gone = False
    for event in order:
        if event == "close old":
            nodes.unregister(old)
            gone = True
        elif event == "register new":
            nodes.enter(new, "pi", "snap", "zoom")
        elif not gone:  # nothing that arrives behind a close is acted upon
            nodes.enter(old, "pi", "snap", "zoom")
    if late:
        nodes.unregister(old, ["snap", "zoom"])
        nodes.unregister(old, [])
    node = nodes.named("pi")
    assert node is not None
    assert (node.peer, new.node, old.node) == (new, node, None)
    assert sorted(serving(nodes, "snap", 4)) == ["new", "new", "other", "other"]
    assert serving(nodes, "zoom", 2) == ["new", "new"]
    assert "pi offline by new" not in nodes.told
    nodes.unregister(new)
    nodes.unregister(other)
    assert (len(nodes), nodes.served()) == (0, {})
    assert nodes.told[-2:] == ["pi offline by new", "lamp offline by other"]


def test_a_name_may_be_taken_over_again_and_again(nodes: Registry) -> None:
    peers = [Peer(str(number)) for number in range(6)]
    for peer in peers:
        nodes.enter(peer, "pi", "snap")
    # The older ones go in any order; the one that was replaced last may come back and is then the newest.
    for number in (3, 0, 4):
        nodes.unregister(peers[number])
    assert serving(nodes, "snap") == ["5"]
    replaced = nodes.enter(peers[1], "pi", "snap")
    assert replaced is not None
    assert replaced.peer is peers[5]
    nodes.unregister(peers[5])
    assert serving(nodes, "snap", 2) == ["1", "1"]
    nodes.unregister(peers[1])
    assert (len(nodes), nodes.told[-1]) == (0, "pi offline by 1")


def test_the_registry_ends_no_connection_and_no_call_itself(nodes: Registry) -> None:
    old, new = Peer("old"), Peer("new")
    nodes.enter(old, "pi", "snap")
    old.busy(2)
    nodes.enter(new, "pi", "snap")
    nodes.unregister(old)
    assert (old.ended, len(old.calls), old.sent, new.ended) == (None, 2, [], None)


# Whose a method is


def node_of(name: str, *scopes: str) -> Principal:
    """A node's principal, with its role's own scopes and these."""
    return Principal(name, "node", (*role_scopes("node", name), *scopes))


def enter(nodes: Registry, name: str, *methods: str, share: tuple[str, ...] = (), conn_id: str = "") -> Peer:
    """Register methods as a node with these `share:` scopes. The connection has the node's name, or `conn_id`."""
    peer = Peer(conn_id or name, node_of(name, *(f"share:{pattern}" for pattern in share)))
    nodes.enter(peer, name, *methods)
    return peer


def test_a_method_belongs_to_the_node_that_has_it(nodes: Registry) -> None:
    enter(nodes, "pi", "disk.free", "lamp.on")
    rogue = Peer("rogue", node_of("rogue", "share:>"))
    with pytest.raises(Refusal) as refusal:
        nodes.register(rogue, "rogue", [served(name, "Mine!") for name in ("fan.on", "disk.free", "lamp.on")], False)
    assert refusal.value.error is errors.CONFLICT
    assert refusal.value.data == {"node": "pi", "methods": ["disk.free", "lamp.on"]}
    both = "both need the scope share: to serve a method together"
    assert refusal.value.detail == f"the node pi has disk.free, lamp.on; {both}"
    assert (rogue.node, len(nodes)) == (None, 1), "nothing has changed"
    assert serving(nodes, "disk.free", 300) == ["pi"] * 300
    assert nodes.described("disk.free") == served("disk.free")
    assert nodes.take() == ["pi online by pi: +disk.free +lamp.on"]


@pytest.mark.parametrize(("mine", "yours"), [((), ()), (("disk.*",), ()), ((), (">",)), (("disk.*",), ("lamp.>",))])
def test_one_scope_is_not_enough_to_share(nodes: Registry, mine: tuple[str, ...], yours: tuple[str, ...]) -> None:
    enter(nodes, "pi", "disk.free", share=mine)
    with pytest.raises(Refusal):
        enter(nodes, "nas", "disk.free", share=yours)


def test_nodes_that_may_share_a_method_take_turns(nodes: Registry) -> None:
    for name in ("pi", "nas", "nuc"):
        enter(nodes, name, "disk.free", share=("disk.*",))
    assert serving(nodes, "disk.free", 6) == ["pi", "nas", "nuc"] * 2
    with pytest.raises(Refusal):
        enter(nodes, "rogue", "disk.free")


def test_a_newer_connection_of_the_same_node_has_its_methods_without_any_share(nodes: Registry) -> None:
    old = enter(nodes, "pi", "disk.free", conn_id="old")
    enter(nodes, "pi", "disk.free", conn_id="new")
    assert old.node is None
    assert serving(nodes, "disk.free", 2) == ["new", "new"]


def test_a_node_describes_its_own_method_again(nodes: Registry) -> None:
    peer = enter(nodes, "pi", "disk.free")
    nodes.register(peer, "pi", [served("disk.free", "How much?")], False)
    assert nodes.described("disk.free") == served("disk.free", "How much?")


def test_a_method_is_free_when_its_node_is_gone(nodes: Registry) -> None:
    peer = enter(nodes, "pi", "disk.free", "lamp.on")
    nodes.unregister(peer, ["lamp.on"])
    enter(nodes, "nas", "lamp.on")
    nodes.unregister(peer)
    assert serving(nodes, "disk.free") == ["-"]
    enter(nodes, "nuc", "disk.free")
    assert serving(nodes, "disk.free") == ["nuc"]


def test_who_may_share_no_more_loses_what_others_have_too(nodes: Registry) -> None:
    pi = enter(nodes, "pi", "disk.free", "lamp.on", share=(">",))
    nas = enter(nodes, "nas", "disk.free", share=(">",))
    nodes.rescoped(pi)
    assert serving(nodes, "disk.free", 2) == ["pi", "nas"]
    pi.principal = node_of("pi")
    nodes.rescoped(pi)
    assert (serving(nodes, "disk.free", 2), serving(nodes, "lamp.on")) == (["nas", "nas"], ["pi"])
    nas.principal = node_of("nas")
    nodes.rescoped(nas)
    assert serving(nodes, "disk.free") == ["nas"], "it is alone with it"
    nas.principal = Principal("nas", "node", ("share:>",))
    nodes.rescoped(nas)
    assert (serving(nodes, "disk.free"), nas.node) == (["-"], None)
    nodes.rescoped(nas)


def test_a_full_registration_of_shared_methods_looks_at_one_other_node_of_each(nodes: Registry) -> None:
    asked: list[str] = []

    class Asked(Principal):
        def allows(self, scope: str) -> bool:
            asked.append(scope)
            return True

    names = [f"m.{number}" for number in range(100)]
    for number in range(50):
        nodes.enter(Peer(f"{number}", Asked(f"{number}", "node", ())), f"{number}", *names)
    asked.clear()
    nodes.enter(Peer("last", Asked("last", "node", ())), "last", *names)
    assert len(asked) == 2 * len(names)


# Several gateways


class Told(list[str]):
    """A `Mirror`: what it was told."""

    def online(self, node: Node, change: Change) -> None:
        self.append(f"{node.name} +{','.join(change.added)} -{','.join(change.removed)} ~{','.join(change.changed)}")

    def altered(self, node: Node) -> None:
        self.append(f"{node.name} altered")

    def offline(self, node: Node) -> None:
        self.append(f"{node.name} gone")


class Elsewhere:
    """Another gateway."""

    instance = "another"
    name = "another"


def elsewhere(name: str, *methods: str, stamp: int = 1, principal: Principal = ANONYMOUS) -> Node:
    """A node of another gateway."""
    node = Node(name, Peer(f"{name} elsewhere", principal), 1.0, stamp, Elsewhere())
    node.add({method: served(method) for method in methods})
    return node


def test_other_gateways_are_told_before_events_and_the_log(nodes: Registry) -> None:
    mirror = nodes.mirror = Told()
    nodes.told = mirror
    peer = Peer()
    nodes.enter(peer, "pi", "snap")
    nodes.unregister(peer)
    assert mirror == ["pi +snap - ~", "pi online by 1: +snap", "pi gone", "pi offline by 1"]


def test_a_mirror_is_told_of_all_that_others_have_to_know(nodes: Registry) -> None:
    mirror = nodes.mirror = Told()
    peer = Peer()
    nodes.enter(peer, "pi", "snap", "zoom")
    nodes.enter(peer, "pi", "snap", context=True)
    nodes.enter(peer, "pi", "snap", context=True)
    nodes.register(peer, "pi", [], True, True)
    nodes.register(peer, "pi", [served("zoom", "Come closer.")], True, True)
    nodes.unregister(peer, ["snap"])
    nodes.rescoped(peer)
    nodes.enter(Peer("2"), "pi", "zoom")
    nodes.unregister(peer)
    nodes.unregister(Peer("3"))
    assert mirror == [
        "pi +snap,zoom - ~",
        "pi altered",
        "pi altered",
        "pi + - ~zoom",
        "pi + -snap ~",
        "pi altered",
        "pi + - ~zoom",
    ]


def test_each_registration_has_a_higher_stamp_than_all_before(nodes: Registry) -> None:
    def stamp() -> int:
        peer = Peer()
        nodes.enter(peer, "pi", "snap")
        assert peer.node is not None
        return peer.node.stamp

    assert [stamp(), stamp()] == [1_000_000, 1_000_001]
    nodes.now = 900.0
    assert stamp() == 1_000_002
    nodes.heed(5_000_000)
    nodes.heed(4_000_000)
    assert stamp() == 5_000_001
    nodes.now = 6000.0
    assert stamp() == 6_000_000


def test_a_node_elsewhere_is_a_node_like_others_and_not_told_of(nodes: Registry) -> None:
    node = elsewhere("pi", "snap", "zoom")
    assert nodes.bring(node) is None
    assert (nodes.named("pi"), nodes.serving("zoom"), node.peer.node) == (node, node, node)
    assert nodes.cost == node.cost > 0
    version = nodes.version
    nodes.change(node, {"pan": served("pan"), "snap": served("snap", "Shoot.")}, ["zoom"])
    assert nodes.served() == {"pan": served("pan"), "snap": served("snap", "Shoot.")}
    assert (nodes.cost, nodes.version > version) == (node.cost, True)
    version = nodes.version
    nodes.take_away(node)
    assert (len(nodes), nodes.cost, nodes.methods(), node.peer.node) == (0, 0, [], None)
    assert (sorted(node.methods), nodes.version > version, nodes.told) == (["pan", "snap"], True, [])


def test_a_connection_elsewhere_that_has_another_name_now_is_that_node(nodes: Registry) -> None:
    older, newer = elsewhere("pi", "snap"), elsewhere("po", "snap")
    newer.peer = older.peer
    nodes.bring(older)
    nodes.bring(newer)
    nodes.take_away(older)
    assert newer.peer.node is newer


def test_a_registration_here_takes_the_name_of_a_node_elsewhere(nodes: Registry) -> None:
    node = elsewhere("pi", "snap")
    nodes.bring(node)
    peer = Peer("here")
    assert nodes.enter(peer, "pi", "snap", "zoom") is node
    assert nodes.take() == ["pi online by here for pi elsewhere: +zoom"]
    assert (serving(nodes, "snap", 2), node.peer.node) == (["here", "here"], None)
    assert peer.node is not None
    assert nodes.cost == peer.node.cost


def test_a_node_elsewhere_takes_the_name_of_one_here(nodes: Registry) -> None:
    peer = Peer("here")
    nodes.enter(peer, "pi", "snap", "zoom")
    older = peer.node
    nodes.take()
    node = elsewhere("pi", "zoom", stamp=9_000_000)
    assert nodes.bring(node) is older
    assert (peer.node, serving(nodes, "snap"), serving(nodes, "zoom")) == (None, ["-"], ["pi elsewhere"])
    nodes.unregister(peer)
    assert (nodes.take(), nodes.named("pi"), nodes.cost) == ([], node, node.cost)


def test_the_bound_of_all_registrations_counts_nodes_elsewhere(nodes: Registry) -> None:
    big = elsewhere("big")
    big.add({"big": Served("big", b'"big"', "call:big", "", bytes(MAX_BYTES - METHOD_BYTES))})
    nodes.bring(big)
    with pytest.raises(Refusal) as raised:
        nodes.enter(Peer(), "pi", "snap")
    assert raised.value.error is errors.OVERLOADED


def test_a_method_of_a_node_elsewhere_is_refused_here(nodes: Registry) -> None:
    alone = Principal("alone", "node", role_scopes("node", "alone"))
    nodes.bring(elsewhere("pi", "snap", principal=alone))
    with pytest.raises(Refusal) as raised:
        nodes.enter(Peer(), "po", "snap")
    assert (raised.value.error, raised.value.data["node"]) == (errors.CONFLICT, "pi")


def test_a_credential_that_shares_at_last_ends_a_contest(nodes: Registry) -> None:
    alone = Principal("alone", "node", ("serve:>",))
    peer = Peer("here", alone)
    nodes.enter(peer, "po", "snap")
    node = elsewhere("pi", "snap")
    nodes.bring(node)
    assert nodes.conflicts(node, ["snap"]) == [("snap", peer.node)]
    peer.principal = ANONYMOUS
    nodes.mirror = Told()
    nodes.rescoped(peer)
    assert nodes._serving._contested == set()
    assert nodes.conflicts(node, ["snap"]) == []
    assert serving(nodes, "snap", 2) == ["here", "here"]
