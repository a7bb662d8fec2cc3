"""`event.*` where other gateways share the topics: what a publish is answered with, and when."""

import json
from typing import Any, cast

import pytest

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster.replica import sealed
from gateway.cluster.stream import unavailable
from gateway.events.delivery import Subscriber
from gateway.methods import publishing
from gateway.methods.publishing import SharedEventMethods
from gateway.rpc.calls import Calls
from gateway.rpc.dispatcher import Dispatcher
from gateway.rpc.method import Refusal
from gateway.rpc.requests import Route
from gateway.rpc.steps import Steps
from gateway.rpc.work import at_once
from gateway.status import Status
from gateway.telemetry.lines import Lines
from tests.support.ears import Ear
from tests.support.fleet import until
from tests.support.rpc import Listing, notification, passes, request
from tests.support.shared import TIME, SharedHall


class Hearing(Listing):
    """A peer of a dispatcher that also hears events."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = Ear()

    @property
    def subscriber(self) -> Subscriber | None:
        """The ear's."""
        return self.ear.subscriber

    @subscriber.setter
    def subscriber(self, subscriber: Subscriber | None) -> None:
        self.ear.subscriber = subscriber

    def __getattr__(self, name: str) -> Any:
        """What an ear has, and a peer has not."""
        return getattr(self.ear, name)


class Office:
    """The methods over a shared stream, and a peer."""

    def __init__(self, call_timeout: float = 30.0, max_in_flight: int = 2) -> None:
        self.hall = SharedHall()
        self.stream = self.hall.stream
        status = Status("instance", lambda: 0.0)
        status.ready()
        nowhere = cast(Route, None)
        self.dispatcher = Dispatcher(
            status, Calls(), nowhere, max_in_flight=max_in_flight, max_batch=10, call_timeout=30.0, lines=Lines()
        )
        self.lines, self.now = Lines(), 0.0
        self.methods = SharedEventMethods(
            self.hall.events,
            Steps(),
            4096,
            max_in_flight=max_in_flight,
            call_timeout=call_timeout,
            lines=self.lines,
            clock=lambda: self.now,
        )
        self.dispatcher.add(self.methods, own=True)
        self.peer = Hearing()

    async def tell(self, *messages: str) -> list[Any]:
        """Dispatch messages, and return the replies that have come a little later."""
        for message in messages:
            self.dispatcher.dispatch(self.peer, message.encode())
        await passes(8)
        return [json.loads(reply) for reply in self.peer.take()]


@pytest.fixture
async def office() -> Office:
    office = Office()
    await office.hall.events.start()
    return office


def publish(number: int, topic: str = "a") -> str:
    return request("event.publish", {"topic": topic, "data": number}, number)


async def test_a_publish_is_answered_when_it_is_acknowledged(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    assert await office.tell(publish(1), publish(2)) == []
    assert office.hall.stream.replica.head == 2, "but it was published at once, in order"
    waiting.pop()()
    assert await office.tell() == [{"jsonrpc": "2.0", "id": 2, "result": {"offset": 2, "epoch": "e1"}}]
    waiting.pop()()
    assert await office.tell() == [{"jsonrpc": "2.0", "id": 1, "result": {"offset": 1, "epoch": "e1"}}]


async def test_of_very_many_publishes_none_is_refused_or_lost_and_no_more_is_read_meanwhile(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    notes = [notification("event.publish", {"topic": "a", "data": number}) for number in range(9)]
    assert await office.tell(*notes, publish(9)) == []
    assert (office.stream.replica.head, office.peer.link.waits) == (10, 8)
    while waiting:
        waiting.pop()()
    assert [reply["result"]["offset"] for reply in await office.tell()] == [10]
    assert (office.peer.link.waits, office.peer.running) == (0, {})


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (unavailable("there is no connection to it"), (-32012, "unavailable", "not_delivered")),
        (Refusal(errors.UNACKNOWLEDGED, "late", outcome=errors.UNKNOWN), (-32008, "timeout", "unknown")),
    ],
    ids=["unavailable", "unacknowledged"],
)
async def test_a_publish_that_comes_to_nothing(office: Office, refusal: Refusal, told: tuple[int, str, str]) -> None:
    office.stream.refusal = refusal
    (reply,) = await office.tell(publish(1), notification("event.publish", {"topic": "a", "data": 2}))
    data = reply["error"]["data"]
    assert (reply["error"]["code"], data["code"], data["outcome"]) == told
    assert data["temporary"] is True


async def test_out_of_reach_all_is_refused_that_needs_the_stream(office: Office) -> None:
    office.stream.be(False)
    since = {"topics": ["a"], "since": {"a": {"epoch": "e1", "offset": 0}}}
    replies = await office.tell(
        publish(1), request("event.subscribe", since, 2), request("event.subscribe", [["a"]], 3)
    )
    refused, also, taken = (replies[index] for index in (0, 1, 2))
    for reply in (refused, also):
        assert (reply["error"]["code"], reply["error"]["data"]["outcome"]) == (-32012, "not_delivered")
    assert taken["result"] == {"topics": {"a": {"epoch": "e1", "offset": 0}}}


