"""Where the settings come from: defaults, then a TOML file, then the environment, then flags.

Each source is converted by itself, so that an error can name the source. Pure.
"""

import difflib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config.checks import Value, Values, check
from gateway.config.schema import KEYS, TABLES, Config, Key, KeyPath
from gateway.config.types import ConfigError, literal

_ENV_PREFIX = "GATEWAY_"
_FILE_VARIABLE = "GATEWAY_CONFIG"
# UnicodeEncodeError is raised if a variable that must be a number or a fixed word has bytes that are not UTF-8.
_CONVERT_ERRORS = (msgspec.ValidationError, UnicodeEncodeError)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0: all other keys are quoted

_FILE, _ENVIRONMENT, _FLAG = range(3)


def _dotted(path: KeyPath) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in path)


def _typed(value: object) -> str:
    """Name a value's type as TOML users know it, with the value if that is short."""
    match value:
        case bool() | str() | int() | float():
            return f"{type(value).__name__} {literal(value)}"
        case Mapping():
            return "table"
        case list() | tuple():
            return "array"
        case _:
            return type(value).__name__


def _table_of(names: tuple[str, ...]) -> str:
    return f"a table of {', '.join(names)}"


def _alternatives(path: KeyPath) -> str:
    """Say which key an unknown one may have been meant to be, or which keys there are."""
    depth = next(n for n in range(len(path) - 1, -1, -1) if path[:n] in TABLES)
    names, unknown = TABLES[path[:depth]], path[depth].lower()
    elsewhere = [_dotted(known) for known in KEYS if known[-1] == unknown and known[:-1] != path[:depth]]
    for guess in (*elsewhere, *difflib.get_close_matches(unknown, names, 1)):
        return f'did you mean "{guess}"?'
    return _table_of(names)


def _convert_item(key: Key, value: object, text: bool, source: str, name: str) -> object:
    try:
        plain = msgspec.convert(value, key.plain, strict=not text)
    except _CONVERT_ERRORS:
        wrong = f"expected {key.plain.__name__}, got {_typed(value)}"
        raise ConfigError(source, name, wrong, key.right) from None
    try:
        bounded: object = msgspec.convert(plain, key.bounded)
    except _CONVERT_ERRORS:
        bounded = None
    if bounded is None or (key.check is not None and not key.check(plain)):
        shown = "this" if key.hidden else literal(plain)
        wrong = f"{shown} is {'not allowed' if isinstance(plain, str) else 'out of range'}"
        raise ConfigError(source, name, wrong, key.right)
    return bounded


def _is_alone(value: object, text: bool) -> bool:
    return not isinstance(value, list | tuple) and not (text and isinstance(value, str) and "," in value)


def _convert(path: KeyPath, value: object, text: bool, source: str) -> object:
    """Convert `value` to the type of the key at `path`. `text`: it is written as in an environment variable."""
    name = _dotted(path)
    if path in TABLES:
        # The value is not shown, because under [auth] it may be a credential in the wrong place.
        wrong = f"expected table, got {type(value).__name__}"
        raise ConfigError(source, name, wrong, _table_of(TABLES[path]))
    if path not in KEYS:
        raise ConfigError(source, name, "unknown key", _alternatives(path))
    key = KEYS[path]
    if not key.array or (key.alone and _is_alone(value, text)):
        return _convert_item(key, value, text, source, name)
    if text and isinstance(value, str):
        value = [item.strip() for item in value.split(",")] if value.strip() else []
    if not isinstance(value, list | tuple):
        wrong = f"expected array, got {'str' if key.hidden and isinstance(value, str) else _typed(value)}"
        raise ConfigError(source, name, wrong, f"an array, each item {key.right}")
    if key.alone and not value:
        raise ConfigError(source, name, "an empty array", key.right)
    return tuple(_convert_item(key, item, text, source, f"{name}[{n}]") for n, item in enumerate(value))


def _from_tables(data: Mapping[str, object], source: str) -> Values:
    def leaves(table: Mapping[str, object], at: KeyPath) -> Iterator[tuple[KeyPath, object]]:
        for name, value in table.items():
            path = (*at, name)
            if path in TABLES and isinstance(value, Mapping):
                yield from leaves(value, path)
            else:
                yield path, value

    return {
        _dotted(path): Value(_convert(path, value, False, source), source, _FILE) for path, value in leaves(data, ())
    }


def _from_environ(environ: Mapping[str, str]) -> Values:
    values = {}
    for variable in sorted(environ):
        name = variable.removeprefix(_ENV_PREFIX)
        # Without a double underscore it is not a key: GATEWAY_URL is the client's, others may be any program's.
        if name == variable or "__" not in name:
            continue
        path = tuple((name.lower() if name == name.upper() else name).split("__"))
        source = f"environment variable {variable}"
        value = _convert(path, environ[variable], True, source)
        values[_dotted(path)] = Value(value, source, _ENVIRONMENT)
    return values


