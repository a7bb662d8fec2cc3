"""aiohttp's insides that gateway.websocket makes use of: this file fails when one of them changes."""

import asyncio
import inspect
import os
import re
import struct
import zlib
from asyncio import selector_events
from collections.abc import Coroutine, Mapping
from importlib.metadata import requires
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_websocket import WebSocketError
from aiohttp.test_utils import make_mocked_request

from gateway.handshake.listener import READ_BYTES
from gateway.websocket.opening import Head, coroutine_function
from tests.support.peers import Opcode, frame

INSIDES = "look at the modules that tests/support/layers.py calls INSIDERS before this release of aiohttp is used"

SIGNATURES: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    web.WebSocketResponse: {
        "_reset_heartbeat": ("self",),
        "_send_heartbeat": ("self",),
        "_pong_not_received": ("self",),
        "_handle_ping_pong_exception": ("self", "exc"),
        "_cancel_heartbeat": ("self",),
        "_cancel": ("self", "exc"),
        "prepare": ("self", "request"),
        "receive": ("self", "timeout"),
        "close": ("self", "code", "message", "drain"),
        "write_eof": ("self",),
    },
    web.RequestHandler: {
        "set_parser": ("self", "parser", "data_received_cb"),
        "keep_alive": ("self", "val"),
        "connection_made": ("self", "transport"),
        "connection_lost": ("self", "exc"),
        "data_received": ("self", "data"),
        "pause_writing": ("self",),
        "resume_writing": ("self",),
        "handle_error": ("self", "request", "status", "exc", "message"),
        "finish_response": ("self", "request", "resp", "start_time"),
        "_drain_helper": ("self",),
    },
    WebSocketWriter: {"_get_compressor": ("self", "compress")},
}
DEFAULTS = {
    "_ws_protocol": None,
    "_writer": None,
    "_reader": None,
    "_parser": None,
    "_closed": False,
    "_closing": False,
    "_conn_lost": 0,
    "_close_code": None,
    "_loop": None,
    "_waiting": False,
    "_close_wait": None,
    "_exception": None,
    "_heartbeat_when": 0.0,
    "_heartbeat_cb": None,
    "_pong_response_cb": None,
    "_ping_task": None,
    "_need_heartbeat_reset": False,
    "_heartbeat_reset_handle": None,
    "_req": None,
    "_payload_writer": None,
}
"""What a web.WebSocketResponse has of its class until it is set on the instance."""
ATTRIBUTES = {
    "_autoclose",
    "_autoping",
    "_compress",
    "_decode_text",
    "_headers",
    "_heartbeat",
    "_heartbeat_reset_handle",
    "_max_msg_size",
    "_need_heartbeat_reset",
    "_pong_heartbeat",
    "_protocols",
    "_reason",
    "_receive_timeout",
    "_state",
    "_status",
    "_timeout",
    "_writer_limit",
}
"""What its constructor sets: more of it would cost every connection memory."""


def test_aiohttp_is_of_the_release_that_was_looked_at() -> None:
    assert (3, 14, 5) <= tuple(map(int, re.findall(r"\d+", aiohttp.__version__)[:3])) < (3, 15), INSIDES
    declared = [line for line in requires("aisopod-gateway") or () if line.startswith("aiohttp<")]
    assert declared == ["aiohttp<3.15,>=3.14.5"], INSIDES


def test_aiohttp_has_the_private_functions() -> None:
    for owner, functions in SIGNATURES.items():
        for name, parameters in functions.items():
            assert tuple(inspect.signature(getattr(owner, name)).parameters) == parameters, f"{name}: {INSIDES}"


async def test_aiohttp_has_the_private_attributes() -> None:
    fresh = web.WebSocketResponse(heartbeat=20.0)
    assert {name: getattr(web.WebSocketResponse, name, "missing") for name in DEFAULTS} == DEFAULTS, INSIDES
    assert set(vars(fresh)) == ATTRIBUTES, INSIDES
    assert vars(fresh)["_pong_heartbeat"] == 10.0, INSIDES
    slots = {*web.RequestHandler.__slots__, *BaseProtocol.__slots__}
    known = {"_payload_parser", "_messages", "_parser", "_cache", "_loop", "_timeout_ceil_threshold"}
    assert slots >= {*known, "_current_request"}, INSIDES
    request = make_mocked_request("GET", "/ws")
    known = {"_message", "_headers", "_cache", "_state", "_protocol", "_transport_peername", "_transport_sockname"}
    assert known <= vars(request).keys(), INSIDES
    assert isinstance(
        StreamWriter(BaseProtocol(asyncio.get_running_loop()), asyncio.get_running_loop()).output_size, int
    )


def test_aiohttp_begins_a_connection_with_the_steps_that_are_known() -> None:
    """`RequestProtocol.connection_made` takes the place of both: it does some of them, and leaves others out."""
    steps = {*web.RequestHandler.connection_made.__code__.co_names, *BaseProtocol.connection_made.__code__.co_names}
    known = {"transport", "tcp_nodelay", "_tcp_keepalive", "tcp_keepalive", "_manager", "connection_made"}
    known |= {"_keepalive_timeout", "_next_keepalive_close_time", "_keepalive_handle", "_process_keepalive"}
    known |= {"_loop", "time", "call_at", "start", "create_task", "_task_handler"}
    language = {"super", "cast", "asyncio", "Transport", "sys", "version_info"}
    eager = {"isinstance", "BaseEventLoop", "Task"}
    assert steps - language - eager == known, INSIDES


