"""The stream that the gateways of a cluster share: published to by JetStream, and followed into a replica.

A message that is stored is published again by NATS, and comes here with its number. These numbers have no holes. So a
number that does not follow the one before shows that something was missed, and what was missed is caught up with. A
look at the stream, every second, shows what no message does: that the last ones were missed, or the stream is another.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import itemgetter
from typing import Final

import msgspec

from gateway import errors
from gateway.cluster import natswire
from gateway.cluster.jetstream import ACK_TIMEOUT, ApiError, Found, JetStream
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import AwayError, LateError, NatsError, NoRespondersError, TooLargeError
from gateway.cluster.replica import Replica, StrangeError, sealed
from gateway.cluster.stream import Done, Listener, Position, position_of, unavailable
from gateway.config import ConfigError
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.replies import SMALL
from gateway.telemetry.lines import CLUSTER_DEFECT, EVENT_REFUSED, EVENTS_JOINED, EVENTS_LOST, Line, Lines

logger = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds from one look at the stream to the next."""

AGAIN: Final = 0.2
"""Seconds from a look that came to nothing to the next."""

SOON: Final = 1.0
"""Seconds in which a message that the stream has must have come."""

WINDOW: Final = 4096
WINDOW_BYTES: Final = 16 << 20
"""How many messages, and bytes of them, may be on their way to NATS without being acknowledged.

A single message may be larger. A small one may go beyond these bytes, which at most doubles them: otherwise those who
publish much would leave no room to the others. NATS itself drops what is published too fast.
"""

EARLY_BYTES: Final = 16 << 20
"""How many bytes of messages are kept that come while earlier ones are caught up with. The oldest make room."""

TOPICS: Final = 1000
"""The topics of how many subjects are remembered."""

_HEADERS: Final = 300
"""Bytes that a message that is kept takes beside its payload."""


class _Sent(msgspec.Struct, eq=False, gc=False):
    """A message that NATS has not acknowledged. A struct is made in half the time of an object or a closure.

    The table that waits for the answer lets go of it, so the garbage collector need not see it.
    """

    stream: NatsStream
    epoch: str
    size: int
    done: Done

    def answered(self, error: NatsError | None, headers: bytes, text: bytes) -> None:
        """Take what `Nats.ask` has come to."""
        self.stream.answered(self, error, text)


