"""What is asked of JetStream, as requests by the client of NATS: one stream, publishing to it, replaying it.

The stream has the name of the cluster. Its subjects and those that it republishes to have its epoch in them, a random
text, so whatever is left of another stream of this name is not taken for one of its own.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from gateway.cluster import natswire
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import LateError, NatsError, NoRespondersError
from gateway.config import ConfigError

API_TIMEOUT: Final = 2.0
"""Seconds that an answer of JetStream's API may take."""

ACK_TIMEOUT: Final = 5.0
"""Seconds after which a publish counts as not acknowledged."""

QUIET: Final = 3.0
"""Seconds without a message after which a replay is given up."""

BATCH: Final = 500
"""How many messages of a replay are asked for at a time."""

_SECOND: Final = 10**9
_SHORTEST_AGE: Final = 10**8
"""Nanoseconds, as times are for JetStream: it takes no shorter age."""

_NOT_FOUND: Final = 10059
_NAME_IN_USE: Final = 10058
_NOT_STORED: Final = frozenset({10023, 10028, 10047, 10167})
"""Refusals before anything is stored: no resources, no memory, no storage, too many requests."""
_NO_JETSTREAM: Final = frozenset({10039, 10076})
_NO_MORE: Final = frozenset({404, 408})
_FULL: Final = 409
"""What a consumer says when it has no more messages, or none that fits into the bytes that it was asked for."""
_ACK_WORDS: Final = 9
"""Words of the reply subject of a message that a consumer has delivered."""
_LATER: Final = 503
"""The status of a refusal that another attempt may change."""


class ApiError(NatsError):
    """JetStream has refused a request. ``later``: another attempt may succeed. ``not_stored``: nothing was stored."""

    def __init__(self, error: _Error) -> None:
        super().__init__(f"JetStream: {error.description or 'an error without a description'} ({error.err_code})")
        self.later = error.code == _LATER
        self.not_stored = error.err_code in _NOT_STORED
        self.err_code = error.err_code


class Found(NamedTuple):
    """What the stream is. It has messages from the number ``first`` on, and the latest has the number ``last``.

    Of each topic it keeps ``limit`` messages at most. ``created`` differs from that of all other streams.
    """

    epoch: str
    created: str
    first: int
    last: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the stream is to be, from the configuration; see `config.schema`."""

    storage: str
    replicas: int
    count: int
    age: float
    octets: int

    def limits(self) -> dict[str, Any]:
        """Return the members of JetStream's configuration that may change. What keeps nothing needs one message."""
        keeps = bool(self.count and self.age and self.octets)
        return {
            "max_msgs_per_subject": self.count if keeps else 1,
            "max_age": max(_SHORTEST_AGE, int(self.age * _SECOND)),
            "max_bytes": self.octets if keeps else -1,
            "max_msgs": -1 if keeps else 1,
            "discard": "old",
            "num_replicas": self.replicas,
        }


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    first_seq: int = 0
    last_seq: int = 0


class _Reply(msgspec.Struct):
    """What is needed of the answers of the whole API."""

    error: _Error | None = None
    config: dict[str, Any] = {}
    state: _State = msgspec.field(default_factory=_State)
    created: str = ""
    num_pending: int = 0
    name: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _Error | None = None


_reply: Final = msgspec.json.Decoder(_Reply).decode
_ack: Final = msgspec.json.Decoder(_Ack).decode

_NEVER: Final = b"\0"
"""What nothing begins with that JetStream says."""

_BRACE: Final = ord("}")
_ZERO: Final = ord("0")
_SHORT: Final = 1000
"""Bytes of a usual acknowledgement: its number has no more digits than Python takes at once."""

Take = Callable[[str, int, float, bytes], bool]
"""Takes a topic, a message's number, when it was published in seconds since 1970, and its payload.

Returns whether it is the last one that is wanted.
"""


