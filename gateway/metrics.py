"""What `GET /metrics` tells, in Prometheus' text format, by prometheus-client.

Nothing is counted here: whoever does the work has a number of its own, and a scrape reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway import __version__
from gateway.rejections import Stage
from gateway.scopes import ROLE_SCOPES

Label = TypeVar("Label", bound=str)

CONTENT_TYPE: Final = exposition.CONTENT_TYPE_PLAIN_1_0_0


class Metrics:
    """The numbers of one gateway.

    ``roles`` counts the open connections by role, ``opened`` tells how many there have been; ``disconnects`` are ends
    by cause, ``failures`` handshakes that came to nothing, by stage; ``routed`` ends of routed calls, by outcome;
    ``gauges`` and ``counters`` give a number each, by the name without its prefix.
    """

    def __init__(
        self,
        *,
        roles: Callable[[], Counter[str]],
        opened: Callable[[], int],
        disconnects: Mapping[str, int],
        failures: Mapping[Stage, int],
        routed: Mapping[str, int],
        gauges: Mapping[str, tuple[str, Callable[[], int]]],
        counters: Mapping[str, tuple[str, Callable[[], int]]],
    ) -> None:
        self._roles = roles
        self._opened = opened
        self._disconnects = disconnects
        self._failures = failures
        self._routed = routed
        self._gauges = gauges
        self._counters = counters
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them, as they are now."""
        return exposition.generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus-client: every family, those without an event yet too."""
        roles = self._roles()
        connections = GaugeMetricFamily("gateway_connections", "Open connections.", labels=["role"])
        for role in ROLE_SCOPES:
            connections.add_metric([role], roles[role])
        yield connections
        yield CounterMetricFamily("gateway_connections_opened", "Connections since the start.", value=self._opened())
        yield _counter("gateway_disconnects", "Connections that have ended, by cause.", "cause", self._disconnects)
        yield _counter("gateway_handshake_failures", "Handshakes without a connection.", "stage", self._failures)
        requests = CounterMetricFamily("gateway_requests", "Requests, by their end.", labels=["method", "outcome"])
        for outcome, count in self._routed.items():
            requests.add_metric(["routed", outcome], count)
        yield requests
        for name, (what, number) in self._gauges.items():
            yield GaugeMetricFamily(f"gateway_{name}", what, value=number())
        for name, (what, number) in self._counters.items():
            yield CounterMetricFamily(f"gateway_{name}", what, value=number())
        build = GaugeMetricFamily("gateway_build_info", "The gateway's version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _counter(name: str, what: str, label: str, values: Mapping[Label, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
