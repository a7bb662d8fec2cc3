"""`event.*`: publishes messages, and subscribes to topics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from gateway import errors
from gateway.auth.scopes import Principal
from gateway.cluster.stream import Position, envelope
from gateway.connections.connection import Connection
from gateway.events.delivery import Subscriber
from gateway.events.hub import Events, Met
from gateway.events.index import MAX_PARTS, fits
from gateway.names import MAX_NAME, is_dotted_name, is_pattern
from gateway.rpc.method import AUTHENTICATED, BadParams, Continue, Refusal, Then, method, not_run
from gateway.rpc.requests import Running
from gateway.rpc.steps import Steps
from gateway.rpc.work import Pace, Work, at_once

_ONE_BY_ONE: Final = frozenset({"event.subscribe", "event.unsubscribe"})

Patterns = Annotated[list[str], Meta(min_length=1, max_length=1000)]


class Since(msgspec.Struct, forbid_unknown_fields=True):
    """The position of the last message of a topic that the subscriber has received."""

    epoch: str
    offset: Annotated[int, Meta(ge=0)]


class SubscribeParams(msgspec.Struct, forbid_unknown_fields=True):
    """``topics`` may have the wildcards `*` and `>`. ``since`` says after which message of a topic some were missed."""

    topics: Patterns
    since: Annotated[dict[str, Since], Meta(max_length=1000)] = {}


class TopicState(msgspec.Struct, omit_defaults=True):
    """The position of a topic. ``recovered`` is whether all messages since the position in ``since`` follow."""

    epoch: str
    offset: int
    recovered: bool | None = None


class Subscribed(msgspec.Struct):
    """All topics that the subscriptions match now, by name."""

    topics: dict[str, TopicState]


class UnsubscribeParams(msgspec.Struct, forbid_unknown_fields=True):
    """Names topics and patterns, as in the subscription."""

    topics: Patterns


class Subscriptions(msgspec.Struct):
    """The topics and patterns to which the connection is subscribed."""

    topics: list[str]


class PublishParams(msgspec.Struct, forbid_unknown_fields=True):
    """A message. ``data`` is any JSON, and reaches the subscribers byte for byte."""

    topic: str
    data: Raw


class Published(msgspec.Struct):
    """The position of the message in its topic."""

    offset: int
    epoch: str


class EventMethods:
    """The methods of `event.*`. ``max_message_bytes`` bounds the messages that are made of what is published."""

    def __init__(self, events: Events[Any], steps: Steps, max_message_bytes: int) -> None:
        self._events = events
        self._steps = steps
        self._max_message_bytes = max_message_bytes
        self._turns: dict[Connection, asyncio.Lock] = {}
        self._in_turn: Counter[Connection] = Counter()

    def _is_small(self, peer: Connection, patterns: Sequence[str], since: Collection[Position] = ()) -> bool:
        """Return whether a change of subscriptions may be made at once: it is little work, and overtakes no other."""
        return self._events.is_small(patterns, since) and not any(
            isinstance(running, Running) and running.method.name in _ONE_BY_ONE for running in peer.running.values()
        )

    @asynccontextmanager
    async def _turn(self, peer: Connection) -> AsyncIterator[None]:
        """Wait until all changes of this connection's subscriptions that were asked for earlier have been made."""
        self._in_turn[peer] += 1
        try:
            async with self._turns.setdefault(peer, asyncio.Lock()):
                yield
        finally:
            self._in_turn[peer] -= 1
            if not self._in_turn[peer]:
                del self._in_turn[peer], self._turns[peer]

    @method("event.subscribe", scope=AUTHENTICATED)
    def subscribe(self, peer: Connection, params: SubscribeParams) -> Then[Subscribed]:
        """Subscribe to topics and patterns. Needs the scope `subscribe:` for each.

        The reply comes first, then the missed messages, then new ones.
        """
        since = _positions(params)
        if not self._is_small(peer, params.topics, since.values()):
            raise Continue(lambda: self._subscribe_in_steps(peer, params, since))
        at_once(_check(peer, params.topics))
        return _subscribed(at_once(self._events.subscribe(peer, params.topics, since)))

    async def _subscribe_in_steps(
        self, peer: Connection, params: SubscribeParams, since: Mapping[str, Position]
    ) -> Then[Subscribed]:
        async with self._turn(peer):
            checked: Principal | None = None
            if since:  # it may wait for them, but not on behalf of a peer that may not subscribe
                checked = peer.principal
                await self._steps.take(_check(peer, params.topics))
                await self._events.reach(since.values())
            return _subscribed(await self._steps.take(self._subscribing(peer, params, since, checked)))

    def _subscribing(
        self, peer: Connection, params: SubscribeParams, since: Mapping[str, Position], checked: Principal | None
    ) -> Work[tuple[Met, Subscriber]]:
        """Subscribe a connection, unless it may not. The subscription begins in the step in which the check ends.

        ``checked`` is the principal for which that has been checked already. Another one may come between two steps.
        """
        while checked is not peer.principal:
            checked = peer.principal
            yield from _check(peer, params.topics)
        return (yield from self._events.subscribe(peer, params.topics, since))

    @method("event.unsubscribe", scope=AUTHENTICATED)
    def unsubscribe(self, peer: Connection, params: UnsubscribeParams) -> Subscriptions:
        """End subscriptions, and return those that are left."""
        if not self._is_small(peer, params.topics):
            raise Continue(lambda: self._unsubscribe_in_steps(peer, params))
        return Subscriptions(at_once(self._events.unsubscribe(peer, params.topics)))

    async def _unsubscribe_in_steps(self, peer: Connection, params: UnsubscribeParams) -> Subscriptions:
        async with self._turn(peer):
            return Subscriptions(await self._steps.take(self._events.unsubscribe(peer, params.topics)))

    @method("event.publish", scope=AUTHENTICATED)
    def publish(self, peer: Connection, params: PublishParams) -> Published:
        """Publish a message. Needs the scope `publish:` for the topic."""
        room = self._room(params.topic)
        if not peer.principal.allows(f"publish:{params.topic}"):
            raise forbidden(params.topic)
        if len(params.data) > room:
            raise too_large(room)
        position = self._events.publish(params.topic, bytes(params.data), peer.principal.name)
        return Published(position.offset, position.epoch)

    def _room(self, topic: str) -> int:
        """Return the room for the data of a message on this topic, in bytes. Raises BadParams for what is no topic."""
        if not is_dotted_name(topic):
            raise BadParams(f"topic: must be at most {MAX_NAME} characters, parts with dots between, without * and >")
        return self._max_message_bytes - envelope(topic)


