"""Methods that a gateway loads to say how long its event loop was held, for `tests.support.worst`.

What is measured is the processor time of the loop's thread from one iteration to the next, so what other processes do
meanwhile does not count.
"""

import asyncio
import time
from typing import Final

from gateway.connections.connection import Connection
from gateway.errors import CANCELLED
from gateway.nodes.routed import RoutedCall
from gateway.rpc.method import AUTHENTICATED, method

QUIET: Final = 100
"""Event-loop iterations after the last reply that are still watched: events to very many leave bit by bit."""


class _Watch:
    """Notes the longest iteration while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.longest = 0.0
        self._last = 0.0

    def start(self) -> None:
        """Begin again."""
        self.longest = 0.0
        self._last = time.thread_time()
        if not self.on:
            self.on = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if self.on:
            asyncio.get_running_loop().call_soon(self._tick)


_watch = _Watch()


@method("watched.start", scope=AUTHENTICATED)
def start(peer: Connection) -> None:
    """Begin to watch."""
    _watch.start()


@method("watched.settled", scope=AUTHENTICATED)
async def settled(peer: Connection) -> None:
    """Return when nothing else is in flight for this connection. Calls that a node has not answered are cancelled."""
    while len(peer.running) > 1:
        for request in list(peer.running.values()):
            if isinstance(request, RoutedCall):
                request.cancel(CANCELLED)
        await asyncio.sleep(0)


@method("watched.longest", scope=AUTHENTICATED)
async def longest(peer: Connection) -> float:
    """Watch a few iterations more, stop, and return the longest one in seconds."""
    for _ in range(QUIET):
        await asyncio.sleep(0)
    _watch.on = False
    return _watch.longest
