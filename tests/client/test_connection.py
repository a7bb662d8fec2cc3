"""When a client comes back, after what pause, with which credential, and what it tells of its state."""

import asyncio
from typing import Any

import pytest

from gateway.client import Backoff, CallError, ConnectionLost, State, connect
from gateway.client.connection import RECONNECT, Connection
from gateway.client.endings import End
from gateway.client.link import Incoming, Link, Options
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.scripted_gateway import Peer, Script, scripted, serve_nothing


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


@pytest.mark.parametrize("status", [400, 401, 403, 421, 426])
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
    with pytest.raises(ConnectionLost, match="1006") as lost:
        async with connect(gateway.url, backoff=quick(), open_timeout=0.2):
            pass
    assert lost.value.outcome == "not_delivered"


class _Nobody:
    """An endpoint that does nothing."""

    def opened(self, link: Link) -> None:
        pass

    def received(self, link: Link, message: Incoming) -> None:
        pass

    def lost(self, link: Link) -> None:
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
    options = Options("ws://x/ws", True, 30.0, 10.0, 5.0, 1)
    backoff = Backoff(chance=lambda: 0.5)
    connection = Connection(options, None, reconnect=True, backoff=backoff, endpoint=_Nobody())
    assert connection.pause(end) == pause


async def test_a_drain_is_heeded() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.request()
        await peer.notify("gateway.draining", deadlineMs=10000, reconnectAfterMs=300)
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
        assert loop.time() - begun >= 0.3


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
