"""Another gateway, as this one has it: how much is on its way, and what ends with it."""

import asyncio

import pytest

from gateway import errors
from gateway.cluster.alive import AWAY, LEAVING, REJOINED, SILENT, UNREACHABLE
from gateway.nodes.elsewhere import distant as module
from gateway.nodes.elsewhere.distant import GRACE, HIGH, LOW, TAKEN, Distant
from gateway.nodes.elsewhere.mail import RESULT, SAID
from gateway.rpc.calls import FIRST_ID
from gateway.rpc.streams import Grant
from tests.support.cluster import TIMEOUT, Side, Two
from tests.support.rpc import Way


@pytest.fixture
async def it() -> Two:
    return Two()


def distant(side: Side) -> Distant:
    (member,) = side.members.others.values()
    return side.relay._of(member)


async def test_what_is_on_its_way_has_a_bound_and_those_who_wait_go_on(it: Two) -> None:
    b, way = distant(it.a), Way()
    assert b.tell(b"on", b"x" * HIGH)
    assert b.link.pressed and b.link.barred
    b.hold_up(way)
    b.hold_up(way)
    assert way.waits == 1
    b.took(HIGH - LOW)
    assert b.link.pressed
    b.took(HIGH)
    assert not b.link.pressed
    assert way.waits == 0
    assert b.tell(b"on", b"x" * (HIGH - 200))
    assert not b.link.pressed


async def test_what_is_taken_is_told_now_and_then(it: Two) -> None:
    """By whoever takes it, as soon as it is as much as is due."""
    a, before = distant(it.b), it.b.link.sent[b"taken"]
    it.a.members.tell(it.a.member("b"), b"on", b"x" * (a.due - a.taken - 101))
    it.settle()
    assert it.b.link.sent[b"taken"] == before
    it.a.members.tell(it.a.member("b"), b"on", b"")
    it.settle()
    assert it.b.link.sent[b"taken"] == before + 1
    assert a.due == a.taken + TAKEN
    assert distant(it.a)._until == HIGH + a.taken
    it.b.link.joined = False
    a.tell_taken()


async def test_both_gateways_count_the_same_for_ever(it: Two) -> None:
    node, caller = it.serve("pi", ["snap"]), it.caller()
    for number in range(50):
        it.ask(caller, f'{{"jsonrpc":"2.0","id":1,"method":"snap","params":["{"x" * (TAKEN // 4)}"]}}')
        it.answer(node, f'{{"jsonrpc":"2.0","id":{FIRST_ID + number},"result":"{"x" * (TAKEN // 4)}"}}')
    a, b = distant(it.b), distant(it.a)
    assert min(it.a.link.sent[b"taken"], it.b.link.sent[b"taken"]) > 9
    assert (a._sent, b._sent) == (b.taken, a.taken)


async def test_what_does_not_leave_is_told(it: Two) -> None:
    b = distant(it.a)
    it.a.link.joined = False
    assert not b.tell(b"on", b"x")
    b.ask()
    assert not b.asked


async def test_all_leaves_in_order(it: Two) -> None:
    b = distant(it.a)
    it.b.link.stopped = True
    b.put(SAID, (b"cancel", b"1-1", b""))
    b.tell(b"on", b"x")
    b.put(RESULT, (b"2-1", b"2"))
    b.put(SAID, (b"cancel", b"3-1", b""))
    it.settle()
    kinds = [parcel.subject.split(b".")[3] for parcel in it.b.link.arrived]
    assert kinds == [SAID, b"on", RESULT, SAID]


async def test_what_is_packed_is_told_if_nats_takes_less_by_then(it: Two) -> None:
    b = distant(it.a)
    it.b.link.stopped = True
    b.put(RESULT, (b"1-1", b"x" * 1000))
    it.a.link.info.max_payload = 1000
    b.put(SAID, (b"gone", b"2-1", b""))
    it.settle()
    payloads = [parcel.payload.split(b"\0")[:2] for parcel in it.b.link.arrived]
    assert payloads == [[b"ended", b"1-1"], [b"gone", b"2-1"]]


async def test_nothing_is_packed_for_a_gateway_that_is_lost(it: Two) -> None:
    b = distant(it.a)
    it.a.lose()
    b.put(RESULT, (b"1-1", b"2"))
    b.put(RESULT, (b"1-1", b"2"))
    b.leave()
    assert (b._fields, it.a.link.sent[RESULT]) == ([], 0)


