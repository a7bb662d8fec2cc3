"""Calls between gateways: takes the mail about them, and runs those of other gateways here.

At the gateway of the node another gateway is a peer that calls (`distant.Distant`), so limits, deadlines, reports,
streams and answers are those of every routed call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster import natswire
from gateway.cluster.alive import LOOKS, Member
from gateway.cluster.members import MailHandler, Members
from gateway.cluster.nats import NO_RESPONDERS, Nats
from gateway.errors import NOT_DELIVERED, RpcError
from gateway.nodes.elsewhere.answers import Act, Answers
from gateway.nodes.elsewhere.distant import (
    CALL,
    COST,
    REQUEST,
    RESULT,
    SAID,
    SEPARATOR,
    Distant,
    MailError,
    lost_calls,
    numbers,
    verdict,
)
from gateway.nodes.elsewhere.remote import RemotePeer
from gateway.nodes.elsewhere.unwritten import Entry, Here, Queue, Unwritten, Writer
from gateway.nodes.registry import Node, Nodes, Served
from gateway.nodes.routed import RoutedCall
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc import jsonrpc
from gateway.rpc.jsonrpc import ABSENT, Message
from gateway.rpc.method import Refusal
from gateway.rpc.replies import SMALL, Batch
from gateway.rpc.requests import Peer
from gateway.rpc.streams import Grant
from gateway.status import Phase, Status
from gateway.telemetry.counts import Tally
from gateway.telemetry.lines import MAIL_REFUSED, Lines
from gateway.websocket.outbox import Cork

logger = logging.getLogger(__name__)

BACKSTOP: Final = 1.0
"""Seconds by which a call from elsewhere may take longer here than there, where its deadline counts."""

KNOWN: Final = 1000
"""How many descriptions of what is called are remembered at most."""

WITHDRAWN: Final = errors.CANCELLED._replace(message="Its own gateway has ended it")
"""Ends a call from elsewhere of which the other gateway need not be told."""

_decode_name: Final = msgspec.json.Decoder(str).decode


class Wanted(NamedTuple):
    """What is called here, for how many seconds, and with which grant if it is a stream."""

    here: Here
    node: Node
    served: Served
    timeout: float
    grant: Grant | None


class Relayed(RoutedCall, eq=False, gc=False):
    """A call from elsewhere, in flight to a node here. Its ``request_id`` is the token of its own gateway."""

    def answered(self, message: Message) -> None:
        """Tell its gateway the node's answer."""
        if self.report:
            super().answered(message)
            return
        distant = cast(Distant, self.caller)
        # Copies: what was read is not kept until the mail leaves.
        if message.error is ABSENT:
            distant.put(RESULT, self.request_id, b"" + message.result)
        else:
            distant.put(SAID, b"error", self.request_id, b"" + message.error)
        del distant.running[self.request_id]
        if distant.link.pressed:
            distant.hold_up(self.node.peer.link)


