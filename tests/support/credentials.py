"""Credentials for tests: tokens and JWTs of known holders, the files they are checked against, and who brings them.

Every secret that is made here is remembered, so that `discreet` can show that a gateway has told none of them.
"""

import asyncio
import hashlib
import itertools
import json
import os
import re
import secrets
import signal
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.auth.scopes import role_scopes
from gateway.telemetry.metrics import SHARED
from tests.support.fleet import ended, request
from tests.support.patience import WAIT
from tests.support.peers import Opcode, PeerClosed, RawPeer, Reachable, Response, frame
from tests.support.process import Config, GatewayProcess


class Holder(NamedTuple):
    """Who a credential is for; `scopes` None: the role's own. `lives`: seconds from now, None: for ever."""

    name: str
    role: str
    scopes: tuple[str, ...] | None = None
    lives: float | None = None


OP: Final = Holder("op", "operator")
PI: Final = Holder("pi", "node")
PAGE: Final = Holder("page", "ui")
OLD: Final = Holder("old", "ui", lives=-60.0)
"""Expired."""
GONE: Final = Holder("gone", "node")
"""One that a test revokes."""

HOUR: Final = 3600.0
FAILURE: Final = 'gateway_handshake_failures_total{stage="authenticate"}'
LIVES: Final = re.compile("gateway_(connections|disconnects|handshake_failures)")
OPENED: Final = "gateway_connections_opened_total"

_made: set[str] = set()
# Monotonic seconds at which each gateway was asked for its metrics last.
_asked: WeakKeyDictionary[Reachable, float] = WeakKeyDictionary()
_sources = itertools.count(2)


def secret(about: str = "secret") -> str:
    """A text that no gateway may tell."""
    text = f"{about}-{secrets.token_urlsafe(24)}"
    _made.add(text)
    return text


class TokensFile:
    """Mode token: a file of tokens. It is written anew with each change; SIGHUP is the test's."""

    def __init__(self, path: Path, *holders: Holder) -> None:
        self.path = path
        self._holders: dict[str, Holder] = {}
        self._tokens: dict[str, str] = {}
        self.put(*holders)

    @property
    def auth(self) -> dict[str, Any]:
        """The section of the configuration."""
        return {"mode": "token", "tokens_file": str(self.path)}

    def of(self, holder: Holder) -> str:
        """Return the token, whether or not it is in the file still."""
        return self._tokens[holder.name]

    def put(self, *holders: Holder) -> None:
        """Add entries; of one that is there already the token stays, and what it gives is replaced."""
        for holder in holders:
            self._holders[holder.name] = holder
            if holder.name not in self._tokens:
                self._tokens[holder.name] = secret("token")
        self._write()

    def drop(self, *holders: Holder) -> None:
        """Take entries out."""
        for holder in holders:
            del self._holders[holder.name]
        self._write()

    def pass_on(self, holder: Holder, to: Holder) -> None:
        """Give somebody's token to somebody else."""
        del self._holders[holder.name]
        self._tokens[to.name] = self._tokens[holder.name]
        self.put(to)

    def _write(self) -> None:
        replace(self.path, "\n".join(self._entry(holder) for holder in self._holders.values()))

    def _entry(self, holder: Holder) -> str:
        digest = hashlib.sha256(self._tokens[holder.name].encode()).hexdigest()
        lines = [f'name = "{holder.name}"', f'role = "{holder.role}"', f'sha256 = "{digest}"']
        if holder.scopes is not None:
            lines.append(f"scopes = {json.dumps(holder.scopes)}")
        if holder.lives is not None:
            lines.append(f"expires = {datetime.fromtimestamp(time.time() + holder.lives, UTC).isoformat()}")
        return "\n".join(["[[token]]", *lines, ""])


class Key(NamedTuple):
    """A private key, its algorithm, and the public half as a JWK."""

    private: Any
    algorithm: str
    public: dict[str, Any]


@cache
def key(kid: str) -> Key:
    """Return the key of this name, made once: "rsa…", "ec…", and Ed25519 for any other."""
    private: Any
    if kid.startswith("rsa"):
        private, algorithm = rsa.generate_private_key(65537, 2048), "RS256"
        public = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    elif kid.startswith("ec"):
        private, algorithm = ec.generate_private_key(ec.SECP256R1()), "ES256"
        public = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    else:
        private, algorithm = ed25519.Ed25519PrivateKey.generate(), "EdDSA"
        public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    return Key(private, algorithm, {**public, "kid": kid, "use": "sig", "alg": algorithm})


def signed(holder: Holder, kid: str = "ed", **claims: object) -> str:
    """Return a JWT of this holder; without `lives` it is valid for an hour. `claims` are further ones."""
    lives = HOUR if holder.lives is None else holder.lives
    # The serial number makes each payload one of its own, so that a find in a log is no accident.
    all_claims = {"sub": holder.name, "role": holder.role, "exp": time.time() + lives, "jti": secrets.token_hex(8)}
    if holder.scopes is not None:
        all_claims["scope"] = " ".join(holder.scopes)
    made = key(kid)
    token = jwt.encode(all_claims | claims, made.private, algorithm=made.algorithm, headers={"kid": kid})
    _made.update(token.split(".")[1:])
    return token


