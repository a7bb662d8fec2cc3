"""systemd: notifications, watchdog, inherited sockets, the units, and the gateway under all of them."""

import asyncio
import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, load
from gateway.systemd import Notifier, Watchdog, listen_fds, watchdog_interval
from tests.support.patience import START
from tests.support.peers import RawPeer, Target
from tests.support.process import ROOT, EventLoopName, StartGateway, clean_environment, free_port, to_toml
from tests.support.units import analyze

UNITS = ROOT / "systemd"
SERVICE, SOCKET = UNITS / "gateway.service", UNITS / "gateway.socket"
TEMPLATE = UNITS / "gateway@.service"
OWN_PID = os.getpid()

# Runs a command (argv[2:]) as a service manager does: with these descriptors (argv[1]) at 3, 4, …, no others.
ACTIVATE = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
os.closerange(3, 100)
for target, fd in enumerate(fds, 3):
    os.dup2(fd, target)
os.closerange(100, 200)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""

# Tells as JSON what listen_fds made of it.
REPORT = """
import json, os
from gateway.systemd import listen_fds
told, taken = {}, []
try:
    taken = listen_fds(os.environ)
    told["names"] = [sock.getsockname() for sock in taken]
    told["fds"] = [sock.fileno() for sock in taken]
except ValueError as error:
    told["error"] = str(error)
told["open"] = [fd for fd in range(3, 6) if os.path.exists(f"/proc/self/fd/{fd}")]
told["inheritable"] = [fd for fd in told["open"] if os.get_inheritable(fd)]
told["blocking"] = [fd for fd in told["open"] if os.get_blocking(fd)]
told["variables"] = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps(told))
for sock in taken:
    sock.close()
"""

# A gateway whose main thread stands still from SIGUSR1 on until the pipe is closed. Other threads go on.
STALLING = """
import os, runpy, signal

def stall(number, frame):
    with open(os.environ["STALL_PIPE"]) as pipe:
        pipe.read()

signal.signal(signal.SIGUSR1, stall)
runpy.run_module("gateway", run_name="__main__", alter_sys=True)
"""


class Manager:
    """The service manager's end of NOTIFY_SOCKET: a real datagram socket. `name` as in the variable."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = self._listen()

    def _listen(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind("\0" + self.name[1:] if self.name.startswith("@") else self.name)
        return sock

    @property
    def environ(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name}

    def take(self) -> list[str]:
        """Every datagram that has come in by now."""
        taken = []
        while True:
            try:
                taken.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return taken

    async def expect(self, assignment: str, timeout: float = START) -> list[str]:
        """The lines of the next datagram that has this one; those before it are dropped."""
        loop = asyncio.get_running_loop()
        dropped = []
        try:
            async with asyncio.timeout(timeout):
                while True:
                    lines = (await loop.sock_recv(self._socket, 4096)).decode().split("\n")
                    if assignment in lines:
                        return lines
                    dropped.append(lines)
        except TimeoutError:
            raise AssertionError(f"no {assignment} within {timeout} s, but {dropped}") from None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens at the path meanwhile."""
        self.close()
        os.unlink(self.name)
        yield
        self._socket = self._listen()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes at the end what a test enters into it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def manager(opened: ExitStack, tmp_path: Path) -> Manager:
    return opened.enter_context(closing(Manager(str(tmp_path / "notify"))))


@pytest.fixture
def notifier(opened: ExitStack, manager: Manager) -> Notifier:
    return opened.enter_context(closing(Notifier(manager.environ, monotonic_ns=lambda: 7_000_123_999)))


