"""Mode token: the file of tokens, which the gateway reads and `python -m gateway token` writes.

The file has only digests. A token has 256 random bits, so its plain SHA-256 cannot be reversed, and needs neither salt
nor stretching. Digests are compared in constant time.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.auth.credentials import Credential, CredentialError
from gateway.auth.scopes import ROLES, Principal, is_scope, role_scopes
from gateway.config import ConfigError, read_toml
from gateway.names import MAX_NAME, is_peer_name
from gateway.timestamps import rfc3339_seconds

if TYPE_CHECKING:
    import tomlkit

TOKEN_BYTES: Final = 32
"""How many random bytes a token has."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST: Final = b"0" * 64
_SCOPES: Final = 'an array of "admin", and of "call:", "serve:", "share:", "subscribe:" or "publish:" with a pattern'


class Entry(NamedTuple):
    """One ``[[token]]``: its owner, with what that principal may do, and the hexadecimal SHA-256 of the token."""

    principal: Principal
    sha256: str


class Tokens:
    """The tokens of one file, as a `credentials.Authenticator`."""

    asks = True

    def __init__(self, entries: list[Entry]) -> None:
        self._by_digest = {entry.sha256: Credential(entry.principal, entry.sha256.encode()) for entry in entries}

    def known(self, token: str, now: float) -> Credential | None:
        """Return what a token gives, or None if it is wrong."""
        try:
            return self.verify(token, now)
        except CredentialError:
            return None

    def verify(self, token: str, now: float) -> Credential:
        """Return what a token gives. Raises CredentialError if the file does not have it, or if it has expired."""
        digest = digest_of(token)
        credential = self._by_digest.get(digest)
        known = _NO_DIGEST if credential is None else credential.voucher
        if not hmac.compare_digest(digest.encode(), known) or credential is None:
            raise CredentialError("unknown token")
        expires_at = credential.principal.expires_at
        if expires_at is not None and expires_at <= now:
            raise CredentialError(f"the token of {credential.principal.name} has expired")
        return credential

    def renewed(self, credential: Credential) -> Credential | None:
        """Return the credential as the file has it now, or None if its token is gone or has another owner."""
        found = self._by_digest.get(credential.voucher.decode())
        return found if found is not None and found.principal.name == credential.principal.name else None


