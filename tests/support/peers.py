"""Peers that speak WebSocket by hand, well or badly, over TCP, TLS and Unix sockets.

Nothing is read behind the caller's back: what no `recv…` asks for stays in the kernel, as with a peer that
has stopped reading. Every wait has a deadline and raises TimeoutError.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from tests.support.patience import WAIT

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, section 1.3."""
CHUNK = 1 << 18

Ending = Literal["eof", "reset"]


class Opcode(IntEnum):
    """RFC 6455, section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Reachable(Protocol):
    """Where a gateway listens: a GatewayProcess, or a Target."""

    @property
    def host(self) -> str:
        """The address."""

    @property
    def port(self) -> int:
        """The TCP port; not read where `unix` is set."""

    @property
    def unix(self) -> Path | None:
        """A Unix socket, if it is to be used."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The client's context, if the gateway speaks TLS."""


@dataclass(frozen=True)
class Target:
    """A listener that is no GatewayProcess, or another listener of one."""

    port: int = 0
    host: str = "127.0.0.1"
    unix: Path | None = None
    tls: ssl.SSLContext | None = None


class PeerClosed(ConnectionError):
    """The gateway ended the stream while more was expected."""

    def __init__(self, how: Ending) -> None:
        super().__init__(how)
        self.how: Ending = how


class Frame(NamedTuple):
    """One frame as it came in, unmasked."""

    fin: bool
    opcode: int
    payload: bytes
    rsv: int = 0


class Closing(NamedTuple):
    """How a stream ended: the frames before, and the end itself."""

    frames: list[Frame]
    how: Ending


@dataclass(frozen=True)
class Response:
    """An HTTP response. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A non-blocking socket, with TLS on top where a context is given."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._order = asyncio.Lock()

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Run the TLS handshake. Raises ssl.SSLError, or PeerClosed."""
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise PeerClosed("eof") from None
                continue
            finally:
                # The last message of a handshake, or the alert that says why it failed.
                await self._flush()
            self._tls = tls
            return

    def certificate(self) -> bytes:
        """Return the gateway's certificate, DER."""
        assert self._tls is not None
        der = self._tls.getpeercert(binary_form=True)
        assert der is not None
        return der

    async def recv(self) -> bytes:
        """Return what has come in, b"" at the end of the stream. Raises ConnectionResetError."""
        if self._tls is None:
            return await asyncio.get_running_loop().sock_recv(self.sock, CHUNK)
        while True:
            try:
                return self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                if not await self._fill():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def send(self, data: bytes) -> None:
        """Send all of `data`; waits while the gateway does not read. Raises OSError once it has gone."""
        if self._tls is not None:
            self._tls.write(data)
            await self._flush()
        else:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _fill(self) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self.sock, CHUNK)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            # Two senders must not interleave their records.
            async with self._order:
                await asyncio.get_running_loop().sock_sendall(self.sock, self._outgoing.read())


