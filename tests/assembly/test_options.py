"""How to connect to NATS, as `[cluster]` says it."""

import logging
from pathlib import Path

import msgspec
import pytest

from gateway.assembly import options
from gateway.cluster import natswire
from gateway.cluster.natslink import Options
from gateway.config import Cluster, ConfigError, parse
from gateway.config.certificates import CertificateError
from gateway.config.schema import KEYS
from tests.support.certs import authority
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.nkeys import Nkey, credentials, trust

USER = "authorization { user: me, password: 'pass word' }"
TOKEN = "authorization { token: t0ken }"


def secret(path: Path, content: str | bytes, mode: int = 0o600) -> str:
    """Write a file that only its owner may read, and return its path."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


def section(*nats: str, **keys: object) -> Cluster:
    return parse({"cluster": {"nats": list(nats), **keys}}).cluster


async def joins(found: Options) -> bool:
    """Whether a client with these options joins."""
    fields = {name: getattr(found, name) for name in Options.__dataclass_fields__ if name != "urls"}
    async with NatsPeer(*found.urls, **fields) as peer:
        return bool(peer.joined)


def test_without_credentials() -> None:
    found = options.load(section("nats://a", "nats://b", name="home"), "kitchen")
    assert found == Options(urls=("nats://a", "nats://b"), name="kitchen", inbox=b"home.inbox")


async def test_a_user(tmp_path: Path) -> None:
    file = secret(tmp_path / "password", "pass word\n")
    async with NatsServer(USER) as server:
        assert await joins(options.load(section(server.url, user="me", password_file=file), ""))


async def test_a_token(tmp_path: Path) -> None:
    file = secret(tmp_path / "token", "t0ken\r\n")
    async with NatsServer(TOKEN) as server:
        assert await joins(options.load(section(server.url, token_file=file), ""))


async def test_credentials(tmp_path: Path) -> None:
    trusted = trust()
    file = secret(tmp_path / "user.creds", trusted.credentials)
    async with NatsServer(trusted.config) as server:
        assert await joins(options.load(section(server.url, credentials_file=file), ""))


async def test_certificates(tmp_path: Path) -> None:
    ca, own = authority().write(tmp_path / "ca.pem"), authority().issue(tmp_path)
    files = {"tls_ca": str(ca), "tls_cert": str(own.cert), "tls_key": str(own.key)}
    async with NatsServer(verify=True) as server:
        assert await joins(options.load(section(server.url, **files), ""))


def test_the_system_is_trusted_if_nothing_is_said() -> None:
    assert options.load(section("tls://a"), "").tls is None, "a context would refuse plaintext servers too"


NO_SEED = "there is no USER NKEY SEED in the credentials"


@pytest.mark.parametrize(
    ("key", "content", "wrong"),
    [
        ("password_file", None, "cannot be read: No such file or directory"),
        ("password_file", b"\n", "the file is empty"),
        ("token_file", None, "cannot be read: No such file or directory"),
        ("token_file", b"\xff", "not UTF-8"),
        ("credentials_file", None, "cannot be read: No such file or directory"),
        ("credentials_file", b"\xff", NO_SEED),
    ],
)
def test_a_file_that_cannot_be_used(key: str, content: bytes | None, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if content is not None:
        secret(file, content)
    with pytest.raises(ConfigError) as refused:
        options.load(msgspec.structs.replace(section("nats://a"), **{key: str(file)}), "")
    assert (refused.value.source, refused.value.key) == (str(file), f"cluster.{key}")
    assert refused.value.wrong == wrong


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"^cluster\.tls_ca: "):
        options.load(msgspec.structs.replace(section("tls://a"), tls_ca=str(tmp_path / "none")), "")


def test_no_secret_is_shown(tmp_path: Path) -> None:
    creds = credentials(Nkey("user"))
    files = {
        "password_file": secret(tmp_path / "password", "hush"),
        "credentials_file": secret(tmp_path / "creds", creds),
    }
    found = options.load(msgspec.structs.replace(section("nats://a"), **files), "")
    assert (found.password, found.credentials) == ("hush", creds)
    assert "hush" not in repr(found) and "SEED" not in repr(found)


def test_a_secret_that_everybody_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = secret(tmp_path / "token", "hush", 0o644)
    with caplog.at_level(logging.WARNING):
        options.load(section("nats://a", token_file=file), "")
    (record,) = caplog.records
    assert (record.__dict__["event"], record.__dict__["key"]) == ("auth.file_readable", "cluster.token_file")
    assert "hush" not in record.getMessage()


@pytest.mark.parametrize(
    "url",
    [
        *("nats://a", "tls://a:1", "nats://[::1]:65535/", "nats://127.0.0.1", "nats://a_b"),
        *("", "nats://", "nats://a:0", "nats://a:65536", "nats://a:123456", "nats://u:p@a", "http://a", "nats://a/b"),
        *("nats://a b", "nats://::1", "nats://[a]", "nats://a?b", "nats://a\n"),
    ],
)
def test_the_configuration_takes_the_urls_that_the_client_takes(url: str) -> None:
    check = KEYS["cluster", "nats"].check
    assert check is not None
    try:
        natswire.address(url)
    except ValueError:
        assert not check(url)
    else:
        assert check(url)
