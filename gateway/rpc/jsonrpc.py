"""JSON-RPC 2.0 (jsonrpc.org/specification) as a pure codec: bytes in, messages out; messages in, bytes out.

The envelope is decoded once. ``id``, ``params``, ``result`` and ``error`` stay `msgspec.Raw`, which is given back or
passed on byte for byte. The decoder checks what is in a Raw, too: it finds a lone surrogate, a NaN or a missing bracket
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, Literal

import msgspec
from msgspec import Raw

from gateway.errors import INVALID_REQUEST, PARSE_ERROR, UNKNOWN, RpcError

ABSENT: Final = Raw(b"")
"""The value of a member that is not there, such as the ``id`` of a notification."""

NO_METHOD: Final = "\0no method"
"""The ``method`` of a response; compare it by identity, because a request may name any text, even an empty one."""

NULL: Final = Raw(b"null")

MAX_DETAIL: Final = 200
"""The most characters of a text that go into a reply if they quote what the peer has sent, as decoders do."""


class Message(msgspec.Struct, gc=False):
    """One request, notification (no ``id``) or response (no ``method``).

    Its members have the order in which nearly all peers write them.
    """

    jsonrpc: Literal["2.0"]
    id: Raw = ABSENT
    method: str = NO_METHOD
    params: Raw = ABSENT
    result: Raw = ABSENT
    error: Raw = ABSENT
    traceparent: Raw = ABSENT
    """The member of W3C Trace Context, for routed requests. It is not part of JSON-RPC."""
    stream: Raw = ABSENT
    """What the caller of a stream can take, for routed requests. It is not part of JSON-RPC, either."""


class Invalid(msgspec.Struct, gc=False):
    """Stands for a text that is not a JSON-RPC message.

    ``error`` is the refusal that answers it, ``detail`` says what is wrong, and ``id`` is the one to answer under, in
    JSON. ``call_id`` is its id if it has no ``method``, and so may be meant as the answer to a call; otherwise empty.
    """

    error: RpcError
    detail: str
    id: bytes = b"null"
    call_id: bytes = b""


class _Outline(msgspec.Struct, gc=False):
    id: Raw = ABSENT
    method: Raw = ABSENT
    result: Raw = ABSENT
    error: Raw = ABSENT


decode: Final = msgspec.json.Decoder(Message).decode
"""Decodes a text message, valid UTF-8, that is a single JSON-RPC message, as nearly all are.

Raises one of `UNDECODABLE` for anything else, which `decode_other` takes. The JSON types of ``id`` and ``params`` are
not checked: the caller looks at their bytes anyway, and checks them with `may_be_id` and `STRUCTURED`.
"""

UNDECODABLE: Final = (msgspec.DecodeError, RecursionError)
"""What decoding raises: for text that is not valid, and for JSON that is nested too deeply."""

MAX_ID: Final = 1024
"""The most bytes of an id, in JSON. It is held as long as its request is in flight, and goes into each reply."""


def decoded(data: bytes) -> Message | None:
    """Return a single message, or None if the text is something else."""
    try:
        return decode(data)
    except UNDECODABLE:
        return None


LARGE: Final = 256 * 1024
"""A text of more bytes is gone through once in an event-loop iteration: a mebibyte of brackets takes 5 ms each time."""

STRUCTURED: Final = (ord("{"), ord("["))
"""The first bytes that ``params`` may have (the specification, section 4.2)."""

_outline: Final = msgspec.json.Decoder(_Outline).decode
_valid: Final = msgspec.json.Decoder(Raw).decode
encode: Final = msgspec.json.Encoder().encode
"""Encodes any value to JSON as msgspec does; `msgspec.Raw` goes out as it is.

