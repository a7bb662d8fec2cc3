"""Requests that were sent and are not answered yet, and the handle of a call that runs in the background."""

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
"""How many values of a call's progress wait for their reader; then the oldest is dropped."""


class Pending:
    """One request that waits for its response; ``answer`` is the future for it.

    ``on_reply`` is called with the decoded result at once, before any message that follows it is looked at;
    ``progress`` with each value that the node reports.
    """

    __slots__ = ("answer", "on_reply", "progress")

    def __init__(self, on_reply: OnReply | None = None, progress: Progress | None = None) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.on_reply = on_reply
        self.progress = progress

    def succeed(self, result: Raw) -> None:
        """Set the answer to the decoded result, or to an error if it cannot be decoded."""
        if self.answer.done():
            return
        try:
            value = msgspec.json.decode(result)
            if self.on_reply is not None:
                self.on_reply(value)
        except UNDECODABLE as error:  # too large a number, nested too deeply, or not what `on_reply` expects
            self.fail(CallError(0, f"The result cannot be decoded: {error}"))
            return
        self.answer.set_result(value)

    def fail(self, error: CallError) -> None:
        """Set the answer to the error. Does nothing if there is an answer already."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def forget(self) -> None:
        """Take back an error that no caller will see any more, so that asyncio does not complain of it."""
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()


class PendingTable:
    """All requests of one link that are not answered, by their ids."""

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def enter(self, request_id: bytes, pending: Pending) -> None:
        """Add a request that is about to be sent."""
        self._pending[request_id] = pending

    def drop(self, request_id: bytes) -> bool:
        """Remove a request. False if it is not there: it was answered, or the link is lost."""
        return self._pending.pop(request_id, None) is not None

    def answered(self, request_id: bytes, result: Raw, error: Raw) -> bool:
        """Give a response to its request. False if there is no such request, because it was cancelled."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return False
        if bytes(error):
            pending.fail(received(error))
        else:
            pending.succeed(result)
        return True

    def progress(self, request_id: bytes, value: Any) -> None:
        """Give a value that a node reports to its request. Does nothing if there is none, or it wants no progress."""
        pending = self._pending.get(request_id)
        if pending is not None and pending.progress is not None:
            pending.progress(value)

    def fail_all(self, error: Callable[[], CallError]) -> None:
        """Fail all requests; ``error`` makes an error for each."""
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.fail(error())


class Running:
    """A call that runs: await it for its result; ``async for`` yields the progress that the node reports.

    It may be awaited more than once. Cancelling a task that waits for the result or for progress cancels the call. Of
    the progress that is not read, the latest 256 values are kept.
    """

    def __init__(self, task: asyncio.Task[Any], progress: Buffer[Any]) -> None:
        self._task = task
        self._progress = progress
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._progress.close()
        if not task.cancelled():
            task.exception()  # asyncio is not to complain if the caller never awaits it

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
        """Cancel the call, at the node too; awaiting it then raises CancelledError. Does nothing if it has ended."""
        self._task.cancel()
