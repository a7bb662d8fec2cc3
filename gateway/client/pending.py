"""Requests that were sent and are not answered yet, and the handle of one that runs in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec
from msgspec import Raw

from gateway.client.buffer import Buffer
from gateway.client.errors import CallError, received
from gateway.rpc.jsonrpc import UNDECODABLE

Progress = Callable[[Any], None]
OnReply = Callable[[Any], None]

PROGRESS: Final = 256
"""Values of one call's progress that wait for their reader; then the oldest is dropped."""


class Pending:
    """What waits for one response. ``on_reply`` has the result at once, before anything that comes behind it.

    ``progress`` has each value that the node reports.
    """

    __slots__ = ("answer", "on_reply", "progress")

    def __init__(self, on_reply: OnReply | None = None, progress: Progress | None = None) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_reply = on_reply
        self.progress = progress

    def succeed(self, result: Raw) -> None:
        """The result has come."""
        if self.answer.done():
            return
        try:
            value = msgspec.json.decode(result)
            if self.on_reply is not None:
                self.on_reply(value)
        except UNDECODABLE as error:  # no number or stack of this machine holds it, or it is not what was expected
            self.fail(CallError(0, f"The result cannot be decoded: {error}"))
            return
        self.answer.set_result(value)

    def fail(self, error: CallError) -> None:
        """It has failed."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def forget(self) -> None:
        """Nobody waits any more: an error that has come all the same is nobody's loss."""
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()


class PendingTable:
    """All requests of one connection that are not answered, by their ids."""

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def enter(self, identity: bytes, pending: Pending) -> None:
        """A request is about to be sent."""
        self._pending[identity] = pending

    def drop(self, identity: bytes) -> bool:
        """Nobody waits for it any more. False where it is not there: it was answered, or the connection is lost."""
        return self._pending.pop(identity, None) is not None

    def answered(self, identity: bytes, result: Raw, error: Raw) -> bool:
        """A response has come. False where nobody waits for it: it was cancelled."""
        pending = self._pending.pop(identity, None)
        if pending is None:
            return False
        if bytes(error):
            pending.fail(received(error))
        else:
            pending.succeed(result)
        return True

    def progress(self, identity: bytes, value: Any) -> None:
        """A node reports. Ignored where nobody waits."""
        pending = self._pending.get(identity)
        if pending is not None and pending.progress is not None:
            pending.progress(value)

    def fail_all(self, error: Callable[[], CallError]) -> None:
        """The connection is lost; each gets an error of its own."""
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.fail(error())


class Running:
    """A call that runs: await it for its result; ``async for`` gives the progress that its node reports.

    It may be awaited more than once. Who is cancelled while waiting for it, or for its progress, cancels the call.
    Of progress that is not read the latest 256 values are kept.
    """

    def __init__(self, task: asyncio.Task[Any], progress: Buffer[Any]) -> None:
        self._task = task
        self._progress = progress
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._progress.close()
        if not task.cancelled():
            task.exception()  # who does not await it does not want to know

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._progress.__anext__()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the call, at the node too. Harmless when it has ended; awaiting it raises CancelledError."""
        self._task.cancel()
