"""The layers of docs/design.md hold, and the check that says so can fail."""

from pathlib import Path

import pytest

from tests.support import layers

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    sources = layers.read(ROOT)
    assert {"gateway", "gateway.errors", "gateway.websocket", "gateway.app"} <= sources.keys()
    return sources


def test_every_module_has_a_layer(sources: dict[str, str]) -> None:
    assert layers.unplaced(sources) == []


def test_imports_run_downwards(sources: dict[str, str]) -> None:
    assert layers.misdirected(sources) == []


def test_no_modules_import_each_other(sources: dict[str, str]) -> None:
    assert layers.cycles(sources) == []


def test_only_one_module_touches_aiohttps_privates(sources: dict[str, str]) -> None:
    assert layers.intrusions(sources) == []


def test_every_module_has_its_tests(sources: dict[str, str]) -> None:
    assert layers.untested(sources, ROOT / "tests") == []


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
    (finding,) = layers.unplaced({"gateway": "", "gateway.errors": "", "gateway.novel": ""})
    assert "add 'novel' to LAYERS in tests/support/layers.py" in finding


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.jsonrpc", "import asyncio"),
        ("gateway.limits", "from time import monotonic"),
        ("gateway.config", "def load():\n    import aiohttp.web"),
        ("gateway.config", "import importlib\nimportlib.import_module('asyncio')"),
        ("gateway.scopes", "from gateway.auth import Principal"),
        ("gateway.scopes", "from gateway import auth"),
        ("gateway.cluster.memory", "from aiohttp import web"),
        ("gateway.nodes", "if TYPE_CHECKING:\n    from gateway.connection import Connection"),
        ("gateway.connection", "import gateway.app"),
        ("gateway.methods.node", "from gateway.server import run"),
        ("gateway.app", "from .errors import RpcError"),
        ("gateway.client", "from gateway.config import load"),
        ("gateway.connection", "from gateway.client import Client"),
        ("gateway", "from gateway.app import create_app"),
    ],
)
def test_a_misdirected_import_is_found(module: str, source: str) -> None:
    (finding,) = layers.misdirected({module: source})
    assert finding.startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.config", "import gateway\nfrom gateway import __version__, errors\nimport tomli"),
        (
            "gateway.nodes",
            "import asyncio\nfrom gateway.jsonrpc import Request\nfrom gateway.events import Events",
        ),
        ("gateway.cluster", "from gateway.cluster.memory import Memory"),
        ("gateway.connection", "from aiohttp import web\nfrom gateway.websocket import Socket"),
        (
            "gateway.client",
            "import aiohttp\nfrom gateway.errors import RpcError\nfrom gateway import __version__",
        ),
        ("gateway.app", "from gateway.console import page"),
        ("gateway", "import importlib.metadata"),
    ],
)
def test_a_proper_import_is_not(module: str, source: str) -> None:
    assert layers.misdirected({module: source}) == []


def test_a_circle_is_found() -> None:
    sources = {
        "gateway.nodes": "from gateway.events import Events",
        "gateway.events": "def later():\n    from gateway.cluster import Bus",
        "gateway.cluster": "if TYPE_CHECKING:\n    import gateway.nodes",
    }
    (finding,) = layers.cycles(sources)
    assert finding.count(" → ") == 3
    assert layers.cycles(sources | {"gateway.cluster": "from gateway import __version__"}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import aiohttp._websocket.reader",
        "from aiohttp import _websocket",
        "from aiohttp.web_protocol import _ErrInfo",
        "from gateway.log import _format",
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
    (finding,) = layers.intrusions({"gateway.listener": source})
    assert finding.startswith("gateway.listener:")
    assert layers.intrusions({"gateway.websocket": source}) == []


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
    assert layers.intrusions({"gateway.listener": source}) == []


def test_a_missing_file_of_tests_is_found(tmp_path: Path) -> None:
    names = ("gateway", "gateway.__main__", "gateway.app", "gateway.cluster", "gateway.cluster.memory", "gateway.log")
    sources = dict.fromkeys(names, "")
    (tmp_path / "test_log.py").touch()
    assert layers.untested(sources, tmp_path) == [
        "gateway.app has no tests/test_app.py",
        "gateway.cluster.memory has no tests/test_cluster_memory.py",
    ]
