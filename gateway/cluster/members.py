"""The gateways of a cluster: who they are, that they are alive, and how to reach each of them.

A gateway has an address for as long as its link to NATS. When it comes back after a loss it is another member, so
nothing that was meant for the older one reaches it. Subjects begin with the cluster's name: ``beat`` has the heartbeats
of all, ``<kind>.<address>`` is what a member says to all, and ``to.<address>.<kind>.<sender's address>[.<token>]`` is
the mail to one member.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeVarTuple

import msgspec

from gateway.cluster import natswire
from gateway.cluster.alive import (
    AWAY,
    DISOWNED,
    LEAVING,
    PROBES,
    UNREACHABLE,
    Alive,
    Beat,
    Fence,
    Member,
    address,
    period,
)
from gateway.cluster.nats import NO_RESPONDERS, Nats
from gateway.cluster.natslink import AwayError, NatsError
from gateway.telemetry.lines import CLUSTER_DEFECT, MEMBER_JOINED, MEMBER_LOST, Line, Lines

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")

LEAVE: Final = 1.0
"""Seconds in which the last heartbeat has to reach NATS."""

ANSWER: Final = 1.0
"""Seconds after which all others have been heard, at most: they answer our first heartbeat at once."""

MailHandler = Callable[[Member, bytes, bytes, bytes], None]
"""Takes mail: its sender, its token or b"", its raw headers or b"", and its payload."""

Listener = Callable[[Member, bytes], None]
"""Takes what a member says to all: the member, and the payload."""

_BEAT: Final = b"beat"
_LOST: Final = b"lost"
_PROBE: Final = b"probe"

_decode: Final = msgspec.json.Decoder(Beat).decode

boot_time: Final = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Returns seconds that go on while the machine is suspended, as those of `time.monotonic` do not on Linux."""


class Watcher(Protocol):
    """What has to do with members. Both calls are plain; one that raises is logged as a defect."""

    def member_joined(self, member: Member) -> None:
        """Note that a gateway is a member. It may be told something at once: it knows us by then."""

    def member_lost(self, member: Member, cause: str) -> None:
        """Note that a member is lost, for good. The causes are those of `cluster.alive`."""


class Numbered(Protocol):
    """Whatever members number for each other. Each heartbeat says the number, so that a hole is found."""

    number: int
    """The number of our own last change."""

    def heard(self, member: Member, number: int) -> None:
        """Take the number that a member's heartbeat says. The first comes right after ``member_joined``."""


