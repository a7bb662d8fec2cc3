"""The wings of docs/design.md hold, modules that are called pure are, and the check that says so can fail."""

import shutil
from pathlib import Path

import pytest

from tests.support import layers

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    sources = layers.read(ROOT)
    assert {"gateway", "gateway.errors", "gateway.app", "gateway.cluster.memory"} <= sources.keys()
    return sources


def test_every_module_has_a_wing(sources: dict[str, str]) -> None:
    assert layers.unplaced(sources) == []


def test_no_folder_has_more_modules_than_a_reader_takes_in(sources: dict[str, str]) -> None:
    assert layers.crowded(sources) == []


def test_modules_and_functions_are_short(sources: dict[str, str]) -> None:
    assert layers.overlong(sources) == []


def test_imports_run_downwards(sources: dict[str, str]) -> None:
    assert layers.misdirected(sources) == []


def test_pure_modules_are_pure(sources: dict[str, str]) -> None:
    assert layers.impure(sources) == []


def test_no_modules_import_each_other(sources: dict[str, str]) -> None:
    assert layers.cycles(sources) == []


def test_only_the_link_touches_aiohttps_privates(sources: dict[str, str]) -> None:
    assert layers.intrusions(sources) == []


def test_every_module_has_its_tests(sources: dict[str, str]) -> None:
    assert layers.untested(sources, ROOT / "tests") == []