def _from_flags(flags: Mapping[str, object]) -> Values:
    values = {}
    for name, value in flags.items():
        if value is None:
            continue
        option = name.removeprefix("server.").replace(".", "-").replace("_", "-")
        source = f"flag --{option}"
        converted = _convert(tuple(name.split(".")), value, isinstance(value, str), source)
        values[name] = Value(converted, source, _FLAG)
    return values


def read_file(path: str, named_by: str, right: str, *, guarded: bool = False) -> bytes:
    """Return what is in a file that the configuration names, in the setting `named_by`.

    `guarded` files decide who may connect. Raises `ConfigError` if it cannot be read, which says that `right` would be
    right, or if it is guarded and its group or others may write it.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        wrong = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise ConfigError(path, named_by, wrong, right) from None
    if guarded and stat.S_ISREG(mode) and mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong = f"mode {stat.S_IMODE(mode):04o} lets others than its owner write it"
        raise ConfigError(path, named_by, wrong, "chmod go-w: whoever may write it decides who may connect")
    return content


def read_toml(path: str, named_by: str, right: str, *, guarded: bool = False) -> bytes:
    """Return what is in a TOML file, as `read_file`. Raises `ConfigError` also if it begins with a byte order mark."""
    content = read_file(path, named_by, right, guarded=guarded)
    if content.startswith(_BYTE_ORDER_MARK):  # TOML 1.0 has none; editors write it unasked, and do not show it
        wrong = "the file begins with a byte order mark"
        raise ConfigError(path, "line 1, column 1", wrong, 'the same file, saved as "UTF-8" and not "UTF-8 with BOM"')
    return content


def _read(path: str, named_by: str) -> dict[str, object]:
    """Read a TOML file. `named_by` is the setting that an error names if it cannot be read."""
    import tomli

    content = read_toml(path, named_by, "the path of a readable TOML file")
    try:
        return tomli.loads(content.decode())
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        where = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        raise ConfigError(path, where, "not UTF-8", "a TOML file in UTF-8") from None
    except tomli.TOMLDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        right = 'TOML, such as port = 8765 or host = "127.0.0.1"'
        raise ConfigError(path, where, error.msg, right) from None
    except (ValueError, RecursionError):  # tomli: an integer of over 4300 digits, or arrays nested over 400 deep
        wrong = "an integer too long or arrays nested too deep"
        raise ConfigError(path, named_by, wrong, "a TOML file such as conf/gateway.toml") from None


def _collect(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Values:
    named_by = "--config"
    if path is None:
        path, named_by = environ.get(_FILE_VARIABLE) or None, _FILE_VARIABLE
    values = {} if path is None else _from_tables(_read(path, named_by), path)
    return values | _from_environ(environ) | _from_flags(flags)


def _build(values: Values) -> Config:
    tables: dict[str, Any] = {}
    for key, given in values.items():
        *parents, name = key.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[name] = given.value
    config = msgspec.convert(tables, Config)
    check(config, values)
    return config


def parse(data: Mapping[str, object], source: str = "configuration") -> Config:
    """Check `data`, which has tables as a TOML parser returns them, and fill in the defaults.

    Arrays may be lists or tuples, and numbers of seconds may be ints. Errors name `source`. The files of
    `server.tls_cert` and `server.tls_key` are read if they are set. Raises `ConfigError`.
    """
    return _build(_from_tables(data, source))


def load(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """Read the configuration. Flags override the environment, which overrides the file, which overrides the defaults.

    The file is `path`, otherwise the one that `GATEWAY_CONFIG` names; without either there is none. The variable of a
    key is `GATEWAY_SECTION__KEY`, as in `GATEWAY_AUTH__JWT__ISSUER`, and commas separate the items of an array. A
    variable without a double underscore is ignored. `flags` has dotted keys, as in `{"server.port": 9000}`. A flag that
    is None was not given, and a string is converted like a variable. Each value is checked, even if another source
    overrides it. May be called again, to reload. Raises `ConfigError`.
    """
    return _build(_collect(path, environ, flags))


def source_of(key: str, path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> str:
    """Say which source set `key`, for an error that appears only in use, such as a port that is taken.

    Takes the arguments of `load`. Returns what `ConfigError.source` would be, or "default" if no source sets the key.
    Raises `ConfigError`.
    """
    given = _collect(path, environ, flags).get(key)
    return "default" if given is None else given.source
