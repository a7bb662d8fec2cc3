"""Which nodes are connected to the other gateways of the cluster, and what those are told of ours.

Each member numbers the changes of its own nodes, and says each to all others as it happens. Whoever misses a number, or
hears a higher one in a heartbeat, asks that member for a copy of everything: page by page, in the order of names, while
further changes go on. So no member looks after the nodes of another, and what one has wrong stays its own.

All members agree on who has a name: of two registrations the newer one, by their stamps. A method that two nodes have
registered at the same time, and may not share, stays with the older of the two. The gateway of the node that loses is
the one that acts: it ends the connection, or takes the method back, and tells all others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import UNSET

from gateway import errors
from gateway.auth.scopes import NOBODY, Principal
from gateway.cluster.alive import Member
from gateway.cluster.members import Members
from gateway.cluster.natslink import NatsError, TooLargeError
from gateway.nodes import pages
from gateway.nodes.pages import PAGE, Entry, Page
from gateway.nodes.registry import MAX_BYTES, MAX_METHODS, METHOD_BYTES, Change, Node, NodePeer, Nodes, Served
from gateway.rpc.steps import Steps
from gateway.rpc.work import Pace, Work
from gateway.telemetry.lines import CLUSTER_REFUSED, Lines

logger = logging.getLogger(__name__)

ROSTER: Final = b"roster"
"""What members say to all: their changes. As mail to one member: the pages of a copy."""

SNAPSHOT: Final = b"snapshot"
"""Mail that asks for a page: its payload is the name after which the page begins."""

LOOKED: Final = 5000
"""Nodes that are looked at for one page, those of other gateways included."""

MAX_NODES: Final = MAX_BYTES // METHOD_BYTES
"""The most nodes of one member that are kept."""

PATIENCE: Final = 4
"""Heartbeats of a member after which an answer is late, and all is asked for again."""

TRIES: Final = 4
"""Questions without a whole copy after which a gateway starts without the nodes of a member. It goes on to ask."""

MakePeer = Callable[[Member, str, str, str, Principal], NodePeer]
"""Returns the way to a node of another gateway, given the gateway, the node's name, its connId, address and principal.

