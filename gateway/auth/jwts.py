"""Mode jwt: JSON Web Tokens (RFC 7519), verified by PyJWT with keys from a file, as RFC 8725 advises.

Whatever a token says, only the configured algorithms are used, and each key only with the algorithms for its kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.exceptions import InvalidTokenError, PyJWTError

from gateway.auth.credentials import Credential, CredentialError
from gateway.auth.scopes import MAX_SCOPES, ROLES, Principal, is_scope, role_scopes
from gateway.config import ConfigError, Jwt, read_file
from gateway.names import is_peer_name

MIN_SECRET: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The smallest secret for each algorithm, in bytes: as long as its hash (RFC 7518 section 3.2)."""

MIN_RSA_BITS: Final = 2048
"""The smallest RSA key, in bits (RFC 7518 section 3.3)."""

MAX_TRIED: Final = 4
"""The most keys that are tried for one JWT. If more fit, its ``kid`` has to choose, because each costs a signature."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_NEEDED: Final = ["exp", "sub", "role"]

REMEMBERED: Final = 4096
"""How many valid tokens are remembered, so that a reconnect costs a digest instead of a signature."""


class Key(NamedTuple):
    """A key, the algorithms that it may be used with, its ``kid`` if it has one, and its fingerprint."""

    key: Any
    algorithms: list[str]
    kid: str | None
    fingerprint: bytes


class Jwts:
    """JSON Web Tokens as a `credentials.Authenticator`."""

    asks = True

    def __init__(self, keys: list[Key], issuer: str, audience: str) -> None:
        self._keys = keys
        self._fingerprints = frozenset(key.fingerprint for key in keys)
        self._issuer = issuer or None
        self._audience = audience or None
        self._verified: dict[bytes, Credential] = {}

    @property
    def has_secret(self) -> bool:
        """Whether a key is a secret: whoever knows it can sign."""
        return any(isinstance(key.key, bytes) for key in self._keys)

    def known(self, token: str, now: float) -> Credential | None:
        """Return what a JWT gives that was verified before and has not expired since, otherwise None."""
        return self._remembered(_digest(token), now)

    def _remembered(self, digest: bytes, now: float) -> Credential | None:
        known = self._verified.get(digest)
        return known if known is not None and (known.principal.expires_at or 0.0) > now else None

    def verify(self, token: str, now: float) -> Credential:
        """Return what a valid JWT gives. Raises CredentialError if it is not valid.

        No claim is believed before the signature is verified.
        """
        digest = _digest(token)
        known = self._remembered(digest, now)
        if known is not None:
            return known
        credential = self._verify(token, now)
        if len(self._verified) >= REMEMBERED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = credential
        return credential

    def _verify(self, token: str, now: float) -> Credential:
        try:
            header = jwt.get_unverified_header(token)
        except (InvalidTokenError, UnicodeError, RecursionError):
            raise CredentialError("not a JWT") from None
        keys = self._fitting(header.get("alg"), header.get("kid"))
        for key in keys:
            try:
                claims = self._claims(token, key)
            except jwt.InvalidSignatureError:
                continue
            return Credential(_principal(claims, now), key.fingerprint)
        raise CredentialError("the JWT's signature is wrong")

    def _fitting(self, algorithm: object, kid: object) -> list[Key]:
        """Return the keys to try for a JWT with this header. Raises CredentialError if there are none, or too many."""
        keys = [
            key
            for key in self._keys
            if algorithm in key.algorithms and (kid is None or key.kid is None or kid == key.kid)
        ]
        if not keys:
            raise CredentialError("no key for the JWT's alg and kid")
        if len(keys) > MAX_TRIED:
            raise CredentialError(f"more than {MAX_TRIED} keys for the JWT's alg and kid")
        return keys

    def _claims(self, token: str, key: Key) -> Mapping[str, Any]:
        """Verify the signature of a JWT, and return its claims.

        Raises InvalidSignatureError if another key has signed it, and CredentialError if it is not valid.
        """
        # PyJWT does not compare the times, because `_principal` does so with the time that the caller gives.
        options: Any = {"require": _NEEDED, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=key.algorithms,
                options=options,
                issuer=self._issuer,
                audience=self._audience,
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.MissingRequiredClaimError as error:
            raise CredentialError(f"the JWT has no {error.claim}") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError) as error:
            claim = "iss" if isinstance(error, jwt.InvalidIssuerError) else "aud"
            raise CredentialError(f"the JWT's {claim} is not ours") from None
        except (PyJWTError, ValueError, TypeError, RecursionError):
            raise CredentialError("the JWT is malformed") from None

    def renewed(self, credential: Credential) -> Credential | None:
        """Return the credential as it is, or None if its key is gone."""
        return credential if credential.voucher in self._fingerprints else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _principal(claims: Mapping[str, Any], now: float) -> Principal:
    expires, begins = _number(claims, "exp"), _number(claims, "nbf")
    if expires is None or expires <= now:
        raise CredentialError("the JWT has expired")
    if begins is not None and begins > now:
        raise CredentialError("the JWT is not valid yet")
    name, role, scope = claims["sub"], claims["role"], claims.get("scope")
    if not isinstance(name, str) or not is_peer_name(name):
        raise CredentialError("the JWT's sub is no name")
    if not isinstance(role, str) or role not in ROLES:
        raise CredentialError("the JWT's role is not operator, node or ui")
    if scope is None:
        return Principal(name, role, role_scopes(role, name), expires)
    if not isinstance(scope, str):
        raise CredentialError("the JWT's scope is no string")
    if scope.count(" ") >= MAX_SCOPES:
        raise CredentialError(f"the JWT has more than {MAX_SCOPES} scopes")
    # Other services share this claim (RFC 8693 section 4.2), so a scope of theirs, such as "openid", gives nothing.
    return Principal(name, role, tuple(filter(is_scope, scope.split())), expires)


def _number(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a claim that is a NumericDate (RFC 7519 section 2), or None if there is none. Raises CredentialError."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e11:
        raise CredentialError(f"the JWT's {name} is no number of seconds")
    return float(value)


def load(config: Jwt) -> Jwts:
    """Read the keys from the file that the configuration names. Raises `config.ConfigError`."""
    if config.secret_file:
        keys = [_secret(config.secret_file, config.algorithms)]
    elif config.public_key_file:
        keys = [_public_key(config.public_key_file, config.algorithms)]
    else:
        keys = _key_set(config.jwks_file, config.algorithms)
    return Jwts(keys, config.issuer, config.audience)


def _read(path: str, key: str) -> bytes:
    return read_file(path, key, "the path of a readable file", guarded=True)


def _secret(path: str, algorithms: tuple[str, ...]) -> Key:
    key = "auth.jwt.secret_file"
    secret = _read(path, key).rstrip(b"\r\n")  # editors and `echo` end a file with a newline
    if secret.startswith(b"-----BEGIN "):
        raise ConfigError(path, key, "holds a PEM file", "a secret, of random bytes")
    longest = max(algorithms, key=MIN_SECRET.__getitem__)
    if len(secret) < MIN_SECRET[longest]:
        right = f"at least {MIN_SECRET[longest]} for {longest}"
        raise ConfigError(path, key, f"a secret of {len(secret)} bytes", right)
    return Key(secret, list(algorithms), None, hashlib.sha256(secret).digest())


def _public_key(path: str, algorithms: tuple[str, ...]) -> Key:
    key = "auth.jwt.public_key_file"
    try:
        public = load_pem_public_key(_read(path, key))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(path, key, "holds no public key", "a PEM file that begins with BEGIN PUBLIC KEY") from None
    fitting = _fitting(public, algorithms)
    if not fitting:
        right = "an RSA key of 2048 bits, P-256, P-384, P-521 or Ed25519, and its algorithm in auth.jwt.algorithms"
        raise ConfigError(path, key, f"a key for none of {', '.join(algorithms)}", right)
    return Key(public, fitting, None, _fingerprint(public))


def _fitting(key: object, algorithms: tuple[str, ...]) -> list[str]:
    """Return the algorithms that fit a public key or a secret."""
    if isinstance(key, RSAPublicKey):
        return [name for name in algorithms if name.startswith("RS") and key.key_size >= MIN_RSA_BITS]
    if isinstance(key, EllipticCurvePublicKey):
        return [name for name in algorithms if name == _CURVES.get(key.curve.name)]
    if isinstance(key, Ed25519PublicKey):
        return [name for name in algorithms if name == "EdDSA"]
    if isinstance(key, bytes):
        return [name for name in algorithms if len(key) >= MIN_SECRET.get(name, len(key) + 1)]
    return []


def _fingerprint(key: Any) -> bytes:
    if isinstance(key, bytes):
        return hashlib.sha256(key).digest()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _key_set(path: str, algorithms: tuple[str, ...]) -> list[Key]:
    """Read a JSON Web Key Set (RFC 7517 section 5), without the keys that fit none of the algorithms."""
    at = "auth.jwt.jwks_file"
    try:
        members = json.loads(_read(path, at))["keys"]
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(path, at, "is no JSON Web Key Set", '{"keys": [{"kty": …}]} (RFC 7517)') from None
    keys: list[Key] = []
    for number, member in enumerate(members):
        if "d" in member:
            raise ConfigError(path, f"keys[{number}]", "is a private key", "its public half alone")
        key = _member(member, algorithms)
        if key is not None:
            keys.append(key)
    if not keys:
        raise ConfigError(path, at, f"has no key for {', '.join(algorithms)}", "a key of auth.jwt.algorithms")
    return keys


def _member(member: dict[str, Any], algorithms: tuple[str, ...]) -> Key | None:
    named, kid = member.get("alg"), member.get("kid")
    if member.get("use", "sig") != "sig" or (kid is not None and not isinstance(kid, str)):
        return None
    try:
        key = jwt.PyJWK(member).key
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    fitting = [name for name in _fitting(key, algorithms) if named in (None, name)]
    return Key(key, fitting, kid, _fingerprint(key)) if fitting else None