class Queue(WebSocketDataQueue):
    """Whether the compiled parser calls what a subclass in Python overrides, and what becomes of what that raises."""

    __slots__ = ("failure", "fed")

    def __init__(self) -> None:
        self.fed: list[Any] = []
        self.failure: BaseException | None = None

    def feed_data(self, data: Any, size: int) -> None:
        """Note it."""
        self.fed.append(data)
        if data[1] == b"raise":
            raise RuntimeError("a defect")

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Note it."""
        self.failure = exc


class Parser(WebSocketReader):
    """Likewise for frames."""

    __slots__ = ("frames",)

    def __init__(self, queue: Queue, max_msg_size: int = 100_000, compress: bool = False) -> None:
        super().__init__(queue, max_msg_size, compress, False)
        self.frames: list[tuple[bool, int, bytes, type, int]] = []

    def _handle_frame(self, fin: bool, opcode: int, payload: bytes | bytearray, compressed: int) -> None:
        self.frames.append((bool(fin), opcode, bytes(payload), type(payload), compressed))
        super()._handle_frame(fin, opcode, payload, compressed)


def test_aiohttp_takes_a_plain_function_that_is_marked_as_a_handler() -> None:
    @coroutine_function
    def handler(request: web.Request) -> Coroutine[Any, Any, web.StreamResponse]:
        raise NotImplementedError

    app = web.Application()
    assert app.router.add_get("/", handler).handler is handler, INSIDES


def test_aiohttp_s_head_of_a_request_has_what_the_copy_has() -> None:
    known = {name for name in dir(RawRequestMessage) if not name.startswith("_")}
    assert known == set(Head.__struct_fields__), INSIDES
    source = inspect.getsource(web.RequestHandler.start)
    assert "message, payload = self._messages.popleft()" in source, INSIDES


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65536])
@pytest.mark.parametrize("piece", [1, 100, 100_000])
@pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])
def test_aiohttp_unmasks_into_a_bytearray_and_leaves_bytes_as_they_came(size: int, piece: int, mask: bool) -> None:
    """The parser tells nobody whether a frame was masked; but for a frame in very many reads, this does."""
    if size // piece > 300:
        piece = size // 300
    parser = Parser(Queue())
    payload = os.urandom(size)
    data = frame(Opcode.BINARY, payload, mask=mask)
    for begin in range(0, len(data), piece):
        assert parser.feed_data(data[begin : begin + piece]) == (False, b""), INSIDES
    assert parser.frames == [(True, Opcode.BINARY, payload, bytearray if mask else bytes, 0)], INSIDES


def test_aiohttp_hands_messages_and_failures_to_a_queue_in_python() -> None:
    queue = Queue()
    parser = Parser(queue)
    parser.feed_data(frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.CONTINUATION, b"b"))
    parser.feed_data(frame(Opcode.CLOSE, struct.pack("!H", 4000) + b"why") + frame(Opcode.CLOSE))
    assert [tuple(data) for data in queue.fed] == [
        (WSMsgType.TEXT, b"ab", ""),
        (WSMsgType.CLOSE, 4000, "why"),
        (WSMsgType.CLOSE, 0, ""),
    ], INSIDES
    parser.feed_data(frame(Opcode.BINARY, b"raise"))
    assert isinstance(queue.failure, RuntimeError), INSIDES


def test_aiohttp_bounds_a_message_exclusively() -> None:
    for size, error in ((99, None), (100, 1009)):
        queue = Queue()
        Parser(queue, max_msg_size=100).feed_data(frame(Opcode.TEXT, bytes(size)))
        assert (queue.failure.code if isinstance(queue.failure, WebSocketError) else None) == error, INSIDES


def test_aiohttp_says_which_frames_are_compressed() -> None:
    parser = Parser(Queue(), compress=True)
    parser.feed_data(frame(Opcode.TEXT, zlib.compress(b"{}", wbits=-15), rsv=4) + frame(Opcode.TEXT, b"{}"))
    assert [got[4] for got in parser.frames] == [1, 0], INSIDES


async def test_aiohttp_drains_by_the_protocol() -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    with pytest.raises(ConnectionError):
        await protocol._drain_helper()
    protocol.connection_made(asyncio.Transport())
    await protocol._drain_helper()
    protocol.pause_writing()
    assert protocol.writing_paused, INSIDES
    asyncio.get_running_loop().call_soon(protocol.resume_writing)
    await protocol._drain_helper()
    protocol.pause_writing()
    asyncio.get_running_loop().call_soon(protocol.connection_lost, OSError())
    with pytest.raises(ConnectionError):
        await protocol._drain_helper()


def test_the_standard_library_still_reads_more_than_it_should() -> None:
    """On the day that this fails, `gateway.handshake.listener.READ_BYTES` has nothing to do any more."""
    assert vars(selector_events)["_SelectorTransport"].max_size > READ_BYTES
