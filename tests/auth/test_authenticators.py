"""Who verifies credentials in which mode."""

from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from gateway.auth import authenticators, tokens
from gateway.auth.authenticators import AllowAny
from gateway.auth.credentials import ANYBODY, CredentialError
from gateway.auth.jwts import Jwts
from gateway.auth.scopes import Principal
from gateway.auth.tokens import Tokens
from gateway.config import Auth, ConfigError, parse

NOW = 1_700_000_000.0


def settings(**table: object) -> Auth:
    return parse({"auth": table}).auth


@pytest.mark.parametrize("token", ["", "anything", "\ud83d", "x" * 100_000])
def test_in_mode_none_everybody_is_an_operator_with_every_scope(token: str) -> None:
    authenticator = authenticators.load(settings())
    assert isinstance(authenticator, AllowAny)
    assert not authenticator.asks
    credential = authenticator.verify(token, NOW)
    assert credential.principal == Principal("anonymous", "operator", ("*",), None)
    assert authenticator.renewed(credential) == authenticator.renewed(ANYBODY) == credential


def test_in_mode_token_the_file_says_who_comes_in(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    token = tokens.add(str(file), "pi", "node", None, None)
    authenticator = authenticators.load(settings(mode="token", tokens_file=str(file)))
    assert isinstance(authenticator, Tokens) and authenticator.asks
    credential = authenticator.verify(token, NOW)
    assert credential.principal.name == "pi"
    tokens.revoke(str(file), "pi")
    assert authenticator.verify(token, NOW) == credential, "the file is read once"
    assert authenticators.load(settings(mode="token", tokens_file=str(file))).renewed(credential) is None


def test_in_mode_jwt_the_key_says_who_comes_in(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"s" * 32)
    configured = settings(mode="jwt", jwt={"algorithms": ["HS256"], "secret_file": str(file), "issuer": "us"})
    authenticator = authenticators.load(configured)
    assert isinstance(authenticator, Jwts) and authenticator.asks
    claims = {"sub": "pi", "role": "node", "exp": NOW + 1, "iss": "us"}
    credential = authenticator.verify(jwt.encode(claims, b"s" * 32, algorithm="HS256"), NOW)
    assert credential.principal.name == "pi"
    with pytest.raises(CredentialError):
        authenticator.verify(jwt.encode(claims | {"iss": "them"}, b"s" * 32, algorithm="HS256"), NOW)
    file.write_bytes(b"t" * 32)
    assert authenticators.load(configured).renewed(credential) is None


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"mode": "token", "tokens_file": "{}"}, "auth.tokens_file"),
        ({"mode": "jwt", "jwt": {"algorithms": ["HS256"], "secret_file": "{}"}}, "auth.jwt.secret_file"),
        ({"mode": "jwt", "jwt": {"algorithms": ["EdDSA"], "public_key_file": "{}"}}, "auth.jwt.public_key_file"),
        ({"mode": "jwt", "jwt": {"algorithms": ["EdDSA"], "jwks_file": "{}"}}, "auth.jwt.jwks_file"),
    ],
)
def test_a_file_that_is_not_there_names_its_setting(
    table: dict[str, object], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        authenticators.load(settings(**table))
    assert (refused.value.source, refused.value.key) == ("{}", key)
    assert refused.value.wrong == "cannot be read: No such file or directory"


def test_files_of_another_mode_are_not_read() -> None:
    assert isinstance(authenticators.load(settings(tokens_file="/nowhere", jwt={"jwks_file": "/nowhere"})), AllowAny)


def test_what_one_mode_let_in_another_does_not_renew(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    tokens.add(str(file), "anonymous", "operator", None, None)
    authenticator = authenticators.load(settings(mode="token", tokens_file=str(file)))
    assert authenticator.renewed(ANYBODY) is None


# Files

OPEN_MODES = [0o666, 0o664, 0o662, 0o620, 0o602, 0o777]
SAFE_MODES = [0o600, 0o640, 0o400, 0o440]
READABLE_MODES = [0o644, 0o444, 0o604]


def of_mode(tmp_path: Path, which: str, mode: int) -> tuple[Path, Auth]:
    """A file of this mode, with what the setting ``which`` needs, and the configuration that names it."""
    file = tmp_path / which
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    content, algorithm = {
        "tokens_file": (b"", ""),
        "secret_file": (bytes(32), "HS256"),
        "public_key_file": (public.public_bytes(serialization.Encoding.PEM, spki), "EdDSA"),
        "jwks_file": (b'{"keys": [{"kty": "oct", "k": "%s"}]}' % (b"A" * 43), "HS256"),
    }[which]
    file.write_bytes(content)
    file.chmod(mode)
    if which == "tokens_file":
        return file, settings(mode="token", tokens_file=str(file))
    return file, settings(mode="jwt", jwt={which: str(file), "algorithms": [algorithm]})


@pytest.mark.parametrize("which", ["tokens_file", "secret_file", "public_key_file", "jwks_file"])
def test_a_file_that_others_may_write_is_refused(which: str, tmp_path: Path) -> None:
    """Whoever may write it could let anybody in."""
    for mode in OPEN_MODES:
        file, auth = of_mode(tmp_path, which, mode)
        with pytest.raises(ConfigError) as refused:
            authenticators.load(auth)
        key = f"auth.{'' if which == 'tokens_file' else 'jwt.'}{which}"
        wrong = f"mode {mode:04o} lets others than its owner write it"
        assert str(refused.value) == f"{file}: {key}: {wrong}; chmod go-w: whoever may write it decides who may connect"
    for mode in (*SAFE_MODES, *READABLE_MODES):
        authenticators.load(of_mode(tmp_path, which, mode)[1])


@pytest.mark.parametrize("which", ["tokens_file", "secret_file", "public_key_file", "jwks_file"])
def test_a_secret_that_everybody_may_read_is_warned_of(
    which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no error: containers are often given their secrets so. A public key may be read."""
    for mode in SAFE_MODES:
        authenticators.load(of_mode(tmp_path, which, mode)[1])
    assert not caplog.records
    for mode in READABLE_MODES:
        file, auth = of_mode(tmp_path, which, mode)
        caplog.clear()
        authenticators.load(auth)
        said = [(record.levelname, vars(record)["event"], vars(record)["file"]) for record in caplog.records]
        assert said == ([] if which == "public_key_file" else [("WARNING", "auth.file_readable", str(file))])
