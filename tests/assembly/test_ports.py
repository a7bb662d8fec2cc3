"""Which sockets a process takes, and what is said if it cannot have them."""

import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.assembly.ports import Ports
from gateway.config import Config, ConfigError, parse
from tests.support.fleet import FLOOD_SERVER, request
from tests.support.peers import RawPeer
from tests.support.process import StartGateway, free_port

MANY = 300
"""More than a gateway accepts in one event-loop iteration."""


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on, and shares with nobody."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def refused(config: Config) -> str:
    """The line that refuses to listen like this."""
    with pytest.raises(ConfigError) as error:
        Ports(config, "source of {}".format, {})
    return str(error.value)


def test_a_port_of_the_operator_that_is_taken_leaves_no_socket_file(taken: int, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    line = refused(parse({"server": {"unix_socket": str(path), "ops_port": taken}}))
    key = "source of server.ops_port: server.ops_port"
    assert line == f"{key}: cannot listen on 127.0.0.1:{taken}: Address already in use; an address that is free"
    assert not path.exists()


def test_an_address_of_the_operator_that_is_not_this_machine_s() -> None:
    line = refused(parse({"server": {"port": 0, "ops_port": free_port(), "ops_host": "192.0.2.1"}}))
    assert line.startswith("source of server.ops_host: server.ops_host: cannot listen on 192.0.2.1:")


def test_a_port_that_others_do_not_share(taken: int) -> None:
    line = refused(parse({"server": {"port": taken, "reuse_port": True}}))
    assert line.endswith(
        "; an address that is free, or whose processes are all of one user, and all have server.reuse_port"
    )


def test_a_port_is_shared_by_those_who_all_say_so() -> None:
    config = parse({"server": {"port": free_port(), "reuse_port": True}})
    first, second = Ports(config, str, {}), Ports(config, str, {})
    assert first.main[0].getsockname() == second.main[0].getsockname()
    first.close()
    second.close()
    Ports(parse({"server": {"port": config.server.port}}), str, {}).close()


def test_sockets_of_systemd_are_shared_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        monkeypatch.setattr("gateway.assembly.ports.listen_fds", lambda environ: [sock])
        ports = Ports(parse({"server": {"host": "192.0.2.1"}, "auth": {"allow_insecure": True}}), str, {})
        assert (ports.inherited, ports.main, ports.loopback_only) == (True, [sock], True)
        line = refused(parse({"server": {"reuse_port": True}}))
    assert line == (
        "source of server.reuse_port: server.reuse_port: true, and the sockets are systemd's;"
        " false, and ReusePort=yes in the socket units that share an address"
    )


async def test_what_comes_while_one_drains_is_for_the_others(gateway: StartGateway) -> None:
    """Both get a share of the connections, and none is refused because one of them goes."""
    config = {"server": {"reuse_port": True, "drain_timeout": 60.0, "port": free_port()}}
    first = await gateway(config, module=FLOOD_SERVER)
    second = await gateway(config, module=FLOOD_SERVER)
    instances = [process.events("server.started")[0]["instance"] for process in (first, second)]

    async def comes(enough: Callable[[set[str]], bool]) -> RawPeer:
        """Connect, again and again, until these instances have been seen; return a peer of the last."""
        seen: set[str] = set()
        for _ in range(64):
            peer = await RawPeer.open(first)
            seen.add((await peer.welcome())["server"]["instance"])
            if enough(seen):
                return peer
            peer.close()
        raise AssertionError(f"only {seen}")

    (await comes(lambda seen: len(seen) == 2)).close()
    with await comes(lambda seen: instances[0] in seen) as peer:
        await request(peer, "test.late", seconds=60.0)
        await peer.alive()
        first.terminate()
        assert (await peer.recv_json())["method"] == "gateway.draining"
        for _ in range(20):
            with await RawPeer.open(first) as other:
                assert (await other.welcome())["server"]["instance"] == instances[1]
        peer.close()
    assert await first.wait() == 0


async def test_what_waits_when_a_gateway_leaves_its_port_is_answered_and_not_reset(gateway: StartGateway) -> None:
    """The kernel has accepted them all, for this one process. Closing the socket would reset them."""
    config = {"server": {"reuse_port": True, "drain_timeout": 60.0, "port": free_port()}}
    process = await gateway(config, module=FLOOD_SERVER)
    with ExitStack() as stack:
        busy = stack.enter_context(await RawPeer.open(process))
        await busy.welcome()
        await request(busy, "test.late", seconds=60.0)
        await busy.alive()
        process.signal(signal.SIGSTOP)
        peers = [stack.enter_context(await RawPeer.connect(process)) for _ in range(MANY)]
        for peer in peers:
            await peer.send_raw(peer.upgrade_head())
        process.terminate()
        process.signal(signal.SIGCONT)
        statuses = Counter([(await peer.read_response()).status for peer in peers])
    assert statuses[101] + statuses[503] == MANY
    assert statuses[503] > 0, "some of them came after the signal"
    assert await process.wait() == 0