class JetStream:
    """The stream of the cluster ``name``. ``new_epoch`` returns a text that was never an epoch before."""

    def __init__(self, nats: Nats, name: str, wanted: Wanted, new_epoch: Callable[[], str]) -> None:
        self._nats = nats
        self._name = name
        self._wanted = wanted
        self._new_epoch = new_epoch
        self._ours = re.compile(rf"{re.escape(name)}\.live\.([^.]+)\.>")
        self._adjusted = False
        self._usual = _NEVER
        """What acknowledgements begin with, up to the number that ends them, as the last one that was decoded."""

    def live(self, epoch: str) -> bytes:
        """Return what the subjects of an epoch's messages begin with, as they are published again."""
        return f"{self._name}.live.{epoch}.".encode()

    def kept(self, epoch: str) -> bytes:
        """Return what the subjects of an epoch's messages begin with, as they are published."""
        return f"{self._name}.event.{epoch}.".encode()

    async def check(self) -> None:
        """Raise ConfigError if there is no JetStream for us at this server, and NatsError if that is not known."""
        try:
            await self._call("INFO", None)
        except NatsError as error:
            info = self._nats.info
            here = info is None or info.jetstream or not isinstance(error, NoRespondersError)
            if here and not (isinstance(error, ApiError) and error.err_code in _NO_JETSTREAM):
                raise
            right = "a NATS server, and an account, with JetStream"
            raise ConfigError("configuration", "cluster.nats", f"there is no JetStream: {error}", right) from None

    async def look(self) -> Found:
        """Return what the stream is now. If there is none, make one; the first time adjust its limits.

        Raises NatsError, and ConfigError for what no other attempt would change.
        """
        reply = await self._read()
        while reply is None:
            try:
                reply = await self._make("STREAM.CREATE", self._config(self._new_epoch()))
            except ApiError as error:
                if error.err_code != _NAME_IN_USE:
                    raise
                reply = await self._read()  # another gateway was faster
        if not self._adjusted:
            reply = await self._adjust(reply)
            self._adjusted = True
        return self._found(reply)

    async def renew(self) -> Found:
        """Give the stream another epoch, because its numbers are not what they were. Its messages are lost."""
        reply = await self._read()
        if reply is None:
            return await self.look()
        return self._found(await self._make("STREAM.UPDATE", reply.config | self._subjects(self._new_epoch())))

    async def _read(self) -> _Reply | None:
        try:
            return await self._call(f"STREAM.INFO.{self._name}", None)
        except ApiError as error:
            if error.err_code != _NOT_FOUND:
                raise
            return None

    async def _adjust(self, reply: _Reply) -> _Reply:
        """Give the stream the limits that are wanted.

        If it is to keep more messages of a topic than before, no gateway can tell any more which topics have lost some.
        So it gets another epoch, too.
        """
        self._found(reply)
        storage, limits = reply.config.get("storage"), self._wanted.limits()
        if storage != self._wanted.storage:
            wrong = f'the stream "{self._name}" of NATS has the storage "{storage}"'
            raise ConfigError("configuration", "cluster.storage", wrong, f'"{storage}", or delete the stream')
        if all(reply.config.get(key) == value for key, value in limits.items()):
            return reply
        if limits["max_msgs_per_subject"] > reply.config.get("max_msgs_per_subject", 0):
            limits |= self._subjects(self._new_epoch())
        return await self._make("STREAM.UPDATE", reply.config | limits)

    async def _make(self, what: str, config: dict[str, Any]) -> _Reply:
        try:
            return await self._call(f"{what}.{self._name}", config)
        except ApiError as error:
            if error.later or error.err_code == _NAME_IN_USE:
                raise
            right = "values of [events] and [cluster] that its JetStream has room for"
            raise ConfigError("configuration", "cluster", f'the stream "{self._name}": {error}', right) from None

    async def _call(self, what: str, body: object) -> _Reply:
        payload = b"" if body is None else msgspec.json.encode(body)
        _, text = await self._nats.request(f"$JS.API.{what}".encode(), payload, API_TIMEOUT)
        reply = decoded(_reply, text)
        if reply.error is not None:
            raise ApiError(reply.error)
        return reply

    def _config(self, epoch: str) -> dict[str, Any]:
        fixed = {
            "name": self._name,
            "storage": self._wanted.storage,
            "retention": "limits",
            # Messages go by the limits alone: otherwise no gateway could tell what is missing.
            "deny_delete": True,
            "deny_purge": True,
            "duplicate_window": _SHORTEST_AGE,
        }
        return fixed | self._subjects(epoch) | self._wanted.limits()

    def _subjects(self, epoch: str) -> dict[str, Any]:
        kept, live = self.kept(epoch).decode() + ">", self.live(epoch).decode() + ">"
        return {"subjects": [kept], "republish": {"src": kept, "dest": live}}

    def _found(self, reply: _Reply) -> Found:
        again = reply.config.get("republish")
        found = self._ours.fullmatch(str(again.get("dest"))) if isinstance(again, dict) else None
        if found is None or reply.config.get("subjects") != self._subjects(found[1])["subjects"]:
            wrong = f'NATS has a stream "{self._name}" that is not a gateway\'s'
            raise ConfigError("configuration", "cluster.name", wrong, "another name, or delete the stream")
        first, last = reply.state.first_seq, reply.state.last_seq
        return Found(found[1], reply.created, max(1, first), last, reply.config.get("max_msgs_per_subject", 0))

    def number_of(self, answer: bytes) -> int:
        """Return the number that a message has got, from the answer to it. Raises NatsError if it has got none.

        The message was published to a subject that begins as `kept` says and ends with its topic, within `ACK_TIMEOUT`.
        """
        usual, end = self._usual, len(answer) - 1
        number = answer[len(usual) : end]
        if (
            number.isdigit()
            and answer.startswith(usual)
            and answer[end] == _BRACE
            and end < _SHORT
            and number[0] != _ZERO
        ):
            return int(number)
        ack = decoded(_ack, answer)
        if ack.error or ack.seq < 1:
            raise ApiError(ack.error or _Error())
        head, colon, number = answer[:end].rpartition(b":")
        if number == b"%d" % ack.seq:
            self._usual = head + colon
        return ack.seq

    async def replay(self, epoch: str, first: int, take: Take) -> None:
        """Have all messages of an epoch taken from the number ``first`` on, until there is no more, or enough.

        Raises NatsError, and LateError if nothing comes any more.
        """
        inbox = f"{self._name}.replay.{secrets.token_hex(8)}".encode()
        replay = _Replay(self._nats, inbox, self.kept(epoch), take)
        handle = self._nats.subscribe(inbox + b".*", replay.on_message)
        try:
            reply = await self._call(f"CONSUMER.CREATE.{self._name}", self._consumer(epoch, first))
            if reply.num_pending:
                await replay.run(f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{reply.name}".encode())
        finally:
            self._nats.unsubscribe(handle)

    def _consumer(self, epoch: str, first: int) -> dict[str, Any]:
        """Return the request for a consumer that is forgotten when it is no longer asked."""
        consumer = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "filter_subject": self.kept(epoch).decode() + ">",
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": 5 * _SECOND,
            "mem_storage": True,
            "num_replicas": 1,
        }
        return {"stream_name": self._name, "config": consumer}


