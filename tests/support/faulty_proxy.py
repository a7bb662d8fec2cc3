"""A TCP proxy in the test's event loop that does harm on command: it cuts, resets, delays, swallows and refuses."""

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Literal, Self

CHUNK: Final = 1 << 16
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 s: closing sends a reset."""

How = Literal["fin", "reset"]


class FaultyProxy:
    """Passes TCP connections on to `host`:`port`, as long as it is told nothing else. Use it with `async with`.

    refuse: end new connections at once. delay: seconds that each chunk is held back, in either direction. swallow:
    keep connections open and lose all that comes; of one that has lost something all that follows is lost too.
    These are attributes, and hold from the moment they are set.
    """

    def __init__(self, host: str, port: int) -> None:
        self._targets = itertools.cycle([(host, port)])
        self._pairs: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None
        self._left: int | None = None
        self.refuse = False
        self.swallow = False
        self.delay = 0.0
        self.accepted = 0
        """Connections that came, those that were refused not counted."""
        self.cuts = 0
        """Connections that were cut."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def url(self, path: str = "/ws", scheme: str = "ws") -> str:
        """The address of a path through it."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    @property
    def open(self) -> int:
        """Connections that are open."""
        return len(self._pairs)

    def turn_to(self, host: str, port: int) -> None:
        """Pass new connections on to another place."""
        self.spread(host, [port])

    def spread(self, host: str, ports: Iterable[int]) -> None:
        """Pass new connections on to several places in turn, whether they are there or not."""
        self._targets = itertools.cycle([(host, port) for port in ports])

    def cut(self, how: How = "fin") -> int:
        """End all connections now, on both sides; returns how many. What is under way is lost."""
        ended = 0
        for task, writers in list(self._pairs.items()):
            if how == "reset":
                for writer in writers:
                    _reset_on_close(writer)
            ended += task.cancel()
        self.cuts += ended
        return ended

    def cut_after(self, count: int) -> None:
        """Cut all when so many more bytes have passed, in the middle of a frame where that is so."""
        self._left = count

    def heal(self) -> None:
        """Do no harm from now on."""
        self.refuse = self.swallow = False
        self.delay, self._left = 0.0, None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs[task] = [writer]
        try:
            if not self.refuse:
                self.accepted += 1
                await self._pass_on(task, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the sides has gone, or the test has cut it
        finally:
            for one in self._pairs.pop(task):
                one.close()

    async def _pass_on(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, onward = await asyncio.open_connection(*next(self._targets))
        self._pairs[task].append(onward)
        ways = [asyncio.ensure_future(self._copy(reader, onward)), asyncio.ensure_future(self._copy(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        holed = False
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                # TCP has no holes: what comes behind something that was lost is lost too.
                holed = holed or self.swallow
                if holed:
                    continue
                if self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                writer.write(data)
                if self._left is not None and self._left <= 0:
                    self._left, holed = None, True
                    self.cut()
                await writer.drain()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
