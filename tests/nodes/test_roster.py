"""What gateways know of each other's nodes, step by step, with a NATS that is driven by hand."""

import logging
from typing import Any

import msgspec
import pytest

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster.alive import Member
from gateway.nodes import pages, roster
from gateway.nodes.pages import PAGE
from gateway.nodes.registry import MAX_BYTES, METHOD_BYTES, Node, Served
from gateway.nodes.roster import PATIENCE, TRIES
from gateway.rpc.method import Refusal
from tests.support.roster import Cluster, Far, Own, Site, described

SHARING = Principal("sharing", "node", ("serve:>", "share:>"))
ALONE = Principal("alone", "node", ("serve:>",))


class Clock:
    """Seconds since the epoch, as each gateway believes."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House(Cluster):
    """Gateways that know each other."""

    def __init__(self, count: int = 2, **options: Any) -> None:
        self.clock = Clock()
        super().__init__(count, self.clock, **options)
        self.peers = 0
        for site in self.sites:
            site.join()
        self.run()
        for site in self.sites:
            site.turn()
            site.turn()
            site.turn()
        self.run()

    def peer(self, site: int, principal: Principal = SHARING) -> Own:
        """A new connection of one of them."""
        self.peers += 1
        return Own(self.sites[site], f"c{self.peers}", principal)

    def enter(self, site: int, name: str, *methods: str, principal: Principal = SHARING) -> Own:
        """A new node of one of them. Nothing has been heard of it elsewhere."""
        peer = self.peer(site, principal)
        assert peer.site.register(peer, name, map(described, methods))
        return peer

    def said(self, site: int, to: int) -> list[bytes]:
        """What is on its way from one to another, of whichever kind."""
        line = self.broker.lines.get((self.sites[site].wire, self.sites[to].wire), ())
        return [payload for _, payload in line]

    def kill(self, which: int) -> None:
        """Cut one off, so that the others take it for lost."""
        self.sites[which].part()
        for site in self.sites:
            for member in list(site.members.others.values()):
                if member.instance == self.sites[which].members.instance:
                    site.members.unreachable(member)

    def owners(self, name: str) -> list[str]:
        """The connection that has a name, as each of them knows; "-" for none."""
        nodes = [site.nodes.named(name) for site in self.sites]
        return ["-" if node is None else node.peer.conn_id for node in nodes]

    def serving(self, method: str) -> list[str]:
        """The names of the nodes that have a method, as each of them knows."""
        return [",".join(sorted(n.name for n in site.nodes.after("") if method in n.methods)) for site in self.sites]

    def agree(self) -> None:
        """Fail unless all know the same."""
        views = [site.view() for site in self.sites]
        assert all(view == views[0] for view in views)
        for site in self.sites:
            site.check()
            site.check_settled()


def far(site: Site, name: str) -> Far:
    """The way to a node of another gateway."""
    node = site.nodes.named(name)
    assert node is not None
    assert isinstance(node.peer, Far)
    return node.peer


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why something was left out, as the log says."""
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    return [vars(one)["reason"] for one in caplog.records if vars(one).get("event") == "cluster.refused"]


# What the others know


def test_a_node_is_known_elsewhere_with_all_that_it_says() -> None:
    house = House()
    peer = house.peer(0)
    methods = [described("cam.snap", "Shoot.", b'{"a":1.50}'), described("cam.zoom")]
    assert peer.site.register(peer, "pi", methods, context=True, streams=True)
    house.run()
    node = house.sites[1].nodes.named("pi")
    assert node is not None
    assert node.member is not None
    assert (node.member.name, node.since, node.context, node.streams) == ("gateway-1", 1000.0, True, True)
    assert list(node.methods.values()) == methods
    assert (node.peer.conn_id, node.peer.remote, node.peer.principal.scopes) == ("c1", "c1:1", SHARING.scopes)
    house.agree()
    assert [site.told for site in house.sites] == [["pi online"], []], "only its own gateway tells of it"


