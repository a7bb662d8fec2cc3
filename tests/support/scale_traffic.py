"""What the gateways of a cluster say to each other, counted: real members, rosters and relays over a NATS of the test.

Time is the event loop's own, which jumps to the next timer. So a minute of a hundred gateways takes some seconds, and
the same numbers come out on any machine.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple

from gateway.auth.scopes import Principal
from gateway.nodes.registry import Served
from gateway.rpc.jsonrpc import decode
from tests.support.cluster import Exchange, ExchangeLink, Parcel, Side
from tests.support.roster import described
from tests.support.rpc import Listing, NodeListing

DELAY: Final = 0.0005
"""Seconds until a message has arrived."""
MEMBER_TIMEOUT: Final = 1.5
"""The default of `cluster.member_timeout`."""
SETTLED: Final = 3.0
"""Seconds after which all gateways know each other."""
NODE: Final = Principal("kitchen-pi", "node", ("serve:>", "share:>", "publish:kitchen-pi.>"))
"""The principal of each node."""
HANDLE: Final = len("12 ")
"""Bytes of a subscription's handle in what NATS delivers."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        insides: Any = self  # asyncio's selector has no public name
        self._poll = insides._selector.select
        insides._selector.select = self._jump

    def time(self) -> float:
        """Return the seconds that have passed since its beginning."""
        return self._now

    def _jump(self, timeout: float | None = None) -> Any:
        self._now += timeout or 0.0
        return self._poll(0)


