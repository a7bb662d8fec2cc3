"""Takes the steps of work (`rpc.work`), one in each event-loop iteration."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, TypeVar

from gateway.rpc.work import Work

Result = TypeVar("Result")


class Steps:
    """Takes one step in each event-loop iteration, of all work together: first come, first served.

    One peer's work is bounded by its own limits. This bounds what very many peers can have done in one iteration.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False
        self._begun: set[asyncio.Task[Any]] = set()

    def begin(self, work: Work[Result]) -> asyncio.Future[Result]:
        """Take the first step of this work now, and the others even if nobody waits for the result.

        Raises what the first step raises.
        """
        loop = asyncio.get_running_loop()
        try:
            next(work)
        except StopIteration as done:
            result: asyncio.Future[Result] = loop.create_future()
            result.set_result(done.value)
            return result
        task = loop.create_task(self.take(work))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return task

    async def take(self, work: Work[Result]) -> Result:
        """Take all steps of this work, and return its result. Raises what the work raises.

        If this is cancelled the work is closed: it can undo in a ``finally`` what it has done, and only that.
        """
        try:
            while True:
                await self._turn()
                next(work)
        except StopIteration as done:
            result: Result = done.value
            return result
        finally:
            work.close()

    async def _turn(self) -> None:
        """Wait until no other work has taken a step in this iteration."""
        loop = asyncio.get_running_loop()
        if self._armed:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._armed = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the next one its turn. What was cancelled meanwhile has none."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # its task goes on before the next call of this
                loop.call_soon(self._next, loop)
                return
        self._armed = False
