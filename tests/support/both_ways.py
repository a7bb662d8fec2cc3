"""A client that calls another and is called by it at the same time, and that knows what must have come of it.

Of all that one side sends: each call is run once and answered once, in the order of sending; so is each notification.
A call that was cancelled is run once at most.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gateway.client import CallError, Client, ServedCall

WINDOW = 24
"""How many calls of one side are under way at most."""
REPORTS = 3
"""How many values of its progress a call reports that does so."""
REPORTING, NOTE, BATCH, CANCEL = 2, 3, 5, 7
"""The last digits of the numbers of what is no plain call."""


class Side:
    """One of the two. It serves ``<name>.do`` and ``<name>.note``, and calls those of the ``other``."""

    def __init__(self, client: Client, name: str, other: str) -> None:
        self.client = client
        self.name = name
        self._other = other
        self._room = asyncio.Semaphore(WINDOW)
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent: list[int] = []
        """The numbers of the calls and notifications that were sent, in order."""
        self.ran: list[int] = []
        """The numbers of those of the other side that were run here, in order."""
        self.notes: list[int] = []
        self.cancelled: set[int] = set()
        self.failed: list[tuple[int, str]] = []
        """What went wrong: the number, and how."""

    async def serve(self) -> None:
        """Register the methods."""
        self.client.method(f"{self.name}.do")(self._do)
        self.client.method(f"{self.name}.note")(self._note)
        await self.client.serve(self.name)

    async def _do(self, params: dict[str, Any], call: ServedCall) -> Any:
        self.ran.append(params["number"])
        for report in range(params["reports"]):
            await call.progress(report)
        await asyncio.sleep(params["number"] % 4 / 1000)
        return params

    def _note(self, params: dict[str, Any], call: ServedCall) -> None:
        self.notes.append(params["number"])

    async def work(self, going: Callable[[int], bool]) -> None:
        """Send one after the other, as long as it goes, and wait for what comes of all."""
        number = 0
        while going(number):
            await self._room.acquire()
            self._begin(number)
            number += 1
        await asyncio.gather(*self._tasks)

    def _begin(self, number: int) -> None:
        self.sent.append(number)
        kinds = {NOTE: self._notify, BATCH: self._batch, CANCEL: self._cancel}
        work = kinds.get(number % 10, self._call)
        task = asyncio.create_task(self._to_its_end(number, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _to_its_end(self, number: int, work: Callable[[int], Any]) -> None:
        try:
            await work(number)
        except (CallError, AssertionError) as error:
            self.failed.append((number, repr(error)))
        finally:
            self._room.release()

    def _params(self, number: int, reports: int = 0) -> dict[str, Any]:
        # Some are large enough to fill the buffers on the way.
        return {"number": number, "reports": reports, "filling": "x" * (20_000 if number % 50 == 0 else 0)}

    async def _call(self, number: int) -> None:
        reports = REPORTS if number % 10 == REPORTING else 0
        params = self._params(number, reports)
        running = self.client.start(f"{self._other}.do", params, timeout=120)
        if reports:
            assert [value async for value in running] == list(range(reports))
        assert await running == params

    async def _notify(self, number: int) -> None:
        await self.client.notify(f"{self._other}.note", {"number": number}, timeout=120)

    async def _batch(self, number: int) -> None:
        params = self._params(number)
        both = [(f"{self._other}.do", params), ("gateway.ping", [number])]
        assert await self.client.batch(both, timeout=120) == [params, [number]]

    async def _cancel(self, number: int) -> None:
        self.cancelled.add(number)
        running = self.client.start(f"{self._other}.do", self._params(number), timeout=120)
        await asyncio.sleep(number % 3 / 1000)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    def check(self, other: "Side") -> None:
        """All that was sent here has come to the other side as it must."""
        assert self.failed == []
        assert other.notes == [number for number in self.sent if number % 10 == NOTE]
        assert len(set(other.ran)) == len(other.ran), "some were run twice"
        assert set(self.sent) - set(other.notes) - set(other.ran) <= self.cancelled, "some were lost"
        # Tasks of the same kind send in the order in which they began.
        for batched in (True, False):
            ran = [number for number in other.ran if (number % 10 == BATCH) is batched]
            assert ran == sorted(ran)
