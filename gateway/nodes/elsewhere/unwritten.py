"""What other gateways have sent to nodes here, and is not written yet.

A call from elsewhere begins only as long as its own gateway cannot have given it up. That is checked right before the
call is written. If its node does not take it at once it waits here, and not in the node's outbox or session.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gateway import errors
from gateway.nodes.elsewhere.distant import Distant
from gateway.nodes.registry import NodePeer
from gateway.nodes.routed import RoutedCall
from gateway.nodes.streams import StreamCall, pool_of
from gateway.rpc.streams import Grant

SLICE: Final = 16 * 1024
"""Bytes of calls that are written to a node before it is looked at again whether it takes more."""

LOOK: Final = 0.5
"""Seconds from one look at what waits for a node to the next."""

Entry = tuple[RoutedCall | None, bytes]
"""A call and its text, or the text of a notification."""


class Here(NodePeer, Protocol):
    """The connection of a node here (`connections.connection.Connection`)."""

    @property
    def crowded(self) -> bool:
        """Whether it is held, and so much waits for it that nothing more may be sent to it."""

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for it until `let_go`. Returns False if there is no room for them."""

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""

    def wait(self) -> None:
        """Read no more from it until `go_on`. Once for each reason to wait."""

    def go_on(self) -> None:
        """End one `wait`."""


class Writer:
    """Writes what other gateways send to nodes here, and lets wait what cannot be written now.

    ``is_fresh`` says of the number of a heartbeat of ours whether a call may begin whose gateway has heard no later
    one. Notifications for which there is no room are counted in ``dropped``.
    """

    def __init__(self, is_fresh: Callable[[bytes], bool], dropped: Counter[str]) -> None:
        self.is_fresh: Final = is_fresh
        self.dropped: Final = dropped

    def write(self, distant: Distant, here: Here, entries: Iterable[Entry]) -> None:
        """Write all this to a node, at once, as far as it may begin now. Of a member that is lost nothing may."""
        if not distant.is_open:
            return
        queue = distant.queues.get(here)
        if queue is None and self.may_write(distant, here):
            size, pass_on = 0, here.pass_on
            entries = iter(entries)
            for _, text in entries:
                pass_on(text)
                size += len(text)
                if size > SLICE:
                    break
            here.link.flush()
        # A node that is cut may have ended calls by now.
        entries = [
            entry for entry in entries if entry[0] is None or distant.running.get(entry[0].request_id) is entry[0]
        ]
        if not entries:
            return
        if not isinstance(queue, Queue):
            queue = distant.queues[here] = Queue(self, distant, here)
        for call, text in entries:
            queue.add(call, text)
        queue.write()

    def may_write(self, distant: Distant, here: Here) -> bool:
        """Return whether a node takes at once what is written to it now, and what it gets is still wanted."""
        if not here.flowing:
            return False
        if not self.is_fresh(distant.fence):
            distant.ask()
            return False
        return True


class Unwritten:
    """A call from elsewhere that its node has not been sent yet, or a notification, which has no ``call``.

    ``grant`` and ``finished`` are what the caller of a stream has said since. ``held`` are the bytes that are held for
    it, because it has to wait.
    """

    __slots__ = ("call", "finished", "grant", "held", "text")

    def __init__(self, call: RoutedCall | None, text: bytes) -> None:
        self.call = call
        self.text = text
        self.grant: Grant | None = None
        self.finished = False
        self.held = 0

    def granted(self, more: Grant) -> None:
        """Keep what the caller grants until the node knows of the stream."""
        self._renew()
        grant = self.grant or Grant()
        self.grant = Grant(grant.credit + more.credit, grant.octets + more.octets)

    def finish(self) -> None:
        """Keep it that the caller pushes nothing more."""
        self._renew()
        self.finished = True

    def _renew(self) -> None:
        if isinstance(self.call, StreamCall):
            self.call.renew()

    def tell_rest(self) -> None:
        """Tell the node what the caller of a stream has said since, because it knows of the stream now."""
        stream = None if self.call is None else self.call.stream
        if stream is not None and self.grant is not None:
            stream.granted(self.grant)
        if stream is not None and self.finished:
            stream.finish()


class Queue:
    """What one gateway has sent to one node here, and has to wait. A `rpc.streams.Waiter`.

    Nothing begins when the node reads again which its own gateway may have given up meanwhile.
    """

    def __init__(self, writer: Writer, distant: Distant, here: Here) -> None:
        self._writer = writer
        self._distant = distant
        self._here = here
        self._timer: asyncio.TimerHandle | None = None
        self.entries: dict[object, Unwritten] = {}

    def add(self, call: RoutedCall | None, text: bytes) -> None:
        """Let a call wait, or a notification."""
        self.entries[object() if call is None else call.call_id] = Unwritten(call, text)

    def write(self) -> None:
        """Write all that may begin now."""
        here, entries, size = self._here, self.entries, 0
        for key, unwritten in list(entries.items()):
            if key not in entries:
                continue  # it has ended, because the node was cut
            if not size and not self._writer.may_write(self._distant, here):
                self._hold_back()
                return
            del entries[key]
            here.let_go(unwritten.held)
            here.pass_on(unwritten.text)
            unwritten.tell_rest()
            size += len(unwritten.text)
            if size > SLICE:
                here.link.flush()
                size = 0
        here.link.flush()
        self._leave()

    def tell(self) -> bool:
        """Go on, because the node reads again. Returns False: it is no flow of a stream."""
        self.write()
        return False

    def _hold_back(self) -> None:
        """Hold room for what waits, and refuse that for which there is none."""
        pool_of(self._here).unread[self] = None
        for key, unwritten in list(self.entries.items()):
            if unwritten.held:
                continue
            size, is_open = len(unwritten.text), self._here.is_open
            if is_open and not self._here.crowded and self._here.hold(size):
                unwritten.held = size
            elif unwritten.call is not None:
                unwritten.call.cancel(errors.OVERLOADED if is_open else errors.NODE_LOST)
            else:
                self.drop(key)
                self._writer.dropped["notification"] += 1
        if self.entries and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        """Forget what is left of a node that is gone. Otherwise try again."""
        self._timer = None
        if self._here.is_open:
            self.write()
        else:
            self.clear()

    def drop(self, key: object) -> bool:
        """Forget one of them. Returns False if it is not there."""
        unwritten = self.entries.pop(key, None)
        if unwritten is None:
            return False
        self._here.let_go(unwritten.held)
        if not self.entries:
            self._leave()
        return True

    def _leave(self) -> None:
        """Let what comes next have a queue of its own, because nothing waits here any more."""
        pool_of(self._here).unread.pop(self, None)
        if self._distant.queues.get(self._here) is self:
            del self._distant.queues[self._here]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def clear(self) -> None:
        """Forget all of them. Its calls have ended, or end at their deadline."""
        for key in list(self.entries):
            self.drop(key)
