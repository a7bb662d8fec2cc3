"""The servers under test: how each is called and started, and whether it can be started on this machine."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jwt

from gateway.auth.tokens import digest_of
from tests.support import nats
from tests.support.process import clean_environment, to_toml

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
NODE_SERVER = SERVERS / "node_ws.cjs"
BASE, RELAY_BASE, FANOUT_BASE = "aiohttp-echo", "aiohttp-relay", "aiohttp-fanout"
GATEWAY = "gateway"
BEFORE = "gateway-before"
KEPT = "gateway-kept"
TOKEN, JWT, NEW_JWT, REFUSING = "gateway-token", "gateway-jwt", "gateway-new-jwt", "gateway-refusing"
# More than any run opens.
MOST_CONNECTIONS = 50_000

LoopName = Literal["asyncio", "uvloop"]
LoopChoice = Literal["asyncio", "uvloop", "both"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server under test.

    command: arguments that start it; `{config}` in one stands for the path of a file with the text `config`.
    files: further files beside it, name and text; `{directory}` in `config` stands for where they are.
    welcomes: whether its first frame is `gateway.welcome`. needs: Python modules without which it cannot run.
    headers: a connect has one of these header lines, in turn. refuses: whether it refuses all upgrades.
    socketio: whether it speaks Socket.IO, and carries each message as an event. nats: whether it speaks NATS.
    kept: whether its connections are kept (`connection.keep`). beside: the name of the server, if that is measured too,
    to which it has another ratio. home: the folder that it runs in; empty for this checkout.
    """

    name: str
    command: tuple[str, ...]
    welcomes: bool = False
    needs: tuple[str, ...] = ()
    node: bool = False
    config: str = ""
    files: tuple[tuple[str, str], ...] = ()
    headers: tuple[str, ...] = ()
    refuses: bool = False
    socketio: bool = False
    nats: bool = False
    kept: bool = False
    beside: str = ""
    home: str | None = ""

    def missing(self) -> str | None:
        """Return what this machine lacks to start it, None when nothing is missing."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                return f"the Python module {module} is not installed"
        if self.home is None or (self.home and not Path(self.home, "gateway", "__main__.py").is_file()):
            return "BENCH_BEFORE names no checkout of the gateway"
        if self.nats and nats.program() is None:
            return "nats-server is not installed"
        return _missing_node() if self.node else None


def _missing_node() -> str | None:
    node = shutil.which("node")
    if node is None:
        return "node is not installed"
    probe = subprocess.run(
        [node, "-e", "require('ws')"],
        cwd=SERVERS,
        env=clean_environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    return None if probe.returncode == 0 else "node does not find the package ws (npm install ws, or NODE_PATH)"


def _gateway(loop: LoopName, auth: Mapping[str, object]) -> Peer:
    # The drain's limits play no part in a figure: they only keep the end of a run short.
    config = to_toml(
        {
            "server": {
                "host": "127.0.0.1",
                "port": 0,
                "event_loop": loop,
                "receive_timeout": 60.0,
                "drain_timeout": 1.0,
                "close_timeout": 1.0,
            },
            "heartbeat": {"interval": 30.0, "timeout": 10.0},
            "limits": {"max_connections": MOST_CONNECTIONS},
            "auth": auth,
            "log": {"level": "info", "format": "json"},
        }
    )
    command = (sys.executable, "-m", "gateway", "--config", "{config}")
    return Peer(f"{GATEWAY}-{loop}", command, welcomes=True, needs=_loop_needs(loop), config=config)


def _with_nothing(loop: LoopName) -> Peer:
    return _gateway(loop, {"mode": "none"})


def _with_token(loop: LoopName) -> Peer:
    """A token in the Authorization header, one of a hundred."""
    tokens = [secrets.token_urlsafe(32) for _ in range(100)]
    entries = [
        f'[[token]]\nname = "node-{number}"\nrole = "node"\nsha256 = "{digest_of(token)}"\n'
        for number, token in enumerate(tokens)
    ]
    peer = _gateway(loop, {"mode": "token", "tokens_file": "{directory}/tokens.toml"})
    headers = tuple(f"Authorization: Bearer {token}" for token in tokens)
    return replace(peer, name=f"{TOKEN}-{loop}", files=(("tokens.toml", "\n".join(entries)),), headers=headers)


def _with_jwt(loop: LoopName, distinct: int) -> Peer:
    """A JWT in the Authorization header, one of so many; the gateway remembers 4,096 that it has verified."""
    secret = secrets.token_urlsafe(32)
    expires = int(time.time()) + 86_400
    headers = tuple(
        f"Authorization: Bearer {jwt.encode({'sub': f'node-{n}', 'role': 'node', 'exp': expires}, secret, 'HS256')}"
        for n in range(distinct)
    )
    settings = {"mode": "jwt", "jwt": {"algorithms": ["HS256"], "secret_file": "{directory}/secret"}}
    return replace(_gateway(loop, settings), files=(("secret", secret),), headers=headers)


def _refusing(loop: LoopName) -> Peer:
    """Each upgrade comes from a page of another origin: 403."""
    return replace(
        _with_nothing(loop), name=f"{REFUSING}-{loop}", headers=("Origin: https://foreign.example",), refuses=True
    )


def _before(loop: LoopName) -> Peer:
    """The gateway of another checkout, to compare a change with what there was before."""
    home = os.environ.get("BENCH_BEFORE")
    return replace(_with_nothing(loop), name=f"{BEFORE}-{loop}", beside=f"{GATEWAY}-{loop}", home=home)


def _kept(loop: LoopName) -> Peer:
    """Each connection is kept, the caller's and the node's."""
    return replace(_with_nothing(loop), name=f"{KEPT}-{loop}", beside=f"{GATEWAY}-{loop}", kept=True)


GATEWAYS: dict[str, Callable[[LoopName], Peer]] = {
    GATEWAY: _with_nothing,
    BEFORE: _before,
    TOKEN: _with_token,
    JWT: lambda loop: replace(_with_jwt(loop, 100), name=f"{JWT}-{loop}"),
    NEW_JWT: lambda loop: replace(_with_jwt(loop, 8192), name=f"{NEW_JWT}-{loop}"),
    REFUSING: _refusing,
}


def _with_roles(loop: LoopName) -> Peer:
    """The caller comes first and has an operator's token, the node one of its own."""
    tokens = {"operator": secrets.token_urlsafe(32), "node": secrets.token_urlsafe(32)}
    entries = [
        f'[[token]]\nname = "the-{role}"\nrole = "{role}"\nsha256 = "{digest_of(token)}"\n'
        for role, token in tokens.items()
    ]
    return replace(
        _gateway(loop, {"mode": "token", "tokens_file": "{directory}/tokens.toml"}),
        name=f"{TOKEN}-{loop}",
        files=(("tokens.toml", "\n".join(entries)),),
        headers=tuple(f"Authorization: Bearer {token}" for token in tokens.values()),
    )


