"""The application as its users have it: in a test with `aiohttp_client`, in another runner, and under `adev`.

What a request for `/ws` must look like is in test_handshake.py, and what `gateway.server` does with the application
in test_server.py.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from pytest_aiohttp.plugin import AiohttpClient

from gateway import __version__
from gateway.app import CONFIG, CONNECTIONS, GATEWAY, STATUS, create_app
from gateway.config import Config, ConfigError, parse
from gateway.config.certificates import tls_context
from gateway.connections.connection import Connection
from gateway.status import Phase
from gateway.telemetry.lines import REJECTED
from tests.support.certs import authority
from tests.support.fleet import in_process, until
from tests.support.patience import SLACK, START, TICK, WAIT
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.process import ROOT, clean_environment, free_port


async def welcome(ws: ClientWebSocketResponse) -> dict[str, Any]:
    """Receive the first frame and return its params."""
    message = await ws.receive_json(timeout=WAIT)
    assert message["method"] == "gateway.welcome"
    return dict(message["params"])


# As a user would write it


async def test_connect_and_call(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(Config()))
    async with client.ws_connect("/ws") as ws:
        assert (await ws.receive_json())["method"] == "gateway.welcome"
        await ws.send_json({"jsonrpc": "2.0", "id": 1, "method": "no.such.method"})
        reply = await ws.receive_json()
        assert (reply["id"], reply["error"]["code"]) == (1, -32601)


# The welcome


async def test_welcome_has_all_that_the_contract_promises(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(Config()))
    async with client.ws_connect("/ws") as ws:
        message = await ws.receive_json(timeout=WAIT)
    params = message["params"]
    conn, instance = params["connId"], params["server"]["instance"]
    assert message == {
        "jsonrpc": "2.0",
        "method": "gateway.welcome",
        "params": {
            "connId": conn,
            "protocol": 1,
            "server": {"name": "aisopod-gateway", "version": __version__, "instance": instance},
            "heartbeat": {"interval": 30.0, "timeout": 10.0},
            "limits": {
                "maxMessageBytes": 1048576,
                "maxInFlight": 64,
                "maxBatch": 100,
                "maxOutboxBytes": 4194304,
                "callTimeoutMs": 30000,
                "maxCallTimeoutMs": 600000,
                "rate": 0.0,
                "burst": 0,
            },
            "principal": {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None},
        },
    }
    assert str(uuid.UUID(conn)) == conn
    assert uuid.UUID(conn).version == 4
    assert uuid.UUID(instance).version == 4


async def test_welcome_tells_what_is_configured(aiohttp_client: AiohttpClient) -> None:
    config = parse(
        {
            "heartbeat": {"interval": 5, "timeout": 1.5},
            "limits": {"max_message_bytes": 1000, "max_in_flight": 3, "max_batch": 7},
        }
    )
    client = await aiohttp_client(create_app(config))
    async with client.ws_connect("/ws") as ws:
        params = await welcome(ws)
    assert params["heartbeat"] == {"interval": 5.0, "timeout": 1.5}
    told = {"maxMessageBytes": 1000, "maxInFlight": 3, "maxBatch": 7}
    assert params["limits"] | told == params["limits"]


async def test_each_has_its_own_id_and_all_have_one_instance(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(Config()))
    sockets = [await client.ws_connect("/ws") for _ in range(20)]
    params = [await welcome(ws) for ws in sockets]
    assert len({one["connId"] for one in params}) == 20
    assert {one["server"]["instance"] for one in params} == {client.app[STATUS].instance}
    other = await aiohttp_client(create_app(Config()))
    assert other.app[STATUS].instance != client.app[STATUS].instance


# The registry


async def test_connections_are_in_the_registry_while_they_are_open(aiohttp_client: AiohttpClient) -> None:
    app = create_app(Config())
    client = await aiohttp_client(app)
    registry = app["connections"]
    assert isinstance(registry, dict)
    assert registry is app[CONNECTIONS]
    assert registry == {}
    async with client.ws_connect("/ws") as first, client.ws_connect("/ws") as second:
        ids = [(await welcome(ws))["connId"] for ws in (first, second)]
        assert list(registry) == ids
        connection = registry[ids[0]]
        assert isinstance(connection, Connection)
        assert isinstance(connection.link, web.WebSocketResponse)
        assert connection.conn_id == ids[0]
        assert time.time() - WAIT <= connection.opened_at <= time.time()
        await first.close()
        await until(lambda: list(registry) == ids[1:], "it is still there")
    await until(lambda: registry == {}, "it is still there")


async def test_a_sender_needs_no_more_than_the_registry(aiohttp_client: AiohttpClient) -> None:
    """What an application around the gateway would do."""
    app = create_app(Config())
    client = await aiohttp_client(app)
    async with client.ws_connect("/ws") as ws:
        connection = app["connections"][(await welcome(ws))["connId"]]
        connection.notify("demo.hello", {"n": 1})
        assert await ws.receive_json(timeout=WAIT) == {"jsonrpc": "2.0", "method": "demo.hello", "params": {"n": 1}}


# Messages


async def test_requests_notifications_and_batches(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(Config()))
    async with client.ws_connect("/ws") as ws:
        await welcome(ws)
        notification = {"jsonrpc": "2.0", "method": "no.such.method"}
        await ws.send_json(notification)
        await ws.send_json([notification, notification])
        await ws.send_json([{**notification, "id": 1}, notification, {**notification, "id": "b"}])
        replies = await ws.receive_json(timeout=WAIT)
        assert [(reply["id"], reply["error"]["code"]) for reply in replies] == [(1, -32601), ("b", -32601)]
        await ws.send_str("no JSON")
        reply = await ws.receive_json(timeout=WAIT)
        assert (reply["id"], reply["error"]["code"]) == (None, -32700)


async def test_binary_is_not_spoken(aiohttp_client: AiohttpClient) -> None:
    app = create_app(Config())
    client = await aiohttp_client(app)
    async with client.ws_connect("/ws") as ws:
        await welcome(ws)
        await ws.send_bytes(b"{}")
        message = await ws.receive(timeout=WAIT)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1003)
        assert message.extra


# HTTP


async def test_health(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(Config()))
    for path, body in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ready"})):
        async with client.get(path) as response:
            assert (response.status, await response.json()) == (200, body)
    async with client.get("/nowhere") as response:
        assert response.status == 404


async def test_full(aiohttp_client: AiohttpClient) -> None:
    """H12: beyond `limits.max_connections`."""
    client = await aiohttp_client(create_app(parse({"limits": {"max_connections": 2}})))
    async with client.ws_connect("/ws") as first, client.ws_connect("/ws"):
        await welcome(first)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await client.ws_connect("/ws")
        assert refusal.value.status == 503
        assert refusal.value.headers is not None
        assert int(refusal.value.headers["Retry-After"]) > 0
        await first.close()
        await until(lambda: len(client.app["connections"]) == 1, "it is still there")
        async with client.ws_connect("/ws") as later:
            await welcome(later)


async def test_rejections_are_sampled_by_address(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    client = await aiohttp_client(create_app(Config()))
    burst = REJECTED.burst
    for _ in range(burst + 5):
        async with client.get("/ws") as response:
            assert response.status == 426
    target = Target(client.server.port or 0)
    with await RawPeer.connect(target, source="127.0.0.2") as other:
        assert (await other.get("/ws")).status == 426
    lines = [vars(record) for record in caplog.records if getattr(record, "event", "") == "handshake.rejected"]
    hosts = [line["remote"].rpartition(":")[0] for line in lines]
    assert hosts == ["127.0.0.1"] * burst + ["127.0.0.2"]
    assert {line["status"] for line in lines} == {426}
    assert all(line["reason"] for line in lines)


# The end of a bare application


class Reading:
    """A client that reads to the end and answers a close, as any client library does."""

    def __init__(self, ws: ClientWebSocketResponse) -> None:
        self._ws = ws
        self.methods: list[str] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> int | None:
        async for message in self._ws:
            self.methods.append(message.json()["method"])
        return self._ws.close_code


SLOW_CLOSE = parse({"server": {"drain_timeout": 100.0, "close_timeout": 100.0}})


async def test_on_shutdown_closes_all_tracked_sockets(aiohttp_client: AiohttpClient) -> None:
    app = create_app(SLOW_CLOSE)
    client = await aiohttp_client(app)
    readers = [Reading(await client.ws_connect("/ws")) for _ in range(50)]
    await until(lambda: all(reader.methods for reader in readers), "no welcome")
    begin = time.monotonic()
    await client.server.close()
    assert time.monotonic() - begin < WAIT, "it waited for the close timeout"
    assert [await reader.task for reader in readers] == [1001] * 50
    assert {tuple(reader.methods) for reader in readers} == {("gateway.welcome", "gateway.draining")}
    assert app["connections"] == {}
    assert app[STATUS].phase is Phase.DRAINING


@asynccontextmanager
async def other_runner(app: web.Application, *, tls: bool) -> AsyncIterator[tuple[web.AppRunner, Target]]:
    """Serve the application as any program would that has nothing else of the gateway."""
    runner = web.AppRunner(app)
    await runner.setup()
    with TemporaryDirectory(prefix="gateway-test-") as directory:
        files = authority().issue(Path(directory))
        context = tls_context(str(files.cert), str(files.key)) if tls else None
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner, Target(runner.addresses[0][1], tls=authority().client_context() if tls else None)
    finally:
        await runner.cleanup()


async def read_to_the_end(peer: RawPeer) -> int | None:
    """Answer the gateway's close, wait for it to end the stream, and return its code."""
    await peer.welcome()
    assert (await peer.recv_json())["method"] == "gateway.draining"
    assert (await peer.recv_frame()).opcode == Opcode.CLOSE
    await peer.leave(1001)
    return peer.close_code


