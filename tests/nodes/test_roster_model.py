"""Three gateways, and whatever happens to their nodes, their links and their messages: in the end all know the same.

Messages of one gateway to another keep their order; all others come in any order, and any may be lost. When nothing is
lost any more, all gateways agree who has which name and which method. `python -m tests.nodes.test_roster_model 5000`
tries more.
"""

import logging
import sys
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway import errors
from gateway.auth.scopes import Principal
from tests.support.roster import Cluster, Own, described

NAMES: Final = ("attic", "cellar", "hall")
METHODS: Final = ("m.one", "m.two", "m.three", "m.four")
SUMMARIES: Final = ("", "Shoot.")
SITES: Final = 3
MAX_PAYLOAD: Final = 900
"""So little that each node has a page of its own, or several."""

sites = st.integers(0, SITES - 1)
picks = st.integers(0, 50)
names = st.sampled_from(NAMES)
methods = st.dictionaries(st.sampled_from(METHODS), st.sampled_from(SUMMARIES), min_size=1)
sharing = st.booleans()


def principal(share: bool, number: int) -> Principal:
    """A principal that may serve anything, alone or with others."""
    return Principal(f"p{number}", "node", ("call:x", "serve:>", *(("share:>",) if share else ())))


class Rosters(RuleBasedStateMachine):
    """What can happen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.cluster = Cluster(SITES, lambda: self.now, max_payload=MAX_PAYLOAD)
        self.peers: list[Own] = []
        self.count = 0
        for site in self.cluster.sites:
            site.join()

    def _peer(self, pick: int) -> Own:
        return self.peers[pick % len(self.peers)]

    @rule(where=sites, name=names, methods=methods, share=sharing, context=st.booleans(), later=st.booleans())
    def register(
        self, where: int, name: str, methods: dict[str, str], share: bool, *, context: bool, later: bool
    ) -> None:
        self.count += 1
        self.now += later
        peer = Own(self.cluster.sites[where], f"c{self.count}", principal(share, self.count))
        self.peers.append(peer)
        peer.site.register(peer, name, [described(*one) for one in methods.items()], context=context)

    @precondition(lambda self: self.peers)
    @rule(pick=picks, name=names, methods=methods, streams=st.booleans())
    def register_more(self, pick: int, name: str, methods: dict[str, str], streams: bool) -> None:
        peer = self._peer(pick)
        if peer.ended is None:
            name = peer.node.name if peer.node is not None else name
            peer.site.register(peer, name, [described(*one) for one in methods.items()], streams=streams)

    @precondition(lambda self: self.peers)
    @rule(pick=picks, methods=st.none() | methods)
    def unregister(self, pick: int, methods: dict[str, str] | None) -> None:
        peer = self._peer(pick)
        peer.site.nodes.unregister(peer, methods)

    @precondition(lambda self: self.peers)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        peer = self._peer(pick)
        self.peers.remove(peer)
        peer.ended = peer.ended or errors.TRANSPORT_LOST
        peer.release()

    @precondition(lambda self: self.peers)
    @rule(pick=picks, held=st.booleans())
    def hold(self, pick: int, held: bool) -> None:
        self._peer(pick).is_held(errors.TRANSPORT_LOST if held else None)

    @precondition(lambda self: self.peers)
    @rule(pick=picks, share=sharing)
    def rescope(self, pick: int, share: bool) -> None:
        self._peer(pick).rescope(principal(share, pick))

    @rule(pick=picks, count=st.integers(1, 8))
    def deliver(self, pick: int, count: int) -> None:
        for _ in range(count):
            full = self.cluster.broker.full()
            if full:
                self.cluster.deliver(full[pick % len(full)])

    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        full = self.cluster.broker.full()
        if full:
            self.cluster.broker.lose(full[pick % len(full)])

    @rule(where=sites)
    def turn(self, where: int) -> None:
        self.cluster.sites[where].turn()

    @rule(where=sites, which=picks)
    def step(self, where: int, which: int) -> None:
        steps = self.cluster.sites[where].steps
        if steps.works:
            steps.step(which % len(steps.works))

    @rule(where=sites)
    def part_or_join(self, where: int) -> None:
        site = self.cluster.sites[where]
        if site.members.address:
            site.part()
        else:
            site.join()

    @invariant()
    def the_tables_fit_together(self) -> None:
        for site in self.cluster.sites:
            site.check()

    def teardown(self) -> None:
        for site in self.cluster.sites:
            if not site.members.address:
                site.join()
        self.cluster.settle()
        for peer in self.peers:
            if peer.ended is not None:
                peer.release()
        self.cluster.settle()
        views = [site.view() for site in self.cluster.sites]
        assert views[0] == views[1] == views[2]
        for site in self.cluster.sites:
            site.check()
            site.check_settled()
            assert site.roster.is_known
        assert set(views[0]) == {peer.node.name for peer in self.peers if peer.node is not None}


def test_in_the_end_all_gateways_know_the_same() -> None:
    try_examples(60)


def try_examples(count: int) -> None:
    """Try so many random sequences, and shrink one that fails."""
    run_state_machine_as_test(
        Rosters,
        settings=settings(
            max_examples=count, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


if __name__ == "__main__":
    logging.disable()
    try_examples(int(sys.argv[1]))
