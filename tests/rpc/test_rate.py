"""`limits.rate`: what is over it is refused with the time to wait, and who never waits is ended."""

import json
from typing import Any

from gateway import errors
from gateway.limits import PATIENCE, Rate
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.rpc.calls import Calls
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.method import AUTHENTICATED, method
from gateway.status import Status
from gateway.telemetry.lines import Lines
from tests.support.peers import RawPeer
from tests.support.process import StartGateway
from tests.support.rpc import Listing, notification, request

RATE = Rate(10.0, 4)


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class Paced:
    """A dispatcher with a rate of 10 a second and 4 at once, one method, and one peer."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.peer = Listing()
        self.served = 0
        calls = Calls()
        nodes = Nodes(lambda node, change: None, lambda node: None)
        self._dispatcher = Dispatcher(
            Status("3f0c", self.clock),
            calls,
            Router(
                nodes,
                calls,
                call_timeout=1.0,
                max_in_flight=4,
                max_node_in_flight=4,
                max_message_bytes=1_048_576,
                max_credit_bytes=2_097_152,
                lines=Lines(),
            ),
            max_in_flight=4,
            max_batch=100,
            call_timeout=1.0,
            lines=Lines(),
            rate=RATE,
            clock=self.clock,
        )
        self._dispatcher.add(self)

    @method("count", scope=AUTHENTICATED)
    def count(self, peer: object) -> int:
        """Count the calls."""
        self.served += 1
        return self.served

    def say(self, text: str) -> list[Any]:
        """Send a message, and return the replies."""
        self._dispatcher.dispatch(self.peer, text.encode())
        return [json.loads(reply) for reply in self.peer.take()]

    def refusals(self, text: str, times: int = 1) -> list[int]:
        """Send a message so often, and return the `retryAfterMs` of those that were refused for their number."""
        replies = [reply for _ in range(times) for reply in self.say(text)]
        waits = [reply["error"] for reply in replies if reply.get("error", {}).get("code") == -32002]
        assert all(error["data"]["temporary"] and error["data"]["code"] == "rate_limited" for error in waits)
        return [error["data"]["retryAfterMs"] for error in waits]


def test_a_burst_passes_and_what_follows_is_told_when_to_come_back() -> None:
    paced = Paced()
    assert paced.refusals(request("count"), times=6) == [100, 100]
    assert paced.served == 4


def test_who_waits_as_told_is_served() -> None:
    paced = Paced()
    paced.refusals(request("count"), times=4)
    for served in range(5, 105):
        wait = paced.refusals(request("count"))
        assert len(wait) == 1
        paced.clock.now += wait[0] / 1000
        assert paced.refusals(request("count")) == []
        assert paced.served == served
        assert paced.peer.ended is None


def test_each_element_of_a_batch_counts() -> None:
    paced = Paced()
    replies = paced.say(f"[{','.join([request('count')] * 10)}]")[0]
    assert [reply.get("result", "refused") for reply in replies] == [1, 2, 3, 4] + ["refused"] * 6


def test_notifications_count_and_get_no_reply() -> None:
    paced = Paced()
    assert [paced.say(notification("count")) for _ in range(6)] == [[]] * 6
    assert paced.served == 4
    assert paced.refusals(request("count")) == [100]


def test_what_is_no_request_counts_too() -> None:
    for text in ("{", "{}", '{"jsonrpc":"2.0","id":1.5,"method":"count"}', '{"jsonrpc":"2.0","id":1,"method":"none"}'):
        paced = Paced()
        codes = [paced.say(text)[0]["error"]["code"] for _ in range(6)]
        assert -32002 not in codes[:4]
        assert codes[4:] == [-32002, -32002], text


def test_replies_that_nobody_waits_for_count() -> None:
    paced = Paced()
    for _ in range(4):
        assert paced.say('{"jsonrpc":"2.0","id":7,"result":1}') == []
    assert paced.refusals(request("count")) == [100]


def test_who_never_heeds_the_refusals_is_ended() -> None:
    paced = Paced()
    tolerated = PATIENCE * 4
    paced.refusals(request("count"), times=4 + tolerated)
    assert paced.peer.ended is None
    paced.refusals(request("count"))
    assert paced.peer.ended == errors.FLOOD


def test_a_pause_is_taken_as_heeding() -> None:
    paced = Paced()
    for _ in range(20):
        paced.refusals(request("count"), times=4 + PATIENCE * 4)
        paced.clock.now += 4 / 10
    assert paced.peer.ended is None


async def test_a_connection_that_ignores_its_rate_is_closed_with_4003(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"rate": 5, "burst": 5}})
    with await RawPeer.open(process) as peer:
        limits = (await peer.welcome())["limits"]
        assert (limits["rate"], limits["burst"]) == (5.0, 5)
        for number in range(70):
            await peer.send_json({"jsonrpc": "2.0", "id": number, "method": "gateway.ping"})
        end = await peer.recv_until_closed()
        assert peer.close_code == 4003
        codes = [json.loads(frame.payload).get("error", {}).get("code") for frame in end.frames[:-1]]
        assert codes[:5] == [None] * 5
        assert set(codes[5:]) == {-32002}
        line = await process.wait_event("connection.closed", remote=peer.local)
        assert (line["cause"], line["code"]) == ("flood", 4003)
