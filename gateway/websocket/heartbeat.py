"""Whether the peer is alive: aiohttp's heartbeat, with a verdict of our own.

aiohttp sets the timers and pings. Two things differ. The time of the last byte is noted when it is read, instead of by
a callback for each read. And no peer is called dead while it is this side that does not read, or after this process
has stood still.

This module touches aiohttp's insides. `tests/websocket/test_aiohttp_insides.py` fails when one of them changes.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway import errors
from gateway.websocket.cork import Cork
from gateway.websocket.frames import State
from gateway.websocket.outbox import Outbox
from gateway.websocket.owner import Regime

SECOND_LOOK: Final = 0.02
"""Seconds between a deadline and the verdict. After a busy iteration some event loops run timers before they read."""

_OPEN: Final = State.OPEN


class Heartbeat(Outbox, web.WebSocketResponse):
    """aiohttp's WebSocket with an outbox, which ends with ``heartbeat_timeout`` when its peer is dead.

    The reader moves ``last_read``, in seconds of the event loop's clock. aiohttp's `_reset_heartbeat` begins the
    heartbeat, and `_cancel_heartbeat` ends it.
    """

    # Some of these are aiohttp's: see link.Link.
    __slots__ = (
        "_drained_at_ping",
        "_heartbeat",
        "_last_taken",
        "_pinged_at",
        "_pong_heartbeat",
        "_regime",
        "last_read",
        "waits",
    )

    def __init__(self, cork: Cork, regime: Regime) -> None:
        web.WebSocketResponse.__init__(
            self,
            timeout=regime.close_timeout,
            receive_timeout=regime.receive_timeout,
            heartbeat=regime.heartbeat_interval,
            autoclose=False,
            compress=regime.compression,
            decode_text=False,
        )
        Outbox.__init__(
            self,
            cork,
            regime.accounts.unbounded,
            regime.max_outbox_bytes,
            regime.outbox_timeout,
            regime.standstill,
        )
        # When to look after a ping. aiohttp sets it to half of the interval, and takes it for the deadline as well.
        self._pong_heartbeat = min(regime.heartbeat_timeout, regime.heartbeat_interval)
        self._regime = regime
        self._pinged_at = 0.0
        self._drained_at_ping = 0
        self._last_taken = -1.0
        self.last_read = 0.0
        self.waits = 0
        """For how many other peers it waits before it is read again. Meanwhile its silence says nothing."""

    def _send_heartbeat(self) -> None:
        self._heartbeat_when = max(self._heartbeat_when, self.last_read + self._regime.heartbeat_interval)
        now = self.loop.time()
        if now >= self._heartbeat_when:
            self._pinged_at = now
            self._drained_at_ping = self.drained
        super()._send_heartbeat()

    def _pong_not_received(self) -> None:
        self._pong_response_cb = self.loop.call_later(SECOND_LOOK, self._judge_life)

    def _judge_life(self) -> None:
        self._pong_response_cb = None
        if self.state is not _OPEN:
            return
        now = self.loop.time()
        deadline = self._pinged_at + self._regime.heartbeat_timeout
        if self.last_read >= self._pinged_at:
            alive_at = self.last_read
        elif now < deadline:
            look = min(now + self._regime.heartbeat_interval, deadline + SECOND_LOOK)
            self._pong_response_cb = self.loop.call_at(look, self._judge_life)
            return
        elif (
            self.waits or self._last_taken >= self._pinged_at or (self.blocked and self.drained > self._drained_at_ping)
        ):
            alive_at = now
        elif (grace := self._standstill.left()) > 0:
            self._pong_response_cb = self.loop.call_at(now + grace, self._judge_life)
            return
        else:
            self.end(errors.HEARTBEAT_TIMEOUT)
            return
        self._heartbeat_when = alive_at + self._regime.heartbeat_interval
        self._heartbeat_cb = self.loop.call_at(self._heartbeat_when, self._send_heartbeat)

    def _handle_ping_pong_exception(self, exc: BaseException) -> None:
        """Do nothing: a ping could not be written because the transport is closing, and its end is on the way."""

    def _count_from_here(self) -> None:
        """Note that the kernel takes no more. From now on what it takes is a sign of life."""
        self._drained_at_ping = max(self._drained_at_ping, self.drained)

    def _outbox_emptied(self) -> None:
        """Note that all that was kept has left. That is a sign of life if the kernel has taken bytes since the ping."""
        if self.drained > self._drained_at_ping:
            self._last_taken = self.loop.time()
