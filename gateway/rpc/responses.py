"""What a peer may answer a call with: a result, or an error that says nothing in the gateway's name.

``outcome`` and ``retryAfterMs`` in an error's ``data`` are the gateway's word: because of them a client sends a call
again. A node that lets the error of a call of its own through would say them of another call. So they are renamed.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from gateway.rpc.jsonrpc import ABSENT, UNDECODABLE, Message, encode

RENAMED: Final = {"outcome": "nodeOutcome", "retryAfterMs": "nodeRetryAfterMs"}
"""The members of ``data`` that are the gateway's word, and what a peer's are called."""

WHOLE: Final = "nodeData"
"""The member of ``data`` that has the whole ``data`` of an error which is too large to rename some of its members."""

SMALL: Final = 65536
"""An error of more bytes is not decoded into its members: a mebibyte of them would take 45 ms."""

_TRACES: Final = (b'"outcome"', b'"retryAfterMs"', rb"\u004", rb"\u006", rb"\u007")
"""What is found in an error that has a reserved member: its name, or a letter of it as an escape."""

_BLANK: Final = b" \t\r\n"


class _Error(msgspec.Struct, gc=False):
    """The error object of the specification, section 5.1."""

    code: int
    message: str
    data: Raw = ABSENT


_error: Final = msgspec.json.Decoder(_Error).decode
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode


def checked(message: Message) -> Message | None:
    """Return the response that a message without a method is, or None if it is not valid.

    A valid response has either ``result`` or an error object. ``"error": null`` beside ``result`` is left out. An error
    object stays as it is, byte for byte, unless it has a reserved member.
    """
    if message.error is ABSENT:
        return None if message.result is ABSENT else message
    error = b"" + message.error
    if message.result is not ABSENT:
        return msgspec.structs.replace(message, error=ABSENT) if error == b"null" else None
    try:
        found = _error(error)
    except UNDECODABLE:
        return None
    if not any(trace in error for trace in _TRACES):  # nearly always
        return message
    told = _renamed(error) if len(error) <= SMALL else _enclosed(found)
    return msgspec.structs.replace(message, error=Raw(told))


def _renamed(error: bytes) -> bytes:
    """Return the error with its reserved members renamed.

    If a member occurs twice, parsers disagree which of the two counts. Only one of them is passed on.
    """
    members = _members(error)
    data = members.get("data", ABSENT)
    if _is_object(data):
        members["data"] = Raw(encode({RENAMED.get(name, name): value for name, value in _members(data).items()}))
    rebuilt = encode(members)
    # The same but for blanks: nothing was renamed, and nothing occurs twice.
    return error if rebuilt.translate(None, _BLANK) == error.translate(None, _BLANK) else rebuilt


def _enclosed(error: _Error) -> bytes:
    """Return the error with its ``data`` as a member of another object, unless it is no object itself."""
    # A code may have more digits than msgspec encodes.
    head, tail = b'{"code":%d,"message":%b' % (error.code, encode(error.message)), b"}"
    if error.data is ABSENT:
        return head + tail
    if _is_object(error.data):
        return b"".join((head, b',"data":{"%b":' % WHOLE.encode(), error.data, b"}}"))
    return b"".join((head, b',"data":', error.data, tail))


def _is_object(value: Raw) -> bool:
    return bytes(value).startswith(b"{")
