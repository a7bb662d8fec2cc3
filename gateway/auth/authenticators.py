"""Who verifies credentials: one authenticator for each mode of `[auth]`."""

from __future__ import annotations

from gateway.auth import jwts, tokens
from gateway.auth.credentials import ANYBODY, Authenticator, Credential
from gateway.config import Auth


class Everybody:
    """Mode none: whoever comes is anonymous, with every scope, whatever the credential."""

    asks = False

    def verify(self, token: str, now: float) -> Credential:
        """Never raises."""
        return ANYBODY

    def renewed(self, credential: Credential) -> Credential:
        """It stands."""
        return credential


def load(auth: Auth) -> Authenticator:
    """The authenticator of the configured mode; reads its files, and may be called again to read them anew.

    Raises `config.ConfigError` where a file cannot be used.
    """
    if auth.mode == "token":
        return tokens.Tokens(tokens.load(auth.tokens_file))
    if auth.mode == "jwt":
        return jwts.load(auth.jwt)
    return Everybody()
