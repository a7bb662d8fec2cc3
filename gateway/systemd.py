"""What systemd gives a service and expects from it: inherited sockets, notifications and the watchdog.

The protocols are plain environment variables and datagrams, so no library is needed. Sources: sd_notify(3),
sd_watchdog_enabled(3) and sd_listen_fds(3) of systemd 252. Outside systemd the variables are missing, and
nothing in this module has an effect.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from itertools import repeat
from typing import Final, Protocol

from gateway.handshake.sockets import Socket

__all__ = ["CallLater", "Notifier", "Timer", "Watchdog", "listen_fds", "watchdog_interval"]

_LISTEN_FDS_START: Final = 3  # SD_LISTEN_FDS_START
_USEC_INFINITY: Final = 2**64 - 1  # sd_watchdog_enabled(3) refuses it
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

logger = logging.getLogger(__name__)


class Timer(Protocol):
    """The part of `asyncio.TimerHandle` that is needed here."""

    def cancel(self) -> None:
        """Stop the timer; may be called at any time, any number of times."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""`loop.call_later`, or a stand-in for it. Its arguments are the seconds from now, and the function to call."""


class Notifier:
    """Tells the service manager how the service is doing (sd_notify(3)).

    `environ` is read once: `NOTIFY_SOCKET` is an absolute path, or `@name` in the abstract namespace. Without
    it every method does nothing. `monotonic_ns` is CLOCK_MONOTONIC in nanoseconds, the clock that systemd
    compares with.

    No method blocks or raises. A notification that cannot be delivered is logged, but not again until one has got
    through. The latest change of state is repeated with the next notification if it was lost, because without its
    READY=1 systemd would end the service. All methods may be called any number of times.
    """

    def __init__(self, environ: Mapping[str, str], monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._losing = False
        self._owed = ""
        self._address = b""
        self._socket: socket.socket | None = None
        name = environ.get("NOTIFY_SOCKET", "")
        if not name:
            return
        if name[0] not in "/@" or len(name) < 2:
            self._lost(f"NOTIFY_SOCKET {name!r} is neither an absolute path nor an abstract name")
            return
        raw = os.fsencode(name)
        self._address = b"\0" + raw[1:] if raw.startswith(b"@") else raw
        # Opened now and kept, because a ping must still go out when no file descriptor is left.
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._lost(str(error))

    @property
    def enabled(self) -> bool:
        """Whether there is a service manager to tell."""
        return self._socket is not None

    def ready(self) -> None:
        """Tell that the start, or the reload that `reloading` announced, is over."""
        self._change("READY=1")

    def reloading(self) -> None:
        """Tell that the configuration is being reloaded. `ready` must follow, even if the reload fails."""
        self._change(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell that the drain has begun."""
        self._change("STOPPING=1")

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`. Line breaks become spaces, because each line is an assignment."""
        self._send("STATUS=" + " ".join(text.splitlines()))

    def ping(self) -> None:
        """Keep the watchdog from acting for another interval."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Release the socket. Later notifications do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _change(self, state: str) -> None:
        self._owed = state
        self._send()

    def _send(self, *news: str) -> None:
        if self._socket is None:
            return
        message = "\n".join((self._owed, *news)).lstrip("\n")
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            self._lost(str(error))
        else:
            self._losing = False
            self._owed = ""

    def _lost(self, why: str) -> None:
        if not self._losing:
            self._losing = True
            logger.warning(
                "the service manager cannot be notified: %s",
                why,
                extra={"event": "systemd.notify_lost", "reason": why},
            )


def watchdog_interval(environ: Mapping[str, str], getpid: Callable[[], int] = os.getpid) -> float | None:
    """Return the seconds after which systemd takes a silent service for dead, or None if there is no watchdog.

    They come from `WATCHDOG_USEC` (microseconds), which counts if `WATCHDOG_PID` is not set or is this process.
    Raises ValueError if either is not a number, or if the interval is out of range (sd_watchdog_enabled(3)).
    """
    if "WATCHDOG_USEC" not in environ:
        return None
    usec = _number(environ, "WATCHDOG_USEC")
    if not 0 < usec < _USEC_INFINITY:
        raise ValueError(f"WATCHDOG_USEC: {usec} is not an interval in microseconds")
    if "WATCHDOG_PID" in environ and _number(environ, "WATCHDOG_PID") != getpid():
        return None
    return usec / 1_000_000


class Watchdog:
    """Pings the service manager at half the watchdog's interval, from a timer of the event loop.

    Each ping schedules the next, so an event loop that is stuck sends no more pings, and systemd ends the service.
    There is no thread and no task, because they could outlive the loop that they vouch for. Without a watchdog in
    `environ` nothing happens. A malformed one is logged as a warning, and counts as none.
    """

    def __init__(
        self,
        notifier: Notifier,
        environ: Mapping[str, str],
        call_later: CallLater,
        getpid: Callable[[], int] = os.getpid,
    ) -> None:
        self._notifier = notifier
        self._call_later = call_later
        self._timer: Timer | None = None
        try:
            interval = watchdog_interval(environ, getpid)
        except ValueError as error:
            logger.warning(
                "the watchdog stays off: %s",
                error,
                extra={"event": "systemd.watchdog_off", "reason": str(error)},
            )
            interval = None
        self.period: Final = None if interval is None else interval / 2
        """Seconds from ping to ping, or None if there is no watchdog."""

    def start(self) -> None:
        """Ping now, and then once a period. Does nothing if the pings have begun already."""
        if self._timer is None and self.period is not None:
            self._ping(self.period)

    def stop(self) -> None:
        """Stop the pings. May be called twice, and before `start`. `start` begins them again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ping(self, period: float) -> None:
        self._notifier.ping()
        self._timer = self._call_later(period, lambda: self._ping(period))


def listen_fds(environ: MutableMapping[str, str], getpid: Callable[[], int] = os.getpid) -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process, in the order of the socket units.

    The list is empty if `LISTEN_FDS` or `LISTEN_PID` is missing, or if `LISTEN_PID` is another process. The sockets
    are non-blocking, are not inherited by child processes, and belong to the caller.

    `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are always removed from `environ`, so a second call finds
    nothing, and a child process cannot take them for its own. Raises ValueError if a variable is malformed, or if a
    descriptor is not a listening TCP (IPv4, IPv6) or Unix stream socket; those before it are then closed.
    Source: sd_listen_fds(3).
    """
    given: dict[str, str] = {}
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        if variable in environ:
            given[variable] = environ.pop(variable)
    if not given.keys() >= {"LISTEN_PID", "LISTEN_FDS"} or _number(given, "LISTEN_PID") != getpid():
        return []
    names = _fd_names(given)
    sockets: list[socket.socket] = []
    try:
        for fd, name in enumerate(names, _LISTEN_FDS_START):
            sockets.append(_adopt(fd, name))
    except ValueError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _fd_names(given: Mapping[str, str]) -> Iterable[str]:
    count = _number(given, "LISTEN_FDS")
    if count < 1:
        raise ValueError(f"LISTEN_FDS: {count} is not a number of sockets")
    if "LISTEN_FDNAMES" not in given:
        return repeat("unknown", count)
    names = given["LISTEN_FDNAMES"].split(":")
    if len(names) != count:
        raise ValueError(f"LISTEN_FDNAMES: {len(names)} names for {count} sockets")
    return names


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        sock = Socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"LISTEN_FDS: descriptor {fd} ({name}) is not a socket: {error}") from error
    wrong = _what_is_wrong(sock)
    if wrong:
        sock.close()
        raise ValueError(f"LISTEN_FDS: descriptor {fd} ({name}) {wrong}")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _what_is_wrong(sock: socket.socket) -> str:
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        return "is not a TCP or Unix stream socket; use ListenStream= in the socket unit"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is not listening; use Accept=no in the socket unit"
    return ""


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name}: {text!r} is not a number")
    return int(text)
