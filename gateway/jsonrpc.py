"""JSON-RPC 2.0 (jsonrpc.org/specification) as a pure codec: bytes in, messages out; messages in, bytes out.

The envelope is decoded once. ``id``, ``params``, ``result`` and ``error`` stay `msgspec.Raw`: they are given back, or
passed on, byte for byte.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from gateway.errors import INVALID_REQUEST, PARSE_ERROR, RpcError

NULL: Final = Raw(b"null")
NO_ID: Final = Raw(b"")
"""The ``id`` of a notification."""


class Request(NamedTuple):
    """A request, or, where ``id`` is empty, a notification. ``params`` is empty where there is none."""

    id: Raw
    method: str
    params: Raw


class Response(NamedTuple):
    """The peer's answer to a call of ours; one of ``result`` and ``error`` is empty."""

    id: Raw
    result: Raw
    error: Raw


class Invalid(NamedTuple):
    """What is no JSON-RPC message: the refusal that it gets, and the id to send it under."""

    error: RpcError
    detail: str
    id: Raw = NULL


Message = Request | Response | Invalid


class _Envelope(msgspec.Struct, gc=False):
    jsonrpc: str = ""
    method: str = ""
    id: Raw = NO_ID
    params: Raw = NO_ID
    result: Raw = NO_ID
    error: Raw = NO_ID


_envelope: Final = msgspec.json.Decoder(_Envelope)
_envelopes: Final = msgspec.json.Decoder(list[Raw])
_encode: Final = msgspec.json.Encoder().encode
_INTEGER: Final = frozenset(b"-0123456789")
_BLANK: Final = b" \t\r\n"


def decode(data: bytes) -> Message | list[Message]:
    """One text message: a single message, or a list of them for a batch. Never raises; ``data`` is valid UTF-8."""
    if data.lstrip(_BLANK)[:1] != b"[":
        return _decode_one(data)
    try:
        elements = _envelopes.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        return _classify(data, error)
    if not elements:
        return Invalid(INVALID_REQUEST, "an empty batch")
    return [_decode_one(element) for element in elements]


def _decode_one(data: bytes | Raw) -> Message:
    try:
        envelope = _envelope.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        return _classify(data, error)
    if envelope.jsonrpc != "2.0":
        return Invalid(INVALID_REQUEST, '"jsonrpc" must be "2.0"')
    identity = envelope.id
    if identity and not _may_be_id(bytes(identity)):
        return Invalid(INVALID_REQUEST, '"id" must be a string, an integer or null')
    if envelope.method:
        params = bytes(memoryview(envelope.params)[:1]) or b"["
        if params not in (b"[", b"{"):
            return Invalid(INVALID_REQUEST, '"params" must be an array or an object', identity or NULL)
        return Request(identity, envelope.method, envelope.params)
    if identity and bool(envelope.result) != bool(envelope.error):
        return Response(identity, envelope.result, envelope.error)
    return Invalid(INVALID_REQUEST, '"method" is missing', identity or NULL)


def _may_be_id(raw: bytes) -> bool:
    return raw[:1] == b'"' or raw == b"null" or set(raw) <= _INTEGER


def _classify(data: bytes | Raw, error: Exception) -> Invalid:
    """Tell JSON that is no request from what is no JSON."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError as deeper:
        return Invalid(PARSE_ERROR, str(deeper))
    except RecursionError:
        return Invalid(INVALID_REQUEST, "nested too deeply")
    return Invalid(INVALID_REQUEST, str(error))


def error_reply(identity: Raw, error: RpcError, detail: str = "", **data: object) -> bytes:
    """An error reply; ``detail`` replaces the error's own sentence, ``data`` goes beside its name."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (
        bytes(identity or NULL),
        _encode(
            {
                "code": error.code,
                "message": detail or error.message,
                "data": {"code": error.name, "temporary": error.temporary, **data},
            }
        ),
    )


def notification(method: str, params: object) -> bytes:
    """A notification; ``params`` is anything that msgspec encodes to an array or an object."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (_encode(method), _encode(params))


def batch(replies: list[bytes]) -> bytes:
    """The replies to one batch, in one message."""
    return b"[" + b",".join(replies) + b"]"