def _loop_needs(loop: LoopName) -> tuple[str, ...]:
    return ("uvloop",) if loop == "uvloop" else ()


def _bare(kind: Literal["echo", "json", "relay", "fanout", "write"], loop: LoopName) -> Peer:
    suffix = "-uvloop" if loop == "uvloop" else ""
    command = (sys.executable, "-m", "tests.bench.servers.aiohttp_server", kind, loop)
    return Peer(f"aiohttp-{kind}{suffix}", command, needs=("aiohttp", *_loop_needs(loop)))


def _python(name: str, kind: str, *needs: str, socketio: bool = False) -> Peer:
    command = (sys.executable, "-m", f"tests.bench.servers.{name.replace('-', '_')}_server", kind)
    return Peer(name, command, needs=needs, socketio=socketio)


def _node(kind: str) -> Peer:
    return Peer("node-ws", (shutil.which("node") or "node", str(NODE_SERVER), kind), node=True)


def _nats() -> Peer:
    config = (
        'host: "127.0.0.1"\nport: -1\nports_file_dir: "{directory}"\n'
        'websocket { host: "127.0.0.1", port: -1, no_tls: true }\n'
    )
    command = (sys.executable, "-m", "tests.bench.servers.nats_server", nats.program() or "", "{config}")
    return Peer("nats-server", command, welcomes=True, config=config, nats=True)


