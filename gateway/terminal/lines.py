"""Lines from and to pipes, terminals and files, as they come, without a thread: reading stops as soon as it has to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

MAX_LINE: Final = 524_288
"""How many bytes a line may have; a message of the gateway has 1 MiB by default."""

_PART: Final = 65_536
"""How many bytes are read at a time: as many as a pipe holds."""


async def lines_of(descriptor: int, ended: asyncio.Future[Any] | None = None) -> AsyncIterator[bytes]:
    """Yield the lines that can be read there, without their line breaks, until the end.

    The last one may have no line break. ``ended``: once that is done, what can be read at this moment is the last;
    the descriptor must then be one that does not block. Raises ValueError for a line of more than `MAX_LINE` bytes, and
    OSError.
    """
    rest = b""
    while part := await _part(descriptor, ended):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield _checked(line)
        _checked(rest)
    if rest:
        yield rest


def _checked(line: bytes) -> bytes:
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE} bytes")
    return line


async def _part(descriptor: int, ended: asyncio.Future[Any] | None) -> bytes:
    """Return what can be read, as soon as there is something; nothing at the end."""
    while ended is None or not ended.done():
        if await _ready(descriptor, asyncio.get_running_loop().add_reader, ended):
            try:
                return os.read(descriptor, _PART)
            except BlockingIOError:
                continue  # another process has read it
    try:
        return os.read(descriptor, _PART)
    except BlockingIOError:
        return b""


async def writable(descriptor: int) -> None:
    """Wait until something can be written there, or it is seen that nothing can be any more."""
    await _ready(descriptor, asyncio.get_running_loop().add_writer, None)


async def write(descriptor: int, data: bytes) -> None:
    """Write all of it to a descriptor that does not block. Raises OSError."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            await writable(descriptor)


async def _ready(descriptor: int, add: Callable[..., None], ended: asyncio.Future[Any] | None) -> bool:
    """Wait for the descriptor; returns False if something else has ended before. A file is always ready."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        add(descriptor, ready.set)
    except PermissionError:  # a file, or /dev/null: epoll takes none
        await asyncio.sleep(0)
        return True
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({waiting} if ended is None else {waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        (loop.remove_reader if add == loop.add_reader else loop.remove_writer)(descriptor)
    return ready.is_set()
