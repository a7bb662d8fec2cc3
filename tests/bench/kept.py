"""What a client does on a connection that is kept (`connection.keep`): it counts and acknowledges. No I/O."""

from typing import Final

from tests.bench.frames import ACK_TEXT, TEXT, ReplyCounter, masked

ACK_EVERY: Final = 64
"""After how many messages of the gateway's they are acknowledged."""

KEEP: Final = b'{"jsonrpc":"2.0","id":0,"method":"connection.keep"}'
ACK: Final = ACK_TEXT + b'"params":{"received":%d}}'


def without_acks(data: bytes) -> bytes:
    """Return whole frames without those that are acknowledgements, which are short. They do not count."""
    while (text := data.find(ACK_TEXT)) >= 0 and (end := text + data[text - 1]) <= len(data):
        data = data[: text - 2] + data[end:]
    return data


class Received:
    """How many messages have come that count, and when to say so. The first was read by `client.ask`."""

    __slots__ = ("_told", "messages")

    def __init__(self) -> None:
        self.messages = 1
        self._told = 0

    def acknowledgement(self) -> bytes:
        """Return the frame of an acknowledgement if one is due, else nothing."""
        if self.messages - self._told < ACK_EVERY:
            return b""
        self._told = self.messages
        return masked(TEXT, ACK % self.messages)


class KeptCounter(ReplyCounter):
    """Counts the replies of a kept connection."""

    __slots__ = ("received",)

    def __init__(self) -> None:
        super().__init__()
        self.received = Received()

    def feed(self, data: bytes) -> int:
        """Return how many replies `data` completes. PeerError when the server closes."""
        if self._reader.between_frames:
            data = without_acks(data)
        count = super().feed(data) if data else 0
        self.received.messages += count
        return count
