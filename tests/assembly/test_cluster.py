"""A gateway joins its cluster, says why it cannot, goes on without it, comes back, and leaves."""

import asyncio
import json
import logging
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp import AiohttpClient

from gateway.app import GATEWAY, create_app
from gateway.assembly.cluster import member_name
from gateway.client import connect
from gateway.config import ConfigError, parse
from tests.support.certs import Authority
from tests.support.clustered import clustered, nats_for_gateways
from tests.support.command import run
from tests.support.nats import NatsServer, scripted
from tests.support.patience import WAIT
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, StartGateway, free_port
from tests.telemetry.test_metrics import CLUSTER

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def ready(process: GatewayProcess) -> tuple[int, dict[str, str]]:
    with await RawPeer.connect(process) as peer:
        answer = await peer.get("/readyz")
        return answer.status, json.loads(answer.body)


async def gauge(process: GatewayProcess, name: str) -> float:
    with await RawPeer.connect(process) as peer:
        text = (await peer.get("/metrics")).body.decode()
    return float(re.findall(rf"^gateway_{name} (\S+)$", text, re.MULTILINE)[0])


async def readyz(client: TestClient[Any, Any]) -> tuple[int, dict[str, str]]:
    async with client.get("/readyz") as response:
        return response.status, await response.json()


# Join


