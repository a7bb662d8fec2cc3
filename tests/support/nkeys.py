"""Keys and JWTs of NATS (nkeys, JWT v2), as its tool `nsc` makes them: what a server without a list of users trusts."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

PREFIXES: Final = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
SEED: Final = 18 << 3

Kind = Literal["operator", "account", "user"]


class Nkey:
    """A new key of one kind. `public` and `seed` are its two halves, as NATS writes them."""

    def __init__(self, kind: Kind) -> None:
        prefix = PREFIXES[kind]
        self._kind = kind
        self._key = Ed25519PrivateKey.generate()
        raw = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        self.seed = _text(bytes((SEED | prefix >> 5, (prefix & 31) << 3)) + raw)
        self.public = _text(bytes((prefix,)) + self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def vouch(self, other: "Nkey", claims: Mapping[str, Any] | None = None) -> str:
        """Return a JWT by which this key vouches for another one, or for itself."""
        nats = {"type": other._kind, "version": 2, **(claims or {})}
        said = {"jti": other.public, "iat": 1, "iss": self.public, "sub": other.public, "name": "test", "nats": nats}
        text = f"{_base64({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_base64(said)}"
        return f"{text}.{_url(self._key.sign(text.encode()))}"


class Trust(NamedTuple):
    """The configuration of a server that trusts one operator and account, and the credentials of a user of that one."""

    config: str
    credentials: bytes


def trust() -> Trust:
    """Make an operator, its account, and a user of that one."""
    operator, account, user = Nkey("operator"), Nkey("account"), Nkey("user")
    unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    of_account = operator.vouch(account, {"limits": {**unlimited, "wildcards": True}})
    config = (
        f"operator: {operator.vouch(operator)}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {of_account} }}\n"
    )
    return Trust(config, credentials(user, account.vouch(user, {"subs": -1, "data": -1, "payload": -1})))


def credentials(user: Nkey, jwt: str = "") -> bytes:
    """Return the text of a `.creds` file; without a JWT the key alone."""
    text = f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n" if jwt else ""
    text += "************************* IMPORTANT *************************\nNKEY Seed printed below can be used.\n\n"
    return (text + f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n").encode()


def _text(raw: bytes) -> str:
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def _base64(value: object) -> str:
    return _url(json.dumps(value).encode())


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
