"""Another gateway of the cluster, as this one has it: what is in flight for it and to it, and how much is on its way.

Mail between gateways (`cluster.members`) knows no backpressure. So each gateway tells the other how much it has taken,
and what is on its way has a bound: pressure goes back to those who send, as it does from the link of a connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol
from weakref import WeakValueDictionary

from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import NOBODY, Principal
from gateway.cluster.alive import AWAY, DISOWNED, UNREACHABLE, Member
from gateway.cluster.members import Members
from gateway.cluster.natslink import NatsError
from gateway.errors import UNKNOWN, Disconnect
from gateway.limits import Bucket
from gateway.nodes.elsewhere.mail import CALL, NOTE, REQUEST, RESULT, SAID, SEPARATOR, answered, cut, ends, verdict
from gateway.nodes.elsewhere.road import Road
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Link
from gateway.rpc.requests import Party, Request
from gateway.rpc.streams import Pool

HIGH: Final = 4 << 20
"""Bytes on their way to another gateway beyond which those who send to it have to wait."""

LOW: Final = HIGH // 2
"""If no more bytes than these are on their way, they go on."""

TAKEN: Final = HIGH // 16
"""Bytes that are taken from another gateway before it is told so."""

COST: Final = 100
"""What a message counts beside its payload, in bytes."""

PACK: Final = 60 * 1024
"""Bytes of a pack at most. A larger record leaves alone, and at once."""

UNBOUNDED: Final = 1 << 62
"""More bytes than there are. What streams may send is bounded at the gateways of their two ends."""

LINGER: Final = 1.0
"""Seconds from one look to the next whether calls are still in flight to another gateway."""

GRACE: Final = 0.3
"""Seconds after which a gateway whose link has ended begins no call any more that had come before.

It has read what had come, or it has stood still for so long that it notices (`alive.Fence`).
"""

_RESULT: Final = b',"result":'
_ERROR: Final = b',"error":'


class There(Party, Protocol):
    """A node at another gateway (`remote.RemotePeer`)."""

    def unheard(self, call_id: bytes) -> None:
        """End a call that has not reached the node's gateway. Harmless if it has ended."""

    def press(self, pressed: bool) -> None:
        """Note whether its gateway takes what is sent to it."""


class Corker(Protocol):
    """Lets what is packed leave together (`relay.Relay`)."""

    def cork(self, distant: Distant) -> None:
        """Have `Distant.leave` called at the end of this read, or of this event-loop iteration."""


class Queued(Protocol):
    """What waits to be written to one node here (`unwritten.Queue`)."""

    def write(self) -> None:
        """Write it, if it may begin now."""

    def clear(self) -> None:
        """Forget it."""


class Paused(Protocol):
    """A node here that is not read, because a caller at another gateway does not read."""

    def go_on(self) -> None:
        """Read it again."""