def _others() -> Iterable[Peer]:
    for kind in ("echo", "json"):
        for loop in ("asyncio", "uvloop"):
            yield _bare(kind, loop)
    yield _python("websockets", "json", "websockets")
    yield _python("picows", "echo", "picows", "uvloop")
    yield _node("json")


def _relays() -> Iterable[Peer]:
    yield _bare("relay", "asyncio")
    yield _bare("relay", "uvloop")
    yield _python("websockets", "relay", "websockets")
    yield _python("picows", "relay", "picows", "uvloop")
    yield _python("python-socketio", "relay", "socketio", socketio=True)
    yield _node("relay")
    yield _nats()


def _fanouts() -> Iterable[Peer]:
    yield _bare("fanout", "asyncio")
    yield _bare("fanout", "uvloop")
    yield _bare("write", "asyncio")
    yield _bare("write", "uvloop")
    yield _python("websockets", "fanout", "websockets")
    yield _python("picows", "fanout", "picows", "uvloop")
    yield _node("fanout")
    yield _nats()


@dataclass(frozen=True, slots=True)
class Field:
    """The servers that can be measured beside each other, by name, and which of them all ratios are to."""

    base: str
    gateways: Mapping[str, Callable[[LoopName], Peer]]
    others: Mapping[str, Peer]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `select` takes."""
        return (*self.gateways, *self.others)

    def select(self, names: Iterable[str], loop: LoopChoice) -> list[Peer]:
        """Return the servers with these names, each once; `gateway` becomes one for each chosen loop.

        The base of all ratios comes first, named or not. ValueError for an unknown name.
        """
        chosen = {self.base: self.others[self.base]}
        for name in names:
            if name in self.gateways:
                chosen |= {peer.name: peer for peer in map(self.gateways[name], LOOPS[loop])}
            elif name in self.others:
                chosen[name] = self.others[name]
            else:
                raise ValueError(f"no server {name!r}; there are {', '.join(self.names)}")
        return list(chosen.values())


LOOPS: dict[LoopChoice, tuple[LoopName, ...]] = {
    "asyncio": ("asyncio",),
    "uvloop": ("uvloop",),
    "both": ("asyncio", "uvloop"),
}
_OTHERS = {peer.name: peer for peer in _others()}

CONNECTED = Field(BASE, GATEWAYS, _OTHERS)
"""All that can be connected to, or that refuses it."""
OPEN = Field(BASE, {name: made for name, made in GATEWAYS.items() if name != REFUSING}, _OTHERS)
"""Those that answer a request."""
IDLE = Field(BASE, {**OPEN.gateways, KEPT: _kept}, _OTHERS)
"""Those that hold idle connections."""
RELAYS = Field(
    RELAY_BASE,
    {GATEWAY: _with_nothing, KEPT: _kept, BEFORE: _before, TOKEN: _with_roles},
    {peer.name: peer for peer in _relays()},
)
"""Those that hand a call to a node, and the answer back."""
FANOUTS = Field(FANOUT_BASE, {GATEWAY: _with_nothing, BEFORE: _before}, {peer.name: peer for peer in _fanouts()})
"""Those that hand a message to all subscribers."""


def alone_and_clustered(loop: LoopName) -> list[Peer]:
    """Return a gateway alone, two that are a cluster, the same of another checkout, and three: see `cluster.SIZES`."""
    alone = _with_nothing(loop)
    two = replace(alone, name=f"two-gateways-{loop}", beside=f"two-before-{loop}")
    before = replace(two, name=f"two-before-{loop}", beside="", home=os.environ.get("BENCH_BEFORE"))
    return [alone, two, before, replace(alone, name=f"three-gateways-{loop}")]


def nats_for_gateways() -> Peer:
    """The NATS of a cluster, by its own protocol. Its threads have one core, as they have in `routed`."""
    config = (
        'host: "127.0.0.1"\nport: -1\nports_file_dir: "{directory}"\nmax_payload: 2MB\n'
        'jetstream { store_dir: "{directory}/streams" }\n'
    )
    return replace(_nats(), config=config)
