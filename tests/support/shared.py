"""A shared stream without NATS, out of reach when the test says so, and events over it."""

import asyncio
from collections.abc import Callable

from gateway import errors
from gateway.cluster.replica import Replica, sealed
from gateway.cluster.stream import Done, Listener, Position, unavailable
from gateway.events.delivery import Delivery
from gateway.events.shared import SharedEvents
from gateway.events.topics import Topics
from gateway.rpc.method import Refusal, not_run
from tests.support.ears import Ear, Way, subscribe
from tests.support.rpc import passes

TIME = "1970-01-01T00:00:01.999Z"


class Shared:
    """A shared stream without others, which is out of reach or full when the test says so."""

    def __init__(self) -> None:
        replica = Replica(lambda: 0.0, count=100, age=60.0, octets=1 << 20)
        replica.reset("e1")
        self.replica = replica
        self.position = replica.position
        self.expect = replica.expect
        self.since = replica.since
        self.oldest = replica.oldest
        self.forget = replica.forget
        self.watchers: list[Callable[[bool], None]] = []
        self.available = True
        self.refusal: Refusal | None = None
        """What becomes of messages that were sent."""
        self.is_full = False
        """Whether none is taken, because too many are on their way."""
        self.asked: list[Position] = []
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while a position is waited for."""
        self._waiting: list[Callable[[], None]] | None = None

    async def connect(self, listener: Listener) -> None:
        """Listen."""
        self.replica.listener = listener
        self.replica.caught_up(1, 0)

    async def close(self) -> None:
        """Nothing."""

    def be(self, available: bool) -> None:
        """Be within reach, or not, and say so."""
        self.available = available
        for watcher in self.watchers:
            watcher(available)

    def hold_acknowledgements(self) -> list[Callable[[], None]]:
        """Acknowledge only when the test calls what is in this list from now on, the latest last."""
        self._waiting = []
        return self._waiting

    def publish(self, topic: str, data: bytes, owner: str = "") -> "asyncio.Future[Position]":
        """Take it."""
        publishing: asyncio.Future[Position] = asyncio.get_running_loop().create_future()

        def done(result: Position | Refusal) -> None:
            if isinstance(result, Refusal):
                publishing.set_exception(result)
            else:
                publishing.set_result(result)

        self.send(topic, data, owner, done)
        return publishing

    def send(self, topic: str, data: bytes, owner: str, done: Done) -> None:
        """Take it, or not."""
        if not self.available:
            raise unavailable("away")
        if self.is_full:
            raise not_run(errors.OVERLOADED)
        soon = asyncio.get_running_loop().call_soon
        if self.refusal is not None:
            soon(done, self.refusal)
            return
        self.replica.take(topic, self.replica.head + 1, 0.0, sealed(TIME, owner, data))
        position = Position("e1", self.replica.head)
        if self._waiting is None:
            soon(done, position)
        else:
            self._waiting.append(lambda: done(position))

    def knows(self, position: Position) -> bool:
        """Whether it does."""
        return position.epoch != "e1" or position.offset <= self.replica.head

    async def reach(self, position: Position) -> None:
        """Note it."""
        self.asked.append(position)
        self.meanwhile()


class SharedHall:
    """A gateway of a cluster, as far as events are concerned."""

    def __init__(self, max_topics: int = 100) -> None:
        self.stream = Shared()
        self.topics = Topics(self.stream.forget, max_topics=max_topics)
        self.way = Way(True)
        self.delivery = Delivery(self.topics, self.stream, self.way)
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.events = SharedEvents(self.topics, self.stream, self.delivery, "attic:8765", self._later)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.timers.append((seconds, act))

    async def wait(self) -> float:
        """Let the time of all timers that are set pass. Returns the seconds of the longest."""
        timers, self.timers = self.timers, []
        for _, act in timers:
            act()
        await passes()
        return max((seconds for seconds, _ in timers), default=0.0)

    def ear(self, *patterns: str, since: dict[str, Position] | None = None) -> Ear:
        """A connection that has subscribed."""
        ear = Ear()
        subscribe(self.events, ear, patterns, since or {})[1]()
        return ear
