"""Chooses the authenticator for the mode of `[auth]`."""

from __future__ import annotations

from gateway.auth import jwts, tokens
from gateway.auth.credentials import ANYBODY, Authenticator, Credential
from gateway.config import Auth


class AllowAny:
    """Mode none as a `credentials.Authenticator`: every peer is anonymous, and has every scope."""

    asks = False

    def known(self, token: str, now: float) -> Credential:
        """Return `ANYBODY`, whatever the token is."""
        return ANYBODY

    def verify(self, token: str, now: float) -> Credential:
        """Return `ANYBODY`, whatever the token is. Never raises."""
        return ANYBODY

    def renewed(self, credential: Credential) -> Credential:
        """Return the credential as it is."""
        return credential


def load(auth: Auth) -> Authenticator:
    """Make the authenticator of the configured mode. Reads its files, so call it again after they have changed.

    Raises `config.ConfigError` if a file cannot be used.
    """
    if auth.mode == "token":
        return tokens.Tokens(tokens.load(auth.tokens_file))
    if auth.mode == "jwt":
        return jwts.load(auth.jwt)
    return AllowAny()
