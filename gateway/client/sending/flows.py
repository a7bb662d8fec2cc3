"""The two directions of a stream, as one of its sides has them: what it may send, and what it takes."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from gateway.client.errors import NOT_DELIVERED, CallError, failure
from gateway.client.sending.encoding import encode
from gateway.client.sending.outbox import Outgoing
from gateway.errors import INVALID_REQUEST, OVERRUN
from gateway.rpc import jsonrpc

CREDIT: Final = 16
"""How many values one side of a stream lets the other send ahead by default."""

CREDIT_BYTES: Final = 1 << 20
"""How many bytes they may have together by default."""

MAX_CREDIT: Final = 1024
"""The most values that a gateway lets a receiver grant."""

_LEAST_THIRD: Final = 0.1
"""Seconds after which a quiet stream is renewed at the soonest."""


class Grant(msgspec.Struct):
    """How much the other side takes: so many values more, and so many bytes."""

    id: Raw = jsonrpc.ABSENT
    credit: int = 0
    octets: int = msgspec.field(default=0, name="bytes")


class Sender(Protocol):
    """What a stream needs of a `Session`."""

    def limit(self, name: str, default: int) -> int:
        """Return one of the gateway's limits."""

    def fits(self, data: bytes) -> bool:
        """Return whether the gateway takes a message of this size."""

    def post(self, data: bytes) -> None:
        """Send without waiting."""

    def send(self, data: bytes, message: Outgoing | None = None) -> Awaitable[None]:
        """Send, and wait until it is written."""


