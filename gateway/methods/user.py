"""The modules with methods of the user's own, which `methods.modules` names."""

from __future__ import annotations

import importlib
from types import ModuleType

from gateway.config import ConfigError


def load_methods(name: str) -> ModuleType:
    """Import the user's module that `methods.modules` names. Raises ConfigError if there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but one that it needs is not: its own traceback says more
        wrong = f'no module "{name}" in PYTHONPATH or site-packages'
        raise ConfigError("configuration", "methods.modules", wrong, "a module that can be imported") from None
