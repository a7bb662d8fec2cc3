"""What is said on a connection to a NATS server: messages cut out of bytes, INFO, headers, credentials. Pure.

Subjects, subscription ids and payloads stay bytes. Nothing that the server says is trusted to be well formed: whatever
is not raises `WireError`, and lengths are bounded before anything is kept.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes a message: its subject, the subject for a reply or b"", its raw headers or b"", and its payload."""

MAX_LINE: Final = 1 << 16
"""Bytes of a line. The longest is INFO, which names all servers of a cluster."""

SLACK: Final = 1 << 16
"""Bytes by which a message may be larger than ``max_payload``: JetStream adds headers to what was published."""

HEADS: Final = 1000
"""How many first lines of messages are remembered at most."""

PORT: Final = 4222

_CRLF: Final = b"\r\n"
_URL: Final = re.compile(r"(nats|tls)://(?:\[([0-9a-fA-F:.%]+)\]|([^\s/@:?#\[\]]+))(?::(\d{1,5}))?/?")
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_SECTION: Final = re.compile(rb"-{3,}\s*BEGIN ([A-Z ]+?)\s*-{3,}\s+(\S+)\s+-{3,}\s*END \1\s*-{3,}")
# An nkey is a prefix, 32 bytes and a checksum in base32. The prefix of a user's seed is that of a seed, then that of a
# user, 5 bits each.
_USER: Final = 20 << 3
_SEED_OF_A_USER: Final = bytes((18 << 3 | _USER >> 5, (_USER & 31) << 3))
_KEY_BYTES: Final = 32


_Head = tuple[bytes, bytes, bytes, int, int]
"""A message's subject, subscription id, subject for a reply, bytes of headers, and bytes in all."""


class WireError(ValueError):
    """The server said what no NATS server says. The message says what."""


class Info(msgspec.Struct, frozen=True):
    """What a server says of itself. ``ldm``: it is about to shut down (lame duck mode)."""

    version: str
    max_payload: int
    server_id: str = ""
    server_name: str = ""
    headers: bool = False
    jetstream: bool = False
    tls_required: bool = False
    tls_available: bool = False
    nonce: str = ""
    ldm: bool = False

    @property
    def release(self) -> tuple[int, int, int]:
        """The version as numbers, to compare; zeros if it has none."""
        found = _RELEASE.match(self.version)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


class Address(NamedTuple):
    """Where a server is. ``tls``: plaintext is refused."""

    tls: bool
    host: str
    port: int


class Reader:
    """Cuts what a server sends into messages, and keeps the incomplete rest.

    Each message goes to the handler of its subscription id in ``handlers`` within `feed`, in the order of the wire. A
    message without a handler is dropped. An exception of a handler goes to ``failed``, with the message's subject. All
    other lines go to ``control``, without their end. ``most`` is the largest message that the server may send.
    """

    __slots__ = ("_control", "_failed", "_have", "_heads", "_need", "_parts", "handlers", "most", "once")

    def __init__(self, control: Callable[[bytes], None], failed: Callable[[bytes, Exception], None]) -> None:
        self._control = control
        self._failed = failed
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        self._heads: dict[bytes, _Head] = {}
        """What first lines say that come again and again."""
        self.handlers: dict[bytes, Handler] = {}
        self.most = 0
        self.once = b""
        """The subscription id of messages that have a subject of their own each: their first lines never come again."""

    def feed(self, data: bytes) -> None:
        """Take what has been read: any part of a message, or many. Raises WireError if it is not NATS."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        at, need, end = 0, 0, len(data)
        find, handler_of, heads = data.find, self.handlers.get, self._heads
        while at < end:
            stop = find(_CRLF, at)
            if stop < 0:
                break
            line = data[at:stop]
            head = heads.get(line) or self._head(line)
            if head is None:
                self._control(line)
                at = stop + 2
                continue
            subject, sid, reply, split, size = head
            start = stop + 2
            after = start + size
            over = after + 2
            if end < over:
                need = over - at
                break
            if not data.startswith(_CRLF, after):
                raise WireError(f"a message that does not end after the {size} bytes that it says")
            at = over
            handler = handler_of(sid)
            if handler is not None:
                try:
                    handler(subject, reply, data[start : start + split] if split else b"", data[start + split : after])
                except Exception as error:
                    self._failed(subject, error)
        if at < end:
            self._keep(data[at:], need)

    def _head(self, line: bytes) -> _Head | None:
        """Return what the first line of a message says; None if it is another line. Raises WireError.

        The line of a message that is not answered is remembered, because most are the same.
        """
        words = line.split(b" ")
        verb, split, reply = words[0], 0, b""
        try:
            if verb == b"HMSG":
                split = int(words.pop(-2))
            elif verb != b"MSG":
                return None
            if len(words) == 5:
                _, subject, sid, reply, length = words
            else:
                _, subject, sid, length = words
            size = int(length)
        except (IndexError, ValueError):
            raise _strange(line) from None
        if not 0 <= split <= size <= self.most:
            raise WireError(f"a message of {size} bytes, {split} of them headers, and {self.most} are allowed")
        head = subject, sid, reply, split, size
        if not reply and sid != self.once:
            if len(self._heads) >= HEADS:
                self._heads.clear()
            self._heads[line] = head
        return head

    def _keep(self, rest: bytes, need: int) -> None:
        """Keep the beginning of a message; ``need`` are its bytes in all, 0 if its first line is not complete."""
        if not need and len(rest) > MAX_LINE:
            raise WireError(f"a line of more than {MAX_LINE} bytes")
        self._parts.append(rest)
        self._have, self._need = len(rest), need


class Credentials:
    """A `.creds` file: the JWT of a user, and the seed of the key that signs for it. Without a JWT the key is the user.

    Raises ValueError, with a sentence, if ``text`` is not such a file.
    """

    __slots__ = ("_key", "jwt")

    def __init__(self, text: bytes) -> None:
        sections: dict[bytes, bytes] = dict(_SECTION.findall(text))
        seed = sections.get(b"USER NKEY SEED")
        if seed is None:
            raise ValueError("there is no USER NKEY SEED in the credentials")
        self._key = Ed25519PrivateKey.from_private_bytes(_of_seed(seed))
        self.jwt = sections.get(b"NATS USER JWT", b"").decode()

    @property
    def user(self) -> str:
        """The public key as NATS writes it, such as ``UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4``."""
        raw = bytes((_USER,)) + self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")

    def sign(self, nonce: str) -> str:
        """Return the signature of a server's nonce."""
        return base64.urlsafe_b64encode(self._key.sign(nonce.encode())).decode().rstrip("=")