async def test_on_shutdown_hears_the_answers() -> None:
    """Before its signal aiohttp makes connections drop what comes in, and these peers wait for the gateway's end."""

    async def scenario(tls: bool) -> None:
        app = create_app(SLOW_CLOSE)
        async with other_runner(app, tls=tls) as (runner, target):
            readers = [asyncio.create_task(read_to_the_end(await RawPeer.open(target))) for _ in range(10)]
            await until(lambda: len(app[CONNECTIONS]) == 10, "not registered")
            begin = time.monotonic()
            await runner.cleanup()
            assert time.monotonic() - begin < WAIT, "it waited for the close timeout"
            assert await asyncio.gather(*readers) == [1001] * 10

    await in_process(scenario)


async def test_on_shutdown_does_not_wait_for_who_does_not_answer() -> None:
    async def scenario(tls: bool) -> None:
        app = create_app(parse({"server": {"drain_timeout": 100.0, "close_timeout": 0.5}}))
        async with other_runner(app, tls=tls) as (runner, target):
            silent = [await RawPeer.open(target) for _ in range(3)]
            await until(lambda: len(app[CONNECTIONS]) == 3, "not registered")
            begin = time.monotonic()
            await runner.cleanup()
            assert 0.5 - TICK < time.monotonic() - begin < 0.5 + SLACK
            assert app[CONNECTIONS] == {}
            for peer in silent:
                peer.close()

    await in_process(scenario)


