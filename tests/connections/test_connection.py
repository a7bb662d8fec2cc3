"""One connection: its two lines in the log with what they count, rows E1 and E2 of the fault table.

Four gateways serve the first half of the file, TCP and TLS on both event loops: each test asks all of them at the
same time, and at its end the file looks for tracebacks in their logs. In the second half the endpoint behind the
connection is the test's own.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.connections.connection import Connection
from gateway.connections.history import Closed
from gateway.errors import INTERNAL_FAILURE, SHUTDOWN
from gateway.websocket.frames import Payload
from tests.support.fleet import Gateways, ended, in_process, on_each, request, started, until
from tests.support.patience import SLACK, TICK
from tests.support.peers import Frame, Opcode, RawPeer, frame
from tests.support.process import GatewayProcess, Line
from tests.support.serving import Script, echo, keep_busy, serving

module_loop = pytest.mark.asyncio(loop_scope="module")

CLOSE_TIMEOUT = 0.5
COUNTS = ("messagesIn", "messagesOut", "bytesIn", "bytesOut")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    """TCP and TLS on both event loops."""
    async with started({"server": {"close_timeout": CLOSE_TIMEOUT}}) as gateways:
        yield gateways


def size(got: Frame) -> int:
    """Return how many bytes a frame from the gateway has on the wire."""
    return len(frame(got.opcode, got.payload, mask=False))


# The two lines


class Counting:
    """A peer that counts the bytes of its frames, both ways."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.sent = 0
        self.received = 0

    async def send(self, opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send one frame."""
        data = frame(opcode, payload, fin=fin)
        self.sent += len(data)
        await self.peer.send_raw(data)

    async def receive(self) -> Frame:
        """Receive one frame."""
        got = await self.peer.recv_frame()
        self.received += size(got)
        return got


@module_loop
async def test_the_lines_say_who_came_and_what_passed(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        connecting = time.monotonic()
        with await RawPeer.open(where) as raw:
            peer = Counting(raw)
            await peer.receive()  # welcome
            welcomed = time.monotonic()
            opened = await where.wait_event("connection.opened", remote=raw.local)
            for _ in range(3):
                await peer.send(Opcode.TEXT, b'{"jsonrpc":"2.0","id":1,"method":"no.such"}')
                assert (await peer.receive()).opcode == Opcode.TEXT
            await peer.send(Opcode.TEXT, b'{"jsonrpc":"2.0",', fin=False)
            await peer.send(Opcode.CONTINUATION, b'"method":"a notification"}')
            await peer.send(Opcode.PONG)
            await peer.send(Opcode.PING, b"x" * 125)
            assert (await peer.receive()).opcode == Opcode.PONG
            await asyncio.sleep(0.3)
            leaving = time.monotonic()
            await peer.send(Opcode.CLOSE, (4321).to_bytes(2, "big") + "bis später".encode())
            assert (await peer.receive()).opcode == Opcode.CLOSE
            await raw.wait_closed()
            raw.close()
            closed = await ended(where, raw, "client_close", 4321)
        assert uuid.UUID(opened["connId"]).version == 4
        assert opened["connId"] == closed["connId"]
        assert opened["level"] == closed["level"] == "info"
        assert closed["reason"] == "bis später"
        assert leaving - welcomed - TICK <= closed["duration"] <= time.monotonic() - connecting + TICK
        assert (closed["messagesIn"], closed["messagesOut"]) == (4, 4)
        # What the handshake took is HTTP's; a connection is open, and counts, from its first frame on.
        assert (closed["bytesIn"], closed["bytesOut"]) == (peer.sent, peer.received)

    await on_each(gateways, scenario)


@module_loop
async def test_a_connection_that_says_nothing(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            conn = (await peer.welcome())["connId"]
            await peer.leave()
            line = await ended(where, peer, "client_close", 1000)
            assert (line["connId"], line["reason"]) == (conn, "")
            assert (line["messagesIn"], line["messagesOut"]) == (0, 1)

    await on_each(gateways, scenario)


@module_loop
async def test_a_close_without_a_code_is_1005(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            await peer.send_close(None)
            end = await peer.recv_until_closed()
            assert end.frames == [Frame(True, Opcode.CLOSE, b"")], "1005 is never on the wire"
            assert (await ended(where, peer, "client_close", 1005))["reason"] == ""

    await on_each(gateways, scenario)


@module_loop
async def test_an_end_of_the_gateways_own_has_its_reason(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            await peer.send_frame(Opcode.BINARY, b"x")
            await peer.recv_frame()
            await peer.leave(1003)
            line = await ended(where, peer, "unsupported_data", 1003)
            assert line["reason"] == peer.close_reason != ""
            assert (line["messagesIn"], line["messagesOut"]) == (1, 1)

    await on_each(gateways, scenario)


# E1: the peer is gone without a word


async def lost(where: GatewayProcess, peer: RawPeer) -> Line:
    """Return the line about a connection that was lost; whoever else is there lives on."""
    line = await ended(where, peer, "transport_lost", 1006)
    assert all(name in line for name in COUNTS), line
    return line


@module_loop
async def test_e1_fin_without_close(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            peer.fin()
            end = await peer.recv_until_closed()
            assert end.frames == []
            await lost(where, peer)

    await on_each(gateways, scenario)


@module_loop
async def test_e1_fin_inside_of_a_message(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        for data in (b"\x81", frame(Opcode.TEXT, b"x" * 1000)[:500], frame(Opcode.TEXT, b"{", fin=False)):
            with await RawPeer.open(where) as peer:
                await peer.send_raw(data)
                peer.fin()
                await peer.wait_closed()
                assert (await lost(where, peer))["messagesIn"] == 0

    await on_each(gateways, scenario)


@module_loop
async def test_e1_socket_closed_at_once(gateways: Gateways) -> None:
    """The gateway's frames meet a closed socket, as when a process ends."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            for _ in range(20):
                await request(peer, "no.such")
            peer.close()
            await lost(where, peer)

    await on_each(gateways, scenario)


@module_loop
async def test_e1_rst(gateways: Gateways) -> None:
    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            await request(peer, "no.such")
            await peer.recv_json()
            peer.rst()
            assert (await lost(where, peer))["messagesIn"] == 1

    await on_each(gateways, scenario)


@module_loop
async def test_e1_rst_under_replies(gateways: Gateways) -> None:
    """While the gateway writes, and while its outbox is full."""

    async def scenario(where: GatewayProcess) -> None:
        with await RawPeer.open(where, rcvbuf=4096) as peer:
            batch = [{"jsonrpc": "2.0", "id": number, "method": "x" * 1000} for number in range(100)]
            for _ in range(20):
                await peer.send_json(batch)
            peer.rst()
            await lost(where, peer)

    await on_each(gateways, scenario)


# E2: an endpoint that raises


class MistakeError(Exception):
    """What the endpoints below raise."""


class Failing(Script):
    """An endpoint of which one call raises."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self._call = call

    def _perhaps(self, call: str) -> None:
        if call == self._call:
            raise MistakeError(call)

    def opened(self, connection: Connection) -> None:
        """Note it, then perhaps raise."""
        super().opened(connection)
        self._perhaps("opened")

    def text(self, connection: Connection, data: Payload) -> None:
        """Note it, then perhaps raise."""
        super().text(connection, data)
        self._perhaps("text")

    def binary(self, connection: Connection, data: Payload) -> None:
        """Note it, then perhaps raise."""
        super().binary(connection, data)
        self._perhaps("binary")

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Note it, then perhaps raise."""
        super().closed(connection, closed)
        self._perhaps("closed")


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if getattr(record, "event", "") == event]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return all records with a traceback; each must be of a MistakeError."""
    told = [record for record in caplog.records if record.exc_info]
    for record in told:
        assert record.exc_info and isinstance(record.exc_info[1], MistakeError), record.getMessage()
    return told


WHOLE = {"text": frame(Opcode.TEXT, b"{}"), "binary": frame(Opcode.BINARY, b"x")}
PARTS = {
    "text": frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.CONTINUATION, b"}"),
    "binary": frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.CONTINUATION),
}


@pytest.mark.parametrize("messages", [WHOLE, PARTS], ids=["whole", "fragmented"])
@pytest.mark.parametrize("call", ["text", "binary"])
async def test_e2_a_message_that_cannot_be_handled(
    call: str, messages: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    conns: set[str] = set()

    async def scenario(tls: bool) -> None:
        script = Failing(call)
        async with serving(script, {"server": {"close_timeout": CLOSE_TIMEOUT}}, tls=tls) as target:
            with await RawPeer.open(target) as peer, await RawPeer.open(target) as other:
                await peer.send_raw(3 * messages[call])
                await peer.recv_frame()
                assert peer.close_code == 1011
                assert "Mistake" not in peer.close_reason, "nothing of it is told to the peer"
                await peer.send_close(1011)
                assert (await peer.recv_until_closed()).frames == []
                await until(lambda: bool(script.ends), "it has not ended")
                assert script.ends == [INTERNAL_FAILURE]
                assert len(script.messages) == 1, "what is behind it is not handled"
                await other.alive()
                conns.add(script.connections[0].conn_id)

    await in_process(scenario)
    assert len(tracebacks(caplog)) == len(conns)
    defects = lines(caplog, "connection.defect")
    assert {line.get("connId") for line in defects} == conns, "every line about a connection says which"
    assert all(line.get("remote") for line in defects)
    closed = [line for line in lines(caplog, "connection.closed") if line["connId"] in conns]
    assert [(line["code"], line["cause"]) for line in closed] == [(1011, "internal_error")] * len(conns)


async def test_e2_an_opening_that_cannot_be_handled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway")

    async def scenario(tls: bool) -> None:
        script = Failing("opened")
        async with serving(script, {"server": {"close_timeout": CLOSE_TIMEOUT}}, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                end = await peer.recv_until_closed()
                assert [got.opcode for got in end.frames] == [Opcode.CLOSE], end
                assert peer.close_code == 1011
            await until(lambda: bool(script.ends), "it has not ended")
            assert script.ends == [INTERNAL_FAILURE]

    await in_process(scenario)
    assert len(tracebacks(caplog)) == 4


async def test_e2_a_release_that_cannot_be_handled(caplog: pytest.LogCaptureFixture) -> None:
    """The line about the end is there all the same."""
    caplog.set_level(logging.INFO, "gateway")

    async def scenario(tls: bool) -> None:
        script = Failing("closed")
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer, await RawPeer.open(target) as other:
                await peer.leave()
                await until(lambda: len(script.ends) == 1, "it has not ended")
                await other.alive()
                await other.leave()
                await until(lambda: len(script.ends) == 2, "it has not ended")

    await in_process(scenario)
    assert len(tracebacks(caplog)) == 8
    assert [line["cause"] for line in lines(caplog, "connection.closed")] == ["client_close"] * 8


# Plain calls


async def test_leave_in_ends_an_idle_connection_after_the_delay() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                await peer.send_frame(Opcode.TEXT, b"a")
                await peer.recv_frame()
                begin = time.monotonic()
                script.connections[0].leave_in(1.5)
                await peer.send_frame(Opcode.TEXT, b"b")
                assert (await peer.recv_frame()).payload == b"b", "it is open until then"
                await peer.recv_frame()
                assert peer.close_code == 1001
                assert 1.5 - TICK <= time.monotonic() - begin <= 1.5 + SLACK
                await peer.leave(1001)
                await until(lambda: bool(script.ends), "it has not ended")
                assert script.ends == [SHUTDOWN]

    await in_process(scenario)


async def test_leave_in_spares_who_has_a_request_in_flight() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                await peer.alive()
                connection = script.connections[0]
                keep_busy(connection)
                connection.leave_in(0.0)
                await asyncio.sleep(0.2)
                await peer.alive()
                connection.end(SHUTDOWN)
                await peer.recv_frame()
                assert peer.close_code == 1001

    await in_process(scenario)


async def test_calls_after_the_end_do_nothing() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as peer:
                await peer.leave()
                await until(lambda: bool(script.ends), "it has not ended")
            (connection,) = script.connections
            connection.send(b"{}")
            connection.send_frame(b"\x81\x00")
            connection.notify("a", {})
            connection.end(SHUTDOWN)
            connection.abort()
            connection.leave_in(0.0)
            await asyncio.sleep(0.05)
            assert [end.cause for end in script.ends] == ["client_close"]
            assert connection.link.messages_out == 0

    await in_process(scenario)


# Another link


async def test_a_connection_that_has_another_link_sends_by_it_and_hears_it_alone() -> None:
    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as old, await RawPeer.open(target) as new:
                await until(lambda: len(script.connections) == 2, "it has not happened")
                connection, other = script.connections
                link = other.link
                connection.attach(link)
                connection.send(b"by the new one")
                assert (await new.recv_frame()).payload == b"by the new one"
                old.rst()
                await new.send_frame(Opcode.TEXT, b"there and back")
                assert (await new.recv_frame()).payload == b"there and back"
                await asyncio.sleep(0.05)
                assert (script.released, script.ends) == ([], []), "the end of the old one is not the connection's"
                assert connection.is_open
                await new.leave()
                await until(lambda: bool(script.ends), "it has not happened")
                assert (script.released, [end.cause for end in script.ends]) == ([connection], ["client_close"])
            await asyncio.sleep(0)

    await in_process(scenario)


async def test_a_connection_releases_once_before_it_is_closed() -> None:
    """By the gateway's end the release comes first; where the transport is gone at once both come together."""

    async def scenario(tls: bool) -> None:
        script = Script(echo)
        async with serving(script, tls=tls) as target:
            with await RawPeer.open(target) as polite, await RawPeer.open(target) as rude:
                await until(lambda: len(script.connections) == 2, "it has not happened")
                script.connections[0].end(SHUTDOWN)
                await until(lambda: len(script.released) == 1, "it has not happened")
                assert script.ends == []
                await polite.recv_frame()
                await polite.leave(1001)
                rude.rst()
                await until(lambda: len(script.ends) == 2, "it has not happened")
                await asyncio.sleep(0)
                assert script.released == script.connections

    await in_process(scenario)
