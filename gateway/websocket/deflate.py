"""permessage-deflate (RFC 7692) on the way out, by aiohttp's compressor. aiohttp's reader inflates what comes in.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.compression_utils import ZLibBackend
from aiohttp.http import ws_ext_gen, ws_ext_parse

from gateway.websocket.frames import RSV1, TEXT, Payload, frame, text_frame

DEFLATE_FROM: Final = 1024
"""Payload bytes from which a message is compressed. A shorter one costs more than it saves."""

_TRAILING: Final = b"\x00\x00\xff\xff"


def negotiate(request: web.BaseRequest, handler: Any) -> tuple[WebSocketWriter | None, bytes]:
    """Answer what a request offers (RFC 7692 section 5).

    Returns the writer whose compressor is to be used, and the header line of the 101 with its CRLF. If the request
    offers nothing that is acceptable, these are None and an empty line.
    """
    offered = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, []))
    compress, notakeover = ws_ext_parse(offered, isserver=True)
    if not compress:
        return None, b""
    writer = WebSocketWriter(handler, handler.transport, compress=compress, notakeover=notakeover)
    accepted = ws_ext_gen(compress=compress, isserver=True, server_notakeover=notakeover)
    return writer, f"{hdrs.SEC_WEBSOCKET_EXTENSIONS}: {accepted}\r\n".encode()


def text_message(writer: WebSocketWriter | None, payload: Payload) -> bytes:
    """Return the frame of a text message. It is compressed if there is a writer and it is worth it."""
    if writer is None or len(payload) < DEFLATE_FROM:
        return text_frame(payload)
    return frame(TEXT, deflate(writer, payload), RSV1)


def deflate(writer: WebSocketWriter, payload: Payload) -> bytes:
    """Return the payload of a compressed message (RFC 7692 section 7.2.1)."""
    compressor = writer._get_compressor(None)
    mode = ZLibBackend.Z_FULL_FLUSH if writer.notakeover else ZLibBackend.Z_SYNC_FLUSH
    return (compressor.compress_sync(payload) + compressor.flush(mode)).removesuffix(_TRAILING)
