"""permessage-deflate on the way out: what is negotiated, and what a peer inflates."""

import asyncio
import random
import zlib
from types import SimpleNamespace

import pytest
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.test_utils import make_mocked_request

from gateway.websocket.deflate import DEFLATE_FROM, deflate, negotiate
from tests.support.fleet import in_process
from tests.support.peers import Opcode, RawPeer
from tests.support.serving import Script, echo, serving

EXTENSIONS = "Sec-WebSocket-Extensions"
COMPRESSION = {"server": {"compression": True}}
TRAILING = b"\x00\x00\xff\xff"


def answer(offer: str | None) -> tuple[WebSocketWriter | None, bytes]:
    """Negotiate about this header, or about none."""
    request = make_mocked_request("GET", "/ws", {} if offer is None else {EXTENSIONS: offer})
    return negotiate(request, SimpleNamespace(transport=asyncio.Transport()))


@pytest.mark.parametrize(
    ("offer", "accepted", "window"),
    [
        ("permessage-deflate", b"permessage-deflate", 15),
        ("permessage-deflate; client_max_window_bits", b"permessage-deflate", 15),
        ("permessage-deflate; server_max_window_bits=10", b"permessage-deflate; server_max_window_bits=10", 10),
        ("permessage-deflate; server_no_context_takeover", b"permessage-deflate; server_no_context_takeover", 15),
        ("x-unknown, permessage-deflate", b"permessage-deflate", 15),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", b"permessage-deflate", 15),
    ],
)
async def test_an_offer_is_accepted(offer: str, accepted: bytes, window: int) -> None:
    writer, line = answer(offer)
    assert writer is not None
    assert (writer.compress, line) == (window, EXTENSIONS.encode() + b": " + accepted + b"\r\n")


@pytest.mark.parametrize("offer", [None, "", "x-unknown", "permessage-deflate; server_max_window_bits=8"])
async def test_an_offer_is_declined(offer: str | None) -> None:
    assert answer(offer) == (None, b"")


async def test_messages_are_inflated_with_what_was_before_them() -> None:
    writer, _ = answer("permessage-deflate")
    assert writer is not None
    message = random.randbytes(2000)
    first, second = deflate(writer, message), deflate(writer, bytearray(message))
    assert len(second) < 100 < len(first), "the second refers to the first"
    inflator = zlib.decompressobj(wbits=-15)
    assert [inflator.decompress(data + TRAILING) for data in (first, second)] == [message, message]


async def test_messages_are_inflated_one_by_one_without_context_takeover() -> None:
    writer, _ = answer("permessage-deflate; server_no_context_takeover")
    assert writer is not None
    message = random.randbytes(2000)
    for data in (deflate(writer, message), deflate(writer, message)):
        assert zlib.decompressobj(wbits=-15).decompress(data + TRAILING) == message


async def test_a_message_is_compressed_from_the_size_that_makes_it_worth_it() -> None:
    async def scenario(tls: bool) -> None:
        async with serving(Script(echo), COMPRESSION, tls=tls) as target:
            with await RawPeer.open(target, headers={EXTENSIONS: "permessage-deflate"}) as peer:
                await peer.send_frame(Opcode.TEXT, b"x" * (DEFLATE_FROM - 1))
                short = await peer.recv_frame()
                await peer.send_frame(Opcode.TEXT, b"x" * DEFLATE_FROM)
                long = await peer.recv_frame()
        assert (short.rsv, len(short.payload)) == (0, DEFLATE_FROM - 1)
        assert long.rsv == 4 and len(long.payload) < 100
        assert zlib.decompressobj(wbits=-15).decompress(long.payload + TRAILING) == b"x" * DEFLATE_FROM

    await in_process(scenario)


async def test_nothing_is_compressed_unless_both_sides_want_it() -> None:
    async def scenario(tls: bool) -> None:
        for config, headers in ((COMPRESSION, {}), ({}, {EXTENSIONS: "permessage-deflate"})):
            async with serving(Script(echo), config, tls=tls) as target:
                with await RawPeer.connect(target) as peer:
                    response = await peer.upgrade(headers=headers)
                    await peer.send_frame(Opcode.TEXT, b"x" * DEFLATE_FROM)
                    assert (await peer.recv_frame()).rsv == 0
                    assert EXTENSIONS.lower() not in response.headers

    await in_process(scenario)