def digest_of(token: str) -> str:
    """Return the digest of a token, as it is in the file: hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def load(path: str, named_by: str = "auth.tokens_file") -> list[Entry]:
    """Read a file of tokens. ``named_by`` is the setting that an error names if the file cannot be read.

    Raises `config.ConfigError`, whose text is one line with the file and the key.
    """
    return _entries(path, _parsed(path, named_by))


def add(path: str, name: str, role: str, scopes: tuple[str, ...] | None, expires: datetime | None) -> str:
    """Make a token, add its digest to the file, and return the token, which is kept nowhere.

    If the file does not exist, it is created so that only its owner can read it. Raises ConfigError if the file is
    wrong, the name is taken, or the new entry would be wrong, and OSError if the file cannot be written. The file is
    then as it was.
    """
    import tomlkit

    token = secrets.token_urlsafe(TOKEN_BYTES)
    with _edited(path) as document:
        if any(entry["name"] == name for entry in document.get("token", [])):
            raise ConfigError(path, "token.name", f'"{name}" has a token', "another name, or `token revoke` first")
        entry = tomlkit.table()
        entry["name"] = name
        entry["role"] = role
        entry["sha256"] = digest_of(token)
        if scopes is not None:
            entry["scopes"] = list(scopes)
        if expires is not None:
            entry["expires"] = expires
        tables = document.setdefault("token", tomlkit.aot())
        if isinstance(tables, tomlkit.items.Array):  # token = [{…}]
            inline = tomlkit.inline_table()
            inline.update(entry)
            tables.append(inline)
        else:
            tables.append(entry)
    return token


def revoke(path: str, name: str) -> None:
    """Remove a token from the file.

    Raises ConfigError if the file is wrong or has no token of this name, and OSError if the file cannot be written.
    """
    with _edited(path) as document:
        tokens = document.get("token", [])
        index = next((number for number, entry in enumerate(tokens) if entry["name"] == name), None)
        if index is None:
            raise ConfigError(path, "token.name", f'no token of "{name}"', "one of those that `token list` shows")
        # Comments between its last key and the next [[token]] are about the next one or about all tokens. They stay.
        body = tokens[index].value.body
        last = max(number for number, (key, _) in enumerate(body) if key is not None)
        comments = body[last + 1 :]
        del tokens[index]
        if index:
            tokens[index - 1].value.body.extend(comments)
        else:
            first = next(number for number, (key, _) in enumerate(document.body) if key is not None)
            if not tokens:
                del document["token"]
            document.body[first:first] = comments


# Reading


def _parsed(path: str, named_by: str) -> Mapping[str, object]:
    import tomli

    content = read_toml(path, named_by, "the path of a readable TOML file of tokens", guarded=True)
    try:
        return tomli.loads(content.decode())
    except tomli.TOMLDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(path, where, error.msg, "TOML, with a [[token]] for each") from None
    except (ValueError, RecursionError):
        raise ConfigError(path, named_by, "is no TOML file", "TOML in UTF-8, with a [[token]] for each") from None


def _entries(path: str, data: Mapping[str, object]) -> list[Entry]:
    for key in data:
        if key != "token":
            raise ConfigError(path, key, "unknown key", "a [[token]] for each token")
    tables = data.get("token", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(path, "token", f"expected tables, got {type(tables).__name__}", "a [[token]] for each token")
    entries: list[Entry] = []
    seen: dict[tuple[str, str], str] = {}
    for number, table in enumerate(tables):
        at = f"token[{number}]"
        entry = _entry(path, at, table)
        for key, value in (("name", entry.principal.name), ("sha256", entry.sha256)):
            if (key, value) in seen:
                wrong = f"the same as {seen[key, value]}"
                raise ConfigError(path, f"{at}.{key}", wrong, "one that no other token has")
            seen[key, value] = f"{at}.{key}"
        entries.append(entry)
    return entries


def _entry(path: str, at: str, table: dict[str, object]) -> Entry:
    for key in table:
        if key not in _CHECKS:
            raise ConfigError(path, f"{at}.{key}", "unknown key", f"one of {', '.join(_CHECKS)}")
    for key, (needed, right, check) in _CHECKS.items():
        if key in table and not check(table[key]):
            # The value is not shown, because it may be the token itself in the wrong place.
            raise ConfigError(path, f"{at}.{key}", f"{type(table[key]).__name__} is not allowed", right)
        if needed and key not in table:
            raise ConfigError(path, f"{at}.{key}", "missing", right)
    values: dict[str, Any] = table
    name, role, expires = values["name"], values["role"], values.get("expires")
    scopes = values.get("scopes")
    principal = Principal(
        name,
        role,
        role_scopes(role, name) if scopes is None else tuple(scopes),
        None if expires is None else expires.timestamp(),
    )
    return Entry(principal, values["sha256"])


def _is_moment(value: object) -> bool:
    if not isinstance(value, datetime) or value.tzinfo is None:
        return False
    try:
        rfc3339_seconds(value.timestamp())
    except (ValueError, OverflowError):  # in UTC the year is not between 1 and 9999
        return False
    return True


def _are_scopes(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and is_scope(item) for item in value)


_CHECKS: Final[dict[str, tuple[bool, str, Callable[[object], bool]]]] = {
    "name": (True, f"a name of 1 to {MAX_NAME} printable characters", lambda v: isinstance(v, str) and is_peer_name(v)),
    "role": (True, '"operator", "node" or "ui"', lambda v: isinstance(v, str) and v in ROLES),
    "sha256": (
        True,
        "64 hexadecimal digits in lower case, the SHA-256 of the token",
        lambda v: isinstance(v, str) and _DIGEST.fullmatch(v) is not None,
    ),
    "scopes": (False, _SCOPES, _are_scopes),
    "expires": (False, "a time with its offset, such as 2027-01-01T00:00:00Z", _is_moment),
}
"""For each key: whether it must be there, what would be right, and the test of its value."""


# Writing


@contextmanager
def _edited(path: str) -> Iterator[tomlkit.TOMLDocument]:
    """Yield the file as a document to be changed, with its comments, and write it when the block ends.

    The directory is locked meanwhile, so that two processes do not lose each other's token. Raises ConfigError if the
    file is wrong before or after the change, and OSError if it cannot be read or written. It is then as it was.
    """
    import tomli
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    with suppress(FileNotFoundError):
        os.stat(path)  # raises OSError if links form a circle
    target = Path(path).resolve()  # a link stays, and its target is replaced
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if target.exists():
            load(path)
            document = tomlkit.parse(target.read_bytes().decode())
        else:
            document = tomlkit.document()
        yield document
        text = tomlkit.dumps(document)
        _entries(path, tomli.loads(text))
        _replace(target, text)
        os.fsync(directory)
    except TOMLKitError as error:
        raise ConfigError(path, "token", str(error), "TOML, with a [[token]] for each") from None
    finally:
        os.close(directory)


def _replace(target: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new content, even after a crash. Mode and owner stay."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            if target.exists():
                before = target.stat()
                os.fchmod(file.fileno(), before.st_mode & 0o7777)
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