class _Replay:
    """Asks a consumer for `BATCH` messages at a time, which come below ``inbox``, and takes them."""

    def __init__(self, nats: Nats, inbox: bytes, kept: bytes, take: Take) -> None:
        self._nats = nats
        self._inbox = inbox
        self._start = len(kept)
        self._take = take
        self._next = b""
        self._asked = 0
        self._left = 0
        """How many messages are still to come of those that were asked for."""
        self._moved = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, subject: bytes) -> None:
        """Ask at this subject until it is over. Raises LateError if nothing comes for too long."""
        self._next = subject
        self._ask()
        while not (await asyncio.wait({self._over}, timeout=QUIET))[0]:
            if not self._moved:
                raise LateError(f"no message of a replay within {QUIET:g} s")
            self._moved = False
        self._over.result()

    def _ask(self) -> None:
        """Ask for the next messages. They are no more bytes than two messages may have, so none is too large."""
        self._asked += 1
        self._left = BATCH
        largest = 0 if self._nats.info is None else self._nats.info.max_payload
        wanted = {"batch": BATCH, "max_bytes": 2 * largest, "no_wait": True}
        self._nats.publish(self._next, msgspec.json.encode(wanted), b"%b.%d" % (self._inbox, self._asked))

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take what the consumer delivers, or what it says instead."""
        if self._over.done():
            return
        status = natswire.status(headers)
        if not status:
            self._moved = True
            self._on_taken(subject, reply, payload)
        elif subject != b"%b.%d" % (self._inbox, self._asked):
            pass  # it says that it has done what it was asked for before
        elif status == _FULL and self._left < BATCH:
            self._ask()
        elif status in _NO_MORE:
            self._over.set_result(None)
        else:
            self._over.set_exception(LateError(f"JetStream has ended a replay ({status})"))

    def _on_taken(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        words = reply.split(b".")
        if len(words) > _ACK_WORDS:  # with the domain and the account
            del words[2:4]
        number, at, pending = int(words[5]), int(words[7]), int(words[8])
        topic = subject[self._start :].decode(errors="replace")
        self._left -= 1
        if self._take(topic, number, at / _SECOND, payload) or not pending:
            self._over.set_result(None)
        elif not self._left:
            self._ask()


Answer = TypeVar("Answer")


def decoded(decode: Callable[[bytes], Answer], text: bytes) -> Answer:
    """Return an answer of JetStream. Raises NatsError if it cannot be read."""
    try:
        return decode(text)
    except msgspec.DecodeError:
        raise NatsError(f"it is not JetStream that answers: {text[:60]!r}") from None