class FakeTimer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """An event loop's timers. Time passes only in `turn`, and, while the loop stands still, in `block`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[FakeTimer] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self._timers.append(timer)
        return timer

    def turn(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if not timer.cancelled and timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self._timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end

    def block(self, seconds: float) -> None:
        self.now += seconds


# Notifications


@pytest.mark.parametrize("namespace", ["path", "abstract"])
def test_notifications_reach_the_manager(namespace: str, opened: ExitStack, tmp_path: Path) -> None:
    name = str(tmp_path / "notify") if namespace == "path" else f"@gateway-test-{OWN_PID}-notify"
    manager = opened.enter_context(closing(Manager(name)))
    notifier = opened.enter_context(closing(Notifier(manager.environ, monotonic_ns=lambda: 7_000_123_999)))
    notifier.ready()
    notifier.status("two\nlines")
    notifier.reloading()
    notifier.ping()
    notifier.stopping()
    assert notifier.enabled
    assert manager.take() == [
        "READY=1",
        "STATUS=two lines",
        "RELOADING=1\nMONOTONIC_USEC=7000123",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_the_default_clock_is_the_one_that_systemd_compares_with(opened: ExitStack, manager: Manager) -> None:
    notifier = opened.enter_context(closing(Notifier(manager.environ)))
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    (message,) = manager.take()
    assert before <= int(message.rpartition("=")[2]) <= after


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier(environ)
        notifier.ready()
        notifier.reloading()
        notifier.stopping()
        notifier.status("nobody listens")
        notifier.ping()
        notifier.close()
        assert not notifier.enabled
    assert caplog.records == []


@pytest.mark.parametrize("name", ["notify", "@", "/", "vsock:2:1234", "/" + "x" * 200, "/nowhere/notify"])
def test_a_wrong_address_is_logged_once_and_harms_nobody(name: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.ping()
    notifier.close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.exc_info is None
    assert vars(record)["event"] == "systemd.notify_lost"


def test_a_lost_change_of_state_goes_out_with_the_next_ping(manager: Manager, notifier: Notifier) -> None:
    with manager.away():
        notifier.reloading()
        notifier.ready()
    notifier.ping()
    notifier.ping()
    # The reload is over: only the last state counts.
    assert manager.take() == ["READY=1\nWATCHDOG=1", "WATCHDOG=1"]


def test_each_absence_of_the_manager_is_logged_once(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    for absence in (1, 2):
        with manager.away():
            notifier.ping()
            notifier.ping()
        assert len(caplog.records) == absence
        notifier.ping()
        assert manager.take() == ["WATCHDOG=1"]


def test_a_manager_that_does_not_read_blocks_nobody(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0
    while not caplog.records:
        notifier.ping()
        sent += 1
    notifier.stopping()
    assert manager.take() == ["WATCHDOG=1"] * (sent - 1)
    notifier.ping()
    assert manager.take() == ["STOPPING=1\nWATCHDOG=1"]


def test_a_closed_notifier_is_silent(manager: Manager, notifier: Notifier) -> None:
    notifier.close()
    notifier.close()
    notifier.ready()
    assert not notifier.enabled
    assert manager.take() == []


# Watchdog


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_PID": "41"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "41"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "42"}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(environ, getpid=lambda: 41) == interval


MALFORMED_WATCHDOGS = [
    {"WATCHDOG_USEC": ""},
    {"WATCHDOG_USEC": "0"},
    {"WATCHDOG_USEC": "-1"},
    {"WATCHDOG_USEC": "30s"},
    {"WATCHDOG_USEC": str(2**64 - 1)},
    {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "self"},
]


@pytest.mark.parametrize("environ", MALFORMED_WATCHDOGS)
def test_a_malformed_watchdog_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^WATCHDOG_(USEC|PID): "):
        watchdog_interval(environ)


@pytest.mark.parametrize("environ", MALFORMED_WATCHDOGS)
def test_a_malformed_watchdog_is_logged_and_off(
    environ: dict[str, str], manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    loop = FakeLoop()
    watchdog = Watchdog(notifier, environ, loop.call_later)
    watchdog.start()
    loop.turn(100.0)
    assert watchdog.period is None
    assert manager.take() == []
    (record,) = caplog.records
    assert vars(record)["event"] == "systemd.watchdog_off"


class WatchdogRig:
    """A watchdog of ten seconds on a loop that a test turns."""

    def __init__(self, manager: Manager, notifier: Notifier) -> None:
        self._manager = manager
        self.loop = FakeLoop()
        self.watchdog = Watchdog(notifier, {"WATCHDOG_USEC": "10000000"}, self.loop.call_later)

    def pings(self) -> int:
        """Pings since the last look."""
        taken = self._manager.take()
        assert set(taken) <= {"WATCHDOG=1"}
        return len(taken)


@pytest.fixture
def rig(manager: Manager, notifier: Notifier) -> WatchdogRig:
    return WatchdogRig(manager, notifier)


def test_the_watchdog_pings_at_half_the_interval(rig: WatchdogRig) -> None:
    assert rig.watchdog.period == 5.0
    rig.loop.turn(100.0)
    assert rig.pings() == 0
    rig.watchdog.start()
    assert rig.pings() == 1
    rig.loop.turn(4.9)
    assert rig.pings() == 0
    rig.loop.turn(0.1)
    assert rig.pings() == 1
    rig.loop.turn(40.0)
    assert rig.pings() == 8


def test_a_loop_that_stands_still_does_not_ping(rig: WatchdogRig) -> None:
    rig.watchdog.start()
    rig.loop.turn(5.0)
    assert rig.pings() == 2
    rig.loop.block(60.0)
    assert rig.pings() == 0
    rig.loop.turn(0.0)
    assert rig.pings() == 1, "what was missed is not made up for"
    rig.loop.turn(5.0)
    assert rig.pings() == 1


def test_start_and_stop_may_be_repeated(rig: WatchdogRig) -> None:
    rig.watchdog.stop()
    rig.watchdog.start()
    rig.watchdog.start()
    rig.loop.turn(5.0)
    assert rig.pings() == 2
    rig.watchdog.stop()
    rig.watchdog.stop()
    rig.loop.turn(60.0)
    assert rig.pings() == 0
    rig.watchdog.start()
    rig.loop.turn(5.0)
    assert rig.pings() == 2


# Inherited sockets


def inherit(fds: Sequence[int], **environ: str) -> dict[str, Any]:
    """What listen_fds does in a process that inherits these descriptors from 3 on."""
    reporter = [sys.executable, "-W", "always::ResourceWarning", "-c", REPORT]
    command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds)), *reporter]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment() | {"LISTEN_FDS": str(len(fds))} | environ,
        pass_fds=fds,
        capture_output=True,
        timeout=START,
        check=True,
    )
    assert done.stderr == b"", "no socket is left to the garbage collector"
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["variables"] == []
    return told


def tcp_listener(opened: ExitStack, backlog: int = 16) -> socket.socket:
    return opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))


def unix_listener(opened: ExitStack, path: Path) -> socket.socket:
    sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.bind(str(path))
    sock.listen()
    return sock


def test_listening_sockets_are_taken_in_order(opened: ExitStack, tmp_path: Path) -> None:
    unix, tcp = unix_listener(opened, tmp_path / "socket"), tcp_listener(opened)
    told = inherit([unix.fileno(), tcp.fileno()], LISTEN_FDNAMES="local:public")
    assert told["names"] == [str(tmp_path / "socket"), list(tcp.getsockname())]
    assert told["fds"] == told["open"] == [3, 4]
    assert told["inheritable"] == told["blocking"] == []


def test_an_ipv6_listener_is_taken(opened: ExitStack) -> None:
    sock = opened.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
    sock.listen()
    told = inherit([sock.fileno()])
    assert told["names"] == [list(sock.getsockname())]


def test_another_process_s_sockets_are_left_alone(opened: ExitStack) -> None:
    told = inherit([tcp_listener(opened).fileno()], LISTEN_PID="1")
    assert told["fds"] == []
    assert told["open"] == told["inheritable"] == told["blocking"] == [3]


def udp_socket(opened: ExitStack) -> int:
    sock = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    return sock.fileno()


def bound_socket(opened: ExitStack) -> int:
    sock = opened.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    return sock.fileno()


def connected_socket(opened: ExitStack) -> int:
    ours, theirs = socket.socketpair()
    opened.enter_context(theirs)
    return opened.enter_context(ours).fileno()


def seqpacket_socket(opened: ExitStack) -> int:
    sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    sock.bind(f"\0gateway-test-{OWN_PID}-seqpacket")
    sock.listen()
    return sock.fileno()


def plain_file(opened: ExitStack) -> int:
    return opened.enter_context(open(os.devnull, "rb")).fileno()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (udp_socket, "is not a TCP or Unix stream socket"),
        (seqpacket_socket, "is not a TCP or Unix stream socket"),
        (bound_socket, "is not listening"),
        (connected_socket, "is not listening"),
        (plain_file, "is not a socket"),
    ],
)
def test_what_is_no_listening_stream_socket_is_refused(
    make: Callable[[ExitStack], int], reason: str, opened: ExitStack
) -> None:
    told = inherit([tcp_listener(opened).fileno(), make(opened)], LISTEN_FDNAMES="good:bad")
    assert told["error"].startswith(f"LISTEN_FDS: descriptor 4 (bad) {reason}")
    assert 3 not in told["open"]


def test_a_missing_descriptor_is_refused(opened: ExitStack) -> None:
    told = inherit([tcp_listener(opened).fileno()], LISTEN_FDS="2")
    assert told["error"].startswith("LISTEN_FDS: descriptor 4 (unknown) is not a socket")
    assert told["open"] == []


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "41"},
        {"LISTEN_PID": "42", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "gateway"},
    ],
)
def test_sockets_that_were_not_handed_over(environ: dict[str, str]) -> None:
    assert listen_fds(environ, getpid=lambda: 41) == []
    assert environ == {}


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "LISTEN_PID: 'me' is not a number"),
        ({"LISTEN_PID": "41", "LISTEN_FDS": "one"}, "LISTEN_FDS: 'one' is not a number"),
        ({"LISTEN_PID": "41", "LISTEN_FDS": "0"}, "LISTEN_FDS: 0 is not a number of sockets"),
        ({"LISTEN_PID": "41", "LISTEN_FDS": "-1"}, "LISTEN_FDS: '-1' is not a number"),
        (
            {"LISTEN_PID": "41", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"},
            "LISTEN_FDNAMES: 2 names for 1 sockets",
        ),
    ],
)
def test_malformed_variables_are_refused_and_removed(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        listen_fds(environ, getpid=lambda: 41)
    assert environ == {}


# Units


def settings(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    done = analyze("verify", SERVICE, SOCKET, TEMPLATE)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE], ids=lambda unit: unit.name)
def test_systemd_would_find_a_misspelt_setting(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in analyze("verify", copy).stdout


@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE], ids=lambda unit: unit.name)
def test_the_service_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", unit)
    assert done.returncode == 0, done.stdout
    (level,) = re.findall(r"Overall exposure level for gateway\S*\.service: ([\d.]+)", done.stdout)
    assert float(level) <= 2.0, done.stdout


def test_one_of_several_gateways_is_as_one_alone_but_for_a_few_settings() -> None:
    alone, one_of_several = settings(SERVICE), settings(TEMPLATE)
    differs = {name for name in alone | one_of_several if alone.get(name) != one_of_several.get(name)}
    assert differs == {"After", "Description", "Environment", "MemoryMax", "RuntimeDirectory", "SyslogIdentifier"}


def test_one_of_several_gateways_has_a_port_of_its_own_for_its_operator() -> None:
    own = [line for line in settings(TEMPLATE)["Environment"] if "GATEWAY_" in line]
    environ = dict(part.replace("%i", "9101").replace("%H", "pi4").split("=") for part in own[0].split())
    config = load(None, environ, {})
    assert (config.server.reuse_port, config.server.ops_port, config.cluster.member) == (True, 9101, "pi4:9101")


def test_systemd_waits_longer_than_the_drain_takes() -> None:
    server = Config().server
    (limit,) = settings(SERVICE)["TimeoutStopSec"]
    assert float(limit) > server.drain_timeout + server.close_timeout + 1.0


def test_the_descriptors_are_enough_for_all_connections() -> None:
    (limit,) = settings(SERVICE)["LimitNOFILE"]
    assert int(limit) > 2 * Config().limits.max_connections


def test_a_wrong_configuration_is_not_started_again() -> None:
    service = settings(SERVICE)
    assert service["Restart"] == ["on-failure"]
    assert "2" in service["RestartPreventExitStatus"][0].split()


def test_the_socket_is_where_the_gateway_would_listen_itself() -> None:
    server = Config().server
    assert settings(SOCKET)["ListenStream"] == [f"{server.host}:{server.port}"]


# The gateway under a service manager


async def test_ready_comes_when_it_listens_and_stopping_when_it_drains(gateway: StartGateway, manager: Manager) -> None:
    process = await gateway(environ=manager.environ)
    await manager.expect("READY=1")
    with await RawPeer.connect(process) as peer:
        assert (await peer.get("/readyz")).status == 200
    process.terminate()
    await manager.expect("STOPPING=1")
    assert await process.wait() == 0
    assert not any("READY=1" in message for message in manager.take())


async def test_a_gateway_that_waits_for_its_cluster_is_alive(gateway: StartGateway, manager: Manager) -> None:
    """The service manager would end it otherwise, and start it again, for as long as there is no NATS."""
    config = {"cluster": {"nats": [f"nats://127.0.0.1:{free_port()}"]}}
    process = await gateway(config, environ=manager.environ, awaits="server.started")
    await manager.expect("READY=1")
    await process.wait_event("cluster.unreachable")
    assert not process.events("server.ready")
    process.terminate()
    await manager.expect("STOPPING=1")
    assert await process.wait() == 0


async def test_a_reload_is_announced_and_ends_ready(gateway: StartGateway, manager: Manager) -> None:
    process = await gateway(environ=manager.environ)
    await manager.expect("READY=1")
    for _ in range(2):
        before = time.monotonic_ns() // 1000
        process.signal(signal.SIGHUP)
        lines = await manager.expect("RELOADING=1")
        await manager.expect("READY=1")
        (moment,) = [int(line.partition("=")[2]) for line in lines if line.startswith("MONOTONIC_USEC=")]
        assert before <= moment <= time.monotonic_ns() // 1000


async def test_a_reload_that_fails_ends_ready_as_well(gateway: StartGateway, manager: Manager) -> None:
    process = await gateway(environ=manager.environ, tls=True)
    await manager.expect("READY=1")
    assert process.files is not None
    process.files.cert.write_text("no certificate")
    process.signal(signal.SIGHUP)
    await manager.expect("RELOADING=1")
    await manager.expect("READY=1")
    with await RawPeer.connect(process) as peer:
        assert (await peer.get("/readyz")).status == 200, "the old certificate still serves"


async def open_when_read(pipe: Path, timeout: float = START) -> int:
    """Open for writing, without blocking, as soon as somebody has opened it for reading."""
    async with asyncio.timeout(timeout):
        while True:
            try:
                return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: nobody reads yet
                    raise
                await asyncio.sleep(0.01)


async def test_the_watchdog_is_pinged_while_the_loop_turns(
    gateway: StartGateway, manager: Manager, tmp_path: Path, loop: EventLoopName
) -> None:
    (tmp_path / "stalling.py").write_text(STALLING)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    watched = {"WATCHDOG_USEC": "200000", "PYTHONPATH": str(tmp_path), "STALL_PIPE": str(pipe)}
    process = await gateway(environ=manager.environ | watched, module="stalling", loop=loop)
    await manager.expect("READY=1")
    for _ in range(3):
        await manager.expect("WATCHDOG=1")
    process.signal(signal.SIGUSR1)
    release = await open_when_read(pipe)
    # The main thread stands in the handler now, and what it sent before is here.
    manager.take()
    await asyncio.sleep(0.5)
    assert manager.take() == []
    os.close(release)
    for _ in range(3):
        await manager.expect("WATCHDOG=1")


async def test_another_process_s_watchdog_is_not_pinged(gateway: StartGateway, manager: Manager) -> None:
    await gateway(environ=manager.environ | {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"})
    await manager.expect("READY=1")
    await asyncio.sleep(0.3)
    assert not any("WATCHDOG=1" in message for message in manager.take())


# Socket activation


class Activated:
    """A gateway that systemd-socket-activate runs as soon as somebody knocks at one of the sockets."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self._output = output

    def terminate(self) -> None:
        self._process.terminate()

    async def wait(self, timeout: float = START) -> int:
        async with asyncio.timeout(timeout):
            return await self._process.wait()

    def event(self, name: str) -> dict[str, Any]:
        """The one line of the log with this event."""
        lines = [json.loads(line) for line in self._output.read_text().splitlines() if line.startswith("{")]
        (found,) = [line for line in lines if line["event"] == name]
        return dict(found)


