"""For test_relay_model.py: gateways that stop, die and lose NATS, and peers that note what must not be.

Each gateway has an event loop of its own, which is driven by hand, so that one can stand still while others go on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from gateway import errors
from gateway.nodes.elsewhere.remote import RemotePeer
from gateway.nodes.registry import Served
from gateway.nodes.routed import RoutedCall
from gateway.rpc.calls import Link
from gateway.rpc.jsonrpc import Message, decode, encode
from gateway.rpc.method import Refusal
from gateway.rpc.requests import Request
from tests.support.cluster import Exchange, Side
from tests.support.routing_model import HandLoop
from tests.support.rpc import Listing, NodeListing

METHODS: Final = ("m.one", "m.two")
NAMES: Final = ("attic", "cellar", "roof")
GATEWAYS: Final = 3
SILENCE: Final = 1.5
"""Seconds after which a gateway is taken for lost."""
CALL_TIMEOUT: Final = 30.0
STEP: Final = 0.125
"""Seconds that pass at once."""
OVER: Final = ("node_lost", "overloaded")
"""Errors after which, with any outcome, a call must not begin."""


class World:
    """The time that is the same for all, and what has become of each request. `wrong` has what must not be."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tags = 0
        self.asked: dict[int, Mapping[str, object]] = {}
        """The nodes at the gateway of its caller, by their connIds."""
        self.begun: dict[int, Node] = {}
        """The node that has got a request."""
        self.told: dict[int, Any] = {}
        """What its caller was told."""
        self.answers: dict[int, Any] = {}
        """What its node has answered."""
        self.wrong: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def begins(self, tag: int, node: Node) -> None:
        """A node gets a request."""
        if tag in self.begun:
            self.wrong.append(f"{tag} begins twice")
        error = self.told.get(tag, {}).get("error")
        if error is not None and (error["data"]["code"] in OVER or error["data"]["outcome"] == "not_delivered"):
            self.wrong.append(f"{tag} begins after its caller was told {error}")
        self.begun[tag] = node

    def tells(self, tag: int, reply: Any) -> None:
        """A caller gets its reply."""
        if tag in self.told:
            self.wrong.append(f"{tag} is answered twice: {self.told[tag]}, {reply}")
        self.told[tag] = reply
        error = reply.get("error")
        if error is None or "data" not in error:
            if tag not in self.answers or self.answers[tag] != (reply.get("result"), error):
                self.wrong.append(f"{tag} is answered {reply}, and its node said {self.answers.get(tag)}")
            self.outcomes["answered"] += 1
        else:
            if error["data"]["outcome"] == "not_delivered" and tag in self.begun:
                self.wrong.append(f"{tag} has begun, and its caller is told {error}")
            self.outcomes[f"{error['data']['code']} {error['data']['outcome']}"] += 1


class Caller(Listing):
    """A caller. Its ids are the tags of its requests."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.leaving = False
        self._world = world
        self._holding: dict[Link, None] = {}
        self.reports: Counter[int] = Counter()

    def send(self, payload: bytes) -> None:
        """Note a reply, or count a report."""
        message = json.loads(payload)
        if "method" in message:
            self.reports[message["params"]["id"]] += 1
            if message["params"]["id"] in self._world.told:
                self._world.wrong.append(f"a report after its reply: {message}")
        else:
            self._world.tells(message["id"], message)

    pass_on = send

    def hold_up(self, sender: Link) -> None:
        """Hold up those who answer, until it reads."""
        if sender not in self._holding:
            self._holding[sender] = None
            sender.wait()

    def read(self) -> None:
        """Read all."""
        self.link.pressed = self.link.barred = False
        holding, self._holding = self._holding, {}
        for sender in holding:
            sender.go_on()
        for request in list(self.running.values()):
            request.drained()


class Node(NodeListing):
    """A node. It notes what it has got, and answers when it is told to."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__()
        self.leaving = False
        self.conn_id = f"{number:08x}-6a51-4c1f-9d0e-2f6a3a3c8b11"
        self._world = world
        self.open: dict[bytes, int] = {}
        """The tags of what it is running, by the ids under which it has them."""

    def send(self, payload: bytes) -> None:
        """Note a request, or that one is not wanted any more."""
        message = json.loads(payload)
        if message["method"] == "rpc.cancel":
            self.open.pop(b"%d" % message["params"]["id"], None)
        else:
            tag = message["params"][0]
            if self.conn_id not in self._world.asked[tag] and not (self.is_open and self.flowing):
                self._world.wrong.append(f"{message} is written to a node that takes nothing")
            self._world.begins(tag, self)
            self.open[b"%d" % message["id"]] = tag

    pass_on = send