async def test_whoever_asks_for_the_drain_waits_for_the_one_that_there_is() -> None:
    """Cancelling one who waits does not stop it; the server asks first, `on_shutdown` after it."""
    app = create_app(SLOW_CLOSE)
    async with other_runner(app, tls=False) as (runner, target):
        readers = [asyncio.create_task(read_to_the_end(await RawPeer.open(target))) for _ in range(3)]
        await until(lambda: len(app[CONNECTIONS]) == 3, "not registered")
        impatient = asyncio.create_task(app[GATEWAY].drain(SLOW_CLOSE.server))
        patient = asyncio.create_task(app[GATEWAY].drain(SLOW_CLOSE.server))
        await asyncio.sleep(0)
        impatient.cancel()
        await runner.cleanup()
        assert (impatient.cancelled(), patient.done()) == (True, True)
        assert await asyncio.gather(*readers) == [1001] * 3, "told once, closed once"


# Admission and registration are one


async def test_of_many_who_come_at_once_no_more_are_let_in_than_there_is_room_for(
    aiohttp_client: AiohttpClient,
) -> None:
    """Nothing awaits between the look at the room and the count, so that nobody else can come in between."""
    most, count = 5, 40
    client = await aiohttp_client(create_app(parse({"limits": {"max_connections": most}})))
    target = Target(client.server.port or 0)
    peers = [await RawPeer.connect(target) for _ in range(count)]
    with ExitStack() as stack:
        for peer in peers:
            stack.enter_context(peer)
            await peer.send_raw(peer.upgrade_head())
        answers = [(await peer.read_response()).status for peer in peers]
        assert (answers.count(101), answers.count(503)) == (most, count - most)
        assert len(client.app["connections"]) == most


