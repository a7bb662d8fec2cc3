"""What the tests of the configuration share: its keys, and the line that refuses it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config, ConfigError, load


def attempt(act: Callable[[], Config]) -> Config | str:
    """Return the configuration, or the line that refuses it."""
    try:
        return act()
    except ConfigError as error:
        return str(error)


def refusal(act: Callable[[], Config]) -> str:
    """Return the line that refuses the configuration."""
    line = attempt(act)
    assert isinstance(line, str), "accepted"
    assert line.isprintable(), "one line, and nothing that drives a terminal"
    return line


def keys() -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its default, as the Structs declare them."""

    def below(struct: msgspec.Struct, prefix: str) -> Iterator[tuple[str, Any]]:
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            if isinstance(value, msgspec.Struct):
                yield from below(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", value

    return below(Config(), "")


def tables(key: str, value: object) -> dict[str, Any]:
    """Return the tables in which only `key` is set."""
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def at(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def variable(key: str) -> str:
    """Return the environment variable that sets a dotted key."""
    return f"GATEWAY_{key.replace('.', '__').upper()}"


def numbers(kind: type) -> list[str]:
    """Return the dotted keys with a default of this very type."""
    return [key for key, default in keys() if type(default) is kind]


def refused_file(directory: Path, text: str) -> str:
    """Write a configuration file and return the line that refuses it, without the file's name."""
    path = directory / "gateway.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    line = refusal(lambda: load(str(path), {}, {}))
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")