# What the check finds in the house itself, as soon as somebody plants it


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package, to plant something in."""
    shutil.copytree(ROOT / "gateway", tmp_path / "gateway", ignore=shutil.ignore_patterns("__pycache__", "static"))
    return tmp_path


def plant(house: Path, module: str, line: str) -> None:
    """Add a line at the end of a module."""
    with (house / module).open("a") as file:
        file.write(f"\n{line}\n")


def test_an_import_that_runs_backwards_is_found(house: Path) -> None:
    assert layers.misdirected(layers.read(house)) == []
    plant(house, "gateway/cluster/memory.py", "from gateway.app import create_app")
    (finding,) = layers.misdirected(layers.read(house))
    assert finding.startswith("gateway.cluster.memory:")
    assert finding.endswith("imports gateway.app.create_app, which is above it")


def test_a_pure_module_that_imports_asyncio_is_found(house: Path) -> None:
    assert layers.impure(layers.read(house)) == []
    plant(house, "gateway/cluster/memory.py", "import asyncio")
    (finding,) = layers.impure(layers.read(house))
    assert finding.startswith("gateway.cluster.memory:")
    assert finding.endswith("imports asyncio, but the module is pure")


# The checker itself


def test_read_names_modules_and_packages(tmp_path: Path) -> None:
    (tmp_path / "gateway/cluster").mkdir(parents=True)
    for name in ("__init__", "app", "cluster/__init__", "cluster/memory"):
        (tmp_path / f"gateway/{name}.py").write_text(f'"""{name}"""')
    assert layers.read(tmp_path) == {
        "gateway": '"""__init__"""',
        "gateway.app": '"""app"""',
        "gateway.cluster": '"""cluster/__init__"""',
        "gateway.cluster.memory": '"""cluster/memory"""',
    }


def test_an_unknown_module_is_told_where_to_go() -> None:
    (finding,) = layers.unplaced({"gateway": "", "gateway.errors": "", "gateway.novel": "", "gateway.rpc.novel": ""})
    assert finding.startswith("gateway.novel is in no wing")


def test_a_crowded_folder_is_found() -> None:
    sources = {f"gateway.rpc.m{number}": "" for number in range(layers.MOST)} | {"gateway": "", "gateway.rpc": ""}
    assert layers.crowded(sources) == []
    (finding,) = layers.crowded(sources | {"gateway.rpc.one_more": ""})
    assert finding == f"gateway.rpc has {layers.MOST + 1} modules, more than {layers.MOST}"


def test_what_is_too_long_is_found() -> None:
    function = "def act():\n" + "    pass\n" * (layers.FUNCTION - 1)
    assert layers.overlong({"gateway.app": function}) == []
    (finding,) = layers.overlong({"gateway.app": function + "    pass\n"})
    assert finding == f"gateway.app: act has {layers.FUNCTION + 1} lines, more than {layers.FUNCTION}"
    (finding,) = layers.overlong({"gateway.app": "\n" * (layers.LINES + 1)})
    assert finding == f"gateway.app has {layers.LINES + 1} lines, more than {layers.LINES}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.auth.scopes", "from gateway.nodes.registry import Node"),
        ("gateway.auth.scopes", "from gateway.nodes import registry"),
        ("gateway.limits", "def look():\n    import gateway.config"),
        ("gateway.limits", "import importlib\nimportlib.import_module('gateway.rpc.calls')"),
        ("gateway.nodes.registry", "if TYPE_CHECKING:\n    from gateway.connections.connection import Connection"),
        ("gateway.events.presence", "from gateway.nodes.registry import Node"),
        ("gateway.connections.connection", "import gateway.app"),
        ("gateway.methods.node", "from gateway.server import run"),
        ("gateway.app", "from gateway.commands import serve"),
        ("gateway.app", "from .errors import RpcError"),
        ("gateway.nodes.routing", "from aiohttp import web"),
        ("gateway.cluster.memory", "from aiohttp import web"),
        ("gateway.client", "from gateway.config import load"),
        ("gateway.client", "from gateway.rpc.dispatcher import Dispatcher"),
        ("gateway.connections.connection", "from gateway.client import Client"),
        ("gateway", "from gateway.app import create_app"),
    ],
)
def test_a_misdirected_import_is_found(module: str, source: str) -> None:
    (finding,) = layers.misdirected({module: source})
    assert finding.startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.config.types", "import gateway\nfrom gateway import __version__, errors\nimport tomli"),
        (
            "gateway.nodes.routing",
            "import asyncio\nfrom gateway.nodes.registry import Nodes",
        ),
        ("gateway.cluster.memory", "from gateway.cluster.stream import Stream"),
        ("gateway.connections.connection", "from aiohttp import web\nfrom gateway.websocket.link import Link"),
        (
            "gateway.client",
            "import aiohttp\nfrom gateway.errors import RpcError\nfrom gateway.rpc import jsonrpc\n"
            "from gateway.client.link import Link\nfrom gateway import __version__",
        ),
        ("gateway.commands.serve", "from gateway.app import create_app\nfrom gateway.client import connect"),
        ("gateway.app", "from gateway.console import page"),
        ("gateway", "import importlib.metadata"),
    ],
)
def test_a_proper_import_is_not(module: str, source: str) -> None:
    assert layers.misdirected({module: source}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.rpc.jsonrpc", "import asyncio"),
        ("gateway.limits", "from time import monotonic"),
        ("gateway.config.types", "def load():\n    import aiohttp.web"),
        ("gateway.events.topics", "from gateway.deadlines import Wheel"),
        ("gateway.events.topics", "def later():\n    from gateway import deadlines"),
    ],
)
def test_what_makes_a_pure_module_impure_is_found(module: str, source: str) -> None:
    pure = {f"gateway.{path}": "" for path in layers.PURE}
    deadlines = {"gateway.deadlines": "import asyncio"}
    assert layers.impure(pure | deadlines) == []
    (finding,) = layers.impure(pure | deadlines | {module: source})
    assert finding.startswith(f"{module}:")


def test_a_pure_module_that_is_gone_is_told_of() -> None:
    pure = {f"gateway.{path}": "" for path in layers.PURE - {"limits"}}
    assert layers.impure(pure) == ["gateway.limits is called pure, and is not there"]


def test_a_circle_is_found() -> None:
    sources = {
        "gateway.nodes.registry": "from gateway.events.hub import Events",
        "gateway.events.hub": "def later():\n    from gateway.cluster import stream",
        "gateway.cluster.stream": "if TYPE_CHECKING:\n    import gateway.nodes.registry",
    }
    (finding,) = layers.cycles(sources)
    assert finding.count(" → ") == 3
    assert layers.cycles(sources | {"gateway.cluster.stream": "from gateway import __version__"}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import aiohttp._websocket.reader",
        "from aiohttp import _websocket",
        "from aiohttp.web_protocol import _ErrInfo",
        "from gateway.telemetry.log import _format",
        "def stop(socket):\n    socket._closed = True",
        "class A:\n    def stop(self):\n        self.socket._writer.close()",
        "def stop(site):\n    return site.runner()._server",
        "value = getattr(socket, '_writer')",
        "setattr(socket, '_writer', None)",
        "from aiohttp import web\nclass A(web.Server):\n    def stop(self):\n        self._connections = {}",
        "from aiohttp import web\nclass A(web.Server):\n    def stop(self):\n        super()._loop.stop()",
        "from aiohttp.web import WebSocketResponse as W\nclass Mine(W):\n    def _post_start(self): ...",
        "from aiohttp.http import WebSocketReader as R\nclass A(R):\n    def f(self): self._feed_data()",
        "import aiohttp.web\nclass Mine(aiohttp.web.Server):\n    def stop(self):\n        self._kwargs = {}",
    ],
)
def test_a_touch_of_privates_is_found(source: str) -> None:
    (finding,) = layers.intrusions({"gateway.handshake.listener": source})
    assert finding.startswith("gateway.handshake.listener:")
    assert layers.intrusions({"gateway.websocket.link": source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\nfrom gateway import __version__",
        "class A:\n    def __init__(self):\n        super()._reset()\n        self._open = A._count",
        "class A:\n    def count(self):\n        return type(self)._count",
        "import os\nos._exit(1)",
        "def moved(point):\n    return point._replace(x=1).__class__.__name__",
        "class A:\n    def get(self):\n        return getattr(self, '_open', None)",
        "from aiohttp import web\nclass A(web.Server):\n    def stop(self):\n        self._deadlines.clear()",
        "import os, aiohttp\nclass A(os.PathLike):\n    def stop(self):\n        self._loop.stop()",
    ],
)
def test_a_modules_own_privates_are_not(source: str) -> None:
    assert layers.intrusions({"gateway.handshake.listener": source}) == []


def test_a_missing_file_of_tests_is_found(tmp_path: Path) -> None:
    names = ("gateway", "gateway.__main__", "gateway.app", "gateway.cluster", "gateway.cluster.memory", "gateway.cli")
    sources = dict.fromkeys(names, "")
    (tmp_path / "test_cli.py").touch()
    assert layers.untested(sources, tmp_path) == [
        "gateway.app has no tests/test_app.py",
        "gateway.cluster.memory has no tests/cluster/test_memory.py",
    ]
