"""What a valid credential gives, and what is raised for one that is not."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.auth.scopes import ANONYMOUS, NOBODY, Principal
from gateway.timestamps import rfc3339_seconds


class Credential(NamedTuple):
    """A credential that was right. ``voucher`` is what vouches for it: a token's digest, or the fingerprint of a key.

    The credential itself is kept nowhere.
    """

    principal: Principal
    voucher: bytes


ANYBODY: Final = Credential(ANONYMOUS, b"")
"""What everybody has in mode none."""

NO_CREDENTIAL: Final = Credential(NOBODY, b"")
"""What a connection has that still owes its credential."""


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
    """A credential that is not right. The text says why; it has nothing of the credential."""


class Authenticator(Protocol):
    """Verifies credentials, of one mode."""

    @property
    def asks(self) -> bool:
        """Whether a credential is owed at all."""

    def verify(self, token: str, now: float) -> Credential:
        """Raises CredentialError; ``now`` is seconds since the epoch."""

    def renewed(self, credential: Credential) -> Credential | None:
        """The same credential under the tokens or keys of this authenticator; None where they no longer have it."""
