"""Connections before they are open: rows H1 to H6, H13 and H14 of the fault table, TLS, and the Unix socket.

The rows about what a request says, H7 to H11, are in test_handshake.py.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import pytest
import pytest_asyncio

from tests.support.certs import Authority
from tests.support.fleet import in_process, sockets_back
from tests.support.patience import SLACK, START, TICK, WAIT
from tests.support.peers import RawPeer, Response, Target
from tests.support.process import EventLoopName, GatewayProcess, StartGateway
from tests.support.serving import Script, serving

LIMIT = 2.0
"""The handshake timeout of most gateways in this file, in seconds."""
AMPLE = 3.0
"""The same where peers have to be in time."""
DRIBBLE = 0.2
"""Seconds between two bytes of a peer that dribbles."""
CONFIG = {"server": {"handshake_timeout": LIMIT}}
GOOD_PEERS = 50
SLOW = "/slow"
"""The path whose handler works too long before its 101: see tests/support/slow_server.py."""

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["tcp", "tls"])
async def limited(request: pytest.FixtureRequest) -> AsyncIterator[GatewayProcess]:
    """A gateway with a handshake timeout of LIMIT, and a slow path beside /ws."""
    async with GatewayProcess(CONFIG, tls=request.param == "tls", module="tests.support.slow_server") as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["asyncio", "uvloop"])
async def limited_tls(request: pytest.FixtureRequest) -> AsyncIterator[GatewayProcess]:
    """A gateway with the same timeout over TLS, on both event loops: each has a TLS of its own."""
    async with GatewayProcess(CONFIG, tls=True, loop=request.param) as process:
        yield process


def limit_of(process: GatewayProcess) -> float:
    """Return its handshake timeout, in seconds."""
    return float(process.config["server"]["handshake_timeout"])


async def expect_drop(process: GatewayProcess, peer: RawPeer, begin: float, stage: str) -> None:
    """Fail unless the gateway drops this peer when its time from `begin` is over, and says so once."""
    await peer.wait_closed()
    took = time.monotonic() - begin
    assert 0 <= took - limit_of(process) + TICK <= SLACK, f"there for {took:.3f} s"
    line = await process.wait_event("handshake.timeout", remote=peer.local)
    assert line["stage"] == stage
    assert line["level"].lower() in ("info", "warning")
    assert len(process.events("handshake.timeout", remote=peer.local)) == 1


async def dribble(peer: RawPeer, data: bytes) -> None:
    """Send one byte after the other until all are sent or the gateway has gone."""
    with contextlib.suppress(OSError):
        for byte in data:
            await peer.send_raw(bytes([byte]))
            await asyncio.sleep(DRIBBLE)


async def drop_of_dribble(process: GatewayProcess, peer: RawPeer, data: bytes, begin: float, stage: str) -> None:
    """As expect_drop, of a peer that dribbles `data` meanwhile."""
    sender = asyncio.create_task(dribble(peer, data))
    try:
        await expect_drop(process, peer, begin, stage)
    finally:
        sender.cancel()


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first flight of a TLS client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


# The peers that never become a connection: each returns when it was dropped as it should be.


async def silent(process: GatewayProcess) -> None:
    begin = time.monotonic()
    with await RawPeer.connect(process) as peer:
        await expect_drop(process, peer, begin, "request")


async def test_e8_a_gateway_that_was_stopped_goes_on_with_tls() -> None:
    """On both event loops: each has a limit of its own for TLS."""

    async def scenario(loop: EventLoopName) -> None:
        async with GatewayProcess(CONFIG, tls=True, loop=loop) as process:
            with await RawPeer.connect(process, tls=False) as peer:
                await asyncio.sleep(0.3)
                process.signal(signal.SIGSTOP)
                await asyncio.sleep(LIMIT + 1.5)  # longer than a handshake may take
                process.signal(signal.SIGCONT)
                await asyncio.sleep(0.3)
                assert process.tls is not None
                await peer.wire.start_tls(process.tls, process.host)
                await peer.upgrade()
                await peer.welcome()
                assert not process.events("handshake.timeout")

    await asyncio.gather(scenario("uvloop"), scenario("asyncio"))


async def test_a_header_of_the_proxy_protocol_is_called_by_its_name() -> None:
    """Both versions, of which the second begins with empty lines that a parser of HTTP skips."""
    second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)
    first = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
    async with GatewayProcess() as process:
        for header in (first, b"PROXY UNKNOWN\r\n", second):
            with await RawPeer.connect(process) as peer:
                await peer.send_raw(header + peer.upgrade_head())
                response = await peer.read_response()
                assert (response.status, response.body) == (400, b"no PROXY protocol is spoken here\n")
                await peer.wait_closed()
                line = await process.wait_event("handshake.rejected", remote=peer.local)
                assert line["reason"] == "PROXY protocol, see docs/operations.md"


async def half_a_head(process: GatewayProcess) -> None:
    begin = time.monotonic()
    with await RawPeer.connect(process) as peer:
        await peer.send_raw(peer.upgrade_head()[:60])
        await expect_drop(process, peer, begin, "request")


async def dribbling(process: GatewayProcess) -> None:
    begin = time.monotonic()
    with await RawPeer.connect(process) as peer:
        await drop_of_dribble(process, peer, peer.upgrade_head(), begin, "request")


async def slow_handler(process: GatewayProcess) -> None:
    begin = time.monotonic()
    with await RawPeer.connect(process) as peer:
        await peer.send_raw(peer.upgrade_head(SLOW))
        await expect_drop(process, peer, begin, "request")


async def kept_alive_dribbling(process: GatewayProcess) -> None:
    """A fresh budget starts with the second request's first byte."""
    with await RawPeer.connect(process) as peer:
        assert (await peer.get("/healthz")).status == 200
        await asyncio.sleep(limit_of(process) / 10)
        await drop_of_dribble(process, peer, peer.upgrade_head(), time.monotonic(), "request")


