"""Calls across two gateways, between lists of what is sent: each is what it would be on one, and none begins late."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from gateway import errors
from gateway.cluster.alive import Member
from gateway.errors import RpcError
from gateway.nodes.elsewhere import distant
from gateway.nodes.elsewhere.distant import HIGH, Distant
from gateway.nodes.routed import RoutedCall
from gateway.rpc.calls import FIRST_ID
from gateway.rpc.jsonrpc import decode
from gateway.rpc.method import Refusal
from gateway.rpc.replies import Batch
from gateway.rpc.streams import Grant
from gateway.status import Phase
from gateway.telemetry.counts import OK
from tests.support.cluster import TIMEOUT, Two
from tests.support.routed import cancelled, lost
from tests.support.rpc import Listing, accepted, refused

CALL: Final = '{"jsonrpc":"2.0","id":"a","method":"camera.snap","params":{"x" : [1 ,2.50]}}'
SENT: Final = f'{{"jsonrpc":"2.0","id":{FIRST_ID},"method":"camera.snap","params":{{"x" : [1 ,2.50]}}}}'
STREAM: Final = '{"jsonrpc":"2.0","id":"a","method":"camera.snap","params":[],"stream":{"credit":2,"bytes":90}}'

NOT_REACHED: Final = refused(-32010, "pi: camera.snap", '"a"', outcome="not_delivered").replace(
    "before it answered", "before it got the call"
)


class Play:
    """A caller and a node, on one gateway or on two, and what each of them got."""

    def __init__(self, *, together: bool = False, context: bool = False, **limits: int) -> None:
        self.it = Two(together=together, **limits)
        self.node = self.it.serve("pi", ["camera.snap"], context=context, streams=True)
        self.caller = self.it.caller()

    def ask(self, text: str = CALL) -> None:
        """Have a request sent on, or refused as the dispatcher does that."""
        try:
            self.it.ask(self.caller, text)
        except Refusal as refusal:
            told = json.dumps({"code": refusal.error.code, "detail": refusal.detail, "data": refusal.data})
            self.caller.sent.append(told)

    def answer(self, rest: str, call_id: int = FIRST_ID) -> bool:
        """Have the node answer."""
        return self.it.answer(self.node, f'{{"jsonrpc":"2.0","id":{call_id},{rest}}}')

    def lose_node(self) -> None:
        """Lose the node's connection."""
        self.node.is_open = False
        self.it.b.nodes.unregister(self.node)
        self.it.b.calls.lost(self.node)
        self.it.settle()

    def report(self, value: str, call_id: int = FIRST_ID) -> bool:
        """Have the node report, or send a value of a stream."""
        found = self.it.b.router.progress(self.node, b"%d" % call_id, value.encode())
        self.it.settle()
        return found

    def cancel(self, error: RpcError = errors.CANCELLED) -> None:
        """End the caller's request, as `rpc.cancel` or its deadline does."""
        self.caller.running[b'"a"'].cancel(error)
        self.it.settle()

    def abandon(self) -> None:
        """Lose the caller."""
        self.caller.running[b'"a"'].abandon()
        self.it.settle()

    def stream(self) -> Any:
        """The caller's stream."""
        return self.caller.running[b'"a"'].stream

    def demand(self, credit: int, octets: int) -> None:
        """Have the node grant."""
        self.it.b.relay.incoming._streams.demand(self.node, b"%d" % FIRST_ID, Grant(credit, octets))
        self.it.settle()

    def do(self, act: Callable[[], object]) -> None:
        """Do something, and have the mail delivered."""
        act()
        self.it.settle()

    def left(self) -> tuple[int, ...]:
        """What is in flight at the end."""
        sides = self.it.a, self.it.b
        running = len(self.caller.running), len(self.node.calls), *(len(side.calls) for side in sides)
        pools = [peer.pool.promised for peer in (self.caller, self.node) if peer.pool is not None]
        return *running, *pools


def _deadline(play: Play) -> None:
    (call,) = play.caller.running.values()
    assert isinstance(call, RoutedCall)
    play.it.a.calls.take(call.callee, call.call_id)
    call.failed(errors.TIMEOUT)
    call.callee.settled()
    play.it.settle()


