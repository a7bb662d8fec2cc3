"""What waits for a peer, and whom that holds up: pressure goes back to those who send to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.connections.session import Session
from gateway.events.delivery import Subscriber
from gateway.limits import Account
from gateway.rpc.calls import Link as Sender
from gateway.rpc.streams import Pool
from gateway.websocket.frames import NOTHING_WRITTEN, State, Written
from gateway.websocket.link import Link


class Pressed:
    """The part of a connection that holds bytes for its peer, and holds others up until the peer has read.

    ``account`` has what is held for all connections of its principal, ``link`` is the connection's own, and
    ``subscriber`` has its subscriptions, ``pool`` what its streams have in common; they are None if there are none.
    """

    __slots__ = ("_held_bytes", "_held_up", "_patience", "_waits", "account", "link", "pool", "subscriber")

    elsewhere: Final = False

    link: Link
    session: Session | None

    def __init__(self, account: Account) -> None:
        self.account = account
        self.subscriber: Subscriber | None = None
        self.pool: Pool | None = None
        self._held_bytes = 0
        self._held_up: dict[Sender, None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._waits = 0

    def wait(self) -> None:
        """Read no more from the peer until `go_on`, whatever link it has meanwhile. Once for each reason to wait."""
        self._waits += 1
        self.link.wait()

    def go_on(self) -> None:
        """End one `wait`."""
        self._waits -= 1
        self.link.go_on()

    @property
    def stalled(self) -> bool:
        """Whether the peer does not read now."""
        return self.link.blocked

    @property
    def pressed(self) -> bool:
        """Whether so much waits for the peer that nothing more may be sent to it of others' own accord."""
        return self.link.barred

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for the peer, beside its outbox, until `let_go`. Returns False if there is no room.

        There is room for `limits.max_outbox_bytes`, together with what is in the outbox.
        """
        link, account = self.link, self.account
        if link.outbox_bytes + self._held_bytes + octets > link.outbox_bound or account.held + octets > account.bound:
            return False
        self._held_bytes += octets
        account.held += octets
        return True

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""
        self._held_bytes -= octets
        self.account.held -= octets

    def hold_up(self, sender: Sender) -> None:
        """Read no more from ``sender``, by which calls of the peer are answered, until the peer has read all.

        It is held up for `limits.outbox_timeout` at most. May be called again.
        """
        if self.unheeding or sender is self.link:
            return
        if self._held_up is None:
            self._held_up = {}
            self._patience = self.link.loop.call_later(self.link.outbox_timeout, self._lose_patience)
        if sender not in self._held_up:
            self._held_up[sender] = None
            sender.wait()

    @property
    def unheeding(self) -> bool:
        """Whether the peer has held others up for as long as it may, and has not read everything since."""
        return self._patience is not None and self._held_up is None

    def _lose_patience(self) -> None:
        """Let those go on that were held up. From now on what is too much is refused, until the peer has read."""
        held_up, self._held_up = self._held_up, None
        for link in held_up or ():
            link.go_on()

    def relieve(self) -> None:
        """Let those go on that were held up, because the peer has read what waited for it, or is gone."""
        if self._patience is not None:
            self._patience.cancel()
            self._lose_patience()
            self._patience = None

    @property
    def send_frame(self) -> Callable[[bytes], None]:
        """Sends one frame made by `websocket.frames.text_frame`, as `pass_on` does. It can go to many connections."""
        return self.link.pass_frame_on

    @property
    def write(self) -> Callable[[bytes], None]:
        """Writes one frame past the outbox, in which nothing may wait.

        The subscriber counts what is written so in its ``past``, and tells `count` when it goes.
        """
        return self.link.transport.write

    def count(self, messages: int, octets: int) -> None:
        """Count what was written past the outbox, when the subscriber no longer does."""
        self.link.count(messages, octets)

    @property
    def past(self) -> Written:
        """What was written past the outbox for the subscriber."""
        return NOTHING_WRITTEN if self.subscriber is None else self.subscriber.past

    def feed(self) -> None:
        """Send the subscriber what it is behind with: some now, the rest in later event-loop iterations."""
        subscriber = self.subscriber
        if subscriber is not None and not subscriber.feeding:
            self._feed(subscriber)

    def _feed(self, subscriber: Subscriber) -> None:
        subscriber.feeding = subscriber.feed()
        if subscriber.feeding:
            self.link.loop.call_soon(self._feed, subscriber)

    @property
    def flowing(self) -> bool:
        """Whether what is sent to the peer leaves at once: it has a link, and reads."""
        link, session = self.link, self.session
        return link.state is State.OPEN and not link.blocked and (session is None or session.caught_up)

    @property
    def room(self) -> int:
        """How many bytes others may send to the peer by its streams, in all. Below zero if too much waits already.

        A quarter of what may wait is left for the last value of each stream, which may be longer than its credit.
        """
        link, session, account = self.link, self.session, self.account
        room = link.outbox_bound * 3 // 4 - link.outbox_bytes
        if session is not None:
            room = min(room, session.max_bytes * 3 // 4 - session.octets)
        return int(min(room, account.high_mark - account.held))

    def let_streams_go_on(self) -> None:
        """Let more be sent by streams to the peer, because it has read."""
        if self.pool is not None:
            self.pool.share()

    def tell_of_streams(self) -> None:
        """Tell the peer how much more it may send by its streams, because it reads again."""
        if self.pool is not None:
            self.pool.read_on()

    def charge(self, account: Account) -> None:
        """Let ``account`` have what is held for the peer, from now on."""
        self.account.held -= self._held_bytes
        account.held += self._held_bytes
        self.account = account
        self.link.charge_to(account)
