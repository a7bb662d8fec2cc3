"""Connections that are not WebSockets: how many there may be, which goes first, and until when a response may leave."""

import asyncio
import itertools
import logging
from contextlib import ExitStack

import pytest

from gateway.handshake.plain import AT_WORK, Handshake, Handshakes, PlainConnections
from gateway.handshake.rejections import Rejections
from gateway.telemetry.lines import Lines
from tests.support.credentials import scrape
from tests.support.fleet import in_process, sockets_back
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import EventLoopName, GatewayProcess, StartGateway
from tests.support.serving import Script, serving

FILE = "/console/console.js"
A, B = "192.0.2.1", "192.0.2.2"


class Door:
    """The bounds alone, with peers that are only numbers."""

    def __init__(self, **bounds: int) -> None:
        self.rejections = Rejections(Lines())
        self.handshakes = Handshakes(100.0, self.rejections)
        self.plain = PlainConnections(
            self.rejections, self.handshakes, exempt=lambda remote: remote == "unix", **bounds
        )
        self.dropped: list[Handshake] = []
        self._ports = itertools.count(1)

    def come(self, address: str = A, *, idle: bool = False) -> Handshake:
        """Accept one peer."""
        handshake = Handshake("unix" if address == "unix" else f"{address}:{next(self._ports)}", "request")
        handshake.drop = lambda: self.dropped.append(handshake)
        self.plain.accepted(handshake)
        if idle:
            self.idle(handshake)
        return handshake

    def idle(self, handshake: Handshake) -> None:
        """Let a peer have had its response."""
        handshake.stage = "idle"
        self.handshakes.done(handshake)
        self.plain.idles(handshake)


async def test_the_longest_idle_goes_first_and_then_the_oldest() -> None:
    door = Door(most=4)
    oldest, early, late, busy = door.come(), door.come(idle=True), door.come(idle=True), door.come()
    door.plain.works(early)
    door.idle(early)  # it idles for a shorter time than `late` now
    fifth, sixth = door.come(), door.come()
    assert door.dropped == [late, early]
    door.come()
    assert door.dropped == [late, early, oldest], "one that is at work went only when none was idle"
    door.plain.gone(busy)
    door.come()
    assert len(door.dropped) == 3
    door.come()
    assert door.dropped[3:] == [fifth]
    assert len(door.plain) == len(door.handshakes) == 4
    assert door.rejections.failures == {"tls": 0, "request": 2, "response": 0, "idle": 2, "authenticate": 0}
    assert sixth not in door.dropped


async def test_a_peer_that_asks_all_the_time_grows_old_all_the_same() -> None:
    door = Door(most=2)
    old, quick = door.come(idle=True), door.come()
    door.plain.works(old)
    door.come()
    assert door.dropped == [old]
    door.come()
    assert door.dropped == [old, quick]


async def test_an_address_has_its_own_bound_and_others_do_not_go_for_it() -> None:
    door = Door(most=1000, most_of_address=2)
    other, first, second = door.come(B, idle=True), door.come(A, idle=True), door.come(A, idle=True)
    third = door.come(A)
    assert door.dropped == [first]
    for _ in range(3):
        door.come("unix", idle=True)
    assert door.dropped == [first]
    door.come(A)
    assert door.dropped == [first, second]
    at_work = [door.come(A) for _ in range(AT_WORK)]
    assert door.dropped == [first, second], "a page is fetched on several, and a refusal needs one as well"
    door.come(A)
    assert door.dropped == [first, second, third]
    door.idle(at_work[0])
    assert door.dropped[3:] == [at_work[0]], "it may not stay beyond the bound"
    assert other not in door.dropped


async def test_nothing_is_left_of_those_who_have_gone() -> None:
    door = Door(most=10, most_of_address=10)
    peers = [door.come(f"192.0.2.{number % 3}", idle=number % 2 == 0) for number in range(10)]
    for peer in peers * 2:
        door.plain.gone(peer)
    assert len(door.plain) == len(door.handshakes) == len(door.plain._crowds) == 0
    assert not door.plain.make_room()
    idle = door.come(idle=True)
    assert door.plain.make_room() and door.dropped == [idle]


async def test_a_response_has_the_same_time_again_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.handshake.rejections")
    rejections = Rejections(Lines())
    handshakes = Handshakes(0.05, rejections)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    handshake = Handshake("192.0.2.1:1", "response")
    handshake.drop = lambda: over.set_result(None)
    handshakes.begin(handshake)
    await asyncio.wait_for(over, WAIT)
    assert rejections.failures["response"] == 1
    assert caplog.messages == ["a response has not left within 0.05 s"]


async def test_a_response_that_has_left_late_is_no_failure() -> None:
    door = Door(most=2)
    handshakes = Handshakes(0.05, door.rejections)
    asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    handshake = Handshake("192.0.2.1:1", "response")

    def settled() -> bool:
        asked.set_result(None)
        return True

    handshake.settled = settled
    handshake.drop = lambda: door.dropped.append(handshake)
    handshakes.begin(handshake)
    await asyncio.wait_for(asked, WAIT)
    assert not door.dropped and not door.rejections.failures.total()


# In a process


