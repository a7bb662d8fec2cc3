"""Makes TLS contexts of certificates and private keys in PEM files, or says why that is not possible. Pure."""

import ssl

from gateway.config.types import literal
from gateway.text import plain


class CertificateError(OSError):
    """The files cannot be used for TLS. It is an `OSError`, as `ssl.SSLError` is.

    `key` is the setting that names the file. `wrong` says what is wrong, `right` what would be right. `str()` is one
    line: `key: wrong; right`.
    """

    def __init__(self, key: str, wrong: str, right: str) -> None:
        super().__init__(plain(f"{key}: {wrong}; {right}"))
        self.key = key
        self.wrong = wrong
        self.right = right


class _PassphraseNeededError(Exception):
    """The private key is encrypted."""


def _no_passphrase() -> str:
    # Without a callback OpenSSL would ask on the terminal, and a service would hang.
    raise _PassphraseNeededError


def tls_context(cert: str, key: str) -> ssl.SSLContext | None:
    """Load `server.tls_cert` and `server.tls_key`, for TLS 1.2 and later. Returns None if `cert` is empty.

    Never asks for a passphrase. Raises `CertificateError`.
    """
    if not cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, "server", cert, key)
    return context


def client_context(ca: str, cert: str, key: str) -> ssl.SSLContext:
    """Load `cluster.tls_ca`, and `cluster.tls_cert` with `cluster.tls_key`, for a client of TLS 1.2 and later.

    Without ``ca`` it trusts what the system trusts; without ``cert`` it has no certificate of its own. Never asks for a
    passphrase. Raises `CertificateError`.
    """
    if ca:
        _check_certificate("cluster.tls_ca", ca)
    context = ssl.create_default_context(cafile=ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert:
        _load_chain(context, "cluster", cert, key)
    return context


def _load_chain(context: ssl.SSLContext, section: str, cert: str, key: str) -> None:
    """Load a certificate with its chain and its key, which ``tls_cert`` and ``tls_key`` of a section name."""
    _check_certificate(f"{section}.tls_cert", cert)
    _check_readable(f"{section}.tls_key", key)
    try:
        context.load_cert_chain(cert, key, _no_passphrase)
    except _PassphraseNeededError:
        wrong = f"{literal(key)} is encrypted"
        raise CertificateError(f"{section}.tls_key", wrong, "a private key without a passphrase") from None
    except ssl.SSLError as error:
        wrong = f"{literal(key)} and {section}.tls_cert {literal(cert)} do not load: {error.reason}"
        raise CertificateError(f"{section}.tls_key", wrong, "the PEM file of that certificate's private key") from None


def _check_readable(setting: str, file: str) -> None:
    try:
        with open(file, "rb") as opened:
            opened.read(1)
    except OSError as error:
        wrong = f"{literal(file)} cannot be read: {error.strerror}"
        raise CertificateError(setting, wrong, "a readable PEM file") from None


def _check_certificate(setting: str, file: str) -> None:
    _check_readable(setting, file)
    # In a context of its own, because a context trusts whatever is loaded in this way.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=file)
    except ssl.SSLError:
        wrong = f"{literal(file)} holds no certificate"
        right = (
            "a PEM file with certificates"
            if setting.endswith("ca")
            else "a PEM file with the certificate and its chain"
        )
        raise CertificateError(setting, wrong, right) from None
