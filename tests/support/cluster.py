"""Gateways of a cluster in this process: an exchange in the place of NATS, which delivers when the test says so."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

from aiohttp.web import Application

from gateway.app import CONNECTIONS, GATEWAY, STATUS
from gateway.auth.scopes import ANONYMOUS, Principal
from gateway.cluster.alive import Member
from gateway.cluster.members import Members
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import AwayError, TooLargeError
from gateway.cluster.natswire import Handler
from gateway.nodes.elsewhere.relay import Relay
from gateway.nodes.registry import Node, Nodes, Served
from gateway.nodes.roster import Roster
from gateway.nodes.routing import Router
from gateway.rpc.calls import Calls
from gateway.rpc.jsonrpc import decode, encode
from gateway.rpc.replies import Batch
from gateway.rpc.steps import Steps
from gateway.status import Status
from gateway.telemetry.lines import Lines
from gateway.websocket.cork import Cork
from tests.support.rpc import Listing, NodeListing

PREFIX: Final = b"test"
TIMEOUT: Final = 600.0
"""Seconds of silence that no test waits for."""
NOBODY_THERE: Final = b"NATS/1.0 503\r\n\r\n"


class Parcel(NamedTuple):
    """A message of NATS."""

    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes


class Exchange:
    """What is published goes to all subscribers, in order, and one that nobody hears comes back as 503."""

    def __init__(self) -> None:
        self.links: list[ExchangeLink] = []

    def publish(self, sender: "ExchangeLink", parcel: Parcel) -> None:
        """Hand a message to those who have subscribed to its subject."""
        heard = [link for link in self.links if link.joined and not link.cut and link.handlers_of(parcel.subject)]
        for link in heard:
            link.arrived.append(parcel)
        if parcel.reply and not heard:
            sender.arrived.append(Parcel(parcel.reply, b"", NOBODY_THERE, b""))

    def settle(self) -> None:
        """Deliver until nothing is on its way, but to those who do not read."""
        going = True
        while going:
            for link in self.links:
                link.leave()
            going = any(link.read() for link in self.links if not link.stopped)


class ExchangeLink:
    """A client of the exchange: what a `Nats` is, as far as members need it.

    It is `stopped` as long as it does not read, and its messages wait in `arrived`. It is `cut` if the exchange has
    ended its link, and it has not noticed that yet.
    """

    def __init__(self, exchange: Exchange) -> None:
        exchange.links.append(self)
        self._exchange = exchange
        self._subscriptions: dict[bytes, tuple[bytes, Handler]] = {}
        self._handles = 0
        self.arrived: deque[Parcel] = deque()
        self.joined = False
        self.stopped = False
        self.cut = False
        self.info = SimpleNamespace(max_payload=1 << 23)
        self.sent: Counter[bytes] = Counter()
        """Published messages, by the third part of their subject: the kind of mail."""
        self.by_hand = False
        self.on_read: Callable[[], None] = lambda: None
        self.leave: Callable[[], None] = lambda: None
        """Lets all leave that is packed."""

    def subscribe(self, subject: bytes, handler: Handler, queue: bytes = b"") -> bytes:
        """See `Nats`."""
        self._handles += 1
        self._subscriptions[b"%d" % self._handles] = subject, handler
        return b"%d" % self._handles

    def unsubscribe(self, handle: bytes) -> None:
        """See `Nats`."""
        self._subscriptions.pop(handle, None)

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """See `Nats`."""
        if not self.joined:
            raise AwayError("away")
        if self.cut:
            return
        if len(payload) > self.info.max_payload:
            raise TooLargeError("too large")
        self.sent[b"".join(subject.split(b".")[3:4])] += 1
        self._exchange.publish(self, Parcel(subject, reply, b"", payload))

    def draw(self) -> None:
        """See `Nats`."""

    async def flush(self, timeout: float) -> None:
        """See `Nats`."""

    def handlers_of(self, subject: bytes) -> list[Handler]:
        """What this subject is for."""
        return [handler for wanted, handler in self._subscriptions.values() if _meets(wanted, subject)]

    def read(self, count: int = 1 << 20) -> bool:
        """Handle so many messages that have arrived, as one read. Returns False if there was nothing."""
        parcels = [self.arrived.popleft() for _ in range(min(count, len(self.arrived)))]
        for parcel in parcels:
            for handler in self.handlers_of(parcel.subject):
                handler(*parcel)
        if parcels:
            self.on_read()
        return bool(parcels)

    def lose(self) -> None:
        """Lose the link, with all that has arrived or was sent by it."""
        self.joined = self.cut = False
        self.arrived.clear()


def _meets(pattern: bytes, subject: bytes) -> bool:
    wanted, parts = pattern.split(b"."), subject.split(b".")
    if wanted[-1] == b">":
        wanted.pop()
        parts, rest = parts[: len(wanted)], parts[len(wanted) :]
        if not rest:
            return False
    return len(wanted) == len(parts) and all(want in (b"*", part) for want, part in zip(wanted, parts, strict=True))


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Joining:
    """What a gateway has to be a member with."""

    def __init__(self, exchange: Exchange, name: str, clock: Callable[[], float], timeout: float = TIMEOUT) -> None:
        self.link = ExchangeLink(exchange)
        self.lines = Lines()
        self.members = Members(
            cast(Nats, self.link),
            prefix=PREFIX,
            instance=f"{len(exchange.links):08x}-0000-4000-8000-000000000000",
            name=name,
            timeout=timeout,
            lines=self.lines,
            clock=clock,
        )

    def join(self) -> None:
        """Have a link to the exchange."""
        self.link.joined = True
        self.members.joined()

    def lose(self) -> None:
        """Lose it."""
        self.link.lose()
        self.members.lost()

    def member(self, name: str) -> Member:
        """The other member of this name."""
        (found,) = (member for member in self.members.others.values() if member.name == name)
        return found


class Parts(Joining):
    """What makes a whole gateway one of a cluster."""

    def __init__(self, exchange: Exchange, name: str, app: Application, clock: Callable[[], float]) -> None:
        super().__init__(exchange, name, clock)
        gateway, find, status = app[GATEWAY], app[CONNECTIONS].get, app[STATUS]
        cork, nats = gateway._regime.cork, cast(Nats, self.link)
        self.relay = Relay(
            gateway.router,
            gateway.nodes,
            self.members,
            find,
            status,
            lines=self.lines,
            cork=cork,
            nats=nats,
            clock=clock,
        )
        self.link.on_read, self.link.leave = self.relay.read, self.relay.flush
        self.roster = Roster(
            gateway.nodes,
            self.members,
            gateway._steps,
            make_peer=self.relay.peer,
            arrived=lambda name: None,
            lost_link=gateway.router.lost_link,
            lines=self.lines,
        )


class Side(Joining):
    """One gateway: its registry, its router and its relay. Its peers are lists."""

    def __init__(
        self,
        exchange: Exchange,
        name: str,
        *,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] | None = None,
        call_timeout: float = 30.0,
        **limits: int,
    ) -> None:
        self.clock = Clock()
        super().__init__(exchange, name, clock or self.clock, timeout)
        lines = self.lines
        self.calls = Calls()
        self.nodes = Nodes(lambda node, change: None, lambda node: None, clock or self.clock)
        bounds = {"max_in_flight": 99, "max_node_in_flight": 9, "max_message_bytes": 1 << 20, **limits}
        self.router = Router(
            self.nodes,
            self.calls,
            call_timeout=call_timeout,
            max_credit_bytes=1 << 20,
            lines=lines,
            clock=clock or self.clock,
            **cast(Any, bounds),
        )
        self.here: dict[str, NodeListing] = {}
        self.status = Status(self.members.instance, self.clock)
        self.status.ready()
        self.relay = Relay(
            self.router,
            self.nodes,
            self.members,
            self.here.get,
            self.status,
            lines=lines,
            cork=Cork(),
            nats=cast(Nats, self.link),
            clock=clock or self.clock,
        )
        self.link.on_read, self.link.leave = self.relay.read, self.relay.flush
        self.roster = Roster(
            self.nodes,
            self.members,
            Steps(),
            make_peer=self.relay.peer,
            arrived=lambda name: None,
            lost_link=self.router.lost_link,
            lines=lines,
        )


class Two:
    """Two gateways: callers are at `a`, and nodes at `b`. Nothing is on its way. `together`: they are one."""

    def __init__(self, *, together: bool = False, **limits: int) -> None:
        self.exchange = Exchange()
        bounds = cast(Any, limits)
        self.a = Side(self.exchange, "a", **bounds)
        self.b = self.a if together else Side(self.exchange, "b", **bounds)
        for side in {self.a: None, self.b: None}:
            side.join()
            self.settle()

    def settle(self) -> None:
        """Deliver all mail."""
        self.exchange.settle()

    def serve(self, name: str, methods: Iterable[str], *, context: bool = False, streams: bool = False) -> NodeListing:
        """Have one more node at `b`, which `a` knows of."""
        node = NodeListing()
        node.conn_id = f"{len(self.b.here):08x}-6a51-4c1f-9d0e-2f6a3a3c8b11"
        node.leaving = False
        self.b.here[node.conn_id] = node
        served = [Served(method, encode(method), f"call:{method}", "", b"") for method in methods]
        self.b.nodes.register(node, name, served, context, streams)
        self.settle()
        return node

    def there(self, name: str) -> Node:
        """A node as `a` has it."""
        node = self.a.nodes.named(name)
        assert node is not None
        return node

    def caller(self, principal: Principal = ANONYMOUS) -> Listing:
        """One more caller at `a`."""
        caller = Listing(principal)
        caller.leaving = False
        return caller

    def ask(self, caller: Listing, text: str, batch: Batch | None = None) -> None:
        """Have a caller's request sent on, and the mail delivered."""
        message = decode(text.encode())
        self.a.router.call(caller, message, b"" + message.params, b"" + message.id, batch)
        self.settle()

    def answer(self, node: NodeListing, text: str) -> bool:
        """Have a node answer, and the mail delivered. Returns False if no call waits for that."""
        found = self.b.calls.answered(node, decode(text.encode()))
        self.settle()
        return found
