"""Calls of other gateways to nodes here.

At the gateway of the node another gateway is a peer that calls (`distant.Distant`), so limits, deadlines, reports,
streams and answers are those of every routed call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec import Raw

from gateway import errors
from gateway.errors import NOT_DELIVERED, RpcError
from gateway.nodes.elsewhere.answers import Act
from gateway.nodes.elsewhere.distant import Distant
from gateway.nodes.elsewhere.mail import REQUEST, RESULT, SAID, SEPARATOR, MailError, numbers, verdict
from gateway.nodes.elsewhere.unwritten import Entry, Here, Queue, Unwritten, Writer
from gateway.nodes.registry import Node, Nodes, Served
from gateway.nodes.routed import RoutedCall
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call
from gateway.rpc.method import Refusal
from gateway.rpc.replies import SMALL, Batch
from gateway.rpc.requests import Peer
from gateway.rpc.streams import Grant
from gateway.status import Phase, Status
from gateway.telemetry.counts import Tally

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

    def answered(self, result: Raw) -> None:
        """Tell its gateway the node's result."""
        if self.report:
            super().answered(result)
            return
        distant: Any = self.caller
        copy = b"" + result  # what was read is not kept until the mail leaves
        distant.put(RESULT, (self.request_id, copy))
        del distant.running[self.request_id]
        if distant.link.pressed:
            distant.hold_up(self.node.peer.link)


class Incoming:
    """Runs here what other gateways call, and tells them what becomes of it.

    ``find`` returns the connection here with a connId, or None. ``is_fresh`` is that of the members. ``streams`` is
    what peers have, too, and ``refuse`` takes mail that no gateway sends. ``clock`` returns monotonic seconds.

    To these calls it is what a `routing.Router` is to others (`routed.Routing`): it judges no size and logs nothing,
    because the caller's gateway does.
    """

    brief: Final = SMALL

    def __init__(
        self,
        router: Router,
        nodes: Nodes,
        find: Callable[[str], Here | None],
        status: Status,
        streams: Streams,
        *,
        is_fresh: Callable[[bytes], bool],
        refuse: Callable[[Distant, MailError], None],
        clock: Callable[[], float],
    ) -> None:
        self.calls: Final = router.calls
        self.dropped: Final = router.dropped
        self.clock: Final = clock
        self._router = router
        self._nodes = nodes
        self._find = find
        self._status = status
        self._streams = streams
        self._is_fresh = is_fresh
        self._refuse = refuse
        self._uncounted = Tally(errors.NODE_LOST.name)
        """What becomes of calls from elsewhere. Their own gateways count that."""
        self._writer = Writer(is_fresh, router.dropped)
        self._staged: dict[tuple[Distant, Here], list[Entry]] = {}
        self._wanted: dict[bytes, Wanted] = {}
        self._version = nodes.version
        self.acts: Final[dict[bytes, Act]] = {
            b"cancel": self._cancel,
            b"credit": self._credit,
            b"push": self._push,
            b"finish": self._finish,
        }
        """What is said of these calls."""

    def begin(self, distant: Distant, payload: bytes) -> None:
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
        parts, slot_of, wanted_at = iter(fields), self.calls.slot, self._wanted.get
        limit: float | None = None
        slot: dict[Call, None] = {}
        receiver: Here | None = None
        entries: list[Entry] = []
        for token, where, rest in zip(parts, parts, parts, strict=True):
            wanted = wanted_at(where)
            if wanted is None or not token or len(rest) > roomy:
                self._begin_other(distant, token, where, rest)
                continue
            here, node, served, timeout, _ = wanted
            calls = here.calls
            if here.link.barred or len(calls) >= most:
                self._begin_other(distant, token, where, rest)
                continue
            if timeout != limit:  # most calls of a pack have the same
                limit, slot = timeout, slot_of(timeout)
            call_id = new_id()
            call = Relayed(call_id, slot, node, served, distant, token, None, self._uncounted, self, None, now, timeout)
            calls[call_id] = call  # as Calls.enter() does
            slot[call] = None
            running[token] = call
            if here is not receiver:
                receiver, entries = here, staged.setdefault((distant, here), [])
            entries.append((call, b"".join((REQUEST, call_id, rest))))

    def _begin_other(self, distant: Distant, token: bytes, where: bytes, rest: bytes) -> None:
        """Do the same for one call of any kind, or a notification. It is refused if the node cannot be called."""
        if not token:
            here = self._find(where.decode("ascii", "replace"))
            if here is None or here.link.barred:
                self.dropped["notification"] += 1
            else:
                self._stage(distant, here, (None, rest))
            return
        try:
            wanted = None if self._status.phase is Phase.DRAINING else self._resolve(where)
        except MailError as error:
            self._refuse(distant, error)
            wanted = None
        if wanted is None:
            distant.put(SAID, (b"gone", token, b""))
            return
        try:
            self._enter(distant, token, wanted, rest)
        except Refusal as refusal:
            told = jsonrpc.error_object(refusal.error, refusal.detail, **refusal.data)
            distant.put(SAID, (b"refused", token, verdict(refusal.error.name, NOT_DELIVERED, told)))

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

    def write(self) -> None:
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
            unwritten.finish()
        else:
            self._streams.push(distant, token, None)

    def _unwritten(self, distant: Distant, token: bytes) -> Unwritten | None:
        """Return a call that its node has not been sent yet, and that has to wait; None if it has."""
        self.write()
        call = distant.running.get(token) if distant.queues else None
        queue = distant.queues.get(call.callee) if isinstance(call, RoutedCall) else None
        return queue.entries.get(call.call_id) if isinstance(call, RoutedCall) and isinstance(queue, Queue) else None

    def wait(self, distant: Distant, payload: bytes) -> None:
        """Read a node no more until `go_on`, because a caller there does not read."""
        conn_id = payload.decode("ascii", "replace")
        here = self._find(conn_id)
        if here is not None and conn_id not in distant.paused:
            distant.paused[conn_id] = here
            here.wait()

    def go_on(self, distant: Distant, payload: bytes) -> None:
        """End one `wait`."""
        paused = distant.paused.pop(payload.decode("ascii", "replace"), None)
        if paused is not None:
            paused.go_on()

    def fence(self, distant: Distant, payload: bytes) -> None:
        """Go on with what is still wanted. If the other gateway has heard nothing new either, ask again in a while."""
        distant.fence, distant.asked = payload, False
        if self._is_fresh(payload):
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
        entries = self._staged.get((distant, cast(Here, call.callee)), [])
        for entry in entries:
            if entry[0] is call:
                entries.remove(entry)
                return True
        return False
