"""Every setting of the gateway: its name, type, default, unit and bounds, and where its value comes from.

`load` is what a process calls: defaults, then a TOML file, then the environment, then flags. `parse` takes
the tables alone, for tests and for embedding. Both return a checked `Config` or raise `ConfigError`, whose
text is the one line for the operator. Structs that are constructed directly are not checked.

Durations are seconds, sizes are bytes. An empty string means "none", for TOML has no null.
"""

import difflib
import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_args, get_origin

import msgspec
import tomli
from msgspec import Meta, Struct

from gateway.names import is_pattern
from gateway.text import plain

_ENV_PREFIX = "GATEWAY_"
_FILE_VARIABLE = "GATEWAY_CONFIG"
_YEAR = 31_536_000
_GIBIBYTE = 1 << 30
_MANY = (1 << 31) - 1
_SUN_PATH = 107  # sockaddr_un.sun_path without its closing zero, unix(7)
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[^\]]*\]|[^:/\[\]]+)(?::([1-9][0-9]{0,4}))?")
# The second is raised for a variable with bytes that are not UTF-8, where a number or a fixed word is due.
_CONVERT_ERRORS = (msgspec.ValidationError, UnicodeEncodeError)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0: all other keys are quoted


class ConfigError(Exception):
    """A configuration that cannot be used; `str()` is one line: `source: key: wrong; right`.

    `source` is a file's path, `environment variable NAME`, or `flag --name`. `key` is the dotted key path;
    for a file that is no TOML, the line and column; for one that cannot be read, the setting that names it.
    `wrong` says what is wrong, `right` what would be right.
    """

    def __init__(self, source: str, key: str, wrong: str, right: str) -> None:
        super().__init__(source, key, wrong, right)
        self.source = source
        self.key = key
        self.wrong = wrong
        self.right = right

    def __str__(self) -> str:
        # File names, keys and values come from outside.
        return plain(f"{self.source}: {self.key}: {self.wrong}; {self.right}")