def run(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario on a loop of that kind, and return what it returns."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scenario())


class Traffic(NamedTuple):
    """Messages to NATS and from it, and their bytes with NATS's own around them: of all gateways together."""

    published: int
    published_bytes: int
    delivered: int
    delivered_bytes: int

    def per(self, count: float) -> tuple[float, ...]:
        """Return the four, divided."""
        return tuple(one / count for one in self)


class Net(Exchange):
    """An exchange that delivers by itself, and counts: the messages of each kind, and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.published: Counter[str] = Counter()
        self.published_bytes: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.delivered_bytes: Counter[str] = Counter()
        self._routes: dict[bytes, list[ExchangeLink]] = {}

    def publish(self, sender: ExchangeLink, parcel: Parcel) -> None:
        """See `Exchange`."""
        words = parcel.subject.split(b".")
        kind = (words[3] if words[1] == b"to" else words[1]).decode()
        size = len(parcel.payload) + len(parcel.subject) + len(parcel.reply) + len(b"%d" % len(parcel.payload))
        around = len("PUB   \r\n\r\n") + bool(parcel.reply)
        self.published[kind] += 1
        self.published_bytes[kind] += size + around
        heard = self._heard(b".".join(words[:3]), parcel.subject)
        self.delivered[kind] += len(heard)
        self.delivered_bytes[kind] += (size + around + HANDLE) * len(heard)
        for link in heard:
            self._arrive(link, parcel)
        if parcel.reply and not heard:
            self._arrive(sender, Parcel(parcel.reply, b"", b"NATS/1.0 503\r\n\r\n", b""))

    def _arrive(self, link: ExchangeLink, parcel: Parcel) -> None:
        if not link.arrived:
            asyncio.get_running_loop().call_later(DELAY, link.read)
        link.arrived.append(parcel)

    def _heard(self, start: bytes, subject: bytes) -> list[ExchangeLink]:
        """Return who has subscribed. All mail to one member goes the same way."""
        heard = self._routes.get(start)
        if heard is None:
            heard = self._routes[start] = [link for link in self.links if link.joined and link.handlers_of(subject)]
        return heard

    def joined(self) -> None:
        """Note that there are other subscriptions."""
        self._routes.clear()

    def total(self, *kinds: str) -> Traffic:
        """Return what has been counted: of these kinds, or of all."""
        counters = self.published, self.published_bytes, self.delivered, self.delivered_bytes
        return Traffic(*(sum(one[kind] for kind in kinds or one) for one in counters))


class Fleet:
    """Gateways that know each other."""

    def __init__(self, count: int) -> None:
        self.net = Net()
        clock = asyncio.get_running_loop().time
        self.sides = [
            Side(self.net, f"192.0.2.{number}:8765", timeout=MEMBER_TIMEOUT, clock=clock) for number in range(count)
        ]

    def join(self, sides: Iterable[Side] | None = None) -> None:
        """Have a link to NATS."""
        for side in self.sides if sides is None else sides:
            side.join()
            self.net.joined()

    async def settle(self) -> None:
        """Wait until all know each other. What was said so far is not counted."""
        await asyncio.sleep(SETTLED)
        living = [side for side in self.sides if side.members.address]
        assert all(len(side.members.others) == len(living) - 1 for side in living), "they do not know each other"
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        net = self.net
        for counter in (net.published, net.published_bytes, net.delivered, net.delivered_bytes):
            counter.clear()

    def register(self, side: Side, name: str, methods: int) -> NodeListing:
        """Have a node at one of them."""
        peer = NodeListing(NODE)
        peer.conn_id = f"{len(side.here):08x}-6a51-4c1f-9d0e-2f6a3a3c8b11"
        peer.remote = "203.0.113.100:54321"
        peer.leaving = False
        side.here[peer.conn_id] = peer
        side.nodes.register(peer, name, methods_of(name, methods), context=False)
        return peer


def methods_of(name: str, count: int) -> list[Served]:
    """Return methods as a node of this name may have them, of 30 characters with a summary of 40 and no schema."""
    names = [f"{name}.method{number:02}".ljust(30, "x") for number in range(count)]
    return [described(one, "What it does, in a short sentence here.") for one in names]


def node_name(number: int) -> str:
    """Return the name of a node, of 12 characters."""
    return f"node-{number:07}"


async def heartbeats(members: int, seconds: float = 30.0, *, busy: bool = False) -> Fleet:
    """Let so many gateways be there. With `busy` each of them has calls open to each other one."""
    fleet = Fleet(members)
    fleet.join()
    await fleet.settle()
    if busy:
        for side in fleet.sides:
            for other in side.members.others.values():
                side.members.busy(other)
    await asyncio.sleep(seconds)
    return fleet


async def registration(members: int, methods: int) -> dict[str, Traffic]:
    """Let a node come, lose its link, come back, and go."""
    fleet = Fleet(members)
    fleet.join()
    await fleet.settle()
    side, found = fleet.sides[0], dict[str, Traffic]()
    peer = fleet.register(side, node_name(0), methods)
    found["comes"] = fleet.net.total("roster")
    fleet.forget()
    side.roster.altered(next(iter(side.nodes.after(""))))
    found["loses its link"] = fleet.net.total("roster")
    fleet.forget()
    side.nodes.unregister(peer)
    found["goes"] = fleet.net.total("roster")
    return found


async def newcomer(members: int, nodes: int, methods: int) -> Traffic:
    """Let one more gateway come, when each has so many nodes."""
    fleet = Fleet(members + 1)
    *old, new = fleet.sides
    fleet.join(old)
    await fleet.settle()
    for at, side in enumerate(old):
        for number in range(nodes):
            fleet.register(side, node_name(at * nodes + number), methods)
    await asyncio.sleep(1.0)
    fleet.forget()
    fleet.join([new])
    while not new.roster.is_known:
        await asyncio.sleep(0.01)
    assert len(new.nodes) == members * nodes
    return fleet.net.total("roster", "snapshot")


async def calls(count: int, size: int) -> Traffic:
    """Call a node at another gateway so many times, with parameters and results of so many bytes."""
    fleet = Fleet(2)
    fleet.join()
    await fleet.settle()
    here, there = fleet.sides
    node = fleet.register(there, node_name(0), 1)
    await asyncio.sleep(0.1)
    fleet.forget()
    (method,) = (served.name for served in methods_of(node_name(0), 1))
    text = '"' + "x" * (size - 2) + '"'
    caller = Listing(Principal("op", "operator", ("call:>",)))
    caller.leaving = False
    for number in range(count):
        request = decode(f'{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":[{text}]}}'.encode())
        here.router.call(caller, request, b"" + request.params, b"" + request.id, None)
        await asyncio.sleep(2 * DELAY)
        call_id = decode(node.sent[-1]).id
        there.calls.answered(node, decode(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (call_id, text.encode())))
        await asyncio.sleep(2 * DELAY)
    assert len(caller.sent) == count
    return fleet.net.total("call", "result")
