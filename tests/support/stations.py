"""Gateways at a shared stream, as far as events are concerned: a client of NATS, the stream, and who listens."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from gateway.cluster.jetstream import JetStream, Wanted
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import NatsError, Options
from gateway.cluster.natsstream import NatsStream
from gateway.cluster.natswire import Info
from gateway.cluster.replica import Replica
from gateway.cluster.stream import Position, SharedStream
from gateway.events.delivery import Delivery
from gateway.events.shared import SharedEvents
from gateway.events.topics import Topics
from gateway.rpc.method import Refusal
from gateway.telemetry.lines import Lines
from gateway.timestamps import rfc3339
from tests.support.ears import Ear, Way, notification_in, subscribe
from tests.support.fleet import until
from tests.support.listening import Listening

NAME: Final = "gw"


class Station:
    """A gateway's stream, as an async context manager: it is connected by then. Pauses between attempts are short.

    count, age, octets: bounds of what is kept, at NATS and here. listener: who hears the messages.
    """

    def __init__(
        self,
        url: str,
        *,
        count: int = 100,
        age: float = 60.0,
        octets: int = 1 << 26,
        storage: str = "file",
        replicas: int = 1,
        connects: bool = True,
        lines: Lines | None = None,
        **options: Any,
    ) -> None:
        self._connects = connects
        self.lines = Lines() if lines is None else lines
        self.joins = 0
        self.nats = Nats(
            Options(urls=(url,), **options),
            self.lines,
            on_joined=self._joined,
            on_lost=self._lost,
            on_failed=_ignore,
            on_error=_ignore,
            chance=lambda: 0.1,
        )
        wanted = Wanted(storage=storage, replicas=replicas, count=count, age=age, octets=octets)
        self.jetstream = JetStream(self.nats, NAME, wanted, lambda: secrets.token_hex(8))
        self.replica = Replica(time.monotonic, count=count, age=age, octets=octets)
        self.stream = NatsStream(
            self.nats, self.jetstream, self.replica, self.lines, now=lambda: rfc3339(time.time()), clock=time.time
        )
        self.listener = Listening()

    def _joined(self, info: Info) -> None:
        self.joins += 1
        self.stream.joined()

    def _lost(self, error: NatsError) -> None:
        self.stream.lost()

    async def __aenter__(self) -> Self:
        self.nats.start()
        if self._connects:
            await self.connect()
        return self

    async def connect(self) -> None:
        """Connect the stream."""
        await self.stream.connect(self.listener)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stream.close()
        await self.nats.close()

    async def publish(self, topic: str, *data: bytes, owner: str = "") -> Position:
        """Publish one message after the other. Returns the position of the last one."""
        for one in data:
            position = await self.stream.publish(topic, one, owner)
        return position

    async def known(self, *positions: Position) -> None:
        """Wait until this gateway knows all up to these."""
        await until(
            lambda: all(map(self.stream.knows, positions)), f"{positions} are not known, but {self.replica.head}"
        )

    async def within_reach(self, timeout: float = 30.0) -> None:
        """Wait until the stream may be used."""
        await until(lambda: self.stream.available, "the stream is out of reach", timeout)

    async def api(self, what: str, body: object = None) -> dict[str, Any]:
        """Ask JetStream's API, and return what it answers."""
        payload = b"" if body is None else json.dumps(body).encode()
        _, text = await self.nats.request(f"$JS.API.{what}".encode(), payload, 10)
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def limit(self, **config: object) -> None:
        """Change the configuration of the stream, as its operator may."""
        info = await self.api(f"STREAM.INFO.{NAME}")
        answer = await self.api(f"STREAM.UPDATE.{NAME}", info["config"] | config)
        assert "error" not in answer, answer


class Auditorium(Station):
    """A gateway with topics and subscribers, which are ears. ``events`` are those of a gateway in a cluster."""

    def __init__(
        self, url: str, *, max_topics: int = 10_000, member: str = "here", way: Way | None = None, **options: Any
    ) -> None:
        super().__init__(url, **options)
        stream: SharedStream = self.stream
        self.way = way or Way(True)
        self.topics = Topics(stream.forget, max_topics=max_topics)
        self.delivery = Delivery(self.topics, stream, self.way)
        self.events = SharedEvents(self.topics, stream, self.delivery, member, _later)

    async def connect(self) -> None:
        """Connect the stream, as the gateway does."""
        await self.events.start()

    def ear(self, *patterns: str, since: dict[str, Position] | None = None) -> Ear:
        """A connection that has subscribed."""
        ear = Ear()
        _, release = subscribe(self.events, ear, patterns, since or {})
        release()
        return ear

    def turn(self) -> None:
        """Do all that is put off to a later event-loop iteration."""
        while self.way.turn():
            pass


def heard(ear: Ear) -> list[tuple[str, str, int]]:
    """Kind, topic and offset of what a connection was sent: `event.message`, `event.gap`."""
    found = map(notification_in, ear.frames)
    return [(method, params["topic"], params["offset"]) for method, params in found]


def refused(attempt: Callable[[], object]) -> Refusal:
    """The refusal that an attempt raises."""
    try:
        attempt()
    except Refusal as refusal:
        return refusal
    raise AssertionError("it was not refused")


def numbered(count: int) -> list[bytes]:
    """So many different messages, in order."""
    return [b"%d" % number for number in itertools.islice(itertools.count(), count)]


def _later(seconds: float, act: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, act)


def _ignore(what: object) -> None:
    """Do nothing."""
