"""The stream of all published messages: it numbers them, keeps the latest, and hands each to every gateway. Pure.

A message is published to the stream, and delivered when the stream hands it over. So it has no number before the stream
has it, and every subscriber, at whichever gateway, gets the messages of one topic in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from gateway.rpc import jsonrpc


class Position(NamedTuple):
    """A point in a topic: right after the message with this ``offset``, in this ``epoch``.

    Offsets grow. Whenever they begin again, the epoch is another one.
    """

    epoch: str
    offset: int


Deliver = Callable[[str, Position, bytes], None]
"""Takes a topic, its position before a message, and that message as JSON text (see `message`). Must not raise."""

_MESSAGE: Final = (
    b'{"jsonrpc":"2.0","method":"event.message","params":{"topic":%b,"offset":%d,"epoch":"%b","time":"%b","data":%b}}'
)


_EPOCH: Final = "0" * 16
_LAST: Final = 10**18
_TIME: Final = "2026-11-23T10:26:46.014Z"


class Stream(Protocol):
    """All topics, and the messages that are kept of them. A topic begins with its first message."""

    async def connect(self, deliver: Deliver) -> None:
        """Hand each message to ``deliver`` from now on, in order. Once, before all other calls."""

    async def close(self) -> None:
        """Hand over no more messages. May be called twice, or before ``connect``."""

    def publish(self, topic: str, data: bytes, owner: str = "") -> Position:
        """Publish ``data``, which is JSON. Returns the message's position.

        ``owner`` is the principal for which the message counts if there is too much to keep.
        """

    def position(self, topic: str) -> Position:
        """Return where a topic is now. Of one that has not begun, this is where it begins if it begins soon.

        Asking costs no memory.
        """

    def expect(self, topic: str) -> Position:
        """Return where a topic is now. If it has not begun it will begin there, until it is forgotten."""

    def since(self, topic: str, position: Position, most: int) -> Sequence[tuple[int, bytes]] | None:
        """Return the first messages after a position, ``most`` at most, each with its offset and as JSON text.

        Returns None if the next one is gone, or the topic has no such position.
        """

    def oldest(self, topic: str) -> Position:
        """Return the position right before the oldest message that is kept; where the topic is now if none is."""

    def forget(self, topic: str) -> None:
        """Let go of a topic that has to make room, or is expected no longer. Harmless if it is unknown."""


def message(topic: str, position: Position, time: str, data: bytes) -> bytes:
    """Return a message as its subscribers get it: the notification `event.message`. ``time`` is RFC 3339."""
    return message_of(jsonrpc.encode(topic), position, time, data)


def message_of(topic: bytes, position: Position, time: str, data: bytes) -> bytes:
    """Return the same for a topic's name that is in JSON already."""
    return _MESSAGE % (topic, position.offset, position.epoch.encode(), time.encode(), data)


def envelope(topic: str) -> int:
    """Return how many bytes `message` puts around ``data``, at most: those of an offset that no topic reaches."""
    return len(message(topic, Position(_EPOCH, _LAST), _TIME, b""))
