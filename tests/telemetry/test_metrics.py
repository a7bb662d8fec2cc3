"""What a scrape reads: section 7 of the contract, as Prometheus' own parser understands it."""

import asyncio
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Self
from unittest import mock

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__, errors
from gateway.handshake.rejections import Rejections, Stage
from gateway.telemetry.counts import BOUNDS, Census, Tally
from gateway.telemetry.lines import Lines
from gateway.telemetry.metrics import EVERY, REMEMBERED, SHARED, LoopLag, Metrics
from tests.support.credentials import metrics
from tests.support.fleet import ended, request
from tests.support.patience import START, WAIT
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, StartGateway

CONTRACT: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "gateway_connections": ("gauge", ("role",)),
    "gateway_connections_opened_total": ("counter", ()),
    "gateway_disconnects_total": ("counter", ("cause",)),
    "gateway_handshake_failures_total": ("counter", ("stage",)),
    "gateway_messages_total": ("counter", ("direction",)),
    "gateway_bytes_total": ("counter", ("direction",)),
    "gateway_requests_total": ("counter", ("method", "outcome")),
    "gateway_request_seconds": ("histogram", ("method",)),
    "gateway_calls_in_flight": ("gauge", ()),
    "gateway_connections_held": ("gauge", ()),
    "gateway_resumes_total": ("counter", ("result",)),
    "gateway_events_published_total": ("counter", ()),
    "gateway_events_delivered_total": ("counter", ()),
    "gateway_outbox_bytes": ("gauge", ()),
    "gateway_loop_lag_seconds": ("gauge", ()),
    "gateway_dropped_total": ("counter", ("kind",)),
    "gateway_build_info": ("gauge", ("version",)),
}
"""Every name of section 7, its type and its labels."""

CLUSTER: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "gateway_cluster_members": ("gauge", ()),
    "gateway_cluster_connected": ("gauge", ()),
    "gateway_cluster_events_connected": ("gauge", ()),
    "gateway_cluster_member_info": ("gauge", ("member",)),
    "gateway_cluster_messages_total": ("counter", ("direction", "kind")),
    "gateway_cluster_call_seconds": ("histogram", ()),
}
"""Those of section 12, which only one of several gateways has."""

ROLES: Final = ("operator", "node", "ui")
STAGES: Final = ("tls", "request", "response", "idle", "authenticate")
CAUSES: Final = {end.cause for end in errors.DISCONNECTS}

OUTCOMES: Final = ("ok", "internal_error", "error", "caller_lost", "timeout", "node_lost")
"""Ends of routed calls that are there before the first; others come with their first."""

PING: Final = "gateway.ping"
LAG: Final = "gateway_loop_lag_seconds"

Samples = Mapping[tuple[str, ...], float]
"""The value of each name with the values of its labels, that of `le` behind the others."""


