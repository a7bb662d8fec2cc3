"""Chooses the authenticator for the mode of `[auth]`."""

from __future__ import annotations

import logging
import os
import stat

from gateway.auth import jwts, tokens
from gateway.auth.credentials import ANYBODY, Authenticator, Credential
from gateway.config import Auth

logger = logging.getLogger(__name__)


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

    Raises `config.ConfigError` if a file cannot be used. Logs a warning if every user may read what should be secret.
    """
    if auth.mode == "token":
        authenticator = tokens.Tokens(tokens.load(auth.tokens_file))
        warn_if_open(auth.tokens_file, "auth.tokens_file", "the digests of tokens")
        return authenticator
    if auth.mode == "jwt":
        keys = jwts.load(auth.jwt)
        if keys.has_secret:
            which = "secret_file" if auth.jwt.secret_file else "jwks_file"
            warn_if_open(getattr(auth.jwt, which), f"auth.jwt.{which}", "the secret that signs JWTs")
        return keys
    return AllowAny()


def warn_if_open(path: str, key: str, content: str) -> None:
    """Log a warning if every user may read a file, which has ``content`` and is named by the setting ``key``.

    It is no error, because containers are often given their secrets with mode 0444.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # it has gone since it was read
        return
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        logger.warning(
            "%s: mode %04o lets every user read %s; chmod o-r",
            path,
            stat.S_IMODE(mode),
            content,
            extra={"event": "auth.file_readable", "key": key, "file": path},
        )
