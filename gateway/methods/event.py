"""`event.*`: publishes messages, and subscribes to topics."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from gateway import errors
from gateway.cluster.stream import Position, envelope
from gateway.connections.connection import Connection
from gateway.events.hub import Events
from gateway.names import MAX_NAME, is_dotted_name, is_pattern
from gateway.rpc.method import AUTHENTICATED, BadParams, Refusal, Then, method

Patterns = Annotated[list[str], Meta(min_length=1, max_length=1000)]


class Since(msgspec.Struct, forbid_unknown_fields=True):
    """The position of the last message of a topic that the subscriber has received."""

    epoch: str
    offset: Annotated[int, Meta(ge=0)]


class SubscribeParams(msgspec.Struct, forbid_unknown_fields=True):
    """``topics`` may have the wildcards `*` and `>`. ``since`` says after which message of a topic some were missed."""

    topics: Patterns
    since: dict[str, Since] = {}


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

    def __init__(self, events: Events, max_message_bytes: int) -> None:
        self._events = events
        self._max_message_bytes = max_message_bytes

    @method("event.subscribe", scope=AUTHENTICATED)
    def subscribe(self, peer: Connection, params: SubscribeParams) -> Then[Subscribed]:
        """Subscribe to topics and patterns. Needs the scope `subscribe:` for each.

        The reply comes first, then the missed messages, then new ones.
        """
        for number, pattern in enumerate(params.topics):
            if not is_pattern(pattern):
                right = "parts with dots between; * stands for one, a last > for the rest"
                raise BadParams(f"topics[{number}]: must be at most {MAX_NAME} characters, {right}")
            if not peer.principal.allows(f"subscribe:{pattern}"):
                raise Refusal(errors.FORBIDDEN, f"subscribe:{pattern}")
        since = {name: Position(last.epoch, last.offset) for name, last in params.since.items()}
        met, release = self._events.subscribe(peer, params.topics, since)
        result = Subscribed(
            {
                name: TopicState(position.epoch, position.offset, recovered)
                for name, (position, recovered) in met.items()
            }
        )
        return Then(result, release)

    @method("event.unsubscribe", scope=AUTHENTICATED)
    def unsubscribe(self, peer: Connection, params: UnsubscribeParams) -> Subscriptions:
        """End subscriptions, and return those that are left."""
        return Subscriptions(self._events.unsubscribe(peer, params.topics))

    @method("event.publish", scope=AUTHENTICATED)
    def publish(self, peer: Connection, params: PublishParams) -> Published:
        """Publish a message. Needs the scope `publish:` for the topic."""
        if not is_dotted_name(params.topic):
            raise BadParams(f"topic: must be at most {MAX_NAME} characters, parts with dots between, without * and >")
        if not peer.principal.allows(f"publish:{params.topic}"):
            raise Refusal(errors.FORBIDDEN, f"publish:{params.topic[:MAX_NAME]}")
        room = self._max_message_bytes - envelope(params.topic)
        if len(params.data) > room:
            raise Refusal(errors.TOO_LARGE, f"data has more than {room} bytes", outcome="not_delivered")
        position = self._events.publish(params.topic, bytes(params.data))
        return Published(position.offset, position.epoch)