async def test_nodes_are_remembered_a_moment_longer_than_calls_are_in_flight(
    it: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.001)
    node, caller, b = it.serve("pi", ["snap"]), it.caller(), distant(it.a)
    it.ask(caller, '{"jsonrpc":"2.0","id":1,"method":"snap"}')
    await asyncio.sleep(0.01)
    assert len(b.peers) == b.member.open == 1
    it.answer(node, '{"jsonrpc":"2.0","id":1099511627776,"result":1}')
    assert len(b.peers) == b.member.open == 1
    while b.peers:
        await asyncio.sleep(0.001)
    assert b.member.open == 0


async def test_a_fence_is_asked_for_once(it: Two) -> None:
    b = distant(it.a)
    b.ask()
    b.ask()
    assert it.a.link.sent[b"stale"] == 1
    it.settle()
    assert not b.asked
    assert b.fence == it.b.member("a").beat


@pytest.mark.parametrize("cause", [SILENT, LEAVING, REJOINED])
async def test_no_call_begins_any_more_after_these(it: Two, cause: str) -> None:
    b = distant(it.a)
    assert b.beat == b"1"
    assert b.fenced(cause, TIMEOUT) == 0


async def test_a_call_may_begin_for_a_while_after_others(it: Two) -> None:
    b = distant(it.a)
    assert b.fenced(AWAY, TIMEOUT) == 0, "there was no call"
    assert b.beat == b"1"
    it.a.clock.now += TIMEOUT - 1
    assert b.fenced(AWAY, TIMEOUT) == 1
    assert b.fenced(UNREACHABLE, TIMEOUT) == GRACE
    it.a.clock.now += 1 - 1 / 8
    assert b.fenced(UNREACHABLE, TIMEOUT) == 1 / 8


async def test_a_node_is_paused_once_for_all_who_do_not_read(it: Two) -> None:
    b = distant(it.a)
    for _ in range(2):
        b.pause("x")
    b.resume("x")
    assert (it.a.link.sent[b"wait"], it.a.link.sent[b"on"]) == (1, 0)
    b.resume("x")
    b.pause("x")
    assert (it.a.link.sent[b"wait"], it.a.link.sent[b"on"]) == (2, 1)


async def test_it_holds_as_much_as_may_be_on_its_way(it: Two) -> None:
    b = distant(it.a)
    assert b.hold(HIGH)
    assert not b.hold(1)
    b.let_go(HIGH)
    assert b.hold(1)


async def test_it_is_a_peer_that_nothing_ends_or_slows_down(it: Two) -> None:
    b = distant(it.a)
    for act in (b.wait, b.go_on, b.settled, b.link.wait, b.link.go_on, b.link.flush):
        act()
    b.end(errors.FLOOD)
    b.send(b"")
    assert (b.is_open, b.flowing, b.crowded, b.unheeding, b.leaving) == (True, True, False, False, False)


async def test_what_waits_for_nodes_is_forgotten_with_it(it: Two) -> None:
    node, caller = it.serve("pi", ["snap"]), it.caller()
    node.flowing = False
    it.ask(caller, '{"jsonrpc":"2.0","method":"snap"}')
    a = distant(it.b)
    assert len(a.queues) == 1
    a.lose()
    assert (a.queues, a.is_open, node.room) == ({}, False, 1 << 20)


async def test_grants_wait_until_the_other_gateway_takes_more(it: Two) -> None:
    node, caller = it.serve("pi", ["snap"], streams=True), it.caller()
    it.ask(caller, '{"jsonrpc":"2.0","id":1,"method":"snap","stream":{"credit":1,"bytes":10}}')
    b = distant(it.a)
    it.b.link.stopped = True
    b.tell(b"on", b"x" * HIGH)
    (stream,) = caller.running.values()
    assert stream.stream is not None
    stream.stream.granted(Grant(1, 1))
    node.take()
    it.b.link.arrived.pop()
    it.b.link.stopped = False
    b.took(HIGH + 1000)
    it.settle()
    assert node.take() == ['{"jsonrpc":"2.0","method":"rpc.credit","params":{"id":1099511627776,"credit":1,"bytes":1}}']
    await asyncio.sleep(0)
