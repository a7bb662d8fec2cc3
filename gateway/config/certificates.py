"""Loads the server's certificate chain and private key from PEM files, or says why that is not possible. Pure."""

import ssl

from gateway.config.types import literal
from gateway.text import plain


class CertificateError(OSError):
    """The files cannot be used for a TLS server. It is an `OSError`, as `ssl.SSLError` is.

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
    _check_readable("server.tls_cert", cert)
    _check_readable("server.tls_key", key)
    _check_certificate(cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, _no_passphrase)
    except _PassphraseNeededError:
        wrong = f"{literal(key)} is encrypted"
        raise CertificateError("server.tls_key", wrong, "a private key without a passphrase") from None
    except ssl.SSLError as error:
        wrong = f"{literal(key)} and server.tls_cert {literal(cert)} do not load: {error.reason}"
        raise CertificateError("server.tls_key", wrong, "the PEM file of that certificate's private key") from None
    return context


def _check_readable(setting: str, file: str) -> None:
    try:
        with open(file, "rb") as opened:
            opened.read(1)
    except OSError as error:
        wrong = f"{literal(file)} cannot be read: {error.strerror}"
        raise CertificateError(setting, wrong, "a readable PEM file") from None


def _check_certificate(cert: str) -> None:
    # In a context of its own, because a context trusts whatever is loaded in this way.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=cert)
    except ssl.SSLError:
        wrong = f"{literal(cert)} holds no certificate"
        right = "a PEM file with the certificate and its chain"
        raise CertificateError("server.tls_cert", wrong, right) from None