def families(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def samples(text: bytes) -> Samples:
    """All of them. AssertionError for one that is there twice."""
    found: dict[tuple[str, ...], float] = {}
    for sample in (sample for family in families(text) for sample in family.samples):
        key = (sample.name, *(sample.labels[label] for label in sorted(sample.labels, key="le".__eq__)))
        assert key not in found, key
        found[key] = sample.value
    return found


def durations(found: Samples) -> dict[str, float]:
    """How many requests have a duration, by method."""
    name = "gateway_request_seconds_count"
    return {key[1]: value for key, value in found.items() if key[0] == name}


class Numbers:
    """What a gateway counts, in the hands of the test."""

    def __init__(self) -> None:
        self.census = Census()
        self.opened = 0
        self.disconnects = Counter(dict.fromkeys(CAUSES, 0))
        self.failures: Counter[Stage] = Rejections(Lines()).failures
        self.ping, self.routed = Tally(), Tally(*OUTCOMES)
        self.in_flight = self.published = 0
        self.lag = 0.0
        self.now = 0.0
        self.counts = 0
        self.counting: asyncio.Event | None = None
        self.metrics = Metrics(
            roles=("operator", "node", "ui"),
            census=self.counted,
            opened=lambda: self.opened,
            disconnects=self.disconnects,
            failures=self.failures,
            tallies=lambda: ((PING, self.ping), ("routed", self.routed)),
            gauges={
                "calls_in_flight": ("Calls.", lambda: self.in_flight),
                "loop_lag_seconds": ("Lag.", lambda: self.lag),
                "connections_held": ("Held.", lambda: self.in_flight),
            },
            counters={
                "events_published": ("Messages.", lambda: self.published),
                "events_delivered": ("Frames.", lambda: self.published * 3),
            },
            resumes={"resumed": 0},
            dropped=lambda: {"notification": self.published, "progress": 0},
            clock=lambda: self.now,
        )

    async def counted(self) -> Census:
        self.counts += 1
        if self.counting is not None:
            await self.counting.wait()
        return self.census

    async def scrape(self) -> Samples:
        """What a scrape is told after an earlier one is no longer shared."""
        self.now += SHARED
        return samples(await self.metrics.text())


async def test_64_scrapers_are_one_scrape_and_its_text_is_theirs_for_a_second() -> None:
    numbers = Numbers()
    numbers.counting = asyncio.Event()
    waiting = [asyncio.create_task(numbers.metrics.text()) for _ in range(64)]
    await asyncio.sleep(0)
    waiting.pop(0).cancel()  # the one that began it
    await asyncio.sleep(0)
    numbers.counting.set()
    texts = await asyncio.gather(*waiting)
    assert (len(set(texts)), numbers.counts) == (1, 1)
    numbers.opened = 1
    numbers.now = SHARED / 2
    assert await numbers.metrics.text() == texts[0]
    numbers.now = SHARED
    later = await numbers.metrics.text()
    assert (samples(later)["gateway_connections_opened_total",], numbers.counts) == (1.0, 2)


async def test_others_have_their_turn_between_the_families_of_a_scrape() -> None:
    numbers, turns = Numbers(), 0
    scraping = asyncio.create_task(numbers.metrics.text())
    while not scraping.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > len(families(scraping.result()))


async def test_a_scrape_that_fails_is_tried_again() -> None:
    numbers = Numbers()
    with mock.patch.object(numbers.metrics, "_own", side_effect=RuntimeError), pytest.raises(RuntimeError):
        await numbers.metrics.text()
    assert samples(await numbers.metrics.text())["gateway_connections_opened_total",] == 0.0


async def test_every_name_is_the_contracts_with_its_type_its_labels_and_a_sentence() -> None:
    names = set()
    for family in families(await Numbers().metrics.text()):
        # The parser takes the ending off a counter's family, as OpenMetrics does; the samples keep theirs.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names.add(name)
        kind, labels = CONTRACT[name]
        assert family.type == kind, name
        assert family.documentation.endswith("."), name
        assert family.samples, f"{name} is not there before its first event"
        for sample in family.samples:
            assert kind == "histogram" or sample.name == name
            assert tuple(label for label in sample.labels if label != "le") == labels, name
    assert names == CONTRACT.keys()


async def test_before_the_first_event_everything_is_zero_and_has_all_its_labels() -> None:
    expected: dict[tuple[str, ...], float] = {("gateway_connections", role): 0.0 for role in ROLES}
    expected |= {("gateway_disconnects_total", cause): 0.0 for cause in CAUSES}
    expected |= {("gateway_handshake_failures_total", stage): 0.0 for stage in STAGES}
    expected |= {("gateway_requests_total", "routed", outcome): 0.0 for outcome in OUTCOMES}
    expected |= {("gateway_requests_total", PING, outcome): 0.0 for outcome in ("ok", "internal_error")}
    for method in (PING, "routed"):
        expected |= {("gateway_request_seconds_bucket", method, le): 0.0 for le in (*map(str, BOUNDS), "+Inf")}
        expected |= {(f"gateway_request_seconds_{what}", method): 0.0 for what in ("sum", "count")}
    for name in ("messages", "bytes"):
        expected |= {(f"gateway_{name}_total", direction): 0.0 for direction in ("in", "out")}
    gauges = ("calls_in_flight", "connections_held", "outbox_bytes", "loop_lag_seconds")
    expected |= {(f"gateway_{name}",): 0.0 for name in gauges}
    expected |= {("gateway_resumes_total", "resumed"): 0.0}
    expected |= {(f"gateway_events_{what}_total",): 0.0 for what in ("published", "delivered")}
    expected |= {("gateway_dropped_total", kind): 0.0 for kind in ("notification", "progress")}
    expected |= {("gateway_connections_opened_total",): 0.0, ("gateway_build_info", __version__): 1.0}
    assert await Numbers().scrape() == expected


async def test_a_scrape_reads_the_numbers_of_the_moment() -> None:
    numbers = Numbers()
    before = await numbers.scrape()
    numbers.census.roles.update({"node": 3, "ui": 1})
    numbers.census.outbox_bytes = 77
    numbers.census.traffic.messages_in, numbers.census.traffic.messages_out = 1, 2
    numbers.census.traffic.bytes_in, numbers.census.traffic.bytes_out = 3, 4
    numbers.opened = 12_345_678_901
    numbers.disconnects["slow_consumer"] += 2
    numbers.failures["authenticate"] += 7
    numbers.routed.count("forbidden")
    numbers.ping.ended("ok", 45.0)
    numbers.in_flight, numbers.published, numbers.lag = 5, 2, 0.25
    changed: dict[tuple[str, ...], float] = {
        ("gateway_connections", "node"): 3.0,
        ("gateway_connections", "ui"): 1.0,
        ("gateway_connections_opened_total",): 12_345_678_901.0,
        ("gateway_disconnects_total", "slow_consumer"): 2.0,
        ("gateway_handshake_failures_total", "authenticate"): 7.0,
        ("gateway_messages_total", "in"): 1.0,
        ("gateway_messages_total", "out"): 2.0,
        ("gateway_bytes_total", "in"): 3.0,
        ("gateway_bytes_total", "out"): 4.0,
        ("gateway_outbox_bytes",): 77.0,
        ("gateway_dropped_total", "notification"): 2.0,
        ("gateway_requests_total", "routed", "forbidden"): 1.0,
        ("gateway_requests_total", PING, "ok"): 1.0,
        ("gateway_request_seconds_bucket", PING, "60.0"): 1.0,
        ("gateway_request_seconds_bucket", PING, "+Inf"): 1.0,
        ("gateway_request_seconds_sum", PING): 45.0,
        ("gateway_request_seconds_count", PING): 1.0,
        ("gateway_calls_in_flight",): 5.0,
        ("gateway_connections_held",): 5.0,
        ("gateway_loop_lag_seconds",): 0.25,
        ("gateway_events_published_total",): 2.0,
        ("gateway_events_delivered_total",): 6.0,
    }
    assert await numbers.scrape() == {**before, **changed}
    numbers.census.roles.clear()
    assert (await numbers.scrape())["gateway_connections", "node"] == 0.0


async def test_a_scrape_changes_nothing() -> None:
    numbers = Numbers()
    numbers.census.roles["ui"] += 1
    assert await numbers.metrics.text() == await numbers.metrics.text()
    assert numbers.census.roles == {"ui": 1}


async def test_two_gateways_in_one_process_count_for_themselves() -> None:
    one, other = Numbers(), Numbers()
    one.opened += 1
    assert (await one.scrape())["gateway_connections_opened_total",] == 1.0
    assert (await other.scrape())["gateway_connections_opened_total",] == 0.0


# The event loop's lag


async def test_the_lag_is_the_worst_of_the_last_looks() -> None:
    now = 100.0
    lag = LoopLag(lambda: now)
    with HandTimers() as timers:
        lag.start()
        for late in (0.0, 0.5, 0.25):
            now += EVERY + late
            timers.turn()
        assert lag.seconds == 0.5
        for _ in range(REMEMBERED):
            now += EVERY - 0.001  # a timer may also be a little early
            timers.turn()
        assert lag.seconds == 0.0
        lag.stop()
        lag.stop()
        assert timers.waiting == []


class HandTimers:
    """Takes the place of `call_later` of the running loop; ``turn()`` lets the only timer run."""

    def __init__(self) -> None:
        self.waiting: list[mock.Mock] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._patch = mock.patch.object(loop, "call_later", self._call_later)
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _call_later(self, delay: float, act: Callable[[], None]) -> mock.Mock:
        assert delay == EVERY
        handle = mock.Mock(run=act)
        handle.cancel = lambda: self.waiting.remove(handle)
        self.waiting.append(handle)
        return handle

    def turn(self) -> None:
        """Run what waits."""
        (handle,) = self.waiting
        self.waiting.clear()
        handle.run()


# A live one


async def scrape(where: GatewayProcess) -> Samples:
    """Return the samples of `GET /metrics` as they are now; promtool finds nothing wrong with them."""
    answer = await metrics(where)
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    checked = await asyncio.to_thread(promtool, answer.body)
    assert checked == (0, "")
    return samples(answer.body)


def promtool(text: bytes) -> tuple[int, str]:
    """`promtool check metrics`: its exit status and what it says."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is missing; scripts/test installs it"
    command = [program, "check", "metrics"]
    ran = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=START, check=False
    )
    return ran.returncode, ran.stdout.decode()


def test_promtool_would_find_what_is_wrong() -> None:
    assert promtool(b"# TYPE gateway_things_count counter\ngateway_things_count 1\n")[0] != 0


def changes(before: Samples, after: Samples) -> dict[tuple[str, ...], float]:
    """What has another value, by how much; but for bytes, durations and the lag, which are not the same every time."""
    varying = ("gateway_bytes_total", "gateway_request_seconds_bucket", "gateway_request_seconds_sum", LAG)
    assert before.keys() <= after.keys()
    gained = {key: value - before.get(key, 0.0) for key, value in after.items() if key[0] not in varying}
    return {key: gain for key, gain in gained.items() if gain}


async def test_a_gateway_counts_who_comes_and_who_goes(gateway: StartGateway) -> None:
    where = await gateway({"server": {"handshake_timeout": 3.0}})
    idle = await scrape(where)
    assert {name for name, *_ in idle} == {
        *(CONTRACT.keys() - {"gateway_request_seconds"}),
        *(f"gateway_request_seconds_{ending}" for ending in ("bucket", "sum", "count")),
    }
    assert idle["gateway_build_info", __version__] == 1.0

    staying, leaving = await RawPeer.open(where), await RawPeer.open(where)
    with staying, leaving:
        await leaving.welcome()
        await leaving.leave()
        await ended(where, leaving, "client_close", 1000)
        with await RawPeer.connect(where) as stranger:
            await stranger.send_raw(stranger.upgrade_head(headers={"Origin": "https://elsewhere.example"}))
            assert (await stranger.read_response()).status == 403
        with await RawPeer.connect(where) as silent:
            await where.wait_event("handshake.timeout", stage="request", remote=silent.local)
        assert changes(idle, await scrape(where)) == {
            ("gateway_connections", "operator"): 1.0,
            ("gateway_connections_opened_total",): 2.0,
            ("gateway_disconnects_total", "client_close"): 1.0,
            ("gateway_handshake_failures_total", "request"): 2.0,
            ("gateway_messages_total", "out"): 2.0,
        }
        staying.rst()
        await ended(where, staying, "transport_lost", 1006)
    last = await scrape(where)
    assert last["gateway_connections", "operator"] == 0.0
    assert last["gateway_disconnects_total", "transport_lost"] == 1.0


async def asked(peer: RawPeer, method: str, params: object = None) -> None:
    """Ask, and wait for the reply."""
    await peer.send_json(
        {"jsonrpc": "2.0", "id": "x", "method": method, **({} if params is None else {"params": params})}
    )
    while (await peer.recv_json()).get("id") != "x":
        pass


async def test_a_gateway_counts_calls_and_events(gateway: StartGateway) -> None:
    where = await gateway()
    idle = await scrape(where)
    with await RawPeer.open(where) as node, await RawPeer.open(where) as caller:
        await asked(node, "node.register", {"name": "pi", "methods": [{"name": "snap"}]})
        for topic in ("a.*", "a.b"):
            await asked(caller, "event.subscribe", {"topics": [topic]})
        for topic in ("a.b", "b"):
            await asked(node, "event.publish", {"topic": topic, "data": 1})
        await request(caller, "snap")
        assert (await node.recv_json())["method"] == "snap"
        gained = changes(idle, await scrape(where))
        expected = {
            ("gateway_connections", "operator"): 2.0,
            ("gateway_connections_opened_total",): 2.0,
            ("gateway_calls_in_flight",): 1.0,
            ("gateway_events_published_total",): 2.0,
            ("gateway_events_delivered_total",): 1.0,
            ("gateway_messages_total", "in"): 6.0,
            ("gateway_messages_total", "out"): 9.0,
        }
        for method, count in {"node.register": 1.0, "event.subscribe": 2.0, "event.publish": 2.0}.items():
            expected["gateway_requests_total", method, "ok"] = count
            expected["gateway_request_seconds_count", method] = count
        assert gained == expected
    await where.wait_event("connection.closed", remote=node.local)
    last = await scrape(where)
    assert last["gateway_calls_in_flight",] == 0.0
    assert last["gateway_messages_total", "in"] == 6.0
    ends = {key[2]: value for key, value in last.items() if key[:2] == ("gateway_requests_total", "routed") and value}
    assert ends in ({"node_lost": 1.0}, {"caller_lost": 1.0})


async def test_every_request_counts_once_under_its_method_and_what_became_of_it(gateway: StartGateway) -> None:
    where = await gateway()
    with await RawPeer.open(where) as node, await RawPeer.open(where) as caller:
        await asked(node, "node.register", {"name": "pi", "methods": [{"name": "snap"}]})
        idle = await scrape(where)
        for _ in range(100):
            await asked(caller, PING)
        await asked(caller, "connection.get", {"connId": "nobody"})
        await asked(caller, "connection.get", 1)
        await asked(caller, "connection.get", {})
        for method in ("snap.none", "gateway.none", "x" * 1000, "node.call.not"):
            await asked(caller, method)
        await asked(caller, "node.call", {"node": "nobody", "method": "snap"})
        for method, params, answer in (
            ("snap", None, {"result": 1}),
            ("snap", None, {"error": {"code": 1, "message": "no"}}),
            ("node.call", {"node": "pi", "method": "snap"}, {"result": 1}),
        ):
            asking = asyncio.create_task(asked(caller, method, params))
            call = await node.recv_json()
            await node.send_json({"jsonrpc": "2.0", "id": call["id"], **answer})
            await asking
        await caller.send_json({"jsonrpc": "2.0", "method": "snap"})
        assert "id" not in await node.recv_json()
        now = await scrape(where)
    assert {key[1:]: gain for key, gain in changes(idle, now).items() if key[0] == "gateway_requests_total"} == {
        (PING, "ok"): 100.0,
        ("connection.get", "not_found"): 1.0,
        ("connection.get", "invalid_params"): 1.0,
        ("routed", "method_not_found"): 4.0,
        ("node.call", "not_found"): 1.0,
        ("routed", "ok"): 2.0,
        ("routed", "error"): 1.0,
        ("node.call", "ok"): 1.0,
    }
    before = durations(idle)
    gains = {method: count - before[method] for method, count in durations(now).items() if count != before[method]}
    assert gains == {PING: 100.0, "routed": 2.0, "node.call": 1.0}
    assert now["gateway_request_seconds_bucket", PING, "0.1"] == 100.0


async def test_a_held_up_event_loop_is_seen(gateway: StartGateway) -> None:
    where = await gateway()
    where.signal(signal.SIGSTOP)
    await asyncio.sleep(2 * EVERY)
    where.signal(signal.SIGCONT)
    async with asyncio.timeout(WAIT):
        while (await scrape(where))[LAG,] < EVERY / 2:
            await asyncio.sleep(0.1)


async def ask_and_never_read(peer: RawPeer) -> None:
    """Until the gateway does not read either."""
    while True:
        await request(peer, PING, pad="x" * 500_000)


async def test_bytes_that_wait_are_seen(gateway: StartGateway) -> None:
    where = await gateway()
    with await RawPeer.open(where) as peer:
        await peer.welcome()
        before = await scrape(where)
        asking = asyncio.create_task(ask_and_never_read(peer))
        async with asyncio.timeout(WAIT):
            while not (now := await scrape(where))["gateway_outbox_bytes",]:
                await asyncio.sleep(0.05)
        asking.cancel()
        assert now["gateway_bytes_total", "in"] > before["gateway_bytes_total", "in"] + 500_000
        assert now["gateway_bytes_total", "out"] > before["gateway_bytes_total", "out"] + 500_000


async def test_who_leaves_before_its_101_takes_nothing_away(gateway: StartGateway) -> None:
    where = await gateway()
    for _ in range(10):
        with await RawPeer.connect(where) as peer:
            await peer.send_raw(peer.upgrade_head())
            peer.rst()
        line = await where.wait_event("connection.closed", remote=peer.local)
        assert line["bytesOut"] >= 0
    assert (await scrape(where))["gateway_bytes_total", "out"] >= 0.0
