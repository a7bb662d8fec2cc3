"""What a request is answered with: its result, a refusal or a defect, alone or within the reply to a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import Principal, origin
from gateway.rpc import jsonrpc
from gateway.rpc.method import BadParams, Refusal
from gateway.telemetry.lines import METHOD_FAILED, Lines

logger = logging.getLogger(__name__)


class Caller(Protocol):
    """The connection that a request came from."""

    principal: Principal

    @property
    def conn_id(self) -> str:
        """Its id: UUID4 text."""

    @property
    def remote(self) -> str:
        """Its address, as the log has it."""

    def send(self, payload: bytes) -> None:
        """Send one JSON text. Does nothing once the connection is over."""


class Batch:
    """Gathers the replies to one batch and sends them as one array, once the last is there.

    A batch of notifications has no replies, and nothing is sent.
    """

    __slots__ = ("_caller", "_replies", "_waiting", "after")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._replies: list[bytes] = []
        self._waiting = 1  # for the end of the batch itself
        self.after: list[Callable[[], None]] = []
        """What is done after the array has been sent, even if there is none."""

    def expect(self) -> None:
        """Wait for one more call of `done`."""
        self._waiting += 1

    def done(self, reply: bytes | None) -> None:
        """Take an expected reply; None if the request gets none. The last call sends the array.

        The end of the batch itself is expected from the start: it is one call with None.
        """
        if reply is not None:
            self._replies.append(reply)
        self._waiting -= 1
        if self._waiting:
            return
        if self._replies:
            self._caller.send(jsonrpc.batch(self._replies))
        for act in self.after:
            act()

    def add(self, reply: bytes | None) -> None:
        """Take a reply that was there at once; None if there is none, or none yet."""
        if reply is not None:
            self._replies.append(reply)


def success(request_id: bytes, result: Any) -> bytes:
    """Return the reply with a result. Raises whatever msgspec raises if it cannot be encoded."""
    if result.__class__ is Raw:
        return jsonrpc.result_reply(request_id, result)
    return jsonrpc.result_reply(request_id, jsonrpc.encode(result))


def send_then(caller: Caller, reply: bytes | None, after: Callable[[], None], batch: Batch | None) -> bytes | None:
    """Send the reply, if there is one, then do what comes after it. Within a batch leave both to the batch.

    Returns the reply if it still has to go into the batch, otherwise None.
    """
    if batch is not None:
        batch.after.append(after)
        return reply
    if reply is not None:
        caller.send(reply)
    after()
    return None


def outcome_of(error: BaseException) -> str:
    """Return the name under which a request that has failed is counted."""
    if isinstance(error, Refusal):
        return error.error.name
    return errors.INVALID_PARAMS.name if isinstance(error, BadParams) else errors.INTERNAL_ERROR.name


def failure(caller: Caller, method: str, request_id: bytes, error: BaseException, lines: Lines) -> bytes | None:
    """Return the error reply to a request that has failed; None for a notification, whose ``request_id`` is empty.

    `Refusal` and `BadParams` are told to the caller. Everything else is a defect, which is logged here, to ``lines``.
    """
    if isinstance(error, Refusal):
        return _refusal(caller, method, request_id, error, lines) if request_id else None
    if isinstance(error, BadParams):
        return jsonrpc.error_reply(request_id, errors.INVALID_PARAMS, str(error)) if request_id else None
    return _defect(caller, method, request_id, error, lines)


def _refusal(caller: Caller, method: str, request_id: bytes, refusal: Refusal, lines: Lines) -> bytes | None:
    try:
        return jsonrpc.error_reply(request_id, refusal.error, refusal.detail, **refusal.data)
    except Exception as error:  # the method's own text or data is no JSON
        return _defect(caller, method, request_id, error, lines)


def _defect(caller: Caller, method: str, request_id: bytes, error: BaseException, lines: Lines) -> bytes | None:
    """A method has raised what it should not: all of it goes into the log, nothing of it into the reply."""
    key = origin(caller.principal, caller.remote)
    known = {"connId": caller.conn_id, "remote": caller.remote, "method": method}
    lines.log(logger, METHOD_FAILED, key, "method %s failed", method, fields=known, exc_info=error)
    return jsonrpc.error_reply(request_id, errors.INTERNAL_ERROR) if request_id else None
