"""Methods that tell of all gateways of a cluster: each of them answers for itself, and the answers become one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from gateway import errors
from gateway.rpc import jsonrpc
from gateway.rpc.method import Refusal

if TYPE_CHECKING:  # a gateway alone does not load it
    from gateway.cluster.asking import Answer, Told

SHARED: Final = 1.0
"""Seconds from one question that is asked on behalf of all callers to the next of its kind."""

Params = TypeVar("Params")
Answered = TypeVar("Answered")


def answering(params: type[Params], function: Callable[[Params], object]) -> Answer:
    """Return what answers a question by a function of its parameters.

    If the parameters cannot be read, which those of a newer release may be, there is no answer.
    """
    decode = msgspec.json.Decoder(params).decode

    def answer(data: bytes) -> bytes:
        try:
            given = decode(data)
        except msgspec.MsgspecError:
            return b""
        return jsonrpc.encode(function(given))

    return answer


def each(told: Told, kind: type[Answered]) -> tuple[list[tuple[str, Answered]], list[str]]:
    """Return the answers with the names of their members, and who is missing: also a member that cannot be read."""
    found: list[tuple[str, Answered]] = []
    missing = list(told.missing)
    for name, answer in told.answers:
        try:
            found.append((name, msgspec.json.decode(answer, type=kind)))
        except msgspec.MsgspecError:
            missing.append(name)
    return found, missing


class Shared(Generic[Answered]):
    """Questions that are asked on behalf of all callers: one of a kind in `SHARED` seconds, however many want to know.

    ``clock`` returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock: Final = clock
        self._asked: dict[Hashable, tuple[float, asyncio.Task[Answered]]] = {}

    async def of(self, kind: Hashable, ask: Callable[[], Coroutine[Any, Any, Answered]]) -> Answered:
        """Return what the question of this kind has come to, or raise what it has raised. Ask if that is too old."""
        now = self._clock()
        if kind not in self._asked or now >= self._asked[kind][0]:
            self._asked = {known: asked for known, asked in self._asked.items() if now < asked[0]}
            self._asked[kind] = now + SHARED, asyncio.create_task(ask())
        return await asyncio.shield(self._asked[kind][1])  # the others still wait if this caller does not


def alone(member: str | None) -> None:
    """Refuse the name of a member: this gateway has no others."""
    if member is not None:
        raise Refusal(errors.NOT_FOUND, "this gateway is alone; see [cluster] in its configuration")


def unanswered(missing: list[str]) -> Refusal:
    """Return the refusal of what depends on members that have not answered, and may have done it."""
    return Refusal(errors.TIMEOUT, f"no answer of {', '.join(missing)[: jsonrpc.MAX_DETAIL]}", missing=missing)
