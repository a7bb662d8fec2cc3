"""Asks all members of the cluster, or one, and collects what they say.

A question has a name, and each member answers it by the plain function that is registered for the name. An answer is
JSON, like the parameters. Who does not answer in time is named: a list that lacks somebody says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from gateway import errors
from gateway.cluster import natswire
from gateway.cluster.alive import AWAY, DISOWNED, Member
from gateway.cluster.members import Members
from gateway.cluster.nats import NO_RESPONDERS
from gateway.cluster.natslink import NatsError, TooLargeError
from gateway.rpc.method import Refusal, not_run

WAIT: Final = 1.0
"""Seconds in which members have to answer."""

MAX_OPEN: Final = 256
"""How many questions may wait for answers at once. Beyond: -32009."""

_ASK: Final = b"ask"
_TOLD: Final = b"told"

Answer = Callable[[bytes], bytes]
"""Answers a question: takes its parameters and returns the answer, both as JSON. Its parameters are a member's word."""


class Told(NamedTuple):
    """The answers, each with the name of its member and as JSON, and the names of the members that are missing."""

    answers: Sequence[tuple[str, bytes]]
    missing: list[str]


class _Question:
    """A question that waits for answers. ``waiting`` are the members that have not answered."""

    __slots__ = ("answers", "done", "enough", "lost", "waiting")

    def __init__(self, members: Iterable[Member], enough: Callable[[bytes], bool]) -> None:
        self.waiting = dict.fromkeys(members)
        self.lost: list[Member] = []
        self.answers: list[tuple[str, bytes]] = []
        self.enough = enough
        self.done = asyncio.Event()

    def take(self, member: Member, answer: bytes) -> None:
        """Take an answer, or b"" if there will be none. What was not asked for, or comes twice, does not count."""
        if member not in self.waiting:
            return
        del self.waiting[member]
        if answer:
            self.answers.append((member.name, answer))
        else:
            self.lost.append(member)
        if not self.waiting or (answer and self.enough(answer)):
            self.done.set()


class Asking:
    """The questions of this gateway to the others, and its answers to theirs."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._functions: dict[bytes, Answer] = {}
        self._open: dict[bytes, _Question] = {}
        self._asked = 0
        self._gone: dict[str, str] = {}
        """The names, by instance, of the members that were lost because we are without NATS."""
        members.on(_ASK, self._answer)
        members.on(_TOLD, self._told)
        members.watchers.append(self)

    @property
    def name(self) -> str:
        """This gateway's own name for people."""
        return self._members.name

    @property
    def here(self) -> Member:
        """This gateway itself."""
        return self._members.me

    def missing(self, untold: Iterable[Member], member: str | None) -> list[str]:
        """Return the names of the members, or of those called ``member``, of which not all is known here.

        These are the ``untold``, and those that were lost because we are without NATS. Raises Refusal if no member is
        called so.
        """
        if member is None:
            return sorted({*(other.name for other in untold), *self._away()})
        _, meant = self.meant(member)
        return sorted({other.name for other in untold if other in meant})

    def register(self, question: str, function: Answer) -> None:
        """Answer a question, our own and others', by a function that does not raise, whatever the parameters are."""
        self._functions[question.encode()] = function

    async def ask(
        self,
        question: str,
        params: bytes,
        *,
        member: str | None = None,
        enough: Callable[[bytes], bool] = lambda answer: False,
        timeout: float = WAIT,
    ) -> Told:
        """Ask this gateway and all others, or those that are called ``member``: their name, or the id of the instance.

        Returns when all have answered, when one answer is ``enough``, or after ``timeout`` seconds. Our own answer
        comes first. Raises Refusal if nobody is called so, or if too many questions wait for answers.
        """
        here, others = self.meant(member)
        answers = [(self.name, self._functions[question.encode()](params))] if here else []
        if any(enough(answer) for _, answer in answers):
            return Told(answers, [])
        told = await self._ask(question, params, others, enough, timeout)
        away = self._away() if member is None else []
        return Told([*answers, *told.answers], sorted({*told.missing, *away}))

    def meant(self, name: str | None) -> tuple[bool, list[Member]]:
        """Return whether this gateway is meant, and which others are. Raises Refusal if nobody is called so."""
        members = self._members
        if name is None:
            return True, list(members.others.values())
        here = name in (members.name, members.instance)
        others = [other for other in members.others.values() if name in (other.name, other.instance)]
        if not here and not others:
            raise Refusal(errors.NOT_FOUND, f"no gateway {name[:200]!r} in the cluster")
        return here, others

    async def _ask(
        self,
        question: str,
        params: bytes,
        members: Sequence[Member],
        enough: Callable[[bytes], bool],
        timeout: float,
    ) -> Told:
        if not members:
            return Told([], [])
        if len(self._open) >= MAX_OPEN:
            raise not_run(errors.OVERLOADED, "too many questions to other gateways", retryAfterMs=errors.RETRY_BUSY_MS)
        self._asked += 1
        token = b"%d" % self._asked
        waiting = self._open[token] = _Question(members, enough)
        try:
            self._send(waiting, token, b"%b\n%b" % (question.encode(), params))
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await waiting.done.wait()
        finally:
            del self._open[token]
        missing = [*waiting.lost, *waiting.waiting]
        found = any(enough(answer) for _, answer in waiting.answers)
        return Told(waiting.answers, [] if found else [other.name for other in missing])

    def _send(self, waiting: _Question, token: bytes, text: bytes) -> None:
        for member in list(waiting.waiting):
            # Without that member NATS itself answers, with a 503 that has both tokens.
            reply = self._members.reply_subject(_TOLD, b"%b.%b" % (token, member.address))
            try:
                self._members.tell(member, _ASK, text, token, reply)
            except NatsError:
                waiting.take(member, b"")

    # From others

    def _answer(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Answer a question. The empty answer says that there will be none: the question is of a newer release."""
        question, _, params = payload.partition(b"\n")
        function = self._functions.get(question)
        answer = b""
        try:
            if function is not None:
                answer = function(params)
        finally:
            with suppress(NatsError):
                self._tell(member, answer, token)

    def _tell(self, member: Member, answer: bytes, token: bytes) -> None:
        try:
            self._members.tell(member, _TOLD, answer, token)
        except TooLargeError:
            self._members.tell(member, _TOLD, b"", token)

    def _told(self, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        """Take an answer, or the proof that the member is not there."""
        if member is self._members.me:
            token, _, address = token.partition(b".")
            other = self._members.others.get(address)
            if other is None or natswire.status(headers) != NO_RESPONDERS:
                return
            self._members.unreachable(other)  # which takes it out of all questions
        elif (waiting := self._open.get(token)) is not None:
            waiting.take(member, payload)

    def member_joined(self, member: Member) -> None:
        """Note that a member is there."""
        self._gone.pop(member.instance, None)

    def member_lost(self, member: Member, cause: str) -> None:
        """Wait no more for a member's answers."""
        if cause in (AWAY, DISOWNED):
            self._gone[member.instance] = member.name
        for waiting in self._open.values():
            waiting.take(member, b"")

    def _away(self) -> list[str]:
        """Return who would have been asked if we were not without NATS, or have not heard all others again since."""
        if self._members.settled:
            self._gone.clear()
        return list(self._gone.values())
