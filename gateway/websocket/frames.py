"""The frames on the wire (RFC 6455 section 5.2), and the states of a link. Pure."""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

Payload = bytes | bytearray
"""The contents of a frame. The parser unmasks what comes into a bytearray, which is not changed afterwards."""

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
    """How many messages were written, and the bytes of their frames."""

    messages: int
    octets: int


NOTHING_WRITTEN: Final = Written(0, 0)


class State(enum.IntEnum):
    """The stage of a link's life. It only ever moves down this list."""

    OPENING = 0
    OPEN = 1
    CLOSING = 2
    """A close frame is sent, and the peer's is awaited. Everything else that arrives is ignored."""
    FLUSHING = 3
    """The transport is closing. What it holds still leaves, unless it was aborted, and nothing is read any more."""
    CLOSED = 4


def text_frame(payload: Payload) -> bytes:
    """Return a whole unmasked, uncompressed text frame."""
    length = len(payload)
    if length < 126:
        return SHORT_TEXT[length] + payload
    if length < 65536:
        return _pack_16(0x80 | TEXT, 126, length) + payload
    return frame(TEXT, payload)


def frame(opcode: int, payload: Payload, rsv: int = 0) -> bytes:
    """Return a whole unmasked frame with FIN set; ``rsv`` is or-ed into its first byte."""
    length = len(payload)
    first = 0x80 | rsv | opcode
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return _pack_16(first, 126, length) + payload
    return _pack_64(first, 127, length) + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame. Without a ``code`` it has no body; ``reason`` is cut to what fits (section 5.5)."""
    return frame(CLOSE, b"" if code is None else _pack_code(code) + cut(reason).encode())


def cut(reason: str) -> str:
    """Return the longest beginning of ``reason`` that fits a close frame: 123 bytes of UTF-8."""
    return reason.encode("utf-8", "replace")[:_REASON_BYTES].decode("utf-8", "ignore")