def test_only_what_has_changed_is_told() -> None:
    house = House()
    peer = house.enter(0, "pi", *(f"m.{number}" for number in range(500)))
    house.run()
    for more in ([described("one.more")], [described("m.7", "In other words.")]):
        peer.site.register(peer, "pi", more)
        assert len(house.said(0, 1)[0]) < 400
        house.run()
    peer.site.nodes.unregister(peer, ["m.3", "m.4"])
    assert len(house.said(0, 1)[0]) < 400
    house.run()
    house.agree()
    peer.site.register(peer, "pi", [described("m.7", "In other words.")])
    assert house.said(0, 1) == [], "nothing has changed"
    peer.site.register(peer, "pi", [described("m.7", "In other words.")], streams=True)
    assert len(house.said(0, 1)) == 1, "how it wants to be called has"
    house.run()
    house.agree()
    peer.release()
    house.run()
    assert house.owners("pi") == ["-", "-"]
    house.agree()
    assert house.sites[1].told == []


def test_a_node_that_loses_its_link_is_held_elsewhere_and_comes_back() -> None:
    house = House()
    peer = house.enter(0, "pi", "cam.snap")
    house.run()
    peer.is_held(errors.TRANSPORT_LOST)
    peer.is_held(errors.TRANSPORT_LOST)
    house.run()
    assert far(house.sites[1], "pi").held is not None
    assert house.sites[1].lost_links == ["c1"], "once"
    peer.remote = "elsewhere:2"
    peer.is_held(None)
    house.run()
    assert far(house.sites[1], "pi").held is None
    assert far(house.sites[1], "pi").remote == "elsewhere:2"
    house.agree()


def test_a_call_goes_to_a_node_here_before_one_elsewhere() -> None:
    house = House()
    there = house.enter(0, "there", "cam.snap")
    house.run()
    here = house.enter(1, "here", "cam.snap")
    serving = house.sites[1].nodes.serving
    assert [node.peer for node in (serving("cam.snap"), serving("cam.snap")) if node is not None] == [here, here]
    here.held = errors.TRANSPORT_LOST
    node = serving("cam.snap")
    assert node is not None
    assert node.peer.conn_id == there.conn_id


def test_whoever_waits_for_a_method_is_told_when_it_comes() -> None:
    house = House()
    peer = house.enter(0, "pi", "cam.snap")
    house.run()
    peer.site.register(peer, "pi", [described("cam.zoom")])
    peer.is_held(errors.TRANSPORT_LOST)
    peer.site.nodes.unregister(peer, ["cam.zoom"])
    house.run()
    assert house.sites[1].arrived == ["pi", "pi"]


# Names


def test_the_newer_registration_has_the_name_wherever_it_is() -> None:
    house = House(3)
    old = house.enter(0, "pi", "cam.snap")
    house.run()
    house.clock.now -= 500  # the clock of the others goes wrong
    new = house.enter(1, "pi", "cam.snap", "cam.zoom")
    assert house.owners("pi") == ["c1", "c2", "c1"]
    house.run()
    assert house.owners("pi") == ["c2", "c2", "c2"]
    assert (old.ended, new.ended) == (errors.REPLACED, None)
    old.release()
    house.run()
    house.agree()
    assert [site.told for site in house.sites] == [["pi online"], ["pi online"], []], "the name was never offline"
    new.release()
    house.run()
    assert house.owners("pi") == ["-", "-", "-"]


def test_of_two_at_the_same_moment_one_has_the_name_and_all_agree() -> None:
    house = House(3)
    peers = [house.enter(site, "pi", "cam.snap") for site in range(3)]
    assert len({peer.node.stamp for peer in peers if peer.node is not None}) == 1
    house.run()
    assert house.owners("pi") == ["c3", "c3", "c3"]
    assert [peer.ended for peer in peers] == [errors.REPLACED, errors.REPLACED, None]
    house.agree()