class Relay:
    """What the gateways of a cluster have in flight for each other. It is a watcher of ``members``.

    ``find`` returns the connection here with a connId, or None. A member whose own timeout is no longer is lost after
    ``timeout`` seconds of silence. `read` is to be called at the end of each read of mail. ``cork`` is that of the
    connections, and ``nats`` what mail leaves by. ``clock`` returns monotonic seconds.

    To the calls that it runs here it is what a `routing.Router` is to others (`routed.Routing`): it judges no size and
    logs nothing, because the caller's gateway does.
    """

    brief: Final = SMALL
    corked_bytes: Final = 0

    def __init__(
        self,
        router: Router,
        nodes: Nodes,
        members: Members,
        find: Callable[[str], Here | None],
        status: Status,
        *,
        timeout: float,
        lines: Lines,
        cork: Cork,
        nats: Nats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: Final = router.calls
        self.dropped: Final = router.dropped
        self.clock: Final = clock
        self._router = router
        self._nodes = nodes
        self._streams = Streams(router.dropped)
        self._members = members
        self._find = find
        self._status = status
        self._timeout = timeout
        self._lines = lines
        self._cork = cork
        self._nats = nats
        self._uncounted = Tally(errors.NODE_LOST.name)
        """What becomes of calls from elsewhere. Their own gateways count that."""
        self.answers: Final = Answers(router, self._streams)
        self._writer = Writer(members.is_fresh, router.dropped)
        self._peers = 0
        self._distants: dict[Member, Distant] = {}
        self._packing: dict[Distant, None] = {}
        self._staged: dict[tuple[Distant, Here], list[Entry]] = {}
        self._reading = False
        self._wanted: dict[bytes, Wanted] = {}
        self._version = nodes.version
        members.watchers.append(self)
        self._acts: dict[bytes, Act] = {
            **self.answers.acts,
            b"cancel": self._cancel,
            b"credit": self._credit,
            b"push": self._push,
            b"finish": self._finish,
        }
        self._take_mail()

    def _take_mail(self) -> None:
        for kind, act in (
            (CALL, self._begin),
            (RESULT, self.answers.results),
            (SAID, self._tell),
            (b"taken", self._taken),
            (b"wait", self._wait),
            (b"on", self._on),
            (b"stale", self._stale),
            (b"fence", self._fence),
        ):
            self._members.on(kind, self._handler(act))
        self._members.on(b"unheard", self._unheard)

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
            distant = Distant(member, self._members, self)
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
        left = distant.fenced(cause, self._timeout * member.looks / LOOKS)
        if left and distant.peers:
            asyncio.get_running_loop().call_later(left, lost_calls, distant, self.calls)
        else:
            lost_calls(distant, self.calls)

    # Mail

    def _handler(self, act: Callable[[Distant, bytes], None]) -> MailHandler:
        """Return what takes mail of one kind from living members."""
        distants = self._distants

        def handle(member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
            distant = distants.get(member)
            if distant is None:
                if member is self._members.me:
                    return
                distant = self._of(member)
            if not self._reading:
                self._reading = True
                self._cork.begin_mail()
            distant.taken += len(payload) + COST
            if distant.taken >= distant.due:
                distant.tell_taken()
            try:
                act(distant, payload)
            except MailError as error:
                self._refuse(member, error)

        return handle

    def _refuse(self, member: Member, error: MailError) -> None:
        fields = {"member": member.name, "instance": member.instance, "reason": str(error)}
        self._lines.log(logger, MAIL_REFUSED, member.instance, "mail refused: %s", error, fields=fields)

    def read(self) -> None:
        """Write what one read of mail has brought. Call it at the end of each."""
        self._write()
        if self._reading:
            self._reading = False
            self._cork.end_mail()

    def cork(self, distant: Distant) -> None:
        """Have what is packed leave with what is sent to connections."""
        if not self._packing:
            self._cork.add(self)
        self._packing[distant] = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, for the cork."""
        return asyncio.get_running_loop()

    def flush(self) -> None:
        """Let all leave that is packed."""
        nats, packing = self._nats, self._packing
        nats.by_hand = True
        try:
            while packing:
                packing.popitem()[0].leave()
        finally:
            nats.draw()

    def _tell(self, distant: Distant, payload: bytes) -> None:
        """Take a pack of what is said of calls."""
        fields = payload.split(SEPARATOR)
        if len(fields) % 3:
            raise MailError(f"not kinds, tokens and what is said: {payload[: jsonrpc.MAX_DETAIL]!r}")
        parts = iter(fields)
        for kind, token, said in zip(parts, parts, parts, strict=True):
            act = self._acts.get(kind)
            if act is not None:  # otherwise it is of a later release
                try:
                    act(distant, token, said)
                except MailError as error:
                    self._refuse(distant.member, error)

    def _taken(self, distant: Distant, payload: bytes) -> None:
        (octets,) = numbers(payload, 1)
        distant.took(octets)

    def _unheard(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """End calls that were not delivered, because NATS has no subscriber to them. Their member is lost."""
        if member is not self._members.me or natswire.status(headers) != NO_RESPONDERS:
            return
        number = token.partition(b"-")[2]
        for distant in list(self._distants.values()):
            if number in distant.peers:
                distant.unheard_from(token)
                self._members.unreachable(distant.member)

    # Calls of other gateways to nodes here

    def _begin(self, distant: Distant, payload: bytes) -> None:
        """Enter a pack of calls into the tables, and have them written at the end of the read."""
        distant.fence, *fields = payload.split(SEPARATOR)
        if len(fields) % 3:
            raise MailError(f"not tokens and calls: {payload[: jsonrpc.MAX_DETAIL]!r}")
        version = self._nodes.version
        if self._version != version or len(self._wanted) > KNOWN or self._status.phase is Phase.DRAINING:
            self._version = version
            self._wanted.clear()
        router, new_id, now = self._router, self.calls.new_id, self.clock()
        most, roomy, running, staged = router.max_node_in_flight, router.roomy, distant.running, self._staged
        parts = iter(fields)
        for token, where, rest in zip(parts, parts, parts, strict=True):
            wanted = self._wanted.get(where)
            if wanted is None or not token or len(rest) > roomy:
                self._begin_other(distant, token, where, rest)
                continue
            here, node, served, timeout, _ = wanted
            calls = here.calls
            if here.link.barred or len(calls) >= most:
                self._begin_other(distant, token, where, rest)
                continue
            call_id, slot = new_id(), self.calls.slot(timeout)
            call = Relayed(call_id, slot, node, served, distant, token, None, self._uncounted, self, None, now, timeout)
            calls[call_id] = call  # as Calls.enter() does
            slot[call] = None
            running[token] = call
            entry = call, b"".join((REQUEST, call_id, rest))
            entries = staged.get((distant, here))
            if entries is None:
                staged[distant, here] = [entry]
            else:
                entries.append(entry)

    def _begin_other(self, distant: Distant, token: bytes, where: bytes, rest: bytes) -> None:
        """Do the same for one call of any kind, or a notification. It is refused if the node cannot be called."""
        if not token:
            here = self._find(where.decode("ascii", "replace"))
            if here is None or here.link.barred:
                self.dropped["notification"] += 1
            else:
                self._stage(distant, here, (None, rest))
            return
        wanted = None if self._status.phase is Phase.DRAINING else self._resolve(where)
        if wanted is None:
            distant.put(SAID, b"gone", token, b"")
            return
        try:
            self._enter(distant, token, wanted, rest)
        except Refusal as refusal:
            told = jsonrpc.error_object(refusal.error, refusal.detail, **refusal.data)
            distant.put(SAID, b"refused", token, verdict(refusal.error.name, NOT_DELIVERED, told))

    def _resolve(self, where: bytes) -> Wanted | None:
        """Return what a call is for: None if that is not served here. What is no stream is remembered."""
        words = where.split(b" ")
        try:
            conn_id, method = words[0].decode(), _decode_name(words[1])
        except (IndexError, ValueError):
            raise MailError(f"not what is called: {where[: jsonrpc.MAX_DETAIL]!r}") from None
        milliseconds, *granted = numbers(b",".join(words[2:]), 3 if len(words) > 3 else 1)
        here = self._find(conn_id)
        node = None if here is None else here.node
        served = None if node is None else node.methods.get(method)
        if here is None or node is None or served is None:
            return None
        grant = Grant(*granted) if granted else None
        wanted = Wanted(here, node, served, milliseconds / 1000 + BACKSTOP, grant)
        if grant is None:
            self._wanted[where] = wanted
        return wanted

    def _enter(self, distant: Distant, token: bytes, wanted: Wanted, rest: bytes) -> None:
        """Enter a call into the tables. Raises Refusal, as the router does."""
        here, node, served, timeout, grant = wanted
        if here.link.barred:
            raise self._router.unread(node)
        if len(here.calls) >= self._router.max_node_in_flight:
            raise self._router.busy(node)
        opening = None if grant is None else self._router.opening(distant, node, grant)
        if opening is not None:
            rest = rest[:-1] + opening.member + b"}"
        call_id, slot, now = self.calls.new_id(), self.calls.slot(timeout), self.clock()
        text = b"".join((REQUEST, call_id, rest))
        if self._router.overflows((text,)):
            raise self._router.too_large(node)
        arguments = call_id, slot, node, served, distant, token, None, self._uncounted, self, None, now, timeout
        call = Relayed(*arguments) if opening is None else opening.call(RoutedCall(*arguments))
        self.calls.enter(call)
        distant.running[token] = call
        self._stage(distant, here, (call, text))

    def _stage(self, distant: Distant, here: Here, entry: Entry) -> None:
        self._staged.setdefault((distant, here), []).append(entry)

    def _write(self) -> None:
        """Write what has been read so far."""
        if self._staged:
            staged, self._staged = self._staged, {}
            for (distant, here), entries in staged.items():
                self._writer.write(distant, here, entries)

    def _cancel(self, distant: Distant, token: bytes, said: bytes) -> None:
        request = distant.running.get(token)
        if request is not None:
            request.cancel(WITHDRAWN)

    def _credit(self, distant: Distant, token: bytes, said: bytes) -> None:
        grant = Grant(*numbers(said, 2))
        unwritten = self._unwritten(distant, token)
        if unwritten is not None:
            unwritten.granted(grant)
        else:
            self._streams.credit(distant, token, grant)

    def _push(self, distant: Distant, token: bytes, said: bytes) -> None:
        self._streams.push(distant, token, said)

    def _finish(self, distant: Distant, token: bytes, said: bytes) -> None:
        unwritten = self._unwritten(distant, token)
        if unwritten is not None:
            unwritten.finished = True
        else:
            self._streams.push(distant, token, None)

    def _unwritten(self, distant: Distant, token: bytes) -> Unwritten | None:
        """Return a call that its node has not been sent yet, and that has to wait; None if it has."""
        self._write()
        call = distant.running.get(token) if distant.queues else None
        queue = distant.queues.get(call.callee) if isinstance(call, RoutedCall) else None
        return queue.entries.get(call.call_id) if isinstance(call, RoutedCall) and isinstance(queue, Queue) else None

    def _wait(self, distant: Distant, payload: bytes) -> None:
        conn_id = payload.decode("ascii", "replace")
        here = self._find(conn_id)
        if here is not None and conn_id not in distant.paused:
            distant.paused[conn_id] = here
            here.wait()

    def _on(self, distant: Distant, payload: bytes) -> None:
        paused = distant.paused.pop(payload.decode("ascii", "replace"), None)
        if paused is not None:
            paused.go_on()

    def _stale(self, distant: Distant, payload: bytes) -> None:
        """Say that what waits there is still wanted: what is not was withdrawn before."""
        distant.tell(b"fence", distant.beat)

    def _fence(self, distant: Distant, payload: bytes) -> None:
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
        distant = cast(Distant, call.caller)
        if self._withdrawn(distant, call):
            error = errors.NODE_NOT_REACHED if error is errors.NODE_LOST else error
            detail, outcome = f"{call.node.name}: {call.served.name}", NOT_DELIVERED
        else:
            detail, outcome = self._router.verdict(call, error)
        if error is WITHDRAWN or not distant.is_open:
            return b""
        told = jsonrpc.error_object(error, detail, outcome=outcome)
        return b"%b %b" % (call.request_id, verdict(error.name, outcome, told))

    def _withdrawn(self, distant: Distant, call: RoutedCall) -> bool:
        """Return whether the node has not been sent a call, which it never will be now."""
        queue = distant.queues.get(call.callee)
        if isinstance(queue, Queue) and queue.drop(call.call_id):
            return True
        for entries in self._staged.values():
            for entry in entries:
                if entry[0] is call:
                    entries.remove(entry)
                    return True
        return False
