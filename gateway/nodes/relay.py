"""Calls between gateways: takes the mail about them, runs those of other gateways here, and ends those that are there.

At the gateway of the node another gateway is a peer that calls (`distant.Distant`), so limits, deadlines, reports,
streams and answers are those of every routed call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster import natswire
from gateway.cluster.alive import Member
from gateway.cluster.members import MailHandler, Members
from gateway.cluster.nats import NO_RESPONDERS
from gateway.errors import NOT_DELIVERED, RPC_ERRORS, UNKNOWN, RpcError
from gateway.nodes.distant import REQUEST, Distant, MailError, lost_calls, numbers, verdict
from gateway.nodes.registry import Node, Served
from gateway.nodes.remote import RemotePeer
from gateway.nodes.routed import RoutedCall
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.nodes.unwritten import Here, Queue, Unwritten
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Calls
from gateway.rpc.method import Refusal
from gateway.rpc.replies import SMALL, Batch
from gateway.rpc.requests import Peer
from gateway.rpc.streams import Grant
from gateway.status import Phase, Status
from gateway.telemetry.counts import NODE_ERROR, OK, Tally
from gateway.telemetry.lines import MAIL_REFUSED, Lines

logger = logging.getLogger(__name__)

BACKSTOP: Final = 1.0
"""Seconds by which a call from elsewhere may take longer here than there, where its deadline counts."""

WITHDRAWN: Final = errors.CANCELLED._replace(message="Its own gateway has ended it")
"""Ends a call from elsewhere of which the other gateway need not be told."""

_NAMES: Final = frozenset(error.name for error in RPC_ERRORS)
_METHOD: Final = b',"method":"'


Act = Callable[[Distant, bytes, bytes], None]
"""Takes mail: who it is from, its token, and its payload. May raise MailError."""


class Wanted(NamedTuple):
    """What is called here, for how many seconds, and with which grant if it is a stream."""

    here: Here
    node: Node
    served: Served
    timeout: float
    grant: Grant | None


class Relay:
    """What the gateways of a cluster have in flight for each other. It is a watcher of ``members``.

    ``find`` returns the connection here with a connId, or None.
    `read` is to be called at the end of each read of mail. ``clock`` returns monotonic seconds.

    To the calls that it runs here it is what a `routing.Router` is to others (`routed.Routing`): it judges no size and
    logs nothing, because the caller's gateway does.
    """

    brief: Final = SMALL

    def __init__(
        self,
        router: Router,
        members: Members,
        find: Callable[[str], Here | None],
        status: Status,
        *,
        lines: Lines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: Final[Calls] = router.calls
        self.dropped: Final[Counter[str]] = router.dropped
        self.clock: Final = clock
        self.served: Final = Tally(NODE_ERROR, errors.NODE_LOST.name)
        """What became of the calls of other gateways to nodes here."""
        self.called: Final = Tally(NODE_ERROR)
        """How long calls to nodes elsewhere took that were answered there."""
        self.late: int = 0
        """How many answers to calls came that were over here."""
        self._router = router
        self._streams = Streams(router.dropped)
        self._members = members
        self._find = find
        self._status = status
        self._lines = lines
        self._peers = 0
        self._distants: dict[Member, Distant] = {}
        self._touched: dict[Queue, None] = {}
        members.watchers.append(self)
        for kind, act in (
            (b"taken", self._taken),
            # From the gateway of the caller
            (b"call", self._call),
            (b"note", self._note),
            (b"cancel", self._cancel),
            (b"credit", self._credit),
            (b"push", self._push),
            (b"finish", self._finish),
            (b"wait", self._wait),
            (b"on", self._on),
            (b"fence", self._fence),
            # From the gateway of the node
            (b"result", self._result),
            (b"error", self._error),
            (b"refused", self._refused),
            (b"ended", self._ended),
            (b"gone", self._gone),
            (b"progress", self._progress),
            (b"demand", self._demand),
            (b"stale", self._stale),
        ):
            members.on(kind, self._handler(act))
        members.on(b"unheard", self._unheard)

    def peer(self, member: Member, name: str, conn_id: str, remote: str, principal: Principal) -> RemotePeer:
        """Return the connection of a node that is connected to another gateway: the same one as long as it is known."""
        distant = self._of(member)
        peer = distant.known.get(conn_id)
        if not isinstance(peer, RemotePeer):
            self._peers += 1
            peer = RemotePeer(distant, self._peers, self.calls, conn_id=conn_id, remote=remote, principal=principal)
            distant.known[conn_id] = peer
        return peer

    def _of(self, member: Member) -> Distant:
        distant = self._distants.get(member)
        if distant is None:
            distant = Distant(member, self._members)
            if member.lost:
                distant.lose()
            else:
                self._distants[member] = distant
        return distant

    def member_joined(self, member: Member) -> None:
        """Do nothing: there is nothing in flight."""

    def member_lost(self, member: Member, cause: str) -> None:
        """End what is in flight for a member that is lost, and what is in flight there, when none of it can begin."""
        distant = self._distants.pop(member, None)
        if distant is None:
            return
        distant.lose()
        left = distant.fenced(cause, member.timeout)
        if left and distant.peers:
            asyncio.get_running_loop().call_later(left, lost_calls, distant, self.calls)
        else:
            lost_calls(distant, self.calls)

    # Mail

    def _handler(self, act: Act) -> MailHandler:
        """Return what takes mail of one kind from living members."""

        def handle(member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
            if member.lost or member is self._members.me:
                return
            distant = self._of(member)
            distant.takes(len(payload))
            try:
                act(distant, token, payload)
            except MailError as error:
                fields = {"member": member.name, "instance": member.instance, "reason": str(error)}
                self._lines.log(logger, MAIL_REFUSED, member.instance, "mail refused: %s", error, fields=fields)

        return handle

    def read(self) -> None:
        """Write what one read of mail has brought. Call it at the end of each."""
        if self._touched:
            touched, self._touched = self._touched, {}
            for queue in touched:
                queue.write()

    def _taken(self, distant: Distant, token: bytes, payload: bytes) -> None:
        (octets,) = numbers(payload, 1)
        distant.taken(octets)

    # Calls of other gateways to nodes here

    def _call(self, distant: Distant, token: bytes, payload: bytes) -> None:
        head, _, rest = payload.partition(b"\n")
        here, seconds, grant = self._where(distant, head)
        node = None if here is None else here.node
        served = None if node is None else node.methods.get(_method_of(rest))
        if here is None or node is None or served is None or self._status.phase is Phase.DRAINING:
            distant.tell(b"gone", b"", token)
            return
        try:
            self._begin(distant, token, Wanted(here, node, served, seconds + BACKSTOP, grant), rest)
        except Refusal as refusal:
            told = jsonrpc.error_object(refusal.error, refusal.detail, **refusal.data)
            distant.tell(b"refused", verdict(refusal.error.name, NOT_DELIVERED, told), token)

    def _where(self, distant: Distant, head: bytes) -> tuple[Here | None, float, Grant | None]:
        """Return what the first line of a call says: its node, its time in seconds, and the grant of a stream."""
        words = head.split(b" ")
        if len(words) not in {3, 5}:
            raise MailError(f"not the first line of a call: {head[: jsonrpc.MAX_DETAIL]!r}")
        conn_id, distant.fence, *rest = words
        milliseconds, *granted = numbers(b",".join(rest), len(rest))
        return self._find(conn_id.decode("ascii", "replace")), milliseconds / 1000, Grant(*granted) if granted else None

    def _begin(self, distant: Distant, token: bytes, wanted: Wanted, rest: bytes) -> None:
        """Enter a call into the tables, and have it written at the end of the read. Raises Refusal, as the router."""
        here, node, served, timeout, grant = wanted
        if here.link.barred:
            raise self._router.unread(node)
        if len(here.calls) >= self._router.max_node_in_flight:
            raise self._router.busy(node)
        opening = None if grant is None else self._router.opening(distant, node, grant)
        if opening is not None:
            rest = rest[:-1] + opening.member + b"}"
        call_id, now = self.calls.new_id(), self.clock()
        text = b"".join((REQUEST, call_id, rest))
        if self._router.overflows((text,)):
            raise self._router.too_large(node)
        slot = self.calls.slot(timeout)
        call = RoutedCall(call_id, slot, node, served, distant, token, None, self.served, self, None, now, timeout)
        if opening is not None:
            call = opening.call(call)
        self.calls.enter(call)
        distant.running[token] = call
        self._enqueue(distant, here, call_id, Unwritten(call, text))

    def _enqueue(self, distant: Distant, here: Here, key: Hashable, unwritten: Unwritten) -> None:
        queue = distant.queues.get(here)
        if queue is None:
            queue = distant.queues[here] = Queue(distant, here, self._members.is_fresh, self.dropped)
        assert isinstance(queue, Queue)
        queue.entries[key] = unwritten
        self._touched[queue] = None

    def _note(self, distant: Distant, token: bytes, payload: bytes) -> None:
        head, _, text = payload.partition(b"\n")
        here = self._where(distant, head)[0]
        if here is None or here.link.barred:
            self.dropped["notification"] += 1
        else:
            self._enqueue(distant, here, object(), Unwritten(None, text))

    def _cancel(self, distant: Distant, token: bytes, payload: bytes) -> None:
        request = distant.running.get(token)
        if request is not None:
            request.cancel(WITHDRAWN)

    def _credit(self, distant: Distant, token: bytes, payload: bytes) -> None:
        grant = Grant(*numbers(payload, 2))
        unwritten = self._unwritten(distant, token)
        if unwritten is not None:
            unwritten.granted(grant)
        else:
            self._streams.credit(distant, token, grant)

    def _push(self, distant: Distant, token: bytes, payload: bytes) -> None:
        self._streams.push(distant, token, payload)

    def _finish(self, distant: Distant, token: bytes, payload: bytes) -> None:
        unwritten = self._unwritten(distant, token)
        if unwritten is not None:
            unwritten.finished = True
        else:
            self._streams.push(distant, token, None)

    def _unwritten(self, distant: Distant, token: bytes) -> Unwritten | None:
        """Return a call that its node has not been sent yet; None if it has."""
        self.read()
        call = distant.running.get(token) if distant.queues else None
        queue = distant.queues.get(call.callee) if isinstance(call, RoutedCall) else None
        return queue.entries.get(call.call_id) if isinstance(call, RoutedCall) and isinstance(queue, Queue) else None

    def _wait(self, distant: Distant, token: bytes, payload: bytes) -> None:
        conn_id = payload.decode("ascii", "replace")
        here = self._find(conn_id)
        if here is not None and conn_id not in distant.paused:
            distant.paused[conn_id] = here
            here.wait()

    def _on(self, distant: Distant, token: bytes, payload: bytes) -> None:
        paused = distant.paused.pop(payload.decode("ascii", "replace"), None)
        if paused is not None:
            paused.go_on()

    def _fence(self, distant: Distant, token: bytes, payload: bytes) -> None:
        """Go on with what is still wanted. If the other gateway has heard nothing new either, ask again in a while."""
        distant.fence, distant.asked = payload, False
        if self._members.is_fresh(payload):
            for queue in list(distant.queues.values()):
                queue.write()

    # What the calls of other gateways need of their router

    def overflows(self, parts: tuple[bytes | Raw, ...]) -> bool:
        """Return False: the caller's gateway makes the message."""
        return False

    def unfit(self, caller: Peer, parts: tuple[bytes | Raw, ...], batch: Batch | None) -> RpcError | None:
        """Return None, for the same reason."""
        return None

    def failed(self, call: RoutedCall, error: RpcError, reason: str) -> bytes:
        """Return what the caller's gateway is told of a call that the node has not answered. Tells the node."""
        distant = call.caller
        assert isinstance(distant, Distant)
        queue = distant.queues.get(call.callee)
        if isinstance(queue, Queue) and queue.drop(call.call_id):
            error = errors.NODE_NOT_REACHED if error is errors.NODE_LOST else error
            detail, outcome = f"{call.node.name}: {call.served.name}", NOT_DELIVERED
        else:
            detail, outcome = self._router.verdict(call, error)
        if error is WITHDRAWN or not distant.is_open:
            return b""
        told = jsonrpc.error_object(error, detail, outcome=outcome)
        return b"%b %b" % (call.request_id, verdict(error.name, outcome, told))

    # Calls to nodes at other gateways

    def _take(self, distant: Distant, token: bytes) -> tuple[RoutedCall, RemotePeer] | None:
        """Return a call to a node there that is over now; None if it was over before."""
        call_id, _, number = token.partition(b"-")
        peer = distant.peers.get(number)
        call = None if peer is None else self.calls.take(peer, call_id)
        if not isinstance(peer, RemotePeer) or not isinstance(call, RoutedCall):
            self.late += 1
            return None
        return call, peer

    def _result(self, distant: Distant, token: bytes, payload: bytes) -> None:
        call = self._answered(distant, token, OK)
        if call is not None:
            call.answered(Raw(payload))
            call.callee.settled()

    def _error(self, distant: Distant, token: bytes, payload: bytes) -> None:
        call = self._answered(distant, token, NODE_ERROR)
        if call is not None:
            call.refused(Raw(payload))
            call.callee.settled()

    def _answered(self, distant: Distant, token: bytes, outcome: str) -> RoutedCall | None:
        found = self._take(distant, token)
        if found is None:
            return None
        self.called.ended(outcome, self.clock() - found[0].begun)
        return found[0]

    def _refused(self, distant: Distant, token: bytes, payload: bytes) -> None:
        name, _, error = _verdict_of(payload)
        found = self._take(distant, token)
        if found is not None:
            call, peer = found
            call.over(name, b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (call.request_id, error))
            peer.settled()

    def _ended(self, distant: Distant, token: bytes, payload: bytes) -> None:
        name, outcome, error = _verdict_of(payload)
        found = self._take(distant, token)
        if found is not None:
            call, peer = found
            call.over(name, self._router.ended_elsewhere(call, name, outcome, error))
            peer.settled()

    def _gone(self, distant: Distant, token: bytes, payload: bytes) -> None:
        found = self._take(distant, token)
        if found is not None:
            call, peer = found
            call.failed(errors.NODE_NOT_REACHED)
            peer.settled()

    def _progress(self, distant: Distant, token: bytes, payload: bytes) -> None:
        call_id, _, number = token.partition(b"-")
        peer = distant.peers.get(number)
        if peer is not None:
            self._router.progress(peer, call_id, payload)

    def _demand(self, distant: Distant, token: bytes, payload: bytes) -> None:
        call_id, _, number = token.partition(b"-")
        grant, peer = Grant(*numbers(payload, 2)), distant.peers.get(number)
        if peer is not None:
            self._streams.demand(peer, call_id, grant)

    def _stale(self, distant: Distant, token: bytes, payload: bytes) -> None:
        """Say that what waits there is still wanted: what is not was withdrawn before."""
        distant.tell(b"fence", distant.beat)

    def _unheard(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """End a call that was not delivered, because NATS has no subscriber to it. Its member is lost."""
        if member is not self._members.me or natswire.status(headers) != NO_RESPONDERS:
            return
        call_id, _, number = token.partition(b"-")
        for distant in list(self._distants.values()):
            peer = distant.peers.get(number)
            if isinstance(peer, RemotePeer):
                peer.unheard(call_id)
                self._members.unreachable(distant.member)


def _method_of(rest: bytes) -> str:
    """Return the method of a call, of which this is what comes after its id. Raises MailError if there is none."""
    begin = len(_METHOD)
    end = rest.find(b'"', begin)
    name = rest[begin:end]
    if b"\\" not in name and end > 0 and rest.startswith(_METHOD):
        return name.decode("utf-8", "replace")
    message = jsonrpc.decoded(b"%b0%b" % (REQUEST, rest))
    if message is None:
        raise MailError(f"not a call: {rest[: jsonrpc.MAX_DETAIL]!r}")
    return message.method


def _verdict_of(payload: bytes) -> tuple[str, str, bytes]:
    """Return the name of an error, its outcome, and its object. Raises MailError if they are anything else."""
    head, _, error = payload.partition(b"\n")
    name, _, outcome = head.decode("ascii", "replace").partition(" ")
    if name not in _NAMES or outcome not in {NOT_DELIVERED, UNKNOWN} or error[:1] != b"{":
        raise MailError(f"not a verdict: {payload[: jsonrpc.MAX_DETAIL]!r}")
    return name, outcome, error
