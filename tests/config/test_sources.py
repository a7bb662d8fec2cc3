"""Where settings come from, what overrides what, and who is named for what is wrong."""

import random
from functools import partial
from pathlib import Path

import msgspec
import pytest

from gateway.config import Config, load, parse, source_of
from tests.support.settings import at, attempt, keys, refusal, refused_file, tables, variable

YEAR = "a number of seconds above 0, at most 31536000"
PORT = "an integer from 0 to 65535"
HOST = 'a name in lower case without scheme and port, such as "example.com" or "[::1]"'
TOML = 'TOML, such as port = 8765 or host = "127.0.0.1"'
TOO_LONG = "an integer too long or arrays nested too deep; a TOML file such as conf/gateway.toml"

# A file's text, and the line that it earns, behind the file's name.
WRONG_FILES = [
    ("[server]\nprot = 1", 'server.prot: unknown key; did you mean "port"?'),
    ("[server]\nPort = 1", 'server.Port: unknown key; did you mean "port"?'),
    ("port = 1", 'port: unknown key; did you mean "server.port"?'),
    ("[server]\nmax_batch = 1", 'server.max_batch: unknown key; did you mean "limits.max_batch"?'),
    ("[sever]\nport = 1", 'sever: unknown key; did you mean "server"?'),
    ("[log]\nxyzzy = 1", "log.xyzzy: unknown key; a table of level, format"),
    ('[log]\n"a.b\\n" = 1', 'log."a.b\\n": unknown key; a table of level, format'),
    ("[cluster]\nmembers = 'x'", 'cluster.members: unknown key; did you mean "member"?'),
    ("[auth.jwt]\nissuers = 'x'", 'auth.jwt.issuers: unknown key; did you mean "issuer"?'),
    ("log = 5", "log: expected table, got int; a table of level, format"),
    ("[[log]]\nlevel = 'info'", "log: expected table, got list; a table of level, format"),
    ("[auth]\ntoken = 'hush'", 'auth.token: unknown key; did you mean "tokens_file"?'),
    ("[server]\nport = ", f"line 2, column 8: Invalid value; {TOML}"),
    ("[server\nport = 1", f"line 1, column 8: Expected ']' at the end of a table declaration; {TOML}"),
    ("port = 1\nport = 2", f"line 2, column 9: Cannot overwrite a value; {TOML}"),
    (f"a = {'9' * 5000}", f"--config: {TOO_LONG}"),
    (f"a = {'[' * 5000}", f"--config: {TOO_LONG}"),
    ("# ü\n# é\udcff", "line 2, column 4: not UTF-8; a TOML file in UTF-8"),
    (
        "\ufeff[server]\nport = 1",
        "line 1, column 1: the file begins with a byte order mark;"
        ' the same file, saved as "UTF-8" and not "UTF-8 with BOM"',
    ),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES, ids=[line[:60] for _, line in WRONG_FILES])
def test_wrong_file(text: str, line: str, tmp_path: Path) -> None:
    assert refused_file(tmp_path, text) == line


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


def test_parse_names_its_source() -> None:
    data = {"server": {"prot": 1}}
    assert refusal(lambda: parse(data)) == 'configuration: server.prot: unknown key; did you mean "port"?'
    assert refusal(lambda: parse(data, "a.toml")) == 'a.toml: server.prot: unknown key; did you mean "port"?'


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
        ("server.host", "127.0.0.1, ::1", ("127.0.0.1", "::1")),
        ("server.close_timeout", "3", 3.0),
        ("server.close_timeout", "2.5", 2.5),
        ("server.allowed_hosts", "a.example, [::1]", ("a.example", "[::1]")),
        ("server.allowed_hosts", "", ()),
        ("log.format", "text", "text"),
        ("auth.jwt.issuer", "1", "1"),
        ("auth.jwt.algorithms", "EdDSA", ("EdDSA",)),
        ("methods.modules", "a.b,c", ("a.b", "c")),
        ("cluster.nats", "nats://a:1, tls://b", ("nats://a:1", "tls://b")),
        ("cluster.member_timeout", "3", 3.0),
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
