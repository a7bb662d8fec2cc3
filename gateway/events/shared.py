"""Publishing and subscribing, where other gateways share the topics. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from gateway.cluster.stream import Done, Position, SharedStream, unavailable
from gateway.events.delivery import Delivery, Recipient, Subscriber
from gateway.events.hub import Events, Met, full
from gateway.events.topics import FullError, Topics
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal
from gateway.rpc.work import Work

SOON: Final = 1.0
"""Seconds after which a gap is told on the gateway's own topics of which the stream has not taken a message."""

_AWAY = "messages may be missing here until it is reached again"


class SharedEvents(Events[Awaitable[Position]]):
    """The same over a stream that several gateways share, and that may be out of reach.

    ``member`` is this gateway's name for people, which is in all that it tells on the gateway's own topics. ``later``
    does something after so many seconds.
    """

    def __init__(
        self,
        topics: Topics,
        stream: SharedStream,
        delivery: Delivery,
        member: str,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        super().__init__(topics, stream, delivery)
        self._shared = stream
        self._member = member
        self._later = later
        self._untold: set[str] = set()
        """The gateway's own topics on which something was not told."""
        self._tells_soon = False
        stream.watchers.append(self._changed)

    def publish(self, name: str, data: bytes, owner: str = "") -> Awaitable[Position]:
        """Publish JSON on a topic, as `Events.publish` does. Raises Refusal if the stream is out of reach, too."""
        if not self._shared.available:
            raise unavailable("there is no connection to it")
        return super().publish(name, data, owner)

    def send(self, name: str, data: bytes, owner: str, done: Done) -> None:
        """Do what `publish` does, and call ``done`` with the result, once, later. Raises what `publish` raises."""
        if self._topics.get(name) is None:  # otherwise the stream looks itself, and the message moves the topic
            if not self._shared.available:
                raise unavailable("there is no connection to it")
            try:
                self._topics.touch(name, owner)
            except FullError:
                raise full() from None
        self._shared.send(name, data, owner, done)
        self.published += 1

    def wanted(self, name: str) -> bool:
        """Return True: a connection of another gateway may want to hear it."""
        return True

    def own(self, name: str, data: Mapping[str, object], owner: str = "") -> None:
        """Publish ``data`` on one of the gateway's own topics, if that is possible now.

        If it is not, subscribers everywhere are told of a gap soon, or when the stream is within reach again.
        """
        self._send(name, jsonrpc.encode({**data, "member": self._member}), owner)

    def _send(self, name: str, data: bytes, owner: str = "") -> None:
        def done(result: Position | Refusal) -> None:
            if isinstance(result, Refusal):
                self._missed(name)

        try:
            self._shared.send(name, data, owner, done)
        except Refusal:
            self._missed(name)
        else:
            self.published += 1

    def _missed(self, name: str) -> None:
        """Note that something was not told. A stream that is within reach says no word when it has room again."""
        self._untold.add(name)
        if self._shared.available and not self._tells_soon:
            self._tells_soon = True
            self._later(SOON, self._tell_now)

    def _tell_now(self) -> None:
        self._tells_soon = False
        self._changed(self._shared.available)

    def _changed(self, available: bool) -> None:
        """Tell what could not be told, if the stream is within reach now: that there is a gap."""
        if available:
            untold, self._untold = self._untold, set()
            for name in untold:
                self._send(name, b"")

    def is_small(self, patterns: Sequence[str], since: Collection[Position] = ()) -> bool:
        """Return what `Events.is_small` returns; False if other gateways know more than this one of a position."""
        return all(map(self._shared.knows, since)) and super().is_small(patterns, since)

    async def reach(self, since: Collection[Position]) -> None:
        """Wait until this gateway knows as much as those that have told these positions, for a moment at most."""
        ahead = [position for position in since if not self._shared.knows(position)]
        if ahead:
            await self._shared.reach(max(ahead))

    def subscribe(
        self, recipient: Recipient, patterns: Sequence[str], since: Mapping[str, Position]
    ) -> Work[tuple[Met, Subscriber]]:
        """Subscribe a connection, as `Events.subscribe` does.

        Raises Refusal for a ``since`` while the stream is out of reach: what was missed is not known then.
        """
        if since and not self._shared.available:
            raise unavailable(_AWAY)
        return (yield from super().subscribe(recipient, patterns, since))
