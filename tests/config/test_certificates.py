"""The files of certificate and key, and the TLS context that they make."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.config import parse
from gateway.config.certificates import CertificateError, client_context, tls_context
from tests.support.certs import Authority, ServerFiles
from tests.support.settings import refusal


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


def test_the_context_that_is_served(files: ServerFiles) -> None:
    context = tls_context(str(files.cert), str(files.key))
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert (context.verify_mode, context.get_ca_certs()) == (ssl.CERT_NONE, []), "no client is asked for a certificate"
    assert tls_context("", "") is None


def test_a_refusal_outside_of_a_configuration_is_one_line_too(files: ServerFiles, tmp_path: Path) -> None:
    """A reload logs it."""
    missing = str(tmp_path / "no\nkey")
    with pytest.raises(CertificateError) as refused:
        tls_context(str(files.cert), missing)
    assert refused.value.key == "server.tls_key"
    line = str(refused.value)
    assert line.startswith('server.tls_key: "') and line.isprintable()
    assert line.endswith("cannot be read: No such file or directory; a readable PEM file")


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


def as_client(**files: Path) -> dict[str, Mapping[str, object]]:
    return {"cluster": {"nats": ["tls://a"]} | {name: str(file) for name, file in files.items()}}


def test_the_context_of_a_client(files: ServerFiles, certificates: Authority, tmp_path: Path) -> None:
    ca = certificates.write(tmp_path / "ca.pem")
    context = client_context(str(ca), "", "")
    assert (context.minimum_version, context.verify_mode) == (ssl.TLSVersion.TLSv1_2, ssl.CERT_REQUIRED)
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1, "the system's are not trusted as well"
    assert client_context("", str(files.cert), str(files.key)).verify_mode is ssl.CERT_REQUIRED


def test_files_of_a_client_that_cannot_be_used(files: ServerFiles, certificates: Authority, tmp_path: Path) -> None:
    ca = certificates.write(tmp_path / "ca.pem")
    junk = tmp_path / "junk"
    junk.write_bytes(b"no PEM\n")
    assert parse(as_client(tls_ca=ca, tls_cert=files.cert, tls_key=files.key)).cluster.tls_ca == str(ca)
    line = refusal(lambda: parse(as_client(tls_ca=junk)))
    assert line.startswith("configuration: cluster.tls_ca: ")
    assert line.endswith("holds no certificate; a PEM file with certificates")
    line = refusal(lambda: parse(as_client(tls_cert=files.cert, tls_key=junk)))
    assert line.startswith("configuration: cluster.tls_key: ")
    assert " do not load: " in line and "cluster.tls_cert" in line
