"""How each line of the log is bounded: the table of all events, and the one place that samples what peers can cause.

A line that a peer can cause at will is sampled. Its key says who caused it: a principal, or an address if the peer has
named none (`auth.scopes.origin`). Nothing is left out silently. How many lines were left out is in the next line of the
same kind and key, as ``leftOut``, or in a line `log.sampled` once their time is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from gateway.limits import Sampler
from gateway.telemetry.log import alone

logger = logging.getLogger(__name__)

SWEEP: Final = 10.0
"""Seconds from one look at what was left out to the next."""

MAX_KEYS: Final = 10_000
"""How many keys of one kind are remembered: as many as there may be connections, by default."""

MAX_TOLD: Final = 100
"""Of how many keys of one kind a sweep tells by their name. What was left out of the others is one sum."""


class Line:
    """A kind of line that peers can cause: of one key, the first ``burst`` in ``window`` seconds are logged.

    There may be several kinds with one ``event``.
    """

    def __init__(self, event: str, burst: int, window: float, level: int = logging.INFO) -> None:
        self.event: Final = event
        self.burst: Final = burst
        self.window: Final = window
        self.level: Final = level


OPENED: Final = Line("connection.opened", 2000, 10.0)
CLOSED: Final = Line("connection.closed", 2000, 10.0)
AUTHENTICATED: Final = Line("connection.authenticated", 2000, 10.0)
"""The life of a connection. Twice as many as a principal may have connections by default, so all may come back at once.

Those that the gateway ends when it drains are not sampled: each of them ends once.
"""

HELD: Final = Line("connection.held", 2000, 10.0)
RESUMED: Final = Line("connection.resumed", 2000, 10.0)
"""A connection that has lost its link, and has another one."""

REFRESHED: Final = Line("connection.authenticated", 20, 10.0)
"""A credential that differs from the one before."""

DEFECT: Final = Line("connection.defect", 20, 10.0, logging.ERROR)
METHOD_FAILED: Final = Line("call.failed", 20, 10.0, logging.ERROR)
"""Defects. They have a traceback."""

CALL_FAILED: Final = Line("call.failed", 20, 10.0)
"""A routed call without a valid answer. The key is the node's if it is the node that has failed."""

ONLINE: Final = Line("node.online", 100, 10.0)
OFFLINE: Final = Line("node.offline", 100, 10.0)

REJECTED: Final = Line("handshake.rejected", 20, 10.0)
LATE: Final = Line("handshake.timeout", 100, 10.0)
"""Handshakes that came to nothing."""

CLUSTER_DEFECT: Final = Line("cluster.defect", 20, 10.0, logging.ERROR)
"""A defect of what handles a message of another gateway. It has a traceback, and one key."""

CLUSTER_JOINED: Final = Line("cluster.joined", 20, 10.0)
CLUSTER_LOST: Final = Line("cluster.lost", 20, 10.0, logging.WARNING)
CLUSTER_UNREACHABLE: Final = Line("cluster.unreachable", 1, 60.0, logging.WARNING)
CLUSTER_FORBIDDEN: Final = Line("cluster.forbidden", 20, 60.0, logging.ERROR)
NATS_REFUSED: Final = Line("cluster.nats_refused", 1, 60.0, logging.ERROR)
"""The link to NATS, each with one key. An attempt to reach it is repeated every second or two."""

MAIL_REFUSED: Final = Line("cluster.mail_refused", 1, 60.0, logging.WARNING)
"""Mail of another gateway that cannot be read. The key is that gateway."""

MEMBER_JOINED: Final = Line("cluster.member_joined", 100, 10.0)
MEMBER_LOST: Final = Line("cluster.member_lost", 100, 10.0, logging.WARNING)
"""Another gateway of the cluster comes and goes. They have one key."""

CLUSTER_REFUSED: Final = Line("cluster.refused", 1, 60.0, logging.WARNING)
"""What another gateway says, and we cannot take. The key is its instance."""

EVENTS_LOST: Final = Line("cluster.events_lost", 20, 60.0, logging.WARNING)
EVENTS_JOINED: Final = Line("cluster.events_joined", 20, 60.0)
EVENT_REFUSED: Final = Line("cluster.event_refused", 1, 60.0, logging.WARNING)
"""The stream of events at NATS: it cannot be used, it can, it has a message that no gateway has published. One key."""

ACCEPT_PAUSED: Final = Line("server.accept_paused", 1, 60.0, logging.WARNING)
ACCEPT_FAILED: Final = Line("server.accept_failed", 1, 60.0, logging.ERROR)
"""Accepts that fail. They have one key, because it is not known whose they are."""

