"""Calls that the gateway has sent and waits for: one table for each peer, and one wheel for all deadlines.

A call ends in exactly one way: the peer answers, the peer is lost, the deadline passes, or the call is dropped because
its answer is no longer wanted. An answer that is not JSON-RPC ends its call, too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Container, Hashable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from gateway.deadlines import Wheel
from gateway.errors import INTERNAL_ERROR, NODE_LOST, NODE_NOT_REACHED, TIMEOUT, UNKNOWN, RpcError
from gateway.rpc import jsonrpc, responses
from gateway.rpc.jsonrpc import ABSENT, Message

FIRST_ID: Final = 1 << 40
"""The gateway's first id. A peer that counts its own requests from 1, and looks for the answers to them in the same
table as the calls of the gateway, never meets one of these. At a million calls a second it takes 285 years to 2^53,
beyond which not every number is one of JavaScript's."""

GARBLED: Final = "the answer is not JSON-RPC"
"""What is added to `INTERNAL_ERROR`'s own sentence if it ends a call."""


class CallError(Exception):
    """A call that the gateway made has failed.

    ``code``, ``message`` and ``data`` are those of the peer's error. If the peer did not answer, they are those of the
    gateway's own `node_lost` or `timeout`; if the answer is not JSON-RPC, those of `internal_error`. ``code`` is 0 if
    the answer cannot be decoded.
    """

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data = data


class Link(Protocol):
    """The link of a connection, as far as it matters to others whether its peer reads."""

    @property
    def pressed(self) -> bool:
        """Whether so much waits for the peer that those who send to it have to wait."""

    @property
    def barred(self) -> bool:
        """Whether others may send nothing more to the peer: it is pressed, or was, and has not been read since."""

    def wait(self) -> None:
        """Read no more from the peer until `go_on`, because another peer has to read first. Once for each of those."""

    def go_on(self) -> None:
        """End one `wait`."""

    def flush(self) -> None:
        """Let what was sent leave now."""


class Callee(Protocol):
    """A peer that can be called."""

    @property
    def link(self) -> Link:
        """Its link."""

    calls: dict[bytes, Call]
    """The calls to it that are in flight, by their ``call_id``."""

    leaving: bool
    """Whether it is to be closed as soon as nothing is in flight."""

    def send(self, payload: bytes) -> None:
        """Send one JSON text."""

    def pass_on(self, payload: bytes) -> None:
        """Send one JSON text that comes from another connection. If the peer does not read, `send` goes before it."""

    def settled(self) -> None:
        """Note that a request of the peer, or a call to it, is no longer in flight."""


class Call(Hashable, Protocol):
    """One call in flight. At its end either ``answered`` or ``failed`` is called once, unless it was dropped.

    By then it is in its callee's ``calls`` and in its slot no more.
    """

    slot: dict[Call, None]
    """The slot of the wheel in which it waits for its deadline."""

    @property
    def callee(self) -> Callee:
        """The peer that is called."""

    @property
    def call_id(self) -> bytes:
        """The id under which the callee has it, in JSON."""

    def left(self) -> float:
        """Return the seconds by which its deadline, which has come, has been put off; 0.0 if it stands."""

    def answered(self, result: Raw) -> None:
        """Take the peer's result, in JSON."""

    def refused(self, error: Raw) -> None:
        """Take the peer's error object, in JSON."""

    def failed(self, error: RpcError) -> None:
        """Take the reason why there is no response. `INTERNAL_ERROR` is for an answer that is not JSON-RPC."""


class Calls:
    """All calls in flight.

    Their ids are numbers that the gateway chooses, from `FIRST_ID` on. A peer's requests have ids of the peer's choice
    and are kept in another table, so the same id may occur in both.
    """

    def __init__(self) -> None:
        self._wheel: Final[Wheel[Call]] = Wheel(self._expired)
        # On the hot path: no call in between.
        self.new_id: Final = _numbers().__next__
        """Returns an id for the next call."""
        self.slot: Final = self._wheel.slot
        """Returns the slot in which a call waits for its deadline, given its timeout in seconds."""
        self.time: Final = self._wheel.time
        """Returns the time by which deadlines go, in seconds."""

    def __len__(self) -> int:
        return len(self._wheel)

    def enter(self, call: Call) -> None:
        """Begin a call. Sending it is left to the caller."""
        call.callee.calls[call.call_id] = call
        call.slot[call] = None

    def answered(self, callee: Callee, message: Message) -> bool:
        """Hand a message without a method to the call that waits for an answer under its id.

        If the message is not a valid response, the call fails. Returns False if there is no such call, because the
        answer is late or was never asked for.
        """
        call = callee.calls.pop(b"" + message.id, None)
        if call is None:
            return False
        del call.slot[call]
        if message.error is ABSENT and message.result is not ABSENT:  # nearly always
            call.answered(message.result)
        else:
            _end_unusually(call, responses.checked(message))
        if callee.leaving:
            callee.settled()
        return True

    def garbled(self, callee: Callee, call_id: bytes) -> bool:
        """End the call that waits for an answer under this id, because the answer is not JSON-RPC.

        Returns False if there is no such call.
        """
        call = self.take(callee, call_id)
        if call is None:
            return False
        call.failed(INTERNAL_ERROR)
        callee.settled()
        return True

    def take(self, callee: Callee, call_id: bytes) -> Call | None:
        """Return the call that waits for an answer under this id, and end the wait; None if there is no such call."""
        call = callee.calls.pop(call_id, None)
        if call is not None:
            del call.slot[call]
        return call

    def drop(self, call: Call) -> None:
        """End a call whose answer is no longer wanted. Harmless if it has ended."""
        if self.take(call.callee, call.call_id) is not None:
            call.callee.settled()

    def lost(self, callee: Callee, unwritten: Container[bytes] = ()) -> None:
        """End all calls that this peer has not answered, because it is gone.

        ``unwritten`` has the ids of the calls that were never written to it.
        """
        calls, callee.calls = callee.calls, {}
        for call in calls.values():
            del call.slot[call]
            call.failed(NODE_NOT_REACHED if call.call_id in unwritten else NODE_LOST)

    def _expired(self, call: Call) -> None:
        left = call.left()
        if left > 0:
            call.slot = self.slot(left)
            call.slot[call] = None
            return
        del call.callee.calls[call.call_id]
        call.failed(TIMEOUT)
        call.callee.settled()


