"""Parts of every gateway, made as the configuration says."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from gateway.assembly.extras import load_tracing
from gateway.cluster.memory import MemoryStream
from gateway.config import Config
from gateway.connections.connection import Connection
from gateway.connections.sessions import Sessions
from gateway.events.delivery import Delivery
from gateway.limits import Rate
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.nodes.waiting import Waiting
from gateway.rpc.calls import Calls
from gateway.rpc.dispatcher import Dispatcher
from gateway.status import Status
from gateway.telemetry.lines import Lines
from gateway.timestamps import rfc3339


def waiting(config: Config, nodes: Nodes, router: Router) -> Waiting:
    """Return where calls wait for nodes that are not there yet."""
    limits = config.limits
    return Waiting(nodes, router, max_waiting=limits.max_waiting, max_in_flight=limits.max_in_flight)


def router(config: Config, nodes: Nodes, calls: Calls, lines: Lines) -> Router:
    """Return what sends calls to nodes."""
    limits = config.limits
    return Router(
        nodes,
        calls,
        call_timeout=limits.call_timeout,
        max_in_flight=limits.max_in_flight,
        max_node_in_flight=limits.max_node_in_flight,
        max_message_bytes=limits.max_message_bytes,
        max_credit_bytes=limits.max_outbox_bytes // 2,
        lines=lines,
        tracing=load_tracing() if config.tracing.enabled else None,
    )


def dispatcher(config: Config, status: Status, router: Router, delivery: Delivery, lines: Lines) -> Dispatcher:
    """Return what messages are handed to."""
    limits = config.limits
    return Dispatcher(
        status,
        router.calls,
        router,
        max_in_flight=limits.max_in_flight,
        max_batch=limits.max_batch,
        call_timeout=limits.call_timeout,
        lines=lines,
        rate=Rate(limits.rate, limits.burst) if limits.rate else None,
        busy=lambda: delivery.busy,
    )


def sessions(config: Config, held: Callable[[Connection], None], behind: Callable[[Connection], int]) -> Sessions:
    """Return what keeps connections that have lost their link. ``held`` is told of each. For ``behind`` see there."""
    limits = config.limits
    most = limits.max_held_bytes or 2 * limits.max_outbox_bytes
    hold, most_held = config.server.hold_timeout, limits.max_held
    return Sessions(hold_timeout=hold, max_held=most_held, max_bytes=most, held=held, behind=behind)


def stream(config: Config) -> MemoryStream:
    """Return the stream of events of a gateway that is alone."""
    events = config.events
    return MemoryStream(
        time.monotonic,
        _now,
        lambda: secrets.token_hex(8),
        count=events.history_count,
        age=events.history_age,
        octets=events.history_bytes,
    )


def _now() -> str:
    return rfc3339(time.time())