def test_a_name_goes_back_to_who_was_kept_from_it_by_one_that_is_gone() -> None:
    house = House(3)
    old = house.enter(0, "pi", "cam.snap")
    new = house.enter(1, "pi", "cam.zoom")
    house.broker.lose((house.sites[1].wire, house.sites[0].wire))  # so the old one is not ended
    house.run()
    assert house.owners("pi") == ["c1", "c2", "c2"]
    assert house.serving("cam.snap") == ["pi", "", ""]
    house.kill(1)
    house.run()
    assert house.owners("pi") == ["c1", "c2", "c1"]
    assert house.serving("cam.snap") == ["pi", "", "pi"]
    assert house.sites[2].arrived[-1] == "pi"
    assert (old.ended, new.ended) == (None, None)


def test_a_connection_that_registers_again_is_the_same_peer() -> None:
    house = House()
    peer = house.enter(0, "pi", "cam.snap")
    house.run()
    before = far(house.sites[1], "pi")
    peer.site.nodes.unregister(peer)
    peer.site.register(peer, "pi", [described("cam.zoom")])
    house.run()
    assert far(house.sites[1], "pi") is before
    house.agree()


# Methods


def test_a_method_of_a_node_elsewhere_is_refused_unless_both_may_share_it() -> None:
    house = House()
    house.enter(0, "pi", "cam.snap", "cam.zoom", principal=ALONE)
    house.enter(0, "po", "cam.pan")
    house.run()
    other = house.peer(1)
    with pytest.raises(Refusal) as raised:
        house.sites[1].nodes.register(other, "other", [described("cam.snap"), described("cam.pan")], False)
    assert (raised.value.error, raised.value.data) == (errors.CONFLICT, {"node": "pi", "methods": ["cam.snap"]})
    assert other.site.register(other, "other", [described("cam.pan")])
    house.run()
    assert house.serving("cam.pan") == ["other,po"] * 2
    house.agree()


def test_of_two_that_raced_for_a_method_the_older_one_keeps_it() -> None:
    house = House(3)
    old = house.enter(2, "old", "cam.snap", "cam.zoom", principal=ALONE)
    house.clock.now += 1
    new = house.enter(0, "new", "cam.snap", "cam.pan")
    house.run()
    assert house.serving("cam.snap") == ["old"] * 3
    assert house.serving("cam.pan") == ["new"] * 3
    assert (old.ended, new.ended) == (None, None)
    assert [site.told for site in house.sites] == [["new online", "new online"], [], ["old online"]]
    house.agree()


def test_a_node_that_loses_its_last_method_is_gone_and_its_connection_lives() -> None:
    house = House()
    house.enter(0, "old", "cam.snap", principal=ALONE)
    house.clock.now += 1
    new = house.enter(1, "new", "cam.snap", principal=ALONE)
    house.run()
    assert (house.owners("new"), new.ended, new.node) == (["-", "-"], None, None)
    assert house.sites[1].told == ["new online", "new offline"]
    house.agree()


def test_while_a_method_is_contested_a_third_one_does_not_get_it() -> None:
    house = House(3)
    house.enter(0, "old", "cam.snap", principal=ALONE)
    house.clock.now += 1
    new = house.enter(1, "new", "cam.snap")
    for sender in (1, 0):
        house.run_between(sender, 2)
    third = house.sites[2]
    assert house.serving("cam.snap") == ["old", "new", "new,old"]
    for _ in range(2):
        assert not third.register(house.peer(2), "late", [described("cam.snap")])
        third.nodes.serving("cam.snap")  # the other one is first in turn
    house.run()
    assert house.serving("cam.snap") == ["old"] * 3
    assert new.node is None
    house.agree()


def test_a_credential_that_shares_no_more_is_heeded_elsewhere() -> None:
    house = House()
    old = house.enter(0, "old", "cam.snap")
    house.clock.now += 1
    new = house.enter(1, "new", "cam.snap", "cam.zoom")
    old.rescope(ALONE)  # while it is alone, as far as its gateway knows
    house.run()
    assert house.serving("cam.snap") == ["old", "old"]
    assert house.serving("cam.zoom") == ["new", "new"]
    assert new.ended is None
    house.agree()


# Holes


