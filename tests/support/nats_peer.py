"""A client of NATS whose callbacks are noted."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from gateway.cluster.nats import Nats
from gateway.cluster.natslink import NatsError, Options
from gateway.cluster.natswire import Info
from gateway.telemetry.lines import Lines
from tests.support.fleet import until

Message = tuple[bytes, bytes, bytes, bytes]


class NatsPeer:
    """A started `Nats`, as an async context manager. It has joined by then, unless `join` is false.

    options: what `Options` takes beside the urls. Pauses between attempts are short: `chance` is always 0.1.
    """

    def __init__(self, *urls: str, join: bool = True, **options: Any) -> None:
        self._wait = join
        self.joined: list[Info] = []
        self.lost: list[NatsError] = []
        self.failed: list[NatsError] = []
        self.forbidden: list[str] = []
        self.messages: list[Message] = []
        """What came by `hear`."""
        self.at_join: Callable[[], None] = _nothing
        self.at_error: Callable[[], None] = _nothing
        """What is done within these callbacks, after they are noted."""
        self.nats = Nats(
            Options(urls=urls, **options),
            Lines(),
            on_joined=self._on_joined,
            on_lost=self.lost.append,
            on_failed=self.failed.append,
            on_error=self._on_error,
            chance=lambda: 0.1,
        )

    async def __aenter__(self) -> Self:
        self.nats.start()
        if self._wait:
            await until(lambda: bool(self.joined), "it has not joined")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.nats.close()

    def _on_joined(self, info: Info) -> None:
        self.joined.append(info)
        self.at_join()

    def _on_error(self, text: str) -> None:
        self.forbidden.append(text)
        self.at_error()

    @property
    def transport(self) -> asyncio.Transport:
        """What its link writes to and reads from."""
        link = self.nats._link
        assert link is not None and link.transport is not None
        return link.transport

    async def hear(self, *subjects: bytes) -> None:
        """Note all messages of these subjects; when this returns, the server knows."""
        for subject in subjects:
            self.nats.subscribe(subject, self.note)
        await self.nats.flush(10)

    def note(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Note a message."""
        self.messages.append((subject, reply, headers, payload))

    def payloads(self) -> list[bytes]:
        """The payloads that came."""
        return [message[-1] for message in self.messages]

    async def first_failure(self) -> NatsError:
        """Wait for an attempt that comes to nothing, and return its reason."""
        await until(lambda: bool(self.failed), "no attempt has failed")
        return self.failed[0]

    async def first_loss(self) -> NatsError:
        """Wait for the end of a link, and return its reason."""
        await until(lambda: bool(self.lost), "the link was not lost")
        return self.lost[0]

    async def again(self, times: int = 2) -> None:
        """Wait until it has joined so often."""
        await until(lambda: len(self.joined) >= times, "it has not joined again")


def _nothing() -> None:
    """Do nothing more."""