Raises TypeError for a type that JSON does not have, ValueError for a text that UTF-8 does not have, and RecursionError
for a value that is nested too deeply.
"""

_BLANK: Final = b" \t\r\n"


def decode_other(
    data: bytes | bytearray, error: Exception, max_batch: int
) -> Invalid | Iterator[Message | Invalid | None]:
    """Decode a text for which `decode` has raised this error: it is a batch, or not valid. Never raises.

    A batch of more than ``max_batch`` elements is refused before its elements are looked at. Others are decoded one by
    one, with None between them where something `LARGE` was gone through, or will be: the loop should have a turn then.
    """
    if data.lstrip(_BLANK)[:1] != b"[":
        return _classify(data, error)
    try:
        found = first_elements(data, max_batch + 1)
    except UNDECODABLE as deeper:
        return _classify(data, deeper)
    if not found:
        return Invalid(INVALID_REQUEST, "an empty batch")
    if len(found) > max_batch:
        return Invalid(INVALID_REQUEST, f"a batch of more than {max_batch}")
    return _elements(found)


def first_elements(data: bytes | bytearray | Raw, most: int) -> list[Raw]:
    """Return the first elements of an array, as many as ``most``. The rest is checked, and skipped.

    A mebibyte of ``[1,1,…`` decoded as a list would hold up all other connections for 20 ms. Skipping it takes 2 ms.

    Raises one of `UNDECODABLE` for anything else.
    """
    return [element for element in msgspec.structs.astuple(_outset(most)(data)) if element is not ABSENT]


@lru_cache
def _outset(most: int) -> Callable[[bytes | bytearray | Raw], msgspec.Struct]:
    """Return a decoder of an array's first ``most`` elements, which skips the rest."""
    fields = [(f"element{number}", Raw, ABSENT) for number in range(most)]
    return msgspec.json.Decoder(msgspec.defstruct("Outset", fields, array_like=True, gc=False)).decode


def _elements(found: Iterable[Raw]) -> Iterator[Message | Invalid | None]:
    for element in found:
        turn = (None,) if len(element) > LARGE else ()
        yield from turn
        try:
            message: Message | Invalid = decode(element)
            yield from turn
        except UNDECODABLE as error:
            yield from turn
            message = _classify(element, error, valid=True)
        yield message


def _classify(data: bytes | bytearray | Raw, error: Exception, *, valid: bool = False) -> Invalid:
    """Tell JSON that is not a message from text that is not JSON, and find the id to answer under.

    What is known to be ``valid`` JSON, because it was part of a larger text, is not gone through again for that.
    """
    if isinstance(error, RecursionError):
        return Invalid(INVALID_REQUEST, "nested too deeply")
    detail = str(error)[:MAX_DETAIL]
    try:
        try:
            found = _outline(data)
        except msgspec.ValidationError:  # not an object, which shows before the rest is gone through
            if not valid:
                _valid(data)
            return Invalid(INVALID_REQUEST, detail)
    except RecursionError:
        return Invalid(INVALID_REQUEST, "nested too deeply")
    except msgspec.DecodeError as deeper:
        return Invalid(PARSE_ERROR, str(deeper)[:MAX_DETAIL])
    return Invalid(
        INVALID_REQUEST,
        detail,
        answerable(bytes(found.id), found.method is ABSENT and is_answer(found)),
        bytes(found.id) if found.method is ABSENT else b"",
    )


def may_be_id(raw: bytes) -> bool:
    """Return whether this JSON value is a string, an integer or null (the specification, section 4).

    It has `MAX_ID` bytes at most.
    """
    if len(raw) > MAX_ID:
        return False
    first = raw[:1]
    return raw.isdigit() or first == b'"' or raw == b"null" or (first == b"-" and raw[1:].isdigit())


def is_answer(message: Message | _Outline) -> bool:
    """Return whether a message without a method has ``result`` or ``error``, and so is meant as an answer."""
    return message.result is not ABSENT or message.error is not ABSENT


def answerable(raw: bytes, answer: bool) -> bytes:
    """Return the id to refuse a message under whose own id is ``raw``, in JSON, or empty if it has none.

    It is null for what is meant as an ``answer``: its id is a number of the gateway's, and the peer may have a call of
    its own in flight under the same number.
    """
    return raw if raw and not answer and may_be_id(raw) else b"null"


def is_response(message: Message) -> bool:
    """Return whether a message without a method has exactly one of ``result`` and ``error``."""
    return (message.result is ABSENT) is not (message.error is ABSENT)


def result_reply(request_id: bytes, result: bytes) -> bytes:
    """Return a reply with a result that is JSON already.

    Its parts are joined, because formatting a megabyte costs 25 times as much.
    """
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"result":', result, b"}"))


def error_reply(request_id: bytes, error: RpcError, detail: str = "", **data: object) -> bytes:
    """Return an error reply. ``detail`` is added to the error's own sentence, ``data`` to its name in the reply's data.

    A temporary error always has an ``outcome``, because of which a client sends a request again or does not: it is
    `UNKNOWN` unless ``data`` says otherwise. Raises what `encode` raises.
    """
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, error_object(error, detail, **data))


def error_object(error: RpcError, detail: str = "", **data: object) -> bytes:
    """Return the error object of such a reply."""
    told = {"code": error.name, "temporary": error.temporary, **data}
    if error.temporary:
        told.setdefault("outcome", UNKNOWN)
    message = f"{error.message}: {detail}" if detail else error.message
    return encode({"code": error.code, "message": message, "data": told})


def request(call_id: bytes, method: str, params: object) -> bytes:
    """Return a request. ``params`` is anything that msgspec encodes to an array or an object; None leaves it out."""
    head = b'{"jsonrpc":"2.0","id":%b,"method":%b' % (call_id, encode(method))
    return head + b"}" if params is None else b'%b,"params":%b}' % (head, encode(params))


def notification(method: str, params: object) -> bytes:
    """Return a notification. ``params`` is anything that msgspec encodes to an array or an object."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), encode(params))


def batch(replies: list[bytes]) -> bytes:
    """Return the replies to one batch as one message."""
    return b"[" + b",".join(replies) + b"]"
