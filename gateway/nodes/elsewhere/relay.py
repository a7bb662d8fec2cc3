"""Calls between gateways: takes the mail about them, lets it leave, and ends what is in flight for gateways that go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.auth.scopes import Principal
from gateway.cluster import natswire
from gateway.cluster.alive import Member
from gateway.cluster.members import MailHandler, Members
from gateway.cluster.nats import NO_RESPONDERS, Nats
from gateway.nodes.elsewhere.answers import Answers
from gateway.nodes.elsewhere.distant import COST, Distant
from gateway.nodes.elsewhere.incoming import Incoming
from gateway.nodes.elsewhere.mail import CALL, RESULT, SAID, SEPARATOR, MailError, numbers
from gateway.nodes.elsewhere.remote import RemotePeer
from gateway.nodes.elsewhere.unwritten import Here
from gateway.nodes.registry import Nodes
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc import jsonrpc
from gateway.status import Status
from gateway.telemetry.lines import MAIL_REFUSED, Lines
from gateway.websocket.cork import Cork

logger = logging.getLogger(__name__)


class Relay:
    """What the gateways of a cluster have in flight for each other. It is a watcher of ``members``.

    ``find`` returns the connection here with a connId, or None. `read` is to be called at the end of each read of mail.
    ``cork`` is that of the connections, and ``nats`` what mail leaves by. ``clock`` returns monotonic seconds.
    """

    corked_bytes: Final = 0

    def __init__(
        self,
        router: Router,
        nodes: Nodes,
        members: Members,
        find: Callable[[str], Here | None],
        status: Status,
        *,
        lines: Lines,
        cork: Cork,
        nats: Nats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = router.calls
        self._members = members
        self._lines = lines
        self._cork = cork
        self._nats = nats
        self._clock = clock
        self._peers = 0
        self._distants: dict[Member, Distant] = {}
        self._lost: dict[bytes, Distant] = {}
        """Those of lost members, by their addresses, until no call of ours begins there any more."""
        self._packing: dict[Distant, None] = {}
        self._reading = False
        streams = Streams(router.dropped)
        self.answers: Final = Answers(router, streams)
        ours = router, nodes, find, status, streams
        self.incoming: Final = Incoming(*ours, is_fresh=members.is_fresh, refuse=self._refuse, clock=clock)
        self._acts = {**self.answers.acts, **self.incoming.acts}
        members.watchers.append(self)
        self._take_mail()

    def _take_mail(self) -> None:
        for kind, act in (
            (CALL, self.incoming.begin),
            (RESULT, self.answers.results),
            (SAID, self._tell),
            (b"wait", self.incoming.wait),
            (b"on", self.incoming.go_on),
            (b"stale", self._stale),
            (b"fence", self.incoming.fence),
        ):
            self._members.on(kind, self._handler(act))
        self._members.on(b"taken", self._handler(self._taken, counts=False))
        self._members.on(b"unheard", self._unheard)

    def peer(self, member: Member, name: str, conn_id: str, remote: str, principal: Principal) -> RemotePeer:
        """Return the connection of a node that is connected to another gateway: the same one as long as it is known."""
        distant = self._of(member)
        peer = distant.known.get(conn_id)
        if not isinstance(peer, RemotePeer):
            self._peers += 1
            peer = RemotePeer(distant, self._peers, self._calls, conn_id=conn_id, remote=remote, principal=principal)
            distant.known[conn_id] = peer
        return peer

    def _of(self, member: Member) -> Distant:
        distant = self._distants.get(member)
        if distant is None:
            distant = Distant(member, self._members, self, self._clock)
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
            self._lost[member.address] = distant
            asyncio.get_running_loop().call_later(left, self._give_up, distant)
        else:
            self._give_up(distant)

    def _give_up(self, distant: Distant) -> None:
        """End all calls of ours to a member that is lost."""
        self._lost.pop(distant.member.address, None)
        for peer in list(distant.peers.values()):
            self._calls.lost(peer)

    # Mail

    def _handler(self, act: Callable[[Distant, bytes], None], *, counts: bool = True) -> MailHandler:
        """Return what takes mail of one kind from living members. ``counts``: its sender has counted its bytes."""
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
            if counts:
                distant.taken += len(payload) + COST
                if distant.taken >= distant.due:
                    distant.tell_taken()
            try:
                act(distant, payload)
            except MailError as error:
                self._refuse(distant, error)

        return handle

    def _refuse(self, distant: Distant, error: MailError) -> None:
        member = distant.member
        fields = {"member": member.name, "instance": member.instance, "reason": str(error)}
        self._lines.log(logger, MAIL_REFUSED, member.instance, "mail refused: %s", error, fields=fields)

    def read(self) -> None:
        """Write what one read of mail has brought. Call it at the end of each."""
        try:
            self.incoming.write()
        finally:
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
            if packing:  # a defect: what is left waits for the next time, as what is packed from now on
                self._cork.add(self)
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
                    self._refuse(distant, error)

    def _taken(self, distant: Distant, payload: bytes) -> None:
        (octets,) = numbers(payload, 1)
        distant.took(octets)

    def _unheard(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """End calls that were not delivered, because NATS has no subscriber to them. Their member is lost."""
        if member is not self._members.me or natswire.status(headers) != NO_RESPONDERS:
            return
        address, first, _, last, _ = token.split(b"-")
        heard = self._members.others.get(address)
        distant = self._lost.get(address) if heard is None else self._distants.get(heard)
        if distant is not None:
            distant.unheard(int(first), int(last))
            self._members.unreachable(distant.member)

    def _stale(self, distant: Distant, payload: bytes) -> None:
        """Say that what waits there is still wanted: what is not was withdrawn before."""
        distant.tell(b"fence", distant.beat)