async def test_nothing_awaits_between_admission_and_registration(aiohttp_client: AiohttpClient) -> None:
    """As `Admission.at_upgrade` says; a connection that is not counted yet would make room for one too many."""
    app = create_app()
    steps: list[str] = []
    gateway, loop = app[GATEWAY], asyncio.get_running_loop()
    at_upgrade, entered = gateway.admission.at_upgrade, gateway.admission.entered

    def look(*arguments: Any) -> Any:
        steps.append("look")
        loop.call_soon(steps.append, "another turn")
        return at_upgrade(*arguments)

    def count(connection: Connection) -> None:
        steps.append("count")
        entered(connection)

    with mock.patch.multiple(gateway.admission, at_upgrade=look, entered=count):
        client = await aiohttp_client(app)
        async with client.ws_connect("/ws") as ws:
            await welcome(ws)
    assert steps == ["look", "count", "another turn"]


# Without arguments


async def test_without_arguments_it_reads_what_the_environment_names(
    aiohttp_client: AiohttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[heartbeat]\ninterval = 7\n[limits]\nmax_in_flight = 5\n")
    monkeypatch.setenv("GATEWAY_CONFIG", str(file))
    monkeypatch.setenv("GATEWAY_LIMITS__MAX_IN_FLIGHT", "6")
    app = create_app()
    assert app[CONFIG].heartbeat.interval == 7.0
    client = await aiohttp_client(app)
    async with client.ws_connect("/ws") as ws:
        assert (await welcome(ws))["limits"]["maxInFlight"] == 6
    file.write_text("[heartbeat]\nintervall = 7\n")
    with pytest.raises(ConfigError, match="did you mean"):
        create_app()


# Under adev


@asynccontextmanager
async def adev(directory: Path, port: int, said: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `adev runserver gateway` there; the copy of the package in it comes before the installed one.

    said: gets the lines that it has printed, after its end.
    """
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("adev")), "runserver", "gateway"),
        *("--port", str(port), "--aux-port", str(free_port())),
        cwd=directory,
        env=clean_environment() | {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = asyncio.create_task(process.stdout.read())
    try:
        yield process
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(START):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        said += (await output).decode().splitlines()
        print("\n".join(said))


async def served_version(target: Target, unlike: str = "") -> str:
    """Wait until the gateway there serves another version than this one, and return it."""
    async with asyncio.timeout(START):
        while True:
            try:
                with await RawPeer.open(target) as peer:
                    version = str((await peer.welcome())["server"]["version"])
                    await peer.leave()
            except OSError:
                version = unlike
            if version != unlike:
                return version
            await asyncio.sleep(0.1)


async def test_adev_serves_and_reloads_on_a_change(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gateway", tmp_path / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "gateway/__init__.py"
    target = Target(free_port())
    said: list[str] = []
    async with adev(tmp_path, target.port, said):
        assert await served_version(target) == __version__
        with await RawPeer.open(target) as peer:
            await peer.welcome()
            module.write_text(module.read_text().replace(__version__, "0.0.0.changed"))
            # Whoever is connected is asked to come again.
            assert (await peer.recv_json(timeout=START))["method"] == "gateway.draining"
            await peer.recv_frame()
            assert peer.close_code == 1001
            await peer.leave(1001)
        assert await served_version(target, unlike=__version__) == "0.0.0.changed"
        with await RawPeer.connect(target) as http:
            response = await http.get("/readyz")
            assert json.loads(response.body) == {"status": "ready"}
    lines = [json.loads(line) for line in said if line.startswith("{")]
    events = [line["event"] for line in lines if line["logger"] == "gateway.connections.connection"]
    assert sorted(set(events)) == ["connection.closed", "connection.opened"]
    assert events.count("connection.opened") == events.count("connection.closed") == len({*map(conn_id, lines)})


def conn_id(line: dict[str, str]) -> str:
    return line["connId"]
