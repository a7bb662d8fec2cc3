"""What each setting may be, and in which words the rest is refused."""

from functools import partial
from pathlib import Path

import pytest

from gateway.config import is_loopback, parse
from tests.support.settings import at, numbers, refusal, refused_file, tables

YEAR = "a number of seconds above 0, at most 31536000"
PORT = "an integer from 0 to 65535"
COUNT = "an integer from 1 to 2147483647"
HOST = 'a name in lower case without scheme and port, such as "example.com" or "[::1]"'
ORIGIN = 'scheme://host[:port] in lower case, no default port, such as "https://example.com"'
LISTEN = 'an address or name, such as "127.0.0.1", "::1" or "localhost", or an array of them'
NATS = '"nats://host:port" or "tls://host:port"; user and password have keys of their own'

# A file's text, and the line that it earns, behind the file's name.
WRONG_FILES = [
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
    ("[server]\nhost = 1", f"server.host: expected str, got int 1; {LISTEN}"),
    ("[server]\nhost = []", f"server.host: an empty array; {LISTEN}"),
    ("[server]\nhost = ['::1', '']", f'server.host[1]: "" is not allowed; {LISTEN}'),
    ("[server]\nhost = ['::1', 1]", f"server.host[1]: expected str, got int 1; {LISTEN}"),
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
    (
        "[auth.jwt]\nalgorithms = ['none']",
        'auth.jwt.algorithms[0]: "none" is not allowed; "HS256", "RS256", "ES256", a longer one of these, or "EdDSA"',
    ),
    ("[cluster]\nnats = ['nats://me:hush@nats']", f"cluster.nats[0]: this is not allowed; {NATS}"),
    ("[cluster]\nnats = 'nats://me:hush@nats'", f"cluster.nats: expected array, got str; an array, each item {NATS}"),
    ("[cluster]\nnats = 4222", f"cluster.nats: expected array, got int 4222; an array, each item {NATS}"),
    ("[cluster]\nname = 'a.b'", 'cluster.name: "a.b" is not allowed; 1 to 64 letters, digits, "-" and "_"'),
    (
        "[cluster]\nmember = 'a\tb'",
        'cluster.member: "a\\tb" is not allowed; a name on one line, of at most 200 characters, or an empty string',
    ),
    ("[cluster]\nstorage = 'disk'", 'cluster.storage: "disk" is not allowed; "file" or "memory"'),
    ("[cluster]\nreplicas = 6", "cluster.replicas: 6 is out of range; an integer from 1 to 5"),
    (
        "[cluster]\nmember_timeout = 0.4",
        "cluster.member_timeout: 0.4 is out of range; a number of seconds from 0.5 to 60",
    ),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES, ids=[line[:60] for _, line in WRONG_FILES])
def test_wrong_file(text: str, line: str, tmp_path: Path) -> None:
    assert refused_file(tmp_path, text) == line


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
        ("cluster.name", "Home_2-b" * 8),
        ("cluster.member", "kitchen pi"),
        ("cluster.member_timeout", 0.5),
        ("cluster.replicas", 5),
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
        ("server.subprotocols", ["jsonrpc", "v2.json-rpc"], ["", "a b", "a,b", "é", "a\n", "a:b"]),
        ("methods.modules", ["a", "a.b_c"], ["", "a.", ".a", "a-b", "a.class", "a/b.py"]),
        (
            "cluster.nats",
            ["nats://a", "nats://127.0.0.1:4222", "tls://[::1]:65535/", "nats://a_b.internal:1"],
            [
                "",
                "a:4222",
                "http://a",
                "NATS://a",
                "nats://",
                "nats://a:0",
                "nats://a:65536",
                "nats://a/b",
                "nats://a b",
            ],
        ),
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


def test_a_socket_path_is_measured_in_bytes() -> None:
    assert parse({"server": {"unix_socket": "é" * 53}}).server.unix_socket == "é" * 53
    assert "server.unix_socket: " in refusal(lambda: parse({"server": {"unix_socket": "é" * 54}}))
