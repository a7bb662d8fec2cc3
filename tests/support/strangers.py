"""What a client may meet in place of the gateway: other services, and an HTTP proxy on the way to it."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import psutil

HEAD: Final = 1 << 16
"""The bytes of a request head, at most."""


class Stranger:
    """A server on 127.0.0.1 that says what it was told to say, and hangs up."""

    def __init__(self, answer: bytes, greeting: bytes) -> None:
        self._answer = answer
        self._greeting = greeting
        self.connections = 0
        """How many came."""
        self.port = 0

    def url(self, scheme: str = "ws", host: str = "127.0.0.1") -> str:
        """Return the address that it would have if it were a gateway."""
        return f"{scheme}://{host}:{self.port}/ws"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        with contextlib.suppress(OSError):
            writer.write(self._greeting)
            await reader.read(HEAD)
            writer.write(self._answer)
            writer.close()


@asynccontextmanager
async def stranger(
    answer: bytes = b"", *, greeting: bytes = b"", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Stranger]:
    """Serve a greeting, and an answer to the first bytes that come."""
    there = Stranger(answer, greeting)
    server = await asyncio.start_server(there.handle, "127.0.0.1", 0, ssl=tls)
    there.port = server.sockets[0].getsockname()[1]
    async with server:
        yield there


def connections_to(port: int | None) -> list[str]:
    """The states of this process's connections to a port, as long as they have a socket."""
    return [one.status for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port == port]


class ForwardProxy:
    """An HTTP proxy: tunnels (CONNECT) and requests with a whole URL. Every host is the same port on 127.0.0.1.

    credential: the ``user:password`` without which it answers 407. status: what it answers in any case. Use it with
    ``async with``.
    """

    def __init__(self, port: int, *, credential: str | None = None, status: int | None = None) -> None:
        self._port = port
        self._credential = credential
        self._status = status
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.asked: list[str] = []
        """The methods and targets of all requests."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, credential: str = "") -> str:
        """Return its URL, with a credential if one is given."""
        assert self._server is not None
        return f"http://{credential}{'@' if credential else ''}127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            line, rest = head.split(b"\r\n", 1)
            method, target, version = line.decode().split(" ")
            self.asked.append(f"{method} {target}")
            if status := self._refusal(rest):
                writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
                return
            there, onward = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(onward):
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = target.split("/", 3)[3]
                    onward.write(f"{method} /{path} {version}\r\n".encode() + rest)
                await _pass_on((reader, onward), (there, writer))

    def _refusal(self, headers: bytes) -> int | None:
        if self._credential is not None:
            wanted = b"proxy-authorization: basic " + base64.b64encode(self._credential.encode()).lower()
            if wanted not in headers.lower():
                return 407
        return self._status


async def _pass_on(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    copying = [asyncio.create_task(_copy(*way)) for way in ways]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(HEAD):
            writer.write(data)
            await writer.drain()
