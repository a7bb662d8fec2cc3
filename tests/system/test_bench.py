"""The benchmark program: it measures what it says, on every server, and leaves nothing behind."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gateway.config import load as load_config
from tests.bench import cluster, connect, fanout, memory, routed, rpc
from tests.bench.cli import main
from tests.bench.client import Target
from tests.bench.frames import BINARY, CLOSE, PING, TEXT, FrameReader, PeerError, ReplyCounter, after_upgrade
from tests.bench.kept import ACK, ACK_EVERY, KeptCounter, without_acks
from tests.bench.load import target_of
from tests.bench.load_routed import NatsNode, Node, request_of
from tests.bench.load_routed import routed as routed_load
from tests.bench.load_rpc import FIRST_ID, RING, quantiles, request_ring
from tests.bench.nats import NatsCounter
from tests.bench.peers import (
    BASE,
    CONNECTED,
    FANOUT_BASE,
    FANOUTS,
    GATEWAY,
    IDLE,
    KEPT,
    OPEN,
    RELAY_BASE,
    RELAYS,
    Field,
    Peer,
    alone_and_clustered,
)
from tests.bench.process import BenchError, Cores, Load, Server, choose_cores, job_for
from tests.bench.procfs import Usage, open_files
from tests.bench.report import Report, Sample, paired_ratios
from tests.bench.run import PARTS, Plan, in_turn, make_plan, require_files
from tests.support.patience import START, WAIT, Sized
from tests.support.process import ROOT

COMMAND = (sys.executable, "-m", "tests.bench")
NO_CORES = Cores(None, None)


def plan(*names: str, field: Field = CONNECTED) -> Plan:
    return make_plan(field.select(names, "both"), 1, NO_CORES, quiet=True)


def from_server(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else bytes([126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + payload


def sample(server: str, number: int, value: float, shape: str = "1x1") -> Sample:
    return Sample(server, shape, number, {"cpuMicros": value, "rate": 1e6 / value})


def report(*samples: Sample) -> Report:
    return Report(replace(connect.LAYOUT, columns=()), BASE, samples, {})


# Runs against real servers


def test_rpc_measures_every_server() -> None:
    with_all = plan(*OPEN.names)
    run = rpc.run(with_all, [rpc.Shape(5, 4)], seconds=0.3, warmup=0.05)
    rows = run.rows()
    assert [(row.shape, row.server) for row in rows] == [("5x4", peer.name) for peer in with_all.servers]
    assert {"gateway-asyncio", "gateway-uvloop", BASE, "aiohttp-json", "websockets"} <= {row.server for row in rows}
    for row in rows:
        positive = ("cpuMicros", "rate", "p50Millis", "p99Millis", "serverBusy", "loadBusy", "repliesPerRead")
        assert all(row.medians[key] > 0 for key in positive), row
        assert row.medians["p50Millis"] <= row.medians["p99Millis"], row
        assert row.medians["unanswered"] == 0, row
        assert row.ratio is not None and row.ratio > 0, row
    assert all(row.ratio == 1 for row in rows if row.server == BASE)


def test_the_gateway_of_another_checkout_is_measured_beside_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_BEFORE", str(ROOT))
    run = rpc.run(plan("gateway-before"), [rpc.Shape(2, 1)], seconds=0.2, warmup=0.05)
    assert [row.server for row in run.rows()] == [BASE, "gateway-before-asyncio", "gateway-before-uvloop"]
    for wrong in (str(tmp_path), None):
        monkeypatch.setenv("BENCH_BEFORE", wrong) if wrong else monkeypatch.delenv("BENCH_BEFORE")
        (*_, before) = OPEN.select(["gateway-before"], "uvloop")
        assert before.missing() == "BENCH_BEFORE names no checkout of the gateway"


def test_routed_measures_every_server() -> None:
    with_all = plan(*RELAYS.names, field=RELAYS)
    rows = routed.run(with_all, [8], seconds=1.0, warmup=0.05).rows()
    assert [(row.shape, row.server) for row in rows] == [("8 in flight", peer.name) for peer in with_all.servers]
    assert {"gateway-asyncio", "gateway-token-uvloop", RELAY_BASE, "websockets"} <= {row.server for row in rows}
    for row in rows:
        assert row.rounds == PARTS, row
        assert row.medians["cpuMicros"] > 1 and row.medians["rate"] > 0 and row.medians["repliesPerRead"] >= 1, row
        assert row.medians["p50Millis"] <= row.medians["p99Millis"], row
        assert row.medians["errors"] == row.medians["unanswered"] == 0, row
        assert (row.ratio == 1) if row.server == RELAY_BASE else row.ratio, row


def test_each_part_of_a_round_is_a_sample_beside_the_bases() -> None:
    run = routed.run(plan("websockets", field=RELAYS), [2, 1], seconds=1.0, warmup=0.05)
    met = [(sample.shape, sample.server, sample.round) for sample in run.samples]
    shapes, servers = ("2 in flight", "1 in flight"), (RELAY_BASE, "websockets")
    assert met == [
        (shape, server, part) for part in range(PARTS) for shape in shapes for server in in_turn(servers, part)
    ]
    ratios = [paired_ratios(run.samples, shape, "websockets", RELAY_BASE, "cpuMicros") for shape in shapes]
    assert [len(found) for found in ratios] == [PARTS, PARTS]


def test_fanout_measures_every_server() -> None:
    with_all = plan(*FANOUTS.names, field=FANOUTS)
    rows = fanout.run(with_all, 30, 100, seconds=0.3, warmup=0.05).rows()
    assert [(row.shape, row.server) for row in rows] == [("100 bytes to 30", peer.name) for peer in with_all.servers]
    assert {"gateway-asyncio", "gateway-uvloop", FANOUT_BASE, "websockets"} <= {row.server for row in rows}
    for row in rows:
        assert row.medians["cpuMicros"] > 0.1 and row.medians["rate"] > 0 and row.medians["errors"] == 0, row
        assert (row.ratio == 1) if row.server == FANOUT_BASE else row.ratio, row


def test_cluster_measures_one_gateway_and_several(sized: Sized, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PARTS", sized(1, PARTS))
    what = list(cluster.WHAT)[sized(1, 0) : sized(2, 3)]
    with_all = make_plan(alone_and_clustered("uvloop"), 1, NO_CORES, quiet=True)
    rows = cluster.run(with_all, what, [4], seconds=0.2, warmup=0.05).rows()
    names = {1: "gateway-uvloop", 2: "two-gateways-uvloop", 3: "three-gateways-uvloop"}
    measured = [(f"{kind}, 4 in flight", names[size]) for kind in what for size in cluster.WHAT[kind]]
    assert [(row.shape, row.server) for row in rows if "before" not in row.server] == measured
    for row in rows:
        assert row.medians["cpuMicros"] > 1 and row.medians["rate"] > 0, row
        assert row.medians["errors"] == row.medians["unanswered"] == 0, row
        assert (row.medians["besideMicros"] > 0) == (row.server != names[1]), row


@pytest.mark.parametrize(
    ("kind", "why"), [("json", "a call does not reach its node"), ("echo", "the node was not registered")]
)
def test_a_server_that_routes_nothing_fails_the_run(kind: str, why: str) -> None:
    (relay,) = RELAYS.select([], "both")
    wrong = replace(relay, command=tuple(kind if part == "relay" else part for part in relay.command))
    with pytest.raises(BenchError, match=f"{RELAY_BASE}: the load generator failed: PeerError: {why}"):
        routed.run(Plan((wrong,), 1, NO_CORES, quiet=True), [1], seconds=0.1, warmup=0.05)


@pytest.mark.parametrize("name", [RELAY_BASE, "nats-server"])
def test_answers_that_are_lost_fail_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = RELAYS.others[name]
    assert peer.missing() is None
    answered, answers = 0, Node.answers

    def forgetful(node: Node, identities: list[bytes]) -> bytes:
        """Answer the one that is looked at, and of the others all but the tenth."""
        nonlocal answered
        kept = [one for number, one in enumerate(identities, answered) if number != 10]
        answered += len(identities)
        return answers(node, kept)

    monkeypatch.setattr(Node, "answers", forgetful)
    monkeypatch.setattr("tests.bench.load_rpc.DRAIN_SECONDS", 0.3)
    with Server(peer, NO_CORES) as server:
        job = job_for(server, {"kind": "routed", "inFlight": 8, "warmup": 0.05, "seconds": 1.0})
        try:
            with pytest.raises(PeerError, match="1 calls have not come back"):
                routed_load(target_of(job), job)
        finally:
            gc.enable()
    assert answered > 10


def test_connect_measures_the_gateway_and_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "WARMUP", 4)
    monkeypatch.setattr(connect, "LAPS", 2)
    named = (GATEWAY, "gateway-token", "gateway-jwt", "gateway-new-jwt", "gateway-refusing")
    servers = CONNECTED.select(named, "uvloop")
    rows = connect.run(make_plan(servers, 1, NO_CORES, quiet=True), connects=60, at_once=8).rows()
    assert [row.server for row in rows] == [BASE, *(f"{name}-uvloop" for name in named)]
    assert all(row.medians["cpuMicros"] > 1 and row.medians["rate"] > 1 for row in rows)


def test_memory_measures_the_gateway_with_and_without_keep_and_the_base() -> None:
    rows = memory.run(make_plan(IDLE.select([GATEWAY, KEPT], "uvloop"), 1, NO_CORES, quiet=True), 400).rows()
    assert [row.server for row in rows] == [BASE, "gateway-uvloop", "gateway-kept-uvloop"]
    # No server keeps a connection in 1 KB, and none of these takes 200 KB.
    assert all(1_000 < row.medians["bytesPerConnection"] < 200_000 for row in rows), rows


def test_held_connections_answer_pings() -> None:
    peer = CONNECTED.select([GATEWAY], "asyncio")[1]
    lively = peer.config.replace('"interval" = 30.0', '"interval" = 0.3').replace('"timeout" = 10.0', '"timeout" = 2.0')
    assert lively.count("0.3") == lively.count("2.0") == 1
    with Server(replace(peer, config=lively), NO_CORES) as server:
        job = job_for(server, {"kind": "hold", "first": 0, "connections": 20})
        idle = open_files(server.pid)
        with Load(job, None) as load:
            assert load.result(START) == {"held": 20}
            # One ping without an answer would end its connection.
            time.sleep(3.0)
            assert open_files(server.pid) >= idle + 20
            with pytest.raises(BenchError, match="not done within"):
                load.result(0)


def test_the_command_prints_one_json_object() -> None:
    arguments = ("rpc", "--servers", "aiohttp-json", "--rounds", "2", "--shapes", "2x2", "--seconds", "0.5")
    run = subprocess.run(
        [*COMMAND, *arguments, "--warmup", "0.05", "--json"],
        cwd=ROOT,
        capture_output=True,
        timeout=2 * START,
        check=True,
    )
    found = json.loads(run.stdout)
    assert found["base"] == BASE and found["metric"] == "cpuMicros"
    assert [row["server"] for row in found["rows"]] == [BASE, "aiohttp-json"]
    assert len(found["samples"]) == 4
    by_round = {(one["server"], one["round"]): one["values"]["cpuMicros"] for one in found["samples"]}
    ratios = [by_round["aiohttp-json", number] / by_round[BASE, number] for number in (0, 1)]
    assert found["rows"][1]["ratio"] == pytest.approx(sum(ratios) / 2)
    assert b"round 2 of 2" in run.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_processes(number: signal.Signals, status: int) -> None:
    arguments = ("rpc", "--servers", "aiohttp-json", "--shapes", "1x1", "--seconds", "30")
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        # Two servers, what drains their logs, and a load generator.
        children = wait_children(run.pid, 5)
        run.send_signal(number)
        assert run.wait(START) == status
    gone, alive = psutil.wait_procs(children, timeout=WAIT)
    assert len(gone) == 5 and not alive


def wait_children(pid: int, count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + START
    while len(children := psutil.Process(pid).children(recursive=True)) < count:
        assert time.monotonic() < deadline, children
        time.sleep(0.02)
    return children


def test_a_server_that_does_not_start_is_named_with_its_reason() -> None:
    broken = Peer("broken", (sys.executable, "-c", "raise SystemExit('no such thing')"))
    with pytest.raises(BenchError, match="broken ended with status 1: no such thing"):
        connect.run(Plan((broken,), 1, NO_CORES, quiet=True), connects=10, at_once=1)


def test_a_server_that_refuses_the_upgrade_fails_the_run() -> None:
    code = (
        "import http.server, json\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)\n"
        "listeners = [f'127.0.0.1:{server.server_port}']\n"
        "print(json.dumps({'event': 'server.started', 'listeners': listeners}), flush=True)\n"
        "server.serve_forever()\n"
    )
    plain = Peer("plain", (sys.executable, "-c", code))
    with pytest.raises(BenchError, match="plain: the load generator failed: PeerError: the upgrade was answered"):
        rpc.run(Plan((plain,), 1, NO_CORES, quiet=True), [rpc.Shape(1, 1)], seconds=0.1, warmup=0.05)


# Medians and ratios


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    base = [sample(BASE, number, value) for number, value in enumerate((10.0, 20.0, 40.0))]
    other = [sample("gateway", number, value) for number, value in enumerate((9.0, 5.0, 20.0))]
    first, second = report(*base, *other).rows()
    assert (first.ratio, first.medians["cpuMicros"]) == (1.0, 20.0)
    # 0.9, 0.25 and 0.5; the ratio of the medians would be 0.45.
    assert (second.ratio, second.lowest, second.highest, second.rounds) == (0.5, 0.25, 0.9, 3)
    assert second.medians == {"cpuMicros": 9.0, "rate": pytest.approx(1e6 / 9)}


def test_shapes_and_rounds_are_kept_apart() -> None:
    rows = report(
        sample(BASE, 0, 10.0),
        sample("gateway", 0, 5.0),
        sample(BASE, 0, 100.0, "50x8"),
        sample("gateway", 0, 25.0, "50x8"),
        sample("gateway", 1, 1.0, "50x8"),
    ).rows()
    assert [(row.shape, row.server, row.ratio) for row in rows] == [
        ("1x1", BASE, 1.0),
        ("1x1", "gateway", 0.5),
        ("50x8", BASE, 1.0),
        ("50x8", "gateway", 0.25),
    ]


def test_without_the_base_there_is_no_ratio() -> None:
    (row,) = report(sample("gateway", 0, 5.0)).rows()
    assert (row.ratio, row.lowest, row.highest) == (None, None, None)
    assert "-" in report(sample("gateway", 0, 5.0)).to_text()


def test_a_server_is_compared_with_another_beside_the_base() -> None:
    samples = [sample(BASE, 0, 10.0), *(sample("plain", number, 4.0) for number in (0, 1))]
    samples += [sample("kept", 0, 5.0), sample("kept", 1, 6.0)]
    found = replace(report(*samples), beside={"kept": "plain", BASE: "none"})
    *_, kept = found.rows()
    assert kept.beside is not None
    assert (kept.beside.server, kept.beside.ratio, kept.beside.lowest, kept.beside.highest) == (
        "plain",
        1.375,
        1.25,
        1.5,
    )
    assert found.to_text().splitlines()[-1] == "kept / plain: 1.375, from 1.250 to 1.500"
    assert [row.beside for row in found.rows()[:-1]] == [None, None]


def test_the_text_shows_every_row_with_its_ratio_and_marks() -> None:
    values = {column.key: 1.0 for column in rpc.LAYOUT.columns}
    values |= {
        "errors": 3.0,
        "unanswered": 0.0,
        "generatorBound": 1.0,
        "serverWaited": 0.2,
        "loadWaited": 0.0,
    }
    text = Report(rpc.LAYOUT, BASE, (Sample(BASE, "50x8", 0, values),), {"rounds": 1}, {}, ("a note",)).to_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{BASE} "))
    assert line.split()[1:3] == ["1.00", "1.00-1.00"]
    assert "generator-bound in 1 of 1, 3 replies are errors, disturbed in 1 of 1" in line
    assert "note: a note" in text


def test_quantiles_weigh_each_latency_by_its_replies() -> None:
    latencies = [(0.5, 1), (0.001, 97), (0.002, 2)]
    assert quantiles(latencies, (0.5, 0.97, 0.98, 0.99, 1.0)) == [0.001, 0.001, 0.002, 0.002, 0.5]


def figures(server_cpu: float, waited: float, shape: str) -> dict[str, float]:
    usage = {"cpu": server_cpu, "waited": waited}
    result = {
        "seconds": 2.0,
        "messages": 1000,
        "reads": 250,
        "server": usage,
        "beside": {"cpu": 0.0, "waited": 0.0},
        "load": {"cpu": 1.0, "waited": 0.0},
    }
    rest = {"p50": 0.001, "p99": 0.004, "errors": 0, "unanswered": 0}
    return rpc.figures(result | rest, rpc.Shape.parse(shape).saturating)


def test_figures_of_a_sample() -> None:
    found = figures(1.9, 0.02, "50x8")
    assert found["cpuMicros"] == pytest.approx(1900) and found["rate"] == 500
    assert (found["p50Millis"], found["p99Millis"], found["repliesPerRead"]) == (1.0, 4.0, 4.0)
    assert (found["serverBusy"], found["loadBusy"]) == (0.95, 0.5)


@pytest.mark.parametrize(
    ("cpu", "waited", "shape", "bound"),
    [(1.9, 0.0, "50x8", 0), (1.0, 0.0, "50x8", 1), (1.0, 0.0, "1x64", 0), (1.0, 0.9, "50x8", 0)],
)
def test_a_sample_is_generator_bound_when_the_server_wanted_less_than_its_core(
    cpu: float, waited: float, shape: str, bound: float
) -> None:
    assert figures(cpu, waited, shape)["generatorBound"] == bound


# Servers


def test_the_gateway_is_measured_with_its_guards_on(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "config.toml")
    for peer in CONNECTED.select([GATEWAY], "both")[1:]:
        with open(path, "w", encoding="utf-8") as file:
            file.write(peer.config)
        config = load_config(path, {}, {})
        assert (config.heartbeat.interval, config.heartbeat.timeout) == (30.0, 10.0)
        assert config.server.receive_timeout == 60.0
        assert peer.name == f"gateway-{config.server.event_loop}"
        assert (config.log.format, config.log.level, config.auth.mode) == ("json", "info", "none")


def test_servers_that_are_not_installed_are_left_out_with_a_note() -> None:
    base, other = CONNECTED.select([BASE, "websockets"], "uvloop")
    found = make_plan([base, replace(other, needs=("no_such_module",))], 1, NO_CORES, quiet=True)
    assert [peer.name for peer in found.servers] == [BASE]
    assert found.notes == ("websockets was left out: the Python module no_such_module is not installed",)
    with pytest.raises(BenchError, match="no_such_module"):
        make_plan([replace(base, needs=("no_such_module",))], 1, NO_CORES, quiet=True)


def test_servers_take_turns_in_being_first() -> None:
    assert [list(in_turn("abc", number)) for number in range(4)] == [list(x) for x in ("abc", "bca", "cab", "abc")]


def test_held_connections_are_split_and_none_is_opened_twice() -> None:
    jobs = memory.hold_jobs(12_000)
    assert [(job["first"], job["connections"]) for job in jobs] == [(0, 5000), (5000, 5000), (10_000, 2000)]


def test_more_connections_than_the_limit_allows_are_refused() -> None:
    with pytest.raises(BenchError, match="ulimit"):
        require_files(1 << 40)


def test_cores_are_two_or_none() -> None:
    cores = choose_cores(pin=True)
    assert cores == NO_CORES or cores.server != cores.load
    assert choose_cores(pin=False) == NO_CORES


def test_usage_is_the_cpu_time_of_a_process() -> None:
    before, own = Usage.of(os.getpid()), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    used = Usage.of(os.getpid()).since(before)
    assert 0.05 <= used.cpu < 0.05 + time.process_time() - own
    assert used.waited >= 0


# Frames


REPLY = from_server(TEXT, b'{"jsonrpc":"2.0","id":1000,"result":[1]}')
ERROR = from_server(TEXT, b'{"jsonrpc":"2.0","id":1000,"error":{"code":-32601}}')
LONG = from_server(TEXT, b"x" * 300)


@pytest.mark.parametrize("reply", [REPLY, LONG], ids=["short", "long"])
@pytest.mark.parametrize("step", [1, 7, 43, 4096])
def test_replies_are_counted_however_they_are_cut(reply: bytes, step: int) -> None:
    counter = ReplyCounter()
    data = reply * 40
    assert sum(counter.feed(data[start : start + step]) for start in range(0, len(data), step)) == 40
    assert counter.errors == 0 and not counter.pings


def test_whole_replies_are_counted_without_cutting_them() -> None:
    counter = ReplyCounter()
    assert [counter.feed(REPLY), counter.feed(REPLY), counter.feed(REPLY * 64)] == [1, 1, 64]


def test_pings_are_no_replies() -> None:
    counter = ReplyCounter()
    ping = from_server(PING, b"now")
    assert counter.feed(REPLY) == 1
    assert counter.feed(REPLY * 3 + ping + REPLY) == 4
    # As long as a reply, so that only its first byte tells.
    assert counter.feed(REPLY + from_server(PING, b"p" * (len(REPLY) - 2)) + REPLY) == 2
    assert counter.pings == [b"now", b"p" * (len(REPLY) - 2)]


ACKED = from_server(TEXT, ACK % 128)


@pytest.mark.parametrize("step", [1, 7, 43, 4096])
def test_acknowledgements_are_no_replies_however_they_are_cut(step: int) -> None:
    counter = KeptCounter()
    data = (REPLY * 9 + ACKED) * 8 + ACKED
    assert sum(counter.feed(data[start : start + step]) for start in range(0, len(data), step)) == 72
    assert counter.received.messages == 73


def test_acknowledgements_are_taken_out_of_whole_frames_alone() -> None:
    assert without_acks(ACKED + REPLY + ACKED + LONG + ACKED) == REPLY + LONG
    assert without_acks(REPLY + ACKED[:-1]) == REPLY + ACKED[:-1]


def test_every_so_many_replies_are_acknowledged_once() -> None:
    counter = KeptCounter()
    counter.feed(REPLY * (ACK_EVERY - 2))
    assert counter.received.acknowledgement() == b""
    counter.feed(REPLY)
    assert counter.received.acknowledgement() != b""
    assert counter.received.acknowledgement() == b""


def test_replies_that_are_errors_are_counted_as_such() -> None:
    counter = ReplyCounter()
    assert counter.feed(ERROR) + counter.feed(ERROR * 5) == 6
    assert counter.errors == 6
    assert counter.feed(REPLY) + counter.feed(REPLY * 5) == 6
    assert counter.errors == 6


FORBIDDEN = {
    "close": from_server(CLOSE, b"\x03\xe9bye"),
    "masked": b"\x81\x81abcdx",
    "fragment": b"\x01\x01a",
    "reserved bit": b"\xc1\x01a",
    "continuation": b"\x80\x01a",
}


@pytest.mark.parametrize("data", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_what_no_server_may_do_ends_the_sample(data: bytes) -> None:
    counter = ReplyCounter()
    counter.feed(REPLY)
    with pytest.raises(PeerError):
        counter.feed(REPLY + data)


def test_frames_of_all_sizes() -> None:
    reader = FrameReader()
    data = REPLY + LONG + b"\x81\x7f" + (70_000).to_bytes(8, "big") + b"y" * 70_000
    assert [frame.size for frame in reader.feed(data + b"\x81")] == [len(REPLY), len(LONG), 70_010]
    assert not reader.between_frames


def test_the_upgrade_is_read_to_the_end_of_its_head() -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    assert after_upgrade(head[:-1]) is None
    assert after_upgrade(head + REPLY) == REPLY
    with pytest.raises(PeerError, match="503"):
        after_upgrade(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def test_requests_have_ids_of_their_own_and_are_masked() -> None:
    ring, size = request_ring()
    frames = [ring[start : start + size] for start in range(0, len(ring), size)]
    assert len(frames) == 2 * RING and frames[:RING] == frames[RING:]
    requests = [json.loads(unmask(frame)) for frame in frames[:RING]]
    assert [request["id"] for request in requests] == list(range(FIRST_ID, FIRST_ID + RING))
    assert {request["method"] for request in requests} == {"gateway.ping"}


def unmask(frame: bytes) -> bytes:
    assert frame[0] == 0x81 and frame[1] == 0x80 | (len(frame) - 6)
    return bytes(octet ^ frame[2 + index % 4] for index, octet in enumerate(frame[6:]))


def unmasked(data: bytes) -> list[bytes]:
    """What the frames of a client have in them."""
    texts = []
    while data:
        size = 6 + (data[1] & 0x7F)
        texts.append(unmask(data[:size]))
        data = data[size:]
    return texts


def call(identity: int, blank: bytes = b"") -> bytes:
    return from_server(TEXT, b'{"jsonrpc":"2.0","id":%b%d,"method":"bench.echo","params":[1]}' % (blank, identity))


@pytest.mark.parametrize("blank", [b"", b" "])
@pytest.mark.parametrize("step", [1, 50, 66, 67, 4096])
def test_a_node_finds_every_call_however_they_are_cut(node: Node, step: int, blank: bytes) -> None:
    data = b"".join(call(number, blank) for number in range(90, 110))
    found = [one for start in range(0, len(data), step) for one in node.identities(data[start : start + step])]
    assert found == [b"%d" % number for number in range(90, 110)]


def test_a_node_takes_nothing_but_calls(node: Node) -> None:
    assert node.identities(call(1) * 2) == [b"1", b"1"]
    for wrong in (REPLY, from_server(TEXT, b"{}"), from_server(CLOSE, b"\x03\xe9")):
        with pytest.raises(PeerError):
            node.identities(wrong)
        with pytest.raises(PeerError):
            node.identities(call(1) + wrong)


@pytest.mark.parametrize("socketio", [False, True])
def test_answers_are_masked_and_have_the_ids_of_the_calls(socketio: bool) -> None:
    with socket.socket() as sock:
        node = Node(sock, Target(0, 0, welcomes=False, socketio=socketio))
        data = node.answers([b"7", b"12", b"7"])
    wanted = [b'{"jsonrpc":"2.0","id":%d,"result":[1]}' % number for number in (7, 12, 7)]
    assert unmasked(data) == ([b'42["rpc",%b]' % text for text in wanted] if socketio else wanted)


@pytest.fixture
def node() -> Iterator[Node]:
    with socket.socket() as sock:
        yield Node(sock, Target(0, 0, welcomes=False))


# NATS


ANSWER = b'{"jsonrpc":"2.0","id":%d,"result":[1]}'
NATS_TARGET = Target(0, 0, welcomes=True, nats=True)


def nats_call(identity: int, reply_to: bytes = b"bench.reply") -> bytes:
    payload = b'{"jsonrpc":"2.0","id":%d,"method":"bench.echo","params":[1]}' % identity
    return b"MSG bench.call 1 %b %d\r\n%b\r\n" % (reply_to, len(payload), payload)


def nats_reply(payload: bytes) -> bytes:
    return b"MSG bench.reply 2 %d\r\n%b\r\n" % (len(payload), payload)


def reads(stream: bytes, frame: int, read: int) -> list[bytes]:
    """Put so much of a stream into each frame, and so much of the frames into each read."""
    data = b"".join(from_server(BINARY, stream[start : start + frame]) for start in range(0, len(stream), frame))
    return [data[start : start + read] for start in range(0, len(data), read)]


NATS_CUTS = [(frame, read) for frame in (1, 60, 97, 98, 5000) for read in (1, 50, 99, 16384)]


@pytest.mark.parametrize(("frame", "read"), NATS_CUTS)
def test_a_nats_node_answers_every_call_however_they_are_cut(frame: int, read: int) -> None:
    calls = [(number, b"bench.reply" if number < 1005 else b"another") for number in range(990, 1010)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        node = NatsNode(ours, NATS_TARGET)
        stream = b"".join(nats_call(*one) for one in calls[:9]) + b"PING\r\n"
        stream += b"".join(nats_call(*one) for one in calls[9:])
        data = b"".join(node.reply(one) for one in reads(stream, frame, read))
        pong = theirs.recv(100)
    answers = [(ANSWER % number, reply_to) for number, reply_to in calls]
    assert unmasked(data) == [b"PUB %b %d\r\n%b\r\n" % (reply_to, len(answer), answer) for answer, reply_to in answers]
    assert unmask(pong) == b"PONG\r\n"


@pytest.mark.parametrize(("frame", "read"), NATS_CUTS)
def test_nats_replies_are_counted_however_they_are_cut(frame: int, read: int) -> None:
    counter = NatsCounter()
    same = nats_reply(ANSWER % 1000)
    error = nats_reply(b'{"jsonrpc":"2.0","id":1000,"error":{"code":-32601}}')
    stream = same * 20 + b"PING\r\n" + same * 20 + error + same + error * 3 + same
    assert sum(map(counter.feed, reads(stream, frame, read))) == 46
    assert counter.errors == 4 and counter.pings == [b"PING\r\n"]
    # What is not there to its end does not count.
    assert counter.feed(from_server(BINARY, same[:-1])) == 0
    assert counter.feed(from_server(PING, b"now") + from_server(BINARY, same[-1:] + same)) == 2
    assert counter.pings == [b"PING\r\n", b"now"]


NOT_NATS = {
    "error": from_server(BINARY, b"-ERR 'Unknown Protocol Operation'\r\n"),
    "acknowledgement": from_server(BINARY, b"+OK\r\n"),
    "longer than it says": from_server(BINARY, b"MSG bench.reply 2 3\r\n[12]\r\n"),
    "close": from_server(CLOSE, b"\x03\xe9bye"),
}


@pytest.mark.parametrize("data", NOT_NATS.values(), ids=NOT_NATS.keys())
def test_nothing_but_messages_may_come_from_nats(data: bytes) -> None:
    counter = NatsCounter()
    reply = from_server(BINARY, nats_reply(ANSWER % 1000))
    assert counter.feed(reply) + counter.feed(reply) == 2
    with pytest.raises(PeerError):
        counter.feed(reply + data)


def test_a_nats_node_takes_nothing_but_calls() -> None:
    wrong = {
        nats_reply(ANSWER % 1000),
        nats_call(1000).replace(b" bench.reply", b""),
        nats_call(1).replace(b"method", b"nothin"),
    }
    for one in wrong:
        with socket.socket() as sock, pytest.raises(PeerError):
            NatsNode(sock, NATS_TARGET).reply(from_server(BINARY, nats_call(1) + one))


def test_calls_of_nats_say_their_size() -> None:
    ring, size = request_ring(request_of(NATS_TARGET))
    for number in range(RING):
        frame = ring[number * size : (number + 1) * size]
        head, payload, rest = unmask(frame).split(b"\r\n")
        assert head == b"PUB bench.call bench.reply %d" % len(payload) and not rest
        assert json.loads(payload)["id"] == FIRST_ID + number


# Command line


MORE_HELP = ((["routed", "--help"], RELAY_BASE), (["fanout", "--help"], FANOUT_BASE))


def test_help_explains_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in ((["--help"], "node-ws"), (["rpc", "--help"], "generator-bound"), *MORE_HELP):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert wanted in capsys.readouterr().out


WRONG: list[tuple[list[str], str]] = [
    (["rpc", "--shapes", "50"], "no shape"),
    (["rpc", "--shapes", "1x600"], "in flight"),
    (["rpc", "--seconds", "nan"], "seconds"),
    (["rpc", "--servers", "nginx"], "no server 'nginx'"),
    (["memory", "--servers", "gateway-refusing"], "no server 'gateway-refusing'"),
    (["routed", "--servers", "aiohttp-json"], "no server 'aiohttp-json'"),
    (["routed", "--in-flight", "65"], "from 1 to 64"),
    (["fanout", "--servers", "python-socketio"], "no server 'python-socketio'"),
    (["fanout", "--subscribers", "0"], "whole number"),
    (["memory", "--connections", "99"], "whole number"),
    (["connect", "--rounds", "0"], "whole number"),
    (["cluster", "--what", "lists"], "no 'lists'"),
    ([], "required"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_usage_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