def forbidden(topic: str) -> Refusal:
    """Return the refusal of a caller that may not publish on a topic."""
    return Refusal(errors.FORBIDDEN, f"publish:{topic[:MAX_NAME]}")


def too_large(room: int) -> Refusal:
    """Return the refusal of data that has no room in a message."""
    return not_run(errors.TOO_LARGE, f"data has more than {room} bytes")


def _check(peer: Connection, patterns: Sequence[str]) -> Work[None]:
    """Raise BadParams or Refusal for a pattern that is none, or that the connection may not subscribe to."""
    pace = Pace()
    for number, pattern in enumerate(patterns):
        if not is_pattern(pattern):
            right = "parts with dots between; * stands for one, a last > for the rest"
            raise BadParams(f"topics[{number}]: must be at most {MAX_NAME} characters, {right}")
        if not fits(pattern):
            raise BadParams(f"topics[{number}]: must have at most {MAX_PARTS} parts, because it has * or >")
        if not peer.principal.allows(f"subscribe:{pattern}"):
            raise Refusal(errors.FORBIDDEN, f"subscribe:{pattern}")
        if pace.over(1 + len(peer.principal.scopes)):
            yield


def _positions(params: SubscribeParams) -> dict[str, Position]:
    return {name: Position(last.epoch, last.offset) for name, last in params.since.items()}


def _subscribed(done: tuple[Met, Subscriber]) -> Then[Subscribed]:
    met, subscriber = done
    states = {name: TopicState(at.epoch, at.offset, recovered) for name, (at, recovered) in met.items()}
    return Then(Subscribed(states), subscriber.go_on)
