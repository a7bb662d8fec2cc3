"""The stream of all published messages: it numbers them, keeps the latest, and hands each to every gateway. Pure.

A message is published to the stream, and delivered when the stream hands it over. So it has no number before the stream
has it, and every subscriber, at whichever gateway, gets the messages of one topic in the same order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from gateway import errors
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal, not_run


class Position(NamedTuple):
    """A point in a topic: right after the message with this ``offset``, in this ``epoch``.

    Offsets grow. Whenever they begin again, the epoch is another one.
    """

    epoch: str
    offset: int


position_of: Final[Callable[[tuple[str, int]], Position]] = partial(tuple.__new__, Position)
"""Makes a position of its epoch and offset, in half the time: for each message that comes."""


class Lapse(NamedTuple):
    """Messages that are lost, it is not known which: ``topics`` has the position after which some may be, by topic.

    Topics that the stream does not know have had messages after ``rest``, if they have had any.
    """

    topics: Mapping[str, Position]
    rest: Position


Deliver = Callable[[str, Position, bytes], None]
"""Takes a topic, its position before a message, and that message as JSON text (see `message`). Must not raise."""


Begin = Callable[[str, str], None]
"""Takes the topic of the message that comes next, and its principal, at whichever gateway. Must not raise."""


class Listener(Protocol):
    """What a stream hands its messages to (`events.delivery.Delivery`). None of this may raise.

    A stream that only one gateway has uses `deliver` alone.
    """

    @property
    def deliver(self) -> Deliver:
        """Delivers a message to the subscribers."""

    @property
    def begin(self) -> Begin:
        """Notes that a message of a topic comes next."""

    def pause(self) -> None:
        """Send nothing to subscribers until `resume`, but note what is delivered. May be called again before it."""

    def resume(self, lapse: Lapse | None) -> None:
        """Send what has been delivered since `pause`, from the history, and after all positions of a ``lapse``."""


MESSAGE: Final = (
    b'{"jsonrpc":"2.0","method":"event.message","params":{"topic":%b,"offset":%d,"epoch":"%b","time":"%b","data":%b}}'
)
"""What is made of a message: of its topic in JSON, its position, its time, and its data."""


_GAP: Final = b'{"jsonrpc":"2.0","method":"event.gap","params":{"topic":%b,"epoch":"%b","offset":%d}}'

_EPOCH: Final = "0" * 16
_LAST: Final = 10**18
_TIME: Final = "2026-11-23T10:26:46.014Z"


Done = Callable[[Position | Refusal], None]
"""Takes the position of a message that is published, or why it may not be."""

Published_co = TypeVar("Published_co", bound=Position | Awaitable[Position], covariant=True)


class Stream(Protocol[Published_co]):
    """All topics, and the messages that are kept of them. A topic begins with its first message."""

    async def connect(self, listener: Listener) -> None:
        """Hand each message to ``listener`` from now on, in order. Once, before all other calls."""

    async def close(self) -> None:
        """Hand over no more messages. May be called twice, or before ``connect``."""

    def publish(self, topic: str, data: bytes, owner: str = "") -> Published_co:
        """Publish ``data``, which is JSON. Returns the message's position, or what will be it if that takes its time.

        ``owner`` is the principal for which the message counts if there is too much to keep. A stream that takes its
        time raises `rpc.method.Refusal`, here or when it is awaited, and says whether the message may be published.
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


class SharedStream(Stream[Awaitable[Position]], Protocol):
    """A stream that several gateways have in common, and that may be out of reach for a while."""

    watchers: list[Callable[[bool], None]]
    """Each is called with `available` whenever that has changed."""

    @property
    def available(self) -> bool:
        """Whether it can be published to, and all that it has is known here."""

    def knows(self, position: Position) -> bool:
        """Return whether all up to this position is known here. False if another gateway knows more at the moment."""

    async def reach(self, position: Position) -> None:
        """Wait until all up to this position is known here, for a moment at most."""

    def send(self, topic: str, data: bytes, owner: str, done: Done) -> None:
        """Do what `publish` does, and call ``done`` with the result, once, later. Raises Refusal like `publish`.

        If there is no ``data``, all subscribers of the topic are told that messages are lost.
        """


def message(topic: str, position: Position, time: str, data: bytes) -> bytes:
    """Return a message as its subscribers get it: the notification `event.message`. ``time`` is RFC 3339."""
    return message_of(jsonrpc.encode(topic), position, time, data)


def message_of(topic: bytes, position: Position, time: str, data: bytes) -> bytes:
    """Return the same for a topic's name that is in JSON already."""
    return MESSAGE % (topic, position.offset, position.epoch.encode(), time.encode(), data)


def gap(topic: str, position: Position) -> bytes:
    """Return the notification `event.gap`: messages of this topic are lost, up to this position."""
    return gap_of(jsonrpc.encode(topic), position)


def gap_of(topic: bytes, position: Position) -> bytes:
    """Return the same for a topic's name that is in JSON already."""
    return _GAP % (topic, position.epoch.encode(), position.offset)


def envelope(topic: str) -> int:
    """Return how many bytes `message` puts around ``data``, at most: those of an offset that no topic reaches."""
    return len(message(topic, Position(_EPOCH, _LAST), _TIME, b""))


def unavailable(why: str) -> Refusal:
    """Return the refusal of what needs a stream that is out of reach. Nothing was done, and nothing will be."""
    return not_run(errors.UNAVAILABLE, f"NATS: {why}", retryAfterMs=errors.RETRY_AWAY_MS)
