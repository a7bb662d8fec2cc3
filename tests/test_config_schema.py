"""The configuration: what is refused and in which words, what overrides what, and the file of defaults."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
from cryptography.hazmat.primitives import serialization

from gateway.config import Config, ConfigError, Server, is_loopback, load, parse, source_of
from tests.certs import Authority, ServerFiles

DEFAULTS_FILE = Path(__file__).parents[1] / "conf" / "gateway.toml"
YEAR = "a number of seconds above 0, at most 31536000"
PORT = "an integer from 0 to 65535"
COUNT = "an integer from 1 to 2147483647"
HOST = 'a name in lower case without scheme and port, such as "example.com" or "[::1]"'
ORIGIN = 'scheme://host[:port] in lower case, no default port, such as "https://example.com"'
LISTEN = 'one address or name, such as "127.0.0.1", "::1" or "localhost"'
ALGORITHM = '"HS256", "RS256", "ES256", a longer one of these, or "EdDSA"'
TOML = 'TOML, such as port = 8765 or host = "127.0.0.1"'

TOO_LONG = "an integer too long or arrays nested too deep; a TOML file such as conf/gateway.toml"

# A table [auth.jwt], and the line that it earns.
ONE_FILE = "one of auth.jwt.secret_file, public_key_file and jwks_file"
WRONG_JWT = [
    (
        "algorithms = ['HS256']\nsecret_file = 's'\njwks_file = 'j'",
        f"auth.jwt.secret_file: auth.jwt.secret_file and auth.jwt.jwks_file are set; {ONE_FILE}",
    ),
    (
        "algorithms = ['RS256', 'HS512']\npublic_key_file = 'p'",
        "auth.jwt.algorithms: HS512 needs a secret, and auth.jwt.public_key_file is set;"
        " an algorithm of that key, such as RS256",
    ),
    (
        "algorithms = ['HS256', 'EdDSA']\nsecret_file = 's'",
        "auth.jwt.algorithms: EdDSA needs a public key, and auth.jwt.secret_file is set; HS256, HS384 or HS512",
    ),
    ("algorithms = 'HS256'", f'auth.jwt.algorithms: expected array, got str "HS256"; an array, each item {ALGORITHM}'),
    ("secret_file = 5", "auth.jwt.secret_file: expected str, got int 5; a path, or an empty string for none"),
]

# A file's text, and the line that it earns, behind the file's name.
WRONG_FILES = [
    ("[server]\nprot = 1", 'server.prot: unknown key; did you mean "port"?'),
    ("[server]\nPort = 1", 'server.Port: unknown key; did you mean "port"?'),
    ("port = 1", 'port: unknown key; did you mean "server.port"?'),
    ("[server]\nmax_batch = 1", 'server.max_batch: unknown key; did you mean "limits.max_batch"?'),
    ("[sever]\nport = 1", 'sever: unknown key; did you mean "server"?'),
    ("[log]\nxyzzy = 1", "log.xyzzy: unknown key; a table of level, format"),
    ('[log]\n"a.b\\n" = 1', 'log."a.b\\n": unknown key; a table of level, format'),
    ("[cluster]\nurl = 'x'", "cluster.url: unknown key; an empty table"),
    ("[auth.jwt]\nissuers = 'x'", 'auth.jwt.issuers: unknown key; did you mean "issuer"?'),
    ("log = 5", "log: expected table, got int; a table of level, format"),
    ("[[log]]\nlevel = 'info'", "log: expected table, got list; a table of level, format"),
    ("[auth]\ntoken = 'hush'", 'auth.token: unknown key; did you mean "tokens_file"?'),
    ("[server]\nport = 'x'", f'server.port: expected int, got str "x"; {PORT}'),
    ("[server]\nport = 1.0", f"server.port: expected int, got float 1.0; {PORT}"),
    ("[server]\nport = true", f"server.port: expected int, got bool true; {PORT}"),
    ("[server.port]\na = 1", f"server.port: expected int, got table; {PORT}"),
    ("[server]\nport = [1]", f"server.port: expected int, got array; {PORT}"),
    ("[server]\nport = 2026-01-01", f"server.port: expected int, got date; {PORT}"),
    ("[server]\nport = 65536", f"server.port: 65536 is out of range; {PORT}"),
    ("[server]\nport = -1", f"server.port: -1 is out of range; {PORT}"),
    (
        f"[server]\nport = 0x{'f' * 5000}",
        f"server.port: 0xffffffffffffffff… is out of range; {PORT}",
    ),
    ("[server]\ncompression = 1", "server.compression: expected bool, got int 1; true or false"),
    ("[server]\nhandshake_timeout = 0", f"server.handshake_timeout: 0.0 is out of range; {YEAR}"),
    ("[server]\nclose_timeout = -2", f"server.close_timeout: -2.0 is out of range; {YEAR}"),
    ("[server]\nclose_timeout = nan", f"server.close_timeout: nan is out of range; {YEAR}"),
    ("[heartbeat]\ninterval = inf", f"heartbeat.interval: inf is out of range; {YEAR}"),
    ("[heartbeat]\ninterval = '30s'", f'heartbeat.interval: expected float, got str "30s"; {YEAR}'),
    ("[heartbeat]\ntimeout = false", f"heartbeat.timeout: expected float, got bool false; {YEAR}"),
    (
        "[server]\ndrain_timeout = -0.5",
        "server.drain_timeout: -0.5 is out of range; a number of seconds from 0 to 31536000",
    ),
    ("[limits]\nmax_connections = 0", f"limits.max_connections: 0 is out of range; {COUNT}"),
    ("[server]\nhost = ''", f'server.host: "" is not allowed; {LISTEN}'),
    ("[server]\nhost = '[::1]'", f'server.host: "[::1]" is not allowed; {LISTEN}'),
    ("[server]\nhost = '127.0.0.1:80'", f'server.host: "127.0.0.1:80" is not allowed; {LISTEN}'),
    ('[server]\nhost = "a\\u2028b"', f'server.host: "a\\u2028b" is not allowed; {LISTEN}'),
    (f"[server]\nhost = '{'x' * 64}'", f'server.host: "{"x" * 59}…" is not allowed; {LISTEN}'),
    ("[server]\nhost = ['::1']", f"server.host: expected str, got array; {LISTEN}"),
    (
        f"[server]\nunix_socket = '{'s' * 108}'",
        f'server.unix_socket: "{"s" * 59}…" is not allowed; a path of at most 107 bytes, or an empty string for none',
    ),
    (
        "[server]\nevent_loop = 'trio'",
        'server.event_loop: "trio" is not allowed; "uvloop" or "asyncio"',
    ),
    (
        "[server]\nallowed_hosts = 'a.example'",
        f'server.allowed_hosts: expected array, got str "a.example"; an array, each item {HOST}',
    ),
    (
        "[server]\nallowed_hosts = ['a', 'https://b']",
        f'server.allowed_hosts[1]: "https://b" is not allowed; {HOST}',
    ),
    ("[server]\nallowed_hosts = [1]", f"server.allowed_hosts[0]: expected str, got int 1; {HOST}"),
    (
        "[server]\nallowed_origins = ['example.com']",
        f'server.allowed_origins[0]: "example.com" is not allowed; {ORIGIN}',
    ),
    (
        "[server]\ntrusted_proxies = ['::1', '10.0.0.1/8']",
        'server.trusted_proxies[1]: "10.0.0.1/8" is not allowed;'
        ' "unix", or an IP network with its host bits zero, such as "10.0.0.0/8"',
    ),
    (
        "[methods]\nmodules = ['my-package']",
        'methods.modules[0]: "my-package" is not allowed; a dotted module name, such as "mypackage.handlers"',
    ),
    (
        "[events]\nconflate = ['a..b']",
        'events.conflate[0]: "a..b" is not allowed; a topic pattern, such as "camera.state" or "sensor.*"',
    ),
    (
        "[log]\nlevel = 'INFO'",
        'log.level: "INFO" is not allowed; "debug", "info", "warning" or "error"',
    ),
    ("[log]\nformat = 'xml'", 'log.format: "xml" is not allowed; "json" or "text"'),
    ("[auth]\nmode = 'open'", 'auth.mode: "open" is not allowed; "none", "token" or "jwt"'),
    ("[auth]\nexpiry_notice = -1", "auth.expiry_notice: -1.0 is out of range; a number of seconds from 0 to 31536000"),
    ("[limits]\nmax_unauthenticated = 0", f"limits.max_unauthenticated: 0 is out of range; {COUNT}"),
    (
        "[limits]\nmax_unauthenticated_per_address = 0",
        f"limits.max_unauthenticated_per_address: 0 is out of range; {COUNT}",
    ),
    ("[limits]\ncontrol_rate = -1", "limits.control_rate: -1.0 is out of range; a number from 0 to 1000000000"),
    *((f"[auth]\nmode = 'jwt'\n[auth.jwt]\n{table}", line) for table, line in WRONG_JWT),
    (
        "[auth.jwt]\nalgorithms = ['none']",
        'auth.jwt.algorithms[0]: "none" is not allowed; "HS256", "RS256", "ES256", a longer one of these, or "EdDSA"',
    ),
    (
        "[server]\nhost = '0.0.0.0'",
        'server.host: "0.0.0.0" is not loopback, and auth.mode "none" lets everybody in;'
        " 127.0.0.1, ::1, localhost, or auth.allow_insecure = true",
    ),
    (
        "[server]\nreceive_timeout = 40",
        "server.receive_timeout: server.receive_timeout 40.0 does not exceed heartbeat.interval 30.0"
        " + heartbeat.timeout 10.0; a server.receive_timeout above 40.0",
    ),
    (
        "[heartbeat]\ninterval = 90",
        "heartbeat.interval: server.receive_timeout 60.0 does not exceed heartbeat.interval 90.0"
        " + heartbeat.timeout 10.0; a server.receive_timeout above 100.0",
    ),
    (
        "[limits]\nmax_outbox_bytes = 2097151",
        "limits.max_outbox_bytes: limits.max_outbox_bytes 2097151 is less than twice"
        " limits.max_message_bytes 1048576; a limits.max_outbox_bytes of at least 2097152",
    ),
    (
        "[limits]\nmax_call_timeout = 29.5",
        "limits.max_call_timeout: limits.max_call_timeout 29.5 is below limits.call_timeout 30.0;"
        " a limits.max_call_timeout of at least 30.0",
    ),
    ("[server]\ntls_cert = 'a.pem'", "server.tls_cert: set without server.tls_key; both or neither"),
    ("[server]\ntls_key = 'a.key'", "server.tls_key: set without server.tls_cert; both or neither"),
    (
        "[server]\ntls_cert = '/no/a.pem'\ntls_key = '/no/a.key'",
        'server.tls_cert: "/no/a.pem" cannot be read: No such file or directory; a readable PEM file',
    ),
    ("[server]\nport = ", f"line 2, column 8: Invalid value; {TOML}"),
    ("[server\nport = 1", f"line 1, column 8: Expected ']' at the end of a table declaration; {TOML}"),
    ("port = 1\nport = 2", f"line 2, column 9: Cannot overwrite a value; {TOML}"),
    (f"a = {'9' * 5000}", f"--config: {TOO_LONG}"),
    (f"a = {'[' * 5000}", f"--config: {TOO_LONG}"),
    ("# ü\n# é\udcff", "line 2, column 4: not UTF-8; a TOML file in UTF-8"),
]


def attempt(act: Callable[[], Config]) -> Config | str:
    """Return the configuration, or the line that refuses it."""
    try:
        return act()
    except ConfigError as error:
        return str(error)


def refusal(act: Callable[[], Config]) -> str:
    line = attempt(act)
    assert isinstance(line, str), "accepted"
    assert line.isprintable(), "one line, and nothing that drives a terminal"
    return line


def keys() -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its default, as the Structs declare them."""

    def below(struct: msgspec.Struct, prefix: str) -> Iterator[tuple[str, Any]]:
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            if isinstance(value, msgspec.Struct):
                yield from below(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", value

    return below(Config(), "")


def tables(key: str, value: object) -> dict[str, Any]:
    """Return the tables in which only `key` is set."""
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def variable(key: str) -> str:
    return f"GATEWAY_{key.replace('.', '__').upper()}"


def numbers(kind: type) -> list[str]:
    return [key for key, default in keys() if type(default) is kind]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES, ids=[line[:60] for _, line in WRONG_FILES])