SAMPLED: Final = (
    OPENED,
    CLOSED,
    AUTHENTICATED,
    HELD,
    RESUMED,
    REFRESHED,
    DEFECT,
    METHOD_FAILED,
    CALL_FAILED,
    ONLINE,
    OFFLINE,
    REJECTED,
    LATE,
    CLUSTER_DEFECT,
    CLUSTER_JOINED,
    CLUSTER_LOST,
    CLUSTER_UNREACHABLE,
    CLUSTER_FORBIDDEN,
    NATS_REFUSED,
    MAIL_REFUSED,
    MEMBER_JOINED,
    MEMBER_LOST,
    CLUSTER_REFUSED,
    EVENTS_LOST,
    EVENTS_JOINED,
    EVENT_REFUSED,
    ACCEPT_PAUSED,
    ACCEPT_FAILED,
)
"""All kinds of lines that are sampled."""

RARE: Final = {
    "auth.file_readable": "once a file at the start and at each SIGHUP",
    "connection.closed": "of a drain alone: once a connection, at the end of the process",
    "log.lost": "in the place of lines that were lost: at most one in each pause of the writer",
    "log.sampled": "once a key and kind in each window of which lines were left out",
    "server.cut": "once in the life of the process",
    "server.draining": "once in the life of the process",
    "server.ready": "once in the life of the process",
    "server.reload_failed": "once a SIGHUP, which is the operator's",
    "server.reloaded": "once a SIGHUP, which is the operator's",
    "server.socket_stays": "once in the life of the process",
    "server.started": "once in the life of the process",
    "server.stopped": "once in the life of the process, and once more for a second signal",
    "systemd.notify_lost": "once each time that the service manager is lost, whatever peers do",
    "systemd.watchdog_off": "once in the life of the process",
}
"""All events of lines that are not sampled, and what bounds each of them. None is caused by a peer."""


class Lines:
    """Writes the lines of all kinds in `SAMPLED`, or leaves them out.

    ``clock`` returns monotonic seconds. Whatever peers do, each kind remembers `MAX_KEYS` keys at most, and forgets
    them in the sweep after their window.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._samplers = {line: Sampler(clock, line.burst, line.window, MAX_KEYS) for line in SAMPLED}
        self._timer: asyncio.TimerHandle | None = None

    def log(
        self,
        origin: logging.Logger,
        line: Line,
        key: str,
        message: str,
        *args: object,
        fields: Mapping[str, object],
        exc_info: BaseException | None = None,
    ) -> bool:
        """Log a line under the logger ``origin``, or count it as left out. Returns whether it was logged.

        ``message`` is formatted with ``args``; ``fields`` are those of the event.
        """
        left_out = self._samplers[line].admit(key)
        if left_out is None:
            return False
        if "event" in fields or "leftOut" in fields:
            raise KeyError("event and leftOut are no fields of a caller's")
        if origin.isEnabledFor(line.level):
            if left_out:
                fields = {**fields, "leftOut": left_out}
            if exc_info is not None or not _put(origin, line, message, args, fields):
                raised = None if exc_info is None else (type(exc_info), exc_info, exc_info.__traceback__)
                known = {"event": line.event, **fields}
                file, function = "(unknown file)", "(unknown function)"
                record = origin.makeRecord(
                    origin.name, line.level, file, 0, message, args, raised, func=function, extra=known
                )
                origin.handle(record)
        return True

    def start(self) -> None:
        """Sweep from now on, every `SWEEP` seconds, in the running event loop. Call it once."""
        self._timer = asyncio.get_running_loop().call_later(SWEEP, self._again)

    def stop(self) -> None:
        """Tell what was left out, and sweep no more. May be called twice, or before `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.sweep(everything=True)

    def sweep(self, *, everything: bool = False) -> None:
        """Forget the keys whose window is over, or all keys, and log how many lines of them were left out."""
        for line, sampler in self._samplers.items():
            told = sampler.sweep(everything=everything)
            if len(told) > MAX_TOLD:
                told[MAX_TOLD:] = [("", sum(left_out for _, left_out in told[MAX_TOLD:]))]
            for key, left_out in told:
                fields = {"event": "log.sampled", "of": line.event, **_named(key), "leftOut": left_out}
                logger.log(line.level, "%d lines were left out", left_out, extra=fields)

    def _again(self) -> None:
        self.sweep()
        self.start()


def _put(
    origin: logging.Logger, line: Line, message: str, args: tuple[object, ...], fields: Mapping[str, object]
) -> bool:
    """Log a line without a record. Returns False if it needs one."""
    handler = alone(origin, line.level)
    if handler is None:
        return False
    try:
        text = message % args if args else message
    except Exception:  # a formatter shows what it can
        return False
    return handler.put(line, origin.name, text, fields)


def _named(key: str) -> dict[str, str]:
    """Return the field that says whose lines were left out; there is none if it is not known."""
    name = {"=": "principal", "@": "address"}.get(key[:1])
    return {} if name is None else {name: key[1:] or "unix"}
