"""Certificates for the tests: one authority a test process, and the server certificates that it signs."""

import functools
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

DEFAULT_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerFiles:
    """Where a server's certificate chain and its key lie, both PEM."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority that only the tests trust."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def issue(self, directory: Path, *names: str) -> ServerFiles:
        """Write a new server certificate into `directory`.

        names: host names and addresses, loopback where none is given.
        May be called again with the same directory: the files are replaced, each in one step, as an
        administrator's renewal tool does it.
        """
        leaf = self._ca.issue_cert(*(names or DEFAULT_NAMES))
        files = ServerFiles(directory / "server.pem", directory / "server.key")
        _replace(files.key, leaf.private_key_pem.bytes())
        _replace(files.cert, b"".join(part.bytes() for part in leaf.cert_chain_pems))
        return files

    def write(self, path: Path) -> Path:
        """Write the authority's own certificate, by which others trust it; returns `path`."""
        _replace(path, self._ca.cert_pem.bytes())
        return path

    def client_context(self) -> ssl.SSLContext:
        """Return a new client context that trusts this authority and nobody else, TLS 1.2 and newer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context


@functools.cache
def authority() -> Authority:
    """Return the one authority of this test process."""
    return Authority()


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)
