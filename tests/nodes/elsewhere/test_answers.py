"""What another gateway says of calls to its nodes: each is ended once, and timed, and what is late is counted."""

import json

import pytest

from gateway.nodes.elsewhere.distant import Distant
from gateway.rpc.calls import FIRST_ID
from gateway.telemetry.counts import NODE_ERROR, OK
from tests.support.cluster import Two
from tests.support.rpc import accepted


class Scene:
    """Three calls to a node at another gateway, which answers by hand."""

    def __init__(self) -> None:
        self.it = Two()
        self.it.serve("pi", ["snap"])
        self.caller = self.it.caller()
        for number in range(3):
            self.it.ask(self.caller, f'{{"jsonrpc":"2.0","id":{number},"method":"snap"}}')
        self.answers = self.it.a.relay.answers

    def say(self, kind: bytes, *fields: bytes) -> None:
        """Let the node's gateway say something, as one message."""
        self.it.b.members.tell(self.it.b.member("a"), kind, b"\0".join(fields))
        self.it.settle()

    @property
    def distant(self) -> Distant:
        """The node's gateway, as the caller's has it."""
        return self.it.a.relay._of(self.it.a.member("b"))


def token(number: int) -> bytes:
    """The token of a call."""
    return b"%d-1" % (FIRST_ID + number)


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_results_of_one_message_go_to_their_callers_and_are_timed(scene: Scene) -> None:
    scene.it.a.clock.now += 2.0
    scene.say(b"result", token(1), b"[1 ]", token(0), b'"0"')
    assert scene.caller.take() == [accepted("[1 ]", "1"), accepted('"0"', "0")]
    buckets, seconds = scene.answers.called.durations()
    assert (list(buckets)[-1], seconds, scene.answers.called.outcomes()[OK]) == (2, 4.0, 2)
    assert list(scene.caller.running) == [b"2"]
    assert len(scene.it.a.calls) == 1


async def test_errors_are_timed_and_refusals_are_not(scene: Scene) -> None:
    scene.say(b"said", b"error", token(0), b'{"code":7,"message":"own"}')
    scene.say(b"said", b"refused", token(1), b'overloaded not_delivered\n{"code":-32009,"message":"x"}')
    scene.say(b"said", b"gone", token(2), b"")
    own, refused, gone = map(json.loads, scene.caller.take())
    assert (own["error"]["code"], refused["error"]["message"], gone["error"]["code"]) == (7, "x", -32010)
    assert +scene.answers.called.outcomes() == {NODE_ERROR: 1}
    outcomes = scene.it.a.router.tally.outcomes()
    assert (outcomes[NODE_ERROR], outcomes["overloaded"], outcomes["node_lost"]) == (1, 1, 1)


@pytest.mark.parametrize("kind", [b"error", b"refused", b"ended", b"gone"])
async def test_what_is_said_of_a_call_that_is_over_is_counted(scene: Scene, kind: bytes) -> None:
    scene.say(b"result", token(0), b"1", token(0), b"2")
    scene.say(b"said", kind, token(0), b"overloaded unknown\n{}")
    assert scene.caller.take() == [accepted("1", "0")]
    assert scene.answers.late == 2


async def test_reports_and_grants_of_a_call_that_is_over_are_dropped(scene: Scene) -> None:
    scene.say(b"result", token(0), b"1")
    scene.caller.take()
    for what in ((b"progress", token(0), b"1"), (b"demand", token(0), b"1,1"), (b"demand", token(1), b"1,1")):
        scene.say(b"said", *what)
    assert scene.caller.take() == []
    assert scene.it.a.router.dropped["demand"] == 2


async def test_a_large_result_goes_with_care(scene: Scene) -> None:
    large = b'"%b"' % (b"x" * 100_000)
    scene.caller.unheeding = scene.caller.link.pressed = True
    scene.say(b"result", token(0), large, token(1), b"1")
    refused, small = map(json.loads, scene.caller.take())
    assert (refused["error"]["data"]["code"], small["result"]) == ("overloaded", 1)
    assert scene.caller.held_up == [scene.it.there("pi").peer.link]
    assert len(scene.distant.peers) == 1