class KeySet:
    """Mode jwt: a JSON Web Key Set. It is written anew with each change; SIGHUP is the test's."""

    def __init__(self, path: Path, *kids: str) -> None:
        self.path = path
        self.put(*kids)

    @property
    def auth(self) -> dict[str, Any]:
        """The section of the configuration."""
        return {"mode": "jwt", "jwt": {"algorithms": ["RS256", "ES256", "EdDSA"], "jwks_file": str(self.path)}}

    def put(self, *kids: str) -> None:
        """Let these be the keys, and no others."""
        replace(self.path, json.dumps({"keys": [key(kid).public for kid in kids]}))


def replace(path: Path, text: str) -> None:
    """Write a file so that a gateway that reads meanwhile finds the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    os.replace(new, path)


# The gateway


@asynccontextmanager
async def discreet(config: Config, **options: Any) -> AsyncIterator[GatewayProcess]:
    """Start a GatewayProcess; when it has ended, all that it has ever said is searched for the secrets made here."""
    async with GatewayProcess(config, **options) as where:
        yield where
    assert_untold(where)


def assert_untold(where: GatewayProcess) -> None:
    """Fail if a secret is in the log or on standard error, as they are now."""
    said = "\n".join([*map(json.dumps, where.lines), *where.other_output, where.stderr])
    told = [text for text in _made if text in said]
    assert not told, f"{len(told)} secrets are told, as in: {where.tail()}"


async def metrics(where: Reachable) -> Response:
    """Return the answer to `GET /metrics` as it is now, on a connection of its own.

    Another text is made only SHARED seconds after the last. Whoever asks a gateway has to ask it here each time.
    """
    await asyncio.sleep(_asked.get(where, 0.0) + SHARED - time.monotonic())
    with await RawPeer.connect(where) as peer:
        answer = await peer.get("/metrics")
    _asked[where] = time.monotonic()
    assert answer.status == 200
    return answer


async def scrape(where: Reachable) -> Counter[str]:
    """Return the samples of `GET /metrics` as they are now, by name and labels as they stand there."""
    answer = await metrics(where)
    samples = re.findall(r"^(gateway_\w+(?:\{.*\})?) (\S+)$", answer.body.decode(), re.MULTILINE)
    return Counter({name: int(float(value)) for name, value in samples})


async def gains(where: Reachable, before: Mapping[str, int]) -> dict[str, int]:
    """Return by how much each sample about who comes and goes has changed since `before`; the unchanged left out."""
    now = await scrape(where)
    return {name: now[name] - before[name] for name in now if LIVES.match(name) and now[name] != before[name]}


def disconnects(cause: str) -> str:
    """Return the sample's name."""
    return f'gateway_disconnects_total{{cause="{cause}"}}'


def connections(role: str) -> str:
    """Return the sample's name."""
    return f'gateway_connections{{role="{role}"}}'


# Peers


def own_address() -> str:
    """An address of loopback that nobody else has had: limits by address then concern one test alone."""
    number = next(_sources)
    return f"127.1.{number >> 8}.{number & 255}"


def bearer(credential: str) -> dict[str, str]:
    """The header of an upgrade."""
    return {"Authorization": f"Bearer {credential}"}


def host(where: Reachable) -> dict[str, str]:
    """The Host header as IPv6 needs it."""
    return {"Host": f"[{where.host}]:{where.port}"} if ":" in where.host else {}


async def entered(where: Reachable, credential: str | None = None, source: str | None = None) -> RawPeer:
    """Connect, with a bearer where there is a credential, and read the welcome."""
    headers = host(where) | (bearer(credential) if credential else {})
    peer = await RawPeer.open(where, headers=headers, source=source)
    await peer.welcome()
    return peer


async def refused(
    where: Reachable, headers: Mapping[str, str], source: str | None = None
) -> tuple[int, dict[str, str]]:
    """Ask for an upgrade that must not come; returns status and headers of the answer."""
    with await RawPeer.connect(where, source=source) as peer:
        await peer.send_raw(peer.upgrade_head(headers=host(where) | dict(headers)))
        answer = await peer.read_response()
        assert answer.status != 101, "the upgrade was granted"
    return answer.status, answer.headers


async def authenticate(peer: RawPeer, credential: str) -> dict[str, Any]:
    """Bring a credential by message, and return the reply."""
    await request(peer, "gateway.authenticate", token=credential)
    reply: dict[str, Any] = await peer.recv_json()
    assert reply["id"] == 1, reply
    return reply


async def leave(where: GatewayProcess, *peers: RawPeer) -> None:
    """End these connections as a client should, and wait until the gateway has logged it."""
    for peer in peers:
        await peer.leave()
        await ended(where, peer, "client_close", 1000)


