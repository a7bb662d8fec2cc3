"""Gateways of a cluster with registries, rosters and members, and a NATS between them that is driven by hand."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, cast

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster.alive import Member
from gateway.cluster.members import Members
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import AwayError, TooLargeError
from gateway.cluster.natswire import Handler
from gateway.errors import Disconnect
from gateway.names import matches
from gateway.nodes.registry import Change, Node, NodePeer, Nodes, Served
from gateway.nodes.roster import Roster
from gateway.rpc.method import Refusal
from gateway.rpc.steps import Steps
from gateway.rpc.work import Work
from gateway.telemetry.lines import Lines
from tests.support.rpc import NodeListing

SETTLED: Final = 30
"""Heartbeats of each gateway after which all agree, whatever was lost before."""


def described(name: str, summary: str = "", params: bytes = b"") -> Served:
    """A method of a node."""
    return Served(name, b'"%b"' % name.encode(), f"call:{name}", summary, params)


class Wire:
    """A `Nats` without a server: what is published goes into the lines of all that have subscribed."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._handles = map(b"%d".__mod__, itertools.count(1))
        self.subscriptions: dict[bytes, tuple[str, Handler]] = {}
        self.info: Any = None

    def subscribe(self, subject: bytes, handler: Handler, queue: bytes = b"") -> bytes:
        handle = next(self._handles)
        self.subscriptions[handle] = subject.decode(), handler
        return handle

    def unsubscribe(self, handle: bytes) -> None:
        self.subscriptions.pop(handle, None)

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        if self.info is None:
            raise AwayError("away")
        if len(payload) > self.info.max_payload:
            raise TooLargeError("too large")
        self._broker.publish(self, subject, payload)

    async def flush(self, timeout: float) -> None:
        """There is nothing to wait for."""


class Broker:
    """Keeps what is published: a line for each sender and receiver, in the order of publishing."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.lines: dict[tuple[Wire, Wire], deque[tuple[bytes, bytes]]] = {}

    def publish(self, sender: Wire, subject: bytes, payload: bytes) -> None:
        """Put a message into the lines of all that are linked, and may have subscribed."""
        for receiver in self.wires:
            if receiver is not sender and receiver.info is not None:
                self.lines.setdefault((sender, receiver), deque()).append((subject, payload))

    def full(self) -> list[tuple[Wire, Wire]]:
        """The lines with something in them, in an order that does not change."""
        return [pair for pair, line in self.lines.items() if line]

    def deliver(self, pair: tuple[Wire, Wire]) -> None:
        """Hand over the first message of a line."""
        subject, payload = self.lines[pair].popleft()
        text = subject.decode()
        for pattern, handler in list(pair[1].subscriptions.values()):
            if matches(pattern, text):
                handler(subject, b"", b"", payload)

    def lose(self, pair: tuple[Wire, Wire]) -> None:
        """Lose the first message of a line."""
        self.lines[pair].popleft()

    def cut(self, wire: Wire) -> None:
        """End a link, with all that is on its way to it."""
        wire.info = None
        for pair, line in self.lines.items():
            if pair[1] is wire:
                line.clear()


class HandSteps(Steps):
    """Takes the first step of each work at once, and another when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work[Any]] = []

    def begin(self, work: Work[Any]) -> Any:
        self.works.append(work)
        self.step(len(self.works) - 1)

    def step(self, which: int) -> None:
        """Take another step of a work."""
        work = self.works[which]
        try:
            next(work)
        except StopIteration:
            self.works.remove(work)


class Far(NodeListing):
    """The way to a node of another gateway."""

    def __init__(self, member: Member, conn_id: str, remote: str, principal: Principal) -> None:
        super().__init__(principal)
        self.member = member
        self.conn_id = conn_id
        self.remote = remote