class Distant:
    """One member. It is a `requests.Peer` whose calls are run by nodes here, and has the nodes there that are called.

    What goes there in one event-loop iteration is packed, as long as it is of one kind. All leaves in order. ``clock``
    returns monotonic seconds, which are never those of a moment ago.

    ``running`` has its calls here, by the tokens that it has given them. ``fence`` is the number of the last of our
    heartbeats that it has named: it has given up nothing since it heard that one, except what it has said. ``queues``
    has what waits for nodes here, ``paused`` the nodes that are not read because of callers there.

    ``known`` are the nodes there, by their connIds, and ``peers`` those that calls of ours are in flight to, or were a
    moment ago, by their numbers. ``taken`` counts the bytes of its mail.
    """

    __slots__ = (
        "_beat",
        "_beat_at",
        "_clock",
        "_corker",
        "_fields",
        "_held_up",
        "_kind",
        "_loop",
        "_members",
        "_most",
        "_octets",
        "_sent",
        "_unheard",
        "_until",
        "_waits",
        "asked",
        "bucket",
        "calls",
        "conn_id",
        "due",
        "fence",
        "held_bytes",
        "is_open",
        "known",
        "leaving",
        "link",
        "member",
        "paused",
        "peers",
        "pool",
        "principal",
        "queues",
        "remote",
        "running",
        "taken",
    )

    elsewhere: Final = True
    crowded: Final = False
    unheeding: Final = False
    flowing: Final = True
    room: Final = UNBOUNDED

    def __init__(self, member: Member, members: Members, corker: Corker, clock: Callable[[], float]) -> None:
        self.member: Final = member
        self._members = members
        self._corker = corker
        self._clock = clock
        self._unheard = members.reply_subject(b"unheard", member.address)
        self._loop = asyncio.get_running_loop()
        self.is_open = True
        # As a peer
        self.conn_id = ""
        self.remote = member.name
        self.principal: Principal = NOBODY
        self.bucket: Bucket | None = None
        self.leaving = False
        self.link = Road()
        self.pool: Pool | None = None
        self.calls: dict[bytes, Call] = {}
        self.running: dict[object, Request] = {}
        self.held_bytes = 0
        self._held_up: dict[Link, None] = {}
        # Its calls here
        self.fence = b""
        self.asked = False
        self.queues: dict[object, Queued] = {}
        self.paused: dict[str, Paused] = {}
        # Our calls there
        self.peers: dict[bytes, There] = {}
        self.known: WeakValueDictionary[str, There] = WeakValueDictionary()
        self._waits: Counter[str] = Counter()
        self._beat = b""
        self._beat_at = 0.0
        # What is packed
        self._kind = b""
        self._fields: list[bytes | Raw] = []
        self._octets = 0
        self._most = min(PACK, members.max_payload)
        # What is on its way
        self._sent = 0
        self._until = HIGH
        self.taken, self.due = 0, TAKEN

    # Mail

    def put(self, kind: bytes, fields: tuple[bytes | Raw, ...]) -> None:
        """Pack the fields of a record of this kind. If the member is lost, it never leaves."""
        octets = sum(map(len, fields)) + len(fields)
        if (kind is not self._kind or self._octets + octets > self._most) and not self._begin(kind):
            return
        self._fields += fields
        self._octets += octets
        if self._octets > self._most:
            self.leave()

    def _begin(self, kind: bytes) -> bool:
        """Begin another pack. Returns False if none ever leaves."""
        while self._kind:  # again if there is something to say of what does not leave
            self.leave()
        if self.is_open:
            self._kind, self._octets = kind, 0
            if kind is CALL:
                self._fields = [beat := self.beat]
                self._octets = len(beat)
            self._corker.cork(self)
        return self.is_open

    def leave(self) -> None:
        """Send what is packed. Harmless at any time."""
        if not self._kind:
            return
        kind, fields = self._kind, self._fields
        self._kind, self._fields = b"", []
        reply = b""
        if kind is CALL:
            first, last = fields[1], fields[-3]
            if not (first and last):  # notifications
                first, last = ends(fields[1::3])
            if first:
                reply = b"%b-%b-%b" % (self._unheard, first, last)
        if not self._send(kind, SEPARATOR.join(fields), reply):
            self._spoil(kind, fields)

    def tell(self, kind: bytes, payload: bytes = b"") -> bool:
        """Send mail that is not packed. Returns False if it does not leave, and never will."""
        self.leave()
        return self._send(kind, payload)

    def _send(self, kind: bytes, payload: bytes, reply: bytes = b"") -> bool:
        try:
            self._members.tell(self.member, kind, payload, b"", reply)
        except NatsError:
            return False
        self._sent += len(payload) + COST
        if self._sent > self._until and not self.link.pressed:
            self._press(True)
        return True

    def _spoil(self, kind: bytes, fields: list[bytes | Raw]) -> None:
        """End calls that were not delivered. Tell of an answer that is larger than NATS takes.

        If that is not the reason, this is not heard either.
        """
        self._most = min(PACK, self._members.max_payload)  # a server that is configured anew says so
        if kind is CALL:
            for token in fields[1::3]:
                self._undelivered(b"" + token)
            return
        error = jsonrpc.error_object(errors.TOO_LARGE, "NATS does not take it", outcome=UNKNOWN)
        for token in answered(kind, fields):
            self.put(SAID, (b"ended", token, verdict(errors.TOO_LARGE.name, UNKNOWN, error)))

    def tell_taken(self) -> None:
        """Tell the other gateway how much was ``taken`` from it, because that is as much as is ``due``.

        This mail does not count itself. Otherwise there would be an answer to each.
        """
        self.due = self.taken + TAKEN
        with suppress(NatsError):
            self._members.tell(self.member, b"taken", b"%d" % self.taken)

    def took(self, octets: int) -> None:
        """Note how much the other gateway has taken in all, and let those go on that had to wait for it."""
        self._until = octets + HIGH
        if self.link.pressed and self._sent - octets <= LOW:
            self._press(False)
            self._relieve()
            for request in list(self.running.values()):
                request.drained()
            for pool in (self.pool, *(peer.pool for peer in self.peers.values())):
                if pool is not None:
                    pool.read_on()

    def _press(self, pressed: bool) -> None:
        self.link.pressed = pressed
        for peer in list(self.known.values()):
            peer.press(pressed)

    # As a peer

    def pass_on(self, payload: bytes) -> None:
        """Send what `routed` and `streams` have made for a caller: a reply, a notification about a call, or a verdict.

        What they take for the caller's id is the token of its gateway.
        """
        if payload.startswith(REQUEST):
            end = payload.index(b",", len(REQUEST))
            token = payload[len(REQUEST) : end]
            if payload.startswith(_RESULT, end):
                self.put(RESULT, (token, payload[end + len(_RESULT) : -1]))
            else:
                self.put(SAID, (b"error", token, payload[end + len(_ERROR) : -1]))
        elif payload.startswith(NOTE):
            self.put(SAID, cut(payload))
        elif payload:
            token, _, told = payload.partition(b" ")
            self.put(SAID, (b"ended", token, told))

    send = pass_on

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for callers there. Returns False if there is no room for them."""
        if self.held_bytes + octets > HIGH:
            return False
        self.held_bytes += octets
        return True

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""
        self.held_bytes -= octets

    def hold_up(self, sender: Link) -> None:
        """Read no more from a node, until the other gateway has taken what is on its way to it."""
        if sender not in self._held_up:
            self._held_up[sender] = None
            sender.wait()

    def _relieve(self) -> None:
        held_up, self._held_up = self._held_up, {}
        for sender in held_up:
            sender.go_on()

    def settled(self) -> None:
        """Do nothing: another gateway does not leave because of a call."""

    def wait(self) -> None:
        """Do nothing, as `Road.wait`."""

    def go_on(self) -> None:
        """Do nothing."""

    def end(self, end: Disconnect) -> None:
        """Do nothing: how long another gateway is a member is not for a call to say."""

    # The fence

    def ask(self) -> None:
        """Ask whether what waits here is still wanted, once until the answer comes."""
        if not self.asked:
            self.asked = self.tell(b"stale")

    @property
    def beat(self) -> bytes:
        """The number of the member's last heartbeat, for a call that is sent now."""
        if self.member.beat is not self._beat:
            self._beat, self._beat_at = self.member.beat, self._clock()
        return self._beat

    def fenced(self, cause: str, timeout: float) -> float:
        """Return after how many seconds none of our calls to the member begins any more, after it was lost.

        It begins none that names a heartbeat of ``timeout`` seconds ago. If it was silent, it was for so long.
        """
        left = max(0.0, self._beat_at + timeout - self._clock())
        if cause == UNREACHABLE:
            return min(left, GRACE)
        return left if cause in (AWAY, DISOWNED) else 0.0

    # Nodes there

    def busy(self, number: bytes, peer: There) -> None:
        """Note that calls are in flight to a node there, until it is seen that there are none any more."""
        if not self.peers:
            self._members.busy(self.member)
            self._loop.call_later(LINGER, self._look)
        self.peers[number] = peer

    def _look(self) -> None:
        """Forget the nodes that no calls are in flight to."""
        for number in [number for number, peer in self.peers.items() if not peer.calls]:
            del self.peers[number]
        if self.peers:
            self._loop.call_later(LINGER, self._look)
        else:
            self._members.idle(self.member)

    def _undelivered(self, token: bytes) -> None:
        """End a call that was not delivered."""
        call_id, _, number = token.partition(b"-")
        peer = self.peers.get(number)
        if peer is not None:
            peer.unheard(call_id)

    def unheard(self, first: int, last: int) -> None:
        """End the calls of a pack that was not delivered. No others have ids from its first to its last."""
        for peer in list(self.peers.values()):
            for call_id in [call_id for call_id in peer.calls if first <= int(call_id) <= last]:
                peer.unheard(call_id)

    def pause(self, conn_id: str) -> None:
        """Have a node there not be read until `resume`. Once for each caller here that does not read."""
        self._waits[conn_id] += 1
        if self._waits[conn_id] == 1:
            self.tell(b"wait", conn_id.encode())

    def resume(self, conn_id: str) -> None:
        """End one `pause`."""
        self._waits[conn_id] -= 1
        if not self._waits[conn_id]:
            del self._waits[conn_id]
            self.tell(b"on", conn_id.encode())

    # The end

    def lose(self) -> None:
        """End what is in flight for it, because it is lost. The calls to it end when they cannot begin any more."""
        self.is_open = False
        self.leave()  # which ends what has not left
        for request in list(self.running.values()):
            request.abandon()
        for queue in list(self.queues.values()):
            queue.clear()
        self.queues.clear()
        self._relieve()
        paused, self.paused = self.paused, {}
        for node in paused.values():
            node.go_on()