def test_wrong_file(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert refusal(lambda: load(str(path), {}, {})) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"GATEWAY_SERVER__PORT": "x"}, f'SERVER__PORT: server.port: expected int, got str "x"; {PORT}'),
        ({"GATEWAY_SERVER__PORT": ""}, f'SERVER__PORT: server.port: expected int, got str ""; {PORT}'),
        ({"GATEWAY_SERVER__PORT": "70000"}, f"SERVER__PORT: server.port: 70000 is out of range; {PORT}"),
        ({"GATEWAY_SERVER__PROT": "1"}, 'SERVER__PROT: server.prot: unknown key; did you mean "port"?'),
        ({"GATEWAY_SEVER__PORT": "1"}, 'SEVER__PORT: sever.port: unknown key; did you mean "server"?'),
        ({"GATEWAY_Server__port": "1"}, 'Server__port: Server.port: unknown key; did you mean "server"?'),
        (
            {"GATEWAY__SERVER__PORT": "1"},
            '_SERVER__PORT: _server.port: unknown key; did you mean "server"?',
        ),
        (
            {"GATEWAY_SERVER__PORT__X": "1"},
            'SERVER__PORT__X: server.port.x: unknown key; did you mean "port"?',
        ),
        ({"GATEWAY_LOG__X\n": "1"}, 'LOG__X\\n: log."x\\n": unknown key; a table of level, format'),
        (
            {"GATEWAY_HEARTBEAT__INTERVAL": "nan"},
            f"HEARTBEAT__INTERVAL: heartbeat.interval: nan is out of range; {YEAR}",
        ),
        (
            {"GATEWAY_SERVER__COMPRESSION": "on"},
            'SERVER__COMPRESSION: server.compression: expected bool, got str "on"; true or false',
        ),
        (
            {"GATEWAY_SERVER__ALLOWED_HOSTS": "a,,b"},
            f'SERVER__ALLOWED_HOSTS: server.allowed_hosts[1]: "" is not allowed; {HOST}',
        ),
        (
            {"GATEWAY_AUTH__JWT": "hush"},
            "AUTH__JWT: auth.jwt: expected table, got str;"
            " a table of algorithms, secret_file, public_key_file, jwks_file, issuer, audience",
        ),
        ({"GATEWAY_AUTH__MODE": "jwks"}, 'AUTH__MODE: auth.mode: "jwks" is not allowed; "none", "token" or "jwt"'),
    ],
)
def test_wrong_variable(environ: dict[str, str], line: str) -> None:
    assert refusal(lambda: load(None, environ, {})) == f"environment variable GATEWAY_{line}"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"server.port": "x"}, f'flag --port: server.port: expected int, got str "x"; {PORT}'),
        ({"server.port": -1}, f"flag --port: server.port: -1 is out of range; {PORT}"),
        (
            {"log.level": "loud"},
            'flag --log-level: log.level: "loud" is not allowed; "debug", "info", "warning" or "error"',
        ),
        (
            {"server.tls_cert": "x"},
            "flag --tls-cert: server.tls_cert: set without server.tls_key; both or neither",
        ),
        (
            {"server.host": "::"},
            'flag --host: server.host: "::" is not loopback, and auth.mode "none" lets everybody in;'
            " 127.0.0.1, ::1, localhost, or auth.allow_insecure = true",
        ),
    ],
)
def test_wrong_flag(flags: dict[str, object], line: str) -> None:
    assert refusal(lambda: load(None, {}, flags)) == line


