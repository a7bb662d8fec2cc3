"""Subscriptions, which outlive a link: events in the order of their offsets, and a gap if some are lost."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Raw

from gateway.client.buffer import Buffer
from gateway.client.errors import CallError
from gateway.client.link import deeply
from gateway.client.sending.session import Session
from gateway.rpc import jsonrpc

EVENTS: Final = 1000
"""How many events of a subscription wait for its reader by default."""

MAX_POSITIONS: Final = 3000
"""How many topics of a subscription have their position remembered, the latest."""

MAX_SINCE: Final = 1000
"""How many positions one request may have."""

_ENVELOPE: Final = 100
"""How many bytes the request has around its params, at most."""


class Position(msgspec.Struct, frozen=True):
    """A position in a topic: after the message with this ``offset`` in this ``epoch``."""

    epoch: str
    offset: int


class Event(msgspec.Struct, frozen=True):
    """A message of a topic. ``time`` is when it was published, in UTC; ``data`` is its decoded JSON."""

    topic: str
    offset: int
    epoch: str
    time: datetime
    data: Any


class Gap(msgspec.Struct, frozen=True):
    """Messages of this topic are lost: whatever was built from them has to be read again.

    If a slow reader has lost messages of thousands of topics, ``topic`` is a pattern that stands for all of them. So it
    is if gateways of a cluster cannot tell which topics have lost messages.
    """

    topic: str


class GapParams(msgspec.Struct, frozen=True):
    """The params of `event.gap`: messages of this topic are lost up to this position."""

    topic: str
    epoch: str
    offset: int


class _State(msgspec.Struct, frozen=True):
    epoch: str
    offset: int
    recovered: bool | None = None


class _Reply(msgspec.Struct):
    topics: dict[str, _State]


_decode_event: Final = msgspec.json.Decoder(Event).decode

Since = Mapping[str, Event | Position | Mapping[str, Any]]
Subscribe = Callable[["Subscription"], Awaitable[None]]
Leave = Callable[["Subscription"], None]


class Subscription:
    """The messages of topics and patterns: an async iterable of `Event` and `Gap`, for one reader.

    It begins with ``async with``, which waits up to 30 seconds until the gateway has taken it, or with the first step
    of ``async for``; it ends with that block or loop. After a reconnect it continues where it was; if messages are
    lost it yields a `Gap` for their topic. If the reader is slow ``buffer`` items wait; with one more the older half of
    them is dropped. Then a `Gap` comes before the next event of each topic that has lost some, at the latest when
    nothing else waits. Use it once: a second time raises RuntimeError.

    Beginning and iterating raise `CallError` if the gateway refuses the subscription, and `ConnectionLost` if the
    client does not reconnect. The iteration stops when the client is closed.
    """

    def __init__(
        self, patterns: tuple[str, ...], since: Since | None, buffer: int, subscribe: Subscribe, leave: Leave
    ) -> None:
        if not patterns:
            raise ValueError("subscribe to one topic at least")
        self.patterns: Final = patterns
        self._subscribe = subscribe
        self._leave = leave
        self._parts = [pattern.split(".") for pattern in patterns]
        self._items: Buffer[Event | Gap] = Buffer(buffer, self._dropped, at_once=buffer // 2)
        self._next: deque[Event | Gap] = deque()
        self._gaps: dict[str, None] = {}
        self._wide = [pattern for pattern in patterns if "*" in pattern or ">" in pattern]
        self._positions = {topic: _position(position) for topic, position in (since or {}).items()}
        self._catching_up: set[str] = set()
        self._entered = False
        self._active = False
        self.began = False
        """Whether the gateway has once taken it, so that the next link has to ask for it again."""

    # For its reader

    @property
    def waiting(self) -> int:
        """How many events and gaps have arrived and are not read yet."""
        return len(self._items) + len(self._next)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a subscription is used once")
        self._entered = True
        try:
            await self._subscribe(self)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, error: Exception | None = None) -> None:
        """End the subscription. What has arrived can still be read. Calling it again has no effect.

        ``error`` is raised to the reader after that; without one the iteration stops.
        """
        self._active = False
        self._items.close(error)
        self._leave(self)

    async def __aiter__(self) -> AsyncIterator[Event | Gap]:
        within_block = self._entered
        if not within_block:
            await self.__aenter__()
        try:
            while self._next or await self._fetch():
                yield self._next.popleft()
        finally:
            if not within_block:
                self.close()

    async def _fetch(self) -> bool:
        """Wait for an item and put it into `_next`, with its gaps. False if there will be none.

        It stays there until it is told: a reader that leaves the loop after a gap may come back.
        """
        if self._gaps and not self._items:
            self._next.extend(map(Gap, self._gaps))
            self._gaps.clear()
        elif (item := await anext(self._items, None)) is not None:
            owed = [name for name in (item.topic, *self._wide) if name in self._gaps]
            for name in owed:
                del self._gaps[name]
            self._next.extend(Gap(name) for name in owed if item != Gap(name))
            self._next.append(item)
            # Gaps of other topics come one by one: if all came at once, more would be dropped meanwhile than is read.
            if other := next(iter(self._gaps), None):
                del self._gaps[other]
                self._next.append(Gap(other))
        return bool(self._next)

    # For the connection

    def meets(self, topic: str) -> bool:
        """Whether one of its patterns matches this topic: `*` is one part, a last `>` one or more."""
        parts = topic.split(".")
        # The gateway's own topics match only patterns that begin as they do.
        own = _is_own(parts)
        return any(_is_own(pattern) == own and _meets(pattern, parts) for pattern in self._parts)

    def suspend(self) -> None:
        """Take no messages until the next `join`, because the link is lost."""
        self._active = False

    def deliver(self, event: Event) -> None:
        """Take a message, unless it was taken before, will come again, or is not for this subscription."""
        if self._is_new(event):
            self._items.put(event)

    def lost(self, gap: GapParams) -> None:
        """Take a gap, unless what is lost was taken before, or is not for this subscription."""
        if (self._active and gap.topic in self._wide) or self._is_new(gap):  # there is no position to remember
            self._items.put(Gap(gap.topic))

    def _is_new(self, at: Event | GapParams) -> bool:
        """Return whether a message or a gap counts here, and move to its position."""
        if not self._active or at.topic in self._catching_up or not self.meets(at.topic):
            return False
        position = self._positions.get(at.topic)
        if position is not None and position.epoch == at.epoch and at.offset <= position.offset:
            return False
        self._remember(at.topic, Position(at.epoch, at.offset))
        return True

    async def join(self, session: Session) -> None:
        """Subscribe on this connection, from where the subscription was. Raises `CallError`."""
        newest = [topic for topic in reversed(self._positions) if self.meets(topic)]
        await self._ask(session, self._places(session, newest), self._joined)
        while self._catching_up:
            await self._ask(session, self._places(session, self._catching_up), self._caught_up)

    async def rejoin(self, session: Session) -> None:
        """Subscribe again. If that fails for good the subscription ends. Raises `CallError`."""
        try:
            await self.join(session)
        except CallError as error:
            if not error.temporary:
                self.close(error)
            raise

    def _places(self, session: Session, topics: Collection[str]) -> dict[str, Position]:
        """Return the positions in the first of these topics, as many as one request may have and has room for."""
        if not topics:
            return {}
        room = session.limit("maxMessageBytes", sys.maxsize) - len(_params(self.patterns, {})) - _ENVELOPE
        places: dict[str, Position] = {}
        for topic in topics:
            position = self._positions[topic]
            room -= len(jsonrpc.encode({topic: position}))
            if places and (room < 0 or len(places) == MAX_SINCE):
                break
            places[topic] = position
        return places

    async def _ask(
        self, session: Session, since: dict[str, Position], on_reply: Callable[[dict[str, Position], _Reply], None]
    ) -> None:
        # `on_reply` runs before the messages that follow the reply are looked at.
        await session.request(
            "event.subscribe",
            Raw(_params(self.patterns, since)),
            on_reply=lambda result: on_reply(since, msgspec.convert(result, _Reply)),
            of_link=True,  # the gateway ends all subscriptions with the link, even if it keeps the connection
        )

    def _joined(self, since: dict[str, Position], reply: _Reply) -> None:
        self._catching_up = {topic for topic in self._positions if topic not in since and self.meets(topic)}
        for topic, state in reply.topics.items():
            if state.recovered is True or topic in self._catching_up:
                continue  # the missed messages follow, or will be asked for
            if self.began and state.recovered is None and state.offset > 0:
                # The topic began while there was no link: all of it was missed.
                self._catching_up.add(topic)
                self._remember(topic, Position(state.epoch, 0))
                continue
            if state.recovered is False:
                self._items.put(Gap(topic))
            self._remember(topic, Position(state.epoch, state.offset))
        for topic in since.keys() - reply.topics.keys():  # the gateway no longer knows it
            self._items.put(Gap(topic))
            self._positions.pop(topic, None)
        self.began = self._active = True

    def _caught_up(self, since: dict[str, Position], reply: _Reply) -> None:
        for topic in since:
            state = reply.topics.get(topic)
            if state is None or not state.recovered:
                self._items.put(Gap(topic))
            if state is None:
                self._positions.pop(topic, None)
            elif not state.recovered:
                self._remember(topic, Position(state.epoch, state.offset))
        self._catching_up -= since.keys()

    def _remember(self, topic: str, position: Position) -> None:
        self._positions.pop(topic, None)
        self._positions[topic] = position
        if len(self._positions) > MAX_POSITIONS:
            oldest = next(iter(self._positions))
            del self._positions[oldest]
            self._catching_up.discard(oldest)

    def _dropped(self, item: Event | Gap) -> None:
        if len(self._gaps) >= MAX_POSITIONS + len(self.patterns):
            self._gaps = dict.fromkeys(self.patterns)
        self._gaps[item.topic] = None


class Subscriptions:
    """All subscriptions of one client."""

    def __init__(self) -> None:
        self._all: list[Subscription] = []

    def add(self, subscription: Subscription) -> None:
        """Add a subscription that begins."""
        self._all.append(subscription)

    def remove(self, subscription: Subscription) -> list[str]:
        """Remove a subscription that is over; return those of its patterns that no other has.

        Does nothing for one that is not there.
        """
        if subscription not in self._all:
            return []
        self._all.remove(subscription)
        others = {pattern for other in self._all for pattern in other.patterns}
        return [pattern for pattern in dict.fromkeys(subscription.patterns) if pattern not in others]

    def deliver(self, params: Raw) -> None:
        """Give the params of an `event.message` to all subscriptions. Raises msgspec.DecodeError."""
        event = deeply(_decode_event, bytes(params))
        for subscription in self._all:
            subscription.deliver(event)

    def lost(self, params: Raw) -> None:
        """Give the params of an `event.gap` to all subscriptions. Raises msgspec.DecodeError."""
        gap = msgspec.json.decode(params, type=GapParams)
        for subscription in self._all:
            subscription.lost(gap)

    def suspend(self) -> None:
        """Suspend all, because the link is lost."""
        for subscription in self._all:
            subscription.suspend()

    def all(self) -> list[Subscription]:
        """Return the subscriptions that have not ended."""
        return list(self._all)

    def close(self, error: Exception | None) -> None:
        """End all, because there will be no further link."""
        for subscription in self.all():
            subscription.close(error)


def _params(patterns: tuple[str, ...], since: dict[str, Position]) -> bytes:
    return jsonrpc.encode({"topics": patterns, "since": since})


def _is_own(parts: list[str]) -> bool:
    return len(parts) > 1 and parts[0] == "gateway"


def _meets(pattern: list[str], parts: list[str]) -> bool:
    if pattern[-1] == ">":
        head = pattern[:-1]
        return len(parts) > len(head) and all(map(_meets_part, head, parts))
    return len(parts) == len(pattern) and all(map(_meets_part, pattern, parts))


def _meets_part(pattern: str, part: str) -> bool:
    return pattern in ("*", part)


def _position(position: Event | Position | Mapping[str, Any]) -> Position:
    if isinstance(position, Event | Position):
        return Position(position.epoch, position.offset)
    try:
        return msgspec.convert({"epoch": position["epoch"], "offset": position["offset"]}, Position)
    except (KeyError, TypeError, msgspec.ValidationError):
        raise ValueError(f"since: a position has an epoch and an offset, not {position!r}") from None