class NatsStream:
    """A `stream.SharedStream`. `joined` and `lost` are to be called with each link of ``nats``.

    ``now`` returns the time as RFC 3339, ``clock`` in seconds since 1970.
    """

    def __init__(
        self,
        nats: Nats,
        jetstream: JetStream,
        replica: Replica,
        lines: Lines,
        *,
        now: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._nats = nats
        self._jetstream = jetstream
        self._replica = replica
        self._lines = lines
        self._now = now
        self._clock = clock
        self.position = replica.position
        self.expect = replica.expect
        self.since = replica.since
        self.oldest = replica.oldest
        self.forget = replica.forget
        self.watchers: list[Callable[[bool], None]] = []
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._nudged = asyncio.Event()
        self._subscription: bytes | None = None
        """The handle of the one to the messages of this epoch."""
        self._live = self._kept = b""
        """What their subjects begin with, and those that they are published to."""
        self._topics: dict[bytes, str] = {}
        """The topics of subjects that were heard lately."""
        self._created = ""
        self._following = False
        """Whether each message that comes is taken, because it is the one after the head."""
        self._known = False
        self._early: deque[tuple[int, str, bytes]] = deque()
        self._early_bytes = 0
        self._goals: list[tuple[int, asyncio.Future[None]]] = []
        """The numbers that are waited for, the lowest first, each until it is met or waited for no more."""
        self._unacknowledged = 0
        self._unacknowledged_bytes = 0

    # Its life

    async def connect(self, listener: Listener) -> None:
        """Hand each message to ``listener`` from now on; returns when all that NATS has kept is known here.

        Raises ConfigError if the stream cannot be as it is configured. A NATS that is away is waited for.
        """
        self._listener = self._replica.listener = listener
        self._ready = asyncio.get_running_loop().create_future()
        self.joined()
        await self._ready

    async def close(self) -> None:
        """Hand over no more messages. May be called twice, or before ``connect``."""
        self._listener = None
        self.lost()
        if self._subscription is not None:
            self._nats.unsubscribe(self._subscription)
            self._subscription = None

    def joined(self) -> None:
        """Follow the stream by this link of the client. Does nothing before `connect`."""
        if self._listener is not None and self._nats.info is not None:
            self._stop()
            self._task = asyncio.get_running_loop().create_task(self._attend(self._listener))

    def lost(self) -> None:
        """Take it that nothing is known of what comes now, because there is no link."""
        self._stop()
        self._be_known(False)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._following = False
        self._early.clear()
        self._early_bytes = 0

    @property
    def available(self) -> bool:
        """Whether it can be published to, and all that it has is known here."""
        return self._known and self._nats.info is not None

    def _be_known(self, known: bool) -> None:
        if known != self._known:
            self._known = known
            for watcher in self.watchers:
                watcher(known)

    # Publishing

    def publish(self, topic: str, data: bytes, owner: str = "") -> Awaitable[Position]:
        """Publish ``data``. What is returned has the position as soon as NATS has stored the message.

        Raises Refusal, here or when it is awaited: `UNAVAILABLE` and `OVERLOADED` if the message was not published, and
        never will be, `UNACKNOWLEDGED` if that is not known.
        """
        publishing: asyncio.Future[Position] = asyncio.get_running_loop().create_future()

        def done(result: Position | Refusal) -> None:
            if publishing.done():
                return  # nobody waits any more
            if isinstance(result, Refusal):
                publishing.set_exception(result)
                publishing.exception()  # nobody may ask
            else:
                publishing.set_result(result)

        self.send(topic, data, owner, done)
        return publishing

    def send(self, topic: str, data: bytes, owner: str, done: Done) -> None:
        """Do the same, and call ``done`` with the result. Without ``data`` subscribers are told of a gap."""
        if not self._known or self._nats.info is None:
            raise unavailable("there is no connection to it")
        size, waiting = len(data), self._unacknowledged
        if waiting and (waiting >= WINDOW or (size > SMALL and self._unacknowledged_bytes + size > WINDOW_BYTES)):
            detail = "NATS has yet to acknowledge what was published before"
            raise not_run(errors.OVERLOADED, detail, retryAfterMs=errors.RETRY_BUSY_MS)
        sent = _Sent(self, self._replica.epoch, size, done)
        now = self._now  # read before it is called: CPython 3.11 is slow to call what is an attribute of an instance
        try:
            self._nats.ask(self._kept + topic.encode(), sealed(now(), owner, data), sent.answered, ACK_TIMEOUT)
        except TooLargeError as error:
            raise not_run(errors.TOO_LARGE, str(error)) from None
        except AwayError as error:
            raise unavailable(str(error)) from None
        self._unacknowledged = waiting + 1
        self._unacknowledged_bytes += size

    def answered(self, sent: _Sent, error: NatsError | None, text: bytes) -> None:
        """Take NATS's answer to a message, or why there is none."""
        self._unacknowledged -= 1
        self._unacknowledged_bytes -= sent.size
        if error is None:
            try:
                number = self._jetstream.number_of(text)
            except NatsError as wrong:
                error = wrong
            else:
                done = sent.done
                done(position_of((sent.epoch, number)))
                return
        sent.done(self._refusal(error))

    def _refusal(self, error: NatsError) -> Refusal:
        if isinstance(error, NoRespondersError):  # there is no such stream any more
            self._nudged.set()
            return unavailable(str(error))
        if isinstance(error, ApiError) and error.not_stored:
            return unavailable(str(error))
        return Refusal(errors.UNACKNOWLEDGED, str(error), outcome=errors.UNKNOWN)

    # Following

    async def _attend(self, listener: Listener) -> None:
        """Look at the stream again and again, as long as there is this link."""
        checked = False
        told = ""
        while True:
            try:
                if not checked:
                    await self._jetstream.check()
                    checked = True
                await self._look(listener)
                told = ""
            except (NatsError, ConfigError) as error:
                self._be_known(False)
                if isinstance(error, ConfigError) and self._ready is not None and not self._ready.done():
                    self._ready.set_exception(error)
                    return
                if told != str(error):
                    told = str(error)
                    self._log(EVENTS_LOST, f"events are out of reach: {error}", {"reason": told})
            except Exception as defect:
                self._be_known(False)
                fields = {"subject": ""}
                self._lines.log(logger, CLUSTER_DEFECT, "", "events have a defect", fields=fields, exc_info=defect)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if self._known else AGAIN):
                    await self._nudged.wait()
            self._nudged.clear()

    async def _look(self, listener: Listener) -> None:
        """Compare the stream with what is known of it here. Raises NatsError if that could not be done."""
        replica = self._replica
        head = replica.head
        found = await self._jetstream.look()
        if found.epoch == replica.epoch and (found.created != self._created or found.last < head):
            found = await self._jetstream.renew()
        if found.epoch != replica.epoch:
            self._adopt(found, listener)
            found = await self._again(found)
        before = replica.head
        while not (self._following and await self._is_there(found.last)):
            found = await self._catch_up(found, listener)
        lapse = replica.caught_up(found.first, found.limit)
        listener.resume(lapse)
        if not self._known:
            self._be_known(True)
            fields = {"epoch": found.epoch, "offset": replica.head, "caughtUp": replica.head - before}
            self._log(EVENTS_JOINED, "events are within reach", fields | {"lapsed": lapse is not None})
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _adopt(self, found: Found, listener: Listener) -> None:
        """Follow another stream from now on, or another epoch of the same."""
        self._following = False
        self._early.clear()
        self._early_bytes = 0
        self._be_known(False)
        listener.pause()
        self._replica.reset(found.epoch)
        self._created = found.created
        if self._subscription is not None:
            self._nats.unsubscribe(self._subscription)
        self._topics.clear()
        self._live, self._kept = self._jetstream.live(found.epoch), self._jetstream.kept(found.epoch)
        self._subscription = self._nats.subscribe(self._live + b">", self._on_live)

    async def _again(self, found: Found) -> Found:
        """Look once more. Raises LateError if the stream is another one meanwhile."""
        again = await self._jetstream.look()
        if (again.epoch, again.created) != (found.epoch, found.created):
            raise LateError("the stream was made anew while it was looked at")
        return again

    async def _catch_up(self, found: Found, listener: Listener) -> Found:
        """Have all taken that was missed, and go on with what comes. Returns what the stream is after that."""
        replica = self._replica
        self._following = False
        self._be_known(False)
        listener.pause()
        replica.catch_up()
        if found.last > replica.head:
            await self._jetstream.replay(found.epoch, replica.head + 1, self._on_replayed)
            if not self._joins_up():  # there is no more, even if the last numbers were not among them
                replica.head = max(replica.head, found.last)
        self._following = True
        while self._early and self._following:
            number, topic, payload = self._early.popleft()
            self._early_bytes -= len(payload) + _HEADERS
            self._on_next(number, topic, payload)
        return await self._again(found)

    def _on_live(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take a message that NATS publishes again, or keep it as long as earlier ones are caught up with."""
        topic = self._topics.get(subject) or self._topic(subject)
        number = self._replica.head + 1
        # Nearly always. Not with `in`, which first tries to take what it looks for as a number.
        if self._following and headers.find(b"\r\nNats-Sequence: %d\r\n" % number) >= 0:
            try:  # as in _take(), without a call of it
                self._replica.take(topic, number, 0.0, payload)
            except StrangeError as error:
                self._leave_out(number, error)
            if self._goals:
                self._meet(number)
            return
        number = natswire.number(headers, b"Nats-Sequence")
        if self._following:
            self._on_next(number, topic, payload)
        else:
            self._keep(number, topic, payload)

    def _topic(self, subject: bytes) -> str:
        topic = subject[len(self._live) :].decode(errors="replace")
        if len(self._topics) >= TOPICS:
            self._topics.clear()
        self._topics[subject] = topic
        return topic

    def _on_next(self, number: int, topic: str, payload: bytes) -> None:
        head = self._replica.head
        if number == head + 1:
            self._take(topic, number, 0.0, payload)
        elif number > head:
            self._following = False
            self._keep(number, topic, payload)
            self._nudged.set()
        # else it was replayed before

    def _keep(self, number: int, topic: str, payload: bytes) -> None:
        self._early.append((number, topic, payload))
        self._early_bytes += len(payload) + _HEADERS
        while self._early_bytes > EARLY_BYTES:
            *_, oldest = self._early.popleft()
            self._early_bytes -= len(oldest) + _HEADERS

    def _on_replayed(self, topic: str, number: int, at: float, payload: bytes) -> bool:
        """Take a message that is caught up with. Returns whether that is enough."""
        if number > self._replica.head:
            self._take(topic, number, max(0.0, self._clock() - at), payload)
        return self._joins_up()

    def _joins_up(self) -> bool:
        """Return whether what has come meanwhile follows on what was caught up with."""
        return bool(self._early) and self._replica.head >= self._early[0][0] - 1

    def _take(self, topic: str, number: int, age: float, payload: bytes) -> None:
        try:
            self._replica.take(topic, number, age, payload)
        except StrangeError as error:
            self._leave_out(number, error)
        if self._goals:
            self._meet(number)

    def _leave_out(self, number: int, error: StrangeError) -> None:
        self._log(EVENT_REFUSED, f"an event is left out: {error}", {"offset": number})

    # Waiting for the head

    def knows(self, position: Position) -> bool:
        """Return whether all up to this position is known here."""
        return position.epoch != self._replica.epoch or position.offset <= self._replica.head

    async def reach(self, position: Position) -> None:
        """Wait until all up to this position is known here, but not for long."""
        if not self.knows(position):
            await self._is_there(position.offset)

    async def _is_there(self, number: int) -> bool:
        """Return whether the message with this number has come, or all before it has been caught up with, soon."""
        if self._replica.head < number:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            goal = number, reached
            insort(self._goals, goal, key=itemgetter(0))
            try:
                await asyncio.wait({reached}, timeout=SOON)
            finally:  # whoever waits may be cancelled
                if not reached.done():
                    self._goals.remove(goal)
        return self._replica.head >= number

    def _meet(self, number: int) -> None:
        """End the waits for messages up to this number."""
        while self._goals and self._goals[0][0] <= number:
            _, reached = self._goals.pop(0)
            reached.set_result(None)

    def _log(self, line: Line, message: str, fields: dict[str, object]) -> None:
        self._lines.log(logger, line, "", "%s", message, fields=fields)
