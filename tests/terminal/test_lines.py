"""Lines from and to descriptors of every kind."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.terminal.lines import MAX_LINE, lines_of, writable, write
from tests.support.patience import WAIT


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """The reading and the writing end of a pipe; the test may close one and take it out."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


async def all_of(descriptor: int, ended: asyncio.Future[None] | None = None) -> list[bytes]:
    async with asyncio.timeout(WAIT):
        return [line async for line in lines_of(descriptor, ended)]


async def test_lines_of_a_file_and_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    text = [b"a", b"", b"x" * MAX_LINE, "küche".encode()]
    file.write_bytes(b"\n".join(text))
    for path, expected in ((str(file), text), (os.devnull, [])):
        descriptor = os.open(path, os.O_RDONLY)
        assert await all_of(descriptor) == expected
        os.close(descriptor)


async def test_a_line_of_a_pipe_comes_before_the_next_is_written(pipe: list[int]) -> None:
    lines = lines_of(pipe[0])
    os.write(pipe[1], b"one\ntw")
    assert await anext(lines) == b"one"
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    os.write(pipe[1], b"o\n")
    assert await asyncio.wait_for(waiting, WAIT) == b"two"
    os.write(pipe[1], b"the last")
    os.close(pipe.pop())
    assert await anext(lines) == b"the last"
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


async def test_an_end_that_was_told_ends_a_pipe_that_others_hold_open(pipe: list[int]) -> None:
    os.set_blocking(pipe[0], False)
    ended = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(all_of(pipe[0], ended))
    await asyncio.sleep(0)
    os.write(pipe[1], b"rest")
    ended.set_result(None)
    assert await reading == [b"rest"]
    assert await all_of(pipe[0], ended) == []


async def test_a_line_without_an_end_is_refused(pipe: list[int], tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"x" * (MAX_LINE + 1))
    descriptor = os.open(file, os.O_RDONLY)
    with pytest.raises(ValueError, match="a line of more than"):
        await all_of(descriptor)
    os.close(descriptor)


async def test_writing_waits_for_the_reader(pipe: list[int]) -> None:
    os.set_blocking(pipe[1], False)
    data = b"x" * 300_000 + b"\n"
    writing = asyncio.create_task(write(pipe[1], data))
    await asyncio.sleep(0.01)
    assert not writing.done()
    assert await asyncio.wait_for(anext(lines_of(pipe[0])), WAIT) == data[:-1]
    await writing
    await asyncio.wait_for(writable(pipe[1]), WAIT)
    os.close(pipe.pop(0))
    with pytest.raises(BrokenPipeError):
        await write(pipe[0], b"x")
