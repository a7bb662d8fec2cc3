"""The operator's port: a listener of its own, with few paths, that is there until the end."""

import json
import time

from tests.support.fleet import FLOOD_SERVER, request
from tests.support.patience import SLACK, TICK
from tests.support.peers import RawPeer, Target
from tests.support.process import StartGateway, free_port

LIMIT = 2.0
"""The handshake timeout, in seconds."""


async def test_the_operator_s_port_has_few_paths(gateway: StartGateway) -> None:
    process = await gateway({"server": {"ops_port": free_port(), "allowed_hosts": ["gateway.example"]}})
    (started,) = process.events("server.started")
    (where,) = started["ops"]
    ops = Target(int(where.rpartition(":")[2]))
    assert where == f"127.0.0.1:{ops.port}"
    with await RawPeer.connect(ops) as peer:
        assert (await peer.get("/healthz")).status == 200
        assert (await peer.get("/readyz")).status == 200
        text = await peer.get("/metrics")
        assert text.status == 200
        assert b"gateway_build_info" in text.body
        assert text.headers["x-content-type-options"] == "nosniff"
        assert (await peer.get("/")).status == 404
    with await RawPeer.connect(ops) as peer:
        await peer.send_raw(peer.upgrade_head())
        assert (await peer.read_response()).status == 404
    with await RawPeer.connect(ops) as peer:
        assert (await peer.get("/metrics", headers={"Host": "gateway.example"})).status == 421, "DNS rebinding"


async def test_it_says_that_the_gateway_drains_until_the_last_connection_has_ended(gateway: StartGateway) -> None:
    ops = Target(free_port())
    config = {"server": {"ops_port": ops.port, "reuse_port": True, "drain_timeout": 60.0}}
    process = await gateway(config, module=FLOOD_SERVER)
    with await RawPeer.open(process) as peer, await RawPeer.connect(ops) as kept, await RawPeer.connect(ops) as fresh:
        await peer.welcome()
        await request(peer, "test.late", seconds=60.0)
        await peer.alive()
        process.terminate()
        assert (await peer.recv_json())["method"] == "gateway.draining"
        for http in (kept, fresh):
            ready = await http.get("/readyz")
            assert (ready.status, json.loads(ready.body)) == (503, {"status": "draining"})
    assert await process.wait() == 0


async def test_who_is_silent_there_is_dropped_in_time(gateway: StartGateway) -> None:
    process = await gateway({"server": {"ops_port": free_port(), "handshake_timeout": LIMIT}}, tls=True)
    (started,) = process.events("server.started")
    begin = time.monotonic()
    with await RawPeer.connect(Target(int(started["ops"][0].rpartition(":")[2]))) as peer:
        await peer.wait_closed()
        assert LIMIT - TICK <= time.monotonic() - begin <= LIMIT + SLACK
    assert (await process.wait_event("handshake.timeout"))["stage"] == "request", "there is no TLS"
