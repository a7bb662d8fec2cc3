"""The client's half of NATS, as a load generator needs it. Standard library only, no I/O."""

import re
from typing import NamedTuple

from tests.bench.frames import CLOSE, MESSAGES, NATS_PING, PING, Frame, FrameReader, PeerError

LINE_END = b"\r\n"
# Subject, subscription, the subject for an answer where there is one, and the size of the payload.
HEAD = re.compile(rb"MSG \S+ \S+ (?:(\S+) )?(\d+)\r\n")


class Run(NamedTuple):
    """Messages in a row with the same head: the subject that answers go to, or b"", and the payloads."""

    reply_to: bytes
    payloads: list[bytes]


class NatsReader:
    """Cuts what nats-server sends into messages; keeps the incomplete rest for the next call.

    A frame may hold any number of messages, and need not begin or end with one. The messages of a sample nearly all
    have the same head, so most reads are a whole number of equal messages: split at that head, they show it by their
    lengths. Anything else is cut message by message.

    `pings` collects the payloads that wait for a pong, or NATS's own.
    """

    __slots__ = ("_frames", "_head", "_reply_to", "_rest", "_size", "pings")

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._rest = b""
        self._head = b"\0"  # no message has it
        self._reply_to = b""
        self._size = 0
        self.pings: list[bytes] = []

    def messages(self, data: bytes) -> list[Run]:
        """Return the messages that `data` completes. PeerError when the server says anything else, or closes."""
        stream = self._rest + b"".join([frame.payload for frame in self._frames.feed(data) if self._is_part(frame)])
        before, *payloads = stream.split(self._head)
        if not before and payloads and set(map(len, payloads)) == {self._size}:
            self._rest = b""
            return [Run(self._reply_to, payloads)]
        return self._cut(stream)

    def _is_part(self, frame: Frame) -> bool:
        """Whether a frame has a part of the stream."""
        if frame.opcode == PING:
            self.pings.append(frame.payload)
        elif frame.opcode == CLOSE:
            raise PeerError(f"the server closed: {frame.payload[:2].hex()} {frame.payload[2:]!r}")
        return frame.opcode in MESSAGES

    def _cut(self, stream: bytes) -> list[Run]:
        runs: list[Run] = []
        start = 0
        while (end := stream.find(LINE_END, start) + len(LINE_END)) >= len(LINE_END):
            head = stream[start:end]
            if head == NATS_PING:
                self.pings.append(head)
                start = end
                continue
            match = HEAD.fullmatch(head)
            if match is None:
                raise PeerError(f"no message: {head[:100]!r}")
            size = int(match[2]) + len(LINE_END)
            if len(stream) < end + size:
                break
            payload = stream[end : end + size]
            if not payload.endswith(LINE_END):
                raise PeerError(f"a message of another size than it says: {stream[start : end + size]!r}")
            self._head, self._reply_to, self._size = head, match[1] or b"", size
            runs.append(Run(self._reply_to, [payload]))
            start = end + size
        self._rest = stream[start:]
        return runs


class NatsCounter(NatsReader):
    """Counts the messages in what nats-server sends, each of which is one reply.

    `errors` counts the replies that are JSON-RPC errors.
    """

    __slots__ = ("errors",)

    def __init__(self) -> None:
        super().__init__()
        self.errors = 0

    def feed(self, data: bytes) -> int:
        """Return how many replies `data` completes. PeerError when the server closes."""
        runs = self.messages(data)
        self.errors += sum(b'"error"' in payload for run in runs for payload in run.payloads)
        return sum(len(run.payloads) for run in runs)
