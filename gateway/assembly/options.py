"""How to connect to NATS, as `[cluster]` says: the files are read, and the TLS context is made."""

from __future__ import annotations

import ssl
from typing import Final

from gateway.auth.authenticators import warn_if_open
from gateway.cluster.natslink import Options
from gateway.cluster.natswire import Credentials
from gateway.config import Cluster, ConfigError, read_file
from gateway.config.certificates import client_context

_RIGHT: Final = {
    "password_file": "a file with the password of cluster.user, in UTF-8",
    "token_file": "a file with the token, in UTF-8",
    "credentials_file": "a .creds file of a user, as nsc writes it",
}


def load(cluster: Cluster, member: str) -> Options:
    """Read the files of `[cluster]`. ``member`` is this gateway's name for people. May be called again, to reload.

    Raises `config.ConfigError` for a file that cannot be used, and `config.certificates.CertificateError` for one of
    TLS. Logs a warning if every user may read what should be secret.
    """
    return Options(
        urls=cluster.nats,
        name=member,
        user=cluster.user,
        password=_secret(cluster.password_file, "password_file"),
        token=_secret(cluster.token_file, "token_file"),
        credentials=_credentials(cluster.credentials_file),
        tls=_tls(cluster),
        # Below our own prefix, so that permissions for that alone are enough, and no stranger sees an answer.
        inbox=b"%b.inbox" % cluster.name.encode(),
    )


def _tls(cluster: Cluster) -> ssl.SSLContext | None:
    """Return the context, or None if nothing is said of it: it would refuse servers without TLS."""
    if not (cluster.tls_ca or cluster.tls_cert):
        return None
    return client_context(cluster.tls_ca, cluster.tls_cert, cluster.tls_key)


def _secret(path: str, name: str) -> str:
    """Return the text in a file, without the line break at its end."""
    if not path:
        return ""
    key, right = f"cluster.{name}", _RIGHT[name]
    try:
        text = read_file(path, key, right).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(path, key, "not UTF-8", right) from None
    if not text:
        raise ConfigError(path, key, "the file is empty", right)
    warn_if_open(path, key, "what the gateway shows to NATS")
    return text


def _credentials(path: str) -> bytes:
    if not path:
        return b""
    key, right = "cluster.credentials_file", _RIGHT["credentials_file"]
    content = read_file(path, key, right)
    try:
        Credentials(content)
    except ValueError as error:
        raise ConfigError(path, key, str(error), right) from None
    warn_if_open(path, key, "what the gateway shows to NATS")
    return content
