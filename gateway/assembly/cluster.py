"""What makes a gateway one of several: NATS, the members, and what goes from one to another.

It is made before the parts of the gateway that need it, and starts after them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from gateway.assembly import options
from gateway.cluster.asking import Asking
from gateway.cluster.jetstream import JetStream, Wanted
from gateway.cluster.members import Members
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import NatsError, Options, RefusedError
from gateway.cluster.natsstream import NatsStream
from gateway.cluster.natswire import Info
from gateway.cluster.replica import Replica
from gateway.config import Config, ConfigError
from gateway.events.delivery import Delivery
from gateway.events.shared import SharedEvents
from gateway.events.topics import Topics
from gateway.methods.publishing import SharedEventMethods
from gateway.nodes.elsewhere.relay import Relay
from gateway.nodes.elsewhere.unwritten import Here
from gateway.nodes.registry import Nodes
from gateway.nodes.roster import Roster
from gateway.nodes.routing import Router
from gateway.nodes.waiting import Waiting
from gateway.rpc.steps import Steps
from gateway.status import Status
from gateway.telemetry.lines import (
    CLUSTER_FORBIDDEN,
    CLUSTER_JOINED,
    CLUSTER_LOST,
    CLUSTER_UNREACHABLE,
    NATS_REFUSED,
    Line,
    Lines,
)
from gateway.telemetry.metrics import add_durations
from gateway.timestamps import Stamps
from gateway.websocket.cork import Cork

logger = logging.getLogger(__name__)

OLDEST: Final = (2, 10, 25)
"""The oldest release of nats-server: the ones before republish the messages of a stream out of order."""

ENVELOPE: Final = 64 * 1024
"""Bytes that NATS has to take beyond the largest message: those that stand around a message from member to member."""

LOOK: Final = 0.1
"""Seconds between two looks whether all is known."""

LATE: Final = 5.0
"""Seconds in which NATS has to answer."""

LOST: Final = "lost"
"""What the state says of what is out of reach."""

LEAVE: Final = 0.2
"""Seconds in which the last word to the others has to reach NATS, because the drain is bounded."""


class Cluster:
    """Joins once, by `join`, and again whenever NATS was away, until `leave`."""

    def __init__(self, config: Config, instance: str, lines: Lines) -> None:
        self._config = config
        self._lines = lines
        self._begun = False
        """Whether each link to NATS makes us a member."""
        self._ready = False
        """Whether the start is over."""
        self._refusal: ConfigError | None = None
        self._news = asyncio.Event()
        self.waiting: Final = asyncio.Event()
        """Set as soon as an attempt to reach NATS has failed: it may take any time until one does not."""
        self.name: Final = member_name(config)
        """This gateway's name for people."""
        self.nats: Final = Nats(
            self.options(),
            lines,
            on_joined=self._reached,
            on_lost=self._lost,
            on_failed=self._failed,
            on_error=self._forbidden,
        )
        self.members: Final = Members(
            self.nats,
            prefix=config.cluster.name.encode(),
            instance=instance,
            name=self.name,
            timeout=config.cluster.member_timeout,
            lines=lines,
        )
        self.asking: Final = Asking(self.members)
        self.stream: Final = _stream(config, self.nats, lines)
        """The stream of events, which all members share."""
        self.relay: Relay
        self.roster: Roster
        self._events: SharedEvents

    def events(self, topics: Topics, delivery: Delivery) -> SharedEvents:
        """Return what publishes to the stream, and subscribes to it."""
        self._events = SharedEvents(topics, self.stream, delivery, self.name, _later)
        return self._events

    def event_methods(self, steps: Steps) -> SharedEventMethods:
        """Return the methods of `event.*`. Once there are `events`."""
        limits = self._config.limits
        return SharedEventMethods(
            self._events,
            steps,
            limits.max_message_bytes,
            max_in_flight=limits.max_in_flight,
            call_timeout=limits.call_timeout,
            lines=self._lines,
        )

    def connect(
        self,
        nodes: Nodes,
        router: Router,
        waiting: Waiting,
        *,
        find: Callable[[str], Here | None],
        status: Status,
        steps: Steps,
        cork: Cork,
    ) -> None:
        """Let calls go to nodes of other gateways, and come from there. Once, before `join`."""
        self.relay = relay = Relay(
            router, nodes, self.members, find, status, lines=self._lines, cork=cork, nats=self.nats
        )
        self.nats.on_read = relay.read
        self.roster = Roster(
            nodes,
            self.members,
            steps,
            make_peer=relay.peer,
            arrived=waiting.go_on,
            lost_link=router.lost_link,
            lines=self._lines,
        )

    @property
    def connected(self) -> bool:
        """Whether this gateway is a member now."""
        return bool(self.members.address)

    def state(self) -> dict[str, str]:
        """Return what `/readyz` and `gateway.info` say of it.

        While it is joined, and its events alone are out of reach, it is told of these as well.
        """
        if not self.connected:
            return {"cluster": LOST}
        return {"cluster": "joined"} if self.stream.available else {"cluster": "joined", "events": LOST}

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics of the cluster."""
        members = "Gateways of the cluster, this one included; 0 while it is without NATS."
        yield GaugeMetricFamily("gateway_cluster_members", members, value=self._size())
        connected = "Whether this gateway is a member of its cluster."
        yield GaugeMetricFamily("gateway_cluster_connected", connected, value=float(self.connected))
        reach = "Whether events can be published, and all that were published are known here."
        available = float(self.connected and self.stream.available)
        yield GaugeMetricFamily("gateway_cluster_events_connected", reach, value=available)
        who = GaugeMetricFamily("gateway_cluster_member_info", "This gateway's name; always 1.", labels=["member"])
        who.add_metric([self.name], 1.0)
        yield who
        labels, what = ["direction", "kind"], "Messages between the gateways of the cluster."
        messages = CounterMetricFamily("gateway_cluster_messages", what, labels=labels)
        for direction, counts in (("in", self.members.received), ("out", self.members.sent)):
            for kind, count in counts.items():
                messages.add_metric([direction, kind.decode()], count)
        yield messages
        seconds = HistogramMetricFamily("gateway_cluster_call_seconds", "Time to answer a call to a node elsewhere.")
        add_durations(seconds, [], self.relay.answers.called)
        yield seconds

    def _size(self) -> int:
        return len(self.members.others) + 1 if self.connected else 0

    def options(self) -> Options:
        """Read again what `[cluster]` names. Raises ConfigError, and CertificateError, which is an OSError."""
        return options.load(self._config.cluster, self.name)

    async def join(self, connect: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Reach NATS, ``connect`` the stream of events, and wait until all of the other members is known. Once.

        Raises ConfigError if that cannot come to a good end. A NATS that is not there is waited for.
        """
        self.nats.start()
        await self._until(self._is_linked)
        with suppress(NatsError):
            await self.nats.flush(LATE)  # what NATS forbids comes before the answer
        await self._until(self._is_linked)
        connecting = asyncio.create_task(connect())
        connecting.add_done_callback(lambda task: self._news.set())
        try:
            await self._until(connecting.done)
        finally:
            connecting.cancel()
        await connecting
        self._begun = True
        if self.nats.info is not None:
            self._enter(self.nats.info)
        await self._until(lambda: self.roster.is_known)
        self._ready = True

    def withdraw(self) -> None:
        """Let the others call no node here any more. Calls in flight may still be answered."""
        self.roster.clear()

    async def leave(self) -> None:
        """Tell the others that this gateway leaves. Harmless if it is no member."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE):
                await self.members.leave()

    async def close(self) -> None:
        """End the link to NATS. May be called twice, and without `join`."""
        await self.nats.close(LEAVE)

    def _is_linked(self) -> bool:
        return self.nats.info is not None

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for it. Raises ConfigError if NATS says meanwhile that it will never come."""
        while self._refusal is None:
            if condition():
                return
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._news.wait()
        raise self._refusal

    # What NATS tells

    def _reached(self, info: Info) -> None:
        """Be a member, if this server will do."""
        objection = self._objection(info)
        if objection is not None:
            self._refused(objection)
        else:
            self.stream.joined()
            if self._begun:
                self._enter(info)
        self._news.set()

    def _enter(self, info: Info) -> None:
        self.members.joined()
        fields = {"server": info.server_name, "version": info.version, "address": self.members.address.decode()}
        self._log(CLUSTER_JOINED, "joined the cluster %s", self._config.cluster.name, fields)

    def _lost(self, error: NatsError) -> None:
        was_member = self.connected
        self.stream.lost()
        self.members.lost()
        if was_member:
            self._log(CLUSTER_LOST, "lost NATS: %s", str(error), {"reason": str(error)})

    def _failed(self, error: NatsError) -> None:
        """Note an attempt that came to nothing. One that the server refuses would never come to anything."""
        if isinstance(error, RefusedError) and not self._ready:
            self._refused(_of_refusal(self._config, str(error)))
        else:
            self._log(CLUSTER_UNREACHABLE, "NATS cannot be reached: %s", str(error), {"reason": str(error)})
            self.waiting.set()
        self._news.set()

    def _forbidden(self, text: str) -> None:
        """Note what permissions of NATS forbid. It is something that this gateway needs."""
        self._log(CLUSTER_FORBIDDEN, "NATS forbids what is needed: %s", text, {"reason": text})
        if not self._ready:
            right = f"permissions to publish and subscribe to {self._config.cluster.name}.> and $JS.API.>"
            self._refused(ConfigError("configuration", "cluster.nats", text, right))

    def _refused(self, refusal: ConfigError) -> None:
        """End the start. Later it would do harm: the gateway goes on without the others."""
        self._log(NATS_REFUSED, "%s", str(refusal), {"reason": refusal.wrong})
        if not self._ready:
            self._refusal = refusal
            self._news.set()

    def _objection(self, info: Info) -> ConfigError | None:
        """Return why a server will not do, or None."""
        size = self._config.limits.max_message_bytes
        key, wrong, right = "cluster.nats", "", f"nats-server {'.'.join(map(str, OLDEST))} or later, with JetStream"
        if info.release < OLDEST:
            wrong = f"nats-server {info.version} delivers events out of order"
        elif not info.jetstream or not info.headers:
            wrong = f"{info.server_name or 'the server'} has no JetStream"
        elif info.max_payload < size + ENVELOPE:
            key = "limits.max_message_bytes"
            wrong = f"max_payload of NATS is {info.max_payload}, less than {size} + {ENVELOPE}"
            right = f"max_payload: {size + ENVELOPE} or more in the configuration of NATS, or smaller messages"
        return ConfigError("configuration", key, wrong, right) if wrong else None

    def _log(self, line: Line, message: str, what: str, fields: dict[str, str]) -> None:
        self._lines.log(logger, line, "", message, what, fields=fields)


