"""What a valid credential gives, what is raised for one that is not valid, and what tells them apart."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.auth.scopes import ANONYMOUS, NOBODY, Principal
from gateway.timestamps import rfc3339_seconds


class Credential(NamedTuple):
    """A credential that was valid. ``voucher`` is what vouches for it: a token's digest, or the fingerprint of a key.

    The credential itself is kept nowhere.
    """

    principal: Principal
    voucher: bytes


ANYBODY: Final = Credential(ANONYMOUS, b"")
"""The credential of every connection in mode none."""

NO_CREDENTIAL: Final = Credential(NOBODY, b"")
"""What stands for the credential of a connection that has not brought one yet."""


class PrincipalInfo(msgspec.Struct, rename="camel"):
    """Who a connection belongs to; ``expires_at`` is RFC 3339 in UTC, null for never."""

    name: str
    role: str
    scopes: tuple[str, ...]
    expires_at: str | None


def described(principal: Principal) -> PrincipalInfo:
    """A principal as clients see it."""
    expires_at = None if principal.expires_at is None else rfc3339_seconds(principal.expires_at)
    return PrincipalInfo(principal.name, principal.role, principal.scopes, expires_at)


class CredentialError(Exception):
    """A credential is not valid. The text says why, and reveals nothing of the credential."""


class Authenticator(Protocol):
    """Verifies the credentials of one mode."""

    @property
    def asks(self) -> bool:
        """Whether connections must bring a credential."""

    def verify(self, token: str, now: float) -> Credential:
        """Return what a valid credential gives. ``now`` is in seconds since the epoch. Raises CredentialError."""

    def renewed(self, credential: Credential) -> Credential | None:
        """Return the credential as this authenticator's tokens or keys have it, None if they no longer vouch for it."""
