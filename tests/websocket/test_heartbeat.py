"""The heartbeat: rows L1 to L5 of the fault table.

Four gateways serve the whole file, TCP and TLS on both event loops: each test asks all of them at the same time. At
its end the file looks for tracebacks in their logs.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from gateway import errors
from gateway.config import Heartbeat, parse
from gateway.connections.connection import Connection
from tests.support.fleet import (
    FLOOD_SERVER,
    Gateways,
    ended,
    in_process,
    is_late,
    on_each,
    repeat,
    request,
    sockets_back,
    started,
)
from tests.support.patience import SLACK, START, TICK
from tests.support.peers import Frame, Opcode, RawPeer, frame
from tests.support.process import ROOT, GatewayProcess
from tests.support.serving import MovableLoop, Script, run_on, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

INTERVAL, TIMEOUT = 1.0, 1.5
DEAD = INTERVAL + TIMEOUT
LATEST = DEAD + SLACK
PING = b"\x89\x00"
PINGS = 12
"""How many pings a peer that only answers pings must outlive."""
MIB = 1 << 20
CONFIG: Mapping[str, Mapping[str, object]] = {
    "server": {"receive_timeout": 3.5, "close_timeout": 0.5, "compression": True},
    "heartbeat": {"interval": INTERVAL, "timeout": TIMEOUT},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops, with methods that send much or answer late."""
    async with started(CONFIG, module=FLOOD_SERVER) as gateways:
        yield gateways


