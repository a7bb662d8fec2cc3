"""Writes `GET /metrics` in Prometheus' text format, with prometheus-client.

Only the lag of the event loop is measured here. All other numbers belong to the objects that do the work (see
`telemetry.counts`), and a scrape reads them there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.telemetry.counts import BOUNDS, Census, Tally

Label = TypeVar("Label", bound=str)

CONTENT_TYPE: Final = exposition.CONTENT_TYPE_PLAIN_1_0_0

EVERY: Final = 1.0
"""Seconds between two measurements of the event loop's lag."""

REMEMBERED: Final = 15
"""How many measurements are remembered: a scrape every 15 s misses none."""

SHARED: Final = 1.0
"""Seconds for which the text of one scrape is given to all others, so that many scrapers cost no more than one."""

_LE: Final = (*map(str, BOUNDS), "+Inf")


class Metrics(Generic[Label]):
    """Collects the numbers of one gateway.

    ``roles`` are the roles that a connection may have. ``census`` counts the connections, and ``opened`` returns how
    many have been opened since the start. ``disconnects`` counts the ends of connections by cause, and ``failures`` the
    handshakes that failed, by stage. ``tallies`` returns the counts of requests, by method. ``gauges`` and ``counters``
    have a help text and a function for each name, which is written without its prefix ``gateway_``. ``dropped`` counts
    what was not sent because so much waited for its receiver, by kind. ``resumes`` counts the attempts to go on with a
    connection that is held, by their result. ``more`` returns what only some gateways have. ``clock`` returns monotonic
    seconds.
    """

    def __init__(
        self,
        *,
        roles: Iterable[str],
        census: Callable[[], Awaitable[Census]],
        opened: Callable[[], int],
        disconnects: Mapping[str, int],
        failures: Mapping[Label, int],
        tallies: Callable[[], Iterable[tuple[str, Tally]]],
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
        counters: Mapping[str, tuple[str, Callable[[], int]]],
        dropped: Callable[[], Mapping[str, int]],
        resumes: Mapping[str, int],
        more: Callable[[], Iterable[Metric]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roles = tuple(roles)
        self._census = census
        self._opened = opened
        self._disconnects = disconnects
        self._failures = failures
        self._tallies = tallies
        self._gauges = gauges
        self._counters = counters
        self._dropped = dropped
        self._resumes = resumes
        self._more = more
        self._clock = clock
        self._text = b""
        self._made = -SHARED
        self._making: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """Return the metrics as they are now, or were less than `SHARED` seconds ago.

        However many ask, they are made once at a time. A caller that is cancelled takes nothing from the others.
        """
        if self._text and self._clock() - self._made < SHARED:
            return self._text
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        """Return the text. Other callbacks run while connections are counted, and after each family is written."""
        try:
            census = await self._census()
            families = [*self._of_connections(census), *self._of_requests(), *self._own(), *self._more()]
            text = []
            for family in families:
                text.append(exposition.generate_latest(_Family(family)))
                await asyncio.sleep(0)
            self._text, self._made = b"".join(text), self._clock()
        finally:
            self._making = None
        return self._text

    def _of_connections(self, census: Census) -> Iterator[Metric]:
        roles = {role: census.roles[role] for role in self._roles}
        traffic = census.traffic
        messages = {"in": traffic.messages_in, "out": traffic.messages_out}
        octets = {"in": traffic.bytes_in, "out": traffic.bytes_out}
        connections = GaugeMetricFamily("gateway_connections", "Open connections.", labels=["role"])
        for role, count in roles.items():
            connections.add_metric([role], count)
        yield connections
        yield CounterMetricFamily("gateway_connections_opened", "Connections since the start.", value=self._opened())
        yield _counter("gateway_disconnects", "Connections that have ended, by cause.", "cause", self._disconnects)
        yield _counter("gateway_handshake_failures", "Handshakes without a connection.", "stage", self._failures)
        yield _counter("gateway_messages", "Messages of WebSocket connections.", "direction", messages)
        yield _counter("gateway_bytes", "Bytes of WebSocket connections.", "direction", octets)
        waiting = "Bytes that wait for their peers to read them."
        yield GaugeMetricFamily("gateway_outbox_bytes", waiting, value=census.outbox_bytes)

    def _of_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("gateway_requests", "Requests, by their end.", labels=["method", "outcome"])
        seconds = HistogramMetricFamily("gateway_request_seconds", "Time to answer a request.", labels=["method"])
        for method, tally in self._tallies():
            for outcome, count in tally.outcomes().items():
                requests.add_metric([method, outcome], count)
            add_durations(seconds, [method], tally)
        yield requests
        yield seconds

    def _own(self) -> Iterator[Metric]:
        for name, (what, number) in self._gauges.items():
            yield GaugeMetricFamily(f"gateway_{name}", what, value=number())
        for name, (what, count) in self._counters.items():
            yield CounterMetricFamily(f"gateway_{name}", what, value=count())
        what = "Messages dropped because so much waited for their receiver, by kind; of events, gaps that were told."
        yield _counter("gateway_dropped", what, "kind", self._dropped())
        yield _counter("gateway_resumes", "Attempts to go on by another link.", "result", self._resumes)
        build = GaugeMetricFamily("gateway_build_info", "The gateway's version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


class _Family(Collector):
    """One metric with all its labels, as prometheus-client wants it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def add_durations(family: HistogramMetricFamily, labels: Sequence[str], tally: Tally) -> None:
    """Add the durations of what a tally has counted to a metric."""
    buckets, total = tally.durations()
    family.add_metric(labels, list(zip(_LE, buckets, strict=True)), total)


def _counter(name: str, what: str, label: str, values: Mapping[Label, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


class LoopLag:
    """Measures how late the event loop runs a timer: every `EVERY` seconds, from `start` to `stop`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lags: deque[float] = deque([0.0], maxlen=REMEMBERED)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """The greatest of the last `REMEMBERED` lags, in seconds."""
        return max(self._lags)

    def start(self) -> None:
        """Begin to measure the running event loop. Call it once."""
        self._due = self._clock() + EVERY
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._measure)

    def stop(self) -> None:
        """Stop measuring. May be called twice, or before `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self) -> None:
        self._lags.append(max(0.0, self._clock() - self._due))
        self.start()