async def half_a_head_behind_a_request(process: GatewayProcess) -> None:
    """The second request has begun in the same segment as the first."""
    with await RawPeer.connect(process) as peer:
        begin = time.monotonic()
        first = f"GET /healthz HTTP/1.1\r\nHost: {peer.authority}\r\n\r\n"
        await peer.send_raw(first.encode() + peer.upgrade_head()[:60])
        assert (await peer.read_response()).status == 200
        await expect_drop(process, peer, begin, "request")


async def silent_in_tls(process: GatewayProcess) -> None:
    begin = time.monotonic()
    with await RawPeer.connect(process, tls=False) as peer:
        await expect_drop(process, peer, begin, "tls")


async def half_a_client_hello(process: GatewayProcess) -> None:
    assert process.tls is not None
    begin = time.monotonic()
    with await RawPeer.connect(process, tls=False) as peer:
        await peer.send_raw(client_hello(process.tls)[:100])
        await expect_drop(process, peer, begin, "tls")


async def dribbling_tls(process: GatewayProcess) -> None:
    assert process.tls is not None
    begin = time.monotonic()
    with await RawPeer.connect(process, tls=False) as peer:
        await drop_of_dribble(process, peer, client_hello(process.tls), begin, "tls")


async def no_answer_to_the_server_hello(process: GatewayProcess) -> None:
    assert process.tls is not None
    begin = time.monotonic()
    with await RawPeer.connect(process, tls=False) as peer:
        await peer.send_raw(client_hello(process.tls))
        await expect_drop(process, peer, begin, "tls")


async def late_tls_then_silent(process: GatewayProcess) -> None:
    """TLS and the request share one budget."""
    assert process.tls is not None
    begin = time.monotonic()
    with await RawPeer.connect(process, tls=False) as peer:
        await asyncio.sleep(0.4 * limit_of(process))
        await peer.wire.start_tls(process.tls, process.host)
        await asyncio.sleep(0.2 * limit_of(process))
        await peer.send_raw(peer.upgrade_head()[:60])
        await expect_drop(process, peer, begin, "request")


BAD_PEERS: tuple[Callable[[GatewayProcess], Awaitable[None]], ...] = (
    silent,
    half_a_head,
    dribbling,
    slow_handler,
    kept_alive_dribbling,
    half_a_head_behind_a_request,
)
BAD_TLS_PEERS = (
    silent_in_tls,
    half_a_client_hello,
    dribbling_tls,
    no_answer_to_the_server_hello,
    late_tls_then_silent,
)


@module_loop
async def test_h1_silent_peer(limited: GatewayProcess) -> None:
    await silent(limited)


@module_loop
async def test_h2_half_a_request_head(limited: GatewayProcess) -> None:
    await half_a_head(limited)


@module_loop
async def test_h3_one_byte_every_200_ms(limited: GatewayProcess) -> None:
    await dribbling(limited)


@module_loop
async def test_h4_slow_work_before_the_101(limited: GatewayProcess) -> None:
    await slow_handler(limited)
    # Whether its handler was cancelled or finds nobody there: it ends quietly, and nothing was opened.
    await limited.wait_event("slow.ended")
    with await RawPeer.open(limited) as last:
        await last.leave()
    await limited.wait_event("connection.closed", remote=last.local)
    assert len(limited.events("connection.opened")) == len(limited.events("connection.closed"))
    limited.assert_no_defects()


