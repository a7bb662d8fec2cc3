"""What a gateway must answer to one text message, decided by Python's own json. Knows nothing of `gateway`.

Python's json is made strict here: no NaN, no lone surrogates, whole texts only. Numbers stay text, so that none is too
large. JSON-RPC is read by its specification (jsonrpc.org/specification, the numbers below are its sections), and where
that leaves a choice, by docs/protocol.md.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from gateway.rpc.jsonrpc import MAX_ID
from tests.fuzz.matching import strangers

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
NOT_FOUND: Final = -32004
CONFLICT: Final = -32007
OVERLOADED: Final = -32009
CANCELLED: Final = -32800

MAX_BATCH: Final = 100
MAX_IN_FLIGHT: Final = 64
"""The defaults of `limits.max_batch` and `limits.max_in_flight`."""

DEEP: Final = 500
"""From this nesting on a message may be refused as nested too deeply; below it must not be."""

ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
ECHOES: Final = frozenset({"gateway.ping", "fuzz.later"})
SLOW: Final = frozenset({"fuzz.later", "rpc.discover"})
"""Those that are tasks: their ids stay in flight for a while."""

_NULL: Final = "null"
_INTEGER: Final = re.compile(r"-?[0-9]+")
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Pairs(list[tuple[str, Any]]):
    """A JSON object with all its members: a dictionary would hide duplicates."""


class Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=_refuse
)


def parse(text: str) -> Any:
    """Decode one JSON text: objects to `Pairs`, numbers to `Number`. ValueError where it is none (RFC 8259)."""
    value = _decoder.decode(text)
    if "\\u" in text:
        # A lone surrogate is a string that UTF-8 cannot hold.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def members(text: str) -> Iterator[tuple[str, str]]:
    """The members of an object, in order, duplicates included: name, and value as it is written."""
    at = _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "}":
        name, at = _decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = _decoder.raw_decode(text, begin)
        yield name, text[begin:end]
        at = _skip(text, end)
        at += text[at] == ","


def elements(text: str) -> Iterator[str]:
    """The elements of an array as they are written."""
    at = _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "]":
        _, end = _decoder.raw_decode(text, at)
        yield text[at:end]
        at = _skip(text, end)
        at += text[at] == ","


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()


def depth(text: str) -> int:
    """How deeply arrays and objects are nested, as far as the text can be read at all."""
    if text.count("[") + text.count("{") <= DEEP:
        return 0
    now = most = 0
    for bracket in _BRACKETS.findall(text):
        if bracket in ("[", "{"):
            now += 1
            most = max(most, now)
        elif bracket in ("]", "}"):
            now -= 1
    return most


class Got(NamedTuple):
    """One reply. `id` and `result` as they are written; `code` is None where it is a result."""

    id: str
    code: int | None
    result: str

    def __str__(self) -> str:
        return f"a result {self.result:.80}" if self.code is None else str(self.code)


class Malformed(Exception):
    """What the gateway has sent is no JSON-RPC response; the text says why."""


def read_reply(text: str) -> Got | list[Got]:
    """Read what the gateway has sent: one reply, or those to a batch. Raises Malformed."""
    try:
        value = parse(text)
    except ValueError as error:
        raise Malformed(f"a reply is not JSON: {error}") from None
    if not isinstance(value, list) or isinstance(value, Pairs):
        return _read_one(text)
    if not value:
        raise Malformed("an empty array")
    return [_read_one(element) for element in elements(text)]


def _read_one(text: str) -> Got:
    if not isinstance(parse(text), Pairs):
        raise Malformed("a reply is no object")
    found = dict(members(text))
    names = set(found)
    if found.get("jsonrpc") != '"2.0"' or "id" not in names or not is_id(found["id"]):
        raise Malformed('a reply without "jsonrpc" or a proper "id"')
    if names == {"jsonrpc", "id", "result"}:
        return Got(found["id"], None, found["result"])
    if names != {"jsonrpc", "id", "error"}:
        raise Malformed(f"a reply with {sorted(names)}")
    error = json.loads(found["error"])
    match error:
        case {"code": int(code), "message": str(), "data": {"code": str(), "temporary": bool(), **more}}:
            if code == OVERLOADED and not isinstance(more.get("retryAfterMs"), int):
                raise Malformed("-32009 without retryAfterMs")
            if error["data"]["temporary"] and more.get("outcome") not in ("not_delivered", "unknown"):
                raise Malformed("a temporary error without an outcome")
            return Got(found["id"], code, "")
    raise Malformed(f"an error without code, message or data: {found['error']}")


def is_id(raw: str) -> bool:
    """Whether a valid JSON value may be an id: a string, an integer or null (4), not longer than the gateway takes."""
    return len(raw.encode()) <= MAX_ID and (raw[0] == '"' or raw == _NULL or _INTEGER.fullmatch(raw) is not None)


@dataclass(frozen=True, slots=True)
class Reply:
    """One acceptable reply. `codes` has None where a result is; `result` None: any."""

    id: str
    codes: frozenset[int | None]
    result: str | None = None
    request: bool = False
    """Whether it is a well-formed request: then its id may be taken, or be cancelled."""

    def __str__(self) -> str:
        codes = " or ".join("a result" if code is None else str(code) for code in sorted(self.codes, key=str))
        return codes if self.result is None else f"{codes} {self.result:.80}"

    def accepts(self, got: Got, burst: "Burst") -> bool:
        """Whether this is the reply."""
        if got.id != self.id:
            return False
        if got.code in self.codes:
            return got.code is not None or self.result is None or self.result == got.result
        return self.request and burst.excuses(got)


@dataclass(frozen=True, slots=True)
class Expected:
    """What may become of one message: silence, one of some replies, or an array of the replies to these."""

    silence: bool = False
    replies: tuple[Reply, ...] = ()
    batch: tuple["Expected", ...] | None = None

    def __str__(self) -> str:
        """Without ids: the like findings of a run are counted together."""
        if self.batch is not None:
            return f"an array for {len(self.batch)}"
        return " or ".join(map(str, self.replies)) or "silence"

    def accepts(self, got: Got | list[Got], burst: "Burst") -> bool:
        """Whether this may be the answer."""
        if isinstance(got, list):
            return self.batch is not None and unmatched(self.batch, got, burst) == ([], [])
        return any(reply.accepts(got, burst) for reply in self.replies)

    @property
    def may_be_silent(self) -> bool:
        """Whether no answer is right."""
        if self.batch is not None and all(one.may_be_silent for one in self.batch):
            return True
        return self.silence


@dataclass(slots=True)
class Burst:
    """Messages that are in flight together: what they have to do with each other.

    asked: how many requests have this id. slow: those of them that stay in flight.
    """

    asked: Counter[str] = field(default_factory=Counter)
    slow: Counter[str] = field(default_factory=Counter)
    cancels: bool = False
    cut: bool = False
    """The connection ends with this burst: who is still in flight then is not answered."""

    def note(self, name: str, identity: str | None) -> None:
        """One request or notification."""
        self.cancels = self.cancels or name == "rpc.cancel"
        if identity is not None:
            self.asked[identity] += 1
        if name in SLOW:
            self.slow[identity or ""] += 1

    def excuses(self, got: Got) -> bool:
        """Whether the other messages explain this refusal."""
        if got.code == CONFLICT:
            return bool(self.slow[got.id]) and self.asked[got.id] > 1
        if got.code == CANCELLED:
            return bool(self.slow[got.id]) and self.cancels
        return got.code == OVERLOADED and self.slow.total() >= MAX_IN_FLIGHT


class Model:
    """Knows the methods that there are."""

    def __init__(self, methods: Iterable[str]) -> None:
        self._methods = frozenset(methods)

    def expect(self, text: str, burst: Burst) -> Expected:
        """What the gateway may do with one text message. Notes in `burst` what it is."""
        deep = depth(text) > DEEP
        try:
            value = parse(text)
        except (ValueError, RecursionError):
            return _refused(PARSE_ERROR, INVALID_REQUEST) if deep else _refused(PARSE_ERROR)
        expected = self._whole(text, value, burst)
        if deep:
            return Expected(expected.silence, (*expected.replies, *_refused(INVALID_REQUEST).replies), expected.batch)
        return expected

    def _whole(self, text: str, value: Any, burst: Burst) -> Expected:
        if isinstance(value, Pairs) or not isinstance(value, list):
            return self._element(text, value, burst)
        if not 1 <= len(value) <= MAX_BATCH:
            return _refused(INVALID_REQUEST)
        slow = burst.slow.total()
        batch = tuple(self._element(raw, one, burst) for raw, one in zip(elements(text), value, strict=True))
        return Expected(burst.cut and burst.slow.total() > slow, batch=batch)

    def _element(self, text: str, value: Any, burst: Burst) -> Expected:
        if not isinstance(value, Pairs):
            return _refused(INVALID_REQUEST)
        written = list(members(text))
        last = dict(written)
        expected = self._object(last, dict(value), burst)
        names = [name for name, _ in written if name in ENVELOPE]
        if len(names) == len(set(names)):
            return expected
        # Which of two like members counts is nobody's word (RFC 8259 section 4): the last one, or none.
        ids = {raw for name, raw in written if name == "id" and is_id(raw)} | {_NULL}
        return Expected(
            expected.silence,
            (*expected.replies, *(Reply(one, frozenset({INVALID_REQUEST})) for one in sorted(ids))),
        )

    def _object(self, raw: dict[str, str], value: dict[str, Any], burst: Burst) -> Expected:
        identity = raw.get("id")
        valid_id = identity is not None and is_id(identity)
        # What is meant as an answer is refused under null: its id is not one of the peer's own.
        own = identity is not None and valid_id and ("method" in raw or not {"result", "error"} & raw.keys())
        invalid = _refused(INVALID_REQUEST, identity=identity if identity is not None and own else _NULL)
        if raw.get("jsonrpc", "")[:1] != '"' or value["jsonrpc"] != "2.0":
            return invalid
        if "method" not in raw:
            # A response (5): nobody has asked, so it is dropped.
            is_response = valid_id and ("result" in raw) != ("error" in raw)
            return Expected(silence=True) if is_response else invalid
        if raw["method"][0] != '"' or (identity is not None and not valid_id):
            return invalid
        if "params" in raw and raw["params"][0] not in "[{":
            return invalid
        name = value["method"]
        burst.note(name, identity)
        if identity is None:
            return Expected(silence=True)
        reply = self._answer(name, identity, raw.get("params", _NULL))
        return Expected(burst.cut and name in SLOW, (reply,))

    def _answer(self, name: str, identity: str, params: str) -> Reply:
        if name not in self._methods:
            return Reply(identity, frozenset({METHOD_NOT_FOUND}), request=True)
        if name in ECHOES:
            return Reply(identity, frozenset({None}), params, request=True)
        codes: set[int | None] = {None, INVALID_PARAMS}
        if name in ("connection.get", "connection.close"):
            codes.add(NOT_FOUND)
        return Reply(identity, frozenset(codes), request=True)


def _refused(*codes: int, identity: str = _NULL) -> Expected:
    return Expected(replies=(Reply(identity, frozenset(codes)),))


def unmatched(
    expected: Sequence[Expected], got: Sequence[Got | list[Got]], burst: Burst
) -> tuple[list[int], list[int]]:
    """Give each reply to one message. Returns the messages that miss one, and the replies that none explains.

    Replies nearly always come in the order of the messages, but need not: where that order does not do, any will.
    """
    if _at_first_sight(expected, got, burst):
        return [], []
    obliged = [place for place, one in enumerate(expected) if not one.may_be_silent]
    return strangers(len(expected), len(got), lambda place, index: expected[place].accepts(got[index], burst), obliged)


def _at_first_sight(expected: Sequence[Expected], got: Sequence[Got | list[Got]], burst: Burst) -> bool:
    """Whether all is well when each reply goes to the first message that takes it."""
    waiting = list(expected)
    for reply in got:
        for place, one in enumerate(waiting):
            if one.accepts(reply, burst):
                del waiting[place]
                break
        else:
            return False
    return all(one.may_be_silent for one in waiting)