class Members:
    """The members of the cluster. All calls belong to one event loop.

    ``prefix`` is the cluster's name. ``instance`` is UUID text, ``name`` is for people. A member is lost after
    ``timeout`` seconds without a heartbeat, and no call begins here that names a heartbeat which is older. ``clock``
    returns seconds.

    ``watchers`` are called in order. ``roster`` is what heartbeats tell the number of.
    """

    def __init__(
        self,
        nats: Nats,
        *,
        prefix: bytes,
        instance: str,
        name: str,
        timeout: float,
        lines: Lines,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.name: Final = name
        self.instance: Final = instance
        self.address = b""
        """Our own; b"" as long as we are no member."""
        self.me = Member(b"", instance, name)
        """Ourselves: the sender of what NATS itself says of our mail (see `reply_subject`)."""
        self.watchers: Final[list[Watcher]] = []
        self.roster: Numbered | None = None
        self._nats = nats
        self._prefix = prefix
        self._lines = lines
        self._timeout = timeout
        self._period = period(timeout)
        self._looks = round(timeout / self._period)
        self._clock = clock
        self._settled = 0.0
        """When all others have been heard: they answer our first heartbeat, and each sends one in that time."""
        self._fence = Fence(timeout, clock, self._beat)
        self.is_fresh: Final = self._fence.is_fresh
        """Returns whether a call may begin that names our heartbeat of that number, as text."""
        self._alive = Alive(self._entered, self._left, timeout, clock)
        self.others: Final[Mapping[bytes, Member]] = self._alive.others
        """The living, by their addresses."""
        self.sent: Final = defaultdict(int, {_BEAT: 0})  # a Counter takes twice as long
        """How many messages went to others, by their kind."""
        self.received: Final = defaultdict(int, {_BEAT: 0})
        """How many messages came from others, by their kind."""
        self._handlers: dict[bytes, MailHandler] = {_LOST: self._disowned, _PROBE: self._probed}
        self._known: dict[bytes, tuple[Member, bytes, MailHandler]] = {}
        """What mail of the living is, by subjects that have no token."""
        self._busy: dict[Member, None] = {}
        self._joins = 0
        self._ticks = 0
        self._own = b""
        self._mailbox = b""
        self._timer: asyncio.TimerHandle | None = None
        nats.subscribe(prefix + b".beat", self._heard)

    # Our own coming and going

    def joined(self) -> None:
        """Be a member, under a new address, because there is a link to NATS. All handlers have to be there by then."""
        self._joins += 1
        self.address = address(self.instance, self._joins).encode()
        self.me = Member(self.address, self.instance, self.name)
        self._own = b"%b.to.%b." % (self._prefix, self.address)
        self._mailbox = self._nats.subscribe(self._own + b">", self._mail)
        self._settled = self._clock() + min(ANSWER, self._timeout / 2)
        self._ticks = 0
        self._tick()

    def lost(self, cause: str = AWAY) -> None:
        """Be no member any more, because the link to NATS is lost. All others are lost with it. May be called twice."""
        if not self.address:
            return
        self._stop()
        self._nats.unsubscribe(self._mailbox)
        self.address = b""
        self._fence.clear()
        self._alive.part(cause)

    async def leave(self) -> None:
        """Tell the others that this member leaves, and be none any more. Harmless without a link to NATS."""
        if not self.address:
            return
        self._stop()
        with suppress(NatsError):
            self._nats.publish(self._prefix + b".beat", self._beat_text(leaving=True))
            await self._nats.flush(LEAVE)
        self.lost(LEAVING)

    @property
    def settled(self) -> bool:
        """Whether we are a member for so long that each living member has been heard since."""
        return bool(self.address) and self._clock() >= self._settled

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _disowned(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Come back as another member, because others have taken this one for lost."""
        self.lost(DISOWNED)
        self.joined()

    # Mail

    def on(self, kind: bytes, handler: MailHandler) -> None:
        """Have a handler take the mail of this kind: from living members, and from NATS itself (`reply_subject`)."""
        self._handlers[kind] = handler
        self._known.clear()
        self._count(kind)

    def _count(self, kind: bytes) -> None:
        """Count messages of this kind from now on."""
        self.sent[kind] += 0
        self.received[kind] += 0

    def tell(self, member: Member, kind: bytes, payload: bytes, token: bytes = b"", reply: bytes = b"") -> None:
        """Send mail to a member. No error does not mean that it arrives.

        Raises AwayError if the member is lost or there is no link, and TooLargeError. Then nothing was sent.
        """
        if member.lost:
            raise AwayError(f"the gateway {member.name} is lost")
        subject = member.subjects.get(kind)
        if subject is None:
            subject = member.subjects[kind] = self._subject(member.address, kind)
        self._nats.publish(b"%b.%b" % (subject, token) if token else subject, payload, reply)
        self.sent[kind] += 1

    def listen(self, kind: bytes, listener: Listener) -> None:
        """Have a listener take what living members say of this kind. Our own is not among it."""
        self._count(kind)

        def said(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
            member = self.others.get(subject.rpartition(b".")[2])
            if member is not None:
                self.received[kind] += 1
                listener(member, payload)

        self._nats.subscribe(b"%b.%b.*" % (self._prefix, kind), said)

    def say(self, kind: bytes, payload: bytes) -> None:
        """Say something to all members. Raises AwayError without a link, and TooLargeError. Then nothing was sent."""
        if not self.address:
            raise AwayError("this gateway is no member of the cluster")
        self._nats.publish(b"%b.%b.%b" % (self._prefix, kind, self.address), payload)
        self.sent[kind] += 1

    @property
    def max_payload(self) -> int:
        """How many bytes mail may have; 0 without a link."""
        return 0 if self._nats.info is None else self._nats.info.max_payload

    def reply_subject(self, kind: bytes, token: bytes) -> bytes:
        """Return a subject for replies to mail, to which NATS sends a 503 if its member is not there any more.

        The handler of this kind gets it as mail from `me`, with that status in the headers (`natswire.status`).
        """
        return b"%b%b.%b.%b" % (self._own, kind, self.address, token)

    def _subject(self, to: bytes, kind: bytes, token: bytes = b"") -> bytes:
        dot = b"." if token else b""
        return b"%b.to.%b.%b.%b%b%b" % (self._prefix, to, kind, self.address, dot, token)

    def _mail(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        known = self._known.get(subject)
        if known is not None:
            member, kind, handler = known
            self.received[kind] += 1
            handler(member, b"", headers, payload)
        else:
            self._other_mail(subject, headers, payload)

    def _other_mail(self, subject: bytes, headers: bytes, payload: bytes) -> None:
        """Take mail of which it is not known yet who sends it, and what it is. Without a token it is from now on."""
        kind, _, rest = subject[len(self._own) :].partition(b".")
        sender, _, token = rest.partition(b".")
        member, handler = self.others.get(sender), self._handlers.get(kind)
        if member is not None and handler is not None:
            self.received[kind] += 1
            if not token:
                self._known[subject] = member, kind, handler
            handler(member, token, headers, payload)
        elif handler is not None and (sender == self.address or kind == _LOST):
            handler(self.me, token, headers, payload)
        elif kind == _BEAT:
            self._heard(subject, b"", b"", payload)
        elif handler is not None:
            self._publish(self._subject(sender, _LOST), b"")

    # Heartbeats

    def _tick(self) -> None:
        """Send three heartbeats in each timeout, probe those that are waited for, and look who is silent."""
        self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)
        if self._ticks % (self._looks // 3) == 0:
            self._beat()
        else:
            self._fence.look()
        if self._ticks % PROBES == 0:
            for member in self._busy:
                probe = self._subject(member.address, _PROBE)
                self._publish(probe, b"", self.reply_subject(_PROBE, member.address))
        self._ticks += 1
        self._alive.look()

    def _beat(self) -> None:
        self._fence.step()
        self._publish(self._prefix + b".beat", self._beat_text())
        self.sent[_BEAT] += 1

    def _beat_text(self, *, leaving: bool = False) -> bytes:
        roster = 0 if self.roster is None else self.roster.number
        own = self.address.decode()
        beat = Beat(own, self.instance, self.name, self._fence.number, roster, self._timeout, leaving)
        return msgspec.json.encode(beat)

    def _heard(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take the heartbeat of another gateway."""
        try:
            beat = _decode(payload)
        except msgspec.MsgspecError:
            return  # a release that nobody knows yet
        sender = beat.sender.encode()
        if not self.address or sender == self.address:
            return
        self.received[_BEAT] += 1
        if self._alive.heard(beat):
            self._publish(self._subject(sender, _LOST), b"")
            return
        member = self.others.get(sender)
        if member is not None and self.roster is not None:
            self.roster.heard(member, beat.roster)

    def _publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish it; if there is no link, `lost` is called soon."""
        with suppress(NatsError):
            self._nats.publish(subject, payload, reply)

    # Others

    def _entered(self, member: Member) -> None:
        """Tell a new member who we are, before anything else, and tell the watchers."""
        self._publish(self._subject(member.address, _BEAT), self._beat_text())
        self._log(MEMBER_JOINED, member, {})
        for watcher in self.watchers:
            self._call(watcher.member_joined, member)

    def _left(self, member: Member, cause: str) -> None:
        self._busy.pop(member, None)
        self._known.clear()
        self._log(MEMBER_LOST, member, {"cause": cause})
        for watcher in self.watchers:
            self._call(watcher.member_lost, member, cause)

    def _call(self, callback: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            self._lines.log(logger, CLUSTER_DEFECT, "", "a watcher of members has a defect", fields={}, exc_info=error)

    def _log(self, line: Line, member: Member, more: Mapping[str, str]) -> None:
        fields = {"member": member.name, "instance": member.instance, **more}
        self._lines.log(logger, line, "", "member %s: %s", member.name, line.event.rpartition("_")[2], fields=fields)

    def unreachable(self, member: Member) -> None:
        """Take a member for lost, because NATS has no subscriber to its mail. Harmless if it is lost already."""
        self._alive.lose(member, UNREACHABLE)

    def busy(self, member: Member) -> None:
        """Probe a member from now on, until `idle` was called as often as this."""
        member.open += 1
        if member.open == 1 and not member.lost:
            self._busy[member] = None

    def idle(self, member: Member) -> None:
        """End one `busy`."""
        member.open -= 1
        if not member.open:
            self._busy.pop(member, None)

    def _probed(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Take a probe, which needs no answer, or the proof that the probed member is not there."""
        probed = self.others.get(token)
        if member is self.me and probed is not None and natswire.status(headers) == NO_RESPONDERS:
            self.unreachable(probed)
