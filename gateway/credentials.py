"""What a valid credential gives, and what is raised for one that is not."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from gateway.scopes import ANONYMOUS, NOBODY, Principal


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