async def farewell(peer: RawPeer, timeout: float = WAIT) -> list[Any]:
    """Read on to the gateway's close frame, answer it as a client should, and return the JSON that came before."""
    messages: list[Any] = []
    while peer.close_code is None:
        got = await peer.recv_frame(timeout)
        if got.opcode == Opcode.TEXT:
            messages.append(json.loads(got.payload))
    try:
        await peer.send_close(peer.close_code)
        await peer.recv_until_closed(timeout)
    except (PeerClosed, OSError):
        pass  # after a broken frame the gateway may reset
    peer.close()
    return messages


def assert_is(principal: Any, holder: Holder) -> None:
    """Fail unless this is what a client is told of the holder."""
    expires = principal.pop("expiresAt")
    assert expires is None or expires.endswith("Z")
    assert principal == {
        "name": holder.name,
        "role": holder.role,
        "scopes": list(role_scopes(holder.role, holder.name)),
    }


async def texts(peer: RawPeer, count: int) -> list[Any]:
    """Return the next text messages; pongs before them are thrown away."""
    found: list[Any] = []
    while len(found) < count:
        got = await peer.recv_frame()
        if got.opcode == Opcode.TEXT:
            found.append(json.loads(got.payload))
    return found


# A gateway with all kinds of credentials


SERVER: Final = {"compression": True, "close_timeout": 0.5}


class Desk(NamedTuple):
    """A gateway that asks for credentials, and all kinds of them."""

    where: GatewayProcess
    right: dict[str, str]
    """By name of the holder."""
    bad: dict[str, str]
    """By what is wrong with it."""


async def token_desk(stack: AsyncExitStack, directory: Path, **server: object) -> Desk:
    """Start a gateway in mode token; one of its tokens has been revoked since."""
    tokens = TokensFile(directory / "tokens.toml", OP, PI, PAGE, OLD, GONE)
    config = {"server": SERVER | server, "auth": tokens.auth, "methods": {"modules": ["tests.support.sample_methods"]}}
    where = await stack.enter_async_context(discreet(config))
    await revoke(where, tokens.of(GONE), lambda: tokens.drop(GONE))
    bad = {"wrong": secret("token"), "expired": tokens.of(OLD), "revoked": tokens.of(GONE)}
    return Desk(where, {holder.name: tokens.of(holder) for holder in (OP, PI, PAGE)}, bad)


async def jwt_desk(stack: AsyncExitStack, directory: Path, **server: object) -> Desk:
    """Start a gateway in mode jwt, with a key of each kind; one of its keys has been revoked since."""
    keys = KeySet(directory / "keys.json", "rsa", "ec", "ed", "ed-gone")
    config = {"server": SERVER | server, "auth": keys.auth, "methods": {"modules": ["tests.support.sample_methods"]}}
    where = await stack.enter_async_context(discreet(config))
    gone = signed(GONE, "ed-gone")
    await revoke(where, gone, lambda: keys.put("rsa", "ec", "ed"))
    bad = {"wrong": signed(PI, "ed-stranger"), "expired": signed(OLD), "revoked": gone}
    return Desk(where, {"op": signed(OP, "rsa"), "pi": signed(PI, "ec"), "page": signed(PAGE, "ed")}, bad)


async def revoke(where: GatewayProcess, credential: str, change: Callable[[], None]) -> None:
    """Take a credential away that is in use, and wait until nobody has it."""
    peer = await entered(where, credential)
    change()
    where.signal(signal.SIGHUP)
    await farewell(peer)
    await ended(where, peer, "credential_revoked", 4503)


DESKS: Final = {"token": token_desk, "jwt": jwt_desk}


# First messages


def text(message: object) -> bytes:
    """A text frame with this, as JSON unless it is bytes."""
    return frame(Opcode.TEXT, message if isinstance(message, bytes) else json.dumps(message).encode())


def ask(token: object, **members: object) -> dict[str, object]:
    """`gateway.authenticate`, with other members where they are given; None: without."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "gateway.authenticate", "params": {"token": token}} | members
    return {name: value for name, value in message.items() if value is not None}


def padded(desk: Desk, size: int) -> bytes:
    """A right first message of so many bytes."""
    return json.dumps(ask(desk.right["pi"])).encode().ljust(size)


def deflated(data: bytes) -> bytes:
    """A compressed text frame (RFC 7692)."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    return frame(Opcode.TEXT, packed.removesuffix(b"\0\0\xff\xff"), rsv=4)


def fragments(data: bytes, size: int) -> list[bytes]:
    """A text message in pieces, and a ping after each but the last."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    kinds = [Opcode.TEXT] + [Opcode.CONTINUATION] * (len(pieces) - 1)
    made = [frame(kind, piece, fin=False) for kind, piece in zip(kinds[:-1], pieces[:-1], strict=True)]
    pings = [frame(Opcode.PING, b"") for _ in made]
    return [*itertools.chain(*zip(made, pings, strict=True)), frame(kinds[-1], pieces[-1])]


async def at_once(*scenarios: Coroutine[Any, Any, object]) -> None:
    """Run scenarios at the same time; where one fails, the others are ended before it shows."""
    async with asyncio.TaskGroup() as group:
        for scenario in scenarios:
            group.create_task(scenario)