It returns the same object as before for a connection that is still known.
"""


class Copy:
    """What is known of the nodes of one member.

    ``cost`` is that of all its ``nodes``, in bytes. ``number`` is that of the last change that it has, -1 if nothing is
    known. While pages are awaited ``asked`` is the token of the question, ``seen`` has the names that have come since,
    ``tries`` counts the questions so far, and ``waited`` the heartbeats since the last page.
    """

    __slots__ = ("asked", "cost", "nodes", "number", "seen", "tries", "waited")

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.cost = 0
        self.number = -1
        self.asked = b""
        self.seen: set[str] = set()
        self.tries = 0
        self.waited = 0

    @property
    def is_whole(self) -> bool:
        """Whether it has all that the member has said."""
        return self.number >= 0 and not self.asked

    def lacks_room(self, node: Node, changed: Mapping[str, Served], removed: Iterable[str], max_bytes: int) -> bool:
        """Return whether a node would have too much with these methods, or all nodes together."""
        known = node.methods
        lost = set(removed) & known.keys()
        new = changed.keys() - known.keys()
        octets = sum(one.octets for one in changed.values())
        octets -= sum(known[name].octets for name in lost | (changed.keys() & known.keys()))
        cost = octets + METHOD_BYTES * (len(new) - len(lost))
        too_many = len(known) + len(new) - len(lost) > MAX_METHODS
        return too_many or node.octets + octets > max_bytes or self.cost + cost > MAX_BYTES

    def let_go(self, name: str) -> Node | None:
        """Forget a node. Returns it if it was known."""
        node = self.nodes.pop(name, None)
        self.cost -= 0 if node is None else node.cost
        return node

    def empty(self) -> Collection[Node]:
        """Forget all nodes. Returns them."""
        nodes, self.nodes, self.cost = self.nodes, {}, 0
        return nodes.values()


class Roster:
    """Keeps the nodes of other gateways in the registry ``nodes``, and tells the others of ours (`registry.Mirror`).

    It is a `members.Watcher`, and what heartbeats tell the number of. ``make_peer`` makes the way to a node elsewhere.
    ``arrived`` is called with the name of a node elsewhere that serves methods which it did not serve; ``lost_link``
    with its peer when it is held.
    """

    def __init__(
        self,
        nodes: Nodes,
        members: Members,
        steps: Steps,
        *,
        make_peer: MakePeer,
        arrived: Callable[[str], None],
        lost_link: Callable[[NodePeer], None],
        lines: Lines,
    ) -> None:
        self._nodes = nodes
        self._members = members
        self._steps = steps
        self._make_peer = make_peer
        self._arrived = arrived
        self._lost_link = lost_link
        self._lines = lines
        self.number = 0
        """That of the last change of our own nodes."""
        self._copies: dict[Member, Copy] = {}
        self._questions = 0
        self._cleared = False
        members.watchers.append(self)
        members.roster = self
        members.listen(ROSTER, self._changed)
        members.on(ROSTER, self._answered)
        members.on(SNAPSHOT, self._asked)
        nodes.mirror = self

    @property
    def is_known(self) -> bool:
        """Whether all living members have been heard, and their nodes are known, but for members that do not answer."""
        copies = self._copies.values()
        return self._members.settled and all(copy.is_whole or copy.tries > TRIES for copy in copies)

    def untold(self) -> list[Member]:
        """Return the living members that have not told all of their nodes."""
        return [member for member, copy in self._copies.items() if not copy.is_whole]

    # Our own nodes

    def online(self, node: Node, change: Change) -> None:
        """Tell what a node serves now."""
        whole = change.replaced is not None or len(change.added) == len(node.methods)
        methods = node.methods if whole else [*change.added, *change.changed]
        self._tell(node, list(methods), [] if whole else change.removed, whole=whole)

    def offline(self, node: Node) -> None:
        """Tell that a node is gone."""
        self._say(gone=[node.name])
        self._succeed(node.name)

    def altered(self, node: Node) -> None:
        """Tell that a node is held or back, has another principal, or wants to be called in another way."""
        self._say(nodes=[pages.renewed(node)])

    def clear(self) -> None:
        """Tell that there are no nodes here any more, because this gateway drains. Nothing is told after that."""
        if not self._cleared:
            self._say(cleared=True)
            self._cleared = True

    def _tell(self, node: Node, methods: Iterable[str], removed: Iterable[str], *, whole: bool) -> None:
        for entry, _ in pages.entries(node, methods, removed, self._room(), whole=whole):
            self._say(nodes=[entry])

    def _room(self) -> int:
        """Return how many bytes a page may have."""
        return min(PAGE, self._members.max_payload // 2)

    def _say(self, *, nodes: list[Entry] | None = None, gone: list[str] | None = None, cleared: bool = False) -> None:
        """Say a change to all. Without a link nothing is said: the others ask for everything after the next join."""
        if self._cleared:
            return
        self.number += 1
        page = Page(self.number, nodes or [], gone or [], cleared)
        try:
            self._members.say(ROSTER, pages.encode(page))
        except TooLargeError as error:
            self.number -= 1
            self._refuse(self._members.me, str(error))
        except NatsError:
            pass  # the number has to tell them that there is something

    def _asked(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Send a member the page of our nodes that it asks for."""
        after = payload.decode(errors="replace")
        found, room, size = list[Entry](), self._room(), 0
        for looked, node in enumerate(() if self._cleared else self._nodes.after(after)):
            entries = list(pages.entries(node, node.methods, (), room, whole=True)) if node.member is None else []
            if looked >= LOOKED or (found and entries and size + entries[0][1] > room):
                self._send(member, token, Page(self.number, found, after=after))
                return
            for entry, more in entries:
                if found and size + more > room:  # of one node
                    self._send(member, token, Page(self.number, found))
                    found, size = [], 0
                found.append(entry)
                size += more
            after = node.name
        self._send(member, token, Page(self.number, found, after=None))

    def _send(self, member: Member, token: bytes, page: Page) -> None:
        try:
            self._members.tell(member, ROSTER, pages.encode(page), token)
        except TooLargeError as error:
            self._refuse(self._members.me, str(error))
        except NatsError:
            pass

    # Members

    def member_joined(self, member: Member) -> None:
        """Know nothing of a member's nodes. Its heartbeat says whether there is anything to know."""
        self._copies[member] = Copy()

    def member_lost(self, member: Member, cause: str) -> None:
        """Forget the nodes of a member, in steps."""
        self._steps.begin(self._forget(self._copies.pop(member).empty()))

    def heard(self, member: Member, number: int) -> None:
        """Ask a member for a copy of everything if a change is missing, or if it has not answered."""
        copy = self._copies[member]
        if copy.asked:
            copy.waited += 1
            if copy.waited > PATIENCE:
                self._refuse(member, "it does not tell all of its nodes")
                self._ask(member, copy)
        elif copy.number < 0 and not number:
            copy.number = 0
        elif copy.number != number:
            self._ask(member, copy)

    def _ask(self, member: Member, copy: Copy) -> None:
        self._questions += 1
        copy.tries += 1
        copy.asked = b"%d" % self._questions
        copy.number = -1
        copy.seen = set()
        copy.waited = 0
        with suppress(NatsError):
            self._members.tell(member, SNAPSHOT, b"", copy.asked)

    # What members say

    def _changed(self, member: Member, payload: bytes) -> None:
        """Take a change."""
        copy = self._copies[member]
        if copy.number < 0:
            return  # the first page comes later, and has this change in it, or another page will
        page = self._decoded(member, payload)
        if page is None:
            return
        if page.number != copy.number + 1:
            self._ask(member, copy)
        else:
            copy.number = page.number
            self._take(member, copy, page)

    def _answered(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Take a page of a copy. Changes have come between the pages, and none of them may be missing."""
        copy = self._copies[member]
        page = self._decoded(member, payload) if token and token == copy.asked else None
        if page is None:
            return
        copy.waited = 0
        if copy.number not in (-1, page.number):
            self._ask(member, copy)
            return
        copy.number = page.number
        self._take(member, copy, page)
        if page.after is None:
            copy.asked, copy.tries = b"", 0
            names = [name for name in copy.nodes if name not in copy.seen]
            copy.seen = set()
            self._steps.begin(self._forget([node for name in names if (node := copy.let_go(name))]))
        elif page.after is not UNSET:
            with suppress(NatsError):
                self._members.tell(member, SNAPSHOT, page.after.encode(), token)

    def _decoded(self, member: Member, payload: bytes) -> Page | None:
        try:
            return pages.decode(payload)
        except msgspec.MsgspecError as error:
            self._refuse(member, str(error))
            return None

    def _refuse(self, member: Member, why: str) -> None:
        fields = {"member": member.name, "instance": member.instance, "reason": why}
        self._lines.log(logger, CLUSTER_REFUSED, member.instance, "of %s: %s", member.name, why, fields=fields)

    def _take(self, member: Member, copy: Copy, page: Page) -> None:
        """Take what a page says."""
        if page.cleared:
            self._steps.begin(self._forget(copy.empty()))
        for entry in page.nodes:
            self._nodes.heed(entry.stamp)
            if copy.asked:
                copy.seen.add(entry.name)
            self._enter(member, copy, entry)
        for name in page.gone:
            self._drop(copy.let_go(name))

    def _enter(self, member: Member, copy: Copy, entry: Entry) -> None:
        """Take what a member says of one of its nodes."""
        node = copy.nodes.get(entry.name)
        if node is None or (node.stamp, node.peer.conn_id) != (entry.stamp, entry.conn_id):
            if not entry.whole:
                return  # a later page has all of it, or there was no room for it
            if len(copy.nodes) >= MAX_NODES:
                self._refuse(member, f"there are more than {MAX_NODES} nodes")
                return
            node = self._begin(member, copy, entry)
        told = pages.served(entry.methods)
        removed = [name for name in node.methods if name not in told] if entry.whole else entry.removed
        changed = {name: one for name, one in told.items() if node.methods.get(name) != one}
        if copy.lacks_room(node, changed, removed, self._nodes.max_bytes):
            self._refuse(member, f"the node {node.name} has too many methods, or all nodes together")
            return
        self._renew(node, entry)
        before = node.cost
        if self._nodes.named(node.name) is not node:
            node.remove(removed)
            node.add(changed)
        elif changed or removed:
            self._nodes.change(node, changed, removed)
        copy.cost += node.cost - before
        if self._nodes.named(node.name) is node:
            self._settle(node, told if entry.principal is None else node.methods)
            if changed:
                self._arrived(node.name)

    def _begin(self, member: Member, copy: Copy, entry: Entry) -> Node:
        """Return a node that is new, and has no methods yet. It gets its name unless there is a newer registration."""
        principal = NOBODY if entry.principal is None else pages.principal(entry.principal)
        peer = self._make_peer(member, entry.name, entry.conn_id, entry.remote, principal)
        node = Node(entry.name, peer, entry.since, entry.stamp, member)
        older = copy.let_go(entry.name)
        copy.nodes[entry.name] = node
        current = self._nodes.named(entry.name)
        if current is None or current is older or self._rank(current) <= self._rank(node):
            self._bring(node)
        return node

    def _renew(self, node: Node, entry: Entry) -> None:
        """Take all that an entry says beside the methods."""
        peer = node.peer
        node.context, node.streams = entry.context, entry.streams
        peer.remote = entry.remote
        if entry.principal is not None:
            peer.principal = pages.principal(entry.principal)
        if not entry.held:
            peer.held = None
        elif peer.held is None:
            peer.held = errors.TRANSPORT_LOST
            self._lost_link(peer)

    def _rank(self, node: Node) -> tuple[int, str]:
        """Return what is higher for the newer one of two registrations, at every gateway."""
        return node.stamp, self._members.instance if node.member is None else node.member.instance

    def _bring(self, node: Node) -> None:
        """Let a node have its name. If one of ours had it, its connection is replaced."""
        replaced = self._nodes.bring(node)
        if replaced is not None and replaced.member is None:
            self._say(gone=[node.name])
            replaced.peer.end(errors.REPLACED)

    def _drop(self, node: Node | None) -> None:
        """Take a node's name away, if it has it."""
        if node is not None and self._nodes.named(node.name) is node:
            self._nodes.take_away(node)
            self._succeed(node.name)

    def _succeed(self, name: str) -> None:
        """Let the newest of those have a name that were kept from it by the one that is gone."""
        claims = [copy.nodes[name] for copy in self._copies.values() if name in copy.nodes]
        if claims:
            node = max(claims, key=self._rank)
            self._bring(node)
            self._settle(node, node.methods)
            self._arrived(name)

    def _forget(self, nodes: Iterable[Node]) -> Work[None]:
        """Drop nodes that are in no copy any more."""
        pace = Pace()
        for node in nodes:
            self._drop(node)
            if pace.over(1 + len(node.methods)):
                yield

    def _settle(self, node: Node, methods: Collection[str]) -> None:
        """Take back from our own nodes what one that is connected elsewhere has registered before them.

        They could not know of each other at that time. If ours is the older one, the other's gateway does the same.
        """
        lost: dict[Node, list[str]] = {}
        for method, other in self._nodes.conflicts(node, methods):
            if other.member is None and self._rank(other) > self._rank(node):
                lost.setdefault(other, []).append(method)
        for other, names in lost.items():
            self._nodes.unregister(other.peer, names)
