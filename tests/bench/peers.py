"""The servers under test: how each is called and started, and whether it can be started on this machine."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.process import clean_environment, to_toml

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
NODE_SERVER = SERVERS / "node_ws.cjs"
BASE = "aiohttp-echo"
GATEWAY = "gateway"
# More than any run opens.
MOST_CONNECTIONS = 50_000

LoopName = Literal["asyncio", "uvloop"]
LoopChoice = Literal["asyncio", "uvloop", "both"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server under test.

    command: arguments that start it; `{config}` in one stands for the path of a file with the text `config`.
    welcomes: whether its first frame is `gateway.welcome`. needs: Python modules without which it cannot run.
    """

    name: str
    command: tuple[str, ...]
    welcomes: bool = False
    needs: tuple[str, ...] = ()
    node: bool = False
    config: str = ""

    def missing(self) -> str | None:
        """Return what this machine lacks to start it, None when nothing is missing."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                return f"the Python module {module} is not installed"
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


def _gateway(loop: LoopName) -> Peer:
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
            "auth": {"mode": "none"},
            "log": {"level": "info", "format": "json"},
        }
    )
    command = (sys.executable, "-m", "gateway", "--config", "{config}")
    return Peer(f"{GATEWAY}-{loop}", command, welcomes=True, needs=_loop_needs(loop), config=config)


def _loop_needs(loop: LoopName) -> tuple[str, ...]:
    return ("uvloop",) if loop == "uvloop" else ()


def _bare(kind: Literal["echo", "json"], loop: LoopName) -> Peer:
    suffix = "-uvloop" if loop == "uvloop" else ""
    command = (sys.executable, "-m", "tests.bench.servers.aiohttp_server", kind, loop)
    return Peer(f"aiohttp-{kind}{suffix}", command, needs=("aiohttp", *_loop_needs(loop)))


def _others() -> Iterable[Peer]:
    for kind in ("echo", "json"):
        for loop in ("asyncio", "uvloop"):
            yield _bare(kind, loop)
    yield Peer("websockets", (sys.executable, "-m", "tests.bench.servers.websockets_server"), needs=("websockets",))
    yield Peer("picows", (sys.executable, "-m", "tests.bench.servers.picows_server"), needs=("picows", "uvloop"))
    yield Peer("node-ws", (shutil.which("node") or "node", str(NODE_SERVER)), node=True)


OTHERS = {peer.name: peer for peer in _others()}
NAMES = (GATEWAY, *OTHERS)
"""Every name that `select` takes."""
LOOPS: dict[LoopChoice, tuple[LoopName, ...]] = {
    "asyncio": ("asyncio",),
    "uvloop": ("uvloop",),
    "both": ("asyncio", "uvloop"),
}


def select(names: Iterable[str], loop: LoopChoice) -> list[Peer]:
    """Return the servers with these names, each once; `gateway` becomes one for each chosen loop.

    The base of all ratios comes first, named or not. ValueError for an unknown name.
    """
    chosen = {BASE: OTHERS[BASE]}
    for name in names:
        if name == GATEWAY:
            chosen |= {peer.name: peer for peer in map(_gateway, LOOPS[loop])}
        elif name in OTHERS:
            chosen[name] = OTHERS[name]
        else:
            raise ValueError(f"no server {name!r}; there are {', '.join(NAMES)}")
    return list(chosen.values())
