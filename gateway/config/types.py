"""The types of the settings, each with a text that says what is right, and the error for a wrong value. Pure."""

import ipaddress
import json
import os
import re
from collections.abc import Callable
from keyword import iskeyword
from typing import Annotated, Literal

from msgspec import Meta

from gateway.names import MAX_NAME, is_pattern, is_peer_name
from gateway.text import plain

_YEAR = 31_536_000
_GIBIBYTE = 1 << 30
_MANY = (1 << 31) - 1
_SUN_PATH = 107  # sockaddr_un.sun_path without its closing zero, unix(7)
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_NATS_URL = re.compile(r"(?:nats|tls)://(?:\[[0-9a-fA-F:.%]+\]|[^\s/@:?#\[\]]+)(?::([0-9]{1,5}))?/?")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[^\]]*\]|[^:/\[\]]+)(?::([1-9][0-9]{0,4}))?")


class ConfigError(Exception):
    """A configuration that cannot be used; `str()` is one line: `source: key: wrong; right`.

    `source` is a file's path, `environment variable NAME`, or `flag --name`. `key` is the dotted key path. If a file is
    not TOML, `key` is the line and column; if a file cannot be read, it is the setting that names the file. `wrong`
    says what is wrong, `right` what would be right.
    """

    def __init__(self, source: str, key: str, wrong: str, right: str) -> None:
        super().__init__(source, key, wrong, right)
        self.source = source
        self.key = key
        self.wrong = wrong
        self.right = right

    def __str__(self) -> str:
        # Escaped, because file names, keys and values come from outside.
        return plain(f"{self.source}: {self.key}: {self.wrong}; {self.right}")


def literal(value: object) -> str:
    """Write a value as in TOML, and cut it if it is long."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:59] + "…", ensure_ascii=False)
        case int() if value.bit_length() > 64:  # str() refuses more than 4300 digits, hex() does not
            return f"{hex(value)[:18]}…"
        case _:
            return str(value)


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can be reached only from this machine.

    That is true for 127.0.0.0/8, ::1 and `localhost` (RFC 6761 section 6.3). No name is resolved.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    return len(text) <= 253 and _NAME.fullmatch(text) is not None  # RFC 1035 section 2.3.4


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_listen_host(text: str) -> bool:
    return _is_name(text) or _is_address(text)


def _is_host(text: str) -> bool:
    """Whether this is what a `Host` header has before the port, in lower case (RFC 9110 section 7.2)."""
    if text.startswith("[") and text.endswith("]"):
        return ":" in text and "%" not in text and _is_address(text[1:-1]) and text == text.lower()
    return _is_name(text) and text == text.lower()


def _is_origin(text: str) -> bool:
    """Whether a browser sends such an origin: lower case, no path, no default port (RFC 6454 section 6.2)."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    scheme, host, port = match.groups()
    if port is not None and (int(port) > 65535 or int(port) == _DEFAULT_PORTS.get(scheme)):
        return False
    return _is_host(host)


def _is_proxy(text: str) -> bool:
    if text == "unix":
        return True
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_socket_path(text: str) -> bool:
    return _is_path(text) and len(os.fsencode(text)) <= _SUN_PATH


def _is_module(text: str) -> bool:
    return all(part.isidentifier() and not iskeyword(part) for part in text.split("."))


def _is_nats_url(text: str) -> bool:
    """Whether `cluster.natswire.address` takes it, a module that needs more than the client has."""
    match = _NATS_URL.fullmatch(text)
    return match is not None and (match[1] is None or 0 < int(match[1]) <= 65535)


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None


def _is_member(text: str) -> bool:
    return not text or is_peer_name(text)


def _integer(low: int, high: int) -> Meta:
    return Meta(ge=low, le=high, description=f"an integer from {low} to {high}")


def _text(right: str, check: Callable[[str], bool], *, hidden: bool = False) -> Meta:
    """A text with a check of its own. One that is hidden is in no error, because there may be a password in it."""
    return Meta(description=right, extra={"check": check, "hidden": hidden})


# `description` says what would be right, and is the end of the error line. Every number has both bounds, which also
# refuse nan and inf.
Switch = Annotated[bool, Meta(description="true or false")]
Seconds = Annotated[float, Meta(gt=0, le=_YEAR, description=f"a number of seconds above 0, at most {_YEAR}")]
SecondsOrZero = Annotated[float, Meta(ge=0, le=_YEAR, description=f"a number of seconds from 0 to {_YEAR}")]
Rate = Annotated[float, Meta(ge=0, le=1e9, description="a number from 0 to 1000000000")]
Port = Annotated[int, _integer(0, 65535)]
Count = Annotated[int, _integer(1, _MANY)]
Batch = Annotated[int, _integer(1, 10_000)]
CountOrZero = Annotated[int, _integer(0, _MANY)]
MessageBytes = Annotated[int, _integer(1, _GIBIBYTE)]
RegistrationBytes = Annotated[int, _integer(1, 64 * 1024 * 1024)]
OutboxBytes = Annotated[int, _integer(2, 4 * _GIBIBYTE)]
HistoryBytes = Annotated[int, _integer(0, 1024 * _GIBIBYTE)]
Text = Annotated[str, Meta(description="a string")]
FilePath = Annotated[str, _text("a path, or an empty string for none", _is_path)]
SocketPath = Annotated[str, _text(f"a path of at most {_SUN_PATH} bytes, or an empty string for none", _is_socket_path)]
ListenHost = Annotated[
    str, _text('an address or name, such as "127.0.0.1", "::1" or "localhost", or an array of them', _is_listen_host)
]
Host = Annotated[str, _text('a name in lower case without scheme and port, such as "example.com" or "[::1]"', _is_host)]
Origin = Annotated[
    str,
    _text('scheme://host[:port] in lower case, no default port, such as "https://example.com"', _is_origin),
]
Proxy = Annotated[str, _text('"unix", or an IP network with its host bits zero, such as "10.0.0.0/8"', _is_proxy)]
Subprotocol = Annotated[str, _text('a name of letters, digits and hyphens, such as "jsonrpc"', _is_token)]
ModuleName = Annotated[str, _text('a dotted module name, such as "mypackage.handlers"', _is_module)]
TopicPattern = Annotated[str, _text('a topic pattern, such as "camera.state" or "sensor.*"', is_pattern)]
NatsUrl = Annotated[
    str,
    _text(
        '"nats://host:port" or "tls://host:port"; user and password have keys of their own', _is_nats_url, hidden=True
    ),
]
ClusterName = Annotated[str, _text('1 to 64 letters, digits, "-" and "_"', _is_word)]
MemberName = Annotated[
    str, _text(f"a name on one line, of at most {MAX_NAME} characters, or an empty string", _is_member)
]
Storage = Annotated[Literal["file", "memory"], Meta(description='"file" or "memory"')]
Replicas = Annotated[int, _integer(1, 5)]
MemberTimeout = Annotated[float, Meta(ge=0.5, le=60, description="a number of seconds from 0.5 to 60")]
EventLoop = Annotated[Literal["uvloop", "asyncio"], Meta(description='"uvloop" or "asyncio"')]
AuthMode = Annotated[Literal["none", "token", "jwt"], Meta(description='"none", "token" or "jwt"')]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], Meta(description='"debug", "info", "warning" or "error"')
]
LogFormat = Annotated[Literal["json", "text"], Meta(description='"json" or "text"')]
Algorithm = Annotated[
    Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"],
    Meta(description='"HS256", "RS256", "ES256", a longer one of these, or "EdDSA"'),
]
