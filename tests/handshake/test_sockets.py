"""The sockets that the gateway listens on: several addresses with one port, and Unix sockets."""

import asyncio
import signal
import socket
import time
from pathlib import Path

from gateway.handshake.sockets import UNSENT, bind, hurry
from tests.support.patience import SLACK, TICK
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.process import EventLoopName, GatewayProcess, StartGateway
from tests.support.serving import Script, serving

LIMIT = 2.0
"""The handshake timeout, in seconds."""


async def test_several_addresses_have_one_port() -> None:
    """Loopback names alone are served if all of them are loopback, and any name if one of them is not."""
    both = {"server": {"host": ["127.0.0.1", "::1", "localhost"]}}
    mixed = {"server": {"host": ["0.0.0.0", "::1"]}, "auth": {"allow_insecure": True}}
    for config, first, status in ((both, "127.0.0.1", 421), (mixed, "0.0.0.0", 101)):
        async with GatewayProcess(config) as process:
            assert process.listeners == [f"{first}:{process.port}", f"[::1]:{process.port}"]
            for host in ("127.0.0.1", "::1"):
                with await RawPeer.open(Target(process.port, host)) as peer:
                    await peer.welcome()
                with await RawPeer.connect(Target(process.port, host)) as peer:
                    await peer.send_raw(peer.upgrade_head(headers={"Host": "gateway.example"}))
                    assert (await peer.read_response()).status == status


async def test_the_kernel_takes_little_for_a_peer_that_does_not_read() -> None:
    """What is in the kernel cannot be overtaken. Sockets that systemd has bound are bounded in the same way."""
    script = Script()
    async with serving(script) as target:
        with await RawPeer.open(target):
            while not script.connections:
                await asyncio.sleep(0.01)
            sock = script.connections[0].link.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
    with socket.socket(socket.AF_UNIX) as other:
        hurry(other)


def test_what_is_accepted_has_no_enums_and_is_a_socket_like_any_other() -> None:
    """The standard library's own `accept` makes them, from these same parts."""
    assert {"_accept", "family", "type", "proto"} <= set(socket.socket.accept.__code__.co_names)
    (listening,) = bind(("127.0.0.1",), 0, "")
    with listening, socket.create_connection(listening.getsockname()) as peer:
        listening.setblocking(True)
        sock, address = listening.accept()
        with sock:
            assert address == sock.getpeername() == peer.getsockname()
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert {type(value) for one in (listening, sock) for value in (one.family, one.type)} == {int}
            assert not sock.get_inheritable()
            sock.sendall(b"here")
            assert peer.recv(10) == b"here"


async def test_unix_socket(gateway: StartGateway, tmp_path: Path, loop: EventLoopName) -> None:
    path = tmp_path / "gateway.sock"
    process = await gateway({"server": {"unix_socket": str(path), "handshake_timeout": LIMIT}}, loop=loop)
    assert f"unix:{path}" in process.listeners
    where = Target(unix=path)
    begin = time.monotonic()
    with await RawPeer.open(where) as peer, await RawPeer.connect(where) as quiet:
        conn = (await peer.welcome())["connId"]
        assert (await process.wait_event("connection.opened", connId=conn))["remote"] == "unix"
        await peer.send_frame(Opcode.PING, b"x")
        assert (await peer.recv_frame()).payload == b"x"
        await quiet.wait_closed()
        assert LIMIT - TICK <= time.monotonic() - begin <= LIMIT + SLACK
        assert (await process.wait_event("handshake.timeout", remote="unix"))["stage"] == "request"
        await peer.leave()
    process.terminate()
    assert await process.wait() == 0
    assert not path.exists()


async def test_unix_socket_of_a_process_that_died(gateway: StartGateway, tmp_path: Path) -> None:
    """A socket file that nobody listens on is replaced."""
    config = {"server": {"unix_socket": str(tmp_path / "gateway.sock")}}
    first = await gateway(config)
    first.signal(signal.SIGKILL)
    assert await first.wait() == -signal.SIGKILL
    assert (tmp_path / "gateway.sock").exists()
    await gateway(config)
    with await RawPeer.open(Target(unix=tmp_path / "gateway.sock")) as peer:
        await peer.welcome()