class Site:
    """One gateway: a registry with its roster, and the member that it is."""

    def __init__(
        self,
        broker: Broker,
        number: int,
        wall: Callable[[], float],
        *,
        max_bytes: int = 1 << 18,
        max_payload: int = 1 << 20,
    ) -> None:
        self.broker = broker
        self._max_payload = max_payload
        self.wire = Wire(broker)
        broker.wires.append(self.wire)
        self.tick: Callable[[], None] = lambda: None
        self.now = 0.0
        self._halves = 0
        self.told: list[str] = []
        """What this gateway tells in its own name: `name online` or `name offline`."""
        self.arrived: list[str] = []
        self.lost_links: list[str] = []
        self.steps = HandSteps()
        self.nodes = Nodes(self._online, self._offline, wall, max_bytes=max_bytes)
        lines = Lines()
        self.members = Members(
            cast(Nats, self.wire),
            prefix=b"test",
            instance=f"{number:08x}-0000",
            name=f"gateway-{number}",
            timeout=1.5,
            lines=lines,
            clock=lambda: self.now,
        )
        self.roster = Roster(
            self.nodes,
            self.members,
            self.steps,
            make_peer=self._make_peer,
            arrived=self.arrived.append,
            lost_link=self._lost_link,
            lines=lines,
        )
        self.far: dict[tuple[Member, str], Far] = {}

    def _online(self, node: Node, change: Change) -> None:
        assert node.member is None
        self.told.append(f"{node.name} online")

    def _offline(self, node: Node) -> None:
        assert node.member is None
        self.told.append(f"{node.name} offline")

    def _make_peer(self, member: Member, name: str, conn_id: str, remote: str, principal: Principal) -> NodePeer:
        return self.far.setdefault((member, conn_id), Far(member, conn_id, remote, principal))

    def _lost_link(self, peer: NodePeer) -> None:
        self.lost_links.append(peer.conn_id)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Have a timer of the member's set the tick."""
        asyncio._set_running_loop(cast(Any, SimpleNamespace(call_later=self._call_later)))
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def _call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self.tick = callback
        return SimpleNamespace(cancel=lambda: None)

    def join(self) -> None:
        """Have a link to NATS."""
        with self._inside():
            self._halves = 0
            self.wire.info = SimpleNamespace(max_payload=self._max_payload)
            self.members.joined()

    def part(self) -> None:
        """Have none."""
        self.broker.cut(self.wire)
        self.members.lost()

    def turn(self) -> None:
        """Let half of the time from one heartbeat to the next pass. Every second turn sends one."""
        self._halves += 1
        for _ in range(2 + (self._halves + 1) % 2):
            self.now += 0.1
            if self.members.address:
                with self._inside():
                    self.tick()

    def deliver(self, pair: tuple[Wire, Wire]) -> None:
        """Take the first message of a line to this gateway."""
        with self._inside():
            self.broker.deliver(pair)

    def register(self, peer: NodeListing, name: str, methods: Iterable[Served], **how: bool) -> bool:
        """Do what `node.register` does. Returns whether it was done."""
        try:
            replaced = self.nodes.register(peer, name, methods, how.get("context", False), how.get("streams", False))
        except Refusal:
            return False
        if replaced is not None:
            replaced.peer.end(errors.REPLACED)
        return True

    def view(self) -> dict[str, object]:
        """All that this gateway knows of all nodes."""
        return {node.name: self._seen(node) for node in self.nodes.after("")}

    def _seen(self, node: Node) -> object:
        peer, scopes = node.peer, [scope for scope in node.peer.principal.scopes if not scope.startswith("call:")]
        where = self.members.instance if node.member is None else node.member.instance
        who = peer.conn_id, peer.remote, peer.principal.name, peer.principal.role, scopes, peer.held is not None
        return where, node.stamp, node.since, node.context, node.streams, who, dict(sorted(node.methods.items()))

    def check(self) -> None:
        """Fail unless its tables fit together."""
        nodes = list(self.nodes.after(""))
        assert self.nodes.cost == sum(node.cost for node in nodes)
        assert all(node.octets == sum(one.octets for one in node.methods.values()) for node in nodes)
        assert all(node.peer.node is node for node in nodes if node.member is None)
        have: dict[str, set[Node]] = {}
        for node in nodes:
            for method in node.methods:
                have.setdefault(method, set()).add(node)
        table = self.nodes._serving._nodes
        assert {name: set(one) if isinstance(one, dict) else {one} for name, one in table.items()} == have
        for copy in self.roster._copies.values():
            assert copy.cost == sum(node.cost for node in copy.nodes.values())

    def check_settled(self) -> None:
        """Fail if anything is left of what was contested, or came too late."""
        assert not self.steps.works
        assert all(node.peer.node is node for node in self.nodes.after(""))
        assert self.nodes._serving._contested == set()
        for name, found in self.nodes._serving._nodes.items():
            if isinstance(found, dict):
                assert all(node.peer.principal.allows(f"share:{name}") for node in found)
        elsewhere = {node.name: node for node in self.nodes.after("") if node.member is not None}
        copies = {name: node for copy in self.roster._copies.values() for name, node in copy.nodes.items()}
        assert copies == elsewhere


class Cluster:
    """Some gateways, each in a line to each other."""

    def __init__(self, count: int, wall: Callable[[], float], **options: Any) -> None:
        self.broker = Broker()
        self.sites = [Site(self.broker, number + 1, wall, **options) for number in range(count)]

    def site_of(self, wire: Wire) -> Site:
        """The gateway that has this wire."""
        (found,) = (site for site in self.sites if site.wire is wire)
        return found

    def deliver(self, pair: tuple[Wire, Wire]) -> None:
        """Hand over the first message of a line."""
        self.site_of(pair[1]).deliver(pair)

    def run(self) -> None:
        """Hand over all messages, and take all steps, until there are none."""
        while True:
            for pair in self.broker.full():
                self.deliver(pair)
            for site in self.sites:
                for _ in range(len(site.steps.works)):
                    site.steps.step(0)
            if not self.broker.full() and not any(site.steps.works for site in self.sites):
                return

    def run_between(self, sender: int, receiver: int) -> None:
        """Hand over all messages of one gateway to another."""
        pair = self.sites[sender].wire, self.sites[receiver].wire
        while self.broker.lines.get(pair):
            self.deliver(pair)

    def settle(self, turns: int = SETTLED) -> None:
        """Let time pass, and lose nothing, until all know all."""
        for _ in range(turns):
            for site in self.sites:
                site.turn()
            self.run()


class Own(NodeListing):
    """A connection of one gateway. When it was ended, it is released as soon as the test says."""

    def __init__(self, site: Site, conn_id: str, principal: Principal) -> None:
        super().__init__(principal)
        self.site = site
        self.conn_id = conn_id
        self.remote = f"{conn_id}:1"

    def release(self) -> None:
        """Let its end be over."""
        self.site.nodes.unregister(self)

    def is_held(self, held: Disconnect | None) -> None:
        """Lose its link, or have another one."""
        self.held = held
        if self.node is not None:
            self.site.roster.altered(self.node)

    def rescope(self, principal: Principal) -> None:
        """Have another credential."""
        self.principal = principal
        self.site.nodes.rescoped(self)
