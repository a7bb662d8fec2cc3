"""Holds all subscribers while the stream is being caught up with, and lets them go on a few at a time. Pure.

What is handed over in that time comes to no subscriber before it is known whether something before it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import islice
from typing import Final, Protocol

from gateway.cluster.stream import Lapse

AT_ONCE: Final = 200
"""The most subscribers that are let go on in one event-loop iteration."""

FED_AT_ONCE: Final = 500
"""How much those that go on are fed in one event-loop iteration, in messages, or what one subscriber more is fed."""

LOOKED_AT_AT_ONCE: Final = 10_000
"""How many topics are looked at in one event-loop iteration because of lapses, or those of one subscriber more."""


class Held(Hashable, Protocol):
    """A subscriber, as far as a pause knows it (`delivery.Subscriber`)."""

    def hold(self) -> None:
        """Send nothing until `go_on`, but note what is to be sent."""

    def lapsed(self, lapse: Lapse) -> int:
        """Be behind on all that a lapse says may be lost. Only between `hold` and `go_on`.

        Returns how many topics and patterns were looked at.
        """

    def go_on(self) -> None:
        """End one `hold`, and send what was missed."""


class Pauses:
    """The subscribers, and which of them are held.

    ``later`` does something in the next event-loop iteration. ``fed`` returns how much subscribers that were
    behind have been fed so far: messages, gaps, and topics without either.
    """

    def __init__(self, later: Callable[[Callable[[], None]], None], fed: Callable[[], int]) -> None:
        self._later = later
        self._fed = fed
        self._subscribers: set[Held] = set()
        self._paused = False
        self._held: dict[Held, tuple[Lapse, ...]] = {}
        """Those that are held, each with the lapses that it is yet to learn of."""
        self._goes_on = False

    def enter(self, subscriber: Held) -> None:
        """Know a new subscriber, and hold it if there is a pause."""
        self._subscribers.add(subscriber)
        if self._paused:
            self._hold(subscriber)

    def leave(self, subscriber: Held) -> None:
        """Forget a subscriber that is over, held or not. May be called twice."""
        self._subscribers.discard(subscriber)
        self._held.pop(subscriber, None)

    def pause(self) -> None:
        """Hold all subscribers until `resume`. May be called again before it."""
        self._paused = True
        for subscriber in self._subscribers:
            self._hold(subscriber)

    def _hold(self, subscriber: Held) -> None:
        if subscriber not in self._held:
            self._held[subscriber] = ()
            subscriber.hold()

    def resume(self, lapse: Lapse | None) -> None:
        """Let all subscribers go on, and tell them of a ``lapse`` before: some now, others later."""
        self._paused = False
        if lapse is not None:
            for subscriber in self._held:
                self._held[subscriber] += (lapse,)
        self._go_on_later()

    def _go_on_later(self) -> None:
        if self._held and not self._paused and not self._goes_on:
            self._goes_on = True
            self._later(self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        until, looked_at = self._fed() + FED_AT_ONCE, 0
        for subscriber, lapses in list(islice(self._held.items(), AT_ONCE)):
            if self._paused or self._fed() >= until or looked_at >= LOOKED_AT_AT_ONCE:
                break
            del self._held[subscriber]
            for lapse in lapses:
                looked_at += subscriber.lapsed(lapse)
            subscriber.go_on()
        self._go_on_later()
