"""How an event looks in the log: as a line of JSON, or of text."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter

from gateway.text import json_plain, plain

OWN = "gateway"
"""The logger above all of the gateway's own."""

_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
_SHORT_LEVELS = {
    "debug": "DEBUG",
    "info": "INFO ",
    "warning": "WARN ",
    "error": "ERROR",
    "critical": "CRIT ",
}
_CONTROL = re.compile("[\\x00-\\x1f]")
"""What JSON does not have within a text, and msgspec writes nowhere. Beside a text it may be blank space."""

_ASCII_CONTROLS = bytes(range(0x20)) + b"\x7f"

_MILLISECONDS = tuple(f".{number:03d}" for number in range(1000))
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_NOT_FIELDS = frozenset(RESERVED_ATTRS) | {"event"}
_NOT_BRIEF = _NOT_FIELDS | {"time", "level", "logger"}


class Kind(Protocol):
    """A kind of lines: all of them have one event and one level. Equal only to itself."""

    @property
    def event(self) -> str:
        """The name of the event."""

    @property
    def level(self) -> int:
        """The level, as `logging` has it."""


class JsonFormatter(MsgspecFormatter):
    """Formats a record as one JSON object: `time`, `level`, `logger`, `event`, `message`, then the event's own fields.

    `time` is RFC 3339 in UTC with milliseconds. A record without an event, such as another library's, has the
    event `log`. A traceback is one string, in the field `traceback`. A value that JSON cannot express becomes
    text. A field with the name of one of the first five gets an underscore after its name. Characters that are not
    printable, such as U+2028, U+0085 and what changes the direction of writing, are escaped: in every viewer a line is
    one line, and reads as it was written.
    """

    def __init__(self) -> None:
        super().__init__(json_default=_text)
        self._time = _Clock("%Y-%m-%dT%H:%M:%S", time.gmtime)
        self._encode = msgspec.json.Encoder(enc_hook=_text).encode
        self._heads: dict[tuple[Kind, str], bytes] = {}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline. It is one line, whatever the fields have. Never raises."""
        head = {
            "time": self._time(record.created) + "Z",
            "level": _named(record.levelno),
            "logger": record.name,
            "event": record.__dict__.get("event", "log"),
            "message": _message(record),
        }
        fields = _fields(record)
        if record.exc_info or record.exc_text:
            fields["traceback"] = _traceback(self, record)
        line = head | fields
        if len(line) < len(head) + len(fields):
            line = head | {f"{name}_" if name in head else name: value for name, value in fields.items()}
        try:
            text = self.jsonify_log_record(line)
        except Exception:  # a value's own __str__ has failed, or JSON or UTF-8 cannot express a value
            text = ""
        if _is_printable(text) and text:  # nearly always
            return text
        if not text or _CONTROL.search(text):  # msgspec.Raw goes out as it is, line breaks included
            text = self.jsonify_log_record({_text(name): _encodable(value) for name, value in line.items()})
        return json_plain(text)

    def brief(self, created: float, kind: Kind, logger: str, text: str, fields: Mapping[str, object]) -> bytes | None:
        """Return the line of an event, with its newline, without a record: in a third of the time.

        It is what `format` makes of a record of ``logger`` with the same message and fields. Returns None if only
        `format` can make it, because there is something to escape, to rename or to leave out. It remembers the kinds
        that it has seen: the program has few.
        """
        if not fields or not _NOT_BRIEF.isdisjoint(fields):
            return None
        try:
            head = self._heads.get((kind, logger)) or self._head(kind, logger)
            message, rest = self._encode(text), self._encode(fields)
        except Exception:  # as in `format`
            return None
        line = b'{"time":"%bZ"%b%b,%b\n' % (self._time(created).encode(), head, message, rest[1:])
        if not line.isascii() or b"\x7f" in line:
            return None
        # In these JSON has no other control characters. msgspec.Raw goes out as it is.
        plain_types = _PLAIN_TYPES.issuperset(map(type, fields.values()))
        return line if plain_types or len(line.translate(None, _ASCII_CONTROLS)) == len(line) - 1 else None

    def _head(self, kind: Kind, logger: str) -> bytes:
        names = {"level": _named(kind.level), "logger": logger, "event": kind.event}
        head = self._heads[kind, logger] = b',%b,"message":' % self._encode(names)[1:-1]
        return head


class TextFormatter(logging.Formatter):
    """Formats a record for a terminal: local time, level, event, fields as `name=value`, message; then the traceback.

    Characters that are not printable are escaped, so that no peer's text can control the terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._time = _Clock("%H:%M:%S", time.localtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline. Only a traceback adds lines, which are indented. Never raises."""
        event = record.__dict__.get("event")
        fields = _fields(record) if event else {"logger": record.name} | _fields(record)
        parts = [self._time(record.created), _SHORT_LEVELS[_named(record.levelno)], plain(_text(event or "log"))]
        parts += [f"{plain(_text(name))}={_shown(value)}" for name, value in fields.items()]
        lines = [" ".join([*parts, plain(_message(record))])]
        if record.exc_info or record.exc_text:
            lines += [f"    {plain(line)}" for line in _traceback(self, record).split("\n")]
        return "\n".join(lines)


class _Clock:
    """Formats a moment with milliseconds. The part before the milliseconds is made only once a second."""

    def __init__(self, layout: str, calendar: Callable[[float], time.struct_time]) -> None:
        self._layout = layout
        self._calendar = calendar
        self._last = (-1, "", "")  # one tuple, because several threads may log at the same time

    def __call__(self, created: float) -> str:
        moment = int(created * 1000)
        last, text, second = self._last
        if moment != last:
            if moment // 1000 != last // 1000:
                second = time.strftime(self._layout, self._calendar(created))
            text = second + _MILLISECONDS[moment % 1000]
            self._last = (moment, text, second)
        return text


def _is_printable(text: str) -> bool:
    """Return `text.isprintable()`, which takes three times as long for ASCII."""
    if not text.isascii():
        return text.isprintable()
    data = text.encode()
    return len(data.translate(None, _ASCII_CONTROLS)) == len(data)


def _named(level: int) -> str:
    """Return the name of a level. A level between two named ones has the name of the lower one."""
    return _LEVELS.get(level) or _LEVELS[max((known for known in _LEVELS if known <= level), default=logging.DEBUG)]


def _message(record: logging.LogRecord) -> str:
    """Return the message. If its arguments do not fit into it, they follow it."""
    try:
        return record.getMessage()
    except Exception:
        return f"{_text(record.msg)} {_text(record.args)}"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields that the caller gave as `extra`, without the event."""
    return {name: value for name, value in record.__dict__.items() if name not in _NOT_FIELDS}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")


def _text(value: object) -> str:
    """Return `value` as text that UTF-8 can express. Never raises."""
    try:
        return str(value).encode(errors="backslashreplace").decode()
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def _encodable(value: object) -> object:
    """Return `value` if it can be one line of JSON, otherwise its text."""
    try:
        if not _CONTROL.search(msgspec.json.encode(value, enc_hook=_text).decode()):
            return value
    except Exception:
        return _text(value)
    return _text(value)


def _shown(value: object) -> str:
    """Return a field's value for the text format. It is JSON, but a word that needs no quotes has none."""
    value = _encodable(value)
    if isinstance(value, str) and value and not any(c in ' "=' for c in value):
        return plain(value)
    return plain(msgspec.json.encode(value, enc_hook=_text).decode())