@dataclass
class RawPeer:
    """One connection to a gateway, driven by hand. `with` closes its socket at the end, without a frame."""

    wire: Wire
    where: Reachable
    local: str
    """Its own address as the gateway's log names it in `remote`."""
    since: float = field(default_factory=time.time)
    """When it connected, in seconds since the epoch."""
    close_code: int | None = None
    """The code of the gateway's close frame once one has come in; 1005 if the frame had none."""
    close_reason: str = ""
    _buffer: bytearray = field(default_factory=bytearray)
    _reading: bool = True

    # Connect

    @classmethod
    async def connect(
        cls,
        where: Reachable,
        *,
        tls: bool = True,
        rcvbuf: int | None = None,
        source: str | None = None,
        timeout: float = WAIT,
    ) -> Self:
        """Connect, run the TLS handshake where the gateway speaks TLS, and say nothing more.

        tls False: leave TLS out. rcvbuf: SO_RCVBUF in bytes, to make a peer that stalls early. source: an
        address of one's own, such as 127.0.0.2.
        """
        sock = socket.socket(socket.AF_UNIX if where.unix else _family(where.host), socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if rcvbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            if source is not None:
                sock.bind((source, 0))
            async with asyncio.timeout(timeout):
                address = str(where.unix) if where.unix else (where.host, where.port)
                await asyncio.get_running_loop().sock_connect(sock, address)
                peer = cls(Wire(sock), where, _name(sock))
                if where.tls is not None and tls:
                    await peer.wire.start_tls(where.tls, where.host)
        except BaseException:
            sock.close()
            raise
        return peer

    @classmethod
    async def open(
        cls,
        where: Reachable,
        path: str = "/ws",
        *,
        headers: Mapping[str, str] | None = None,
        rcvbuf: int | None = None,
        source: str | None = None,
        timeout: float = WAIT,
    ) -> Self:
        """Connect and upgrade, `headers` beside the usual ones. AssertionError unless the answer is a 101."""
        peer = await cls.connect(where, rcvbuf=rcvbuf, source=source, timeout=timeout)
        try:
            await peer.upgrade(path, headers=headers, timeout=timeout)
        except BaseException:
            peer.close()
            raise
        return peer

    async def upgrade(
        self, path: str = "/ws", *, headers: Mapping[str, str] | None = None, timeout: float = WAIT
    ) -> Response:
        """Send the upgrade request and check the answer: 101, and the key's digest."""
        key = base64.b64encode(os.urandom(16))
        await self.send_raw(self.upgrade_head(path, key=key, headers=headers))
        response = await self.read_response(timeout)
        assert response.status == 101, response
        digest = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID, usedforsecurity=False).digest())
        assert response.headers["sec-websocket-accept"] == digest.decode()
        return response

    @property
    def authority(self) -> str:
        """What a proper client sends as `Host`."""
        if self.where.unix:
            return "localhost"
        host = self.where.host
        return f"[{host}]:{self.where.port}" if ":" in host else f"{host}:{self.where.port}"

    def upgrade_head(
        self,
        path: str = "/ws",
        *,
        key: bytes = b"dGhlIHNhbXBsZSBub25jZQ==",
        headers: Mapping[str, str] | None = None,
        version: str = "HTTP/1.1",
        without: tuple[str, ...] = (),
    ) -> bytes:
        """Return an upgrade request's head. `headers` replace or add, `without` names those to leave out."""
        fields = {
            "Host": self.authority,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key.decode(),
            "Sec-WebSocket-Version": "13",
        } | dict(headers or {})
        lines = [f"{name}: {value}" for name, value in fields.items() if name not in without]
        return "\r\n".join([f"GET {path} {version}", *lines, "", ""]).encode("latin-1")

    async def read_response(self, timeout: float = WAIT) -> Response:
        """Read one HTTP response, its body by Content-Length. Raises PeerClosed if the stream ends before."""
        async with asyncio.timeout(timeout):
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                await self._more()
            head = self._take(end + 4).decode("latin-1").split("\r\n")
            fields = (line.partition(":") for line in head[1:-2])
            headers = {name.lower(): value.strip() for name, _, value in fields}
            status = int(head[0].split()[1])
            length = 0 if status == 101 else int(headers.get("content-length", "0"))
            await self._need(length)
        return Response(status, headers, self._take(length))

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None, timeout: float = WAIT) -> Response:
        """Send a plain GET and return the answer; the connection stays if the gateway keeps it."""
        fields = {"Host": self.authority} | dict(headers or {})
        lines = [f"{name}: {value}" for name, value in fields.items()]
        await self.send_raw("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        return await self.read_response(timeout)

    # Send

    async def send_raw(self, data: bytes, timeout: float = WAIT) -> None:
        """Send bytes as they are. Raises OSError once the gateway has gone."""
        async with asyncio.timeout(timeout):
            await self.wire.send(data)

    async def send_frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        mask: bool = True,
        timeout: float = WAIT,
    ) -> None:
        """Send one frame. `rsv`: the three reserved bits as a number from 0 to 7."""
        await self.send_raw(frame(opcode, payload, fin=fin, rsv=rsv, mask=mask), timeout)

    async def send_json(self, message: object) -> None:
        """Send one JSON message in a text frame."""
        await self.send_frame(Opcode.TEXT, json.dumps(message).encode())

    async def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame, None: without a code."""
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
        await self.send_frame(Opcode.CLOSE, payload)

    # Receive

    async def recv_frame(self, timeout: float = WAIT) -> Frame:
        """Return the next frame. Raises PeerClosed if the stream ends before. Answers nothing by itself."""
        async with asyncio.timeout(timeout):
            await self._need(2)
            first, second = self._buffer[0], self._buffer[1]
            size = second & 0x7F
            start = {126: 4, 127: 10}.get(size, 2)
            await self._need(start)
            if size > 125:
                size = int.from_bytes(self._buffer[2:start], "big")
            assert not second & 0x80, "a server must not mask (RFC 6455, section 5.1)"
            await self._need(start + size)
        payload = self._take(start + size)[start:]
        if first & 0x0F == Opcode.CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.close_reason = payload[2:].decode()
        return Frame(bool(first & 0x80), first & 0x0F, payload, first >> 4 & 7)

    async def recv_json(self, timeout: float = WAIT) -> Any:
        """Return the next frame's JSON. AssertionError if the next frame is not a whole text message."""
        got = await self.recv_frame(timeout)
        assert (got.fin, got.opcode) == (True, Opcode.TEXT), got
        return json.loads(got.payload)

    async def welcome(self, timeout: float = WAIT) -> dict[str, Any]:
        """Read the gateway's first frame and return the params of the welcome."""
        message = await self.recv_json(timeout)
        assert message["method"] == "gateway.welcome", message
        params: dict[str, Any] = message["params"]
        return params

    async def recv_until_closed(self, timeout: float = WAIT) -> Closing:
        """Read frames until the gateway ends the stream. A frame that was cut short is left out."""
        frames: list[Frame] = []
        async with asyncio.timeout(timeout):
            while True:
                try:
                    frames.append(await self.recv_frame(timeout))
                except PeerClosed as end:
                    return Closing(frames, end.how)

    async def wait_closed(self, timeout: float = WAIT) -> Ending:
        """Read whatever comes, frames or not, until the gateway ends the stream, and say how."""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    await self._more()
                except PeerClosed as end:
                    return end.how
                self._buffer.clear()

    async def alive(self, timeout: float = WAIT) -> float:
        """Send a ping and return the seconds until its pong. Other frames before it are thrown away."""
        payload, begin = os.urandom(8), time.monotonic()
        await self.send_frame(Opcode.PING, payload)
        async with asyncio.timeout(timeout):
            while True:
                got = await self.recv_frame(timeout)
                if got.opcode == Opcode.PONG and got.payload == payload:
                    return time.monotonic() - begin

    # End

    async def leave(self, code: int = 1000, timeout: float = WAIT) -> None:
        """End the connection as RFC 6455, section 7 says: close frame, its answer, end of the stream."""
        await self.send_close(code)
        await self.recv_until_closed(timeout)
        self.close()

    def stop_reading(self) -> None:
        """Read no more: each later `recv…` is an error of the test. The kernel's buffers fill up."""
        self._reading = False

    def read_on(self) -> None:
        """Read again, after `stop_reading`."""
        self._reading = True

    def fin(self) -> None:
        """Say that nothing more will be sent (TCP FIN); reading goes on."""
        self.wire.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Drop the connection with a TCP RST. May be called twice."""
        if self.wire.sock.fileno() >= 0:
            self.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket without a word. May be called twice."""
        self.wire.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The buffer

    async def _need(self, size: int) -> None:
        while len(self._buffer) < size:
            await self._more()

    async def _more(self) -> None:
        assert self._reading, "this peer has stopped reading"
        try:
            data = await self.wire.recv()
        except (ConnectionResetError, BrokenPipeError):
            raise PeerClosed("reset") from None
        if not data:
            raise PeerClosed("eof")
        self._buffer += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """Return one frame's bytes (RFC 6455, section 5.2), masked as a client must."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    masked, size = mask << 7, len(payload)
    if size < 126:
        head += bytes([masked | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    pad = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return head + key + (int.from_bytes(payload, "big") ^ pad).to_bytes(size, "big")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _name(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return "unix"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
