"""Another gateway of the cluster, as this one has it: what is in flight for it and to it, and how much is on its way.

Mail between gateways (`cluster.members`) knows no backpressure. So each gateway tells the other how much it has taken,
and what is on its way has a bound: pressure goes back to those who send, as it does from the link of a connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Final, Protocol
from weakref import WeakValueDictionary

from gateway import errors
from gateway.auth.scopes import NOBODY, Principal
from gateway.cluster.alive import AWAY, DISOWNED, UNREACHABLE, Member
from gateway.cluster.members import Members
from gateway.cluster.natslink import NatsError
from gateway.errors import UNKNOWN, Disconnect
from gateway.limits import Bucket
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Call, Calls, Link
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

UNBOUNDED: Final = 1 << 62
"""More bytes than there are. What streams may send is bounded at the gateways of their two ends."""

GRACE: Final = 0.3
"""Seconds after which a gateway whose link has ended begins no call any more that had come before.

It has read what had come, or it has stood still for so long that it notices (`alive.Fence`).
"""

REQUEST: Final = b'{"jsonrpc":"2.0","id":'
"""What each request begins with that the gateway makes, and each reply."""

NOTE: Final = b'{"jsonrpc":"2.0","method":"rpc.'
"""What each notification about a call begins with that the gateway makes."""

_RESULT: Final = b',"result":'
_ERROR: Final = b',"error":'
_ID: Final = b'","params":{"id":'
_VALUE: Final = b'"value":'
_END: Final = b'"end":true'
_CREDIT: Final = b'"credit":'
_BYTES: Final = b'"bytes":'


class MailError(ValueError):
    """Another gateway has sent what no gateway sends. The message says what."""


def cut(note: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the kind of a notification about a call, such as ``cancel``, the call's id, and what it says of the call.

    The gateway has made it, so nothing is decoded, and a value is what it was, byte for byte.
    """
    at = note.index(b'"', len(NOTE))
    kind, start = note[len(NOTE) : at], at + len(_ID)
    if kind == b"cancel":
        return kind, note[start:-2], b""
    end = note.index(b",", start)
    call_id, said = note[start:end], note[end + 1 : -2]
    if said.startswith(_VALUE):
        return kind, call_id, said[len(_VALUE) :]
    if said == _END:
        return b"finish", call_id, b""
    return kind, call_id, said.replace(_CREDIT, b"").replace(_BYTES, b"")


def numbers(text: bytes, count: int) -> list[int]:
    """Return so many numbers from 0 on. Raises MailError if the text is anything else."""
    parts = text.split(b",")
    if len(parts) != count or not all(part.isdigit() and len(part) < 20 for part in parts):
        raise MailError(f"not {count} numbers: {text[: jsonrpc.MAX_DETAIL]!r}")
    return [int(part) for part in parts]


def verdict(name: str, outcome: str, error: bytes) -> bytes:
    """Return what is sent of a call that a gateway has ended itself: the error's name, its outcome, and its object."""
    return f"{name} {outcome}\n".encode() + error


class Queued(Protocol):
    """What waits to be written to one node here (`relay.Queue`)."""

    def write(self) -> None:
        """Write it, if it may begin now."""

    def clear(self) -> None:
        """Forget it."""


class Paused(Protocol):
    """A node here that is not read, because a caller at another gateway does not read."""

    def go_on(self) -> None:
        """Read it again."""


