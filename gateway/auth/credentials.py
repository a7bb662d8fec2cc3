"""What a valid credential gives, the error for one that is not valid, and the interface of what verifies them. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.auth.scopes import ANONYMOUS, NOBODY, Principal
from gateway.timestamps import rfc3339_seconds

MAX_CREDENTIAL: Final = 16_384
"""Bytes of a credential, at most, in every mode. Verifying a JWT of this size takes a millisecond or two."""


class Credential(NamedTuple):
    """What a valid credential gives: a principal. The secret itself is kept nowhere.

    ``voucher`` identifies what vouches for the credential: the digest of a token, or the fingerprint of a key.
    """

    principal: Principal
    voucher: bytes


ANYBODY: Final = Credential(ANONYMOUS, b"")
"""The credential of every connection in mode none."""

NO_CREDENTIAL: Final = Credential(NOBODY, b"")
"""Stands for the credential of a connection that has not brought one yet."""


class PrincipalInfo(msgspec.Struct, rename="camel"):
    """The principal of a connection. ``expires_at`` is RFC 3339 in UTC, or null for never."""

    name: str
    role: str
    scopes: tuple[str, ...]
    expires_at: str | None


def described(principal: Principal) -> PrincipalInfo:
    """Describe a principal in the way that clients see it."""
    expires_at = None if principal.expires_at is None else rfc3339_seconds(principal.expires_at)
    return PrincipalInfo(principal.name, principal.role, principal.scopes, expires_at)


class CredentialError(Exception):
    """A credential is not valid. The text says why, and reveals nothing of the credential."""


def is_too_long(token: str) -> bool:
    """Whether a credential is longer than `MAX_CREDENTIAL`, in UTF-8. Then nothing else needs to look at it."""
    return len(token) > MAX_CREDENTIAL or len(token.encode("utf-8", "surrogatepass")) > MAX_CREDENTIAL


class Authenticator(Protocol):
    """Verifies the credentials of one mode."""

    @property
    def asks(self) -> bool:
        """Whether connections must bring a credential."""

    def known(self, token: str, now: float) -> Credential | None:
        """Return what a valid credential gives if a digest is enough to tell, otherwise None. Costs next to nothing."""

    def verify(self, token: str, now: float) -> Credential:
        """Return what a valid credential gives. ``now`` is in seconds since the epoch. Raises CredentialError."""

    def renewed(self, credential: Credential) -> Credential | None:
        """Return a credential as it is under this authenticator's tokens or keys, or None if none vouches for it."""