async def test_a_since_that_another_gateway_has_told_waits_until_it_is_known_here(office: Office) -> None:
    since = {"topics": ["a"], "since": {"a": {"epoch": "e1", "offset": 1}}}
    office.stream.meanwhile = lambda: office.stream.replica.take("a", 1, 0.0, sealed(TIME, "", b"1"))
    (reply,) = await office.tell(request("event.subscribe", since))
    assert reply["result"] == {"topics": {"a": {"epoch": "e1", "offset": 1, "recovered": True}}}
    assert office.peer.frames == []


async def test_a_since_that_is_ahead_is_not_waited_for_on_behalf_of_who_may_not_subscribe(office: Office) -> None:
    since = {"a": {"epoch": "e1", "offset": 1}}
    office.peer.principal = Principal("pi", "node", ("subscribe:b",))
    wrong = request("event.subscribe", {"topics": ["a..b"], "since": since}, 1)
    (malformed,) = await office.tell(wrong)
    (forbidden,) = await office.tell(request("event.subscribe", {"topics": ["a"], "since": since}, 2))
    assert [reply["error"]["code"] for reply in (malformed, forbidden)] == [-32602, -32003]
    assert office.stream.asked == []


async def test_another_credential_that_comes_while_a_since_is_waited_for_is_heeded(office: Office) -> None:
    def narrow() -> None:
        office.peer.principal = Principal("pi", "node", ("subscribe:b",))

    office.stream.meanwhile = narrow
    since = {"topics": ["a"], "since": {"a": {"epoch": "e1", "offset": 1}}}
    (reply,) = await office.tell(request("event.subscribe", since))
    assert reply["error"]["data"]["code"] == "forbidden"


async def test_a_subscription_that_is_cancelled_at_any_moment_keeps_nothing_back(office: Office) -> None:
    """Also while it waits for its first turn, because others have much to do as well."""
    stream, peer = office.stream, office.peer
    patterns = [f"{number}.*" for number in range(900)]
    stream.replica.take("x", 1, 0.0, sealed(TIME, "", b"1"))
    await office.tell(request("event.subscribe", {"topics": ["x"]}))
    moment, cancelled = 0, True
    while cancelled:
        for number, other in enumerate((Hearing(), Hearing(), peer)):
            message = request("event.subscribe", {"topics": patterns}, number)
            office.dispatcher.dispatch(other, message.encode())
        await passes(moment)
        office.dispatcher.cancel(peer, b"2")
        await passes(40)
        (reply,) = map(json.loads, peer.take())
        cancelled = "error" in reply
        stream.replica.take("x", stream.replica.head + 1, 0.0, sealed(TIME, "", b"1"))
        assert peer.ear.take() == [("x", stream.replica.head)], moment
        unsubscribed = request("event.unsubscribe", {"topics": patterns})
        assert [reply["result"] for reply in await office.tell(unsubscribed)] == [{"topics": ["x"]}]
        moment += 1
    assert moment > 5


async def test_another_credential_that_comes_before_the_first_step_is_heeded(office: Office) -> None:
    """What is checked is checked in the same step in which the subscription begins."""
    stream, patterns = office.stream, [f"{number}.*" for number in range(900)]
    stream.replica.take("x", 1, 0.0, sealed(TIME, "", b"1"))
    moment, narrowed = 0, True
    while narrowed:
        office.peer = peer = Hearing()
        for number, other in enumerate((Hearing(), Hearing(), peer)):
            office.dispatcher.dispatch(other, request("event.subscribe", {"topics": patterns}, number).encode())
        await passes(moment)
        narrowed = bool(peer.running)
        peer.principal = Principal("pi", "node", ("subscribe:x",))
        at_once(office.hall.events.rescoped(peer))
        await passes(40)
        assert peer.subscriber is None or not peer.subscriber.patterns, moment
        moment += 1
    assert moment > 5


def outcomes(office: Office) -> dict[str, int]:
    """What became of the publishes, as it is counted."""
    return {name: count for name, count in office.dispatcher.methods["event.publish"].tally.outcomes().items() if count}


