"""The files of certificate and key."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.config import parse
from tests.certs import Authority, ServerFiles
from tests.settings import refusal


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