def _garbled(play: Play) -> None:
    play.it.b.calls.garbled(play.node, b"%d" % FIRST_ID)
    play.it.settle()


def _overrun(play: Play) -> None:
    for value in ("1", "2", "3"):
        play.report(value)


def _grants(play: Play) -> None:
    play.report("[1 ]")
    play.do(lambda: play.stream().granted(Grant(1, 7)))
    play.do(lambda: play.stream().granted(Grant(0, 0)))
    play.report('"v,"')
    play.answer('"result":1')


def _pushes(play: Play) -> None:
    play.demand(3, 100)
    play.do(lambda: play.stream().pushed(b'[",}" ]'))
    play.demand(0, 0)
    play.do(lambda: play.stream().finish())
    play.answer('"result":1')


def _pushes_too_much(play: Play) -> None:
    play.demand(1, 100)
    play.do(lambda: play.stream().pushed(b"1"))
    play.do(lambda: play.stream().pushed(b"2"))


ERROR: Final = '"error":{"message":"no  film", "code": 7,"data":{"outcome":"not_delivered" , "retryAfterMs":1}}'
SCENES: Final[dict[str, tuple[str, Callable[[Play], object]]]] = {
    "the node answers": (CALL, lambda play: play.answer('"result": [1e400 , 2.50] ')),
    "the node answers with an error": (CALL, lambda play: play.answer('"error":{"code": 7,"message":"no  film"}')),
    "the node says the gateway's word": (CALL, lambda play: play.answer(ERROR)),
    "the node's answer is no JSON-RPC": (CALL, lambda play: play.answer('"error":7')),
    "the node's answer is no JSON": (CALL, _garbled),
    "the node is lost": (CALL, Play.lose_node),
    "the caller cancels": (CALL, Play.cancel),
    "the caller is lost": (CALL, Play.abandon),
    "the deadline": (CALL, _deadline),
    "the node reports": (
        CALL,
        lambda play: [play.report("[1 ]"), play.report('{"a,":"}"}'), play.answer('"result":1')],
    ),
    "a traceparent": (CALL[:-1] + ',"traceparent":"00-ab-cd-01"}', lambda play: play.answer('"result":1')),
    "no parameters": ('{"jsonrpc":"2.0","id":"a","method":"camera.snap"}', lambda play: play.answer('"result":1')),
    "values and grants": (STREAM, _grants),
    "values the other way": (STREAM, _pushes),
    "a value without credit": (STREAM, _overrun),
    "a push without credit": (STREAM, _pushes_too_much),
    "a stream of a lost node": (STREAM, Play.lose_node),
    "a stream that is cancelled": (STREAM, Play.cancel),
    "a stream that grants too much": (STREAM.replace("90", str(1 << 21)), lambda play: None),
    "no such method": (CALL.replace("snap", "none"), lambda play: None),
}


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", SCENES)
async def test_all_that_a_caller_and_a_node_get_is_what_they_get_on_one_gateway(
    name: str, context: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text, act = SCENES[name]
    seen = []
    for together in (True, False):
        play = Play(together=together, context=context)
        caplog.clear()
        play.ask(text)
        act(play)
        lines = [(line.message, vars(line)["outcome"], vars(line)["connId"]) for line in caplog.records]
        outcomes = +play.it.a.router.tally.outcomes()
        seen.append((play.caller.take(), play.node.take(), outcomes, lines, +play.it.a.router.dropped))
        assert not any(play.left())
    assert seen[0] == seen[1]
    assert seen[0][0], "something came of it"


async def test_a_call_costs_one_message_each_way() -> None:
    play = Play()
    sent = [play.it.a.link.sent.copy(), play.it.b.link.sent.copy()]
    play.ask()
    assert play.node.take() == [SENT]
    play.answer('"result":7')
    assert play.caller.take() == [accepted("7", '"a"')]
    assert [dict(link.sent - old) for link, old in zip((play.it.a.link, play.it.b.link), sent, strict=True)] == [
        {b"call": 1},
        {b"result": 1},
    ]
    assert play.it.a.relay.answers.called.outcomes()[OK] == 1


async def test_batches_are_whole() -> None:
    play = Play()
    batch = Batch(play.caller)
    for number in "12":
        play.it.ask(play.caller, CALL.replace('"a"', number), batch)
    batch.done(b"", None)
    play.answer('"result":7')
    assert play.caller.take() == []
    play.answer('"error":{"code":1,"message":""}', FIRST_ID + 1)
    first, error = accepted("7", "1"), '{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":""}}'
    assert play.caller.take() == [f"[{first},{error}]"]


async def test_methods_may_have_any_name() -> None:
    it, caller = Two(), Listing()
    names = ['a"b', "a\\", 'a\\"', "ä", '\\\\"\\', "日本"]
    node = it.serve("pi", names)
    for number, name in enumerate(names):
        it.ask(caller, json.dumps({"jsonrpc": "2.0", "id": number, "method": name, "params": ['"']}))
    assert [json.loads(text)["method"] for text in node.take()] == names


# Limits and pressure of the node, which its own gateway judges


def full(play: Play) -> str:
    """As many calls as the node may have, all of another caller's at its own gateway."""
    for number in range(9):
        play.it.b.router.call(Listing(), message_of(number), b"", b"%d" % number, None)
    return "pi has 9 calls in flight"


def message_of(number: int) -> Any:
    """A call without parameters."""
    return decode(b'{"jsonrpc":"2.0","id":%d,"method":"camera.snap"}' % number)


def barred(play: Play) -> str:
    """The node does not read."""
    play.node.link.barred = True
    return "pi has not read what was sent to it before"


@pytest.mark.parametrize("why", [full, barred])
async def test_what_the_node_has_no_room_for_is_refused_there(
    why: Callable[[Play], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    play = Play()
    detail = why(play)
    play.node.take()
    caplog.clear()
    play.ask()
    assert play.caller.take() == [refused(-32009, detail, '"a"', retryAfterMs=100, outcome="not_delivered")]
    assert play.node.take() == []
    assert play.caller.running == {}
    assert caplog.records == [], "as on one gateway, where a refusal is not logged"
    assert play.it.a.router.tally.outcomes()["overloaded"] == 1


async def test_what_would_be_too_large_is_refused_before_it_is_sent_and_a_result_at_its_callers() -> None:
    play = Play(max_message_bytes=5000)
    play.ask(CALL.replace("1 ,2.50", '"' + "x" * 4990 + '"'))
    assert json.loads(play.caller.take()[0])["data"]["outcome"] == "not_delivered"
    play.ask()
    play.answer(f'"result":"{"x" * 4980}"')
    (reply,) = play.caller.take()
    data = {"code": "overloaded", "temporary": False, "outcome": "unknown"}
    assert json.loads(reply)["error"]["data"] == data
    assert not any(play.left())


@pytest.mark.parametrize("rest", [f'"result":"{"x" * 1000}"', f'"error":{{"code":1,"message":"{"x" * 1000}"}}'])
async def test_an_answer_that_nats_does_not_take_ends_the_call_and_no_other(rest: str) -> None:
    play = Play()
    for number in range(3):
        play.it.ask(play.caller, CALL.replace('"a"', str(number)))
    play.it.b.link.info.max_payload = play.it.b.relay._of(play.it.b.member("a"))._most = 1000
    for number, text in enumerate(('"result":1', rest, '"error":{"code":2,"message":""}')):
        play.it.b.calls.answered(play.node, decode(f'{{"jsonrpc":"2.0","id":{FIRST_ID + number},{text}}}'.encode()))
    play.it.settle()
    told = {reply["id"]: reply for reply in map(json.loads, play.caller.take())}
    assert told[1]["error"]["message"] == "Too large: NATS does not take it"
    assert (told[0]["result"], told[2]["error"]["code"]) == (1, 2)
    assert not any(play.left())


async def test_notifications_are_sent_on_and_dropped_if_the_node_does_not_read() -> None:
    play = Play()
    note = '{"jsonrpc":"2.0","method":"camera.snap","params":[1 ]}'
    play.ask(note)
    assert play.node.take() == [note]
    play.node.link.barred = True
    play.ask(note)
    play.it.b.here.clear()
    play.ask(note)
    assert (play.node.take(), play.it.b.router.dropped["notification"]) == ([], 2)


async def test_a_caller_that_does_not_read_has_the_node_paused_until_it_does() -> None:
    play = Play()
    callers = [play.caller, play.it.caller()]
    for number, caller in enumerate(callers):
        play.it.ask(caller, CALL)
        caller.link.pressed = True
        play.answer('"result":1', FIRST_ID + number)
    (first,), (second,) = callers[0].held_up, callers[1].held_up
    first.wait()  # as `Pressed.hold_up` does
    second.wait()
    play.it.settle()
    assert play.node.link.waits == 1
    first.go_on()
    play.it.settle()
    assert play.node.link.waits == 1
    second.go_on()
    play.it.settle()
    assert play.node.link.waits == 0


async def test_a_pause_ends_with_the_gateway_of_the_caller() -> None:
    play = Play()
    play.it.there("pi").peer.link.wait()
    play.it.settle()
    assert play.node.link.waits == 1
    play.it.a.lose()
    play.it.b.members.unreachable(play.it.b.member("a"))
    assert play.node.link.waits == 0


async def test_what_a_gateway_has_not_taken_bars_the_nodes_there_and_holds_up_the_nodes_here() -> None:
    play = Play(max_message_bytes=1 << 21)
    play.it.b.link.stopped = True
    big = CALL.replace("1 ,2.50", '"' + "x" * (1 << 20) + '"')
    for number in range(4):
        play.ask(big.replace('"a"', str(number)))
    assert play.it.there("pi").peer.link.barred
    play.ask()
    reason = "pi has not read what was sent to it before"
    told = {"code": -32009, "detail": reason, "data": {"retryAfterMs": 100, "outcome": "not_delivered"}}
    assert [json.loads(text) for text in play.caller.take()] == [told]
    play.it.b.link.stopped = False
    play.it.settle()
    assert not play.it.there("pi").peer.link.barred
    assert len(play.node.take()) == 4
    play.it.a.link.stopped = True
    for number in range(4):
        play.answer(f'"result":"{"x" * (1 << 20)}"', FIRST_ID + number)
    assert play.node.link.waits == 1
    play.ask()
    assert play.report("1", FIRST_ID + 4)
    assert play.report("2", FIRST_ID + 4)
    play.it.a.link.stopped = False
    play.it.settle()
    assert play.node.link.waits == 0
    *results, report = play.caller.take()
    assert len(results) == 4
    assert json.loads(report)["params"] == {"id": "a", "value": 2}, "the latest, after the results"


async def test_little_is_on_its_way_for_ever() -> None:
    play = Play()
    for number in range(3 * HIGH // 100000):
        play.ask(CALL.replace("1 ,2.50", '"' + "x" * 100_000 + '"'))
        play.answer('"result":7', FIRST_ID + number)
    assert not play.it.there("pi").peer.link.barred
    assert play.it.b.link.sent[b"taken"] > 10


async def test_a_call_that_is_cancelled_as_its_way_is_gone_ends_once() -> None:
    play = Play()
    request = decode(CALL.encode())
    play.it.a.router.call(play.caller, request, bytes(request.params), bytes(request.id), None)
    play.it.a.link.joined = False
    play.caller.running[b'"a"'].cancel(errors.CANCELLED)
    assert [json.loads(reply)["error"]["code"] for reply in play.caller.take()] == [-32010]
    assert play.caller.running == {}
    assert play.it.a.router.tally.outcomes()["node_lost"] == 1
    assert play.it.a.router.tally.outcomes()["cancelled"] == 0


async def test_a_defect_as_mail_leaves_keeps_no_other_mail_back() -> None:
    relay, left = Play().it.a.relay, []

    def fail() -> None:
        raise ValueError("a defect")

    for leave in (lambda: left.append("the other"), fail):
        relay.cork(cast(Distant, type("Mail", (), {"leave": staticmethod(leave)})()))
    with pytest.raises(ValueError, match="a defect"):
        relay._cork._flush()
    relay._cork._flush()
    assert left == ["the other"]


# The fence


async def test_a_call_that_was_given_up_meanwhile_does_not_begin() -> None:
    """The node's gateway stood still: its caller was told that the call is lost, and then it goes on."""
    play = Play()
    play.it.b.link.stopped = True
    play.ask()
    play.it.a.members.unreachable(play.it.a.member("b"))
    await passed_grace(play)
    assert play.caller.take() == [lost('"a"')]
    play.it.b.clock.now += TIMEOUT + 1
    play.it.b.link.stopped = False
    play.it.settle()
    assert (play.node.take(), play.node.calls) == ([], {})


def stand_still(play: Play) -> None:
    """Let the node's gateway stand still, and send a heartbeat when it goes on."""
    play.it.b.clock.now += TIMEOUT + 1
    for _ in range(2):
        play.it.b.members._tick()


async def passed_grace(play: Play) -> None:
    """Let that time pass in which a call may still begin, after its gateway was lost."""
    for _ in range(50):
        if play.caller.sent:
            return
        await asyncio.sleep(0.01)


async def test_a_call_that_is_late_but_still_wanted_begins() -> None:
    """Both stood still, say. The node's gateway asks, and the caller's has not given up anything."""
    play = Play()
    play.it.b.link.stopped = True
    play.ask()
    stand_still(play)
    play.it.b.link.stopped = False
    play.it.settle()
    assert play.node.take() == [SENT]
    assert (play.it.b.link.sent[b"stale"], play.it.a.link.sent[b"fence"]) == (1, 1)


async def test_a_call_that_was_withdrawn_before_its_gateway_is_asked_does_not_begin() -> None:
    play = Play()
    play.it.b.link.stopped = True
    play.ask()
    stand_still(play)
    play.it.a.link.stopped = True
    play.it.b.link.stopped = False
    play.it.settle()
    assert play.node.take() == []
    play.cancel()
    play.it.a.link.stopped = False
    play.it.settle()
    assert play.node.take() == [], "not even that it is cancelled"
    assert not any(play.left())


async def test_a_call_that_waits_for_its_node_to_read_is_asked_for_again_when_it_does() -> None:
    play = Play()
    play.node.flowing = False
    play.ask()
    assert play.node.take() == []
    stand_still(play)
    play.node.flowing = True
    assert play.node.pool is not None
    play.node.pool.read_on()
    assert play.node.take() == []
    play.it.settle()
    assert play.node.take() == [SENT]


async def test_what_waits_for_a_node_ends_with_it_and_was_not_delivered() -> None:
    play = Play()
    play.node.flowing = False
    play.ask()
    play.lose_node()
    assert play.caller.take() == [NOT_REACHED]
    assert play.node.room == 1 << 20


async def test_grants_come_after_the_stream_that_they_are_for() -> None:
    play = Play()
    play.node.flowing = False
    play.ask(STREAM)
    play.do(lambda: play.stream().granted(Grant(1, 7)))
    play.do(lambda: play.stream().granted(Grant(1, 8)))
    play.do(lambda: play.stream().finish())
    play.node.flowing = True
    assert play.node.pool is not None
    play.node.pool.read_on()
    opened, credit, end = map(json.loads, play.node.take())
    assert opened["stream"] == {"credit": 2, "bytes": 90}
    assert credit["params"] == {"id": FIRST_ID, "credit": 2, "bytes": 15}
    assert end["params"] == {"id": FIRST_ID, "end": True}


@pytest.mark.parametrize("how", ["cut", "waits", "nothing", "demand", "after the end", "nothing after the end"])
async def test_whatever_renews_a_stream_renews_it_at_both_gateways(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left of a grant: otherwise the other gateway's deadline would end the stream."""
    play, now = Play(), 1000.0
    for side in (play.it.a, play.it.b):
        monkeypatch.setattr(side.calls, "time", lambda: now)
    play.ask(STREAM)
    full = Grant(1024, 1 << 20)
    play.do(lambda: play.stream().granted(full))
    play.demand(full.credit, full.octets)
    if "end" in how:
        play.do(lambda: play.stream().finish())
    if how == "waits":
        play.report('"used"')
        play.caller.room = 0
        play.caller.flowing = False
    acts: dict[str, Callable[[], object]] = {
        "cut": lambda: play.stream().granted(Grant(1)),
        "waits": lambda: play.stream().granted(Grant(0, 5)),
        "nothing": lambda: play.stream().granted(Grant()),
        "demand": lambda: play.demand(1, 1),
        "after the end": lambda: play.demand(1, 1),
        "nothing after the end": lambda: play.demand(0, 0),
    }
    (there,) = play.node.calls.values()
    for _ in range(9):
        now += 20.0
        play.do(acts[how])
        assert play.stream().left() == 30.0
        assert there.left() == 31.0
    play.answer('"result":1')
    assert not any(play.left())


async def test_a_flood_of_grants_that_grant_nothing_stays_at_its_own_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    play, now = Play(), 1000.0
    for side in (play.it.a, play.it.b):
        monkeypatch.setattr(side.calls, "time", lambda: now)
    play.ask(STREAM)
    play.do(lambda: play.stream().granted(Grant(1024, 1 << 20)))
    play.demand(1024, 1 << 20)
    now += 20.0
    sides = play.it.a.link, play.it.b.link
    before = [link.sent[b"said"] for link in sides]
    for _ in range(99):
        play.do(lambda: play.stream().granted(Grant(1)))
        play.demand(1, 0)
    assert [link.sent[b"said"] for link in sides] == [count + 1 for count in before]


async def test_what_is_said_of_a_stream_that_waits_for_its_node_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    play, now = Play(), 1000.0
    for side in (play.it.a, play.it.b):
        monkeypatch.setattr(side.calls, "time", lambda: now)
    play.node.flowing = False
    play.ask(STREAM)
    (there,) = play.node.calls.values()
    for act in (lambda: play.stream().granted(Grant()), lambda: play.stream().finish()):
        now += 20.0
        play.do(act)
        assert (play.stream().left(), there.left()) == (30.0, 31.0)
    play.cancel()
    assert not any(play.left())


# Gateways that come and go


async def test_a_call_to_a_gateway_that_is_not_there_was_not_delivered_and_its_gateway_is_lost() -> None:
    play = Play()
    play.ask(CALL.replace('"a"', '"before"'))
    play.it.b.link.lose()
    play.ask()
    assert play.caller.take() == [NOT_REACHED]
    assert play.it.a.members.others == {}
    await passed_grace(play)
    assert play.caller.take() == [lost('"before"')]
    assert not any((len(play.it.a.calls), play.caller.running))


async def test_callers_are_told_later_than_a_gateway_that_nats_has_lost_may_read_their_calls() -> None:
    """NATS has ended its link. It reads what has come by it, and then notices that."""
    play = Play()
    play.it.b.link.stopped = True
    play.ask()
    play.it.b.link.cut = True
    play.ask(CALL.replace('"a"', '"b"'))
    (told,) = map(json.loads, play.caller.take())
    assert (told["id"], told["error"]["data"]["outcome"]) == ("b", "not_delivered")
    assert play.it.a.members.others == {}
    play.it.b.link.stopped = False
    play.it.settle()
    assert (play.node.take(), play.caller.take()) == ([SENT], [])
    await passed_grace(play)
    assert play.caller.take() == [lost('"a"')]


def ask_two(play: Play, first: int) -> None:
    """Ask twice, in one message."""
    for number in (first, first + 1):
        play.it.a.router.call(play.caller, message_of(number), b"", b"%d" % number, None)
    play.it.a.relay.flush()


def outcomes(play: Play) -> list[tuple[int, str]]:
    """The ids of what has failed, and the outcomes."""
    replies = map(json.loads, play.caller.take())
    return [(reply["id"], reply["error"]["data"]["outcome"]) for reply in replies]


async def test_all_calls_of_messages_that_nobody_hears_were_not_delivered() -> None:
    play = Play()
    ask_two(play, 0)
    play.it.settle()
    play.it.b.link.lose()
    ask_two(play, 2)
    ask_two(play, 4)
    play.it.settle()
    assert outcomes(play) == [(number, "not_delivered") for number in range(2, 6)]
    await passed_grace(play)
    assert outcomes(play) == [(0, "unknown"), (1, "unknown")]
    assert play.it.a.relay._lost == {}


async def test_a_503_says_nothing_of_later_messages() -> None:
    """The servers of NATS had lost each other for a moment."""
    play = Play()
    play.it.b.link.joined = False
    ask_two(play, 0)
    play.it.b.link.joined = True
    ask_two(play, 2)
    play.it.settle()
    assert len(play.node.take()) == 2
    assert outcomes(play) == [(0, "not_delivered"), (1, "not_delivered")]
    await passed_grace(play)
    assert outcomes(play) == [(2, "unknown"), (3, "unknown")]


async def test_a_503_ends_the_calls_to_all_nodes_there_even_if_the_first_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distant, "LINGER", 0.001)
    play = Play()
    play.it.serve("attic", ["attic.look"])
    play.it.b.link.lose()
    play.it.a.link.stopped = True
    play.it.a.router.call(play.caller, message_of(0), b"", b"0", None)
    looking = decode(b'{"jsonrpc":"2.0","id":1,"method":"attic.look"}')
    play.it.a.router.call(play.caller, looking, b"", b"1", None)
    play.it.a.relay.flush()
    play.caller.running[b"0"].cancel(errors.CANCELLED)
    play.caller.take()
    await asyncio.sleep(0.01)
    play.it.a.link.stopped = False
    play.it.settle()
    assert outcomes(play) == [(1, "not_delivered")]


async def test_without_nats_a_call_was_not_delivered() -> None:
    play = Play()
    play.it.a.link.joined = False
    play.ask()
    assert play.caller.take() == [NOT_REACHED]


async def test_calls_end_later_than_they_may_begin_after_the_loss_of_our_own_nats() -> None:
    play = Play()
    play.ask()
    play.it.a.lose()
    await passed_grace(play)
    assert play.caller.take() == [], "it may begin for as long as its gateway was heard"


async def test_a_gateway_that_was_lost_leaves_nothing_in_flight_here() -> None:
    play = Play()
    play.ask()
    play.node.take()
    play.it.b.members.unreachable(play.it.b.member("a"))
    assert play.node.take() == [cancelled(FIRST_ID)]
    assert (play.node.calls, len(play.it.b.calls)) == ({}, 0)
    assert not play.answer('"result":1')
    assert play.caller.take() == []


async def test_an_answer_that_comes_after_the_end_is_dropped_and_counted() -> None:
    play = Play()
    play.ask()
    play.it.b.link.stopped = True
    play.cancel()
    play.caller.take()
    play.answer('"result":1')
    play.it.b.link.stopped = False
    play.it.settle()
    assert (play.caller.take(), play.it.a.relay.answers.late) == ([], 1)


async def test_a_node_that_is_gone_by_then_did_not_get_the_call() -> None:
    play = Play()
    play.it.b.nodes.unregister(play.node)
    play.ask()
    assert play.caller.take() == [NOT_REACHED]


async def test_a_gateway_that_drains_begins_no_calls() -> None:
    play = Play()
    play.ask()
    play.it.b.status.drain()
    assert play.it.b.status.phase is Phase.DRAINING
    play.ask(CALL.replace('"a"', '"b"'))
    (reply,) = play.caller.take()
    assert json.loads(reply)["error"]["data"]["outcome"] == "not_delivered"
    play.answer('"result":1')
    assert play.caller.take() == [accepted("1", '"a"')]


async def test_members_are_probed_as_long_as_calls_are_in_flight_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distant, "LINGER", 0.001)
    play = Play()
    member = play.it.a.member("b")
    for _ in range(3):
        play.ask()
        assert member.open == 1
        play.ask(CALL.replace('"a"', '"b"'))
        play.cancel()
        await asyncio.sleep(0.01)
        assert member.open == 1
        (call,) = play.node.calls
        play.answer('"result":1', int(call))
        while member.open:
            await asyncio.sleep(0.001)


# Mail that no gateway sends

MISTAKES: Final = {
    b"call": ["1\0x", "1\0x\0\0}", "1\0x\0%s\0}", '1\0x\0%s "m" x\0}', '1\0x\0%s "\0}', '1\0x\0%s "m" 1 2\0}'],
    b"result": ["", "x"],
    b"taken": ["", "x"],
    b"said": ["", "x\0y"],
    b"credit": ["", "1", "1,2,3", "-1,2", "1,99999999999999999999999"],
    b"demand": ["", "1"],
    b"refused": ["", "overloaded unknown", "other unknown\n{}", "overloaded other\n{}"],
    b"ended": [""],
}


@pytest.mark.parametrize("kind", MISTAKES)
async def test_mail_that_cannot_be_read_is_refused_and_logged_without_a_traceback(
    kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    play = Play()
    play.ask()
    play.node.take()
    caplog.clear()
    member: Member = play.it.a.member("b") if kind in (b"call", b"credit") else play.it.b.member("a")
    sender = play.it.a if member.name == "b" else play.it.b
    for text in MISTAKES[kind]:
        payload = text.replace("%s", play.node.conn_id).encode()
        if kind in sender.members._handlers:
            sender.members.tell(member, kind, payload)
        else:
            sender.members.tell(member, b"said", b"%b\0%d-1\0%b" % (kind, FIRST_ID, payload))
        play.it.settle()
    (line,) = caplog.records
    assert vars(line)["event"] == "cluster.mail_refused"
    assert line.exc_info is None
    assert (play.caller.take(), play.node.take()) == ([], [])
    play.answer('"result":1')
    assert play.caller.take() == [accepted("1", '"a"')]


async def test_a_call_that_cannot_be_read_was_not_delivered_and_the_others_begin() -> None:
    play = Play()
    ask_two(play, 0)
    (parcel,) = play.it.b.link.arrived
    calls = parcel.payload.split(b"\0")
    calls[2] = calls[2].replace(b" 30000", b" soon")
    play.it.b.link.arrived[0] = parcel._replace(payload=b"\0".join(calls))
    play.it.settle()
    assert outcomes(play) == [(0, "not_delivered")]
    assert len(play.node.take()) == 1


async def test_a_defect_of_what_is_read_leaves_the_cork_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play()
    monkeypatch.setattr(play.it.b.relay.incoming, "write", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        play.ask()
    assert play.it.b.relay._cork.reading is None


@pytest.mark.parametrize(
    ("kind", "token", "payload"),
    [
        (b"call", b"", b'1\0009-9\0nobody "m" 1\0}'),
        (b"result", b"", b"\0001"),
        (b"result", b"", b"9-1\0001"),
        (b"said", b"", b"of a later release\0009-1\0001"),
        (b"cancel", b"9-9", b""),
        (b"push", b"9-9", b"1"),
        (b"finish", b"9-9", b""),
        (b"on", b"", b"nobody"),
        (b"wait", b"", b"nobody"),
        (b"fence", b"", b"1"),
        (b"error", b"9", b"{}"),
        (b"gone", b"9-9", b""),
        (b"progress", b"9-1", b"1"),
        (b"demand", b"9-9", b"1,1"),
        (b"stale", b"", b""),
        (b"unheard", b"9-9", b""),
    ],
)
async def test_mail_about_what_is_not_there_is_harmless(
    kind: bytes, token: bytes, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    play = Play()
    for side in (play.it.a, play.it.b):
        (member,) = side.members.others.values()
        if kind in side.members._handlers:
            side.members.tell(member, kind, payload, token)
        else:
            side.members.tell(member, b"said", b"%b\0%b\0%b" % (kind, token, payload))
    play.it.settle()
    assert caplog.records == []
    play.ask()
    play.answer('"result":1')
    assert play.caller.take() == [accepted("1", '"a"')]
    assert play.node.link.waits == 0
