"""When a client comes back, after what pause, with which credential, and what it tells of its state."""

import asyncio
import contextlib
import itertools
import logging
from typing import Any

import pytest
from msgspec import Raw
from yarl import URL

from gateway.client import Backoff, CallError, Client, ConnectionLost, State, connect
from gateway.client.connection import RECONNECT, Connection
from gateway.client.endings import MAX_PAUSE, End
from gateway.client.link import Incoming, Options, open_link, open_session
from gateway.client.sending.session import Session
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.patience import TICK, WAIT
from tests.support.scripted_gateway import Peer, Script, scripted, serve_nothing
from tests.support.strangers import connections_to, stranger


def quick() -> Backoff:
    return Backoff(0.001, 0.005)


def closing(code: int) -> Script:
    """Close with this code when the first message has come."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.request()
        await peer.close(code, "because")

    return script


@pytest.mark.parametrize("code", [1000, 1009, 1011, 1012, 4000, 4001, 4003, 4004, 4499])
async def test_it_comes_back_after(code: int) -> None:
    async with scripted(closing(code), serve_nothing) as gateway, connect(gateway.url, backoff=quick()) as client:
        await client.notify("go")
        await until(lambda: gateway.connections == 2 and client.state is State.OPEN, "it did not come back")
        assert client.why == f"{code} because"


@pytest.mark.parametrize("code", [1002, 1003, 1007, 4500, 4501, 4502, 4503, 4999])
async def test_it_does_not_come_back_after(code: int) -> None:
    async with scripted(closing(code)) as gateway, connect(gateway.url, backoff=quick()) as client:
        await client.notify("go")
        assert [state async for state in client.states()][-1] is State.CLOSED
        assert (client.state, client.why) == (State.CLOSED, f"{code} because")
        with pytest.raises(ConnectionLost) as lost:
            await client.call("x.y")
        assert (lost.value.outcome, lost.value.temporary) == ("not_delivered", False)
        assert gateway.connections == 1


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 421, 426])
async def test_a_refusal_for_good_is_raised_at_once(status: int) -> None:
    async with scripted(serve_nothing, refusals=[(status, {})]) as gateway:
        with pytest.raises(ConnectionLost, match=f"HTTP {status}"):
            async with connect(gateway.url, backoff=quick()):
                pass
        assert gateway.connections == 1


@pytest.mark.parametrize("status", [429, 503, 502])
async def test_a_refusal_for_now_is_not(status: int) -> None:
    async with scripted(serve_nothing, refusals=[(status, {})] * 3) as gateway:
        async with connect(gateway.url, backoff=quick()) as client:
            assert client.state is State.OPEN
        assert gateway.connections == 4


async def test_an_address_where_no_gateway_is_is_told_to_all_who_wait_at_once() -> None:
    async with stranger(greeting=b"SSH-2.0-OpenSSH_9.2\r\n") as there:
        client = connect(there.url(), backoff=quick(), open_timeout=None)
        call = client.start("x.y", timeout=WAIT)
        with pytest.raises(ConnectionLost, match="speaks no HTTP") as lost:
            async with asyncio.timeout(WAIT), client:
                pass
        with pytest.raises(ConnectionLost, match="speaks no HTTP"):
            await call
        assert not lost.value.temporary
        assert there.connections == 1


async def test_what_was_a_gateway_before_may_become_one_again() -> None:
    """While it is started again, something else may answer in its place, or its certificate be renewed."""
    async with scripted(serve_nothing) as gateway, stranger(greeting=b"starting\r\n") as there:
        host, port = "127.0.0.1", URL(gateway.url).port or 0
        async with FaultyProxy(host, port) as proxy, connect(proxy.url(), backoff=quick()) as client:
            proxy.turn_to(host, there.port)
            proxy.cut()
            await until(lambda: there.connections >= 3, "it gave up")
            assert "speaks no HTTP" in client.why
            proxy.turn_to(host, port)
            await until(lambda: client.state is State.OPEN, "it did not come back")


async def test_why_it_waits_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    refusals: list[tuple[int, dict[str, str]]] = [(status, {}) for status in (503, 503, 503, 502, 502)]
    with caplog.at_level(logging.WARNING, "gateway.client"):
        async with scripted(serve_nothing, refusals=refusals) as gateway, connect(gateway.url, backoff=quick()):
            pass
    place = gateway.url.removeprefix("ws://").removesuffix("/ws")
    assert [record.getMessage() for record in caplog.records] == [
        f"no connection to {place}: HTTP 503 full or draining; trying again",
        f"no connection to {place}: HTTP 502 the gateway cannot be reached from there; trying again",
    ]


@pytest.mark.parametrize(
    ("tokens", "refused", "attempts"),
    [
        (["old", "old"], 9, 1),
        (["old", "new", "new"], 1, 2),
        (["old", "new", "new", "newer"], 9, 2),
        (["old", OSError("the issuer is away"), "new"], 1, 2),
    ],
)
async def test_a_callable_has_one_chance_to_give_another_credential(
    tokens: list[str | Exception], refused: int, attempts: int
) -> None:
    given = iter(tokens)

    def token() -> str:
        match next(given):
            case str(text):
                return text
            case error:
                raise error

    async with scripted(serve_nothing, refusals=[(401, {})] * refused) as gateway:
        client = connect(gateway.url, token, backoff=quick())
        if refused == 1:
            async with client:
                assert client.state is State.OPEN
        else:
            with pytest.raises(ConnectionLost, match="HTTP 401"):
                async with client:
                    pass
        assert gateway.connections == attempts


@pytest.mark.parametrize(
    ("token", "words"), [("a\nb", "the token has a line"), ("", "the token is empty"), (7, "the callable returned int")]
)
async def test_a_callable_whose_token_is_none_is_told_at_once(token: Any, words: str) -> None:
    async with scripted(serve_nothing) as gateway:
        with pytest.raises(ConnectionLost, match=f"no token: {words}"):
            async with connect(gateway.url, lambda: token, open_timeout=None):
                pass
        assert gateway.connections == 0


async def test_without_reconnect_the_first_failure_is_the_last() -> None:
    async with scripted(serve_nothing, refusals=[(503, {})]) as gateway:
        with pytest.raises(ConnectionLost, match="HTTP 503") as lost:
            async with connect(gateway.url, reconnect=False):
                pass
        assert lost.value.temporary
    async with scripted(closing(1011)) as gateway, connect(gateway.url, reconnect=False) as client:
        await client.notify("go")
        assert [state async for state in client.states()][-1] is State.CLOSED
        assert gateway.connections == 1


async def test_entering_has_its_time() -> None:
    async with scripted(serve_nothing) as gateway:
        pass
    with pytest.raises(ConnectionLost, match="cannot connect to") as lost:
        async with connect(gateway.url, backoff=quick(), open_timeout=0.2):
            pass
    assert lost.value.outcome == "not_delivered"


class _Nobody:
    """An endpoint that does nothing."""

    def opened(self, session: Session) -> None:
        pass

    def received(self, session: Session, message: Incoming) -> None:
        pass

    def suspended(self) -> None:
        pass

    def resumed(self, session: Session) -> None:
        pass

    def lost(self) -> None:
        pass

    def closed(self, error: ConnectionLost | None) -> None:
        pass


@pytest.mark.parametrize(
    ("end", "pause"),
    [
        (End(1006), 0.25),
        (End(4004), 0.25),
        (End(429, "", 7.0), 7.25),
        (End(503, "", 7.0), 7.25),
        (End(1001), sum(RECONNECT) / 2),
    ],
)
def test_pauses(end: End, pause: float) -> None:
    assert _connection(0.5).pause(end) == pause


def _connection(chance: float) -> Connection:
    options = Options("ws://x/ws", True, 30.0, 10.0, 5.0, 1)
    backoff = Backoff(chance=lambda: chance)
    return Connection(options, None, reconnect=True, keep=False, backoff=backoff, endpoint=_Nobody())


async def test_a_drain_that_asks_for_no_pause_gets_one() -> None:
    """And a longer one each time: a gateway that drains again and again is not connected to in a busy loop."""
    async with scripted(serve_nothing) as gateway, open_session() as http:
        options = Options(gateway.url, True, 30.0, 10.0, 5.0, 1 << 20)
        session = Session(await open_link(http, None, options), itertools.count(1))
        for chance, pauses in ((0.0, [0.5, 0.5, 0.5, 0.5]), (1.0, [0.5, 1.0, 2.0, 4.0])):
            connection = _connection(chance)
            for pause in pauses:
                connection.draining(session, Raw(b'{"reconnectAfterMs":-1000}' if pause == 1.0 else b"{}"))
                assert connection.pause(End(1001)) == pytest.approx(pause, abs=TICK)
        connection.draining(session, Raw(b'{"reconnectAfterMs":1e12}'))
        assert connection.pause(End(1001)) == pytest.approx(MAX_PAUSE, abs=TICK)
        await session.close()


async def test_a_drain_is_heeded() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.request()
        await peer.notify("gateway.draining", deadlineMs=10000, reconnectAfterMs=600)
        await peer.answer(request, "finished")
        await asyncio.sleep(0.1)
        await peer.close(1001)

    async with scripted(script, serve_nothing) as gateway, connect(gateway.url, backoff=quick()) as client:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert await client.call("x.y") == "finished"
        # What is new waits for the next connection.
        with pytest.raises(CallError) as failed:
            await client.call("x.y", timeout=0.05)
        assert failed.value.outcome == "not_delivered"
        await until(lambda: gateway.connections == 2, "it did not come back")
        assert loop.time() - begun >= 0.6 - TICK


async def test_a_gateway_that_always_drains_at_once_is_not_connected_to_in_a_busy_loop() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def script(peer: Peer) -> None:
        times.append(loop.time())
        await peer.welcome()
        await peer.notify("gateway.draining", deadlineMs=0, reconnectAfterMs=0)
        await peer.close(1001)

    async with scripted(script) as gateway:
        client = connect(gateway.url, backoff=quick())
        entering = asyncio.create_task(client.__aenter__())
        await until(lambda: len(times) == 3, "it did not come back")
        entering.cancel()
        await asyncio.wait([entering])
    assert all(later - before >= RECONNECT[0] - TICK for before, later in itertools.pairwise(times))


async def test_there_is_one_connection_at_a_time_even_if_the_gateway_hangs() -> None:
    there: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        there.append(len(connections_to(URL(gateway.url).port)))
        peer.stop_reading()
        await asyncio.sleep(WAIT)

    async def fill(client: Client) -> None:
        while True:
            with contextlib.suppress(CallError):
                await client.notify("x.y", ["z" * (1 << 20)], timeout=WAIT)

    async with (
        scripted(script) as gateway,
        connect(gateway.url, backoff=quick(), heartbeat=0.2, close_timeout=0.1) as client,
    ):
        filling = asyncio.create_task(fill(client))
        await until(lambda: len(there) == 4, "it did not come back")
        filling.cancel()
        await asyncio.wait([filling])
    assert there == [1, 1, 1, 1]


async def test_the_callable_is_asked_for_each_connection() -> None:
    seen: list[str | None] = []
    numbers = iter(range(10))

    async def token() -> str:
        number = next(numbers)
        if number == 1:
            raise OSError("the issuer is away")
        return f"token-{number}"

    async def script(peer: Peer) -> None:
        seen.append(peer.headers.get("Authorization"))
        await peer.welcome()
        if len(seen) == 1:
            await peer.close(4004)
        await peer.stay()

    async with scripted(script) as gateway, connect(gateway.url, token, backoff=quick()) as client:
        await until(lambda: len(seen) == 2 and client.state is State.OPEN, "it did not come back")
    assert seen == ["Bearer token-0", "Bearer token-2"]


async def test_states_are_told_in_order() -> None:
    async with scripted(closing(4000), closing(4501)) as gateway:
        client = connect(gateway.url, backoff=quick())
        watching = asyncio.create_task(_all_states(client.states()))
        await asyncio.sleep(0)
        async with client:
            await client.notify("go")
            await until(lambda: gateway.connections == 2 and client.state is State.OPEN, "it did not come back")
            await client.notify("go")
            told = await asyncio.wait_for(watching, WAIT)
    names = [state.name for state in told]
    assert names[0] == "CONNECTING"
    assert [name for name, before in zip(names[1:], names, strict=False) if name != before] == [
        *("OPEN", "WAITING", "CONNECTING", "OPEN", "CLOSED"),
    ]


async def _all_states(states: Any) -> list[State]:
    return [state async for state in states]
