"""A connection of the client that outlives its link: what is asked, sent again, told and given up, step by step."""

import asyncio
from typing import Any

import pytest

from gateway.client import Backoff, CallError, Client, ConnectionLost, Event, ServedCall, State, connect
from gateway.client.sending import session as module
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.scripted_gateway import Peer, Script, ScriptedGateway, scripted, serve_nothing


def to(gateway: ScriptedGateway, **options: Any) -> Client:
    """A client of this gateway that comes back at once."""
    return connect(gateway.url, backoff=Backoff(0.001, 0.005), **options)


async def lost(call: asyncio.Task[Any]) -> ConnectionLost:
    """The error of a call that was lost."""
    with pytest.raises(ConnectionLost) as failed:
        await asyncio.wait_for(call, WAIT)
    return failed.value


def calling(client: Client, *params: int, **options: Any) -> list[asyncio.Task[Any]]:
    """Calls that are under way."""
    return [asyncio.create_task(client.call("x.y", [one], timeout=WAIT, **options)) for one in params]


async def taken(peer: Peer, *params: int) -> list[Any]:
    """The requests of these calls, which are the next that come."""
    requests = [await peer.message() for _ in params]
    assert [request["params"] for request in requests] == [[one] for one in params]
    return requests


async def keeps_and_takes(peer: Peer) -> None:
    """Keep the connection, take the calls 1 and 2, answer neither, and lose the link."""
    await peer.keep()
    await taken(peer, 1, 2)
    await peer.cut()


async def test_what_the_gateway_has_not_had_is_sent_again_before_what_is_new() -> None:
    async def back(peer: Peer) -> None:
        await goes_on.wait()
        assert await peer.resume(received=1) == {"session": "the secret", "received": 0, "attempt": 1}
        (two,) = await taken(peer, 2)
        (three,) = await taken(peer, 3)
        for request in (three, two, two | {"id": two["id"] - 1}):
            await peer.answer(request, request["params"])
        await peer.stay()

    goes_on = asyncio.Event()
    async with scripted(keeps_and_takes, back) as gateway, to(gateway) as client:
        calls = calling(client, 1, 2)
        await until(lambda: client.state is State.AWAY, "the loss was not noticed")
        calls += calling(client, 3)
        goes_on.set()
        assert await asyncio.gather(*calls) == [[2], [2], [3]]
        assert (gateway.connections, client.welcome["connId"]) == (2, "1")


async def test_a_resume_whose_reply_is_lost_is_repeated() -> None:
    seen: list[Any] = []

    async def cuts(peer: Peer) -> None:
        seen.append((await peer.asked_to_resume())["params"])
        await peer.cut()

    async def back(peer: Peer) -> None:
        seen.append(await peer.resume(received=0))
        for request in await taken(peer, 1, 2):
            await peer.answer(request, request["params"])
        await peer.stay()

    async with scripted(keeps_and_takes, cuts, cuts, back) as gateway, to(gateway) as client:
        assert await asyncio.gather(*calling(client, 1, 2)) == [[1], [2]]
    assert [(one["received"], one["attempt"]) for one in seen] == [(0, 1), (0, 2), (0, 3)]


async def test_no_message_of_either_side_is_counted_twice() -> None:
    """What came before the loss is told by the resume; replies, progress and calls count, notices and events do not."""

    async def first(peer: Peer) -> None:
        await peer.keep()
        (one,) = await taken(peer, 1)
        await peer.answer(one, None)
        await peer.notify("gateway.expiring", leftMs=600_000, expiresAt="2026-11-23T00:00:00Z")
        await peer.notify("event.gap", topic="a", epoch="e", offset=1)
        await peer.notify("connection.ack", received=1)
        await peer.ws.send_str('[{"jsonrpc":"2.0","method":"a.b"},{"jsonrpc":"2.0","method":"a.b"}]')
        await peer.ws.send_json({"jsonrpc": "2.0", "id": "7", "method": "a.b"})
        assert (await peer.message())["id"] == "7"
        await peer.cut()

    async def back(peer: Peer) -> None:
        assert (await peer.resume(received=1))["received"] == 3
        assert (await peer.message())["id"] == "7", "the reply, once more"
        await peer.ws.send_json({"jsonrpc": "2.0", "id": "8", "method": "a.b"})
        assert (await peer.message())["id"] == "8"
        done.set()
        await peer.stay()

    done, ran = asyncio.Event(), list[str]()
    async with scripted(first, back) as gateway:
        client = to(gateway)

        @client.method("a.b")
        def served(params: Any, call: ServedCall) -> None:
            ran.append(call.call_id.decode())

        async with client:
            await client.call("x.y", [1], timeout=WAIT)
            await asyncio.wait_for(done.wait(), WAIT)
    assert ran == ["", "", '"7"', '"8"']