class Road:
    """What a link is for a connection: whether another gateway takes what is sent to it. A `calls.Link`."""

    __slots__ = ("pressed",)

    def __init__(self) -> None:
        self.pressed = False

    @property
    def barred(self) -> bool:
        """Whether others may send nothing more to it."""
        return self.pressed

    def wait(self) -> None:
        """Do nothing: nobody is kept from reading another gateway's mail."""

    def go_on(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing: mail leaves at the end of the event-loop iteration."""


class Distant:
    """One member. It is a `requests.Peer` whose calls are run by nodes here, and has the nodes there that are called.

    ``running`` has its calls here, by the tokens that it has given them. ``fence`` is the number of the last of our
    heartbeats that it has named: it has given up nothing since it heard that one, except what it has said. ``queues``
    has what waits for nodes here, ``paused`` the nodes that are not read because of callers there.

    ``known`` are the nodes there, by their connIds, and ``peers`` those that calls of ours are in flight to, by their
    numbers.
    """

    __slots__ = (
        "_beat",
        "_beat_at",
        "_held_up",
        "_loop",
        "_members",
        "_sent",
        "_taken",
        "_told",
        "_until",
        "_waits",
        "asked",
        "bucket",
        "calls",
        "conn_id",
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
    )

    crowded: Final = False
    unheeding: Final = False
    flowing: Final = True
    room: Final = UNBOUNDED

    def __init__(self, member: Member, members: Members) -> None:
        self.member: Final = member
        self._members = members
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
        self.peers: dict[bytes, Party] = {}
        self.known: WeakValueDictionary[str, Party] = WeakValueDictionary()
        self._waits: Counter[str] = Counter()
        self._beat = b""
        self._beat_at = 0.0
        # What is on its way
        self._sent = 0
        self._until = HIGH
        self._taken = self._told = 0

    # Mail

    def tell(self, kind: bytes, payload: bytes = b"", token: bytes = b"", reply: bytes = b"") -> bool:
        """Send mail. Returns False if it does not leave, and never will."""
        try:
            self._members.tell(self.member, kind, payload, token, reply)
        except NatsError:
            return False
        self._sent += len(payload) + COST
        if self._sent > self._until:
            self.link.pressed = True
        return True

    def takes(self, octets: int) -> None:
        """Count the payload of mail that came, and tell the sender now and then how much it was in all."""
        self._taken += octets + COST
        if self._taken - self._told >= TAKEN:
            self._told = self._taken
            with suppress(NatsError):
                self._members.tell(self.member, b"taken", b"%d" % self._taken)

    def taken(self, octets: int) -> None:
        """Note how much the other gateway has taken in all, and let those go on that had to wait for it."""
        self._until = octets + HIGH
        if self.link.pressed and self._sent - octets <= LOW:
            self.link.pressed = False
            self._relieve()
            for request in list(self.running.values()):
                request.drained()
            for pool in (self.pool, *(peer.pool for peer in self.peers.values())):
                if pool is not None:
                    pool.read_on()

    # As a peer

    def pass_on(self, payload: bytes) -> None:
        """Send what `routed` and `streams` have made for a caller: a reply, a notification about a call, or a verdict.

        What they take for the caller's id is the token of its gateway.
        """
        if payload.startswith(REQUEST):
            end = payload.index(b",", len(REQUEST))
            token = payload[len(REQUEST) : end]
            if payload.startswith(_RESULT, end):
                kind, value = b"result", payload[end + len(_RESULT) : -1]
            else:
                kind, value = b"error", payload[end + len(_ERROR) : -1]
            if not self.tell(kind, value, token):
                self._fail(token)
        elif payload.startswith(NOTE):
            kind, token, said = cut(payload)
            self.tell(kind, said, token)
        elif payload:
            token, _, told = payload.partition(b" ")
            self.tell(b"ended", told, token)

    send = pass_on

    def _fail(self, token: bytes) -> None:
        """Tell that an answer is larger than NATS takes. If that is not the reason, this is not heard either."""
        error = jsonrpc.error_object(errors.TOO_LARGE, "NATS does not take it", outcome=UNKNOWN)
        self.tell(b"ended", verdict(errors.TOO_LARGE.name, UNKNOWN, error), token)

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
            self._beat, self._beat_at = self.member.beat, self._loop.time()
        return self._beat

    def fenced(self, cause: str, timeout: float) -> float:
        """Return after how many seconds none of our calls to the member begins any more, after it was lost.

        It begins none that names a heartbeat of ``timeout`` seconds ago. If it was silent, it was for so long.
        """
        left = max(0.0, self._beat_at + timeout - self._loop.time())
        if cause == UNREACHABLE:
            return min(left, GRACE)
        return left if cause in (AWAY, DISOWNED) else 0.0

    # Nodes there

    def busy(self, number: bytes, peer: Party) -> None:
        """Note that calls are in flight to a node there."""
        self.peers[number] = peer
        self._members.busy(self.member)

    def idle(self, number: bytes) -> None:
        """Note that no calls are in flight to a node there. Harmless if there were none."""
        if self.peers.pop(number, None) is not None:
            self._members.idle(self.member)

    def unheard(self, token: bytes) -> bytes:
        """Return the subject for what comes back if nobody hears a call."""
        return self._members.reply_subject(b"unheard", token)

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
        for request in list(self.running.values()):
            request.abandon()
        for queue in list(self.queues.values()):
            queue.clear()
        self.queues.clear()
        self._relieve()
        paused, self.paused = self.paused, {}
        for node in paused.values():
            node.go_on()


def lost_calls(distant: Distant, calls: Calls) -> None:
    """End all calls of ours to a member that is lost."""
    for number, peer in list(distant.peers.items()):
        calls.lost(peer)
        distant.idle(number)
