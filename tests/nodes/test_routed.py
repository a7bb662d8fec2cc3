"""Routed calls in flight: their reports, and their ends, between lists of what is sent."""

from collections.abc import Callable

import pytest
from msgspec import Raw

from gateway import errors
from gateway.nodes.registry import Nodes, Served
from gateway.nodes.routed import RoutedCall, progress
from gateway.nodes.routing import Router
from gateway.rpc.calls import Calls
from gateway.rpc.jsonrpc import Message
from gateway.telemetry.lines import Lines
from tests.support.routed import cancelled
from tests.support.rpc import Listing, NodeListing, accepted, refused

REPORT = '{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":"a","value":%s}}'


class Scene:
    """A call of a caller's to a node, both of them lists."""

    def __init__(self) -> None:
        self.calls, nodes = Calls(), Nodes(lambda node, change: None, lambda node: None)
        self.router = Router(
            nodes,
            self.calls,
            call_timeout=9.0,
            max_in_flight=9,
            max_node_in_flight=9,
            max_message_bytes=1000,
            max_credit_bytes=1000,
            lines=Lines(),
        )
        self.caller, self.node = Listing(), NodeListing()
        nodes.register(self.node, "pi", [Served("snap", b'"snap"', "call:snap", "", b"")], False)
        self.router.call(self.caller, Message("2.0", method="snap"), b"", b'"a"', None)
        (call,) = self.node.calls.values()
        assert isinstance(call, RoutedCall)
        self.call = call
        self.node.take()


async def test_reports_go_to_the_caller_as_long_as_it_reads() -> None:
    it = Scene()
    for number in (b"1", b"2"):
        it.call.reported(number)
    assert it.caller.take() == [REPORT % 1, REPORT % 2]
    it.caller.link.pressed = True
    for number in (b"3", b"4"):
        it.call.reported(number)
    it.call.drained()
    assert it.caller.take() == []
    it.caller.link.pressed = False
    it.call.reported(b"5")
    it.call.drained()
    it.call.drained()
    assert it.caller.take() == [REPORT % 5], "the latest, even if the caller reads again by now"
    assert it.router.dropped["progress"] == 2


async def test_a_report_that_waits_takes_room_and_is_dropped_at_the_end() -> None:
    it = Scene()
    room = it.caller.room
    it.caller.link.pressed = True
    it.call.reported(b"1")
    assert it.caller.room == room - len(REPORT % 1)
    it.call.answered(Raw(b"7"))
    assert it.caller.take() == [accepted("7", '"a"')]
    assert (it.caller.room, it.router.dropped["progress"]) == (room, 1)


async def test_a_report_for_which_there_is_no_room_is_dropped() -> None:
    it = Scene()
    it.caller.link.pressed, it.caller.room = True, 10
    it.call.reported(b"1")
    it.caller.link.pressed = False
    it.call.drained()
    it.call.reported(b'"' + b"x" * 1000 + b'"')
    assert (it.caller.take(), it.router.dropped["progress"]) == ([], 2)


ENDS: dict[str, tuple[Callable[[RoutedCall], None], int]] = {
    "cancelled": (lambda call: call.cancel(errors.CANCELLED), -32800),
    "abandoned": (lambda call: call.abandon(), -32800),
}


@pytest.mark.parametrize("how", ENDS)
async def test_a_call_that_is_ended_is_in_no_table_and_its_node_is_told(how: str) -> None:
    it = Scene()
    act, code = ENDS[how]
    act(it.call)
    assert it.caller.take() == [refused(code, "pi: snap", '"a"', outcome="unknown")]
    assert it.node.take() == [cancelled(it.call.call_id.decode())]
    assert not (it.caller.running or it.node.calls or len(it.calls))


async def test_a_call_that_may_not_be_held_ends_with_the_link_of_its_node() -> None:
    it = Scene()
    it.call.lost_link()
    assert it.caller.take() == []
    it.call.held = False
    it.call.lost_link()
    assert it.caller.take() == [refused(-32010, "pi: snap", '"a"', outcome="unknown")]


async def test_it_is_no_stream_and_its_deadline_stands() -> None:
    it = Scene()
    assert (it.call.stream, it.call.left()) == (None, 0.0)


def test_the_parts_of_a_report() -> None:
    assert b"".join(progress(b'"a"', b"[1 ]")).decode() == REPORT % "[1 ]"