def is_loopback(host: str) -> bool:
    """Say whether `host`, a name or an address, can be reached from this machine only.

    True for 127.0.0.0/8, ::1 and `localhost` (RFC 6761 section 6.3). Any other name is False, unresolved.
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
    """Take what a `Host` header has before the port, in lower case (RFC 9110 section 7.2)."""
    if text.startswith("[") and text.endswith("]"):
        return ":" in text and "%" not in text and _is_address(text[1:-1]) and text == text.lower()
    return _is_name(text) and text == text.lower()


def _is_origin(text: str) -> bool:
    """Take what a browser sends: lower case, no path, no port that the scheme implies (RFC 6454 6.2)."""
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


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_socket_path(text: str) -> bool:
    return _is_path(text) and len(os.fsencode(text)) <= _SUN_PATH


def _is_module(text: str) -> bool:
    return all(part.isidentifier() and not iskeyword(part) for part in text.split("."))


def _integer(low: int, high: int) -> Meta:
    return Meta(ge=low, le=high, description=f"an integer from {low} to {high}")


def _text(right: str, check: Callable[[str], bool]) -> Meta:
    return Meta(description=right, extra={"check": check})


# What would be right is part of the type: `description` is the end of the error line. Every number has both
# bounds, which is also what refuses nan and inf.
Switch = Annotated[bool, Meta(description="true or false")]
Seconds = Annotated[float, Meta(gt=0, le=_YEAR, description=f"a number of seconds above 0, at most {_YEAR}")]
SecondsOrZero = Annotated[float, Meta(ge=0, le=_YEAR, description=f"a number of seconds from 0 to {_YEAR}")]
Rate = Annotated[float, Meta(ge=0, le=1e9, description="a number from 0 to 1000000000")]
Port = Annotated[int, _integer(0, 65535)]
Count = Annotated[int, _integer(1, _MANY)]
Batch = Annotated[int, _integer(1, 10_000)]
CountOrZero = Annotated[int, _integer(0, _MANY)]
MessageBytes = Annotated[int, _integer(1, _GIBIBYTE)]
OutboxBytes = Annotated[int, _integer(2, 4 * _GIBIBYTE)]
HistoryBytes = Annotated[int, _integer(0, 1024 * _GIBIBYTE)]
Text = Annotated[str, Meta(description="a string")]
FilePath = Annotated[str, _text("a path, or an empty string for none", _is_path)]
SocketPath = Annotated[str, _text(f"a path of at most {_SUN_PATH} bytes, or an empty string for none", _is_socket_path)]
ListenHost = Annotated[str, _text('one address or name, such as "127.0.0.1", "::1" or "localhost"', _is_listen_host)]
Host = Annotated[str, _text('a name in lower case without scheme and port, such as "example.com" or "[::1]"', _is_host)]
Origin = Annotated[
    str,
    _text('scheme://host[:port] in lower case, no default port, such as "https://example.com"', _is_origin),
]
Proxy = Annotated[str, _text('"unix", or an IP network with its host bits zero, such as "10.0.0.0/8"', _is_proxy)]
ModuleName = Annotated[str, _text('a dotted module name, such as "mypackage.handlers"', _is_module)]
TopicPattern = Annotated[str, _text('a topic pattern, such as "camera.state" or "sensor.*"', is_pattern)]
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


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[server]`: where the gateway listens, and the deadlines of a connection's beginning and end.

    `unix_socket`, where set, is listened on instead of `host` and `port`. `port` 0 takes a free one.
    `tls_cert` (with its chain) and `tls_key` are PEM files; both or neither.
    `handshake_timeout` covers TCP accept, TLS, the request head and the 101 in one budget. `receive_timeout`
    is the longest time without a complete message or a control frame. `close_timeout` is how long a peer may
    take to answer a close frame. `drain_timeout` is how long calls in flight may go on after SIGTERM; 0: they
    may not. `keepalive_timeout` is how long an HTTP connection may stay idle between two requests.
    `allowed_hosts` empty: loopback names on loopback, any elsewhere. `allowed_origins` empty: the origin that
    `Host` names. `trusted_proxies` are those whose X-Forwarded-For or Forwarded is believed; "unix" is whoever
    comes by a Unix socket. Empty: no proxy.
    """

    host: ListenHost = "127.0.0.1"
    port: Port = 8765
    unix_socket: SocketPath = ""
    tls_cert: FilePath = ""
    tls_key: FilePath = ""
    handshake_timeout: Seconds = 5.0
    receive_timeout: Seconds = 60.0
    close_timeout: Seconds = 2.0
    drain_timeout: SecondsOrZero = 10.0
    keepalive_timeout: Seconds = 75.0
    compression: Switch = False
    event_loop: EventLoop = "uvloop"
    allowed_hosts: tuple[Host, ...] = ()
    allowed_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[Proxy, ...] = ()


