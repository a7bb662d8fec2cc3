"""What a request is answered with: its result, a refusal or a defect, alone or within the reply to a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from msgspec import Raw

from gateway import errors
from gateway.auth.scopes import Principal, origin
from gateway.errors import RpcError
from gateway.rpc import jsonrpc
from gateway.rpc.calls import Link
from gateway.rpc.jsonrpc import encode
from gateway.rpc.method import BadParams, Refusal
from gateway.telemetry.lines import METHOD_FAILED, Lines

logger = logging.getLogger(__name__)

UNREAD: Final = "the caller has not read the replies before"
"""What is added to `OVERLOADED`'s own sentence if the caller has no room for a reply."""


SMALL: Final = 4096
"""A reply of up to so many bytes is sent even if the caller does not read: a refusal would not be smaller."""


class Caller(Protocol):
    """The connection that a request came from."""

    principal: Principal

    @property
    def conn_id(self) -> str:
        """Its id: UUID4 text."""

    @property
    def remote(self) -> str:
        """Its address, as the log has it."""

    @property
    def link(self) -> Link:
        """Its link."""

    running: dict[object, Any]
    """What is in flight for it, by the id of the request."""

    def send(self, payload: bytes) -> None:
        """Send one JSON text. Does nothing once the connection is over."""

    def pass_on(self, payload: bytes) -> None:
        """Do the same with what comes from another connection. If the peer does not read, `send` goes before it."""

    def hold(self, octets: int) -> bool:
        """Hold so many bytes for it until `let_go`. Returns False if there is no room for them."""

    def let_go(self, octets: int) -> None:
        """Hold so many bytes no longer."""

    def settled(self) -> None:
        """Note that a request is no longer in flight."""


class Answered:
    """Stands in flight for a request whose reply waits within its batch."""

    __slots__ = ()

    def cancel(self, verdict: RpcError) -> None:
        """Do nothing: the request has ended."""

    def abandon(self) -> None:
        """Do nothing: the request has ended."""

    @property
    def stream(self) -> None:
        """None: it is no stream."""

    def drained(self) -> None:
        """Do nothing: nothing of it waits."""


ANSWERED: Final = Answered()


class Batch:
    """Gathers the replies to one batch and sends them as one array, once the last is there.

    A batch of notifications has no replies, and nothing is sent. Until the array is sent, a request that took its time
    stays in flight, and the replies are held by the caller's account. A reply for which that has no room is replaced
    by `OVERLOADED`.
    """

    __slots__ = ("_answered", "_caller", "_held", "_replies", "_waiting", "after")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._replies: list[bytes] = []
        self._answered: list[bytes] = []
        self._held = 0
        self._waiting = 1  # for the end of the batch itself
        self.after: list[Callable[[], None]] = []
        """What is done after the array has been sent, even if there is none."""

    def expect(self) -> None:
        """Wait for one more call of `done`."""
        self._waiting += 1

    def done(self, request_id: bytes, reply: bytes | None) -> None:
        """Take an expected reply; None if the request gets none. The last call sends the array.

        The end of the batch itself is expected from the start: it is one call with None.
        """
        if reply is not None:
            self._take(request_id, reply)
            self._answered.append(request_id)
            self._caller.running[request_id] = ANSWERED
        self._waiting -= 1
        if not self._waiting:
            self._send()

    def add(self, request_id: bytes, reply: bytes | None) -> None:
        """Take a reply that was there at once; None if there is none, or none yet."""
        if reply is not None:
            self._take(request_id, reply)

    def _take(self, request_id: bytes, reply: bytes) -> None:
        if not self._caller.hold(len(reply)):
            reply = too_much(request_id)
        else:
            self._held += len(reply)
        self._replies.append(reply)

    def _send(self) -> None:
        caller = self._caller
        for request_id in self._answered:
            caller.running.pop(request_id, None)
        caller.let_go(self._held)
        if self._replies:
            # A node may have answered in it, and what it has reported before does not come after that.
            send = caller.pass_on if self._answered else caller.send
            send(jsonrpc.batch(self._replies))
        for act in self.after:
            act()
        if self._answered:
            caller.settled()


def too_much(request_id: bytes) -> bytes:
    """Return the reply to a request whose own reply is more than the caller has room for."""
    data = {"retryAfterMs": errors.RETRY_BUSY_MS, "outcome": errors.UNKNOWN}
    return jsonrpc.error_reply(request_id, errors.OVERLOADED, UNREAD, **data)


def fitting(caller: Caller, request_id: bytes, reply: bytes | None) -> bytes | None:
    """Return a reply that has taken its time, or a refusal if the caller does not read and the reply is not small."""
    if reply is None or len(reply) <= SMALL or not caller.link.pressed:
        return reply
    return too_much(request_id)


def success(request_id: bytes, result: Any) -> bytes:
    """Return the reply with a result. Raises whatever msgspec raises if it cannot be encoded."""
    value = result if result.__class__ is Raw else encode(result)
    # As jsonrpc.result_reply() does, without a call in between: most replies are made here.
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"result":', value, b"}"))


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