@asynccontextmanager
async def client(where: GatewayProcess, *prefix: str, ask: str = "") -> AsyncIterator["Client"]:
    """A reading client in a process of its own; `prefix` is a command that runs it elsewhere."""
    arguments = [where.host, str(where.port), *(["--tls"] if where.tls else []), *(["--ask", ask] if ask else [])]
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "tests.support.reading_client", *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Client(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Client:
    """A process of tests.support.reading_client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, kind: str) -> str:
        """Return the rest of its next line, which must be of this kind."""
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), START)).decode().split()
        assert line[:1] == [kind], line
        return line[1]

    async def last_byte(self, pings: int) -> float:
        """Wait until it has answered so many pings, and return the moment of the last answer."""
        return [float(await self.line("ping")) for _ in range(pings)][-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def patients(gateways: Gateways) -> AsyncIterator[dict[str, Client]]:
    """Clients that only read and answer pings, one on each gateway, from the file's first test to its last."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(where)) for where in gateways]
        yield {await patient.line("open"): patient for patient in clients}


async def test_l1_never_pongs(gateways: Gateways) -> None:
    """Whether it reads or not, and also while megabytes are queued for it: less than would make it a slow consumer."""

    async def reads(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            assert await peer.recv_frame() == Frame(True, Opcode.PING, b"")
            end = await peer.recv_until_closed()
            assert end.frames == [], "a close frame could not be answered"
            await in_time(where, peer)

    async def does_not_read(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            peer.stop_reading()
            await in_time(where, peer)

    async def has_much_to_read(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            await request(peer, "test.send", count=6, size=MIB)
            peer.stop_reading()
            await in_time(where, peer)

    await on_each(gateways, reads, does_not_read, has_much_to_read)


async def in_time(where: GatewayProcess, peer: RawPeer) -> None:
    """Fail unless the connection dies DEAD after its opening."""
    line = await ended(where, peer, "heartbeat_timeout", 1006)
    assert DEAD - TICK <= line["duration"] <= LATEST, line


async def test_l1_timeout_longer_than_the_interval(gateways: Gateways) -> None:
    """The last byte counts, not the end of the wait for the pong before."""
    beat = {"heartbeat": {"interval": 0.5, "timeout": 1.5}}
    async with GatewayProcess(beat) as where:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            await peer.recv_frame()
            begin = time.monotonic()
            await peer.send_frame(Opcode.PONG)
            await peer.wait_closed()
            assert time.monotonic() - begin >= 2.0 - TICK
            await ended(where, peer, "heartbeat_timeout", 1006)


async def dies(where: GatewayProcess, remote: str, last_byte: float) -> None:
    """Fail unless this connection dies DEAD after the last byte of its peer."""
    line = await where.wait_event("connection.closed", remote=remote)
    took = time.monotonic() - last_byte
    assert (line["cause"], line["code"]) == ("heartbeat_timeout", 1006), line
    assert DEAD - TICK <= took <= LATEST, f"after {took:.3f} s"


async def test_l2_stopped(gateways: Gateways) -> None:
    """Also while it is sent to: its kernel takes what is sent, long after the process has stopped."""

    async def stop(where: GatewayProcess, ask: str = "") -> None:
        async with client(where, ask=ask) as stopped:
            remote = await stopped.line("open")
            last_byte = await stopped.last_byte(1)
            stopped.process.send_signal(signal.SIGSTOP)
            await dies(where, remote, last_byte)

    async def stop_and_send(where: GatewayProcess) -> None:
        params = {"count": 200, "size": 65536, "every": 0.05}
        await stop(where, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "test.send", "params": params}))

    await on_each(gateways, stop, stop_and_send)


async def test_l2_sent_to_between_the_ping_and_the_deadline(gateways: Gateways) -> None:
    """What its kernel takes is no sign of life."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            await request(peer, "test.send", seconds=INTERVAL + TIMEOUT / 2, count=6, size=MIB)
            peer.stop_reading()
            await in_time(where, peer)

    await on_each(gateways, scenario)


async def ip(*arguments: str) -> None:
    """Run the command of this name."""
    process = await asyncio.create_subprocess_exec("ip", *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 0, (
        f"ip {' '.join(arguments)}: {said.decode()}(this test makes a network: run it as root)"
    )


@asynccontextmanager
async def other_network() -> AsyncIterator[tuple[str, str]]:
    """Make a network namespace with a link to it; gives its name, and the address of this side of the link."""
    # Addresses for tests of networks (RFC 2544); a link of its own for each process that runs tests.
    block = 4 * (os.getpid() % 16384)
    net = f"198.18.{block >> 8}.{block & 0xFF}"
    here, there = (net.rpartition(".")[0] + f".{(block & 0xFF) + side}" for side in (1, 2))
    name, link = f"gw{os.getpid()}", f"gw{os.getpid()}h"
    await ip("netns", "add", name)
    try:
        await ip("link", "add", link, "type", "veth", "peer", "name", "link0", "netns", name)
        await ip("address", "add", f"{here}/30", "dev", link)
        await ip("link", "set", link, "up")
        await ip("-n", name, "address", "add", f"{there}/30", "dev", "link0")
        await ip("-n", name, "link", "set", "link0", "up")
        yield name, here
    finally:
        await ip("netns", "delete", name)


async def test_l3_link_goes_down() -> None:
    async with other_network() as (network, here), AsyncExitStack() as stack:
        config = {**CONFIG, "server": {**CONFIG["server"], "host": here}, "auth": {"allow_insecure": True}}
        gateways = await stack.enter_async_context(started(config, only=slice(0, 4, 3)))
        sockets = [where.sockets() for where in gateways]
        clients = [await stack.enter_async_context(client(where, "ip", "netns", "exec", network)) for where in gateways]
        remotes = [await cut_off.line("open") for cut_off in clients]
        last_bytes = await asyncio.gather(*(cut_off.last_byte(2) for cut_off in clients))
        await ip("-n", network, "link", "set", "link0", "down")
        await asyncio.gather(*map(dies, gateways, remotes, last_bytes))
        await asyncio.gather(*map(sockets_back, gateways, sockets))


async def test_l4_alive_while_it_is_flooded(gateways: Gateways) -> None:
    """It has a call in flight for long, answers no ping, and has little to say: every byte is life."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await request(peer, "test.late", seconds=2 * DEAD)
            await request(peer, "test.send", count=1500, size=2000, every=0.002)
            talk = asyncio.create_task(repeat(peer, frame(Opcode.TEXT, b'{"jsonrpc":"2.0","method":"x"}'), 0.7))
            while not is_late(await peer.recv_frame()):
                pass
            talk.cancel()
            assert not where.events("connection.closed", remote=peer.local)
            await peer.leave()
            await ended(where, peer, "client_close", 1000)

    await on_each(gateways, scenario)


async def test_l4_reads_a_flood_slowly() -> None:
    """Pings wait behind what it has not read yet, and while it does not read, it is not read: what it takes is life."""
    count, size = 200, 60_000
    interval, timeout = 0.5, 4.0  # a busy machine may read as slowly as that
    config: Mapping[str, Mapping[str, object]] = {
        "server": {**CONFIG["server"], "receive_timeout": 6.0},
        "heartbeat": {"interval": interval, "timeout": timeout},
        "limits": {"max_outbox_bytes": 32 * MIB},
    }

    def flood(connection: Connection, data: bytes) -> None:
        for _ in range(count):
            connection.send(bytes(size))

    async def scenario(tls: bool) -> None:
        script = Script(flood, sndbuf=32768)
        async with serving(script, config, tls=tls) as target:
            with await RawPeer.open(target, rcvbuf=32768) as peer:
                await peer.send_frame(Opcode.TEXT, b"flood")
                begin, messages = time.monotonic(), 0
                while messages < count:
                    got = await peer.recv_frame()
                    if got.opcode == Opcode.PING:
                        await peer.send_frame(Opcode.PONG, got.payload)
                    messages += got.opcode == Opcode.TEXT
                    await asyncio.sleep(0.05)
                assert time.monotonic() - begin > 2 * (interval + timeout)
                assert await peer.alive()
                assert not script.ends

    await in_process(scenario)


async def test_l5_pong_in_the_moment_of_the_deadline(gateways: Gateways) -> None:
    """Either it is dead or it lives, and the log says it once."""
    answers = [0.0, *(TIMEOUT + number * 0.004 for number in range(-8, 17)), TIMEOUT + 0.3]

    async def scenario(where: GatewayProcess) -> None:
        verdicts = await asyncio.gather(*(verdict(where, answer) for answer in answers))
        assert verdicts[0] == "client_close"
        assert verdicts[-1] == "heartbeat_timeout"

    await on_each(gateways, scenario)


async def verdict(where: GatewayProcess, answer_after: float) -> str:
    """Answer a ping after so many seconds, and return the cause of the connection's end."""
    with await RawPeer.open(where) as peer:
        await peer.welcome()
        await peer.recv_frame()
        await asyncio.sleep(answer_after)
        lives = True
        try:
            await peer.send_frame(Opcode.PONG)
            await peer.recv_frame()
            await peer.leave()
        except OSError:
            lives = False
        cause, code = ("client_close", 1000) if lives else ("heartbeat_timeout", 1006)
        await ended(where, peer, cause, code)
    return cause


async def test_l5_pong_has_arrived_and_is_not_read_yet() -> None:
    """The loop was busy over the deadline. Some loops run timers before they read."""

    async def scenario(tls: bool) -> None:
        script = Script()
        async with serving(script, CONFIG, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                assert await peer.recv_frame() == Frame(True, Opcode.PING, b"")
                await peer.send_frame(Opcode.PONG)
                time.sleep(TIMEOUT + 0.1)  # noqa: ASYNC251 — blocks the gateway, whose loop this is
                assert (await peer.recv_frame()).opcode == Opcode.PING
                assert not script.ends

    await in_process(scenario)


async def test_e8_a_gateway_that_stood_still_for_45_seconds_cuts_nobody() -> None:
    """20 peers that answer pings after 100 ms, and two handshakes: one has sent its request, one never will."""

    async def answer(peer: RawPeer, pings: set[str]) -> None:
        while True:
            if (await peer.recv_frame(timeout=START)).opcode == Opcode.PING:
                await asyncio.sleep(0.1)
                await peer.send_frame(Opcode.PONG)
                pings.add(peer.local)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script, pings = Script(), set[str]()
        async with serving(script, watched=True) as target, AsyncExitStack() as stack:
            peers = [stack.enter_context(await RawPeer.open(target)) for _ in range(20)]
            asking = stack.enter_context(await RawPeer.connect(target))
            silent = stack.enter_context(await RawPeer.connect(target))
            await asking.send_raw(asking.upgrade_head()[:20])
            await loop.move_to(loop.time())
            answers = [asyncio.create_task(answer(peer, pings)) for peer in peers]
            await asking.send_raw(asking.upgrade_head()[20:])
            loop.ahead += 45.0
            assert (await asking.read_response()).status == 101
            dropped = asyncio.create_task(silent.wait_closed())
            while not dropped.done():
                await loop.move_to(loop.time() + 0.4)
            assert not script.ends
            assert pings == {peer.local for peer in peers}
            assert len(script.connections) == 21
            for task in answers:
                task.cancel()

    await asyncio.to_thread(run_on, "movable", scenario())


async def test_e8_a_dead_peer_has_the_timeout_again_and_no_more() -> None:
    """It never answers. The receive timeout is over as well."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script = Script()
        async with serving(script, watched=True) as target:
            with await RawPeer.open(target):
                loop.ahead += 65.0
                begin = loop.time()
                while not script.ends:
                    await loop.move_to(loop.time() + 0.4)
                assert loop.time() - begin >= 10.0 - TICK

    await asyncio.to_thread(run_on, "movable", scenario())


async def test_defaults_are_30_and_10_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """A silent peer is pinged after 30 seconds and gone after 40, by a clock that the test moves."""
    caplog.set_level(logging.INFO, "gateway.connections.connection")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        script = Script()
        async with serving(script) as target:
            with await RawPeer.open(target) as peer:
                link = script.connections[0].link
                begin = link.last_read
                await loop.move_to(begin + 29.8)
                assert link.messages_out == link.outbox_bytes == 0
                sent = link.bytes_out
                await loop.move_to(begin + 30)
                assert link.bytes_out == sent + len(PING), "no ping"
                await loop.move_to(begin + 39.8)
                assert not script.ends
                await loop.move_to(begin + 40)
                assert script.ends == [errors.HEARTBEAT_TIMEOUT]
                assert (await peer.recv_until_closed()).frames == [Frame(True, Opcode.PING, b"")]

    await asyncio.to_thread(run_on, "movable", scenario())
    assert parse({}).heartbeat == Heartbeat(interval=30.0, timeout=10.0)
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "connection.closed"]
    assert 40.0 <= vars(line)["duration"] <= 40.5


# The end of the file's patience


async def test_l1_peer_that_only_pongs_stays(gateways: Gateways, patients: dict[str, Client]) -> None:
    """Most of the pings have come during the tests above."""

    async def stays(where: GatewayProcess, remote: str) -> None:
        answers = [float(await patients[remote].line("ping")) for _ in range(PINGS)]
        assert min(later - earlier for earlier, later in itertools.pairwise(answers)) >= INTERVAL - TICK
        assert not where.events("connection.closed", remote=remote)

    await asyncio.gather(*map(stays, gateways, patients))