def _stream(config: Config, nats: Nats, lines: Lines) -> NatsStream:
    cluster, events = config.cluster, config.events
    count, age, octets = events.history_count, events.history_age, events.history_bytes
    wanted = Wanted(storage=cluster.storage, replicas=cluster.replicas, count=count, age=age, octets=octets)
    jetstream = JetStream(nats, cluster.name, wanted, lambda: secrets.token_hex(8))
    replica = Replica(time.monotonic, count=count, age=age, octets=octets)
    stamp, clock = Stamps().format, time.time
    return NatsStream(nats, jetstream, replica, lines, now=lambda: stamp(clock()), clock=clock)


def _later(seconds: float, act: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, act)


def member_name(config: Config) -> str:
    """Return this gateway's name for people: by default the first address and the port that are configured."""
    server = config.server
    if config.cluster.member or server.unix_socket:
        return config.cluster.member or f"unix:{server.unix_socket}"
    host = server.hosts[0]
    return f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"


def _of_refusal(config: Config, wrong: str) -> ConfigError:
    """Return the error for a link that the server, or TLS, has refused: it names what the gateway has shown."""
    cluster = config.cluster
    if "authori" in wrong.lower() or "authentication" in wrong.lower():
        shown = {
            "cluster.user": cluster.user,
            "cluster.token_file": cluster.token_file,
            "cluster.credentials_file": cluster.credentials_file,
        }
        key = next((key for key, value in shown.items() if value), "cluster.nats")
        return ConfigError("configuration", key, wrong, "a user, a token or credentials that this NATS accepts")
    key = "cluster.tls_ca" if cluster.tls_ca else "cluster.nats"
    return ConfigError("configuration", key, wrong, "a NATS that speaks TLS, and whose certificate is trusted")