class Gateway:
    """One gateway, with its peers. It is `alive` until it is killed, and `stopped` while it stands still."""

    def __init__(self, world: World, exchange: Exchange, name: str) -> None:
        self.world = world
        self.loop = HandLoop()
        self.loop.now = world.now
        self.alive = True
        self.stopped = False
        self.callers: list[Caller] = []
        self.nodes: list[Node] = []
        self._lost: dict[bytes, float] = {}
        with self.loop.inside():
            self.side = Side(
                exchange,
                name,
                timeout=SILENCE,
                clock=lambda: world.now,
                call_timeout=CALL_TIMEOUT,
                max_in_flight=6,
                max_node_in_flight=4,
            )

    @property
    def runs(self) -> bool:
        """Whether it does anything now."""
        return self.alive and not self.stopped

    def turn(self) -> None:
        """Let its timers be due. A link that was ended is noticed after what has come by it."""
        if self.runs:
            self.loop.now = self.world.now
            if self.side.link.cut:
                self.read(1000)
                self.cut()
            self.loop.turn()
            self._look_at_the_lost()

    def _look_at_the_lost(self) -> None:
        """See that no call waits long for a gateway that is lost."""
        for request in [request for caller in self.callers for request in caller.running.values()]:
            assert isinstance(request, RoutedCall)
            peer = request.callee
            if isinstance(peer, RemotePeer) and not peer.is_open:
                since = self._lost.setdefault(request.request_id, self.world.now)
                if self.world.now - since > SILENCE + STEP:
                    self.world.wrong.append(f"{request.request_id!r} waits for a gateway that is lost")

    def leave(self) -> None:
        """Let its mail leave."""
        if self.runs:
            with self.loop.inside():
                self.side.relay.flush()

    def read(self, count: int) -> bool:
        """Let it read so many messages of its mail."""
        if not self.runs or not self.side.link.joined:
            return False
        with self.loop.inside():
            return self.side.link.read(count)

    def join(self) -> None:
        """Have a link to NATS again."""
        if self.alive and not self.side.link.joined:
            with self.loop.inside():
                self.side.join()

    def cut(self) -> None:
        """Lose the link to NATS, with what is on its way here."""
        if self.alive and self.side.link.joined:
            with self.loop.inside():
                self.side.lose()

    def end_link(self) -> None:
        """Let NATS end the link: it is noticed when all is read that has come by it."""
        if self.runs and self.side.link.joined:
            self.side.link.cut = True

    def go_on(self) -> None:
        """Stand still no longer. What came by a link that was ended meanwhile is read before that is noticed."""
        self.stopped = False

    def kill(self) -> None:
        """Be gone, with all its peers."""
        self.alive = False
        self.side.link.lose()
        for node in self.nodes:
            node.is_open = False

    # Peers

    def register(self, node: Node, name: str, methods: list[str]) -> None:
        """Have a node serve methods, if it may have the name."""
        served = [Served(method, encode(method), f"call:{method}", "", b"") for method in methods]
        if node.node is not None and node.node.name != name:
            return
        with self.loop.inside():
            replaced = self.side.nodes.register(node, name, served, False)
            if replaced is not None and isinstance(replaced.peer, Node):
                self.lose_node(replaced.peer)

    def lose_node(self, node: Node) -> None:
        """Lose the connection of a node."""
        node.is_open = False
        self.nodes.remove(node)
        with self.loop.inside():
            self.side.nodes.unregister(node)
            del self.side.here[node.conn_id]
            self.side.calls.lost(node)

    def lose_caller(self, caller: Caller) -> None:
        """Lose a caller: what it asked for has nobody to be told."""
        self.callers.remove(caller)
        with self.loop.inside():
            running: list[Request] = list(caller.running.values())
            for request in running:
                request.abandon()

    def ask(self, caller: Caller, method: str, name: str | None) -> None:
        """Have a request of a caller's sent on, or refused."""
        world = self.world
        world.tags += 1
        tag = world.tags
        world.asked[tag] = self.side.here
        params = b"[%d]" % tag
        with self.loop.inside():
            try:
                if name is None:
                    self.side.router.call(caller, Message("2.0", method=method), params, b"%d" % tag, None)
                else:
                    forward = self.side.router.by_node(caller, name, method, params, timeout=None, held=True)
                    forward.send(caller, b"%d" % tag, Message("2.0").traceparent, None, self.side.router.tally)
            except Refusal as refusal:
                data = {"code": refusal.error.name, **refusal.data}
                world.tells(tag, {"error": {"code": refusal.error.code, "data": data}})

    def answer(self, node: Node, which: int, error: bool) -> None:
        """Have a node answer one of its calls."""
        call_id = list(node.open)[which % len(node.open)]
        tag = node.open.pop(call_id)
        self.world.answers[tag] = (None, {"code": 7, "message": str(tag)}) if error else (tag, None)
        rest = b'"error":{"code":7,"message":"%d"}' % tag if error else b'"result":%d' % tag
        with self.loop.inside():
            self.side.calls.answered(node, decode(b'{"jsonrpc":"2.0","id":%b,%b}' % (call_id, rest)))

    def report(self, node: Node, which: int) -> None:
        """Have a node report on one of its calls."""
        call_id = list(node.open)[which % len(node.open)]
        with self.loop.inside():
            self.side.router.progress(node, call_id, b'"%s"' % (b"x" * 300))

    def flow(self, node: Node, flowing: bool) -> None:
        """Let a node take nothing more, or again."""
        node.flowing = flowing
        if flowing and node.pool is not None:
            with self.loop.inside():
                node.pool.read_on()

    def hold(self, node: Node, held: bool) -> None:
        """Let a node lose its link, or have one again."""
        node.held = errors.TRANSPORT_LOST if held else None
        with self.loop.inside():
            if node.node is not None:
                self.side.roster.altered(node.node)
        self.flow(node, not held)

    def left(self) -> list[object]:
        """What is left of all that was in flight."""
        side, left = self.side, list[object]()
        left += [caller.running for caller in self.callers if caller.running]
        left += [node.calls for node in self.nodes if node.calls]
        left += [(peer, peer.room) for peer in (*self.callers, *self.nodes) if peer.room != 1 << 20]
        left += [(node, node.link.waits) for node in self.nodes if node.link.waits]
        if len(side.calls):
            left.append(side.calls)
        for distant in side.relay._distants.values():
            for part in (distant.running, distant.peers, distant.queues, distant.paused, distant.held_bytes):
                if part:
                    left.append(part)
            if distant.member.open or distant.link.pressed:
                left.append(distant.member)
        return left