@asynccontextmanager
async def activated(
    sockets: Sequence[socket.socket],
    directory: Path,
    environ: Mapping[str, str],
) -> AsyncIterator[Activated]:
    """Hand over `sockets`, which stay open here as with a service manager. Killed at the end if it lives.

    The configuration names a host that does not exist here: the gateway must not open a port of its own.
    """
    config, output = directory / "gateway.toml", directory / f"output-{time.monotonic_ns()}"
    server = {"host": "192.0.2.1", "port": 9, "drain_timeout": 2.0, "close_timeout": 0.5}
    config.write_text(to_toml({"server": server, "auth": {"allow_insecure": True}}))
    fds = [sock.fileno() for sock in sockets]
    handover = {"LISTEN_FDS": str(len(fds))}
    passed = [part for name in environ for part in ("-E", name)]
    with output.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ACTIVATE, ",".join(map(str, fds))),
            *("systemd-socket-activate", *passed),
            *(sys.executable, "-m", "gateway", "--config", str(config)),
            cwd=ROOT,
            env=clean_environment() | handover | dict(environ),
            pass_fds=fds,
            stdout=log,
            stderr=log,
        )
    try:
        yield Activated(process, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def knock(where: Target) -> tuple[RawPeer, asyncio.Task[dict[str, Any]]]:
    """Connect and upgrade at once, and read the welcome when it comes."""
    peer = await RawPeer.connect(where)

    async def enter() -> dict[str, Any]:
        await peer.upgrade(timeout=START)
        return await peer.welcome()

    return peer, asyncio.create_task(enter())


async def test_sockets_are_inherited_and_no_port_is_opened(opened: ExitStack, manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    tcp, unix = tcp_listener(opened), unix_listener(opened, path)
    address, port = tcp.getsockname()
    async with activated([tcp, unix], tmp_path, manager.environ) as process:
        for where in (Target(port), Target(unix=path)):
            peer, welcome = await knock(where)
            opened.enter_context(peer)
            assert (await welcome)["connId"]
        process.terminate()
        assert await process.wait() == 0
        assert process.event("server.started")["listeners"] == [f"{address}:{port}", f"unix:{path}"]
    assert path.is_socket(), "the path is the service manager's: it stays for the next gateway"


async def test_connects_are_queued_across_a_restart(opened: ExitStack, manager: Manager, tmp_path: Path) -> None:
    listener = tcp_listener(opened, backlog=512)
    where = Target(listener.getsockname()[1])

    async with activated([listener], tmp_path, manager.environ) as process:
        peer, welcome = await knock(where)
        opened.enter_context(peer)
        first = (await welcome)["server"]["instance"]
        await manager.expect("READY=1")
        process.terminate()
        await manager.expect("STOPPING=1")
        during = [await knock(where) for _ in range(10)]
        assert await process.wait() == 0
    after = [await knock(where) for _ in range(200)]
    for peer, _ in during + after:
        opened.enter_context(peer)
    assert not any(welcome.done() for _, welcome in during + after)

    async with activated([listener], tmp_path, manager.environ) as process:
        welcomes = await asyncio.gather(*(welcome for _, welcome in during + after))
        (second,) = {welcome["server"]["instance"] for welcome in welcomes}
        assert second != first
        process.terminate()
        assert await process.wait() == 0


async def test_a_datagram_socket_is_a_wrong_configuration(opened: ExitStack, tmp_path: Path) -> None:
    udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(("127.0.0.1", 0))
    async with activated([udp], tmp_path, {}) as process:
        opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).sendto(b"", udp.getsockname())
        assert await process.wait() == 2
