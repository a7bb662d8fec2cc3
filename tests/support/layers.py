"""Reads the source of `gateway` and says where it leaves the house of docs/design.md.

Two properties are held. *Order* is one of a wing: imports run down the table of wings, between folders as between
files. *Purity* is one of a module: it knows neither an event loop nor a framework nor the clock.

Nothing of `gateway` is imported for it: what counts is what the text says, also inside functions and under
TYPE_CHECKING. Every finding is one line for a person; an empty list means that all is well.
"""

import ast
import inspect
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

__all__ = ["crowded", "cycles", "impure", "intrusions", "misdirected", "read", "unplaced", "untested"]

# Module name, a package by its own name, to source text.
Sources = Mapping[str, str]

PACKAGE: Final = "gateway"

# From the top down: a module may import from its own wing and from those below it in this table.
ENTRY: Final = "entry"
ASSEMBLY: Final = "assembly"
GROUND: Final = "ground"
WINGS: Final = (
    ENTRY,
    "commands",
    "terminal",
    ASSEMBLY,
    "methods",
    "handshake",
    "connections",
    "nodes",
    "events",
    "cluster",
    "rpc",
    "websocket",
    "auth",
    "telemetry",
    "config",
    GROUND,
)
RANKS: Final = {wing: rank for rank, wing in enumerate(reversed(WINGS))}
# What lies in `gateway/` itself: how the process begins, what it is assembled of, and what is known to all. There is a
# folder `assembly`, too.
IN_ROOT: Final = {
    **dict.fromkeys(("__main__", "cli"), ENTRY),
    **dict.fromkeys(("api", "app", "server", "systemd"), ASSEMBLY),
    **dict.fromkeys(("deadlines", "errors", "limits", "names", "status", "text", "timestamps"), GROUND),
}
# Beside the wings: they know next to nothing of the gateway, and only those who use them as anybody would know them.
LEAVES: Final = frozenset({"client", "console"})
LEAVES_MAY_KNOW: Final = frozenset({"gateway.errors", "gateway.rpc.jsonrpc"})
MAY_KNOW_LEAVES: Final = frozenset({ENTRY, "commands", "terminal", ASSEMBLY})
MOST: Final = 12
"""Modules of one folder, as a reader takes them in at a glance."""

LINES: Final = 450
"""Lines of a module."""

FUNCTION: Final = 60
"""Lines of a function, with its docstring: what fits a screen."""

PURE: Final = frozenset(
    {
        "auth.credentials",
        "auth.scopes",
        "cluster.alive",
        "cluster.history",
        "cluster.memory",
        "cluster.natswire",
        "cluster.replica",
        "cluster.stream",
        "config.certificates",
        "config.checks",
        "config.schema",
        "config.sources",
        "config.types",
        "connections.history",
        "errors",
        "events.delivery",
        "events.hub",
        "events.index",
        "events.pauses",
        "events.shared",
        "events.topics",
        "handshake.proxies",
        "limits",
        "names",
        "nodes.serving",
        "rpc.jsonrpc",
        "rpc.method",
        "rpc.openrpc",
        "rpc.responses",
        "rpc.streams",
        "rpc.work",
        "status",
        "telemetry.counts",
        "text",
        "timestamps",
        "websocket.frames",
    }
)
# What no pure module may know, and whoever else knows one of these may not be known to it either.
IMPURE: Final = frozenset({"aiohttp", "asyncio", "time", "uvloop"})
# aiohttp is known where connections come in, to the link and the connection, and to what is assembled of them.
MAY_KNOW_AIOHTTP: Final = frozenset({ENTRY, "commands", "terminal", ASSEMBLY, "handshake", "connections", "websocket"})
# What a link is made of, and nothing else may touch aiohttp's private names: its life, its heartbeat, the way in, the
# protocol of the request that it begins with, outgoing compression, and what aiohttp's own calls write to.
INSIDERS: Final = frozenset(
    f"gateway.websocket.{module}" for module in ("deflate", "heartbeat", "link", "opening", "reader", "writer")
)
# Documented as public, in spite of the underscore: os._exit, a named tuple's methods, logging._srcfile (its HOWTO).
PUBLIC: Final = frozenset({"_asdict", "_exit", "_field_defaults", "_fields", "_make", "_replace", "_srcfile"})


