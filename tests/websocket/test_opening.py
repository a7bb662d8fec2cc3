"""The head of the 101, the protocol of a request, and what is let go of after the upgrade."""

import asyncio

import pytest
from aiohttp import hdrs, web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.websocket.opening import NO_HEADERS, Head, RequestProtocol, slim, subprotocol, switching
from tests.support.sinks import Pausable


def test_the_101_has_the_digest_of_the_key() -> None:
    """The key and the digest of RFC 6455 section 1.3."""
    head = switching(" dGhlIHNhbXBsZSBub25jZQ== ", b"", b"")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" in head
    assert head.endswith(b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")


def test_the_101_has_one_more_line_for_a_subprotocol_and_for_an_extension() -> None:
    protocol, extension = b"Sec-WebSocket-Protocol: jsonrpc\r\n", b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    head = switching("dGhlIHNhbXBsZSBub25jZQ==", protocol, extension)
    assert head.endswith(b"=\r\n" + protocol + extension + b"\r\n")


@pytest.mark.parametrize(
    ("lines", "chosen"),
    [
        ([], None),
        (["jsonrpc"], "jsonrpc"),
        (["graphql-ws, other ,jsonrpc"], "other"),
        (["graphql-ws", "jsonrpc, other"], "jsonrpc"),
        (["graphql-ws", "JSONRPC"], None),
        (["", ",,"], None),
    ],
)
def test_the_first_offered_subprotocol_that_is_known_is_chosen(lines: list[str], chosen: str | None) -> None:
    headers = CIMultiDict((hdrs.SEC_WEBSOCKET_PROTOCOL, line) for line in lines)
    line = f"Sec-WebSocket-Protocol: {chosen}\r\n".encode() if chosen else b""
    assert subprotocol(make_mocked_request("GET", "/ws", headers), {"other", "jsonrpc"}) == line


async def handler(request: web.BaseRequest) -> web.StreamResponse:
    """Never called."""
    raise NotImplementedError


class Choosy(RequestProtocol):
    """A protocol that parses nothing after ``enough`` reads."""

    enough = 2

    def request_bytes(self, data: bytes) -> bool:
        """Whether another read is allowed."""
        self.enough -= 1
        return self.enough >= 0


async def test_a_protocol_decides_which_bytes_of_a_request_are_parsed() -> None:
    protocol = Choosy(web.Server(handler), loop=asyncio.get_running_loop())
    protocol.connection_made(Pausable())
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(3):
        protocol.data_received(request)
    assert len(protocol._messages) == 2
    protocol.connection_lost(None)


async def test_a_protocol_without_a_deadline_parses_all() -> None:
    protocol = RequestProtocol(web.Server(handler), loop=asyncio.get_running_loop())
    protocol.connection_made(Pausable())
    assert protocol.time_left() is None
    assert protocol.request_bytes(bytes(100_000))
    protocol.upgraded()
    assert not protocol.writing_paused
    protocol.pause_writing()
    assert protocol.writing_paused
    protocol.connection_lost(None)


async def test_a_protocol_that_never_connected_lets_its_parser_go() -> None:
    protocol = RequestProtocol(web.Server(handler), loop=asyncio.get_running_loop())
    protocol.never_connected()
    assert protocol._parser is None


async def test_after_the_upgrade_nothing_of_the_head_is_kept() -> None:
    protocol = RequestProtocol(web.Server(handler), loop=asyncio.get_running_loop())
    protocol.connection_made(Pausable())
    protocol.data_received(b"GET /ws HTTP/1.1\r\nHost: h\r\nX-Long: " + bytes(4000).replace(b"\0", b"x") + b"\r\n\r\n")
    request = make_mocked_request("GET", "/ws", {"X-Long": "x" * 4000})
    assert request.headers and protocol._messages
    head: object = protocol._messages.popleft()[0]
    assert isinstance(head, Head)
    assert (head.method, head.path, head.headers["X-Long"]) == ("GET", "/ws", "x" * 4000)
    vars(request)["_message"] = head  # aiohttp's own local variable holds it, too
    response = web.WebSocketResponse()
    slim(request, protocol, response)
    assert (len(request.headers), len(protocol._messages), protocol._parser) == (0, 0, None)
    assert head.headers is head.raw_headers is head.url is None
    with pytest.raises(TypeError, match="assignment"):
        response["mine"] = 1
    protocol.connection_lost(None)


def test_the_headers_that_all_links_share_are_empty() -> None:
    assert len(NO_HEADERS) == 0
    with pytest.raises(KeyError):
        NO_HEADERS["Host"]
