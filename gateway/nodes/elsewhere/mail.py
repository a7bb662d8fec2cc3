"""What gateways say to each other of calls: the kinds of mail, and what is cut out of messages for it. Pure.

The gateways have made these messages themselves, so nothing is decoded, and values are what they were, byte for byte.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from gateway.rpc import jsonrpc

SEPARATOR: Final = b"\0"
"""What stands between the fields of a pack. JSON has no such byte, not even in a text."""

CALL: Final = b"call"
"""A pack of calls and notifications for nodes: the number of a heartbeat, and then three fields for each.

These are the call's token, which is empty for a notification; what `remote.RemotePeer` says of the node and the method;
and the call itself, without its id, or the whole notification.
"""

RESULT: Final = b"result"
"""A pack of results: the call's token and the result, for each."""

SAID: Final = b"said"
"""A pack of all else that is said of calls: what it is, the call's token, and what it says, for each."""

REQUEST: Final = b'{"jsonrpc":"2.0","id":'
"""What each request begins with that the gateway makes, and each reply."""

NOTE: Final = b'{"jsonrpc":"2.0","method":"rpc.'
"""What each notification about a call begins with that the gateway makes."""

_ID: Final = b'","params":{"id":'
_VALUE: Final = b'"value":'
_END: Final = b'"end":true'
_CREDIT: Final = b'"credit":'
_BYTES: Final = b'"bytes":'


class MailError(ValueError):
    """Another gateway has sent what no gateway sends. The message says what."""


def cut(note: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the kind of a notification about a call, such as ``cancel``, the call's id, and what it says of it."""
    at = note.index(b'"', len(NOTE))
    kind, start = note[len(NOTE) : at], at + len(_ID)
    if kind == b"cancel":
        return kind, note[start:-2], b""
    end = note.index(b",", start)
    call_id, said = note[start:end], note[end + 1 : -2]
    if said.startswith(_VALUE):
        return kind, call_id, said[len(_VALUE) :]
    if said == _END:
        return b"finish", call_id, b""
    return kind, call_id, said.replace(_CREDIT, b"").replace(_BYTES, b"")


def numbers(text: bytes, count: int) -> list[int]:
    """Return so many numbers from 0 on. Raises MailError if the text is anything else."""
    parts = text.split(b",")
    if len(parts) != count or not all(part.isdigit() and len(part) < 20 for part in parts):
        raise MailError(f"not {count} numbers: {text[: jsonrpc.MAX_DETAIL]!r}")
    return [int(part) for part in parts]


def verdict(name: str, outcome: str, error: bytes) -> bytes:
    """Return what is sent of a call that a gateway has ended itself: the error's name, its outcome, and its object."""
    return f"{name} {outcome}\n".encode() + error


def ends(tokens: list[bytes | Raw]) -> tuple[bytes | Raw, bytes | Raw]:
    """Return the first token that is not empty and the last; two empty ones if there are none."""
    named = [token for token in tokens if token]
    return (named[0], named[-1]) if named else (b"", b"")


def answered(kind: bytes, fields: list[bytes | Raw]) -> list[bytes | Raw]:
    """Return the tokens of the calls that a pack of results, or of what else is said, has the nodes' answers to."""
    if kind is RESULT:
        return fields[::2]
    return [token for said, token in zip(fields[::3], fields[1::3], strict=True) if said == b"error"]