def test_missing_file_names_the_setting_that_leads_to_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.toml")
    wrong = "cannot be read: No such file or directory; the path of a readable TOML file"
    assert refusal(lambda: load(missing, {}, {})) == f"{missing}: --config: {wrong}"
    assert refusal(lambda: load(None, {"GATEWAY_CONFIG": missing}, {})) == f"{missing}: GATEWAY_CONFIG: {wrong}"
    assert "Is a directory" in refusal(lambda: load(str(tmp_path), {}, {}))
    assert "embedded null byte" in refusal(lambda: load("a\0b", {}, {}))


def test_a_combination_is_blamed_on_the_strongest_source(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[server]\nreceive_timeout = 50\nhost = '192.0.2.1'\n[auth]\nallow_insecure = true")
    assert load(str(path), {}, {}).server.receive_timeout == 50.0
    longer = {"GATEWAY_HEARTBEAT__INTERVAL": "45"}
    assert refusal(lambda: load(str(path), longer, {})).startswith(
        "environment variable GATEWAY_HEARTBEAT__INTERVAL: heartbeat.interval: server.receive_timeout 50.0"
    )
    assert refusal(lambda: load(str(path), longer, {"server.receive_timeout": 51.5})).startswith(
        "flag --receive-timeout: server.receive_timeout: server.receive_timeout 51.5"
    )
    assert refusal(lambda: load(str(path), {"GATEWAY_AUTH__ALLOW_INSECURE": "false"}, {})).startswith(
        "environment variable GATEWAY_AUTH__ALLOW_INSECURE: auth.allow_insecure: "
    )


def test_parse_names_its_source() -> None:
    data = {"server": {"prot": 1}}
    assert refusal(lambda: parse(data)) == 'configuration: server.prot: unknown key; did you mean "port"?'
    assert refusal(lambda: parse(data, "a.toml")) == 'a.toml: server.prot: unknown key; did you mean "port"?'


def test_parse_fills_in_the_defaults() -> None:
    config = parse({"server": {"port": 0}, "heartbeat": {"interval": 1, "timeout": 0.5}})
    assert config.server == Server(port=0)
    assert (config.heartbeat.interval, config.heartbeat.timeout) == (1.0, 0.5)
    assert type(config.heartbeat.interval) is float
    assert config.limits == Config().limits
    assert parse({}) == parse({"server": {}, "cluster": {}, "auth": {"jwt": {}}}) == Config()


def test_the_contract_s_defaults() -> None:
    config = Config()
    assert (config.server.host, config.server.port, config.auth.mode) == ("127.0.0.1", 8765, "none")
    assert (config.heartbeat.interval, config.heartbeat.timeout) == (30.0, 10.0)
    assert (config.server.handshake_timeout, config.server.receive_timeout) == (5.0, 60.0)
    assert (config.server.close_timeout, config.server.drain_timeout) == (2.0, 10.0)
    assert (config.limits.max_message_bytes, config.limits.max_outbox_bytes) == (1_048_576, 4_194_304)
    assert (config.limits.call_timeout, config.limits.max_call_timeout) == (30.0, 600.0)
    assert (config.limits.rate, config.limits.max_connections_per_address) == (0.0, 0)
    assert (config.server.allowed_hosts, config.server.trusted_proxies) == ((), ())


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        config.server.port = 1  # type: ignore[misc]  # that it is refused is what is shown
    assert hash(config) == hash(parse({}))


def test_the_file_of_defaults_is_the_defaults() -> None:
    data = tomli.loads(DEFAULTS_FILE.read_text())
    assert parse(data) == Config()
    assert load(str(DEFAULTS_FILE), {}, {}) == Config()
    # Every key is there, none is left that has gone, and a number has the type that it has in the program.
    assert msgspec.json.encode(data) == msgspec.json.encode(Config())


def test_the_file_of_defaults_explains_every_key() -> None:
    explained = False
    for line in DEFAULTS_FILE.read_text().splitlines():
        if re.match(r"\w+ = ", line):
            assert explained, line
        else:
            explained = line.startswith("# ") and len(line) > 10


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[server]\nport = 1\nclose_timeout = 1\n[log]\nlevel = 'error'\n[limits]\nmax_batch = 1")
    environ = {"GATEWAY_SERVER__PORT": "2", "GATEWAY_LOG__LEVEL": "debug", "GATEWAY_CONFIG": "/nowhere"}
    config = load(str(path), environ, {"server.port": 3, "server.host": None})
    assert config == parse(
        {
            "server": {"port": 3, "close_timeout": 1},
            "log": {"level": "debug"},
            "limits": {"max_batch": 1},
        }
    )
    assert load(None, environ | {"GATEWAY_CONFIG": str(path)}, {}).limits.max_batch == 1
    assert load(None, {"GATEWAY_CONFIG": ""}, {}) == Config()


def test_a_wrong_value_is_refused_though_another_overrides_it() -> None:
    environ = {"GATEWAY_SERVER__PORT": "x"}
    assert refusal(lambda: load(None, environ, {"server.port": 1})).startswith("environment variable ")


def test_source_of(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[server]\nport = 1")
    environ = {"GATEWAY_SERVER__PORT": "2"}
    assert source_of("server.port", None, {}, {}) == "default"
    assert source_of("server.port", str(path), {}, {}) == str(path)
    assert source_of("server.port", str(path), environ, {}) == "environment variable GATEWAY_SERVER__PORT"
    assert source_of("server.port", str(path), environ, {"server.port": 0}) == "flag --port"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("server.port", "9000", 9000),
        ("server.compression", "true", True),
        ("server.compression", "0", False),
        ("server.host", "::1", "::1"),
        ("server.close_timeout", "3", 3.0),
        ("server.close_timeout", "2.5", 2.5),
        ("server.allowed_hosts", "a.example, [::1]", ("a.example", "[::1]")),
        ("server.allowed_hosts", "", ()),
        ("log.format", "text", "text"),
        ("auth.jwt.issuer", "1", "1"),
        ("auth.jwt.algorithms", "EdDSA", ("EdDSA",)),
        ("methods.modules", "a.b,c", ("a.b", "c")),
    ],
)
def test_text_is_converted_by_the_key_s_type(key: str, text: str, value: object) -> None:
    for config in (load(None, {variable(key): text}, {}), load(None, {}, {key: text})):
        assert at(config, key) == value
        assert type(at(config, key)) is type(value)


