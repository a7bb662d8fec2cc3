"""Which gateways are alive, by their heartbeats, and until when a call may begin. Pure.

Silence is counted in looks, and not in seconds. A gateway that stands still does not look, so it does not take others
for lost because of heartbeats that it has not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

LOOKS: Final = 15
"""Looks in one timeout of our own, at least. A member is lost at the look after as many that have not heard of it."""

LONGEST: Final = 0.1
"""The most seconds from one look to the next."""

PROBES: Final = 2
"""Looks from one probe of a member that something is waited for from to the next: NATS says if it is gone."""

STILL: Final = 2
"""A gateway that has not looked for more seconds than so many looks take has stood still."""

MAX_TIMEOUT: Final = 600.0
"""The longest timeout of a gateway, in seconds."""

FORGET: Final = 600.0
"""Seconds for which the address of a lost member is remembered."""

MAX_GONE: Final = 1000
"""The most addresses of lost members that are remembered. The oldest goes first."""

MAX_MEMBERS: Final = 256
"""The most members that are known. Heartbeats of others are ignored."""

SILENT: Final = "silent"
UNREACHABLE: Final = "no_responders"
REJOINED: Final = "rejoined"
LEAVING: Final = "leaving"
AWAY: Final = "away"
DISOWNED: Final = "disowned"
"""Why a member is lost. The last two are our own fault: we are without NATS, or others have taken us for lost."""

_ADDRESS: Final = re.compile(r"[0-9a-f]{8}_[1-9][0-9]{0,9}")


class Beat(msgspec.Struct, omit_defaults=True, rename={"sender": "from"}):
    """A heartbeat: the address, instance and name of its sender, and how many heartbeats the sender has sent.

    ``roster`` is the number of the sender's last change of what is registered there, ``timeout`` its own timeout in
    seconds. With ``leaving`` it is the last heartbeat of this address.
    """

    sender: Annotated[str, Meta(max_length=20)]
    instance: Annotated[str, Meta(max_length=64)]
    name: Annotated[str, Meta(max_length=256)]
    number: Annotated[int, Meta(ge=0, lt=1 << 53)]
    roster: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0
    timeout: Annotated[float, Meta(ge=0, le=MAX_TIMEOUT)] = 0.0
    leaving: bool = False


def period(timeout: float) -> float:
    """Return the seconds from one look to the next, of a gateway with this timeout."""
    return min(timeout / LOOKS, LONGEST)


def address(instance: str, join: int) -> str:
    """Return the address of an instance, which is UUID text, after it has joined so many times."""
    return f"{instance[:8]}_{join}"


class Member:
    """Another gateway, for as long as it has this address. ``name`` is for people.

    ``beat`` is the number of its last heartbeat that was heard, as text. ``lost`` is why it is no longer a member, and
    empty as long as it is one. ``open`` counts what waits for it, so that it is probed. ``silent`` counts the looks
    that have not heard of it, of which it has ``looks``. ``timeout`` is how many seconds those take: until then it may
    begin our calls. ``subjects`` are those of mail to it, by kind.
    """

    __slots__ = ("address", "beat", "instance", "looks", "lost", "name", "open", "silent", "subjects", "timeout")

    def __init__(self, address: bytes, instance: str, name: str, looks: int = LOOKS, timeout: float = 0.0) -> None:
        self.address: Final = address
        self.instance: Final = instance
        self.name: Final = name
        self.beat = b"0"
        self.looks: Final = looks
        self.timeout: Final = timeout
        self.lost = ""
        self.open = 0
        self.silent = 0
        self.subjects: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"<member {self.address.decode()} {self.name!r}>"


class Alive:
    """The other members that are alive.

    ``joined`` is called with a member right after its first heartbeat, ``left`` after one is lost, with the cause. A
    member is lost after ``timeout`` seconds of silence, or after its own timeout if that is longer. The ``clock``
    returns seconds; it counts only for how long the addresses of lost members are remembered.
    """

    def __init__(
        self,
        joined: Callable[[Member], None],
        left: Callable[[Member, str], None],
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._joined = joined
        self._left = left
        self._timeout = timeout
        self._clock = clock
        self.others: Final[dict[bytes, Member]] = {}
        """By their addresses."""
        self._instances: dict[str, Member] = {}
        self._gone: dict[bytes, float] = {}

    def heard(self, beat: Beat) -> bool:
        """Take the heartbeat of another gateway. Returns True if its address was lost, so that it has to be told.

        A heartbeat from an address that is none, or beyond the most members, is ignored.
        """
        address = beat.sender.encode()
        member = self.others.get(address)
        if member is None:
            return self._is_gone(address) or self._meet(address, beat)
        if beat.leaving:
            self.lose(member, LEAVING)
            return False
        member.beat = b"%d" % beat.number
        member.silent = 0
        return False

    def _is_gone(self, address: bytes) -> bool:
        since = self._gone.get(address)
        return since is not None and self._clock() - since <= FORGET

    def _meet(self, address: bytes, beat: Beat) -> bool:
        """Take the first heartbeat of an address. Returns False."""
        if beat.leaving or _ADDRESS.fullmatch(beat.sender) is None:
            return False
        older = self._instances.get(beat.instance)
        if older is not None:
            if _join(older.address) > _join(address):
                return False  # on its way since before that
            self.lose(older, REJOINED)
        if len(self.others) < MAX_MEMBERS:
            timeout = max(self._timeout, beat.timeout)
            looks = math.ceil(timeout / period(self._timeout))
            member = Member(address, beat.instance, beat.name, looks, timeout)
            member.beat = b"%d" % beat.number
            self.others[address] = self._instances[beat.instance] = member
            self._joined(member)
        return False

    def look(self) -> None:
        """Count the silence of all members, and lose those that are silent. Call it once in each `period`."""
        for member in list(self.others.values()):
            member.silent += 1
            if member.silent > member.looks:
                self.lose(member, SILENT)

    def lose(self, member: Member, cause: str) -> None:
        """Take a member for lost, for good: its address is remembered. Harmless if it is lost already."""
        if not member.lost:
            self._gone.pop(member.address, None)
            self._gone[member.address] = self._clock()
            if len(self._gone) > MAX_GONE:
                del self._gone[next(iter(self._gone))]
            member.lost = cause
            del self.others[member.address], self._instances[member.instance]
            self._left(member, cause)

    def part(self, cause: str) -> None:
        """Lose all members, because we are a member no more. They are not to blame, so no address is remembered."""
        self._gone.clear()
        members = list(self.others.values())
        for member in members:
            member.lost = cause  # all of them, before anybody can think of telling one of them something
        self.others.clear()
        self._instances.clear()
        for member in members:
            self._left(member, cause)


class Fence:
    """Says until when a call may begin, by the heartbeat of ours that its caller has heard last.

    A caller takes us for lost when it has heard nothing for ``timeout`` seconds. So a call that names a heartbeat which
    was sent longer ago may have been given up.

    A caller takes us for lost sooner if NATS says that our link has ended. While we stand still we do not notice that,
    and what came before it waits to be read. So after a standstill a call has to name a heartbeat that was sent after
    it. ``stood_still`` is called if one was noticed: it sends such a heartbeat.

    ``clock`` returns seconds, which go on while the machine is suspended.
    """

    __slots__ = ("_clock", "_looked", "_sent", "_still", "_stood_still", "_timeout", "number")

    def __init__(self, timeout: float, clock: Callable[[], float], stood_still: Callable[[], None]) -> None:
        self._timeout = timeout
        self._still = STILL * period(timeout)
        self._clock = clock
        self._stood_still = stood_still
        self._looked = clock()
        self._sent: dict[bytes, float] = {}
        self.number = 0
        """That of the last heartbeat."""

    def step(self) -> None:
        """Number another heartbeat. Call it right before the heartbeat is sent."""
        now = self._clock()
        if now - self._looked > self._still:
            self.clear()
        self._looked = now
        while self._sent and now - self._sent[oldest := next(iter(self._sent))] > self._timeout:
            del self._sent[oldest]
        self.number += 1
        self._sent[b"%d" % self.number] = now

    def look(self) -> float:
        """Note that we do not stand still, and return what the time is. Call it once in each `period`, at least."""
        now = self._clock()
        if now - self._looked > self._still:
            self._stood_still()
        self._looked = now
        return now

    def is_fresh(self, beat: bytes) -> bool:
        """Whether a call may begin that names the heartbeat of this number."""
        now = self.look()
        sent = self._sent.get(beat)
        return sent is not None and now - sent <= self._timeout

    def clear(self) -> None:
        """Let no call begin that names a heartbeat of before."""
        self._sent.clear()


def _join(address: bytes) -> int:
    return int(address.rpartition(b"_")[2])