@module_loop
async def test_h5_stalls_inside_tls(limited_tls: GatewayProcess) -> None:
    await asyncio.gather(*(kind(limited_tls) for kind in BAD_TLS_PEERS))


@module_loop
async def test_h6_plaintext_on_the_tls_port(limited_tls: GatewayProcess) -> None:
    with await RawPeer.connect(limited_tls, tls=False) as peer:
        await peer.send_raw(peer.upgrade_head())
        await peer.wait_closed()
        assert not limited_tls.events("handshake.timeout", remote=peer.local), "it was not a matter of time"
        line = await limited_tls.wait_event("handshake.rejected", remote=peer.local)
        assert line["status"] == 0
        assert "TLS" in line["reason"]
    limited_tls.assert_no_defects()


@module_loop
async def test_h14_second_request_dribbles(limited: GatewayProcess) -> None:
    await kept_alive_dribbling(limited)


@module_loop
async def test_h14_second_request_begins_in_the_first_ones_segment(limited: GatewayProcess) -> None:
    await half_a_head_behind_a_request(limited)


async def test_good_peers_among_bad_ones(gateway: StartGateway, transport: str) -> None:
    """Whatever the bad peers do, others connect meanwhile, and the deadline never ends what is open."""
    process = await gateway(
        {"server": {"handshake_timeout": AMPLE}}, tls=transport == "tls", module="tests.support.slow_server"
    )

    async def good(number: int) -> None:
        await asyncio.sleep(number * 0.5 * AMPLE / GOOD_PEERS)
        with await RawPeer.open(process) as peer:
            await peer.welcome()
            await asyncio.sleep(1.1 * AMPLE)
            await peer.alive()
            await peer.leave()

    async def late() -> None:
        """Uses much of its budget, and then is open like the others."""
        with await RawPeer.connect(process) as peer:
            await asyncio.sleep(0.3 * AMPLE)
            await peer.upgrade()
            await peer.welcome()
            await asyncio.sleep(1.1 * AMPLE)
            await peer.alive()

    async def rests() -> None:
        """The deadline is for a request that has begun; between requests `keepalive_timeout` holds."""
        with await RawPeer.connect(process) as peer:
            assert (await peer.get("/healthz")).status == 200
            await asyncio.sleep(1.1 * AMPLE)
            await peer.upgrade()
            await peer.welcome()

    kinds = BAD_PEERS + (BAD_TLS_PEERS if process.tls else ())
    bad = [kind(process) for kind in kinds for _ in range(3)]
    await asyncio.gather(late(), rests(), *bad, *(good(number) for number in range(GOOD_PEERS)))


async def test_a_peer_that_leaves_in_its_handshake(gateway: StartGateway, transport: str) -> None:
    """Nothing waits for the deadline of one who has left already."""
    process = await gateway({"server": {"handshake_timeout": 100.0}}, tls=transport == "tls")
    before = process.sockets()

    async def leaves(number: int) -> None:
        in_tls = transport == "tls" and number % 4 < 2
        with await RawPeer.connect(process, tls=not in_tls) as peer:
            if not in_tls:
                await peer.send_raw(peer.upgrade_head()[:60])
            await asyncio.sleep(0.2)
            if number % 2:
                peer.rst()

    await asyncio.gather(*(leaves(number) for number in range(40)))
    await sockets_back(process, before)
    assert not process.events("handshake.timeout")


async def test_keepalive_timeout(gateway: StartGateway) -> None:
    process = await gateway({"server": {"keepalive_timeout": 1.0}})
    with await RawPeer.connect(process) as peer:
        begin = time.monotonic()
        assert (await peer.get("/healthz")).status == 200
        await peer.wait_closed()
        assert 0.9 <= time.monotonic() - begin <= 1.0 + SLACK
        assert not process.events("handshake.timeout")


# H13


async def at_least(count: int, tasks: Collection[asyncio.Task[Response]]) -> None:
    """Wait until that many are done."""
    async with asyncio.timeout(WAIT):
        while sum(task.done() for task in tasks) < count:
            await asyncio.sleep(0.02)


