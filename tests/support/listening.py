"""A listener of a stream that notes what it is told."""

import json
from dataclasses import dataclass, field

from gateway.cluster.stream import Lapse, Position


@dataclass
class Listening:
    """``heard`` has topic, the position before it, and the message as JSON text; ``told`` all else, in order."""

    heard: list[tuple[str, Position, bytes]] = field(default_factory=list)
    told: list[object] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    """Whose the latest message of each topic is."""

    def deliver(self, topic: str, before: Position, message: bytes) -> None:
        """Note a message."""
        self.heard.append((topic, before, message))

    def begin(self, topic: str, owner: str) -> None:
        """Note whose message comes."""
        self.owners[topic] = owner

    def pause(self) -> None:
        """Note a pause, once."""
        if not self.told or self.told[-1] != "pause":
            self.told.append("pause")

    def resume(self, lapse: Lapse | None) -> None:
        """Note its end, and what is lost."""
        self.told.append(lapse or "resume")

    def places(self, topic: str | None = None) -> list[tuple[str, int]]:
        """Topic and offset of each message, or of those of one topic."""
        return [(name, place_of(text).offset) for name, _, text in self.heard if topic in (None, name)]


def place_of(message: bytes) -> Position:
    """The position that a message, or a gap, says."""
    params = json.loads(message)["params"]
    return Position(params["epoch"], params["offset"])


def data_of(message: bytes) -> bytes:
    """The data in a message, byte for byte."""
    return message.partition(b',"data":')[2][:-2]