async def test_a_publish_that_is_cancelled_is_answered_at_once_and_published_nonetheless(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    await office.tell(publish(1), publish(2))
    assert office.dispatcher.cancel(office.peer, b"1")
    (reply,) = await office.tell()
    assert (reply["id"], reply["error"]["code"]) == (1, -32800)
    assert not office.dispatcher.cancel(office.peer, b"1"), "it is over"
    while waiting:
        waiting.pop()()
    assert [reply["id"] for reply in await office.tell()] == [2], "once"
    assert (office.stream.replica.head, office.peer.running, office.peer.settlements) == (2, {}, 2)
    assert outcomes(office) == {"cancelled": 1, "ok": 1}


async def test_a_caller_that_is_gone_waits_for_nothing(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    notes = [notification("event.publish", {"topic": "a", "data": number}) for number in range(3)]
    await office.tell(publish(1), *notes)
    assert office.peer.link.waits == 2
    office.dispatcher.lost(office.peer)
    assert (office.peer.running, office.peer.link.waits) == ({}, 0)
    office.peer.take()
    while waiting:
        waiting.pop()()
    assert await office.tell() == []
    assert outcomes(office) == {"caller_lost": 4}


def large(number: int, size: int = 1000) -> str:
    return request("event.publish", {"topic": "a", "data": "x" * size}, number)


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of the window, by the thousand."""
    monkeypatch.setattr(publishing, "SMALL", 500)
    monkeypatch.setattr(publishing, "SHARE", 2500)


@pytest.mark.usefixtures("bounds")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_caller_with_its_share_on_the_way_is_read_no_more_until_it_has_less(
    cancelled: bool,
) -> None:
    """Whether it still waits for its publishes or not: NATS has to acknowledge them all the same."""
    office = Office(max_in_flight=9)
    await office.hall.events.start()
    waiting, other = office.stream.hold_acknowledgements(), Hearing()
    for number in range(4):
        await office.tell(large(number))
        if cancelled:
            assert office.dispatcher.cancel(office.peer, b"%d" % number)
        assert office.peer.link.waits == (number > 1)
    office.dispatcher.dispatch(other, large(9).encode())
    assert (office.peer.link.waits, other.link.waits) == (1, 0)
    waiting.pop(0)()
    assert office.peer.link.waits == 1
    waiting.pop(0)()
    assert office.peer.link.waits == 0
    while waiting:
        waiting.pop()()
    methods = office.methods
    assert (office.peer.running, office.peer.link.waits, methods.shares) == ({}, 0, {})


@pytest.mark.usefixtures("bounds")
async def test_small_publishes_that_are_cancelled_count_too(office: Office) -> None:
    """Otherwise one caller alone could have any number of them on the way."""
    waiting = office.stream.hold_acknowledgements()
    for number in range(3):
        await office.tell(publish(number))
        assert office.peer.link.waits == 0
        office.dispatcher.cancel(office.peer, b"%d" % number)
    assert office.peer.link.waits == 1
    while waiting:
        waiting.pop()()
    assert (office.peer.link.waits, office.methods.shares) == (0, {})


@pytest.mark.usefixtures("bounds")
async def test_a_caller_that_is_gone_has_no_share_when_all_is_acknowledged(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    await office.tell(*map(large, range(3)))
    office.dispatcher.lost(office.peer)
    while waiting:
        waiting.pop()()
    assert (office.peer.link.waits, office.methods.shares) == (0, {})


async def test_in_a_batch_a_publish_is_answered_with_the_others(office: Office) -> None:
    waiting = office.stream.hold_acknowledgements()
    note = notification("event.publish", {"topic": "a", "data": 3})
    batch = f"[{publish(1)},{note},{publish(2)},{publish(4, 'a.*')}]"
    assert await office.tell(batch) == []
    for acknowledge in list(waiting):
        acknowledge()
    (replies,) = await office.tell()
    results = {reply["id"]: reply.get("result", {}).get("offset") for reply in replies}
    assert results == {1: 1, 2: 3, 4: None}
    assert (office.peer.running, office.peer.link.waits) == ({}, 0)


async def test_a_deadline_of_calls_that_comes_before_that_of_nats_counts() -> None:
    office = Office(call_timeout=0.05)
    await office.hall.events.start()
    waiting = office.stream.hold_acknowledgements()
    await office.tell(publish(1))
    await until(lambda: bool(office.peer.sent), "it is not answered")
    ((error, peer),) = [(json.loads(text)["error"], office.peer.running) for text in office.peer.take()]
    assert (error["code"], error["data"]["outcome"], peer) == (-32008, "unknown", {})
    waiting.pop()()
    assert await office.tell() == []


async def test_what_is_no_topic_and_what_is_too_large_is_refused_each_time(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "TOPICS", 1)
    large = request("event.publish", {"topic": "a", "data": "x" * 4096}, 3)
    replies = [*await office.tell(publish(1, "a.*"), publish(2, "b")), *await office.tell(large, publish(4, "a.*"))]
    assert [(reply["id"], reply.get("error", {}).get("code")) for reply in replies] == [
        (1, -32602),
        (2, None),
        (3, -32009),
        (4, -32602),
    ]
    assert office.stream.replica.head == 1