async def test_what_comes_is_acknowledged_by_number_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.keep()
        for _ in range(64):
            await peer.notify("a.b")
        asked.append((await peer.message())["params"])
        monkeypatch.setattr(module, "ACK_WITHIN", 0.01)
        await peer.notify("a.b")
        asked.append((await peer.message())["params"])
        done.set()
        await peer.stay()

    asked: list[Any] = []
    done = asyncio.Event()
    async with scripted(script) as gateway, to(gateway):
        await asyncio.wait_for(done.wait(), WAIT)
    assert asked == [{"received": 64}, {"received": 65}]


def refusing(code: int, goes_on: asyncio.Event | None = None, **data: object) -> Script:
    """Refuse the resume, and be an ordinary connection, which answers calls, if the client wants that."""

    async def script(peer: Peer) -> None:
        if goes_on is not None:
            await goes_on.wait()
        asked = await peer.asked_to_resume()
        error = {"code": code, "message": "no", "data": {"code": "no", "temporary": False, **data}}
        await peer.notify("gateway.expiring", leftMs=600_000, expiresAt="2026-11-23T00:00:00Z")
        await peer.ws.send_json({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        while True:
            request = await peer.request()
            await peer.answer(request, request["params"])

    return script


@pytest.mark.parametrize("code", [-32004, -32007, -32601, -32602])
async def test_a_gateway_that_does_not_know_the_session_is_an_ordinary_one(code: int) -> None:
    goes_on = asyncio.Event()
    async with scripted(keeps_and_takes, refusing(code, goes_on)) as gateway, to(gateway) as client:
        calls = calling(client, 1, 2)
        await until(lambda: client.state is State.AWAY, "the loss was not noticed")
        (new,) = calling(client, 3)
        await asyncio.sleep(0)
        goes_on.set()
        error = await lost(calls[0])
        assert (error.outcome, str(error.end)) == ("unknown", "the transport was lost")
        assert await new == [3], "it had never left, and so goes by the new connection"
        assert gateway.connections == 2


async def test_a_session_that_was_ended_meanwhile_is_a_close_frame() -> None:
    refusal = refusing(-32004, cause="closed_by_operator", closeCode=4501)
    async with scripted(keeps_and_takes, refusal) as gateway, to(gateway) as client:
        calls = calling(client, 1, 2)
        for call in calls:
            error = await lost(call)
            assert (error.outcome, error.end.code, error.temporary) == ("unknown", 4501, False)
        await until(lambda: client.state is State.CLOSED, "it comes back")
        assert (client.why, gateway.connections) == ("4501 closed_by_operator", 2)


async def test_a_session_that_has_ended_in_another_way_begins_anew() -> None:
    refusal = refusing(-32004, cause="credential_expired", closeCode=4004)
    async with scripted(keeps_and_takes, refusal, serve_nothing) as gateway, to(gateway) as client:
        assert (await lost(calling(client, 1, 2)[0])).end.code == 4004
        await until(lambda: client.state is State.OPEN and gateway.connections == 3, "it does not come back")


async def test_a_refusal_for_the_moment_is_waited_out() -> None:
    async def full(peer: Peer) -> None:
        asked = await peer.asked_to_resume()
        await peer.refuse(asked, -32009, "overloaded")
        await peer.stay()

    async def back(peer: Peer) -> None:
        assert (await peer.resume(received=2))["attempt"] == 2
        await peer.ws.send_json([{"jsonrpc": "2.0", "id": number, "result": number} for number in (2, 3)])
        await peer.stay()

    async with scripted(keeps_and_takes, full, back) as gateway, to(gateway) as client:
        assert await asyncio.gather(*calling(client, 1, 2)) == [2, 3]


async def test_it_is_given_up_when_the_gateway_holds_it_no_more() -> None:
    async def first(peer: Peer) -> None:
        await peer.keep(hold=0.2)
        await taken(peer, 1)
        await peer.cut()

    async def silent(peer: Peer) -> None:
        await peer.asked_to_resume()
        await peer.stay()

    async def anew(peer: Peer) -> None:
        await peer.welcome()
        (asked,) = [await peer.request()]
        await peer.answer(asked, asked["params"])
        await peer.stay()

    states: list[State] = []

    async def watch(client: Client) -> None:
        async for state in client.states():
            states.append(state)

    async with scripted(first, silent, anew) as gateway, to(gateway, connect_timeout=0.5) as client:
        watching = asyncio.create_task(watch(client))
        (call,) = calling(client, 1)
        await until(lambda: client.state is State.AWAY, "the loss was not noticed")
        (new,) = calling(client, 2)
        assert (await lost(call)).outcome == "unknown"
        assert await new == [2]
    await watching
    assert states[:3] == [State.OPEN, State.AWAY, State.CONNECTING]
    assert states[-2:] == [State.OPEN, State.CLOSED]
    assert State.AWAY not in states[2:]


async def test_a_link_that_is_lost_while_the_gateway_drains_is_not_resumed() -> None:
    async def drains(peer: Peer) -> None:
        await peer.keep()
        await taken(peer, 1)
        await peer.notify("gateway.draining", deadlineMs=10_000, reconnectAfterMs=0)
        await peer.cut()

    async def anew(peer: Peer) -> None:
        await peer.keep()
        begun.set()
        await peer.stay()

    begun = asyncio.Event()
    async with scripted(drains, anew) as gateway, to(gateway) as client:
        (call,) = calling(client, 1)
        assert (await lost(call)).outcome == "unknown"
        await asyncio.wait_for(begun.wait(), WAIT)


@pytest.mark.parametrize("options", [{"keep": False}, {"reconnect": False}])
async def test_it_is_not_asked_for_unless_it_is_wanted(options: dict[str, bool]) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await taken(peer, 1)
        await peer.cut()

    async with scripted(script, serve_nothing) as gateway, to(gateway, **options) as client:
        (call,) = calling(client, 1)
        assert (await lost(call)).outcome == "unknown"


async def test_before_the_reply_a_loss_is_final() -> None:
    async def keeps_in_vain(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.message())["method"] == "connection.keep"
        await taken(peer, 1)
        await peer.cut()

    async with scripted(keeps_in_vain, serve_nothing) as gateway, to(gateway) as client:
        (call,) = calling(client, 1)
        assert (await lost(call)).outcome == "unknown"
        await until(lambda: gateway.connections == 2, "it does not come back")


async def test_a_gateway_that_keeps_nothing_for_the_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.refuse(await peer.message(), -32002, "rate_limited", retryAfterMs=1)
        (one,) = await taken(peer, 1)
        asked = await peer.message()
        assert asked["method"] == "connection.keep"
        await peer.answer(asked, {"session": "the secret", "holdMs": 30_000, "maxBytes": 1000})
        await peer.message()
        await peer.answer(one, 1)
        await peer.cut()

    async def back(peer: Peer) -> None:
        assert (await peer.resume(received=0))["received"] == 1
        resumed.set()
        await peer.stay()

    resumed = asyncio.Event()
    async with scripted(script, back) as gateway, to(gateway) as client:
        assert await calling(client, 1)[0] == 1
        await asyncio.wait_for(resumed.wait(), WAIT)


async def test_more_than_may_be_kept_makes_a_loss_final() -> None:
    async def first(peer: Peer) -> None:
        await peer.keep(max_bytes=100)
        await taken(peer, 1, 2, 3)
        await peer.cut()

    async with scripted(first, serve_nothing) as gateway, to(gateway) as client:
        for call in calling(client, 1, 2, 3):
            assert (await lost(call)).outcome == "unknown"


@pytest.mark.parametrize("received", [3, 0])
async def test_numbers_that_cannot_be_end_it(received: int) -> None:
    async def first(peer: Peer) -> None:
        await peer.keep()
        await taken(peer, 1, 2)
        await peer.notify("connection.ack", received=1)
        await peer.cut()

    async def back(peer: Peer) -> None:
        await peer.resume(received=received)
        await peer.stay()

    async with scripted(first, back) as gateway, to(gateway) as client:
        error = await lost(calling(client, 1, 2)[1])
        assert (error.end.code, client.state) == (1002, State.CLOSED)


async def test_an_acknowledgement_of_what_was_never_sent_ends_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.keep()
        await peer.notify("connection.ack", received=1)
        await peer.stay()

    async with scripted(script) as gateway, to(gateway) as client:
        await until(lambda: client.state is State.CLOSED, "it goes on")
        assert client.why == "1002 message 1 was acknowledged, 0 were sent"


async def test_a_message_that_ends_each_link_does_not_do_so_for_ever() -> None:
    async def first(peer: Peer) -> None:
        await peer.keep(hold=0.2)
        await taken(peer, 1)
        await peer.cut()

    async def again(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.message()
        if asked["method"] == "connection.resume":
            await peer.answer(asked, {"connId": "1", "received": 0})
            await taken(peer, 1)
            await peer.cut()
        await peer.stay()

    async with scripted(first, again) as gateway, to(gateway) as client:
        assert (await lost(calling(client, 1)[0])).outcome == "unknown"
        assert gateway.connections > 2


async def test_a_method_goes_on_while_the_link_is_away_and_its_progress_waits() -> None:
    async def first(peer: Peer) -> None:
        await peer.keep()
        await peer.ws.send_json({"jsonrpc": "2.0", "id": "7", "method": "a.b"})
        await begun.wait()
        await peer.cut()

    async def back(peer: Peer) -> None:
        await goes_on.wait()
        await peer.resume(received=0)
        seen.extend([await peer.message() for _ in range(2)])
        done.set()
        await peer.stay()

    begun, goes_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[Any] = []
    async with scripted(first, back) as gateway:
        client = to(gateway)

        @client.method("a.b")
        async def served(params: Any, call: ServedCall) -> int:
            begun.set()
            await until(lambda: client.state is State.AWAY, "the loss was not noticed")
            goes_on.set()
            await call.progress(1)
            assert client.state is State.OPEN
            return 2

        async with client:
            await asyncio.wait_for(done.wait(), WAIT)
    assert [one.get("params", one.get("result")) for one in seen] == [{"id": "7", "value": 1}, 2]


async def test_a_subscription_whose_reply_comes_by_the_next_link_is_asked_for_again() -> None:
    """The gateway has taken it, and ended it with the link: the reply speaks of what is no more."""
    asked: list[Any] = []
    state = {"topics": {"a": {"epoch": "e", "offset": 7}}}

    async def first(peer: Peer) -> None:
        await peer.keep()
        asked.append(await peer.message())
        await peer.cut()

    async def back(peer: Peer) -> None:
        await peer.resume(received=1)
        await peer.answer(asked[0], state)
        while (message := await peer.message())["method"] != "event.subscribe":
            assert message["method"] == "rpc.cancel"
        asked.append(message)
        await peer.answer(message, state)
        await peer.notify("event.message", topic="a", epoch="e", offset=8, time="2026-11-23T00:00:00Z", data=1)
        await peer.stay()

    async with scripted(first, back) as gateway, to(gateway) as client:
        async for event in client.subscribe("a"):
            assert isinstance(event, Event)
            assert event.offset == 8
            break
    assert [one["params"] for one in asked] == [{"topics": ["a"], "since": {}}] * 2


async def test_a_call_that_ends_before_there_is_a_link_was_not_delivered() -> None:
    async def back(peer: Peer) -> None:
        await ended.wait()
        await peer.resume(received=2)
        (three,) = await taken(peer, 3)
        await peer.answer(three, 3)
        await peer.stay()

    ended = asyncio.Event()
    async with scripted(keeps_and_takes, back) as gateway, to(gateway) as client:
        calls = calling(client, 1, 2)
        await until(lambda: client.state is State.AWAY, "the loss was not noticed")
        with pytest.raises(CallError) as failed:
            await client.call("x.y", [0], timeout=0.05)
        assert (failed.value.name, failed.value.outcome) == ("timeout", "not_delivered")
        (new,) = calling(client, 3)
        ended.set()
        assert await new == 3
        for call in calls:
            call.cancel()
