"""A member of a cluster with no gateway behind it, whose watchers note what they are told."""

import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from gateway.cluster.alive import Member
from gateway.cluster.members import Members, boot_time
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import NatsError, Options
from gateway.cluster.natswire import Info
from gateway.telemetry.lines import Lines
from tests.support.fleet import until
from tests.support.patience import WAIT

PREFIX: Final = b"test"

Mail = tuple[str, bytes, bytes, bytes]


class Fellow:
    """A member, as an async context manager. It has joined by then, and NATS knows what it has subscribed to.

    timeout: seconds of silence after which it takes others for lost.
    """

    def __init__(
        self, url: str, name: str, *, timeout: float = 1.5, clock: Callable[[], float] = boot_time, **options: Any
    ) -> None:
        self.told: list[str] = []
        """What its watchers were told: `+name` or `-name cause`."""
        self.mail: list[Mail] = []
        """What came by `hear`: name of the sender, token, headers, payload."""
        self._greeting = b""
        self.lines = Lines()
        self.nats = Nats(
            Options(urls=(url,), **options),
            self.lines,
            on_joined=self._joined,
            on_lost=self._lost,
            on_failed=lambda error: None,
            on_error=lambda text: None,
            chance=lambda: 0.1,
        )
        self.members = Members(
            self.nats,
            prefix=PREFIX,
            instance=str(uuid.uuid4()),
            name=name,
            timeout=timeout,
            lines=self.lines,
            clock=clock,
        )
        self.members.watchers.append(self)

    def _joined(self, info: Info) -> None:
        self.members.joined()

    def _lost(self, error: NatsError) -> None:
        self.members.lost()

    def member_joined(self, member: Member) -> None:
        """Note it, and send mail if that is wanted."""
        self.told.append(f"+{member.name}")
        if self._greeting:
            self.members.tell(member, self._greeting, b"")

    def mail_newcomers(self, kind: bytes) -> None:
        """Send mail to each newcomer, as soon as it is known."""
        self._greeting = kind

    def member_lost(self, member: Member, cause: str) -> None:
        """Note it."""
        self.told.append(f"-{member.name} {cause}")

    def hear(self, kind: bytes) -> None:
        """Note the mail of this kind."""
        self.members.on(kind, self._note)

    def _note(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        self.mail.append((member.name, token, headers, payload))

    async def __aenter__(self) -> Self:
        self.nats.start()
        await until(lambda: bool(self.members.address), "it has not joined")
        await self.nats.flush(WAIT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.members.leave()
        await self.nats.close()

    @property
    def names(self) -> set[str]:
        """The names of the others that it knows."""
        return {member.name for member in self.members.others.values()}

    def member(self, name: str) -> Member:
        """The other member of this name."""
        (found,) = (member for member in self.members.others.values() if member.name == name)
        return found

    async def knows(self, *names: str) -> None:
        """Wait until these are the others that it knows."""
        await until(lambda: self.names == set(names), f"{self.members.name} does not know just {names}")
