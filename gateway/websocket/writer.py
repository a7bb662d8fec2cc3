"""Where aiohttp's own calls write to: its heartbeat, and ``ping``, ``pong``, ``send_str`` and their like.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import ClientConnectionResetError
from aiohttp._websocket.writer import WebSocketWriter

from gateway.websocket.frames import CLOSE, State, frame
from gateway.websocket.outbox import Outbox


class Writer:
    """Takes the place of aiohttp's WebSocketWriter, and leads to an outbox, which is None when the link is over."""

    __slots__ = ("_outbox",)

    def __init__(self, outbox: Outbox | None) -> None:
        self._outbox = outbox

    async def send_frame(self, message: bytes, opcode: int, compress: int | None = None) -> None:
        """Send one frame, uncompressed. If it is a data frame, wait while the peer does not read.

        Raises ConnectionError unless the link is open.
        """
        outbox = self._outbox
        if outbox is None or outbox.state is not State.OPEN:
            raise ClientConnectionResetError("Cannot write to closing transport")
        if opcode >= CLOSE:
            outbox.put_control(frame(opcode, message))
            return
        outbox.send_frame_bytes(frame(opcode, message))
        if outbox.flow.writing_paused:
            await cast(Any, outbox.flow)._drain_helper()

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, while there is one."""
        return None if self._outbox is None else self._outbox.transport


for_aiohttp: Final = cast(Callable[[Outbox | None], WebSocketWriter], Writer)
"""`Writer`, as aiohttp takes it for its own."""

SPENT: Final = for_aiohttp(None)
"""The writer of every link that is over."""
