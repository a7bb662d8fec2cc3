"""Calls that the gateway has sent and waits for: one table for each peer, and one sweep for the deadlines of all.

A call ends in exactly one way: the peer's answer, the peer's loss, the deadline, or because nobody waits any more.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from gateway.deadlines import Wheel
from gateway.errors import NODE_LOST, TIMEOUT, RpcError
from gateway.rpc import jsonrpc
from gateway.rpc.jsonrpc import Message


class CallError(Exception):
    """A call that the gateway made has failed.

    ``code``, ``message`` and ``data`` are those of the peer's error, or where the peer did not answer the gateway's
    own: `node_lost` or `timeout`.
    """

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data = data


class Callee(Protocol):
    """A peer that can be called."""

    calls: dict[bytes, Call]
    leaving: bool
    """Whether it goes as soon as nothing is in flight."""

    def send(self, payload: bytes) -> None:
        """Send one JSON text."""

    def settled(self) -> None:
        """A request of the peer, or a call to it, is no longer in flight."""


class Call(Hashable, Protocol):
    """One call in flight."""

    @property
    def slot(self) -> dict[Call, None]:
        """Where it waits for its deadline."""

    @property
    def callee(self) -> Callee:
        """Who is called."""

    @property
    def call_id(self) -> bytes:
        """The id under which the callee has it."""

    def answered(self, message: Message) -> None:
        """The peer's response. Called once, or else ``failed``."""

    def failed(self, error: RpcError) -> None:
        """Why there is no response."""


class Calls:
    """All calls in flight. Ids are numbers of its own; they never meet those of the peer's requests."""

    def __init__(self) -> None:
        self._wheel: Final[Wheel[Call]] = Wheel(self._expired)
        # On the hot path: no call in between.
        self.new_id: Final = _numbers().__next__
        """An id for the next call."""
        self.slot: Final = self._wheel.slot
        """Where a call waits for its deadline, in so many seconds."""

    def __len__(self) -> int:
        return len(self._wheel)

    def enter(self, call: Call) -> None:
        """A call begins; sending it is the caller's."""
        call.callee.calls[call.call_id] = call
        call.slot[call] = None

    def answered(self, callee: Callee, message: Message) -> bool:
        """A response has come. False where nobody waits for it: it is late, or was never asked for, or is none."""
        call_id = b"" + message.id
        call = callee.calls.get(call_id)
        if call is None or not jsonrpc.is_response(message):
            return False
        del callee.calls[call_id]
        del call.slot[call]
        call.answered(message)
        if callee.leaving:
            callee.settled()
        return True

    def drop(self, call: Call) -> None:
        """Nobody waits for this call any more. Harmless when it has ended."""
        if call.callee.calls.pop(call.call_id, None) is not None:
            del call.slot[call]
            call.callee.settled()

    def lost(self, callee: Callee) -> None:
        """The peer is gone: all that it has not answered ends."""
        calls, callee.calls = callee.calls, {}
        for call in calls.values():
            del call.slot[call]
            call.failed(NODE_LOST)

    def _expired(self, call: Call) -> None:
        del call.callee.calls[call.call_id]
        call.failed(TIMEOUT)
        call.callee.settled()


def _numbers() -> Iterator[bytes]:
    """1, 2, 3 and so on. Put together from two parts, for to format each costs twice as much."""
    yield from (b"%d" % number for number in range(1, 100))
    lasts = [b"%02d" % number for number in range(100)]
    for number in itertools.count(1):
        first = b"%d" % number
        for last in lasts:
            yield first + last


class _OwnCall:
    """A call of the gateway's own: its end wakes who waits for it."""

    __slots__ = ("_answer", "call_id", "callee", "slot")

    def __init__(
        self, callee: Callee, call_id: bytes, slot: dict[Call, None], answer: asyncio.Future[Message | RpcError]
    ) -> None:
        self.callee = callee
        self.call_id = call_id
        self.slot = slot
        self._answer = answer

    def answered(self, message: Message) -> None:
        self._end(message)

    def failed(self, error: RpcError) -> None:
        self._end(error)

    def _end(self, outcome: Message | RpcError) -> None:
        """Hand it over, unless nobody waits any more."""
        if not self._answer.done():
            self._answer.set_result(outcome)


async def call(calls: Calls, callee: Callee, method: str, params: object, timeout: float) -> Any:
    """Call a method of the peer and return its decoded result. Raises `CallError`, and TypeError for ``params``.

    Cancelling it tells the peer, with `rpc.cancel`.
    """
    encoded = None if params is None else Raw(jsonrpc.encode(params))
    answer: asyncio.Future[Message | RpcError] = asyncio.get_running_loop().create_future()
    entry = _OwnCall(callee, calls.new_id(), calls.slot(timeout), answer)
    calls.enter(entry)
    callee.send(jsonrpc.request(entry.call_id, method, encoded))
    try:
        outcome = await answer
    except asyncio.CancelledError:
        calls.drop(entry)
        callee.send(jsonrpc.notification("rpc.cancel", {"id": int(entry.call_id)}))
        raise
    if isinstance(outcome, RpcError):
        raise failed(outcome)
    if bytes(outcome.error):
        raise _peer_error(outcome)
    try:
        return msgspec.json.decode(outcome.result)
    except jsonrpc.UNDECODABLE as error:  # valid JSON, but no number or stack of this machine holds it
        raise CallError(0, f"the peer's result cannot be decoded: {error}"[: jsonrpc.MAX_DETAIL]) from None


def failed(error: RpcError) -> CallError:
    """A call that ends with one of the gateway's own errors."""
    return CallError(error.code, error.message, {"code": error.name, "temporary": error.temporary})


class _PeerError(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


def _peer_error(message: Message) -> CallError:
    try:
        error = msgspec.json.decode(message.error, type=_PeerError)
    except jsonrpc.UNDECODABLE:
        return CallError(0, "the peer's error is not one that JSON-RPC knows")
    return CallError(error.code, error.message, error.data)