def test_a_change_that_is_missed_is_made_up_for_with_the_next() -> None:
    house = House()
    house.enter(0, "lost", "cam.snap")
    house.broker.lose((house.sites[0].wire, house.sites[1].wire))
    house.enter(0, "pi", "cam.zoom")
    house.run()
    house.agree()
    assert house.owners("lost") == ["c1", "c1"]


def test_a_change_that_is_missed_is_found_out_by_the_heartbeat() -> None:
    house = House()
    peer = house.enter(0, "pi", "cam.snap")
    house.run()
    peer.release()
    house.broker.lose((house.sites[0].wire, house.sites[1].wire))
    house.run()
    assert house.owners("pi") == ["-", "c1"]
    for _ in range(2):
        house.sites[0].turn()
    house.run()
    assert house.owners("pi") == ["-", "-"]
    house.agree()


def test_an_answer_that_is_lost_is_asked_for_again_and_a_late_one_is_ignored() -> None:
    house = House()
    house.enter(0, "pi", "cam.snap")
    line = (house.sites[0].wire, house.sites[1].wire)
    house.broker.lose(line)
    house.sites[0].turn()
    house.sites[0].turn()
    house.deliver(line)
    house.deliver((line[1], line[0]))  # the question
    assert not house.sites[1].roster.is_known
    late = house.broker.lines[line].pop()
    for number in range(2 * (PATIENCE + 1)):
        house.sites[0].turn()
        house.sites[1].turn()
        house.run()
        assert (house.owners("pi")[1] == "c1") is (number >= 2 * PATIENCE), number
    house.agree()
    house.broker.lines[line].append(late)
    house.run()
    house.agree()


def test_a_change_that_is_missed_between_two_pages_is_found_out() -> None:
    house = House(2)
    for number in range(60):
        house.enter(0, f"n{number:03}", *(f"{number}.method{one:03}" for one in range(100)))
    house.run()
    house.kill(1)
    house.run()
    assert len(house.sites[1].nodes) == 0
    house.sites[1].join()
    line = house.sites[0].wire, house.sites[1].wire
    while len(house.sites[1].nodes) < 20:
        for pair in house.broker.full():
            house.deliver(pair)
    first = house.sites[0].nodes.named("n000")
    assert first is not None
    house.sites[0].nodes.unregister(first.peer)
    house.broker.lines[line].pop()
    house.run()
    assert house.owners("n000") == ["-", "-"]
    house.agree()


def test_a_member_that_never_answers_keeps_nobody_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    house = House(3)
    house.enter(0, "pi", "cam.snap")
    house.enter(2, "po", "cam.zoom")
    house.run()
    house.sites[0].members.on(roster.SNAPSHOT, lambda *mail: None)
    house.kill(1)
    house.sites[1].join()
    turns = 0
    while not house.sites[1].roster.is_known:
        house.settle(1)
        turns += 1
    assert turns > 2 * TRIES * PATIENCE
    assert house.owners("pi")[1] == "-"
    assert house.owners("po") == ["c2"] * 3
    assert refusals(caplog) == ["it does not tell all of its nodes"]
    house.sites[0].members.on(roster.SNAPSHOT, house.sites[0].roster._asked)
    house.settle(4 * PATIENCE)
    house.agree()


def test_a_newcomer_gets_all_in_pages_while_changes_go_on() -> None:
    house = House(3)
    third = house.sites[2]
    third.part()
    house.run()
    peers = [
        house.enter(number % 2, f"n{number:03}", *(f"{number}.m{one}" for one in range(20))) for number in range(300)
    ]
    house.run()
    third.join()
    sizes, most = [], 0
    for turn in range(10_000):
        full = house.broker.full()
        if not full:
            break
        for pair in full:
            most = max(most, sum(len(payload) > PAGE / 2 for _, payload in house.broker.lines[pair]))
            sizes.append(len(house.broker.lines[pair][0][1]))
            house.deliver(pair)
        if turn < 100:  # whatever happens meanwhile
            peers[turn].release()
            peer = peers[turn + 100]
            peer.site.register(peer, peer.node.name if peer.node else "", [described(f"more.{turn}")])
            house.enter(turn % 2, f"late{turn}", f"late.{turn}")
    house.settle(4)
    house.agree()
    assert third.roster.is_known
    assert max(sizes) < PAGE + 2000
    assert sum(size > PAGE / 2 for size in sizes) >= 4, "it came in pages"
    assert most == 1, "one after another"
    assert len(third.nodes) == 300


