"""What a scrape reads: section 7 of the contract, as Prometheus' own parser understands it."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__, errors
from gateway.metrics import Metrics
from gateway.rejections import Rejections, Stage
from tests.fleet import ended, request
from tests.peers import RawPeer
from tests.process import GatewayProcess, StartGateway

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
    "gateway_events_published_total": ("counter", ()),
    "gateway_events_delivered_total": ("counter", ()),
    "gateway_outbox_bytes": ("gauge", ()),
    "gateway_loop_lag_seconds": ("gauge", ()),
    "gateway_build_info": ("gauge", ("version",)),
}
"""Every name of section 7, its type and its labels."""

SO_FAR: Final = {
    "gateway_connections",
    "gateway_connections_opened_total",
    "gateway_disconnects_total",
    "gateway_handshake_failures_total",
    "gateway_requests_total",
    "gateway_calls_in_flight",
    "gateway_events_published_total",
    "gateway_events_delivered_total",
    "gateway_build_info",
}
"""Those that there are; each must be exposed from the start."""

ROLES: Final = ("operator", "node", "ui")
STAGES: Final = ("tls", "request", "authenticate")
CAUSES: Final = {end.cause for end in errors.DISCONNECTS}

OUTCOMES: Final = ("ok", "error", "caller_lost")
"""Ends of routed calls that are there before the first; errors of the gateway's own come with their name."""

Samples = Mapping[tuple[str, str], float]
"""The value of each name with its last label's value; "" where it has none. Of methods there is one, `routed`."""


def families(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def samples(text: bytes) -> Samples:
    """All of them. AssertionError for one that is there twice."""
    found: dict[tuple[str, str], float] = {}
    for sample in (sample for family in families(text) for sample in family.samples):
        labels = dict(sample.labels)
        assert labels.pop("method", "routed") == "routed"
        key = (sample.name, *labels.values()) if labels else (sample.name, "")
        assert len(key) == 2 and key not in found, key
        found[key] = sample.value
    return found


class Numbers:
    """What a gateway counts, in the hands of the test."""

    def __init__(self) -> None:
        self.roles: Counter[str] = Counter()
        self.opened = 0
        self.disconnects = Counter(dict.fromkeys(CAUSES, 0))
        self.failures: Counter[Stage] = Rejections().failures
        self.routed = Counter(dict.fromkeys(OUTCOMES, 0))
        self.in_flight = self.published = 0
        self.metrics = Metrics(
            roles=lambda: self.roles,
            opened=lambda: self.opened,
            disconnects=self.disconnects,
            failures=self.failures,
            routed=self.routed,
            gauges={"calls_in_flight": ("Calls.", lambda: self.in_flight)},
            counters={
                "events_published": ("Messages.", lambda: self.published),
                "events_delivered": ("Frames.", lambda: self.published * 3),
            },
        )

    def scrape(self) -> Samples:
        return samples(self.metrics.text())


def test_every_name_is_the_contracts_with_its_type_its_labels_and_a_sentence() -> None:
    names = set()
    for family in families(Numbers().metrics.text()):
        # The parser takes the ending off a counter's family, as OpenMetrics does; the samples keep theirs.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names.add(name)
        kind, labels = CONTRACT[name]
        assert family.type == kind, name
        assert family.documentation.endswith("."), name
        assert family.samples, f"{name} is not there before its first event"
        for sample in family.samples:
            assert sample.name == name
            assert tuple(sample.labels) == labels, name
    assert names == SO_FAR


def test_before_the_first_event_everything_is_zero_and_has_all_its_labels() -> None:
    expected = {("gateway_connections", role): 0.0 for role in ROLES}
    expected |= {("gateway_disconnects_total", cause): 0.0 for cause in CAUSES}
    expected |= {("gateway_handshake_failures_total", stage): 0.0 for stage in STAGES}
    expected |= {("gateway_requests_total", outcome): 0.0 for outcome in OUTCOMES}
    expected |= {("gateway_calls_in_flight", ""): 0.0}
    expected |= {(f"gateway_events_{what}_total", ""): 0.0 for what in ("published", "delivered")}
    expected |= {("gateway_connections_opened_total", ""): 0.0, ("gateway_build_info", __version__): 1.0}
    assert Numbers().scrape() == expected


def test_a_scrape_reads_the_numbers_of_the_moment() -> None:
    numbers = Numbers()
    before = numbers.scrape()
    numbers.roles.update({"node": 3, "ui": 1})
    numbers.opened = 12_345_678_901
    numbers.disconnects["slow_consumer"] += 2
    numbers.failures["authenticate"] += 7
    numbers.routed.update({"ok": 2, "node_lost": 1})
    numbers.in_flight, numbers.published = 5, 2
    changed = {
        ("gateway_connections", "node"): 3.0,
        ("gateway_connections", "ui"): 1.0,
        ("gateway_connections_opened_total", ""): 12_345_678_901.0,
        ("gateway_disconnects_total", "slow_consumer"): 2.0,
        ("gateway_handshake_failures_total", "authenticate"): 7.0,
        ("gateway_requests_total", "ok"): 2.0,
        ("gateway_requests_total", "node_lost"): 1.0,
        ("gateway_calls_in_flight", ""): 5.0,
        ("gateway_events_published_total", ""): 2.0,
        ("gateway_events_delivered_total", ""): 6.0,
    }
    assert numbers.scrape() == {**before, **changed}
    numbers.roles.clear()
    assert numbers.scrape()["gateway_connections", "node"] == 0.0


def test_a_scrape_changes_nothing() -> None:
    numbers = Numbers()
    numbers.roles["ui"] += 1
    assert numbers.metrics.text() == numbers.metrics.text()
    assert numbers.roles == {"ui": 1}


def test_two_gateways_in_one_process_count_for_themselves() -> None:
    one, other = Numbers(), Numbers()
    one.opened += 1
    assert one.scrape()["gateway_connections_opened_total", ""] == 1.0
    assert other.scrape()["gateway_connections_opened_total", ""] == 0.0


async def scrape(where: GatewayProcess) -> Samples:
    """GET /metrics, on a connection of its own."""
    with await RawPeer.connect(where) as peer:
        answer = await peer.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    return samples(answer.body)


async def test_a_gateway_counts_what_happens_to_it(gateway: StartGateway) -> None:
    where = await gateway({"server": {"handshake_timeout": 1.0}})
    idle = await scrape(where)
    assert {name for name, _ in idle} == SO_FAR
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
            ("gateway_connections_opened_total", ""): 2.0,
            ("gateway_disconnects_total", "client_close"): 1.0,
            ("gateway_handshake_failures_total", "request"): 2.0,
        }
        staying.rst()
        await ended(where, staying, "transport_lost", 1006)
    last = await scrape(where)
    assert last["gateway_connections", "operator"] == 0.0
    assert last["gateway_disconnects_total", "transport_lost"] == 1.0


