"""The process: how it starts or says why not, drains, reloads, and lives on without its log or under another clock.

Rows E3, E4, E6 and E7 of the fault table. What systemd and the process say to each other is in test_systemd.py, the
reload of a certificate in test_listener.py, and what a configuration must look like in tests/config.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import sys
import termios
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.connections.registry import LEAVE_WITHIN, RECONNECT_MS
from gateway.server import EXIT_FORCED, GC_THRESHOLDS
from tests.support.certs import ServerFiles, authority
from tests.support.command import run
from tests.support.fleet import FLOOD_SERVER, request, started, until
from tests.support.patience import SLACK, START, TICK, WAIT, Sized
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.process import ROOT, EventLoopName, GatewayProcess, StartGateway, clean_environment

DRAIN_TIMEOUT, CLOSE_TIMEOUT = 60.0, 0.8
CONFIG = {"server": {"drain_timeout": DRAIN_TIMEOUT, "close_timeout": CLOSE_TIMEOUT}}
SHORT = 1.5
SHORT_CONFIG = {"server": {"drain_timeout": SHORT, "close_timeout": CLOSE_TIMEOUT}}
"""For peers that use all the time that there is."""
LONG = 6.0
"""Seconds in which a busy machine answers a dozen requests."""
LONG_CONFIG = {"server": {"drain_timeout": 100.0, "close_timeout": 100.0, "handshake_timeout": 100.0}}
SOON = WAIT
"""Seconds in which all is over that does not wait for one of those."""
AT_ONCE = 100
"""Peers that connect at the same time."""
MIB = 1 << 20


# The drain, with a crowd


class Guest:
    """A peer that reads, and answers a close or not. After `watch` it says what it saw of the drain."""

    def __init__(self, peer: RawPeer, answers: bool) -> None:
        self._peer = peer
        self._answers = answers
        self.params: dict[str, Any] = {}
        self.code: int | None = None

    async def watch(self) -> None:
        """Read from after the welcome to the end."""
        message = await self._peer.recv_json(START)
        assert message["method"] == "gateway.draining", message
        self.params = message["params"]
        got = await self._peer.recv_frame(START)
        assert got.opcode == Opcode.CLOSE, got
        self.code = self._peer.close_code
        if self._answers:
            await self._peer.send_frame(Opcode.CLOSE, got.payload)
        await self._peer.wait_closed(START)
        self._peer.close()


class Crowd:
    """Many peers of one gateway: those who answer, those who are mute, and those who do not even read."""

    def __init__(self, process: GatewayProcess) -> None:
        self._process = process
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._stack = ExitStack()
        self.guests: list[Guest] = []
        self.stalled = 0

    async def come(self, answering: int, *, mute: int = 0, stalled: int = 0) -> None:
        """Connect all. Megabytes wait for every second of the stalled, which the kernel does not take."""
        kinds = [True] * answering + [False] * mute
        peers = await asyncio.gather(*(self._enter() for _ in kinds))
        self.guests = [Guest(peer, answers) for peer, answers in zip(peers, kinds, strict=True)]
        self.stalled = stalled
        for number in range(stalled):
            peer = await self._enter(rcvbuf=4096)
            if number % 2:
                await request(peer, "test.send", count=6, size=MIB)
            peer.stop_reading()

    async def _enter(self, **options: Any) -> RawPeer:
        async with self._turns:
            peer = self._stack.enter_context(await RawPeer.open(self._process, timeout=START, **options))
            await peer.welcome(START)
            return peer

    async def see_off(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send the signal, check exit status and log, and return the seconds until the process has ended."""
        watching = [asyncio.create_task(guest.watch()) for guest in self.guests]
        try:
            await asyncio.sleep(0.1)
            begin = time.monotonic()
            self._process.signal(number)
            status = await self._process.wait(START)
            took = time.monotonic() - begin
            await asyncio.gather(*watching)
        finally:
            self._stack.close()
        assert status == 0
        self._process.assert_no_defects()
        causes = Counter((line["cause"], line["code"]) for line in self._process.events("connection.closed"))
        assert causes == {("shutdown", 1001): len(self.guests) + self.stalled}
        (stopped,) = self._process.events("server.stopped")
        assert stopped["connections"] == 0
        return took