async def test_gateways_of_one_nats_know_each_other(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        first = await gateway(clustered(server, "kitchen"))
        second = await gateway(clustered(server))
        (started,) = second.events("server.started")
        joined = await first.wait_event("cluster.member_joined")
        assert (joined["member"], joined["instance"]) == (f"127.0.0.1:{second.port}", started["instance"])
        assert (await second.wait_event("cluster.member_joined"))["member"] == "kitchen"
        for process in (first, second):
            (entered,) = process.events("cluster.joined")
            assert entered["message"] == "joined the cluster gateway"
            assert await ready(process) == (200, {"status": "ready", "cluster": "joined"})
            assert await gauge(process, "cluster_members") == 2.0
            assert await gauge(process, "cluster_connected") == 1.0
            assert await gauge(process, "cluster_events_connected") == 1.0


async def test_the_metrics_of_a_cluster_are_there_from_the_first_scrape_on(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        process = await gateway(clustered(server))
        with await RawPeer.connect(process) as peer:
            text = (await peer.get("/metrics")).body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("gateway_cluster_"):
            assert family.documentation.endswith(".") and family.samples
            name = f"{family.name}_total" if family.type == "counter" else family.name
            (labels,) = {tuple(label for label in sample.labels if label != "le") for sample in family.samples}
            found[name] = family.type, labels
    assert found == CLUSTER


async def test_clusters_with_different_names_share_a_nats(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        home = await gateway(clustered(server, name="home"))
        work = await gateway(clustered(server, name="work"))
        assert await gauge(home, "cluster_members") == await gauge(work, "cluster_members") == 1.0


async def test_a_gateway_alone_says_nothing_of_a_cluster(gateway: StartGateway) -> None:
    process = await gateway()
    assert await ready(process) == (200, {"status": "ready"})
    with await RawPeer.connect(process) as peer:
        assert b"gateway_cluster" not in (await peer.get("/metrics")).body


@pytest.mark.parametrize(
    ("tables", "name"),
    [
        ({}, "127.0.0.1:8765"),
        ({"server": {"host": ["::1", "127.0.0.1"], "port": 9000}}, "[::1]:9000"),
        ({"server": {"unix_socket": "/run/a"}}, "unix:/run/a"),
        ({"server": {"unix_socket": "/run/a"}, "cluster": {"member": "kitchen"}}, "kitchen"),
    ],
)
def test_a_gateway_has_a_name_for_people(tables: dict[str, Any], name: str) -> None:
    assert member_name(parse(tables)) == name


# Wait


async def test_a_nats_that_is_not_there_is_waited_for(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    server = nats_for_gateways()
    server.port = free_port()
    with caplog.at_level(logging.INFO):
        client = await aiohttp_client(create_app(parse(clustered(server))))
        cluster = client.app[GATEWAY].cluster
        assert cluster is not None
        async with asyncio.timeout(WAIT):
            await cluster.waiting.wait()
        assert await readyz(client) == (503, {"status": "starting", "cluster": "lost"})
        async with client.get("/ws", headers=UPGRADE) as response:
            assert (response.status, await response.text()) == (503, "the gateway is starting\n")
        async with server:
            joining = client.app[GATEWAY].joining
            assert joining is not None
            async with asyncio.timeout(WAIT):
                await joining
            assert await readyz(client) == (200, {"status": "ready", "cluster": "joined"})
            await client.close()
    events = [record.__dict__["event"] for record in caplog.records if hasattr(record, "event")]
    joined = ["cluster.events_joined", "cluster.joined"]
    assert events[:4] == ["cluster.unreachable", "handshake.rejected", *joined], "one line for all attempts"


async def test_who_waits_for_nats_can_be_ended(gateway: StartGateway) -> None:
    port = free_port()
    process = await gateway({"cluster": {"nats": [f"nats://127.0.0.1:{port}"]}}, awaits="cluster.unreachable")
    assert process.events("cluster.unreachable")[0]["reason"].startswith(f"127.0.0.1:{port}: ")
    assert await ready(process) == (503, {"status": "starting", "cluster": "lost"})
    process.terminate()
    assert await process.wait() == 0
    assert not process.events("server.ready")


# Refuse


def refused(server: str, key: str, **keys: object) -> str:
    """Return what is wrong and what would be right in the one line with which a start is refused."""
    environ = {f"GATEWAY_CLUSTER__{name.upper()}": str(value) for name, value in keys.items()}
    ended = run(environ={"GATEWAY_CLUSTER__NATS": server, "GATEWAY_SERVER__PORT": "0", **environ})
    assert (ended.status, ended.stderr.count("\n")) == (2, 1), ended
    source, found, rest = ended.stderr.rstrip("\n").split(": ", 2)
    assert found == key
    assert source == "default" or source.startswith("environment variable GATEWAY_CLUSTER__")
    events = [json.loads(line)["event"] for line in ended.stdout.splitlines()]
    assert events[0] == "server.started" and events[-1] == "server.stopped"
    assert "server.ready" not in events and "cluster.joined" not in events
    return rest


async def in_thread(*arguments: Any, **keys: Any) -> str:
    return await asyncio.to_thread(refused, *arguments, **keys)


async def test_a_nats_without_jetstream_will_not_do() -> None:
    async with NatsServer("max_payload: 2MB\nserver_name: nats-1") as server:
        line = await in_thread(server.url, "cluster.nats")
    assert line == "nats-1 has no JetStream; nats-server 2.10.25 or later, with JetStream"


async def test_a_nats_that_takes_too_little_will_not_do() -> None:
    async with NatsServer(jetstream=True) as server:
        line = await in_thread(server.url, "limits.max_message_bytes")
    assert line.startswith("max_payload of NATS is 1048576, less than 1048576 + 65536; max_payload: 1114112 or more")


@pytest.mark.parametrize("version", ["2.10.24", "2.9.10", "dev"])
async def test_an_old_nats_will_not_do(version: str) -> None:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fields = {"version": version, "max_payload": 1 << 23, "headers": True, "jetstream": True}
        writer.write(b"INFO " + json.dumps(fields).encode() + b"\r\n")
        while await reader.readline():
            writer.write(b"PONG\r\n")

    async with scripted(server) as where:
        line = await in_thread(f"nats://{where}", "cluster.nats")
    assert line.startswith(f"nats-server {version} delivers events out of order; ")


async def test_wrong_credentials_will_not_do(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("another\n")
    file.chmod(0o600)
    async with nats_for_gateways("authorization { token: t0ken }") as server:
        line = await in_thread(server.url, "cluster.token_file", token_file=file)
        assert line.endswith("Authorization Violation; a user, a token or credentials that this NATS accepts")
        assert "another" not in line
        assert "Authorization Violation" in await in_thread(server.url, "cluster.nats")


async def test_a_certificate_that_is_not_trusted_will_not_do(certificates: Authority) -> None:
    async with NatsServer("max_payload: 2MB", jetstream=True, tls=True) as server:
        line = await in_thread(server.url, "cluster.nats")
    assert line.endswith("; a NATS that speaks TLS, and whose certificate is trusted")


def permissions(publish: str, subscribe: str) -> str:
    """Return the configuration of a NATS at which everybody has these permissions."""
    user = f"user: u, password: p, permissions: {{ publish: [{publish}], subscribe: [{subscribe}] }}"
    return f"authorization {{ users: [{{ {user} }}] }}\nno_auth_user: u"


async def test_permissions_that_are_too_narrow_will_not_do() -> None:
    async with nats_for_gateways(permissions('">"', '"other.>"')) as server:
        line = await in_thread(server.url, "cluster.nats")
    assert line.startswith('Permissions Violation for Subscription to "gateway.')
    assert line.endswith("; permissions to publish and subscribe to gateway.> and $JS.API.>")


async def test_under_another_runner_a_refusal_is_in_the_log(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with NatsServer("max_payload: 2MB") as server:
        client = await aiohttp_client(create_app(parse(clustered(server))))
        joining = client.app[GATEWAY].joining
        assert joining is not None
        with pytest.raises(ConfigError):
            await asyncio.wait_for(asyncio.shield(joining), WAIT)
        assert (await readyz(client))[0] == 503
        await client.close()
    assert "cluster.nats_refused" in [record.__dict__.get("event") for record in caplog.records]


# Be without


async def test_without_nats_it_goes_on_and_with_it_it_comes_back(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        first, second = await gateway(clustered(server)), await gateway(clustered(server, "other"))
        with await RawPeer.open(first) as peer:
            await peer.welcome()
            for process in (first, second):
                await process.wait_event("cluster.events_joined")
            server.end()
            for process in (first, second):
                assert (await process.wait_event("cluster.lost"))["reason"]
                assert (await process.wait_event("cluster.member_lost"))["cause"] == "away"
                assert await ready(process) == (200, {"status": "ready", "cluster": "lost"})
            assert await gauge(first, "cluster_connected") == await gauge(first, "cluster_members") == 0.0
            assert await gauge(first, "cluster_events_connected") == 0.0
            await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "gateway.ping"})
            assert (await peer.recv_json())["result"] is None
            await server.start()
            for process in (first, second):
                await process.wait_event("cluster.joined", where=lambda line: line["address"].endswith("_2"))
                await process.wait_event("cluster.events_joined")
            await first.wait_event("cluster.member_joined", where=lambda line: line["member"] == "other")
            assert await ready(first) == (200, {"status": "ready", "cluster": "joined"})
            await peer.send_json({"jsonrpc": "2.0", "id": 2, "method": "gateway.ping"})
            assert (await peer.recv_json())["id"] == 2, "the connection has noticed nothing"


async def test_a_jetstream_that_alone_is_away_is_told(gateway: StartGateway) -> None:
    """NATS forbids what is needed for it: the gateways reach each other, but nobody hears events."""
    narrow = "max_payload: 2MB\n" + permissions('"gateway.>"', '"gateway.>"')
    async with nats_for_gateways() as server:
        first, second = await gateway(clustered(server)), await gateway(clustered(server, "other"))
        await first.wait_event("cluster.member_joined")
        await first.wait_event("cluster.events_joined")
        await server.restart(narrow)
        await first.wait_event("cluster.events_lost")
        await first.wait_event("cluster.member_joined", where=lambda line: line["member"] == "other")
        assert await ready(first) == (200, {"status": "ready", "cluster": "joined", "events": "lost"})
        async with connect(first.url("/ws", websocket=True)) as client:
            info = await client.call("gateway.info")
            assert (info["cluster"], info["events"], info["missing"]) == ("joined", "lost", [])
        assert (await gauge(first, "cluster_connected"), await gauge(first, "cluster_members")) == (1.0, 2.0)
        assert await gauge(first, "cluster_events_connected") == 0.0
        await server.restart("max_payload: 2MB")
        await first.wait_event("cluster.events_joined")
        assert second.events("cluster.forbidden")
        assert await ready(first) == (200, {"status": "ready", "cluster": "joined"})


async def test_a_nats_that_will_not_do_after_the_start_is_as_none(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        process = await gateway(clustered(server))
        await server.restart("max_payload: 1MB")
        assert "max_payload of NATS is" in (await process.wait_event("cluster.nats_refused"))["reason"]
        assert await ready(process) == (200, {"status": "ready", "cluster": "lost"})
        assert await gauge(process, "cluster_connected") == await gauge(process, "cluster_events_connected") == 0.0
        await server.restart("max_payload: 2MB")
        await process.wait_event("cluster.joined", where=lambda line: line["address"].endswith("_2"))


async def test_what_is_shown_to_nats_is_read_again(gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    file.chmod(0o600)
    async with nats_for_gateways("authorization { token: first }") as server:
        process = await gateway(clustered(server, token_file=str(file)))
        await process.wait_event("cluster.joined")
        file.write_text("")
        process.signal(signal.SIGHUP)
        assert "cluster.token_file" in (await process.wait_event("server.reload_failed"))["reason"]
        file.write_text("second")
        process.signal(signal.SIGHUP)
        await process.wait_event("server.reloaded")
        await server.restart("max_payload: 2MB\nauthorization { token: second }")
        await process.wait_event("cluster.joined")


# Leave


async def test_who_drains_leaves(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        first, second = await gateway(clustered(server)), await gateway(clustered(server, "other"))
        await first.wait_event("cluster.member_joined")
        second.terminate()
        assert await second.wait() == 0
        assert (await first.wait_event("cluster.member_lost"))["cause"] == "leaving"
        assert not second.events("cluster.lost"), "it has left by itself"


async def test_a_nats_that_stands_still_does_not_hold_up_the_end(gateway: StartGateway) -> None:
    timeouts = {"drain_timeout": 0.5, "close_timeout": 0.5}
    async with nats_for_gateways() as server:
        process = await gateway(clustered(server, server_keys=timeouts))
        server.pause()
        begin = time.monotonic()
        process.terminate()
        assert await process.wait() == 0
        assert time.monotonic() - begin <= 2.0
        server.resume()