def test_a_node_larger_than_a_page_comes_in_parts() -> None:
    house = House(2)
    long = b'"' + b"x" * 2000 + b'"'
    peer = house.peer(0)
    peer.site.register(peer, "pi", [described(f"m.{number}", "", long) for number in range(100)])
    assert len(house.said(0, 1)) > 2
    house.run()
    house.agree()
    house.enter(0, "before", "b.m")
    house.enter(0, "zz", "z.m")
    house.sites[1].part()
    house.sites[1].join()
    house.settle(4)
    house.agree()
    assert house.sites[1].roster.is_known
    assert [node.name for node in house.sites[1].nodes.after("")] == ["before", "pi", "zz"]


def test_a_page_looks_at_a_part_of_all_nodes_even_if_none_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "LOOKED", 10)
    house = House(2)
    for number in range(95):
        house.enter(0, f"n{number:05}", f"m{number}")
    own = house.enter(1, "zz", "z.m")
    house.run()
    house.kill(0)
    house.sites[0].join()
    house.sites[0].turn()
    house.sites[1].nodes.mirror = None
    for number in range(95):
        house.sites[1].nodes.bring(elsewhere(f"n{number:05}"))
    answers = 0
    while house.broker.full():
        for pair in house.broker.full():
            answers += house.broker.lines[pair][0][0].startswith(b"test.to.00000001_2.roster")
            house.deliver(pair)
    assert answers == 10
    assert house.owners("zz") == [own.conn_id] * 2


# Members that come and go


def test_the_nodes_of_a_lost_member_are_gone_and_those_that_it_brings_back_stay() -> None:
    house = House(3)
    house.enter(0, "pi", "cam.snap")
    house.enter(1, "po", "cam.snap")
    house.run()
    before = far(house.sites[1], "pi")
    house.kill(0)
    house.run()
    assert house.owners("pi") == ["c1", "-", "-"]
    assert house.owners("po") == ["-", "c2", "c2"]
    house.sites[0].join()
    house.run()
    house.agree()
    assert far(house.sites[1], "pi") is not before, "it is another member now"
    assert house.sites[1].told == ["po online"]


def test_a_member_that_comes_back_before_its_nodes_are_forgotten_keeps_them() -> None:
    house = House(2)
    for number in range(200):
        house.enter(0, f"n{number:03}", *(f"{number}.m{one}" for one in range(20)))
    house.run()
    house.sites[0].part()
    house.sites[0].join()
    while house.broker.full():  # all pages come before the second step
        for pair in house.broker.full():
            house.deliver(pair)
    assert house.sites[1].steps.works
    house.run()
    assert len(house.sites[1].nodes) == 200
    house.agree()


def test_what_was_registered_without_a_link_is_told_after_it() -> None:
    house = House(2)
    house.sites[0].part()
    house.enter(0, "pi", "cam.snap")
    house.sites[0].join()
    house.settle(2)
    house.agree()
    assert house.owners("pi") == ["c1", "c1"]


def test_a_gateway_that_drains_has_no_nodes_for_the_others() -> None:
    house = House(3)
    house.sites[2].part()
    house.enter(0, "pi", "cam.snap")
    house.enter(1, "po", "cam.snap")
    house.run()
    house.sites[0].roster.clear()
    house.sites[0].roster.clear()
    house.run()
    assert house.owners("pi") == ["c1", "-", "-"]
    late = house.enter(0, "late", "cam.pan")
    late.is_held(errors.TRANSPORT_LOST)
    house.run()
    house.sites[2].join()
    house.settle(4)
    assert house.owners("pi") == ["c1", "-", "-"]
    assert house.owners("late") == ["c3", "-", "-"]
    assert house.owners("po") == ["c2", "c2", "c2"], "it still hears of the others"
    assert all(site.roster.is_known for site in house.sites)