def most_bytes(session: Sender) -> int:
    """Return how many bytes the gateway takes in one grant."""
    return max(1, session.limit("maxOutboxBytes", 2 * CREDIT_BYTES) // 2)


class Inflow:
    """Values that come, no more than were granted: an async iterator for one reader.

    ``raw``: it yields their JSON as it came, each a Raw.
    """

    def __init__(self, flows: Flows, *, raw: bool = False) -> None:
        self._flows = flows
        self._raw = raw
        self._values: deque[tuple[Any, int]] = deque()
        self._news = asyncio.Event()
        self._window = (0, 0)
        self._due = 0
        self._taken = (0, 0)
        self._ended = False
        self._reason: Exception | None = None

    def __len__(self) -> int:
        """Return how many values wait to be read."""
        return len(self._values)

    @property
    def is_open(self) -> bool:
        """Whether anything was granted yet."""
        return self._window != (0, 0)

    def open(self, credit: int, octets: int) -> None:
        """Take it that so much was granted. It is granted again in halves, as it is taken."""
        self._window = credit, octets
        self._due = credit

    def put(self, value: Raw) -> bool:
        """Take a value. Returns False if it was not granted. Raises what decoding raises."""
        if self._ended:
            return True
        if self._due < 1:
            return False
        self._due -= 1
        # A Raw is a view of the whole message.
        self._values.append((value.copy() if self._raw else msgspec.json.decode(value), len(bytes(value))))
        self._news.set()
        return True

    def end(self, reason: Exception | None, *, drop: bool = False) -> None:
        """Take no more. What has come can still be read, unless it is to be dropped. Only the first call has an effect.

        Then the iteration stops, or raises the reason.
        """
        if self._ended:
            return
        self._ended, self._reason = True, reason
        if drop:
            self._values.clear()
        self._news.set()

    def __aiter__(self) -> Inflow:
        return self

    async def __anext__(self) -> Any:
        while not self._values:
            if self._ended:
                if self._reason is not None:
                    raise copy.copy(self._reason) if isinstance(self._reason, CallError) else self._reason
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        value, octets = self._values.popleft()
        self._take(octets)
        return value

    def _take(self, octets: int) -> None:
        taken = self._taken[0] + 1, self._taken[1] + octets
        self._taken = taken
        if self._ended or not (2 * taken[0] >= self._window[0] or 2 * taken[1] >= self._window[1]):
            return
        self._taken = (0, 0)
        self._due += taken[0]
        self._flows.grant(*taken)


class Outflow:
    """Values that leave, as far as the other side has granted: one after the other, in the order of `send`."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._ended = False
        self._reason: CallError | None = None
        self.credit = self.octets = 0

    def granted(self, credit: int, octets: int) -> None:
        """Take a grant of the other side's."""
        self.credit += credit
        self.octets += octets
        self._news.set()

    async def send(self, value: Any) -> None:
        """Send a value as soon as the other side takes it. Raises as `Stream.send`."""
        encoded = encode(value)
        async with self._turn:
            while not self._ended and (self.credit < 1 or self.octets < 1):
                self._news.clear()
                await self._news.wait()
            self._check()
            await self._spend(encoded)

    async def _spend(self, encoded: bytes) -> None:
        data = self._flows.message({"value": Raw(encoded)})
        message = Outgoing()
        self.credit -= 1
        self.octets -= len(encoded)
        try:
            await self._flows.send(data, message)
        finally:
            if not message.left:
                self.granted(1, len(encoded))

    async def finish(self) -> None:
        """Tell, after all values, that no more come. Does nothing if that was told, or the stream is over."""
        async with self._turn:
            await self._flows.begun.wait()
            if not self._ended:
                message = Outgoing()
                try:
                    await self._flows.send(self._flows.message({"end": True}), message)
                finally:
                    if message.left:
                        self.end(None)

    def end(self, reason: CallError | None) -> None:
        """Let nothing more be sent. Only the first call has an effect."""
        if not self._ended:
            self._ended, self._reason = True, reason
            self._news.set()

    def _check(self) -> None:
        if self._ended:
            if self._reason is not None:
                raise copy.copy(self._reason)
            raise failure(INVALID_REQUEST, "the stream takes no more values", outcome=NOT_DELIVERED)


class Flows:
    """Both directions of one stream. ``grants`` and ``sends`` are the methods by which this side grants and sends.

    ``raw``: see `Inflow`.
    ``begun`` is set once the stream has its place in a session. ``moved`` is the event loop's time at which something
    of it last went or came.
    """

    def __init__(self, grants: str, sends: str, *, raw: bool = False) -> None:
        self._grants = grants
        self._sends = sends
        self._id = Raw(b"null")
        self._session: Sender | None = None
        self._renewing: asyncio.Task[None] | None = None
        self.inflow = Inflow(self, raw=raw)
        self.outflow = Outflow(self)
        self.begun = asyncio.Event()
        self.moved = 0.0

    def begin(self, session: Sender, stream_id: bytes, deadline: float | None = None) -> None:
        """Go on in this session. With a deadline, in seconds, the stream is renewed when nothing moves for a third."""
        self._session, self._id = session, Raw(stream_id)
        self.move()
        self.begun.set()
        if deadline is not None:
            self._stop()
            self._renewing = asyncio.create_task(self._renew(max(deadline / 3, _LEAST_THIRD)))

    def move(self) -> None:
        """Note that something has gone or come: the deadline counts from now on."""
        self.moved = asyncio.get_running_loop().time()

    @property
    def idle(self) -> float:
        """For how many seconds nothing has moved."""
        return asyncio.get_running_loop().time() - self.moved

    async def _renew(self, third: float) -> None:
        """Grant nothing, whenever nothing has moved for a third of the deadline. While there is no link one waits."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(self.moved + third - loop.time())
                if loop.time() - self.moved >= third:
                    await self.send(self._granting(0, 0), Outgoing())
        except CallError:
            pass  # the connection is over, and so is the stream

    def put(self, value: Raw) -> CallError | None:
        """Take a value. Returns the error that ends the stream, because it was not granted or cannot be decoded."""
        self.move()
        try:
            if self.inflow.put(value):
                return None
        except jsonrpc.UNDECODABLE as error:  # too large a number, or nested too deeply
            return CallError(0, f"A value cannot be decoded: {error}")
        return failure(OVERRUN, "no value was granted", outcome="unknown")

    def granted(self, grant: Grant) -> None:
        """Take a grant of the other side's."""
        self.move()
        self.outflow.granted(grant.credit, grant.octets)

    def grant(self, credit: int, octets: int) -> None:
        """Let the other side send more, in as many grants as the gateway needs."""
        session = self._session
        assert session is not None, "nothing is read before the stream has begun"
        self.move()
        most = most_bytes(session)
        while credit or octets:
            session.post(self._granting(credit, min(octets, most)))
            credit, octets = 0, max(0, octets - most)

    def message(self, members: dict[str, Any]) -> bytes:
        """Return a message of this side's about the stream."""
        return jsonrpc.notification(self._sends, {"id": self._id, **members})

    def _granting(self, credit: int, octets: int) -> bytes:
        return jsonrpc.notification(self._grants, {"id": self._id, "credit": credit, "bytes": octets})

    async def send(self, data: bytes, message: Outgoing) -> None:
        """Send a message of this side's. Raises `ConnectionLost`, and ValueError if it is larger than is taken."""
        session = self._session
        assert session is not None, "nothing is granted before the stream has begun"
        if not session.fits(data):
            raise ValueError(f"a value of {len(data)} bytes is more than the gateway takes")
        await session.send(data, message)
        self.move()

    def end(self, reason: CallError | None, *, drop: bool = False) -> None:
        """End both directions."""
        self._stop()
        self.begun.set()
        self.inflow.end(reason, drop=drop)
        self.outflow.end(reason)

    def _stop(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
