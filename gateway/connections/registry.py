"""All open connections: `app["connections"]`, and how they leave when the gateway drains."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from gateway import errors
from gateway.connections.connection import Connection
from gateway.connections.history import Closed, History
from gateway.telemetry.counts import Census, Traffic

logger = logging.getLogger(__name__)

LEAVE_WITHIN: Final = 1.0
"""Seconds over which a drain closes idle connections, so that they do not all reconnect at once."""

RECONNECT_MS: Final = (500, 10_000)
"""The least and the most that ``reconnectAfterMs`` may be; it is random."""

_CHUNK: Final = 200
_COUNTED: Final = 500
_CUT_GRACE: Final = 0.2


class Connections(dict[str, Connection]):
    """The open connections, by connId. Only :meth:`add` and :meth:`remove` change this dictionary.

    ``history`` has the last connections that are over, the newest at its end. ``owing`` are the connections that are
    still to bring their credential, and are in neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opened_total = 0
        self.disconnects: Counter[str] = Counter(dict.fromkeys((end.cause for end in errors.DISCONNECTS), 0))
        """How many connections have ended, by cause, including those that were never registered."""
        self.history = History()
        self.owing: set[Connection] = set()
        self._traffic = Traffic()
        self._empty: asyncio.Event | None = None

    def add(self, connection: Connection) -> None:
        """Register an open connection."""
        self[connection.conn_id] = connection
        self.opened_total += 1

    def remove(self, connection: Connection, closed: Closed) -> None:
        """Move a connection that is over to the history. It is no error if it is not registered."""
        if self.pop(connection.conn_id, None) is not None:
            self.remember(connection, closed)
        self._check_empty()

    def owe(self, connection: Connection) -> None:
        """Register a connection that is to bring its credential."""
        self.owing.add(connection)

    def owe_no_more(self, connection: Connection) -> None:
        """Drop a connection that has brought its credential, or is over. It is no error if it does not owe."""
        self.owing.discard(connection)
        self._check_empty()

    def _check_empty(self) -> None:
        if self._empty is not None and not self and not self.owing:
            self._empty.set()

    def remember(self, connection: Connection, closed: Closed) -> None:
        """Count a connection that is over, and put it into the history unless it is ``quiet``, or another goes on."""
        self.disconnects[closed.end.cause] += 1
        self._traffic.add(closed)
        if not connection.quiet and closed.end is not errors.RESUMED:
            self.history.append(closed)

    async def census(self) -> Census:
        """Count all connections, over several event-loop iterations.

        The traffic never falls: a connection that leaves meanwhile is counted as it left.
        """
        census = Census()
        census.traffic.add(self._traffic)
        for chunk in _chunks(list(self.values()), _COUNTED):
            for connection in chunk:
                census.roles[connection.principal.role] += 1
                census.outbox_bytes += connection.outbox_bytes
                census.traffic.add(connection)
            await asyncio.sleep(0)
        return census

    async def drain(self, drain_timeout: float, close_timeout: float) -> None:
        """End all connections with 1001, and return when they are gone, whatever the peers do. Called once.

        It takes ``drain_timeout`` + ``close_timeout`` + 0.5 seconds at most.
        """
        self._empty = asyncio.Event()
        self._check_empty()
        deadline = asyncio.get_running_loop().time() + drain_timeout
        # 0. The connections that owe a credential have nothing to finish. All at once, so that none comes in meanwhile.
        for connection in list(self.owing):
            connection.end(errors.SHUTDOWN)
        # 1. Tell: all hear it before the first is closed.
        await _each(self.values(), lambda connection: _announce(connection, deadline))
        # 2. Let go: the idle within a second, the busy when their last call is answered.
        await _each(self.values(), lambda connection: connection.leave_in(_delay(deadline)))
        await self._gone_by(deadline)
        # 3. Close the connections that are still busy.
        await _each(self.values(), lambda connection: connection.end(errors.SHUTDOWN))
        await self._gone_by(asyncio.get_running_loop().time() + close_timeout)
        # 4. Cut the connections that do not answer.
        left = [*self.values(), *self.owing]
        if left:
            logger.warning(
                "%d connections did not close in time",
                len(left),
                extra={"event": "server.cut", "connections": len(left)},
            )
        await _each(left, Connection.abort)
        await self._gone_by(asyncio.get_running_loop().time() + _CUT_GRACE)

    async def _gone_by(self, deadline: float) -> None:
        if self._empty is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._empty.wait()


async def _each(connections: Iterable[Connection], act: Callable[[Connection], None]) -> None:
    """Act on all, over several event-loop iterations, so that nothing else waits for long."""
    for chunk in _chunks(list(connections), _CHUNK):
        for connection in chunk:
            act(connection)
        await asyncio.sleep(0)


def _announce(connection: Connection, deadline: float) -> None:
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    connection.notify(
        "gateway.draining",
        {"deadlineMs": int(left * 1000), "reconnectAfterMs": random.randint(*RECONNECT_MS)},
    )


def _delay(deadline: float) -> float:
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    return random.uniform(0.0, min(LEAVE_WITHIN, left))


def _chunks(connections: Iterable[Connection], size: int) -> Iterator[list[Connection]]:
    rest = iter(connections)
    while chunk := list(islice(rest, size)):
        yield chunk
