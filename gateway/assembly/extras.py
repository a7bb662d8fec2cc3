"""What only some gateways have, and is loaded only then: a cluster, and OpenTelemetry."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

from gateway.config import Config, ConfigError
from gateway.nodes.routing import Tracing
from gateway.status import Status
from gateway.telemetry.lines import Lines

if TYPE_CHECKING:
    from gateway.assembly.cluster import Cluster


def load_cluster(config: Config, status: Status, lines: Lines) -> Cluster | None:
    """Return what joins a cluster, or None. A gateway alone does not even load it."""
    if not config.cluster.nats:
        return None
    made: Cluster = importlib.import_module("gateway.assembly.cluster").Cluster(config, status.instance, lines)
    return made


def seen(task: asyncio.Task[None]) -> None:
    """Note that a failure needs no further report: it is in the log, and the process may ask for it."""
    if not task.cancelled():
        task.exception()


def load_tracing() -> Tracing:
    """Load OpenTelemetry, which is an extra. Raises ConfigError if that is not installed."""
    try:
        tracing: Tracing = importlib.import_module("gateway.telemetry.tracing").exporting()
    except ImportError as error:
        right = "pip install aisopod-gateway[otel], or tracing.enabled = false"
        raise ConfigError("configuration", "tracing.enabled", f"OpenTelemetry is missing: {error}", right) from None
    return tracing
