"""Gateways that stop, die and lose NATS, with mail that is late or lost: each request is answered exactly once.

None is run twice, none begins after its caller was told that it is lost, and what was not delivered never was. In the
end nothing is left of anything. `python -m tests.nodes.elsewhere.test_relay_model 2000` tries more.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway import errors
from gateway.nodes.elsewhere import distant
from tests.support.chances import chances
from tests.support.cluster import Exchange
from tests.support.relay_model import CALL_TIMEOUT, GATEWAYS, METHODS, NAMES, STEP, Caller, Gateway, Node, World

EXAMPLES: Final = 60
STEPS: Final = 80
PICK: Final = st.integers(0, 11)
ASKS: Final = st.lists(
    st.tuples(PICK, st.sampled_from(METHODS), st.sampled_from((None, None, None, *NAMES))), min_size=2, max_size=6
)
SEEN: Counter[str] = Counter()
"""What became of all requests, over all examples."""

Rule = TypeVar("Rule", bound=Callable[..., None])


class Relaying(RuleBasedStateMachine):
    """Anything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.exchange = Exchange()
        self.gateways = [Gateway(self.world, self.exchange, name) for name in "abcde"[:GATEWAYS]]
        self.peers = 0

    @initialize()
    def begin(self) -> None:
        """All know each other; each has a caller and a node."""
        for gateway in self.gateways:
            gateway.join()
            self.deliver_all()
        for number in range(GATEWAYS):
            self.enter(number)
            self.serve(number, number, [METHODS[number % len(METHODS)]])
        self.deliver_all()

    def deliver_all(self) -> None:
        """Deliver until nothing is on its way, but to those who do not read."""
        going = True
        while going:
            for gateway in self.gateways:
                gateway.leave()
            going = any(gateway.read(1000) for gateway in self.gateways)

    # Whom it happens to

    def running(self) -> list[Gateway]:
        return [gateway for gateway in self.gateways if gateway.runs]

    def callers(self) -> list[tuple[Gateway, Caller]]:
        return [(gateway, caller) for gateway in self.running() for caller in gateway.callers]

    def nodes(self) -> list[tuple[Gateway, Node]]:
        return [(gateway, node) for gateway in self.running() for node in gateway.nodes]

    # What happens

    @rule(at=PICK)
    def enter(self, at: int) -> None:
        gateway = self.gateways[at % GATEWAYS]
        if gateway.runs and len(gateway.callers) < 3:
            gateway.callers.append(Caller(self.world))

    @rule(at=PICK, name=PICK, methods=st.lists(st.sampled_from(METHODS), min_size=1, unique=True))
    def serve(self, at: int, name: int, methods: list[str]) -> None:
        """A new node, which may take a name over."""
        gateway = self.gateways[at % GATEWAYS]
        if gateway.runs and len(gateway.nodes) < 3:
            self.peers += 1
            node = Node(self.world, self.peers)
            gateway.nodes.append(node)
            gateway.side.here[node.conn_id] = node
            gateway.register(node, NAMES[name % len(NAMES)], methods)

    @precondition(lambda self: self.callers())
    @rule(asks=ASKS)
    def ask(self, asks: list[tuple[int, str, str | None]]) -> None:
        callers = self.callers()
        for at, method, name in asks:
            gateway, caller = callers[at % len(callers)]
            gateway.ask(caller, method, name)

    @precondition(lambda self: any(node.open for _, node in self.nodes()))
    @rule(answers=st.lists(st.tuples(PICK, PICK, st.booleans()), min_size=1, max_size=4))
    def answer(self, answers: list[tuple[int, int, bool]]) -> None:
        for at, which, error in answers:
            busy = [(gateway, node) for gateway, node in self.nodes() if node.open]
            if busy:
                gateway, node = busy[at % len(busy)]
                gateway.answer(node, which, error)

    @precondition(lambda self: any(node.open for _, node in self.nodes()))
    @rule(at=PICK, which=PICK)
    def report(self, at: int, which: int) -> None:
        busy = [(gateway, node) for gateway, node in self.nodes() if node.open]
        gateway, node = busy[at % len(busy)]
        gateway.report(node, which)

    @precondition(lambda self: any(caller.running for _, caller in self.callers()))
    @rule(at=PICK, seldom=st.integers(0, 2))
    def cancel(self, at: int, seldom: int) -> None:
        if seldom:
            return
        waiting = [(gateway, caller) for gateway, caller in self.callers() if caller.running]
        gateway, caller = waiting[at % len(waiting)]
        with gateway.loop.inside():
            next(iter(caller.running.values())).cancel(errors.CANCELLED)

    @precondition(lambda self: self.callers())
    @rule(at=PICK, seldom=st.integers(0, 2))
    def lose_caller(self, at: int, seldom: int) -> None:
        if not seldom:
            gateway, caller = self.callers()[at % len(self.callers())]
            caller.read()
            gateway.lose_caller(caller)

    @precondition(lambda self: self.nodes())
    @rule(at=PICK, seldom=st.integers(0, 1))
    def lose_node(self, at: int, seldom: int) -> None:
        if not seldom:
            gateway, node = self.nodes()[at % len(self.nodes())]
            gateway.lose_node(node)

    @precondition(lambda self: self.nodes())
    @rule(at=PICK, how=st.sampled_from(("read", "held", "unregister")))
    def change_node(self, at: int, how: str) -> None:
        gateway, node = self.nodes()[at % len(self.nodes())]
        if how == "unregister":
            with gateway.loop.inside():
                gateway.side.nodes.unregister(node)
        elif how == "held":
            gateway.hold(node, node.flowing)
        elif node.held is None:
            gateway.flow(node, not node.flowing)

    @precondition(lambda self: self.callers())
    @rule(at=PICK)
    def stop_reading_or_read(self, at: int) -> None:
        gateway, caller = self.callers()[at % len(self.callers())]
        with gateway.loop.inside():
            if caller.link.pressed:
                caller.read()
            else:
                caller.link.pressed = caller.link.barred = True

    @rule(at=PICK, count=st.sampled_from((1, 1, 3, 1000)))
    def deliver(self, at: int, count: int) -> None:
        for gateway in self.gateways:
            gateway.leave()
        self.gateways[at % GATEWAYS].read(count)

    @rule(steps=st.sampled_from((1, 1, 2, 4, 13, 20)), deliver=st.sampled_from((0, 1, 1000, 1000)))
    def wait(self, steps: int, deliver: int) -> None:
        for _ in range(steps):
            self.world.now += STEP
            for gateway in self.gateways:
                gateway.read(deliver)
                gateway.turn()
        if deliver == 1000:
            self.deliver_all()

    @rule(at=PICK, how=st.sampled_from(("stop", "stop", "go on", "cut", "end", "end", "join", "join")))
    def trouble(self, at: int, how: str) -> None:
        gateway = self.gateways[at % GATEWAYS]
        if how == "cut":
            gateway.cut()
        elif how == "end":
            gateway.end_link()
        elif how == "join":
            gateway.join()
        elif how == "stop":
            gateway.stopped = True
        else:
            gateway.go_on()

    @rule(at=PICK, seldom=st.integers(0, 9))
    def kill(self, at: int, seldom: int) -> None:
        if not seldom and sum(gateway.alive for gateway in self.gateways) > 1:
            self.gateways[at % GATEWAYS].kill()

    # What must be true

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.world.wrong == []

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._finish()
        finally:
            for gateway in self.gateways:
                gateway.loop.close()

    def _finish(self) -> None:
        """All goes on, and what nobody answers comes to its deadline. Then nothing is left of anything."""
        for gateway in self.gateways:
            gateway.go_on()
            gateway.join()
        for gateway, caller in self.callers():
            with gateway.loop.inside():
                caller.read()
        for gateway, node in self.nodes():
            gateway.hold(node, False)
        self.wait(int((CALL_TIMEOUT + 5.0) / STEP), 1000)
        self.nothing_is_wrong()
        alive = [gateway for gateway in self.gateways if gateway.alive]
        assert [left for gateway in alive for left in gateway.left()] == []
        SEEN.update(self.world.outcomes)


LITTLE = {"HIGH": 1000, "LOW": 500, "TAKEN": 100}
"""Bounds of what gateways may send each other that are so low that they matter here."""


def test_whatever_dies_each_request_is_answered_once_and_none_begins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LITTLE.items():
        monkeypatch.setattr(distant, name, value)
    SEEN.clear()
    run_state_machine_as_test(Relaying, settings=chances(STEPS, EXAMPLES, same=True))
    wanted = {"answered", "node_lost unknown", "node_lost not_delivered", "overloaded not_delivered", "timeout unknown"}
    assert wanted <= SEEN.keys(), "all of this is tried"


def found(examples: int) -> Any:
    """Try more."""
    run_state_machine_as_test(Relaying, settings=chances(STEPS, examples, same=False))
    return SEEN


if __name__ == "__main__":
    logging.disable()
    vars(distant).update(LITTLE)
    print(found(int(sys.argv[1])))
