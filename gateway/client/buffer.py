"""A bounded buffer between the connection and a reader that takes its time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Buffer(Generic[T]):
    """Holds at most ``size`` items; another one drops the oldest. An async iterator for one reader.

    ``dropped`` is called with each item that is dropped, and ``at_once`` is how many go when it is full: with more than
    one a reader that is too slow gets runs of items without a hole, and not a hole after each. After `close` the
    remaining items can still be read; then the iteration stops, or raises the error that `close` was given. Raises
    ValueError for a ``size`` below 1.
    """

    def __init__(self, size: int, dropped: Callable[[T], None] | None = None, *, at_once: int = 1) -> None:
        if size < 1:
            raise ValueError("a buffer holds one item at least")
        self._at_once = min(max(at_once, 1), size)
        self._items: deque[T] = deque()
        self._size = size
        self._dropped = dropped
        self._news = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item. Does nothing after `close`."""
        if self._closed:
            return
        if len(self._items) >= self._size:
            for _ in range(self._at_once):
                oldest = self._items.popleft()
                if self._dropped is not None:
                    self._dropped(oldest)
        self._items.append(item)
        self._news.set()

    def close(self, error: Exception | None = None) -> None:
        """Take no more items. Only the first call has an effect."""
        if not self._closed:
            self._closed, self._error = True, error
            self._news.set()

    def __aiter__(self) -> Buffer[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()