def expect_a_spread(crowd: Crowd, drain_timeout: float = DRAIN_TIMEOUT) -> None:
    """Fail unless all were told and closed as they should be, and reconnect at different moments."""
    guests = crowd.guests
    assert Counter(guest.code for guest in guests) == {1001: len(guests)}
    for guest in guests:
        assert guest.params.keys() == {"deadlineMs", "reconnectAfterMs"}
        assert 1000 * (drain_timeout - WAIT) <= guest.params["deadlineMs"] <= 1000 * drain_timeout
    low, high = RECONNECT_MS
    parts = 10 if len(guests) >= 400 else 4  # so that none is empty by chance
    share = Counter((guest.params["reconnectAfterMs"] - low) * parts // (high - low + 1) for guest in guests)
    assert sorted(share) == list(range(parts)), "each part of the time has its share"
    assert max(share.values()) <= 2.5 * len(guests) / parts


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many sockets as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard >= 6000, f"this test needs 6,000 file descriptors, and the hard limit is {hard}"
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_e3_drain_of_many_some_mute_and_some_stalled(
    gateway: StartGateway, loop: EventLoopName, sized: Sized
) -> None:
    """Nothing is in flight: the closes are waited for, and not the drain timeout."""
    process = await gateway(CONFIG, loop=loop, module=FLOOD_SERVER)
    crowd = Crowd(process)
    await crowd.come(sized(400, 4900), mute=sized(20, 50), stalled=sized(20, 50))
    took = await crowd.see_off()
    assert CLOSE_TIMEOUT <= took <= DRAIN_TIMEOUT / 2, f"{took:.3f} s"
    expect_a_spread(crowd)


async def test_e3_over_tls() -> None:
    async def scenario(process: GatewayProcess) -> None:
        crowd = Crowd(process)
        await crowd.come(140, mute=10, stalled=10)
        took = await crowd.see_off()
        assert CLOSE_TIMEOUT <= took <= DRAIN_TIMEOUT / 2, f"{took:.3f} s"
        expect_a_spread(crowd)

    async with started(CONFIG, module=FLOOD_SERVER, only=slice(1, 4, 2)) as gateways:
        assert all(process.tls for process in gateways)
        await asyncio.gather(*map(scenario, gateways))


async def test_with_nothing_in_flight_it_is_gone_as_soon_as_the_closes_are_through() -> None:
    """SIGTERM and SIGINT are the same."""

    async def scenario(process: GatewayProcess, number: signal.Signals) -> None:
        crowd = Crowd(process)
        await crowd.come(100)
        took = await crowd.see_off(number)
        assert took <= LEAVE_WITHIN + SOON, f"{took:.3f} s"
        expect_a_spread(crowd, 100.0)

    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    async with started(LONG_CONFIG) as gateways:
        await asyncio.gather(*map(scenario, gateways, signals))


async def test_with_nobody_there_it_is_gone_at_once() -> None:
    """Handshakes under way and idle HTTP connections hold nobody up, and are no timeouts."""

    async def scenario(process: GatewayProcess) -> None:
        with ExitStack() as stack:
            silent = stack.enter_context(await RawPeer.connect(process, tls=False))
            half, idle = [stack.enter_context(await RawPeer.connect(process)) for _ in range(2)]
            await half.send_raw(half.upgrade_head()[:60])
            assert (await idle.get("/healthz")).status == 200
            begin = time.monotonic()
            process.terminate()
            for peer in (silent, half, idle):
                await peer.wait_closed()
            assert await process.wait() == 0
            assert time.monotonic() - begin <= SOON
        process.assert_no_defects()
        assert not process.events("handshake.timeout"), "nobody was late"

    async with started(LONG_CONFIG) as gateways:
        await asyncio.gather(*map(scenario, gateways))


# The drain, from close by


async def busy(process: GatewayProcess, seconds: float) -> RawPeer:
    """Connect somebody who has a call in flight for so long."""
    peer = await RawPeer.open(process)
    await peer.welcome()
    await request(peer, "test.late", seconds=seconds)
    await peer.alive()
    return peer


async def test_while_draining_http_is_answered_and_says_so() -> None:
    """From the first moment, on new and on kept connections, until the last WebSocket has ended."""

    async def scenario(process: GatewayProcess) -> None:
        with ExitStack() as stack:
            peer = stack.enter_context(await busy(process, seconds=60.0))
            kept = stack.enter_context(await RawPeer.connect(process))
            assert (await kept.get("/readyz")).status == 200
            begin = time.monotonic()
            process.terminate()
            assert (await peer.recv_json())["method"] == "gateway.draining"
            for _ in range(2):
                await expect_draining(kept)
                with await RawPeer.connect(process) as fresh:
                    await expect_draining(fresh)
                    await expect_no_room(fresh)
            await peer.recv_frame()
            assert peer.close_code == 1001
            assert time.monotonic() - begin >= LONG - TICK, "a call in flight has all the time that there is"
            await peer.leave(1001)
            assert await process.wait() == 0
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await RawPeer.connect(process)

    config = {"server": {"drain_timeout": LONG, "close_timeout": CLOSE_TIMEOUT}}
    async with started(config, module=FLOOD_SERVER) as gateways:
        await asyncio.gather(*map(scenario, gateways))


async def expect_draining(http: RawPeer) -> None:
    ready = await http.get("/readyz")
    assert (ready.status, json.loads(ready.body)) == (503, {"status": "draining"})
    assert (await http.get("/healthz")).status == 200


async def expect_no_room(http: RawPeer) -> None:
    await http.send_raw(http.upgrade_head())
    refusal = await http.read_response()
    assert refusal.status == 503
    assert int(refusal.headers["retry-after"]) > 0
    assert b"draining" in refusal.body


async def test_while_draining_calls_are_answered_and_new_ones_refused(gateway: StartGateway) -> None:
    process = await gateway(SHORT_CONFIG, module=FLOOD_SERVER)
    with await busy(process, seconds=1.0) as peer:
        process.terminate()
        assert (await peer.recv_json())["method"] == "gateway.draining"
        await peer.send_json({"jsonrpc": "2.0", "id": 2, "method": "no.such"})
        refusal = await peer.recv_json()
        assert (refusal["id"], refusal["error"]["code"]) == (2, -32011)
        assert await peer.recv_json() == {"jsonrpc": "2.0", "id": 1, "result": True}
        await peer.recv_frame()
        assert peer.close_code == 1001
        await peer.leave(1001)
        assert await process.wait() == 0


async def test_the_longest_drain_is_bounded() -> None:
    """Calls that do not end, of peers that do not read, or do not answer the close at the deadline."""

    async def scenario(process: GatewayProcess) -> None:
        with ExitStack() as stack:
            peers = [stack.enter_context(await busy(process, seconds=60.0)) for _ in range(4)]
            for peer in peers[:2]:
                await request(peer, "test.send", count=6, size=MIB)
            begin = time.monotonic()
            process.terminate()
            assert await process.wait() == 0
            took = time.monotonic() - begin
            assert SHORT + CLOSE_TIMEOUT - TICK <= took <= SHORT + CLOSE_TIMEOUT + SLACK, f"{took:.3f} s"
        assert [line["cause"] for line in process.events("connection.closed")] == ["shutdown"] * 4

    async with started(SHORT_CONFIG, module=FLOOD_SERVER) as gateways:
        await asyncio.gather(*map(scenario, gateways))


@pytest.mark.parametrize(("loop_name", "second"), [("uvloop", signal.SIGTERM), ("asyncio", signal.SIGINT)])
async def test_e4_second_signal(gateway: StartGateway, loop_name: EventLoopName, second: signal.Signals) -> None:
    process = await gateway(LONG_CONFIG, loop=loop_name, module=FLOOD_SERVER)
    with await busy(process, seconds=60.0) as peer:
        process.terminate()
        await process.wait_event("server.draining", connections=1)
        assert (await peer.recv_json())["method"] == "gateway.draining"
        begin = time.monotonic()
        process.signal(second)
        assert await process.wait() == EXIT_FORCED
        assert time.monotonic() - begin <= SOON
    (stopped,) = process.events("server.stopped")
    assert stopped["signal"] == second.name


async def test_e4_second_signal_under_a_crowd_that_is_stalled(gateway: StartGateway) -> None:
    process = await gateway(LONG_CONFIG, module=FLOOD_SERVER)
    with ExitStack() as stack:
        for _ in range(10):
            peer = stack.enter_context(await RawPeer.open(process, rcvbuf=4096))
            await request(peer, "test.send", count=6, size=MIB)
        process.terminate()
        await process.wait_event("server.draining")
        await asyncio.sleep(LEAVE_WITHIN + 0.2)
        begin = time.monotonic()
        process.terminate()
        assert await process.wait() == EXIT_FORCED
        assert time.monotonic() - begin <= SOON


async def test_a_reload_while_draining_changes_nothing(gateway: StartGateway) -> None:
    process = await gateway(SHORT_CONFIG, module=FLOOD_SERVER, tls=True)
    with await busy(process, seconds=60.0) as peer:
        begin = time.monotonic()
        process.terminate()
        assert (await peer.recv_json())["method"] == "gateway.draining"
        process.signal(signal.SIGHUP)
        with await RawPeer.connect(process) as http:
            await expect_draining(http)
        await peer.recv_frame()
        await peer.leave(1001)
        assert await process.wait() == 0
        assert not [line for line in process.lines if line["event"] == "server.reloaded"]
        assert SHORT - TICK <= time.monotonic() - begin <= SHORT + SLACK


# E6: the log cannot be written


@asynccontextmanager
async def without_reader(stdout: int, path: Path, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a gateway on a Unix socket whose log goes to a descriptor of the test's; it listens when this yields."""
    settings = {
        "GATEWAY_SERVER__UNIX_SOCKET": str(path),
        "GATEWAY_SERVER__DRAIN_TIMEOUT": "100",
        "GATEWAY_SERVER__CLOSE_TIMEOUT": "100",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway"),
        cwd=ROOT,
        env=clean_environment() | settings | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await until(lambda: listens(path), "it does not listen")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


async def lives(path: Path, connections: int = 20) -> None:
    """Fail unless connections come, speak and go as always; each costs the log two lines."""
    for _ in range(connections):
        with await RawPeer.open(Target(unix=path)) as peer:
            await peer.welcome()
            await peer.alive()
            await peer.leave()


async def ends_well(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, and fail unless the process ends in time, with status 0 and without a word."""
    process.terminate()
    async with asyncio.timeout(SOON):
        assert await process.wait() == 0
    assert process.stderr is not None
    assert await process.stderr.read() == b""


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_e6_disk_full(tmp_path: Path, log_format: str) -> None:
    path = tmp_path / "gateway.sock"
    with open("/dev/full", "wb") as full:
        async with without_reader(full.fileno(), path, GATEWAY_LOG__FORMAT=log_format) as process:
            await lives(path)
            await ends_well(process)


async def test_e6_broken_pipe_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with without_reader(writer, path) as process:
            await lives(path)
            await ends_well(process)
    finally:
        os.close(writer)


async def test_e6_reader_that_goes_and_comes_back_is_told_of_the_loss(tmp_path: Path) -> None:
    """The log is a named pipe, as under a log collector that is restarted."""
    path, pipe = tmp_path / "gateway.sock", tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    log = bytearray()
    async with without_reader(writer, path) as process:
        os.close(writer)
        await lives(path, 1)
        await until(lambda: b"connection.closed" in grown(log, reader), "no log")
        os.close(reader)
        await lives(path, 10)
        await asyncio.sleep(0.5)  # until the log has been written, or not
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        await lives(path, 1)
        log.clear()
        await until(lambda: b"log.lost" in grown(log, reader), "no word of the loss")
        lines = [json.loads(line) for line in log.splitlines()]
        assert sum(line["lines"] for line in lines if line["event"] == "log.lost") >= 20
        await ends_well(process)
    os.close(reader)


def grown(log: bytearray, reader: int) -> bytearray:
    """Add what has come in by now."""
    with contextlib.suppress(BlockingIOError):
        log += os.read(reader, 65536)
    return log


async def test_e6_reader_that_stalls_holds_up_neither_the_peers_nor_the_exit(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        async with without_reader(writer, path) as process:
            await lives(path, 50)
            await ends_well(process)
    finally:
        os.close(reader)
        os.close(writer)


# E7: the clock jumps

# A gateway whose wall clock a signal moves: SIGUSR1 a year forward, SIGUSR2 two years back.
JUMPING = """
import runpy, signal, time
wall, ahead = time.time, 0.0

def jump(number, frame):
    global ahead
    ahead += 31_536_000 if number == signal.SIGUSR1 else -63_072_000

time.time = lambda: wall() + ahead
signal.signal(signal.SIGUSR1, jump)
signal.signal(signal.SIGUSR2, jump)
runpy.run_module("gateway", run_name="__main__", alter_sys=True)
"""
HANDSHAKE_TIMEOUT = 2.0
QUICK = {
    "server": {"receive_timeout": 60.0, "handshake_timeout": HANDSHAKE_TIMEOUT, "close_timeout": CLOSE_TIMEOUT},
    "heartbeat": {"interval": 0.4, "timeout": 3.0},
}


async def answer_pings(peer: RawPeer) -> None:
    """Do nothing else."""
    await peer.welcome()
    while True:
        got = await peer.recv_frame()
        assert got.opcode == Opcode.PING, got
        await peer.send_frame(Opcode.PONG, got.payload)


@asynccontextmanager
async def patients(process: GatewayProcess, count: int) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Connect some that answer pings; their tasks end only if they are not let live."""
    with ExitStack() as stack:
        peers = [stack.enter_context(await RawPeer.open(process)) for _ in range(count)]
        tasks = [asyncio.create_task(answer_pings(peer)) for peer in peers]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()


async def test_e7_clock_jumps(gateway: StartGateway, tmp_path: Path) -> None:
    """A year forward, then two back: nobody is dropped, and the deadlines hold."""
    (tmp_path / "jumping.py").write_text(JUMPING)

    async def scenario(loop: EventLoopName) -> None:
        process = await gateway(QUICK, module="jumping", environ={"PYTHONPATH": str(tmp_path)}, loop=loop)
        years = [process.events("server.ready")[0]["time"][:4]]
        async with patients(process, 20) as tasks:
            for jump in (signal.SIGUSR1, signal.SIGUSR2):
                begin = time.monotonic()
                with await RawPeer.connect(process) as silent, await RawPeer.connect(process) as idle:
                    assert (await idle.get("/healthz")).status == 200
                    process.signal(jump)
                    await silent.wait_closed()
                    assert HANDSHAKE_TIMEOUT - TICK <= time.monotonic() - begin <= HANDSHAKE_TIMEOUT + SLACK
                    years.append((await process.wait_event("handshake.timeout", remote=silent.local))["time"][:4])
                    assert (await idle.get("/healthz")).status == 200
                await asyncio.sleep(0.3)
            assert not any(task.done() for task in tasks)
        assert [int(year) - int(years[0]) for year in years] == [0, 1, -1], "the clock did jump"
        await until(lambda: len(process.events("connection.closed")) == 20, "not closed")
        assert all(2.0 <= line["duration"] <= 300.0 for line in process.events("connection.closed"))

    await asyncio.gather(scenario("uvloop"), scenario("asyncio"))


async def test_e7_process_that_stood_still() -> None:
    """Stopped for longer than a peer may be silent, as by a suspend: what has come in meanwhile is read first."""

    async def scenario(process: GatewayProcess) -> None:
        async with patients(process, 20) as tasks:
            await asyncio.sleep(0.5)
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(4.0)
            process.signal(signal.SIGCONT)
            await asyncio.sleep(1.0)
            assert not any(task.done() for task in tasks)
            assert not process.events("connection.closed")

    async with started(QUICK, only=slice(0, 4, 3)) as gateways:
        await asyncio.gather(*map(scenario, gateways))


# The start


# Serves, and ends as soon as it listens to SIGTERM; then it tells what `serve` has set.
SERVE = """
import gc, os, resource, signal, threading, time
from gateway import config, server
from gateway.telemetry import log

def stop():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
settings = config.parse({"server": {"port": 0, "event_loop": "asyncio"}})
threading.Thread(target=stop).start()
status = server.serve(settings, str, {}, log.configure(settings.log, 2))
print(status, gc.get_threshold(), resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


def test_it_takes_all_descriptors_and_collects_less_often() -> None:
    ended = run(program=SERVE)
    assert ended.stdout == f"0 {GC_THRESHOLDS} True\n"
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert events == ["server.started", "server.ready", "server.draining", "server.stopped"]


async def test_the_start_is_told(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway(loop=loop)
    (started,) = process.events("server.started")
    assert (started["pid"], started["eventLoop"], started["tls"]) == (process.pid, loop, False)
    with await RawPeer.open(process) as peer:
        assert (await peer.welcome())["server"]["instance"] == started["instance"]
    assert [line["event"] for line in process.lines[:2]] == ["server.started", "server.ready"]


# A wrong configuration: exit status 2 and one line: source, key, what is wrong, what would be right

TAKEN = "Address already in use"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def expect_refusal(line: str, *arguments: str, **environ: str) -> None:
    """Fail unless this start is refused with this line, and nothing else; the line is a regular expression."""
    ended = run(*arguments, environ=environ)
    assert (ended.status, ended.stdout) == (2, "")
    assert re.fullmatch(f"{line}\n", ended.stderr), ended.stderr


def test_port_in_use_of_a_flag(taken: int) -> None:
    expect_refusal(f"flag --port: server.port: cannot listen on 127.0.0.1:{taken}: {TAKEN}; .+", "--port", str(taken))


def test_port_in_use_of_a_variable(taken: int) -> None:
    source = "environment variable GATEWAY_SERVER__PORT"
    line = f"{source}: server.port: cannot listen on 127.0.0.1:{taken}: {TAKEN}; .+"
    expect_refusal(line, GATEWAY_SERVER__PORT=str(taken))


def test_port_in_use_of_a_file(taken: int, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[server]\nport = {taken}\n")
    line = f"{file}: server.port: cannot listen on 127.0.0.1:{taken}: {TAKEN}; .+"
    expect_refusal(line, "--config", str(file))


def test_address_that_is_not_this_machine_s() -> None:
    """One of those that are for documentation (RFC 5737)."""
    line = r"flag --host: server\.host: cannot listen on 192\.0\.2\.1:0: Cannot assign requested address; (.+)"
    ended = run("--host", "192.0.2.1", "--port", "0", environ={"GATEWAY_AUTH__ALLOW_INSECURE": "true"})
    assert ended.status == 2
    found = re.fullmatch(f"{line}\n", ended.stderr)
    assert found, ended.stderr
    assert "this machine" in found.group(1), "a free address of another machine would not be right either"


def test_one_of_several_addresses_that_is_not_this_machine_s() -> None:
    line = r"flag --host: server\.host: cannot listen on 192\.0\.2\.1:0: Cannot assign requested address; "
    ended = run("--host", "127.0.0.1,192.0.2.1", "--port", "0", environ={"GATEWAY_AUTH__ALLOW_INSECURE": "true"})
    assert ended.status == 2
    assert re.match(line, ended.stderr), ended.stderr


def test_unix_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        source = "environment variable GATEWAY_SERVER__UNIX_SOCKET"
        line = f"{source}: server.unix_socket: cannot listen on {path}: {TAKEN}; .+"
        expect_refusal(line, GATEWAY_SERVER__UNIX_SOCKET=str(path))
    assert path.is_socket(), "it is the other's"


def test_unix_socket_where_a_file_lies(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    source = "environment variable GATEWAY_SERVER__UNIX_SOCKET"
    line = f"{source}: server.unix_socket: cannot listen on {path}: {TAKEN}; .+"
    expect_refusal(line, GATEWAY_SERVER__UNIX_SOCKET=str(path))
    assert path.read_text() == "mine"


def test_unix_socket_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "nowhere/gateway.sock"
    source = "environment variable GATEWAY_SERVER__UNIX_SOCKET"
    line = f"{source}: server.unix_socket: cannot listen on {path}: No such file or directory; .*director.*"
    expect_refusal(line, GATEWAY_SERVER__UNIX_SOCKET=str(path))


def test_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\ntls_cert = '/nowhere/gateway.pem'\ntls_key = '/nowhere/gateway.key'\n")
    wrong = 'server.tls_cert: "/nowhere/gateway.pem" cannot be read: No such file or directory'
    expect_refusal(f"{file}: {wrong}; a readable PEM file", "--config", str(file))


def test_a_tokens_file_that_others_may_write(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.touch()
    tokens.chmod(0o666)
    wrong = "auth.tokens_file: mode 0666 lets others than its owner write it"
    line = f"{tokens}: {wrong}; chmod go-w: whoever may write it decides who may connect"
    expect_refusal(line, GATEWAY_SERVER__PORT="0", GATEWAY_AUTH__MODE="token", GATEWAY_AUTH__TOKENS_FILE=str(tokens))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nprot = 1\n", r'server\.prot: unknown key; did you mean "port"\?'),
        ("[sever]\nport = 1\n", r'sever: unknown key; did you mean "server"\?'),
        ("[server]\nport = '1'\n", r'server\.port: expected int, got str "1"; an integer from 0 to 65535'),
        (
            "[heartbeat]\ninterval = -1\n",
            r"heartbeat\.interval: -1\.0 is out of range; a number of seconds above 0, .+",
        ),
        ("[server]\nport = \n", r"line 2, column 8: Invalid value; TOML, .+"),
        (
            "[server]\nreceive_timeout = 5\n",
            r"server\.receive_timeout: .+ does not exceed .+; a server\.receive_timeout above 40\.0",
        ),
        ("[auth]\nmode = 'token'\n", r'auth\.mode: "token" without auth\.tokens_file; auth\.tokens_file, .+'),
    ],
    ids=lambda text: text.split("\n")[0] if text.startswith("[") else "",
)
def test_wrong_file(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    expect_refusal(f"{re.escape(str(file))}: {line}", "--config", str(file))


def test_file_that_is_not_there() -> None:
    wrong = "/nowhere.toml: GATEWAY_CONFIG: cannot be read: No such file or directory"
    expect_refusal(f"{wrong}; the path of a readable TOML file", GATEWAY_CONFIG="/nowhere.toml")


def test_unknown_variable() -> None:
    line = r'environment variable GATEWAY_SERVER__PROT: server\.prot: unknown key; did you mean "port"\?'
    expect_refusal(line, GATEWAY_SERVER__PROT="1")


# A reload that would have to ask somebody


def encrypt(key: Path) -> None:
    """Give a private key a passphrase."""
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"hush")
    key.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


@asynccontextmanager
async def at_a_terminal(files: ServerFiles) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a gateway with TLS at a terminal of its own; gives the process, and the terminal's other side."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    tls = {"GATEWAY_SERVER__TLS_CERT": str(files.cert), "GATEWAY_SERVER__TLS_KEY": str(files.key)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--port", "0"),
        cwd=ROOT,
        env=clean_environment() | tls,
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=take_terminal,
    )
    try:
        yield process, ours
    finally:
        process.kill()
        await process.wait()
        os.close(ours)
        os.close(theirs)


async def test_a_reload_never_asks_for_a_passphrase(tmp_path: Path) -> None:
    """OpenSSL would, at the terminal, and everybody would wait for the answer."""
    files = authority().issue(tmp_path)
    async with at_a_terminal(files) as (process, terminal):
        assert process.stdout is not None
        started_line = json.loads(await asyncio.wait_for(process.stdout.readline(), START))
        assert json.loads(await process.stdout.readline())["event"] == "server.ready"
        encrypt(files.key)
        process.send_signal(signal.SIGHUP)
        line = json.loads(await asyncio.wait_for(process.stdout.readline(), WAIT))
        assert (line["event"], line["level"]) == ("server.reload_failed", "error")
        with pytest.raises(BlockingIOError):
            os.read(terminal, 100)
        port = int(started_line["listeners"][0].rpartition(":")[2])
        with await RawPeer.open(Target(port, tls=authority().client_context())) as peer:
            await peer.welcome()
