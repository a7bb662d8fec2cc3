"""Connections that are not WebSockets, or not yet: how long each of them may take, and how many there may be.

A connection is *plain* from its accept until its upgrade or its end: through TLS, a request, a response, and the wait
for the next request. All of them have a deadline except the last, and all of them have a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.deadlines import Deadlines, Standstill
from gateway.handshake.rejections import Rejections, Stage
from gateway.limits import address_key

AT_WORK: Final = 64
"""How many connections of one address may be at work beyond its bound.

A peer that has too many connections is told so on one more, and a browser fetches a page on several.
"""


class Handshake:
    """One peer from its accept to its 101. ``drop`` is called to end it, such as when the deadline passes.

    ``settled`` is called before that. It returns True if the deadline is met after all.
    """

    __slots__ = ("crowd", "drop", "remote", "settled", "stage")

    def __init__(self, remote: str, stage: Stage) -> None:
        self.remote = remote
        self.stage: Stage = stage
        self.drop: Callable[[], object] = nothing
        self.settled: Callable[[], bool] = _never
        self.crowd: Crowd | None = None


def nothing() -> None:
    """Do nothing: the handshake is not under way yet, or no longer."""


def _never() -> bool:
    return False


class Handshakes(Deadlines[Handshake]):
    """The deadlines of requests and responses. A peer that is late is logged, with its stage, and dropped."""

    __slots__ = ("_rejections",)

    def __init__(self, timeout: float, rejections: Rejections, standstill: Standstill | None = None) -> None:
        super().__init__(timeout, self._late, standstill)
        self._rejections = rejections

    def again(self, handshake: Handshake) -> None:
        """Give a peer the whole time again."""
        self.done(handshake)
        self.begin(handshake)

    def drop_all(self) -> None:
        """Drop all that are under way, at the end of the process. Responses may still leave."""
        for handshake in self.take_all():
            if handshake.stage != "response":
                handshake.drop()

    def _late(self, handshake: Handshake) -> None:
        if not handshake.settled():
            self._rejections.late(handshake.remote, handshake.stage, self._timeout)
            handshake.drop()


class Crowd:
    """The plain connections of one address, or all of them, by age. ``idle`` are those between two requests."""

    __slots__ = ("idle", "key", "members", "most")

    def __init__(self, key: str, most: int) -> None:
        self.key = key
        self.most = most
        self.members: dict[Handshake, None] = {}
        self.idle: dict[Handshake, None] = {}

    def first(self) -> Handshake:
        """Return the connection that goes first: the longest idle, or else the oldest. Raises StopIteration."""
        return next(iter(self.idle or self.members))


class PlainConnections:
    """All plain connections. There are ``most`` at most, and ``most_of_address`` of one address; 0 is any number.

    A new connection always finds room: the longest idle one goes for it, or the oldest if none is idle. So a request
    that is being answered survives as long as any connection idles, and a quick peer gets in however many others hold
    on. An address may have `AT_WORK` connections beyond its bound that are not idle. ``exempt`` tells which peers are
    not counted by address, such as proxies.
    """

    def __init__(
        self,
        rejections: Rejections,
        handshakes: Handshakes,
        *,
        most: int,
        most_of_address: int = 0,
        exempt: Callable[[str], bool] = lambda remote: False,
    ) -> None:
        self._rejections = rejections
        self._handshakes = handshakes
        self._all = Crowd("", most)
        self._most_of_address = most_of_address
        self._exempt = exempt
        self._crowds: dict[str, Crowd] = {}

    def __len__(self) -> int:
        return len(self._all.members)

    def accepted(self, handshake: Handshake) -> None:
        """Count a peer that was just accepted, and begin its time. Others make room for it."""
        crowd = self._crowd_of(handshake.remote) if self._most_of_address else None
        if crowd is not None:
            over = len(crowd.members) - crowd.most
            if over >= 0 and (crowd.idle or over >= AT_WORK):
                why = "too many HTTP connections from this address; see limits.max_connections_per_address"
                self._end(crowd.first(), why)
            crowd.members[handshake] = None
            self._crowds[crowd.key] = crowd  # its last member may just have gone
        if len(self) >= self._all.most:
            self._end(self._all.first(), "too many HTTP connections; see limits.max_http_connections")
        handshake.crowd = crowd
        self._all.members[handshake] = None
        self._handshakes.begin(handshake)

    def _crowd_of(self, remote: str) -> Crowd | None:
        key = address_key(remote)
        if not key or self._exempt(remote):
            return None
        return self._crowds.get(key) or Crowd(key, self._most_of_address)

    def make_room(self) -> bool:
        """End the longest idle connection, because there are no file descriptors. Returns whether there was one."""
        if not self._all.idle:
            return False
        self._end(self._all.first(), "the gateway has no file descriptors left")
        return True

    def idles(self, handshake: Handshake) -> None:
        """Note that a peer has its response, and has not begun another request."""
        if handshake in self._all.members:
            self._all.idle[handshake] = None
            if handshake.crowd is not None:
                self._trim(handshake.crowd, handshake)

    def _trim(self, crowd: Crowd, handshake: Handshake) -> None:
        """Let a connection idle among those of its address. What was more only while it was at work goes now."""
        crowd.idle[handshake] = None
        if len(crowd.members) > crowd.most:
            why = "too many HTTP connections from this address; see limits.max_connections_per_address"
            self._end(crowd.first(), why)

    def works(self, handshake: Handshake) -> None:
        """Note that a peer has begun a request."""
        self._all.idle.pop(handshake, None)
        if handshake.crowd is not None:
            handshake.crowd.idle.pop(handshake, None)

    def gone(self, handshake: Handshake) -> None:
        """Forget a connection that has upgraded, or is over. May be called twice."""
        self._handshakes.done(handshake)
        self._all.members.pop(handshake, None)
        self.works(handshake)
        crowd, handshake.crowd = handshake.crowd, None
        if crowd is not None:
            crowd.members.pop(handshake, None)
            if not crowd.members:
                self._crowds.pop(crowd.key, None)

    def _end(self, handshake: Handshake, why: str) -> None:
        self.gone(handshake)
        self._rejections.rejected(handshake.remote, why, handshake.stage)
        handshake.drop()
