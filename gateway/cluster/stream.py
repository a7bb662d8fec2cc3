"""The stream of all published messages: it numbers them, keeps the last, and hands each to every gateway. Pure.

Publishing goes to the stream, and what the stream hands over is delivered: a message has no number before the stream
has it, and every subscriber, at whichever gateway, gets the messages of one topic in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from gateway.rpc import jsonrpc

Deliver = Callable[[str, bytes], None]
"""Takes a topic, and a message of it as JSON text (see `message`). Must not raise."""

_MESSAGE: Final = (
    b'{"jsonrpc":"2.0","method":"event.message","params":{"topic":%b,"offset":%d,"epoch":"%b","time":"%b","data":%b}}'
)


class Position(NamedTuple):
    """A point in a topic: after the message with this ``offset``, in this ``epoch``.

    Offsets grow. The epoch is another one whenever they begin again.
    """

    epoch: str
    offset: int


class Stream(Protocol):
    """All topics with what is kept of them. Topics begin by being published to, or asked for."""

    async def connect(self, deliver: Deliver) -> None:
        """Hand each message to ``deliver`` from now on, in order. Once, before all other calls."""

    async def close(self) -> None:
        """Hand over no more. May be called twice, or before ``connect``."""

    def publish(self, topic: str, data: bytes) -> Position:
        """Publish ``data``, which is JSON; returns the message's position."""

    def position(self, topic: str) -> Position:
        """Where a topic is now."""

    def since(self, topic: str, position: Position) -> Sequence[bytes] | None:
        """All messages after a position; None if some of them are gone, or it is no position of this topic."""

    def forget(self, topic: str) -> None:
        """A topic is no longer known here: it has no subscriber, and there are too many. Harmless if it is unknown."""


def message(topic: str, position: Position, time: str, data: bytes) -> bytes:
    """A message as its subscribers get it: the notification `event.message`. ``time`` is RFC 3339."""
    return _MESSAGE % (jsonrpc.encode(topic), position.offset, position.epoch.encode(), time.encode(), data)