async def ask_and_read_nothing(process: GatewayProcess, count: int = 40) -> RawPeer:
    """Ask for more than the kernels take, on one connection."""
    peer = await RawPeer.connect(process, rcvbuf=4096)
    head = f"GET {FILE} HTTP/1.1\r\nHost: {peer.authority}\r\n\r\n"
    await peer.send_raw(head.encode() * count)
    return peer


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_peer_that_does_not_read_its_response_is_dropped(
    gateway: StartGateway, loop: EventLoopName, tls: bool
) -> None:
    """It asks again meanwhile, which gives it no more time."""
    process = await gateway({"server": {"handshake_timeout": 1.0, "keepalive_timeout": 100.0}}, tls=tls, loop=loop)
    before = process.sockets()
    with ExitStack() as stack:
        peers = [stack.enter_context(await ask_and_read_nothing(process, 400)) for _ in range(3)]
        lines = [await process.wait_event("handshake.timeout", remote=peer.local) for peer in peers]
        assert {(line["stage"], line["timeout"]) for line in lines} == {("response", 1.0)}
        await sockets_back(process, before)
    assert (await scrape(process))['gateway_handshake_failures_total{stage="response"}'] == 3
    process.assert_no_defects()


async def test_a_peer_that_reads_slowly_but_in_time_gets_all_of_it(gateway: StartGateway, loop: EventLoopName) -> None:
    """Each response has its own time, and an idle connection has none."""
    process = await gateway({"server": {"handshake_timeout": 2.0}}, loop=loop)
    with await RawPeer.connect(process, rcvbuf=4096) as peer:
        for _ in range(3):
            response = await peer.get(FILE)
            assert response.status == 200 and response.body
            await asyncio.sleep(1.0)
        assert (await peer.get("/healthz")).status == 200
    assert not process.events("handshake.timeout") and not process.events("handshake.rejected")


async def kept_alive(process: GatewayProcess, source: str | None = None) -> RawPeer:
    """A connection that has had its response."""
    peer = await RawPeer.connect(process, source=source)
    assert (await peer.get("/healthz")).status == 200
    return peer


async def test_of_kept_alive_connections_the_longest_idle_goes(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway({"limits": {"max_http_connections": 3}}, loop=loop)
    with ExitStack() as stack:
        peers = [stack.enter_context(await kept_alive(process)) for _ in range(3)]
        assert (await peers[0].get("/healthz")).status == 200
        with await RawPeer.open(process) as peer:
            await peer.welcome()
            await peers[1].wait_closed()
            line = await process.wait_event("handshake.rejected", remote=peers[1].local)
            assert line["reason"] == "too many HTTP connections; see limits.max_http_connections"
            assert line["stage"] == "idle"
            # What has upgraded counts no more, and there is room for one.
            stack.enter_context(await kept_alive(process))
            for each in (peers[0], peers[2]):
                assert (await each.get("/healthz")).status == 200
            await peer.leave()
    process.assert_no_defects()


async def test_an_address_keeps_as_many_alive_as_it_may_have(gateway: StartGateway) -> None:
    process = await gateway({"limits": {"max_connections_per_address": 2}})
    with ExitStack() as stack:
        peers = [stack.enter_context(await kept_alive(process, "127.0.0.2")) for _ in range(2)]
        other = stack.enter_context(await kept_alive(process, "127.0.0.3"))
        stack.enter_context(await kept_alive(process, "127.0.0.2"))
        await peers[0].wait_closed()
        for peer in (peers[1], other):
            assert (await peer.get("/healthz")).status == 200
        line = await process.wait_event("handshake.rejected", remote=peers[0].local)
        assert line["reason"].endswith("limits.max_connections_per_address")


async def test_a_trusted_proxy_may_have_any_number(gateway: StartGateway) -> None:
    server = {"trusted_proxies": ["127.0.0.0/8"]}
    process = await gateway({"limits": {"max_connections_per_address": 2}, "server": server})
    with ExitStack() as stack:
        peers = [stack.enter_context(await kept_alive(process)) for _ in range(6)]
        for peer in peers:
            assert (await peer.get("/healthz")).status == 200


async def test_where_descriptors_are_used_up_the_idle_make_room(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway(loop=loop, nofile=64)
    count = 64 - process.fds()
    with ExitStack() as stack:
        for _ in range(count + 5):
            stack.enter_context(await kept_alive(process))
        with await RawPeer.open(process) as peer:
            await peer.welcome()
            await peer.leave()
    assert (await scrape(process))['gateway_handshake_failures_total{stage="idle"}'] >= 6
    assert not process.events("server.accept_paused")
    process.assert_no_defects()


async def test_one_that_is_dropped_before_its_task_has_begun_is_counted_no_more() -> None:
    """There is room for one: of those that are accepted in one go, the last one stays."""

    async def scenario(tls: bool) -> None:
        async with serving(Script(), tls=tls, most=1) as where:
            with ExitStack() as stack:
                peers = [stack.enter_context(await RawPeer.connect(where, tls=False)) for _ in range(5)]
                for peer in peers[:-1]:
                    await peer.wait_closed()
                with await RawPeer.open(where) as peer:
                    await peers[-1].wait_closed()
                    peer.close()

    await in_process(scenario)