def test_other_variables_are_left_alone() -> None:
    others = {
        "GATEWAY_URL": "ws://x",
        "GATEWAY_TOKEN": "y",
        "GATEWAY_PORT": "tcp://z",
        "A__B": "1",
        "PATH": "/",
    }
    assert load(None, others, {}) == Config()


@pytest.mark.parametrize("key", [key for key, _ in keys()])
def test_every_key_from_every_source(key: str) -> None:
    default = at(Config(), key)
    text = ",".join(default) if isinstance(default, tuple) else str(default).lower()
    assert load(None, {variable(key): text}, {}) == Config()
    assert load(None, {}, {key: default}) == Config()
    wrong: object = 5 if isinstance(default, str | tuple | bool) else [default]
    start = f"x.toml: {key}: expected "
    assert refusal(lambda: parse(tables(key, wrong), "x.toml")).startswith(start)


@pytest.mark.parametrize("key", numbers(float))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1, -0.001, 10**400, True, "1"])
def test_no_number_of_seconds(key: str, value: object) -> None:
    assert refusal(lambda: parse(tables(key, value))).startswith(f"configuration: {key}: ")


@pytest.mark.parametrize("key", numbers(int))
@pytest.mark.parametrize("value", [-1, 1.0, float("nan"), 10**400, True, "1", None])
def test_no_integer(key: str, value: object) -> None:
    assert refusal(lambda: parse(tables(key, value))).startswith(f"configuration: {key}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.port", 65535),
        ("server.drain_timeout", 0),
        ("server.receive_timeout", 40.001),
        ("server.unix_socket", "s" * 107),
        ("limits.outbox_timeout", 0),
        ("limits.rate", 0.5),
        ("limits.burst", 1),
        ("limits.max_outbox_bytes", 2_097_152),
        ("limits.max_call_timeout", 30),
        ("limits.max_connections_per_address", 1),
        ("limits.max_connections_per_principal", 0),
        ("limits.max_unauthenticated", 1),
        ("limits.control_rate", 0),
        ("auth.expiry_notice", 0),
        ("events.history_count", 0),
        ("auth.tokens_file", "not/there/yet.toml"),
    ],
)
def test_the_last_value_that_is_allowed(key: str, value: object) -> None:
    assert at(parse(tables(key, value)), key) == value


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (
            "server.allowed_hosts",
            ["example.com", "localhost", "192.0.2.1", "[2001:db8::1]", "a_b.internal"],
            [
                "Example.com",
                "a:80",
                "::1",
                "*.a",
                "a.",
                "",
                "-a",
                "a b",
                "[1.2.3.4]",
                "[FE80::1]",
                "a/b",
                "bücher.de",
                "[fe80::1%lo]",
                ".".join("a" * 128),
            ],
        ),
        (
            "server.allowed_origins",
            ["https://example.com", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abc"],
            [
                *("example.com", "https://", "https://a/", "https://a:443", "http://a:80", "https://a:0"),
                *("https://a:65536", "https://A", "HTTPS://a", "null", "*", "https://*.a", "https://u@a", ""),
            ],
        ),
        (
            "server.trusted_proxies",
            ["10.0.0.0/8", "192.0.2.1", "unix", "2001:db8::/32", "::1"],
            ["10.0.0.1/8", "10.0.0.0/33", "proxy.example", "", "10", "Unix", "unix:", "unix:/run/proxy.sock"],
        ),
        ("methods.modules", ["a", "a.b_c"], ["", "a.", ".a", "a-b", "a.class", "a/b.py"]),
        ("events.conflate", ["a", "a.*", "a.>", ">"], ["", "a.", "a b", "a\n", "a*", "a.>.b", "a:b", "*." * 100 + "*"]),
    ],
)
def test_items(key: str, good: list[str], bad: list[str]) -> None:
    assert at(parse(tables(key, good)), key) == tuple(good)
    for item in bad:
        line = refusal(partial(parse, tables(key, [*good, item])))
        assert line.startswith(f"configuration: {key}[{len(good)}]: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.3", "::1", "localhost", "LocalHost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert parse({"server": {"host": host}}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "localhost.example.com", "127.1"])
def test_mode_none_stays_on_loopback(host: str) -> None:
    assert not is_loopback(host)
    open_to_all = {"server": {"host": host}}
    assert refusal(lambda: parse(open_to_all)).startswith(f'configuration: server.host: "{host}" is not loopback')
    assert parse(open_to_all | {"auth": {"allow_insecure": True}}).server.host == host
    assert parse({"server": {"host": host, "unix_socket": "/run/gateway.sock"}}).server.host == host


NEEDED = [
    ({"mode": "token"}, "auth.tokens_file"),
    ({"mode": "jwt"}, "auth.jwt.algorithms"),
    ({"mode": "jwt", "jwt": {"jwks_file": "keys.json"}}, "auth.jwt.algorithms"),
    ({"mode": "jwt", "jwt": {"algorithms": ["EdDSA"]}}, ONE_FILE),
    ({"mode": "jwt", "jwt": {"algorithms": ["EdDSA"], "public_key_file": ""}}, ONE_FILE),
]


@pytest.mark.parametrize(("table", "needed"), NEEDED)
def test_a_mode_without_what_it_needs_is_blamed_on_who_set_it(table: dict[str, Any], needed: str) -> None:
    """Not on the defaults: nobody has them open in an editor."""
    line = refusal(lambda: parse({"auth": table}, "a.toml"))
    assert line.startswith("a.toml: auth.")
    assert needed in line
    line = refusal(lambda: load(None, {"GATEWAY_AUTH__MODE": table["mode"]}, {}))
    assert line.startswith("environment variable GATEWAY_AUTH__MODE: auth.mode: ")


@pytest.mark.parametrize(
    "auth",
    [
        {"mode": "token", "tokens_file": "t.toml"},
        {"mode": "jwt", "jwt": {"algorithms": ["HS256", "HS512"], "secret_file": "s"}},
        {"mode": "jwt", "jwt": {"algorithms": ["RS256", "ES384", "EdDSA"], "public_key_file": "p", "issuer": "i"}},
        {"mode": "jwt", "jwt": {"algorithms": ["RS256", "HS256"], "jwks_file": "j", "audience": "a"}},
    ],
)
def test_with_credentials_it_may_listen_anywhere(auth: dict[str, Any]) -> None:
    """The files are read when it starts."""
    config = parse({"server": {"host": "0.0.0.0"}, "auth": auth})
    assert (config.auth.mode, config.auth.allow_insecure) == (auth["mode"], False)
    # What belongs to a mode is not asked for in another.
    assert parse({"auth": auth | {"mode": "none"}}).auth.mode == "none"
    assert parse({"auth": {"jwt": {"algorithms": ["HS256"], "public_key_file": "p"}}}).auth.mode == "none"


def test_a_socket_path_is_measured_in_bytes() -> None:
    assert parse({"server": {"unix_socket": "é" * 53}}).server.unix_socket == "é" * 53
    assert "server.unix_socket: " in refusal(lambda: parse({"server": {"unix_socket": "é" * 54}}))


def with_files(cert: Path, key: Path) -> dict[str, Mapping[str, object]]:
    return {"server": {"tls_cert": str(cert), "tls_key": str(key)}}


@pytest.fixture
def files(certificates: Authority, tmp_path: Path) -> ServerFiles:
    return certificates.issue(tmp_path)


def test_certificate(files: ServerFiles, tmp_path: Path) -> None:
    assert parse(with_files(files.cert, files.key)).server.tls_key == str(files.key)
    both = tmp_path / "both.pem"
    both.write_bytes(files.key.read_bytes() + files.cert.read_bytes())
    assert parse(with_files(both, both)).server.tls_cert == str(both)


def test_certificate_of_another_key(files: ServerFiles, certificates: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = certificates.issue(tmp_path / "other")
    line = refusal(lambda: parse(with_files(files.cert, other.key)))
    assert line.startswith(f'configuration: server.tls_key: "{str(other.key)[:59]}')
    assert line.endswith("do not load: KEY_VALUES_MISMATCH; the PEM file of that certificate's private key")


def test_files_that_are_no_certificate_or_key(files: ServerFiles, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    for content in (b"", b"no PEM\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        junk.write_bytes(content)
        assert "holds no certificate; " in refusal(lambda: parse(with_files(junk, files.key)))
        assert " do not load: " in refusal(lambda: parse(with_files(files.cert, junk)))
    assert "holds no certificate; " in refusal(lambda: parse(with_files(files.key, files.key)))
    assert "cannot be read: Is a directory" in refusal(lambda: parse(with_files(files.cert, tmp_path)))


def test_key_with_a_passphrase_is_refused_without_asking(files: ServerFiles, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hush"),
        )
    )
    line = refusal(lambda: parse(with_files(files.cert, encrypted)))
    assert line.endswith("is encrypted; a private key without a passphrase")
    assert "server.tls_key: " in line


def test_anything_is_either_a_configuration_or_one_line() -> None:
    draw = random.Random(20)
    names = sorted({name for key, _ in keys() for name in key.split(".")} | {"x", "", "a.b", "\x1b[2J", "\ud800"})
    scalars: list[object] = [
        *(0, 1, -1, 2**31, 2**70, 0.0, 0.5, 1e300, float("nan"), True, False, None, b"x"),
        *("", "none", "info", "a", "1", "é", "\0", "\ud800", "a\nb", "x" * 500, "::1", "https://a"),
    ]

    def value(depth: int) -> object:
        kind = draw.random()
        if depth and kind < 0.3:
            return table(depth - 1)
        if depth and kind < 0.4:
            return [value(depth - 1) for _ in range(draw.randrange(3))]
        return draw.choice(scalars)

    def table(depth: int) -> dict[str, object]:
        return {draw.choice(names): value(depth) for _ in range(draw.randrange(4))}

    accepted = refused = 0
    for _ in range(5000):
        key, _default = draw.choice(list(keys()))
        data = draw.choice([table(3), {}]) | tables(key, value(1))
        result = attempt(partial(parse, data))
        if isinstance(result, Config):
            accepted += 1
            assert parse(msgspec.to_builtins(result)) == result
        else:
            refused += 1
            assert result.isprintable()
            assert len(result) < 600
    assert accepted > 100
    assert refused > 1000


def test_any_variable_is_either_a_configuration_or_names_itself() -> None:
    draw = random.Random(8)
    texts = [
        "",
        "0",
        "1",
        "-1",
        "1e3",
        "nan",
        "true",
        "a",
        ",",
        "a,b",
        " 1",
        "\udcff",
        "::1",
        "info",
        "9" * 5000,
    ]
    for key, _ in keys():
        for text in (*texts, "".join(draw.choices("01.,-aé\n\x1b ", k=8))):
            environ = {variable(key): text}
            result = attempt(partial(load, None, environ, {}))
            if isinstance(result, str):
                assert result.isprintable()
                assert result.startswith(f"environment variable {variable(key)}: {key}")
