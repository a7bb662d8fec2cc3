"""Settings that do not go together, and who is blamed for it."""

from pathlib import Path
from typing import Any

import pytest

from gateway.config import is_loopback, load, parse
from tests.support.settings import refusal, refused_file

ALGORITHM = '"HS256", "RS256", "ES256", a longer one of these, or "EdDSA"'
ONE_FILE = "one of auth.jwt.secret_file, public_key_file and jwks_file"
NATS = "[cluster]\nnats = ['nats://a']\n"
ONE_KIND = "one of cluster.user with password_file, token_file and credentials_file"

# A table [auth.jwt], and the line that it earns.
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
    *((f"[auth]\nmode = 'jwt'\n[auth.jwt]\n{table}", line) for table, line in WRONG_JWT),
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
        "[limits]\nmax_principal_bytes = 5242879",
        "limits.max_principal_bytes: limits.max_principal_bytes 5242879 is less than limits.max_outbox_bytes 4194304"
        " + limits.max_message_bytes 1048576, which one connection may hold;"
        " a limits.max_principal_bytes of at least 5242880",
    ),
    (
        "[limits]\nmax_call_timeout = 29.5",
        "limits.max_call_timeout: limits.max_call_timeout 29.5 is below limits.call_timeout 30.0;"
        " a limits.max_call_timeout of at least 30.0",
    ),
    (
        "[auth]\nmode = 'token'\ntokens_file = 't'\n[limits]\nmax_connections = 16",
        "limits.max_connections: limits.reserved_for_admin 16 is not below limits.max_connections 16;"
        " a limits.reserved_for_admin below 16",
    ),
    (
        "[server]\nunix_socket = '/run/a'\nreuse_port = true",
        'server.reuse_port: true, and server.unix_socket "/run/a" can have one listener only;'
        " false, or server.host and port instead of unix_socket",
    ),
    ("[server]\ntls_cert = 'a.pem'", "server.tls_cert: set without server.tls_key; both or neither"),
    ("[server]\ntls_key = 'a.key'", "server.tls_key: set without server.tls_cert; both or neither"),
    (
        "[server]\ntls_cert = '/no/a.pem'\ntls_key = '/no/a.key'",
        'server.tls_cert: "/no/a.pem" cannot be read: No such file or directory; a readable PEM file',
    ),
    (
        f"{NATS}token_file = 't'\ncredentials_file = 'c'",
        f"cluster.token_file: cluster.token_file and cluster.credentials_file are set; {ONE_KIND}",
    ),
    (
        f"{NATS}user = 'u'\npassword_file = 'p'\ntoken_file = 't'",
        f"cluster.user: cluster.user and cluster.token_file are set; {ONE_KIND}",
    ),
    (f"{NATS}user = 'u'", "cluster.user: set without cluster.password_file; both or neither"),
    (f"{NATS}password_file = 'p'", "cluster.password_file: set without cluster.user; both or neither"),
    (f"{NATS}tls_key = 'k'", "cluster.tls_key: set without cluster.tls_cert; both or neither"),
    (
        f"{NATS}tls_ca = 'ca.pem'",
        "cluster.nats: cluster.tls_ca is set, and nats://a may be plaintext; tls:// for all of cluster.nats",
    ),
    (
        "[cluster]\nnats = ['tls://a', 'nats://b']\ntls_cert = 'c'\ntls_key = 'k'",
        "cluster.nats: cluster.tls_cert is set, and nats://b may be plaintext; tls:// for all of cluster.nats",
    ),
    (
        "[cluster]\nnats = ['tls://a']\ntls_ca = '/no/ca.pem'",
        'cluster.tls_ca: "/no/ca.pem" cannot be read: No such file or directory; a readable PEM file',
    ),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES, ids=[line[:60] for _, line in WRONG_FILES])
def test_wrong_file(text: str, line: str, tmp_path: Path) -> None:
    assert refused_file(tmp_path, text) == line


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


def test_mode_none_stays_on_loopback_with_each_of_several_addresses() -> None:
    mixed: dict[str, dict[str, object]] = {"server": {"host": ["127.0.0.1", "192.0.2.1", "::1"]}}
    line = refusal(lambda: parse(mixed))
    assert line.startswith('configuration: server.host: "192.0.2.1" is not loopback')
    assert parse(mixed | {"auth": {"allow_insecure": True}}).server.hosts == ("127.0.0.1", "192.0.2.1", "::1")
    assert parse({"server": {"host": ["127.0.0.1", "::1"]}}).server.hosts == ("127.0.0.1", "::1")
    assert parse({}).server.hosts == ("127.0.0.1",)


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


def test_who_is_alone_needs_nothing_of_a_cluster() -> None:
    unused = {"user": "u", "token_file": "t", "credentials_file": "c", "tls_ca": "/no", "tls_key": "/no"}
    assert parse({"cluster": unused}).cluster.user == "u"
    assert "cluster.user and cluster.token_file" in refusal(
        lambda: parse({"cluster": {**unused, "nats": ["nats://a"]}})
    )


def test_some_servers_of_a_cluster_may_be_plaintext_if_no_key_says_otherwise() -> None:
    assert parse({"cluster": {"nats": ["tls://a", "nats://b"]}}).cluster.nats == ("tls://a", "nats://b")