class Heartbeat(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[heartbeat]`: a ping after `interval` seconds of silence, dead after `timeout` more without a byte."""

    interval: Seconds = 30.0
    timeout: Seconds = 10.0


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[limits]`: what one connection, one address and all of them together may use.

    `max_connections_per_address` and `max_connections_per_principal` 0: no limit; an IPv6 address is its /64.
    `max_unauthenticated` are the connections that still owe their credential, `max_unauthenticated_per_address`
    those of one address. `max_message_bytes` is inclusive. `max_in_flight` counts a connection's requests,
    `max_node_in_flight` the calls that a node has not answered, `max_batch` the elements of one batch.
    `call_timeout` is a routed call's deadline, `max_call_timeout` the longest that a caller may ask for. A
    connection whose outbox is over `max_outbox_bytes` for `outbox_timeout` is cut; 0: at once. `rate` is
    requests a second and connection, 0: no limit. `burst` is how many may come at once, 0: as many as one
    second's `rate`, and at least one. `control_rate` is pings, pongs and empty fragments a second and
    connection, ten times as many at once, 0: no limit.
    """

    max_connections: Count = 10_000
    max_connections_per_address: CountOrZero = 0
    max_connections_per_principal: CountOrZero = 0
    max_unauthenticated: Count = 1000
    max_unauthenticated_per_address: Count = 100
    max_message_bytes: MessageBytes = 1_048_576
    max_in_flight: Count = 64
    max_node_in_flight: Count = 256
    max_batch: Batch = 100
    call_timeout: Seconds = 30.0
    max_call_timeout: Seconds = 600.0
    max_outbox_bytes: OutboxBytes = 4_194_304
    outbox_timeout: SecondsOrZero = 5.0
    rate: Rate = 0.0
    burst: CountOrZero = 0
    control_rate: Rate = 100.0


class Jwt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[auth.jwt]`: how a JWT is verified (RFC 7519): by one of three files, for `issuer`, `audience`."""

    algorithms: tuple[Algorithm, ...] = ()
    secret_file: FilePath = ""
    public_key_file: FilePath = ""
    jwks_file: FilePath = ""
    issuer: Text = ""
    audience: Text = ""


class Auth(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[auth]`: who may come in. Mode none makes everybody an operator, so it is for loopback.

    `allow_insecure` lets mode none listen anywhere. `tokens_file` is the TOML file of mode token. A connection is
    told `expiry_notice` seconds before its credential expires.
    """

    mode: AuthMode = "none"
    allow_insecure: Switch = False
    tokens_file: FilePath = ""
    expiry_notice: SecondsOrZero = 60.0
    jwt: Jwt = Jwt()


class Events(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[events]`: how much of each topic is kept for subscribers that come back.

    `history_count` messages a topic, none older than `history_age` seconds, `history_bytes` over all topics;
    0 in any of the three: no history. `conflate` names the topics of which only the latest unsent value is
    delivered.
    """

    history_count: CountOrZero = 100
    history_age: SecondsOrZero = 300.0
    history_bytes: HistoryBytes = 67_108_864
    max_topics: Count = 10_000
    conflate: tuple[TopicPattern, ...] = ()


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[log]`: the least level that is written, and one JSON object a line or text for a terminal."""

    level: LogLevel = "info"
    format: LogFormat = "json"


class Cluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[cluster]`: has no keys yet."""


class Tracing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tracing]`: a span of OpenTelemetry for each routed call; where they go is said by its own OTEL_ variables."""

    enabled: Switch = False


class Methods(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[methods]`: `modules` are imported at start, for the methods that they define."""

    modules: tuple[ModuleName, ...] = ()


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration, one member a section. `Config()` is valid: what `conf/gateway.toml` says."""

    server: Server = Server()
    heartbeat: Heartbeat = Heartbeat()
    limits: Limits = Limits()
    auth: Auth = Auth()
    events: Events = Events()
    log: Log = Log()
    cluster: Cluster = Cluster()
    methods: Methods = Methods()
    tracing: Tracing = Tracing()


_Path = tuple[str, ...]


class _Key(NamedTuple):
    """One key as its Struct declares it; of an array, what holds for each item."""

    plain: Any  # the type alone, so that a wrong type and a wrong value are told apart
    bounded: Any  # the type with its bounds
    right: str
    check: Callable[[Any], bool] | None
    array: bool


class _Value(NamedTuple):
    """A converted value, who set it, and how strongly: the higher `rank` prevails."""

    value: object
    source: str
    rank: int


_FILE, _ENVIRONMENT, _FLAG = range(3)
_Values = dict[str, _Value]


def _key(declared: Any) -> _Key:
    array = get_origin(declared) is tuple
    item = get_args(declared)[0] if array else declared
    plain, meta = get_args(item)
    check = (meta.extra or {}).get("check")
    return _Key(str if get_origin(plain) is Literal else plain, item, meta.description, check, array)


def _schema(struct: type[Struct], at: _Path = ()) -> Iterator[tuple[_Path, _Key | tuple[str, ...]]]:
    """Yield each key below `struct`, and each table with the names in it."""
    fields = msgspec.structs.fields(struct)
    yield at, tuple(field.name for field in fields)
    for field in fields:
        path = (*at, field.name)
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from _schema(field.type, path)
        else:
            yield path, _key(field.type)


_KEYS = {path: entry for path, entry in _schema(Config) if isinstance(entry, _Key)}
_TABLES = {path: entry for path, entry in _schema(Config) if not isinstance(entry, _Key)}


def _dotted(path: _Path) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in path)


def _literal(value: object) -> str:
    """Write a value as TOML would, cut where it is long."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:59] + "…", ensure_ascii=False)
        case int() if value.bit_length() > 64:  # str() refuses more than 4300 digits, hex() does not
            return f"{hex(value)[:18]}…"
        case _:
            return str(value)


def _typed(value: object) -> str:
    """Name a value's type as TOML users know it, with the value where that is short."""
    match value:
        case bool() | str() | int() | float():
            return f"{type(value).__name__} {_literal(value)}"
        case Mapping():
            return "table"
        case list() | tuple():
            return "array"
        case _:
            return type(value).__name__


def _table_of(names: tuple[str, ...]) -> str:
    return f"a table of {', '.join(names)}" if names else "an empty table"


def _alternatives(path: _Path) -> str:
    """Say what an unknown key may have been meant to be."""
    depth = next(n for n in range(len(path) - 1, -1, -1) if path[:n] in _TABLES)
    names, unknown = _TABLES[path[:depth]], path[depth].lower()
    elsewhere = [_dotted(known) for known in _KEYS if known[-1] == unknown and known[:-1] != path[:depth]]
    for guess in (*elsewhere, *difflib.get_close_matches(unknown, names, 1)):
        return f'did you mean "{guess}"?'
    return _table_of(names)


def _convert_item(key: _Key, value: object, text: bool, source: str, name: str) -> object:
    try:
        plain = msgspec.convert(value, key.plain, strict=not text)
    except _CONVERT_ERRORS:
        wrong = f"expected {key.plain.__name__}, got {_typed(value)}"
        raise ConfigError(source, name, wrong, key.right) from None
    try:
        bounded: object = msgspec.convert(plain, key.bounded)
    except _CONVERT_ERRORS:
        bounded = None
    if bounded is None or (key.check is not None and not key.check(plain)):
        wrong = f"{_literal(plain)} is {'not allowed' if isinstance(plain, str) else 'out of range'}"
        raise ConfigError(source, name, wrong, key.right)
    return bounded


def _convert(path: _Path, value: object, text: bool, source: str) -> object:
    """Return `value` as the key at `path` wants it; `text`: it is written as in an environment variable."""
    name = _dotted(path)
    if path in _TABLES:
        # The value is not shown: under [auth] it may be a credential in the wrong place.
        wrong = f"expected table, got {type(value).__name__}"
        raise ConfigError(source, name, wrong, _table_of(_TABLES[path]))
    if path not in _KEYS:
        raise ConfigError(source, name, "unknown key", _alternatives(path))
    key = _KEYS[path]
    if not key.array:
        return _convert_item(key, value, text, source, name)
    if text and isinstance(value, str):
        value = [item.strip() for item in value.split(",")] if value.strip() else []
    if not isinstance(value, list | tuple):
        wrong = f"expected array, got {_typed(value)}"
        raise ConfigError(source, name, wrong, f"an array, each item {key.right}")
    return tuple(_convert_item(key, item, text, source, f"{name}[{n}]") for n, item in enumerate(value))


def _from_tables(data: Mapping[str, object], source: str) -> _Values:
    def leaves(table: Mapping[str, object], at: _Path) -> Iterator[tuple[_Path, object]]:
        for name, value in table.items():
            path = (*at, name)
            if path in _TABLES and isinstance(value, Mapping):
                yield from leaves(value, path)
            else:
                yield path, value

    return {
        _dotted(path): _Value(_convert(path, value, False, source), source, _FILE) for path, value in leaves(data, ())
    }


def _from_environ(environ: Mapping[str, str]) -> _Values:
    values = {}
    for variable in sorted(environ):
        name = variable.removeprefix(_ENV_PREFIX)
        # Without a double underscore it is no key: GATEWAY_URL is the client's, others may be anybody's.
        if name == variable or "__" not in name:
            continue
        path = tuple((name.lower() if name == name.upper() else name).split("__"))
        source = f"environment variable {variable}"
        value = _convert(path, environ[variable], True, source)
        values[_dotted(path)] = _Value(value, source, _ENVIRONMENT)
    return values


def _from_flags(flags: Mapping[str, object]) -> _Values:
    values = {}
    for name, value in flags.items():
        if value is None:
            continue
        option = name.removeprefix("server.").replace(".", "-").replace("_", "-")
        source = f"flag --{option}"
        converted = _convert(tuple(name.split(".")), value, isinstance(value, str), source)
        values[name] = _Value(converted, source, _FLAG)
    return values


def _read(path: str, named_by: str) -> dict[str, object]:
    """Read a TOML file; `named_by` is the setting to look at when it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        wrong = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise ConfigError(path, named_by, wrong, "the path of a readable TOML file") from None
    try:
        return tomli.loads(content.decode())
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        where = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        raise ConfigError(path, where, "not UTF-8", "a TOML file in UTF-8") from None
    except tomli.TOMLDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        right = 'TOML, such as port = 8765 or host = "127.0.0.1"'
        raise ConfigError(path, where, error.msg, right) from None
    except (ValueError, RecursionError):  # tomli: an integer of over 4300 digits, arrays nested over 400 deep
        wrong = "an integer too long or arrays nested too deep"
        raise ConfigError(path, named_by, wrong, "a TOML file such as conf/gateway.toml") from None


def _collect(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> _Values:
    named_by = "--config"
    if path is None:
        path, named_by = environ.get(_FILE_VARIABLE) or None, _FILE_VARIABLE
    values = {} if path is None else _from_tables(_read(path, named_by), path)
    return values | _from_environ(environ) | _from_flags(flags)


def _blame(values: _Values, wrong: str, right: str, *keys: str) -> NoReturn:
    """Refuse a combination of `keys`: name the strongest source, for it came last, and its first key."""
    key = max((key for key in keys if key in values), key=lambda key: values[key].rank, default=keys[0])
    source = values[key].source if key in values else "default"
    raise ConfigError(source, key, wrong, right)


def _check_times(config: Config, values: _Values) -> None:
    server, heartbeat, limits = config.server, config.heartbeat, config.limits
    silence = heartbeat.interval + heartbeat.timeout
    if server.receive_timeout <= silence:
        _blame(
            values,
            f"server.receive_timeout {server.receive_timeout} does not exceed heartbeat.interval"
            f" {heartbeat.interval} + heartbeat.timeout {heartbeat.timeout}",
            f"a server.receive_timeout above {silence}",
            "server.receive_timeout",
            "heartbeat.interval",
            "heartbeat.timeout",
        )
    if limits.max_call_timeout < limits.call_timeout:
        _blame(
            values,
            f"limits.max_call_timeout {limits.max_call_timeout} is below limits.call_timeout {limits.call_timeout}",
            f"a limits.max_call_timeout of at least {limits.call_timeout}",
            "limits.max_call_timeout",
            "limits.call_timeout",
        )


def _check_sizes(config: Config, values: _Values) -> None:
    outbox, message = config.limits.max_outbox_bytes, config.limits.max_message_bytes
    if outbox < 2 * message:
        _blame(
            values,
            f"limits.max_outbox_bytes {outbox} is less than twice limits.max_message_bytes {message}",
            f"a limits.max_outbox_bytes of at least {2 * message}",
            "limits.max_outbox_bytes",
            "limits.max_message_bytes",
        )


def _check_auth(config: Config, values: _Values) -> None:
    server, auth = config.server, config.auth
    if auth.mode == "token" and not auth.tokens_file:
        right = "auth.tokens_file, the path of a TOML file of tokens"
        _blame(values, '"token" without auth.tokens_file', right, "auth.mode")
    if auth.mode == "jwt":
        _check_jwt(auth.jwt, values)
    exposed = not server.unix_socket and not is_loopback(server.host)
    if auth.mode == "none" and exposed and not auth.allow_insecure:
        _blame(
            values,
            f'"{server.host}" is not loopback, and auth.mode "none" lets everybody in',
            "127.0.0.1, ::1, localhost, or auth.allow_insecure = true",
            "server.host",
            "auth.mode",
            "auth.allow_insecure",
        )


def _check_jwt(jwt: Jwt, values: _Values) -> None:
    if not jwt.algorithms:
        _blame(values, '"jwt" without auth.jwt.algorithms', 'those of its signatures, such as ["EdDSA"]', "auth.mode")
    files = {
        "auth.jwt.secret_file": jwt.secret_file,
        "auth.jwt.public_key_file": jwt.public_key_file,
        "auth.jwt.jwks_file": jwt.jwks_file,
    }
    given = [key for key, path in files.items() if path]
    if len(given) != 1:
        wrong = f"{' and '.join(given)} are set" if given else '"jwt" without a key'
        right = "one of auth.jwt.secret_file, public_key_file and jwks_file"
        _blame(values, wrong, right, *(given or ["auth.mode"]))
    symmetric = [name for name in jwt.algorithms if name.startswith("HS")]
    if symmetric and jwt.public_key_file:
        # Else the public key could be taken for the secret (RFC 8725 section 2.1).
        wrong = f"{symmetric[0]} needs a secret, and auth.jwt.public_key_file is set"
        _blame(values, wrong, "an algorithm of that key, such as RS256", "auth.jwt.algorithms")
    if len(symmetric) < len(jwt.algorithms) and jwt.secret_file:
        other = next(name for name in jwt.algorithms if name not in symmetric)
        wrong = f"{other} needs a public key, and auth.jwt.secret_file is set"
        _blame(values, wrong, "HS256, HS384 or HS512", "auth.jwt.algorithms")


class _PassphraseNeededError(Exception):
    """The private key is encrypted."""


def _no_passphrase() -> str:
    # Without a callback OpenSSL would ask on the terminal, and a service would hang.
    raise _PassphraseNeededError


def _certificate_fault(cert: str, key: str) -> tuple[str, str, str] | None:
    """Load two readable files as a server does; return what is wrong, what would be right, and the key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=cert)
    except ssl.SSLError:
        wrong = f"{_literal(cert)} holds no certificate"
        return wrong, "a PEM file with the certificate and its chain", "server.tls_cert"
    try:
        context.load_cert_chain(cert, key, _no_passphrase)
    except _PassphraseNeededError:
        return f"{_literal(key)} is encrypted", "a private key without a passphrase", "server.tls_key"
    except ssl.SSLError as error:
        wrong = f"{_literal(key)} and server.tls_cert {_literal(cert)} do not load: {error.reason}"
        return wrong, "the PEM file of that certificate's private key", "server.tls_key"
    return None


def _check_tls(config: Config, values: _Values) -> None:
    files = {"server.tls_cert": config.server.tls_cert, "server.tls_key": config.server.tls_key}
    cert, key = files.values()
    if not cert and not key:
        return
    for name, other in (("server.tls_cert", "server.tls_key"), ("server.tls_key", "server.tls_cert")):
        if not files[other]:
            _blame(values, f"set without {other}", "both or neither", name)
    for name, file in files.items():
        try:
            with open(file, "rb") as opened:
                opened.read(1)
        except OSError as error:
            _blame(values, f"{_literal(file)} cannot be read: {error.strerror}", "a readable PEM file", name)
    fault = _certificate_fault(cert, key)
    if fault is not None:
        _blame(values, *fault)


def _build(values: _Values) -> Config:
    tables: dict[str, Any] = {}
    for key, given in values.items():
        *parents, name = key.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[name] = given.value
    config = msgspec.convert(tables, Config)
    for check in (_check_times, _check_sizes, _check_auth, _check_tls):
        check(config, values)
    return config


def parse(data: Mapping[str, object], source: str = "configuration") -> Config:
    """Check `data`, tables as a TOML parser returns them, and fill in the defaults.

    Arrays may be lists or tuples, and numbers of seconds may be ints. `source` is what an error names. Reads
    the files of `server.tls_cert` and `server.tls_key`, where they are set. Raises `ConfigError`.
    """
    return _build(_from_tables(data, source))


def load(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """Read the configuration: flags over environment over file over defaults. May be called again, to reload.

    The file is `path`, else the one that `GATEWAY_CONFIG` names, else none. A variable is
    `GATEWAY_SECTION__KEY` (`GATEWAY_AUTH__JWT__ISSUER`), the items of an array separated by commas; one
    without a double underscore is left alone. `flags` has dotted keys, as in `{"server.port": 9000}`; None is
    "not given", and text is converted as in a variable. Each value is checked where it was set, also one that
    another source overrides. Raises `ConfigError`.
    """
    return _build(_collect(path, environ, flags))


def source_of(key: str, path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> str:
    """Say who set `key`, for an error that shows only in use, as with a port that is taken.

    Takes the arguments of `load`, and returns what `ConfigError.source` would be; "default" where nobody set
    it. Raises `ConfigError`.
    """
    given = _collect(path, environ, flags).get(key)
    return "default" if given is None else given.source