def read(root: Path) -> dict[str, str]:
    """Return the sources of the package in the project folder `root`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in sorted((root / PACKAGE).rglob("*.py"))
    }


def unplaced(sources: Sources) -> list[str]:
    """Find modules that stand in no wing."""
    return [
        f"{module} is in no wing: move it into one, or add it to the tables in tests/support/layers.py"
        for module in sources
        if module != PACKAGE and _wing(module) not in RANKS.keys() | LEAVES
    ]


def crowded(sources: Sources) -> list[str]:
    """Find folders with more modules than a reader takes in at a glance."""
    modules = {module for module in sources if not module.endswith(".__main__")} - _packages(sources)
    folders = Counter(module.rpartition(".")[0] for module in modules)
    return [f"{name} has {count} modules, more than {MOST}" for name, count in folders.items() if count > MOST]


def overlong(sources: Sources) -> list[str]:
    """Find modules and functions that are longer than they may be."""
    modules = [
        f"{module} has {count} lines, more than {LINES}"
        for module, source in sources.items()
        if (count := len(source.splitlines())) > LINES
    ]
    return modules + [
        f"{module}: {node.name} has {count} lines, more than {FUNCTION}"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION
    ]


def misdirected(sources: Sources) -> list[str]:
    """Find imports that run upwards, that a wing may not have, or that are not written in full."""
    return [
        f"{module}:{line}: imports {target}, {why}"
        for module, source in sources.items()
        for line, target in _imports(ast.parse(source))
        if (why := _objection(module, target))
    ]


def impure(sources: Sources) -> list[str]:
    """Find pure modules that know an event loop, a framework or the clock, and such that are not there."""
    known = {
        module: {target.partition(".")[0] for _, target in _imports(ast.parse(source))} & IMPURE
        for module, source in sources.items()
    }
    found = []
    for module, source in sources.items():
        if _path(module) not in PURE:
            continue
        for line, target in _imports(ast.parse(source)):
            first = target.partition(".")[0]
            if first in IMPURE:
                found.append(f"{module}:{line}: imports {target}, but the module is pure")
            elif known.get(_resolve(sources, target)):
                found.append(f"{module}:{line}: imports {target}, which is not pure as the module is")
    there = {_path(module) for module in sources}
    return found + [f"{PACKAGE}.{path} is called pure, and is not there" for path in sorted(PURE - there)]


def cycles(sources: Sources) -> list[str]:
    """Find the first circle of modules that import each other."""
    graph = {
        module: {_resolve(sources, target) for _, target in _imports(ast.parse(source))} - {"", PACKAGE, module}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" → ".join(reversed(error.args[1]))]
    return []


def intrusions(sources: Sources) -> list[str]:
    """Find uses of what is private to others, aiohttp above all, outside of the modules that may."""
    return [
        f"{module}:{line}: {what} is private to another; aiohttp's is for {', '.join(sorted(INSIDERS))}"
        for module, source in sources.items()
        if f"{PACKAGE}.{_path(module)}" not in INSIDERS
        for line, what in _private_uses(ast.parse(source))
    ]


def untested(sources: Sources, tests: Path) -> list[str]:
    """Find modules without a file of tests: gateway/cluster/memory.py has tests/cluster/test_memory.py."""
    packages = _packages(sources)
    wanted = {
        module: "/".join((*parents, f"test_{name}.py"))
        for module in sources
        if module not in packages and not module.endswith(".__main__")
        for _, *parents, name in [module.split(".")]
    }
    return [f"{module} has no tests/{name}" for module, name in wanted.items() if not (tests / name).is_file()]


def _packages(sources: Sources) -> set[str]:
    return {module.rpartition(".")[0] for module in sources} | {PACKAGE}


def _path(module: str) -> str:
    """Return the name below the package, `wing.module`; an empty string for the package itself."""
    return module.partition(".")[2]


def _wing(module: str) -> str:
    """Return the wing, or the leaf, that a module or a name in it belongs to; an empty string for none."""
    first = _path(module).partition(".")[0]
    return first if first in RANKS or first in LEAVES else IN_ROOT.get(first, "")


def _resolve(sources: Sources, target: str) -> str:
    """Return the module that an imported name lies in, or an empty string for a foreign one."""
    while target and target not in sources:
        target = target.rpartition(".")[0]
    return target


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the full dotted name of all that is imported, the imported name included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(base, names, level):
                prefix = "." * (level or 0) + (f"{base}." if base else "")
                yield from ((node.lineno, prefix + name.name) for name in names)
            case ast.Call(
                ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                [ast.Constant(str(name)), *_],
            ):
                yield node.lineno, name


def _objection(module: str, target: str) -> str:
    """Say why `module` must not import `target`, or return an empty string."""
    importer, imported = _wing(module), _wing(target)
    if target.startswith("."):
        return "but an import is written in full"
    if target.partition(".")[0] != PACKAGE:
        knows = importer not in RANKS or importer in MAY_KNOW_AIOHTTP or target.partition(".")[0] != "aiohttp"
        return "" if knows else f"which the wing {importer!r} does not know"
    if importer in LEAVES:
        alone = imported == importer or not imported or f"{PACKAGE}.{_path(target)}".startswith(tuple(LEAVES_MAY_KNOW))
        return "" if alone else f"but a leaf knows {' and '.join(sorted(LEAVES_MAY_KNOW))} at most"
    if imported in LEAVES:
        return "" if importer in MAY_KNOW_LEAVES else "a leaf, which only those above all wings may know"
    # What is in no wing is a name in gateway/__init__.py, which is below all; the package itself knows nobody.
    above = RANKS.get(imported, -1) > (RANKS[importer] if importer else -1)
    return "which is above it" if above else ""


def _is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not dunder and name not in PUBLIC


def _private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each use of a private name that is not the module's own."""
    for line, target in _imports(tree):
        if any(map(_is_private, target.split("."))):
            yield line, target
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ours = {"self", "cls", *(node.name for node in classes)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(owner, name) if _is_private(name) and not _is_ours(owner, ours):
                yield node.lineno, ast.unparse(node)
            case ast.Call(
                ast.Name("getattr" | "setattr" | "hasattr" | "delattr"), [owner, ast.Constant(str(name)), *_]
            ) if _is_private(name) and not _is_ours(owner, ours):
                yield node.lineno, ast.unparse(node)
    for node in classes:
        yield from _inherited_uses(tree, node)


def _is_ours(owner: ast.expr, ours: set[str]) -> bool:
    match owner:
        case ast.Name(name):
            return name in ours
        case ast.Call(ast.Name("super" | "type")):
            return True
    return False


def _inherited_uses(tree: ast.Module, node: ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Yield the uses in a subclass of an aiohttp class of names that are private to that class.

    A name of our own that only happens to be the same is found too: it would overwrite aiohttp's.
    """
    names = _aiohttp_names(tree)
    for base in node.bases:
        first, dot, rest = ast.unparse(base).partition("[")[0].partition(".")
        if first not in names:
            continue
        theirs = _privates_of(pkgutil.resolve_name(names[first] + dot + rest))
        for inner in ast.walk(node):
            match inner:
                case ast.Attribute(owner, name) if name in theirs and _is_ours(owner, {"self", "cls"}):
                    yield inner.lineno, f"{ast.unparse(inner)} of {ast.unparse(base)}"
                case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) if name in theirs:
                    yield inner.lineno, f"{name}() of {ast.unparse(base)}"


def _aiohttp_names(tree: ast.Module) -> dict[str, str]:
    """Return what the module calls the things that it imports from aiohttp, and their full names."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(aliases):
                tops = {a.name.partition(".")[0] for a in aliases if not a.asname}
                names |= {top: top for top in tops} | {a.asname: a.name for a in aliases if a.asname}
            case ast.ImportFrom(str(base), aliases):
                names |= {a.asname or a.name: f"{base}.{a.name}" for a in aliases}
    return {name: full for name, full in names.items() if full.partition(".")[0] == "aiohttp"}


def _privates_of(cls: type) -> set[str]:
    """Return the private names of an aiohttp class: what it has, and what its source sets on an instance."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("aiohttp.")]
    names = {name for base in bases for name in vars(base)}
    for base in bases:
        # A compiled class has no source, and no attributes that are not among its names.
        with suppress(OSError, TypeError):
            names.update(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)))
    return {name for name in names if _is_private(name)}
