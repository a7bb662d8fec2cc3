"""Messages to send: valid ones, and what becomes of them. The same seed makes the same messages.

A message is bytes, and need not be UTF-8. What it is and what must become of it, `tests.fuzz.model` says.
"""

import json
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

RECENT: Final = 50
"""Earlier messages that a splice may take a part of."""

HUGE: Final = (
    b"1e400",
    b"-1E+99999",
    b"1e-400",
    b"9" * 40,
    b"-" + b"8" * 400,
    b"7" * 5000,
    b"18446744073709551616",
    b"-9223372036854775809",
    b"0.1e1",
    b"-0",
    b"-0.0",
    b"1" + b"0" * 309 + b".0",
)
NO_NUMBERS: Final = (b"NaN", b"-Infinity", b"01", b"1.", b".5", b"+1", b"0x10", b"1e", b"-", b"1_000", b"--1")
SURROGATES: Final = (
    rb"\ud83d",
    rb"\ude00",
    rb"\ude00\ud83d",
    rb"\ud83dx",
    rb"\ud83d\u0041",
    rb"\uD83D\uDE00",
    rb"\ud83d\ude00\ud83d",
    rb"\udfff\\",
    rb"\ud8",
    rb"\u",
    rb"\ud83d\ud83d\ude00",
)
NO_UTF8: Final = (b"\xff", b"\xc0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80")
CHARACTERS: Final = (
    *(
        "\0",
        "\x1f",
        "\x7f",
        "\x80",
        "\xa0",
        "é",
        "ß",
        "\u2028",
        "\ufeff",
        "\ufffd",
        "\uffff",
        "漢",
        "\U0001f600",
        "\U0010ffff",
    ),
    *('"', "\\", "/", "\b", "\n", "\t", "{", "]", ",", ":", "'"),
)
IDS: Final = (
    *(b"0", b"-0", b"1", b"-1", b"2147483648", b"9007199254740993", b"1" + b"0" * 400, b'""', b'"1"', b"null"),
    *(rb'"\u0041"', rb'"\ud83d\ude00"', b'"\xc3\xa9"', rb'"\\"', b'"' + b"i" * 2000 + b'"'),
)
NO_IDS: Final = (b"1.5", b"1.0", b"1e2", b"1E400", b"true", b"false", b"[]", b"[1]", b"{}", b'{"id":1}', rb'"\ud800"')
MEMBERS: Final = (b"jsonrpc", b"id", b"method", b"params", b"result", b"error", rb"\u0069d", b"ID", b"", b"x")
VALUES: Final = (
    *(b'"2.0"', b'"1.0"', b"2.0", b"null", b"true", b"0", b"-1.5", b'""', b'"gateway.ping"', b'"nobody.knows"'),
    *(b"[]", b"{}", b"[1]", b'{"a":1}', b'{"code":1,"message":"m"}', rb'"2\u002e0"', rb'"gateway\u002eping"'),
)
STRUCTURE: Final = b'[]{}",:\\ \t\n\r0123456789-+.eEtfnu'
NO_CONNECTION: Final = "00000000-0000-4000-8000-000000000000"

DEEPEST: Final = 2500
LONGEST: Final = 60_000


