"""A gateway's own stream with a clock that the test moves, and epochs that it can tell apart."""

import itertools
from typing import Final

from gateway.cluster.memory import MemoryStream
from gateway.cluster.stream import Position, message
from tests.support.ears import at_once
from tests.support.listening import Listening, data_of

TIME: Final = "1970-01-01T00:00:01.999Z"
OVERHEAD: Final = len(message("a", Position("epoch 1", 1), TIME, b""))
"""Bytes of a message beside its data, as long as topic, offset and epoch are as short as here."""


class Desk:
    """A stream with a clock that the test moves, and epochs that it can tell apart."""

    def __init__(self, *, count: int = 100, age: float = 60.0, size: int = 100_000) -> None:
        self.now = 1000.0
        epochs = itertools.count(1)
        self.stream = MemoryStream(
            lambda: self.now, lambda: TIME, lambda: f"epoch {next(epochs)}", count=count, age=age, octets=size
        )
        self.listener = Listening()
        at_once(self.stream.connect(self.listener))

    @property
    def heard(self) -> list[tuple[str, bytes]]:
        """What it has handed over."""
        return [(topic, text) for topic, _, text in self.listener.heard]

    def publish(self, name: str, *data: bytes, owner: str = "") -> str:
        """One message after the other; returns the topic's name."""
        for one in data:
            self.stream.publish(name, one, owner)
        return name

    def since(self, topic: str, offset: int) -> list[bytes] | None:
        """The data of what is kept of this epoch after an offset."""
        found = self.stream.since(topic, Position(self.stream.position(topic).epoch, offset), 1000)
        return None if found is None else [data_of(message) for _, message in found]
