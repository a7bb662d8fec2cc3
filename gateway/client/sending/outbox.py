"""The one way to the gateway: messages leave in the order in which they were asked for, and none is too large.

What a link that was lost may have lost with it leaves once more by the next link, before anything else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

from gateway.client.endings import End
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, ConnectionLost, failure
from gateway.client.sending.counting import Counting
from gateway.errors import INVALID_REQUEST

MAX_POSTED: Final = 4 * 1024 * 1024
"""How many bytes of messages for which no sender waits may wait themselves while the gateway does not read."""

Write = Callable[[bytes], Awaitable[None]]
"""Writes one message to a link. Raises `ConnectionLost`."""


class Outgoing:
    """A message on its way. ``left`` says whether any of it may have been sent.

    ``data`` is one JSON text, and is set before `Outbox.put`. ``posted`` says that no sender waits for it, and
    ``counted`` that it has a number if the gateway keeps the connection.
    """

    __slots__ = ("_ended", "counted", "data", "left", "posted")

    begins_counting: ClassVar[bool] = False

    def __init__(self, data: bytes = b"", *, posted: bool = False, counted: bool = True) -> None:
        self.data = data
        self.posted = posted
        self.counted = counted
        self.left = False
        self._ended: asyncio.Future[ConnectionLost | None] | None = None

    async def written(self) -> None:
        """Wait until a link has taken the message. Raises `ConnectionLost` if none has. For one task."""
        self._ended = asyncio.get_running_loop().create_future()
        error = await self._ended
        if error is not None:
            raise error

    def end(self, error: ConnectionLost | None) -> None:
        """Say what became of the message."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)


class KeepRequest(Outgoing):
    """The request to keep the connection: what leaves after it has a number, and what leaves before it has none."""

    __slots__ = ()

    begins_counting: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(counted=False)


class Outbox:
    """Writes the messages of a connection one after the other, in the order of `put`.

    ``write`` writes to the first link. ``max_bytes`` is the most that the gateway takes of one message; None if the
    welcome has not said it. ``counting`` has the messages that the gateway has not acknowledged.
    """

    def __init__(self, write: Write) -> None:
        self._write: Write | None = write
        self._waiting: OrderedDict[Outgoing, None] = OrderedDict()
        self._posted = 0
        self._writer: asyncio.Task[None] | None = None
        self._end: End | None = None
        self.max_bytes: int | None = None
        self.counting: Final = Counting()

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more, by this link or by another."""
        return self._end is not None

    @property
    def overfull(self) -> bool:
        """Whether more than `MAX_POSTED` bytes wait for which no sender waits."""
        return self._posted > MAX_POSTED

    def fits(self, data: bytes) -> bool:
        """Return whether the gateway takes a message of this size; a larger one would end the link with 1009."""
        return self.max_bytes is None or len(data) <= self.max_bytes

    def put(self, message: Outgoing) -> None:
        """Have the message written after all that were put before.

        Raises `CallError` if it is larger than the gateway takes, and `ConnectionLost` if the connection has ended.
        """
        if not self.fits(message.data):
            detail = f"a message of {len(message.data)} bytes; the gateway takes {self.max_bytes}"
            raise failure(INVALID_REQUEST, detail, outcome=NOT_DELIVERED)
        if self._end is not None:
            raise ConnectionLost(self._end, NOT_DELIVERED)
        self._waiting[message] = None
        if message.posted:
            self._posted += len(message.data)
        self._begin()

    def withdraw(self, message: Outgoing) -> None:
        """Do not send the message, if it has not left. Does nothing for one that is not there."""
        if message in self._waiting:
            self._take(message)

    def _take(self, message: Outgoing) -> None:
        del self._waiting[message]
        if message.posted:
            self._posted -= len(message.data)

    # From link to link

    def detach(self) -> None:
        """Write nothing more to the link, because it is lost. What has no number is not for the next one."""
        self._write = None
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        for message in [one for one in self._waiting if not one.counted]:
            self._take(message)

    def attach(self, write: Write) -> None:
        """Go on by another link: with what the gateway has not acknowledged, and then with what waits."""
        self.counting.rewind()
        self._write = write
        self._begin()

    def _begin(self) -> None:
        if self._writer is None and self._write is not None:
            self._writer = asyncio.create_task(self._write_all(self._write))

    async def _write_all(self, write: Write) -> None:
        """Write what there is. After an error nothing more is written; the task that reads the link sees its end."""
        try:
            while self._write is write:
                if (data := self.counting.again()) is not None:
                    await self._written(write, data, None)
                elif self._waiting:
                    message = next(iter(self._waiting))
                    self._take(message)
                    message.left = True
                    if message.counted:
                        if self.counting.counts:
                            self.counting.keep(message.data)
                    elif message.begins_counting:
                        self.counting.begin()
                    await self._written(write, message.data, message)
                else:
                    break
        finally:
            if self._writer is asyncio.current_task():
                self._writer = None

    async def _written(self, write: Write, data: bytes, message: Outgoing | None) -> None:
        try:
            await write(data)
        except ConnectionLost as lost:
            if self.counting.whole:
                self._write = None  # it leaves by the next link
            else:
                self.stop(lost.end)
                if message is not None:
                    message.end(lost)
        finally:
            # It has come to this without an error if it was written or is kept, or else if `close` has cancelled this.
            if message is not None:
                message.end(ConnectionLost(self._end, UNKNOWN) if self._end is not None else None)

    async def flush(self) -> None:
        """Wait until everything has been written, or nothing can be any more."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def stop(self, end: End) -> None:
        """Take and send nothing more; ``end`` says why. Only the first call has an effect."""
        if self._end is None:
            self._end = end
            self.counting.stop()
            waiting, self._waiting, self._posted = self._waiting, OrderedDict(), 0
            for message in waiting:
                message.end(ConnectionLost(end, NOT_DELIVERED))

    async def close(self, end: End) -> None:
        """Stop, and end the task that writes."""
        self.stop(end)
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
            self._writer = None
