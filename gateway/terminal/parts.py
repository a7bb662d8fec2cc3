"""What the install has: the base is enough to call, and the extra ``server`` is needed to serve."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

SERVER: Final = ("cryptography", "jwt", "prometheus_client", "pythonjsonlogger", "tomli", "tomlkit", "uvloop")
"""What only the extra ``server`` of setup.cfg installs, by the names under which it is imported."""


def lacking() -> list[str]:
    """Return the packages of the server that are not installed."""
    return [name for name in SERVER if not _is_installed(name)]


def advice(names: list[str]) -> str:
    """Return what to do about packages that are not installed."""
    return f"this command needs {', '.join(names)}: pip install 'aisopod-gateway[server]'"


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
