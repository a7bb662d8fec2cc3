"""A bounded buffer between what the connection brings and one that reads at its own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Buffer(Generic[T]):
    """At most ``size`` items; one more drops the oldest, which ``dropped`` is told. An async iterator for one reader.

    It ends when it is closed and what it holds has been read: the iteration stops, or raises the error that it was
    closed with.
    """

    def __init__(self, size: int, dropped: Callable[[T], None] | None = None) -> None:
        if size < 1:
            raise ValueError("a buffer holds one item at least")
        self._items: deque[T] = deque()
        self._size = size
        self._dropped = dropped
        self._news = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item. Ignored once it is closed."""
        if self._closed:
            return
        if len(self._items) >= self._size:
            oldest = self._items.popleft()
            if self._dropped is not None:
                self._dropped(oldest)
        self._items.append(item)
        self._news.set()

    def close(self, error: Exception | None = None) -> None:
        """No more comes. May be called again: the first time counts."""
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