def info(line: bytes) -> Info:
    """Return what an INFO line says. Raises WireError if it is another line, or not as it has to be."""
    if not line.startswith(b"INFO "):
        raise _strange(line)
    try:
        return msgspec.json.decode(line[5:], type=Info)
    except msgspec.MsgspecError as error:
        raise WireError(f"an INFO that cannot be read: {error}") from None


def error_text(line: bytes) -> str:
    """Return what a line ``-ERR '…'`` says."""
    return line[4:].strip(b" '").decode(errors="replace")


def address(url: str) -> Address:
    """Return what ``nats://host:port`` or ``tls://host:port`` says; without a port it is 4222.

    Raises ValueError, with a sentence, if it is anything else. The sentence does not repeat it, because what is wrong
    may be a password in it.
    """
    found = _URL.fullmatch(url)
    port = int(found[4] or PORT) if found else 0
    if not found or not 0 < port < 1 << 16:
        raise ValueError("the address of a NATS server is nats://host:port or tls://host:port")
    return Address(found[1] == "tls", found[2] or found[3], port)


def status(headers: bytes) -> int:
    """Return the status in the first line of raw headers, such as 503 for no responders; 0 if there is none."""
    code = headers[9:12]
    return int(code) if len(code) == 3 and code.isdigit() else 0


def value(headers: bytes, name: bytes) -> bytes:
    """Return the first value of this name in raw headers, b"" if there is none. The case of the name counts."""
    _, found, rest = headers.partition(b"\r\n%b:" % name)
    return rest.partition(_CRLF)[0].strip() if found else b""


def number(headers: bytes, name: bytes) -> int:
    """Return the same as a number from 0 on, such as ``Nats-Sequence``; -1 if there is none."""
    digits = value(headers, name)
    return int(digits) if digits.isdigit() and len(digits) < MAX_DIGITS else -1


MAX_DIGITS: Final = 20
"""Digits of a number in a header: more than those of 64 bits are not one."""


def _strange(line: bytes) -> WireError:
    return WireError(f"it is not NATS: {line[:60]!r}")


def _of_seed(text: bytes) -> bytes:
    """Return the private key in a user's seed."""
    try:
        raw = base64.b32decode(text + b"=" * (-len(text) % 8))
    except binascii.Error:
        raw = b""
    key = raw[2:-2]
    if len(key) != _KEY_BYTES or raw[:2] != _SEED_OF_A_USER or raw[-2:] != _checksum(raw[:-2]):
        raise ValueError("the USER NKEY SEED in the credentials is not the seed of a user")
    return key


def _checksum(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(2, "little")