def _numbers() -> Iterator[bytes]:
    """Yield `FIRST_ID` and what follows, put together from two parts: formatting each number costs twice as much."""
    lasts = [b"%02d" % number for number in range(100)]
    head, last = divmod(FIRST_ID, len(lasts))
    yield from (b"%d%b" % (head, rest) for rest in lasts[last:])
    for number in itertools.count(head + 1):
        first = b"%d" % number
        for rest in lasts:
            yield first + rest


def _end_unusually(call: Call, response: Message | None) -> None:
    """End a call with a response that is perhaps an error, or with none that is valid."""
    if response is None:
        call.failed(INTERNAL_ERROR)
    elif response.error is ABSENT:
        call.answered(response.result)
    else:
        call.refused(response.error)


class _OwnCall:
    """A call of the gateway's own. Its end wakes the coroutine that waits for the answer."""

    __slots__ = ("_answer", "call_id", "callee", "slot")

    def __init__(
        self, callee: Callee, call_id: bytes, slot: dict[Call, None], answer: asyncio.Future[Raw | CallError]
    ) -> None:
        self.callee = callee
        self.call_id = call_id
        self.slot = slot
        self._answer = answer

    def left(self) -> float:
        return 0.0

    def answered(self, result: Raw) -> None:
        self._end(result)

    def refused(self, error: Raw) -> None:
        self._end(_peer_error(error))

    def failed(self, error: RpcError) -> None:
        self._end(failed(error))

    def _end(self, outcome: Raw | CallError) -> None:
        """Hand over the outcome, unless the wait was cancelled meanwhile."""
        if not self._answer.done():
            self._answer.set_result(outcome)


async def call(calls: Calls, callee: Callee, method: str, params: object, timeout: float) -> Any:
    """Call a method of the peer and return its decoded result. ``timeout`` is in seconds.

    Raises `CallError` if the call fails, and what `jsonrpc.encode` raises if ``params`` cannot be encoded. Cancelling
    the coroutine cancels the call: the peer is told so with `rpc.cancel`.
    """
    encoded = None if params is None else Raw(jsonrpc.encode(params))
    answer: asyncio.Future[Raw | CallError] = asyncio.get_running_loop().create_future()
    entry = _OwnCall(callee, calls.new_id(), calls.slot(timeout), answer)
    calls.enter(entry)
    callee.send(jsonrpc.request(entry.call_id, method, encoded))
    try:
        outcome = await answer
    except asyncio.CancelledError:
        calls.drop(entry)
        callee.send(jsonrpc.notification("rpc.cancel", {"id": int(entry.call_id)}))
        raise
    if isinstance(outcome, CallError):
        raise outcome
    try:
        return msgspec.json.decode(outcome)
    except jsonrpc.UNDECODABLE as error:  # valid JSON, but no number or stack of this machine holds it
        raise CallError(0, f"the peer's result cannot be decoded: {error}"[: jsonrpc.MAX_DETAIL]) from None


def failed(error: RpcError) -> CallError:
    """Return the `CallError` of a call that ends with one of the gateway's own errors."""
    data = {"code": error.name, "temporary": error.temporary}
    if error is INTERNAL_ERROR:
        return CallError(error.code, f"{error.message}: {GARBLED}", {**data, "outcome": UNKNOWN})
    return CallError(error.code, error.message, data)


class _PeerError(msgspec.Struct):
    code: int
    message: str
    data: Any = None


def _peer_error(data: Raw) -> CallError:
    try:
        error = msgspec.json.decode(data, type=_PeerError)
    except jsonrpc.UNDECODABLE:
        return CallError(0, "the peer's error cannot be decoded")
    return CallError(error.code, error.message, error.data)