class Source:
    """Messages without end, from one seed."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self._recent: deque[bytes] = deque([b"{}"], maxlen=RECENT)
        self._number = 0

    def message(self) -> bytes:
        """The next message: a third as it should be, one in ten a batch, the others damaged once or more."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.34:
            message = self._valid()
        elif kind < 0.44:
            message = self._batch()
        else:
            message = self._valid() if kind < 0.9 else self._batch()
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                message = rng.choice(MUTATIONS)(self, message)[:LONGEST]
        self._recent.append(message)
        return message

    # Valid messages

    def _valid(self) -> bytes:
        rng = self._rng
        name, params = rng.choice(CALLS)(self)
        parts = [(b"jsonrpc", b'"2.0"'), (b"method", json.dumps(name).encode())]
        if params is not None:
            parts.append((b"params", self._render(params)))
        if rng.random() < 0.85:
            parts.append((b"id", self._id()))
        if rng.random() < 0.3:
            rng.shuffle(parts)
        blank = self._blank() if rng.random() < 0.1 else b""
        inner = (b"," + blank).join(b'"%b"%b:%b%b' % (key, blank, blank, value) for key, value in parts)
        return blank + b"{" + blank + inner + blank + b"}" + blank

    def _id(self) -> bytes:
        """Mostly one that was not there before, so that a reply belongs to one request."""
        if self._rng.random() < 0.1:
            return self._rng.choice(IDS)
        self._number += 1
        return b"%d" % self._number if self._rng.random() < 0.7 else b'"n%d"' % self._number

    def _batch(self) -> bytes:
        rng = self._rng
        size = rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 8, 12, 20, rng.choice((70, 99, 100, 101))))
        parts = [self._valid() if rng.random() < 0.8 else rng.choice(VALUES) for _ in range(size)]
        return b"[" + (b"," + self._blank()).join(parts) + b"]"

    def _blank(self) -> bytes:
        return bytes(self._rng.choices(b" \t\r\n", k=self._rng.randrange(4)))

    def _render(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=self._rng.random() < 0.5).encode()

    def ping(self) -> tuple[str, Any]:
        return "gateway.ping", self._params()

    def later(self) -> tuple[str, Any]:
        return "fuzz.later", self._params()

    def unknown(self) -> tuple[str, Any]:
        return self._rng.choice(("nobody.knows", "gateway.pin", "rpc", "\0", "é" * 300)), self._params()

    def other(self) -> tuple[str, Any]:
        return self._rng.choice(OTHERS)

    def _params(self) -> Any:
        choice = self._rng.random()
        if choice < 0.2:
            return None
        depth = self._rng.randrange(1, 4)
        return self._array(depth) if choice < 0.6 else self._object(depth)

    def _value(self, depth: int) -> Any:
        rng = self._rng
        choice = rng.randrange(8 if depth else 6)
        if choice == 0:
            return rng.choice((None, True, False))
        if choice == 1:
            return rng.randrange(-(10 ** rng.randrange(1, 25)), 10 ** rng.randrange(1, 25))
        if choice == 2:
            return rng.uniform(-1e6, 1e6)
        if choice < 6:
            return self._text()
        return self._array(depth - 1) if choice == 6 else self._object(depth - 1)

    def _array(self, depth: int) -> list[Any]:
        return [self._value(depth) for _ in range(self._rng.randrange(4))]

    def _object(self, depth: int) -> dict[str, Any]:
        return {self._text(): self._value(depth) for _ in range(self._rng.randrange(4))}

    def _text(self) -> str:
        rng = self._rng
        if rng.random() < 0.5:
            return rng.choice(("", "a", "params", "id", "0", "method"))
        text = "".join(rng.choices(CHARACTERS, k=rng.randrange(6)))
        return text * rng.choice((1, 1, 1, 1, 1, 200))

    # Damage

    def _at(self, message: bytes) -> int:
        return self._rng.randrange(len(message) + 1)

    def _insert(self, message: bytes, what: bytes) -> bytes:
        at = self._at(message)
        return message[:at] + what + message[at:]

    def flip_bit(self, message: bytes) -> bytes:
        changed = bytearray(message or b" ")
        # Bit 7 would nearly always make it no UTF-8: that costs a connection, so it is rarer than the others.
        bit = self._rng.choice((*range(7), *range(7), 7))
        changed[self._rng.randrange(len(changed))] ^= 1 << bit
        return bytes(changed)

    def change_byte(self, message: bytes) -> bytes:
        changed = bytearray(message or b" ")
        changed[self._rng.randrange(len(changed))] = self._rng.choice(STRUCTURE)
        return bytes(changed)

    def insert_byte(self, message: bytes) -> bytes:
        return self._insert(message, bytes([self._rng.choice(STRUCTURE)]))

    def remove(self, message: bytes) -> bytes:
        at = self._at(message)
        return message[:at] + message[at + self._rng.choice((1, 1, 2, 8)) :]

    def truncate(self, message: bytes) -> bytes:
        at = self._at(message)
        return message[:at] if self._rng.random() < 0.8 else message[at:]

    def splice(self, message: bytes) -> bytes:
        other = self._rng.choice(self._recent)
        return message[: self._at(message)] + other[self._at(other) :]

    def repeat(self, message: bytes) -> bytes:
        begin, end = sorted((self._at(message), self._at(message)))
        return message[:end] + message[begin:]

    def add_member(self, message: bytes) -> bytes:
        """One member more behind an opening brace or before a closing one: often a duplicate."""
        name, value = self._rng.choice(MEMBERS), self._rng.choice((*VALUES, *IDS))
        if self._rng.random() < 0.5:
            return message.replace(b"{", b'{"%b":%b,' % (name, value), 1)
        head, brace, tail = message.rpartition(b"}")
        return head + b',"%b":%b' % (name, value) + brace + tail

    def change_value(self, message: bytes) -> bytes:
        """Another value behind a colon."""
        return self._replace_value(message, self._rng.choice((*VALUES, *IDS, *NO_IDS)))

    def change_number(self, message: bytes) -> bytes:
        return self._replace_value(message, self._rng.choice((*HUGE, *NO_NUMBERS)))

    def _replace_value(self, message: bytes, value: bytes) -> bytes:
        colons = [at for at, byte in enumerate(message[:2000]) if byte == 0x3A]
        if not colons:
            return value
        at = self._rng.choice(colons) + 1
        ends = [end for end in (message.find(b",", at), message.find(b"}", at)) if end >= 0]
        return message[:at] + value + message[min(ends, default=len(message)) :]

    def rename(self, message: bytes) -> bytes:
        """A member goes, or has another's name."""
        name = self._rng.choice(MEMBERS[:4])
        return message.replace(b'"%b"' % name, b'"%b"' % self._rng.choice(MEMBERS), 1)

    def add_surrogate(self, message: bytes) -> bytes:
        return self._in_text(message, self._rng.choice(SURROGATES))

    def add_character(self, message: bytes) -> bytes:
        return self._in_text(message, self._rng.choice(CHARACTERS).encode())

    def _in_text(self, message: bytes, what: bytes) -> bytes:
        """Behind a quotation mark: half of them begin a string."""
        quotes = [at for at, byte in enumerate(message[:2000]) if byte == 0x22]
        at = self._rng.choice(quotes) + 1 if quotes else 0
        return message[:at] + what + message[at:]

    def break_utf8(self, message: bytes) -> bytes:
        return self._insert(message, self._rng.choice(NO_UTF8)) if self._rng.random() < 0.2 else message[::-1]

    def nest(self, message: bytes) -> bytes:
        """Deep arrays or objects around it, or in place of a value; now and then not closed."""
        rng = self._rng
        levels = rng.choice((2, 10, 99, 400, 499, 900, 1000, rng.randrange(1, DEEPEST)))
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")))
        missing = rng.choice((0, 0, 0, 1, levels))
        if rng.random() < 0.3:
            return opening * levels + message[:500] + closing * (levels - missing)
        return self._replace_value(message, opening * levels + b"1" + closing * (levels - missing))

    def wrap(self, message: bytes) -> bytes:
        """In a batch, or twice in one, or in a batch in a batch."""
        return self._rng.choice((b"[%b]", b"[%b,1]", b"[[%b]]", b"[%b,", b"[,%b]", b"[%b]]")) % message

    def join(self, message: bytes) -> bytes:
        return message + self._rng.choice((b"", b" ", b",", b"\n", b"\0", b"\x0c", b"null")) + self._valid()

    def surround(self, message: bytes) -> bytes:
        around = self._rng.choice((b"\xef\xbb\xbf", b"\xc2\xa0", b"\0", b"\x0b", b" ", b"/**/", b"\xe2\x80\xa8", b"//"))
        return around + message if self._rng.random() < 0.5 else message + around

    def replace(self, message: bytes) -> bytes:
        """Something else altogether."""
        rng = self._rng
        return rng.choice(
            (
                b"",
                b" ",
                b"[]",
                b"{}",
                b"[[]]",
                b"null",
                b'"',
                rng.randbytes(rng.randrange(8)) if rng.random() < 0.2 else b"-",
                rng.choice((*HUGE, *NO_NUMBERS)),
                b"[" + rng.choice(HUGE) + b"]",
                b"[" * rng.randrange(DEEPEST * 4),
                bytes(rng.choices(STRUCTURE, k=rng.randrange(60))),
                b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (self._id(), rng.choice(VALUES)),
                b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (self._id(), rng.choice(VALUES)),
                b'{"jsonrpc":"2.0","method":"fuzz.later","id":%b}' % rng.choice(IDS),
                b'{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":%b}}' % rng.choice(IDS),
            )
        )