async def test_a_gateway_counts_calls_and_events(gateway: StartGateway) -> None:
    where = await gateway()
    idle = await scrape(where)
    with await RawPeer.open(where) as node, await RawPeer.open(where) as caller:
        for peer, method, params in (
            (node, "node.register", {"name": "pi", "methods": [{"name": "snap"}]}),
            (caller, "event.subscribe", {"topics": ["a.*"]}),
            (caller, "event.subscribe", {"topics": ["a.b"]}),
            (node, "event.publish", {"topic": "a.b", "data": 1}),
            (node, "event.publish", {"topic": "b", "data": 1}),
        ):
            await peer.send_json({"jsonrpc": "2.0", "id": "x", "method": method, "params": params})
            while (await peer.recv_json()).get("id") != "x":
                pass
        await request(caller, "snap")
        assert (await node.recv_json())["method"] == "snap"
        assert changes(idle, await scrape(where)) == {
            ("gateway_connections", "operator"): 2.0,
            ("gateway_connections_opened_total", ""): 2.0,
            ("gateway_calls_in_flight", ""): 1.0,
            ("gateway_events_published_total", ""): 2.0,
            ("gateway_events_delivered_total", ""): 1.0,
        }
    await where.wait_event("connection.closed", remote=node.local)
    assert (await scrape(where))["gateway_calls_in_flight", ""] == 0.0


def changes(before: Samples, after: Samples) -> Samples:
    """What has another value, by how much."""
    assert before.keys() == after.keys()
    return {key: after[key] - before[key] for key in before if after[key] != before[key]}