# What is too much


def test_a_node_that_is_too_large_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    house = House(max_bytes=1000)
    say(house, 0, entry("pi", "c", 1, described("cam.snap", "", b'"' + b"x" * 1000 + b'"')))
    house.enter(0, "po", "cam.zoom")
    house.run()
    site = house.sites[1]
    assert (site.nodes.serving("cam.snap"), site.nodes.serving("cam.zoom")) == (None, site.nodes.named("po"))
    assert len(refusals(caplog)) == 1
    say(house, 0, entry("pi", "c", 1, described("cam.pan")))
    house.run()
    assert site.nodes.serving("cam.pan") is site.nodes.named("pi")
    site.check()


def test_all_nodes_of_a_member_have_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    house = House(2, max_bytes=MAX_BYTES)
    big = b'"' + b"x" * (MAX_BYTES // 80) + b'"'
    for number in range(85):
        say(house, 0, entry(f"n{number}", "c", number + 1, described(f"m{number}", "", big)))
        house.run()
    site = house.sites[1]
    site.check()
    assert MAX_BYTES * 0.97 < site.nodes.cost <= MAX_BYTES
    assert len(refusals(caplog)) == 1, "it is sampled"
    copy = next(iter(site.roster._copies.values()))
    assert copy.cost == site.nodes.cost


def test_methods_beyond_the_most_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    say(house, 0, entry("pi", "c", 1, *(described(f"m{number}") for number in range(990))))
    more = entry("pi", "c", 1, *(described(f"more{number}") for number in range(11)))
    more["whole"] = False
    say(house, 0, more)
    house.run()
    node = house.sites[1].nodes.named("pi")
    assert node is not None
    assert (len(node.methods), len(refusals(caplog))) == (990, 1)
    assert node.cost == node.octets + METHOD_BYTES * 990


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"number":2,"nodes":[{"name":1}]}', b"\xff"])
def test_what_cannot_be_read_is_logged_and_asked_for_in_another_way(
    payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    house = House()
    house.enter(0, "pi", "cam.snap")
    house.run()
    house.sites[0].members.say(b"roster", payload)
    house.run()
    house.enter(0, "po", "cam.zoom")
    house.run()
    house.agree()
    assert len(refusals(caplog)) == 1


def test_what_is_too_large_for_nats_is_logged_by_its_own_gateway(caplog: pytest.LogCaptureFixture) -> None:
    house = House(2, max_bytes=MAX_BYTES)
    peer = house.peer(0)
    peer.site.register(peer, "pi", [described("cam.snap", "", b'"' + b"x" * (1 << 20) + b'"')])
    house.enter(0, "po", "cam.zoom")
    house.run()
    assert house.owners("po") == ["c2", "c2"]
    assert refusals(caplog) == ["too large"]


def elsewhere(name: str) -> Node:
    """A node of a member that nobody has heard of."""
    member = Member(b"0000000a_1", "0000000a", "another")
    return Node(name, Far(member, name, "x:1", SHARING), 1.0, 1, member)


def entry(name: str, conn_id: str, stamp: int, *methods: Served) -> dict[str, Any]:
    """A whole entry by hand."""
    return {
        "name": name,
        "connId": conn_id,
        "stamp": stamp,
        "remote": "x:1",
        "since": 1.0,
        "whole": True,
        "principal": pages.card(SHARING),
        "methods": [
            {"name": one.name, "summary": one.summary, **({"params": msgspec.Raw(one.params)} if one.params else {})}
            for one in methods
        ],
    }


def say(house: House, site: int, *entries: dict[str, Any]) -> None:
    """Say a change by hand."""
    sender = house.sites[site]
    sender.roster.number += 1
    sender.members.say(roster.ROSTER, pages.encode({"number": sender.roster.number, "nodes": entries}))
