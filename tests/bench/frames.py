"""The client's half of RFC 6455, as lean as a load generator needs it. Standard library only, no I/O."""

import secrets
from functools import cache
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MESSAGES = (TEXT, BINARY)
FIN = 0x80
MASKED = 0x80
HEAD_END = b"\r\n\r\n"
NORMAL_CLOSE = (1000).to_bytes(2, "big")
ACK_TEXT = b'{"jsonrpc":"2.0","method":"connection.ack",'
"""How the text of an acknowledgement begins, the gateway's and a client's."""
NATS_PING, NATS_PONG = b"PING\r\n", b"PONG\r\n"
# More replies than one read of the load generator can hold.
MOST_REPLIES = 16384


class PeerError(Exception):
    """The server did what no server under test may do."""


class Frame(NamedTuple):
    """One frame of the server. `size` is its length on the wire, header included."""

    opcode: int
    payload: bytes
    header: bytes
    size: int


def upgrade_request(host: str, port: int, header: str = "", path: str = "/ws") -> bytes:
    """Return a whole upgrade request (RFC 6455 section 4.1), with one more header line where one is given."""
    more = f"{header}\r\n" if header else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    ).encode()


def after_upgrade(data: bytes) -> bytes | None:
    """Return what follows the head of a 101 response, None while the head is incomplete.

    PeerError when the response is another than 101.
    """
    head, end, rest = data.partition(HEAD_END)
    if not end:
        return None
    status = head.split(b"\r\n", 1)[0]
    if not status.startswith(b"HTTP/1.1 101 "):
        raise PeerError(f"the upgrade was answered {status.decode('latin-1')!r}")
    return rest


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame with a random mask, as a client must send it. At most 65,535 bytes of payload."""
    size = len(payload)
    length = bytes([MASKED | size]) if size < 126 else bytes([MASKED | 126]) + size.to_bytes(2, "big")
    key = secrets.token_bytes(4)
    pad = (key * (size // 4 + 1))[:size]
    body = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return bytes([FIN | opcode]) + length + key + body.to_bytes(size, "big")


def pong(payload: bytes) -> bytes:
    """Return the frame that answers a ping with this payload, or NATS's own."""
    return masked(TEXT, NATS_PONG) if payload == NATS_PING else masked(PONG, payload)


class FrameReader:
    """Cuts what a server sends into frames; keeps the incomplete rest for the next call."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def between_frames(self) -> bool:
        """Whether the last data ended with the end of a frame."""
        return not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. PeerError for a masked or fragmented one."""
        data = self._rest + data
        frames: list[Frame] = []
        start = 0
        while (frame := _frame_at(data, start)) is not None:
            frames.append(frame)
            start += frame.size
        self._rest = data[start:]
        return frames


def _frame_at(data: bytes, start: int) -> Frame | None:
    if len(data) < start + 2:
        return None
    first, length = data[start], data[start + 1]
    if not first & FIN or first & 0x70 or length & MASKED or not first & 0x0F:
        raise PeerError(f"a frame begins with {data[start : start + 2].hex()}")
    extra = {126: 2, 127: 8}.get(length, 0)
    body = start + 2 + extra
    if len(data) < body:
        return None
    size = int.from_bytes(data[start + 2 : body], "big") if extra else length
    if len(data) < body + size:
        return None
    return Frame(first & 0x0F, data[body : body + size], data[start:body], body + size - start)


class ReplyCounter:
    """Counts the messages in what a server sends, each of which is one reply.

    All replies of a sample are of one size, so most reads are a whole number of equal frames. Such a read is
    checked column by column: the first bytes of all its frames, then the second ones, with one slice each.
    Anything else is cut into frames in full.

    `errors` counts the replies that are JSON-RPC errors: known from the text for a reply that was cut in
    full, and from the last such reply of the same size for the others. `pings` collects the payloads that
    wait for a pong, or the one of NATS.
    """

    __slots__ = ("_columns", "_failing", "_header", "_reader", "_size", "errors", "pings")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._size = 0
        self._header = b""
        self._columns: list[bytes] = []
        self._failing = False
        self.errors = 0
        self.pings: list[bytes] = []

    def feed(self, data: bytes) -> int:
        """Return how many replies `data` completes. PeerError when the server closes."""
        size = self._size
        if size and self._reader.between_frames:
            count, rest = divmod(len(data), size)
            if not rest and self._uniform(data, count, size):
                if self._failing:
                    self.errors += count
                return count
        return self._cut(data)

    def _uniform(self, data: bytes, count: int, size: int) -> bool:
        if count == 1:
            return data.startswith(self._header)
        return all(data[index::size] == column[:count] for index, column in enumerate(self._columns))

    def _cut(self, data: bytes) -> int:
        count = 0
        for frame in self._reader.feed(data):
            if frame.payload == NATS_PING:
                self.pings.append(frame.payload)
            elif frame.payload.startswith(ACK_TEXT):
                continue
            elif frame.opcode in MESSAGES:
                count += 1
                self._learn(frame)
                self.errors += self._failing
            elif frame.opcode == PING:
                self.pings.append(frame.payload)
            elif frame.opcode == CLOSE:
                raise PeerError(f"the server closed: {frame.payload[:2].hex()} {frame.payload[2:]!r}")
        return count

    def _learn(self, frame: Frame) -> None:
        self._failing = b'"error"' in frame.payload
        if frame.size != self._size:
            self._size, self._header = frame.size, frame.header
            self._columns = [_column(octet) for octet in frame.header]


@cache
def _column(octet: int) -> bytes:
    return bytes([octet]) * MOST_REPLIES