CALLS: Final[tuple[Callable[[Source], tuple[str, Any]], ...]] = (
    *(Source.ping,) * 5,
    *(Source.later,) * 2,
    Source.unknown,
    Source.other,
)
OTHERS: Final[tuple[tuple[str, Any], ...]] = (
    ("gateway.info", None),
    ("gateway.info", [1]),
    ("connection.list", {"limit": 2}),
    ("connection.list", {"limit": 0}),
    ("connection.list", {"role": "operator", "after": ""}),
    ("connection.list", [3, "", None, 4]),
    ("connection.get", {"connId": NO_CONNECTION}),
    ("connection.get", [NO_CONNECTION]),
    ("connection.get", {"connId": 5}),
    ("connection.close", {"connId": "\0" * 500, "reason": "é"}),
    ("connection.close", None),
    ("connection.history", {"limit": 3}),
    ("connection.history", {"limit": 1e9, "connId": NO_CONNECTION}),
    ("rpc.cancel", {"id": 1}),
    ("rpc.cancel", {"id": "n1"}),
    ("rpc.cancel", {"identity": 1}),
    ("rpc.discover", {}),
)
MUTATIONS: Final[tuple[Callable[[Source, bytes], bytes], ...]] = (
    *(Source.flip_bit, Source.change_byte) * 2,
    *(Source.insert_byte, Source.remove, Source.truncate, Source.splice, Source.repeat),
    *(Source.add_member, Source.change_value, Source.change_number, Source.rename) * 2,
    *(Source.add_surrogate, Source.add_character) * 2,
    *(Source.break_utf8, Source.nest, Source.wrap, Source.join, Source.surround, Source.replace),
)