async def test_h13_descriptors_used_up(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway(loop=loop, nofile=64)
    spare = 64 - process.fds()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(await RawPeer.connect(process)) for _ in range(spare + 20)]
        waiting = {asyncio.create_task(peer.upgrade(timeout=START)): peer for peer in peers}
        await at_least(spare - 10, waiting)
        await asyncio.sleep(1.0)
        opened = [waiting.pop(task) for task in list(waiting) if task.done() and task.result().status == 101]
        assert len(opened) >= spare - 10
        assert len(waiting) >= 10, "nobody had to wait: the limit was not met"

        # The log does not notice much, and who is open lives on.
        lines = len(process.lines)
        await asyncio.gather(*(peer.alive() for peer in opened))
        await asyncio.sleep(1.0)
        assert len(process.lines) - lines <= 5
        assert sum(line["level"].lower() in ("warning", "error") for line in process.lines) in range(1, 10)

        # Some leave: as many of those who wait are let in, without doing anything for it.
        await asyncio.gather(*(peer.leave() for peer in opened[:10]))
        await at_least(10, waiting)
        assert sum(task.done() for task in waiting) == 10
        await asyncio.gather(*(peer.leave() for peer in opened[10:]))
        await at_least(len(waiting), waiting)
        assert all(task.result().status == 101 for task in waiting)
    process.assert_no_defects()


# TLS


def tls_1_1_client_hello() -> bytes:
    """Return a ClientHello that offers TLS 1.1 at most (RFC 4346, section 7.4.1.2).

    Made by hand: a system's OpenSSL may be configured so that no client would send it.
    """
    suites = bytes.fromhex("c014c00a00390035c013c00900330032002f000a00ff")
    body = b"\x03\x02" + os.urandom(32) + b"\x00" + len(suites).to_bytes(2, "big") + suites + b"\x01\x00"
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


@module_loop
async def test_tls_1_1_is_refused(limited_tls: GatewayProcess) -> None:
    with await RawPeer.connect(limited_tls, tls=False) as peer:
        await peer.send_raw(tls_1_1_client_hello())
        await peer.wait_closed()
        line = await limited_tls.wait_event("handshake.rejected", remote=peer.local)
        assert "unsupported protocol" in line["reason"]
    limited_tls.assert_no_defects()


@module_loop
async def test_tls_1_2_is_enough(limited_tls: GatewayProcess, certificates: Authority) -> None:
    context = certificates.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with await RawPeer.open(Target(port=limited_tls.port, tls=context)) as peer:
        await peer.welcome()
        await peer.leave()


async def served_certificate(process: GatewayProcess) -> bytes:
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        return peer.wire.certificate()


async def test_sighup_reloads_the_certificate(
    gateway: StartGateway, loop: EventLoopName, certificates: Authority
) -> None:
    process = await gateway(tls=True, loop=loop)
    assert process.files is not None
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        first = peer.wire.certificate()
        assert await served_certificate(process) == first

        certificates.issue(process.files.cert.parent)
        assert await served_certificate(process) == first, "read before SIGHUP"
        process.signal(signal.SIGHUP)
        await process.wait_event("server.reloaded")
        second = await served_certificate(process)
        assert second != first

        # A certificate that cannot be read is an error in the log, and nothing else changes.
        for broken in (b"-----BEGIN CERTIFICATE-----\nnonsense\n", b""):
            process.files.cert.write_bytes(broken)
            errors = len(error_lines(process))
            process.signal(signal.SIGHUP)
            await expect_one_more_error(process, errors)
            assert await served_certificate(process) == second
        await peer.alive()
        assert not process.events("connection.closed", remote=peer.local)


async def test_sighup_with_a_key_of_another_certificate(gateway: StartGateway, certificates: Authority) -> None:
    process = await gateway(tls=True)
    assert process.files is not None
    first = await served_certificate(process)
    old_key = process.files.key.read_bytes()
    certificates.issue(process.files.cert.parent)
    process.files.key.write_bytes(old_key)
    process.signal(signal.SIGHUP)
    await expect_one_more_error(process, 0)
    assert await served_certificate(process) == first


def error_lines(process: GatewayProcess) -> list[str]:
    return [line["message"] for line in process.lines if line["level"].lower() == "error"]


async def expect_one_more_error(process: GatewayProcess, before: int) -> None:
    async with asyncio.timeout(WAIT):
        while len(error_lines(process)) == before:
            await asyncio.sleep(0.01)
    assert len(error_lines(process)) == before + 1


# The Unix socket


async def test_one_that_has_to_go_before_its_task_has_begun_is_closed() -> None:
    """Three are accepted in one go where there is room for one handshake: two go, and their sockets with them."""

    async def scenario(tls: bool) -> None:
        async with serving(Script(), tls=tls, most=1) as where:
            with contextlib.ExitStack() as stack:
                address = (where.host, where.port)
                sockets = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
                for sock in sockets:
                    sock.setblocking(False)
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(WAIT):
                    ends = [await loop.sock_recv(sock, 1) for sock in sockets[:2]]
                assert ends == [b"", b""]
                with pytest.raises(BlockingIOError):
                    sockets[2].recv(1)

    await in_process(scenario)
