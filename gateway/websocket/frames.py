"""What goes on the wire (RFC 6455 section 5.2), and the states of a connection. Pure."""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

Payload = bytes | bytearray
"""What a frame holds; the parser unmasks what comes into a bytearray, which nobody changes afterwards."""

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
RSV1: Final = 0x40
"""Set in the first byte of a compressed message (RFC 7692 section 6)."""

_REASON_BYTES: Final = 123
_pack_16: Final = Struct("!BBH").pack
_pack_64: Final = Struct("!BBQ").pack
_pack_code: Final = Struct("!H").pack
SHORT_TEXT: Final = tuple(bytes((0x80 | TEXT, length)) for length in range(126))
"""Heads of unmasked, uncompressed text frames, by the payload's length."""


class Written(NamedTuple):
    """Messages, and the bytes of their frames."""

    messages: int
    octets: int


NOTHING_WRITTEN: Final = Written(0, 0)


class State(enum.IntEnum):
    """Where a WebSocket is in its life. It only ever moves down this list."""

    OPENING = 0
    OPEN = 1
    CLOSING = 2
    """A close frame is sent; the peer's is awaited, all else that arrives is ignored."""
    FLUSHING = 3
    """The transport is closing: what is in the outbox still leaves, nothing is read any more."""
    CLOSED = 4


def text_frame(payload: Payload) -> bytes:
    """A whole unmasked, uncompressed text frame."""
    length = len(payload)
    if length < 126:
        return SHORT_TEXT[length] + payload
    return frame(TEXT, payload)


def frame(opcode: int, payload: Payload, rsv: int = 0) -> bytes:
    """A whole unmasked frame with FIN set; ``rsv`` is or-ed into its first byte."""
    length = len(payload)
    first = 0x80 | rsv | opcode
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return _pack_16(first, 126, length) + payload
    return _pack_64(first, 127, length) + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close frame; ``code`` None is one without a body, and ``reason`` is cut to what fits (section 5.5)."""
    return frame(CLOSE, b"" if code is None else _pack_code(code) + cut(reason).encode())


def cut(reason: str) -> str:
    """The longest beginning of ``reason`` that fits a close frame: 123 bytes of UTF-8."""
    return reason.encode("utf-8", "replace")[:_REASON_BYTES].decode("utf-8", "ignore")
