"""The replies to served calls. Whatever a method returns or raises, its caller gets a valid one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client.errors import UNKNOWN, CallError, failure
from gateway.client.sending.encoding import encode
from gateway.errors import INTERNAL_ERROR
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

Fits = Callable[[bytes], bool]
"""Whether the gateway takes a message of this size."""

_OF_ANOTHER_CALL: Final = frozenset({"outcome", "nodeOutcome", "retryAfterMs"})
"""Members of an error's data that speak of the call that failed, and not of the one that is answered with the error."""


class _ErrorObject(msgspec.Struct, forbid_unknown_fields=True):
    """The error object of JSON-RPC. A Raw could bring other members with it."""

    code: int
    message: str
    data: Raw = jsonrpc.ABSENT


_error_object: Final = msgspec.json.Decoder(_ErrorObject).decode


def of_result(call_id: bytes, method: str, result: Any, fits: Fits) -> bytes:
    """Return the reply with what the method has returned; an error, and a line in the log, if that cannot be sent."""
    try:
        reply = jsonrpc.result_reply(call_id, encode(result))
    except Exception:
        logger.exception("the result of %s cannot be encoded", method)
        return _failed(call_id, method)
    return _fitting(call_id, method, "answer", reply, fits)


def of_error(call_id: bytes, method: str, error: CallError, fits: Fits) -> bytes:
    """Return the reply with an error that the method has raised; another, and a line in the log, if it cannot be sent.

    It may be the error of a call that the method has made. What that says of its own call is not true of this one,
    which has begun: ``outcome`` becomes ``unknown``, and ``retryAfterMs`` is left out.
    """
    try:
        data = {} if error.data is None else {"data": _told(error)}
        reply = refusal(call_id, CallError(error.code, error.message, **data))
    except Exception:
        logger.exception("the error of %s cannot be encoded", method)
        return _failed(call_id, method)
    return _fitting(call_id, method, "error", reply, fits)


def _fitting(call_id: bytes, method: str, what: str, reply: bytes, fits: Fits) -> bytes:
    if fits(reply):
        return reply
    logger.error("the %s of %s has %d bytes: more than the gateway takes", what, method, len(reply))
    return _failed(call_id, f"the {what} is larger than the gateway takes")


def of_defect(call_id: bytes, method: str, error: BaseException) -> bytes:
    """Return the reply for a method that has failed. Its traceback is logged, and its caller is not told why."""
    logger.error("the method %s has failed", method, exc_info=error)
    return _failed(call_id, method)


def refusal(call_id: bytes, error: CallError) -> bytes:
    """Return the reply with this error as it is.

    Raises what `encode` raises, and ValueError if the code is no integer or the message no text.
    """
    data = {} if error.data is None else {"data": error.data}
    encoded = encode({"code": error.code, "message": error.message} | data)
    _error_object(encoded)
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (call_id, encoded)


def _failed(call_id: bytes, detail: str) -> bytes:
    return refusal(call_id, failure(INTERNAL_ERROR, detail, outcome=UNKNOWN))


def _told(error: CallError) -> Any:
    data = msgspec.json.decode(encode(error.data))
    if not isinstance(data, dict) or error.outcome is None:
        return data
    return {name: value for name, value in data.items() if name not in _OF_ANOTHER_CALL} | {"outcome": UNKNOWN}
